"""The main job: every scheme under the same anchors, keys and seeds, into one run."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jacobian_lab.caching import content_key
from jacobian_lab.covariance import SecondMoment, second_moments
from jacobian_lab.edits import LayerEdit, apply_edit, measure, restored
from jacobian_lab.experiment import Experiment, ExperimentConfig, prepare
from jacobian_lab.language_model import LanguageModel
from jacobian_lab.memory import halving
from jacobian_lab.metrics import efficacy
from jacobian_lab.progress import bar, note
from jacobian_lab.runs import Run, check_folder, marked, open_run
from jacobian_lab.solving import advice, factored
from jacobian_lab.spectra import survey
from jacobian_lab.studies import STEPS, STUDIES
from jacobian_lab.targets import (
    SCHEMES,
    Anchors,
    Layers,
    Scheme,
    Targets,
    anchor_batches,
    make_targets,
    optimise_anchors,
)


@dataclass(frozen=True)
class TablesConfig(ExperimentConfig):
    """Measure Tables 1, 2 and 5 of the paper, the verdicts on J, and the split of every passive shift.

    Whatever is not given suits the model at hand.
    """


def run_tables(
    config: ExperimentConfig, studies: Sequence[str] = (), *, verdicts: bool = True, progress: bool = True
) -> Path:
    """Do the main job, or what is left of it.

    Anchors are stored batch by batch, Jacobians fact by fact, schemes one by one; a run that was
    interrupted goes on after the last finished one, and a finished run computes nothing.

    Args:
        config: The configuration.
        studies: Names in `STUDIES`: what to look at beside the tables while the schemes edit.
        verdicts: Whether the unedited model's Jacobians are wanted too.
        progress: Whether to show progress bars.

    Returns:
        The run's folder.

    Raises:
        InputError: If anything cannot be used.
    """
    return run_experiment(prepare(config), config, studies, verdicts=verdicts, progress=progress)


def run_experiment(
    experiment: Experiment,
    config: ExperimentConfig,
    studies: Sequence[str] = (),
    *,
    verdicts: bool = True,
    progress: bool = True,
) -> Path:
    """Do the main job for an experiment that has been prepared; see `run_tables`.

    Args:
        experiment: The experiment.
        config: Which schemes and survey it is to have.
        studies: Names in `STUDIES`.
        verdicts: Whether the unedited model's Jacobians are wanted too.
        progress: Whether to show progress bars.

    Returns:
        The run's folder.

    Raises:
        InputError: If anything cannot be used.
    """
    settings = experiment.settings() | {"survey": config.survey}
    folder, schemes = config.out or Path("runs") / content_key(settings)[:12], list(config.schemes)
    surveyed = verdicts and config.survey != "none"
    coordinates: dict[str, Sequence[Any]] = {
        "fact": experiment.labels(),
        "scheme": list(SCHEMES),
        "layer": list(experiment.layers),
        "anchor_layer": list(experiment.anchor_layers),
        "study": list(STUDIES),
        "step": list(STEPS),
        "d_model": range(experiment.model.d_model),
    }
    check_folder(folder, "tables", settings)
    if (
        marked(folder, "anchor_passes")
        and marked(folder, "replayed")
        and marked(folder, "measured", scheme=schemes)
        and marked(folder, "studied", study=list(studies), scheme=schemes)
        and (not surveyed or marked(folder, "surveyed"))
    ):
        return folder
    moments = usable_moments(experiment, experiment.layers, progress)  # first: a useless corpus claims no folder
    with Run(folder, "tables", settings, experiment.provenance(), coordinates) as run:
        store_anchors(run, experiment, experiment.anchor_layers, progress)
        if surveyed:
            model, facts, layers = experiment.model, experiment.facts, experiment.layers
            survey(run, model, facts, layers, config.seed, method=config.survey, progress=progress)
        _store_schemes(run, experiment, schemes, moments, studies, progress)
    return folder


def store_anchors(
    run: Run,
    experiment: Experiment,
    layers: Layers,
    progress: bool,
    name: str = "anchor",
    only: Sequence[int] | None = None,
) -> None:
    """Optimise and store the anchors that a run lacks, batch by batch, on the model as it is now.

    A batch that lacks some is optimised as a whole, so that the numbers are the same to the last bit.

    Args:
        run: The run.
        experiment: What to optimise.
        layers: Layers among the run's anchor layers.
        progress: Whether to show a progress bar.
        name: Under which name to store them.
        only: Indices of the facts; all of them by default.
    """
    model, facts, labels = experiment.model, experiment.facts, run.coordinates["fact"]
    places = [run.coordinates["anchor_layer"].index(layer) for layer in layers]
    chosen = list(range(len(facts)) if only is None else only)
    done = run.done(f"{name}_passes")
    finished = done[np.ix_(chosen, places)]
    batches = [
        [chosen[index] for index in batch]
        for batch in anchor_batches(model, [facts[index] for index in chosen], experiment.config.batch_size)
    ]
    with bar(finished.size, f"{name}s".replace("_", " "), "anchor", done=int(finished.sum()), show=progress) as shown:

        def advance(finished: int, loss: float) -> None:
            shown.set_postfix(loss=f"{loss:.3f}", refresh=False)
            shown.update(finished)

        def optimise(batch: Sequence[int], layer: int) -> Anchors:
            shown.n = int(run.done(f"{name}_passes")[np.ix_(chosen, places)].sum())  # less what did not fit
            these = [facts[index] for index in batch]
            return optimise_anchors(model, these, layer, experiment.templates, experiment.anchor, advance)

        for place, layer in zip(places, layers, strict=True):
            left = [batch for batch in batches if not done[batch, place].all()]
            for batch, anchors in halving(left, partial(optimise, layer=layer), _tell):
                where = {"fact": [labels[index] for index in batch], "anchor_layer": layer}
                run.write(name, anchors.states.cpu().double(), **where)
                run.write(f"{name}_loss", anchors.loss.cpu(), **where)
                run.seal(f"{name}_passes", anchors.passes.cpu(), **where)


def _tell(failed: int, next_size: int) -> None:
    note(f"out of memory with the anchors of {failed} facts side by side: going on with {next_size}")


def read_anchors(folder: Path, model: LanguageModel) -> dict[int, torch.Tensor]:
    """The anchors that a run holds.

    Args:
        folder: The run's folder.
        model: The model that they were optimised for.

    Returns:
        Anchors by layer, ``[fact, d_model]``, in float32 or better.
    """
    stored = open_run(folder, part="anchor_passes")["anchor"]
    dtype = torch.promote_types(model.dtype, torch.float32)
    return {
        int(layer): torch.tensor(stored.sel(anchor_layer=layer).values, dtype=dtype, device=model.device)
        for layer in stored["anchor_layer"].values
    }


def usable_moments(experiment: Experiment, layers: Layers, progress: bool, columns: int | None = None) -> SecondMoment:
    """C of some layers; solved with fewer keys than they are wide, a singular λC is refused at once.

    Args:
        experiment: What is going to be solved.
        layers: The layers.
        progress: Whether to show a progress bar.
        columns: How many keys are solved with at the least; one a fact by default.

    Returns:
        The second moments.

    Raises:
        InputError: If the corpus has too little text, or one of them is singular.
    """
    config, model = experiment.config, experiment.model
    moments = second_moments(
        model, experiment.corpus, layers, config.corpus_length, config.corpus_tokens, progress=progress
    )
    if (len(experiment.facts) if columns is None else columns) < model.d_mlp:
        for layer, matrix in moments.matrices.items():
            factored(experiment.ridge * matrix, f"λC at layer {layer}", advice(matrix, experiment.ridge))
    return moments


def measured_edit(
    experiment: Experiment,
    scheme: Scheme,
    targets: Targets,
    moments: SecondMoment,
    inspect: Callable[[LayerEdit], None] | None = None,
) -> tuple[Layers, dict[str, np.ndarray]]:
    """Edit, measure, and put the weights back.

    Args:
        experiment: Model, facts, templates and λ.
        scheme: The target scheme.
        targets: The targets; they say which layers are decisive.
        moments: C of these layers.
        inspect: Shown every layer's edit.

    Returns:
        The edited layers, and what `measure` says of them with the efficacy, ``[fact]``.
    """
    model, facts = experiment.model, experiment.facts
    with restored(model, targets.layers):
        record = apply_edit(
            model, facts, scheme, targets, experiment.templates, moments.matrices, experiment.ridge, inspect=inspect
        )
        answered = _where_finite(efficacy(model, facts), targets)
    values = {name: value.cpu().numpy() for name, value in measure(record, targets, scheme).items()}
    return record.layers, values | {"efficacy": answered}


def _where_finite(values: torch.Tensor, targets: Targets) -> np.ndarray:
    """NaN for facts that took no part in the edit."""
    finite = targets.finite().to(values.device).view(-1, *[1] * (values.dim() - 1))
    return torch.where(finite, values.double(), math.nan).cpu().numpy()


def _store_schemes(
    run: Run,
    experiment: Experiment,
    schemes: Sequence[str],
    moments: SecondMoment,
    studies: Sequence[str],
    progress: bool,
) -> None:
    """Edit under each scheme that the run lacks something of, measure and store."""
    model, facts = experiment.model, experiment.facts
    targets = make_targets(model, facts, experiment.layers, read_anchors(run.folder, model))
    if not run.done("replayed").all():
        for layer in experiment.layers:
            run.write("replayed_target", targets.replayed[layer].cpu().double(), layer=layer)
        run.write("efficacy_unedited", _where_finite(efficacy(model, facts), targets))
        run.seal("replayed")
    todo = {
        name: [study for study in studies if not run.done("studied", study=study, scheme=name).all()]
        for name in schemes
    }
    todo = {name: new for name, new in todo.items() if new or not run.done("measured", scheme=name).all()}
    with bar(len(todo), "schemes", "scheme", show=progress) as shown:
        for name, new in todo.items():

            def look_on(edit: LayerEdit, name: str = name, new: Sequence[str] = new) -> None:
                for study in new if edit.layer < edit.last else ():
                    for variable, values in STUDIES[study](edit, progress).items():
                        run.write(variable, _where_finite(values, targets), scheme=name, layer=edit.layer)

            layers, values = measured_edit(experiment, experiment.scheme(name), targets, moments, look_on)
            for variable, value in values.items():
                run.write(variable, value, scheme=name, layer=list(layers))
            run.seal("measured", scheme=name)
            for study in new:
                run.seal("studied", scheme=name, study=study)
            shown.update()
