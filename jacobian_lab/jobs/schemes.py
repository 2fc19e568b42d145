"""The main job: every scheme under the same anchors, keys and seeds, into one run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jacobian_lab.caching import content_key
from jacobian_lab.editing.measures import LayerEdit
from jacobian_lab.editing.schemes import SCHEMES, make_targets
from jacobian_lab.editing.second_moments import SecondMoment
from jacobian_lab.evaluation.metrics import efficacy
from jacobian_lab.jobs.config import ExperimentConfig
from jacobian_lab.jobs.jacobians import survey
from jacobian_lab.jobs.setup import Experiment, prepare
from jacobian_lab.jobs.shared import measured_edit, read_anchors, store_anchors, usable_moments, where_finite
from jacobian_lab.jobs.studies import STEPS, STUDIES
from jacobian_lab.progress import bar
from jacobian_lab.store.run import Run, check_folder, marked


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
        run.write("efficacy_unedited", where_finite(efficacy(model, facts), targets))
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
                        run.write(variable, where_finite(values, targets), scheme=name, layer=edit.layer)

            layers, values = measured_edit(experiment, experiment.scheme(name), targets, moments, look_on)
            for variable, value in values.items():
                run.write(variable, value, scheme=name, layer=list(layers))
            run.seal("measured", scheme=name)
            for study in new:
                run.seal("studied", scheme=name, study=study)
            shown.update()
