"""A trial of target schemes: frontiers of many batches of facts, one after the other, and the endpoint over batches.

    python benchmarks/trial.py --facts FOLDER              # the default plan: of the last thousand of each file
    python benchmarks/trial.py --plan plan.yaml --most 1   # another plan, and at the most one run in this session
    python benchmarks/trial.py --most 0                    # the tables of what is there

A plan is YAML or JSON; what it leaves out is as in `Plan`:

    batches:
      - {model: smollm2-135m, facts: counterfact_2000.json, slices: ["1000:1032", "1032:1064"], seeds: [0]}
      - {model: model.gguf, facts: zsre_2000.json, slices: ["1000:1032"], options: {layers: 3-7}}
    schemes: [backward-dividing, forward-replay, coordinated-replay]
    ridges: [70, 700, 7000]
    descents:
      coordinated-replay: {anchor: {lr: 0.22, steps: 50}}

Every batch is a run of `jacobian-lab frontier` in a folder of its own, anchors shared by its schemes, so that the same
command goes on where it was interrupted. Schemes with descents of their own have runs of their own. Beside the runs it
leaves trial.csv, a row for each point, endpoint.csv and endpoint.md (`jacobian_lab.report.endpoint`), and trial.png.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from matplotlib.figure import Figure

import jacobian_lab as jl
from jacobian_lab.caching import write_text
from jacobian_lab.catalogue import method
from jacobian_lab.report.endpoint import NOTHING, compared, texts
from jacobian_lab.report.figures.style import save, style
from jacobian_lab.report.figures.trial import frontiers
from jacobian_lab.report.paper import METRICS
from jacobian_lab.report.tables.methods import by_fact
from jacobian_lab.report.writing import markdown, write_csv
from jacobian_lab.store.arrays import exists
from jacobian_lab.store.run import open_run
from jacobian_lab.tries import bounds_around

MEANS = {
    "efficacy": "efficacy_accuracy",
    "generalization": "generalization_accuracy",
    "kl": "kl",
    "top10": "top10",
}
"""Columns of ``trial.csv`` that are means over facts, and their variables."""
COLUMNS = ("model", "data", "batch", "seed", "scheme", "ridge", *MEANS, "perplexity", "seconds")
RECORD = "trial.json"
"""What a session notes of a run, in its folder."""
LABELS = {"generalization": "Generalisation accuracy", "efficacy": "Efficacy accuracy", "top10": "Top-10"}
SLICES = tuple(f"{first}:{first + 32}" for first in range(1000, 1192, 32))
GGUF = ("qwen2.5-coder-0.5b-instruct-q4_k_m.gguf", "gemma-3-270m-q4_k_m.gguf")
FILES = ("counterfact_2000.json", "zsre_2000.json")


@dataclass(frozen=True)
class Batches:
    """Batches of one model and file of facts.

    Attributes:
        model: The model; a .gguf file is sought in the folder of models.
        facts: The file, in the folder of facts, or "builtin".
        slices: Facts of each batch, as A:B.
        seeds: Seeds of the templates; each makes a batch of every slice.
        options: Further fields of `FrontierConfig`, such as layers or corpus_tokens.
    """

    model: str = jl.FrontierConfig.model
    facts: str = FILES[0]
    slices: tuple[str, ...] = SLICES
    seeds: tuple[int, ...] = (0,)
    options: Mapping[str, Any] = field(default_factory=dict)


def default_batches() -> tuple[Batches, ...]:
    """Six batches of SmolLM2 and two of each other model, on both files; on one batch two more seeds."""
    own = [Batches(facts=name, slices=(part,)) for part in SLICES for name in FILES]
    more = [Batches(facts=name, slices=SLICES[:1], seeds=(1, 2)) for name in FILES]
    others = [Batches(model, name, SLICES[:2]) for model in GGUF for name in FILES]
    return (*own, *more, *others)


@dataclass(frozen=True)
class Plan:
    """A trial.

    Attributes:
        batches: Its batches, in the order in which they are run.
        rule: The update rule.
        schemes: The schemes.
        ridges: λ of every point, alphaedit's L2; seven around each batch's own by default.
        descents: By scheme, the fields ``anchor`` and ``coordination`` that it does not share with the others. A
            variant of a scheme has a label of its own here and among the schemes, and names the scheme as ``scheme``.
        confirmatory: Model and two schemes whose comparison, over the model's files, was named before.
        kl_bound: Middle of the bounds of D_KL, in nats; they go from a tenth to ten times as much.
        options: Further fields of `FrontierConfig`, for all batches.
    """

    batches: tuple[Batches, ...] = field(default_factory=default_batches)
    rule: str = "memit"
    schemes: tuple[str, ...] = ("backward-dividing", "forward-replay", "coordinated-replay")
    ridges: tuple[float, ...] | None = None
    descents: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    confirmatory: tuple[str, ...] = ("smollm2-135m", "coordinated-replay", "forward-replay")
    kl_bound: float = 0.1
    options: Mapping[str, Any] = field(default_factory=dict)


def read_plan(path: Path | None) -> Plan:
    """Read a plan; its lists become tuples."""
    if path is None:
        return Plan()
    content = yaml.safe_load(path.read_text("utf-8"))
    batches = [_of(Batches, own) for own in content.pop("batches", ())]
    plan = _of(Plan, content)
    return replace(plan, batches=tuple(batches)) if batches else plan


def _of(kind: Any, content: Mapping[str, Any]) -> Any:
    names = [item.name for item in fields(kind)]
    if unknown := [name for name in content if name not in names]:
        sys.exit(f"expected {', '.join(names)} in a plan, got {unknown[0]!r}: see benchmarks/trial.py")
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in content.items()})


@dataclass(frozen=True)
class Trial:
    """One run of a trial.

    Attributes:
        folder: Its folder.
        labels: Model, data, batch and seed, as ``trial.csv`` has them, and the label of a scheme with its own descents.
        config: Fields of its `FrontierConfig`.
    """

    folder: Path
    labels: Mapping[str, Any]
    config: Mapping[str, Any]


def trials(plan: Plan, out: Path, facts: Path, models: Path) -> Iterator[Trial]:
    """List all runs, batch by batch."""
    own = {scheme: settings for scheme, settings in plan.descents.items() if scheme in plan.schemes}
    shared = tuple(scheme for scheme in plan.schemes if scheme not in own)
    groups: list[tuple[str, tuple[str, ...], Mapping[str, Any]]] = [("", shared, {})] if shared else []
    groups += [(label, (str(settings.get("scheme", label)),), settings) for label, settings in own.items()]
    for batches in plan.batches:
        model = models / batches.model if batches.model.endswith(".gguf") else Path(batches.model)
        source = batches.facts if batches.facts == "builtin" else str(facts / batches.facts)
        name, data = Path(batches.model).name.removesuffix(".gguf"), Path(batches.facts).stem
        for part in batches.slices:
            for seed in batches.seeds:
                labels = {"model": name, "data": data, "batch": part, "seed": seed}
                stem = f"{name}-{data}-{part.replace(':', '-')}-{seed}"
                named = {"model": str(model), "facts": source, "slice": part, "seed": seed, "rule": plan.rule}
                along = {} if plan.ridges is None else {"ridges": tuple(map(float, plan.ridges))}
                for label, schemes, settings in groups:
                    config = overlaid(plan.options, batches.options, settings, named, along, {"schemes": schemes})
                    config.pop("scheme", None)
                    suffix, labelled = (f"-{label}", {"scheme": label}) if label else ("", {})
                    yield Trial(out / (stem + suffix), labels | labelled, config)


def overlaid(*options: Mapping[str, Any]) -> dict[str, Any]:
    """Lay options over one another; nested ones field by field."""
    whole: dict[str, Any] = {}
    for name, value in (item for part in options for item in part.items()):
        whole[name] = {**whole.get(name, {}), **value} if isinstance(value, Mapping) else value
    return whole


def record_of(trial: Trial) -> dict[str, Any]:
    """Read what earlier sessions have noted of a run: seconds so far, and what it is finished with."""
    path = trial.folder / RECORD
    return dict(json.loads(path.read_text("utf-8"))) if path.is_file() else {"seconds": 0.0, "finished": None}


def finished(trial: Trial) -> bool:
    """Tell whether a run has been finished with this configuration."""
    return bool(record_of(trial)["finished"] == json.loads(json.dumps(trial.config)))


def config_of(trial: Trial) -> jl.FrontierConfig:
    """Make the configuration of a run."""
    default = jl.FrontierConfig(out=trial.folder)
    names = [item.name for item in fields(default)]
    if unknown := [name for name in trial.config if name not in names]:
        sys.exit(f"expected options among {', '.join(names)} in a plan, got {unknown[0]!r}: see jacobian-lab frontier")
    nested = {name: value for name, value in trial.config.items() if isinstance(value, Mapping)}
    whole = {name: replace(getattr(default, name), **value) for name, value in nested.items()}
    return replace(default, **{**trial.config, **whole})


def carry_out(trial: Trial) -> None:
    """Make a run, or go on with it, and note the seconds that it took."""
    before, begin, done = record_of(trial)["seconds"], time.perf_counter(), None
    try:
        jl.run(config_of(trial), progress=sys.stderr.isatty())
        done = trial.config
    finally:
        if exists(trial.folder):
            record = {"seconds": before + time.perf_counter() - begin, "finished": done}
            write_text(trial.folder / RECORD, json.dumps(record, indent=1) + "\n")


def points_of(trial: Trial) -> list[dict[str, Any]]:
    """Every point that a run has measured, as ``trial.csv`` has it."""
    dataset, seconds, rows = open_run(trial.folder, "frontier"), record_of(trial)["seconds"], []
    for name in map(str, dataset["edit"].values):
        for ridge in dataset["ridge"].values[(dataset["measured"].sel(edit=name) == 1).values]:
            at = dataset.sel(edit=name, ridge=ridge)
            sums = {column: by_fact(at[variable], METRICS[variable]) for column, variable in MEANS.items()}
            means = {column: sums.sum() / weights.sum() for column, (sums, weights) in sums.items()}
            rows.append({
                "scheme": method(name).scheme,
                **trial.labels,
                "ridge": float(ridge),
                **means,
                "perplexity": float(at["perplexity"]),
                "seconds": seconds,
            })
    return rows


def there(trial: Trial) -> bool:
    """Tell whether the file of a run's model is there; say so if it is not."""
    model = trial.config["model"]
    absent = model.endswith(".gguf") and not Path(model).is_file()
    if absent:
        sys.stderr.write(f"{trial.folder.name} is left out: there is no {model}\n")
    return not absent


def write_tables(runs: Sequence[Trial], plan: Plan, out: Path) -> str:
    """Write ``trial.csv``, its figure and the endpoint's tables of the runs that are there, and return the latter."""
    points = pd.DataFrame([row for run in runs if finished(run) for row in points_of(run)], columns=list(COLUMNS))
    if points.empty:
        return "No point has been measured.\n"
    write_csv(out / "trial.csv", points)
    with style("full", points["data"].nunique(), 0.6 * points["model"].nunique()):
        figure = Figure()
        frontiers(figure, points)
    save(figure, out / "trial.png")
    bounds = bounds_around(plan.kl_bound)
    frames = {name: compared(points, name, bounds, confirmatory=plan.confirmatory) for name in NOTHING}
    write_csv(out / "endpoint.csv", pd.concat(frames.values(), ignore_index=True))
    caption = (
        f"{{}}: the best along λ within a bound of D_KL, averaged over {len(bounds)} bounds from {bounds[0]:g} to "
        f"{bounds[-1]:g} nats; × 100, 95 % intervals over batches of facts edited together, p by flips of their "
        "signs, corrected over all pairs of this table (Holm) but the one that was named before."
    )
    tables = [markdown(texts(frame), caption.format(LABELS[endpoint])) for endpoint, frame in frames.items()]
    text = "\n\n".join(tables) + "\n"
    write_text(out / "endpoint.md", text)
    return text


def main() -> None:
    """Run what is left, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", type=Path, help="YAML or JSON file; the default plan without it")
    parser.add_argument("--facts", type=Path, default=Path(), help="folder of the files of facts")
    parser.add_argument("--models", type=Path, default=Path(), help="folder of .gguf files")
    parser.add_argument("--out", type=Path, default=Path("runs/trial"), help="folder of the runs and tables")
    parser.add_argument("--most", type=int, help="runs of this session at the most; 0: the tables alone")
    options = parser.parse_args()
    plan = read_plan(options.plan)
    runs = list(trials(plan, options.out, options.facts, options.models))
    left = [trial for trial in runs if not finished(trial) and there(trial)]
    for place, trial in enumerate(left[: options.most]):
        sys.stderr.write(f"{place + 1} of {len(left)} that are left: {trial.folder.name}\n")
        carry_out(trial)
    sys.stdout.write(write_tables(runs, plan, options.out))


if __name__ == "__main__":
    main()
