"""Every method under the same anchors, keys and seeds, evaluated by the paper's metrics: Tables 3, 4, 6 and 7."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from torch import Tensor

from jacobian_lab.catalogue import TRAINED, UNEDITED, method_name
from jacobian_lab.editing.adapters import check_rank
from jacobian_lab.editing.deltas import ADAPTER, DELTA, FOLDER, Form
from jacobian_lab.errors import InputError
from jacobian_lab.jobs.comparison import Comparison, Save
from jacobian_lab.jobs.config import EditConfig, EditTableConfig, MethodsConfig
from jacobian_lab.jobs.counts import Counts
from jacobian_lab.jobs.job import Job, Part
from jacobian_lab.jobs.recording import Recorded
from jacobian_lab.model.devices import Places
from jacobian_lab.planning.work import Stage
from jacobian_lab.progress import bar
from jacobian_lab.session.descents import REFIT_ANCHOR
from jacobian_lab.store.completion import Completion
from jacobian_lab.store.run import Run
from jacobian_lab.training.methods import WISE

FORMS: Mapping[str, tuple[Form, ...]] = {
    "delta": ("delta",),
    "folder": ("folder",),
    "both": ("delta", "folder"),
    "lora": ("lora",),
}
"""Forms that ⟨save⟩ names."""

NAMES: Mapping[Form, str] = {"delta": DELTA, "folder": FOLDER, "lora": ADAPTER}
"""Names of a method's saved edit in a run, by form."""

TRAINING = "training-{}.safetensors"
"""File of a run with all that a method was trained to."""


def edit_table_job(config: EditTableConfig, *, progress: bool = True, sketch: Places | None = None) -> Job:
    """Edit with each method and evaluate it; an interrupted run goes on, a finished one computes nothing.

    Anchors are optimized once for each anchor layer and shared; the weights are put back after every method.
    """
    return _job(config, tuple(dict.fromkeys(map(_edited, config.methods))), None, progress, sketch)


def edit_job(config: EditConfig, *, progress: bool = True, sketch: Places | None = None) -> Job:
    """Edit with one method, evaluate it, and save the edited model into the run's folder (`saved_paths`)."""
    name = _edited(config.method)
    if name == WISE and config.save != "delta":
        raise InputError(
            f"expected ⟨save⟩ delta for {name}, got {config.save}: no plain model asks which matrix serves"
        )
    return _job(config, (name,), config.save, progress, sketch)


def saved_forms(folder: Path, name: str, save: str) -> dict[Form, Path]:
    """Files or folders of a method's saved edit by form; ``save`` is one of `FORMS`."""
    return {form: folder / NAMES[form].format(method_name(name)) for form in FORMS[save]}


def saved_paths(folder: Path, name: str, save: str) -> list[Path]:
    """List the same, and what a method was trained to."""
    name = method_name(name)
    trained = [folder / TRAINING.format(name)] if name in TRAINED else []
    return [*saved_forms(folder, name, save).values(), *trained]


def _check_adapter(comparison: Comparison, name: str) -> None:
    """Refuse an adapter before the long work, where its rank is known to be too high."""
    model, pair = comparison.experiment.model, comparison.methods.get(name)
    if pair is None:  # its rank is known after the training
        return
    shape = (model.d_model, model.d_mlp)
    rank, reason = len(comparison.experiment.facts), f"{len(comparison.experiment.facts)} facts"
    if pair.rule == "rect" and comparison.config.rules.rect_kept != 1:
        rank, reason = min(shape), "rect, which sets entries to zero"
    check_rank(rank, shape, reason)


def _edited(name: str) -> str:
    if name.lower() == UNEDITED:
        raise InputError(f"expected a method that edits, got {name!r}: the unedited model is the first row anyway")
    return method_name(name)


def _job(
    config: MethodsConfig, methods: tuple[str, ...], save: str | None, progress: bool, sketch: Places | None
) -> Job:
    comparison = Comparison.of(config, methods, progress, sketch=sketch)
    experiment = comparison.experiment
    if save == "lora":
        _check_adapter(comparison, methods[0])
    return Job(
        "edit_table",
        experiment.model,
        config.out,
        comparison.settings(),
        comparison.provenance,
        comparison.coordinates,
        [*comparison.parts(), _edits(comparison, methods, save, progress)],
        before=comparison.preparation(),
        descents=experiment.session.descent_dtype if comparison.methods else None,
        executor=experiment.executor,
    )


def _edits(comparison: Comparison, methods: Sequence[str], save_option: str | None, progress: bool) -> Part:
    """Describe the part in which each method edits, is evaluated and, if that is asked, saved."""
    experiment, settings = comparison.experiment, comparison.settings()

    def saved(folder: Path) -> list[Path]:
        return saved_paths(folder, methods[0], save_option) if save_option else []

    def again(done: Completion) -> list[str]:
        """Methods that have been measured, but without what they left beside the run's arrays, or in them."""
        if done.folder is not None and not all(path.exists() for path in saved(done.folder)):
            return list(methods)
        refitted = not done.lost(f"{REFIT_ANCHOR}_passes")
        return [name for name, pair in comparison.methods.items() if pair.refit and not refitted]

    def todo(done: Completion) -> list[str]:
        redone = again(done)
        return [name for name in (UNEDITED, *methods) if name in redone or not done.all("measured", edit=name)]

    def work(counts: Counts, names: Sequence[str]) -> Iterable[Stage]:
        return comparison.work(counts, names)

    def compute(run: Run, names: Sequence[str]) -> None:
        recorder = Recorded(run, experiment)
        anchored = comparison.methods or run.done("anchor_passes").all()
        aimed = comparison.aimed(run) if anchored else None
        comparison.evaluator.remember(comparison.executor)

        def refit(layer: int, batch: Sequence[int]) -> Tensor:
            return experiment.session.anchors(recorder, (layer,), REFIT_ANCHOR, batch)[layer]

        def keep(name: str, save: Save) -> None:
            if save_option is None:
                return
            if name in comparison.trained:  # first: it is there if the rank is too high for an adapter
                comparison.trained[name].save(run.folder / TRAINING.format(name))
            for form, path in saved_forms(run.folder, name, save_option).items():
                save(form, path, {**settings, "method": name})

        for place, name in enumerate(names, 1):
            trained = comparison.trained[name].facts if name in comparison.trained else 0
            count = trained + len(experiment.facts) + len(comparison.evaluator.facts)
            with bar(count, f"{name} ({place} of {len(names)})", "fact", show=progress) as progress_bar:
                measured = comparison.measure(name, aimed, progress_bar.update, refit, partial(keep, name))
                for variable, values, labels in measured:
                    run.write(variable, values, edit=name, **labels)
            run.commit("measured", edit=name)

    return Part(todo, compute, work)
