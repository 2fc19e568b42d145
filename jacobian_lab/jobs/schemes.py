"""The main job: every scheme under the same anchors, keys and seeds, into one run."""

from collections.abc import Iterable, Sequence
from functools import partial

from jacobian_lab.catalogue import SCHEMES
from jacobian_lab.editing.measures import ObservedEdit
from jacobian_lab.evaluation.metrics import accuracy
from jacobian_lab.jobs.config import SchemesConfig
from jacobian_lab.jobs.counts import Counts
from jacobian_lab.jobs.experiment import Experiment, prepare
from jacobian_lab.jobs.jacobians import Survey, survey_part
from jacobian_lab.jobs.job import Job, Labels, Part
from jacobian_lab.jobs.measuring import measured_edit, where_finite
from jacobian_lab.jobs.recording import Recorded, descents
from jacobian_lab.jobs.studies import STEPS, STUDIES, work_of_study
from jacobian_lab.model.devices import Places
from jacobian_lab.planning.work import Stage, Work, total
from jacobian_lab.progress import bar, counted
from jacobian_lab.session.session import any_coordinated
from jacobian_lab.store.completion import Completion
from jacobian_lab.store.run import Run

Cell = tuple[str, tuple[str, ...]]
"""A scheme with the studies that are to look on while it edits; or `REPLAY`."""

REPLAY: Cell = ("replayed targets", ())
"""The cell of replayed targets and of the unedited model's efficacy."""


def schemes_job(config: SchemesConfig, *, progress: bool = True, sketch: Places | None = None) -> Job:
    """Measure Tables 1, 2 and 5 and the split of every passive shift, the verdicts on J, and studies.

    Anchors are stored batch by batch, Jacobians fact by fact, schemes one by one; a run that was
    interrupted goes on after the last finished one, and a finished run computes nothing.
    """
    experiment = prepare(config, progress=progress, sketch=sketch)
    schemes = tuple(dict.fromkeys(config.schemes))
    how = Survey.of(config, experiment.model.d_model, experiment.facts, experiment.device)
    surveyed = config.verdicts and config.survey != "none"
    if surveyed or "theorem1" in config.studies:
        how.say(len(experiment.facts))
    survey = [survey_part(experiment, how, progress=progress)] if surveyed else []
    shifted = list[Labels]([{}]) if any_coordinated(schemes) else list[Labels]()
    return Job(
        "tables",
        experiment.model,
        config.out,
        experiment.settings() | how.settings() | ({"survey": "none"} if config.survey == "none" else {}),
        experiment.solved,
        {
            "fact": experiment.labels(),
            "scheme": list(SCHEMES),
            "layer": list(experiment.layers),
            "anchor_layer": list(experiment.session.anchor_layers),
            "study": list(STUDIES),
            "step": list(STEPS),
            "d_model": range(experiment.model.d_model),
        },
        [
            descents(experiment, experiment.session.anchor_layers, shifted, schemes=schemes),
            *survey,
            _edits(experiment, schemes, config.studies, how, progress),
        ],
        before=experiment.preparation(),
        descents=experiment.session.descent_dtype,
        executor=experiment.executor,
    )


def _edits(experiment: Experiment, schemes: Sequence[str], studies: Sequence[str], how: Survey, progress: bool) -> Part:
    """Describe the part in which each scheme edits, with what looks on."""
    rows, layers = experiment.rows, experiment.layers

    def todo(done: Completion) -> list[Cell]:
        new = {n: tuple(s for s in studies if not done.all("studied", study=s, scheme=n)) for n in schemes}
        edits = [(name, new[name]) for name in schemes if new[name] or not done.all("measured", scheme=name)]
        return [*([] if done.all("replayed") else [REPLAY]), *edits]

    def work(counts: Counts, cells: Sequence[Cell]) -> Iterable[Stage]:
        edits = [cell for cell in cells if cell != REPLAY]
        edit_work = total(counts.edit(rows, SCHEMES[name], layers, observed=True) for name, _ in edits)
        studied: Work = total(
            work_of_study(study, counts, SCHEMES[name].edited(layers), how, len(rows))
            for name, new in edits
            for study in new
        )
        answers = counts.evaluation([rows.answered]) * len(cells)
        stage = f"edits under {counted(len(edits), 'scheme')}"
        yield counts.editing(stage, edit_work + answers + studied, len(layers), rows, observed=True)

    def compute(run: Run, cells: Sequence[Cell]) -> None:
        setting, targets = experiment.session.setting, experiment.session.targets(Recorded(run, experiment), schemes)

        def look_on(name: str, new: Sequence[str], edit: ObservedEdit) -> None:
            for study in new if edit.layer < edit.last else ():
                for variable, values in STUDIES[study](edit, how, progress).items():
                    usable = targets.finite(SCHEMES[name].kind)
                    run.write(variable, where_finite(values, usable), scheme=name, layer=edit.layer)

        if REPLAY in cells:
            for layer in layers:
                run.write("replayed_target", targets.replayed[layer].cpu().double(), layer=layer)
            unedited = accuracy(experiment.model, rows.answered)
            run.write("efficacy_unedited", where_finite(unedited, targets.finite()))
            run.commit("replayed")
        edits = [cell for cell in cells if cell != REPLAY]
        with bar(len(edits), "schemes", "scheme", show=progress) as progress_bar:
            for name, new in edits:
                edited, values = measured_edit(setting, SCHEMES[name], targets, partial(look_on, name, new))
                for variable, value in values.items():
                    run.write(variable, value, scheme=name, layer=list(edited))
                run.commit("measured", scheme=name)
                for study in new:
                    run.commit("studied", scheme=name, study=study)
                progress_bar.update()

    return Part(todo, compute, work)
