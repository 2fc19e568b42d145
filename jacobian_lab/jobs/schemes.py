"""The main job: every scheme under the same anchors, keys and seeds, into one run."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from jacobian_lab.editing.measures import ObservedEdit
from jacobian_lab.editing.schemes import SCHEMES
from jacobian_lab.evaluation.metrics import efficacy
from jacobian_lab.jobs.bench import Bench, any_coordinated, measured_edit, where_finite
from jacobian_lab.jobs.config import SchemesConfig
from jacobian_lab.jobs.jacobians import Survey, survey
from jacobian_lab.jobs.job import Job, Labels, Part
from jacobian_lab.jobs.setup import prepare
from jacobian_lab.jobs.studies import STEPS, STUDIES, cost_of
from jacobian_lab.model.devices import Places
from jacobian_lab.planning.costs import Costs, Stage
from jacobian_lab.progress import bar, counted
from jacobian_lab.store.finished import Finished
from jacobian_lab.store.run import Run


def run_schemes(
    config: SchemesConfig, studies: Sequence[str] = (), *, verdicts: bool = True, progress: bool = True
) -> Path:
    """Measure Tables 1, 2 and 5 and the split of every passive shift, the verdicts on J, and studies.

    Anchors are stored batch by batch, Jacobians fact by fact, schemes one by one; a run that was
    interrupted goes on after the last finished one, and a finished run computes nothing.
    """
    return schemes_job(config, studies, verdicts=verdicts, progress=progress).carry_out()


def schemes_job(
    config: SchemesConfig,
    studies: Sequence[str] = (),
    *,
    verdicts: bool = True,
    progress: bool = True,
    sketch: Places | None = None,
) -> Job:
    """The job of `run_schemes`."""
    experiment, schemes = prepare(config, sketch=sketch), list(config.schemes)
    bench, model = Bench(experiment, progress), experiment.model
    how = Survey.of(config, model.d_model, experiment.facts, experiment.device)

    looked_at = (verdicts and config.survey != "none") or "theorem1" in studies
    if looked_at:
        how.say(len(experiment.facts))

    def surveyed(run: Run) -> None:
        survey(run, experiment, how, progress=progress)

    def edited(run: Run) -> None:
        _store_schemes(run, bench, schemes, studies, how)

    def cost_of_edits(costs: Costs, done: Finished) -> list[Stage]:
        rows, layers = experiment.rows, experiment.layers
        new = {n: [each for each in studies if not done.all("studied", study=each, scheme=n)] for n in schemes}
        todo = [name for name in schemes if new[name] or not done.all("measured", scheme=name)]
        edits = sum((costs.edit(rows, SCHEMES[name], layers, observed=True) for name in todo), 0.0)
        asked = (len(todo) + (not done.all("replayed"))) * costs.evaluation([rows.answered])
        looked = sum(
            (cost_of(each, costs, SCHEMES[n].edited(layers), how, len(rows)) for n in todo for each in new[n]), 0.0
        )
        name, seconds = f"edits under {counted(len(todo), 'scheme')}", edits + asked + looked
        return [costs.editing(name, seconds, len(layers), rows=rows, observed=True)]

    parts = bench.parts(any_coordinated(schemes))
    if verdicts and config.survey != "none":
        bare, layers = experiment.rows.bare, experiment.layers
        parts.append(Part([("surveyed", {})], surveyed, cost=lambda costs, done: how.cost(costs, bare, layers, done)))
    measured, studied = {"scheme": schemes}, {"study": list(studies), "scheme": schemes}
    wanted: list[tuple[str, Labels]] = [("replayed", {}), ("measured", measured), ("studied", studied)]
    parts.append(Part(wanted, edited, cost=cost_of_edits))
    return Job(
        "tables",
        model,
        config.out,
        experiment.settings() | how.settings() | ({"survey": "none"} if config.survey == "none" else {}),
        bench.provenance,
        {
            "fact": experiment.labels(),
            "scheme": list(SCHEMES),
            "layer": list(experiment.layers),
            "anchor_layer": list(experiment.anchor_layers),
            "study": list(STUDIES),
            "step": list(STEPS),
            "d_model": range(experiment.model.d_model),
        },
        parts,
        before=bench.begin,
        before_cost=bench.cost_before,
        kept=bench.kept,
        descents=bench.descents,
        crew=bench.experiment.crew,
    )


def _store_schemes(run: Run, bench: Bench, schemes: Sequence[str], studies: Sequence[str], how: Survey) -> None:
    """Edit under each scheme that the run lacks something of, measure and store."""
    experiment, targets = bench.experiment, bench.targets(run, schemes)
    if not run.done("replayed").all():
        for layer in experiment.layers:
            run.write("replayed_target", targets.replayed[layer].cpu().double(), layer=layer)
        run.write("efficacy_unedited", where_finite(efficacy(experiment.model, experiment.facts), targets.finite()))
        run.seal("replayed")
    new = {
        name: [study for study in studies if not run.done("studied", study=study, scheme=name).all()]
        for name in schemes
    }
    todo = [name for name in schemes if new[name] or not run.done("measured", scheme=name).all()]

    def look_on(name: str, edit: ObservedEdit) -> None:
        for study in new[name] if edit.layer < edit.last else ():
            for variable, values in STUDIES[study](edit, how, bench.progress).items():
                usable = targets.finite(SCHEMES[name].kind)
                run.write(variable, where_finite(values, usable), scheme=name, layer=edit.layer)

    with bar(len(todo), "schemes", "scheme", show=bench.progress) as shown:
        for name in todo:
            layers, values = measured_edit(bench.setting, SCHEMES[name], targets, partial(look_on, name))
            for variable, value in values.items():
                run.write(variable, value, scheme=name, layer=list(layers))
            run.seal("measured", scheme=name)
            for study in new[name]:
                run.seal("studied", scheme=name, study=study)
            shown.update()
