"""Is it the target, or how it is shared? Each scheme's target at L, spread in each scheme's way, by MEMIT's rule.

Takes anchors and shifts of a finished run of edit-table with memit+fe and memit+cr. The optimised target has no states
between, and can be spread from the last layer alone. Prints a table in Markdown, and writes it beside the numbers of
every fact.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch

from jacobian_lab.catalogue import COORDINATED, OPTIMISED, REPLAYED, Scheme
from jacobian_lab.editing.layers import edit_layers, restored
from jacobian_lab.editing.schemes import Targets, make_targets
from jacobian_lab.evaluation.evaluator import Evaluator
from jacobian_lab.jobs.config import EditTableConfig
from jacobian_lab.jobs.experiment import Experiment, prepare
from jacobian_lab.progress import bar
from jacobian_lab.report.intervals import summaries_of
from jacobian_lab.store.run import open_run

TARGETS = {"optimised at L (dividing's)": OPTIMISED, "replayed (FE's)": REPLAYED, "coordinated (CR's)": COORDINATED}
OWN, OWN_DIVIDED, LAST_DIVIDED = "own target, whole", "own target, divided", "the last target, divided"
WAYS: Mapping[str, tuple[Literal["own", "last"], bool]] = {
    OWN: ("own", False),
    OWN_DIVIDED: ("own", True),
    LAST_DIVIDED: ("last", True),
}
"""How the residual is read and given: of the layer's own target or of the last one, divided by the layers left."""

METRICS = {
    "efficacy_accuracy": ("efficacy", 100, 1),
    "generalization_accuracy": ("generalisation", 100, 1),
    "kl": ("D_KL", 1, 3),
    "top10": ("Top-10", 100, 1),
}
"""By name: what a column is called, its scale, its digits."""


def main() -> None:
    """Edit, evaluate, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the run that holds anchors and shifts")
    parser.add_argument("--facts", required=True, help="the run's facts")
    parser.add_argument("--slice", help="its slice")
    parser.add_argument("--ridge", type=float, help="λ; the run's own way of choosing it by default")
    parser.add_argument("--out", type=Path, required=True, help="folder for the table and the numbers")
    options = parser.parse_args()
    experiment = prepare(
        EditTableConfig(facts=options.facts, slice=options.slice, ridge=options.ridge, anchors_from=options.run)
    )
    session, targets = experiment.session, targets_of(options.run, experiment)
    evaluator = Evaluator.of(experiment.model, experiment.facts)
    _ = evaluator.before  # of the unedited model
    edits = {
        (target, way): Scheme("all", reads, divides=divides, kind=kind)
        for target, kind in TARGETS.items()
        for way, (reads, divides) in WAYS.items()
        if kind != OPTIMISED or reads == "last"
    }
    answers_by_way = {}
    with bar(len(edits), "edits", "edit") as progress:
        for name, scheme in edits.items():
            with restored(experiment.model, experiment.layers):
                for _ in edit_layers(session.setting, scheme, targets):
                    pass
                answers_by_way[name] = answers(evaluator)
            progress.update()
    options.out.mkdir(parents=True, exist_ok=True)
    facts = pd.concat(
        {name: pd.DataFrame(values) for name, values in answers_by_way.items()}, names=["target", "way", "fact"]
    )
    facts.to_csv(options.out / "target_and_sharing_facts.csv")
    source = f"{experiment.model.name}, {len(experiment.facts)} facts of {Path(options.facts).name}"
    caption = (
        f"MEMIT at λ = {session.ridge:g}: whose target, and how it is spread over the layers; in brackets, the paired "
        f"difference to the way of the target's own scheme. {source}, mean [95 % bootstrap interval]."
    )
    text = f"{caption}\n\n{table(answers_by_way).to_markdown()}\n"
    (options.out / "target_and_sharing.md").write_text(text, "utf-8")
    sys.stdout.write(text)


def targets_of(folder: Path, experiment: Experiment) -> Targets:
    """Targets of every kind from a run's anchors and shifts."""
    stored, rows = open_run(folder), experiment.rows
    dtype = torch.promote_types(rows.model.dtype, torch.float32)

    def tensor(values: np.ndarray) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype, device=rows.model.device)

    layers = experiment.layers
    anchors = {layer: tensor(stored["anchor"].sel(anchor_layer=layer).values) for layer in (layers[0], layers[-1])}
    return make_targets(rows, layers, anchors, tensor(stored["coordinated_shift"].values))


def answers(evaluator: Evaluator) -> dict[str, list[float]]:
    """Each metric of each fact, the mean over its prompts."""
    every = [values for _, part in evaluator.answers() for values in part]
    return {name: [float(np.mean(values[name])) for values in every] for name in METRICS}


def table(answers_by_way: Mapping[tuple[str, str], Mapping[str, list[float]]]) -> pd.DataFrame:
    """One row an edit, with what it differs by from the way of the target's own scheme."""
    rows = {}
    for (target, way), values in answers_by_way.items():
        own = answers_by_way.get((target, OWN), answers_by_way.get((target, LAST_DIVIDED), values))
        cells = {}
        for name, (label, scale, digits) in METRICS.items():
            here = scale * np.array(values[name])
            apart = here - scale * np.array(own[name])
            whole, paired = summaries_of(np.stack([here, apart]), 0).to_dict("records")
            difference = f"{paired['mean']:+.{digits}f} [{paired['low']:+.{digits}f}, {paired['high']:+.{digits}f}]"
            cells[label] = f"{whole['mean']:.{digits}f}" + (f" ({difference})" if values is not own else "")
        rows[target, way] = cells
    frame = pd.DataFrame.from_dict(rows, orient="index")
    frame.index = pd.Index(
        [f"{target}; {way}" for target, way in rows], name="target at L; residual that a layer is given"
    )
    return frame


if __name__ == "__main__":
    main()
