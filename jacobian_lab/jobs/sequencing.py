"""Edits one after another: each method's batches in order, with looks at the model on the way."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor

from jacobian_lab.catalogue import COORDINATED, SCHEMES, SEPARATE, TRAINED, UNEDITED, Method, method, method_name
from jacobian_lab.editing.methods import BatchEdits, MethodEdit, Refit, rescaled
from jacobian_lab.editing.schemes import Targets
from jacobian_lab.errors import InputError
from jacobian_lab.evaluation.text import state_norms
from jacobian_lab.jobs.comparison import Comparison, Measured, weight_values
from jacobian_lab.jobs.counts import Counts
from jacobian_lab.jobs.job import Job, Labels, Part
from jacobian_lab.jobs.observing import Observer
from jacobian_lab.jobs.recording import Cell, Recorded, descent_work
from jacobian_lab.jobs.sequence_config import TARGETS, SequenceConfig
from jacobian_lab.model.devices import Places
from jacobian_lab.planning.work import Stage, Work, total
from jacobian_lab.progress import bar, counted, note
from jacobian_lab.session.descents import ANCHOR, FIRSTS, INNER_ANCHOR, PASSES, REFIT_ANCHOR, SHIFT
from jacobian_lab.store.completion import Completion
from jacobian_lab.store.run import Run
from jacobian_lab.store.sequences import CURRENT, ENDS, FAILED, MEASURED, NORM, PERPLEXITY

CURRENT_TARGETS, UNEDITED_TARGETS = TARGETS
UNEDITED_LOOK: Labels = {"edit": UNEDITED, "targets": UNEDITED_TARGETS, "look": 0}
"""Labels of the look at the unedited model."""


@dataclass(frozen=True, eq=False)
class Look:
    """A model to be looked at.

    Attributes:
        comparison: The facts, the questions, the held-out text and the model.
        edited: Number of facts edited so far; none of the unedited model, which is asked about all.
        edit: The change so far; none of the unedited model.
    """

    comparison: Comparison
    edited: int | None = None
    edit: MethodEdit | None = None

    def weights(self) -> Measured:
        """Measure the change of each layer."""
        return [] if self.edit is None else weight_values(self.edit)

    def answers(self) -> Measured:
        """Ask about the facts edited so far."""
        return list(self.comparison.answers(first=self.edited))

    def text(self) -> Measured:
        """Measure the perplexity of the held-out text, and its states."""
        comparison = self.comparison
        norms = state_norms(comparison.experiment.model, comparison.text)
        return [("perplexity", comparison.perplexity(), {}), ("state_norm", norms, {})]


MEASURES: tuple[Callable[[Look], Measured], ...] = (Look.weights, Look.answers, Look.text)
"""Measures of a look; each gives variables of the kind ``sequence`` with their values and labels."""


def sequence_job(config: SequenceConfig, *, progress: bool = True, sketch: Places | None = None) -> Job:
    """Edit batch after batch with each method, and look on; an interrupted run goes on where it was.

    No weights are stored: a run that goes on edits its finished batches again from their stored anchors and shifts.
    """
    names = tuple(dict.fromkeys(_pair_name(text, observed=config.observe > 0) for text in config.methods))
    comparison = Comparison.of(config, names, progress, sketch=sketch)
    experiment, sequence = comparison.experiment, EditSequence(config, comparison, progress)
    unedited = None if UNEDITED_TARGETS in config.modes else sequence.batches[0]
    return Job(
        "sequence",
        experiment.model,
        config.out,
        comparison.settings() | {"methods": list(names), "sequence": config.deciding()},
        comparison.provenance,
        comparison.coordinates | {"edit": [UNEDITED, *names], "targets": list(TARGETS), "look": [0, *sequence.looks]},
        [*comparison.parts(unedited), Part(sequence.todo, sequence.compute, sequence.work)],
        before=comparison.preparation(),
        descents=experiment.session.descent_dtype,
        executor=experiment.executor,
    )


def _pair_name(text: str, *, observed: bool) -> str:
    name = method_name(text)
    if name in TRAINED:
        raise InputError(f"expected methods that are a rule with a scheme, got {name}, which trains: leave it out")
    if observed and method(name).refit:
        raise InputError(
            f"expected methods that make targets once with observe, got {name}, which refits: leave it out"
        )
    return name


@dataclass(frozen=True, eq=False)
class EditSequence:
    """Batches of facts, and the methods that edit them one after another.

    Attributes:
        config: The configuration.
        comparison: The methods, and what edited models are asked.
        progress: Whether to show progress bars.
    """

    config: SequenceConfig
    comparison: Comparison
    progress: bool = True

    @cached_property
    def batches(self) -> list[range]:
        """Indices of the facts of each batch."""
        count = len(self.comparison.experiment.facts)
        size = self.config.edits_per_batch or count
        return [range(start, min(start + size, count)) for start in range(0, count, size)]

    @cached_property
    def looks(self) -> list[int]:
        """Facts that have been edited at each look."""
        every = self.config.look_every
        return [batch.stop for n, batch in enumerate(self.batches, 1) if n % every == 0 or n == len(self.batches)]

    @cached_property
    def observer(self) -> Observer:
        """Observer of the edits."""
        return Observer(self.comparison.experiment, self.config.observe)

    @property
    def courses(self) -> list[Labels]:
        """Methods with the models that their targets are made on."""
        modes = self.config.modes
        return [{"edit": name, "targets": mode} for name in self.comparison.methods for mode in modes]

    def todo(self, done: Completion) -> list[Labels]:
        """List the courses that are not finished, the unedited model first."""
        marks = [f"{CURRENT}{PASSES.format(name)}" for name in (ANCHOR, SHIFT, INNER_ANCHOR, *FIRSTS.values())]
        lost = bool(done.lost(*marks, PASSES.format(REFIT_ANCHOR), "observed"))
        unedited = [] if done.all("measured", **UNEDITED_LOOK) else [UNEDITED_LOOK]
        return unedited + [c for c in self.courses if lost or not done.all("measured", look=self.looks, **c)]

    def compute(self, run: Run, cells: Sequence[Labels]) -> None:
        """Walk the courses."""
        comparison = self.comparison
        comparison.evaluator.remember(comparison.executor)
        if UNEDITED_LOOK in cells:
            self._look(run, Look(comparison), UNEDITED_LOOK)
        for place, course in enumerate(courses := [cell for cell in cells if cell is not UNEDITED_LOOK], 1):
            title = f"{course['edit']}, {course['targets']} targets ({place} of {len(courses)})"
            with bar(len(comparison.experiment.facts), title, "fact", show=self.progress) as progress_bar:
                self._walk(run, course, progress_bar.update)

    def _walk(self, run: Run, course: Labels, done: Callable[[int], Any]) -> None:
        """Edit batch after batch; where a look has been made, its batches are edited alone."""
        session, name = self.comparison.experiment.session, course["edit"]
        refitted = Recorded(run, self.comparison.experiment, course)

        def refit(layer: int, batch: Sequence[int]) -> Tensor:
            return session.anchors(refitted, (layer,), REFIT_ANCHOR, batch)[layer]

        several, old_keys = len(self.batches) > 1, self.config.old_keys == "keep"
        with session.edited_in_batches(name, several=several, old_keys=old_keys) as edits:
            for batch, targets in self._targets(run, course):
                reason = self._step(run, {**course, "look": batch.stop}, batch, targets, edits, refit)
                done(len(batch))
                left = [look for look in self.looks if not run.done("measured", look=look, **course).all()]
                if reason is not None and left:
                    note(f"{name} with {course['targets']} targets ends before {left[0]} facts by {ENDS[reason]}")
                    run.commit("measured", reason, look=left, **course)
                if reason is not None:
                    break
            edits.note_doubts()

    def _targets(self, run: Run, course: Labels) -> Iterator[tuple[range, Targets]]:
        """Give each batch with its targets, made once the batch before has been edited if that is asked."""
        experiment, pair = self.comparison.experiment, self.comparison.methods[course["edit"]]
        session, rows, own = experiment.session, experiment.rows, Recorded(run, experiment)
        first, *later = self.batches
        if course["targets"] == UNEDITED_TARGETS:
            targets = rescaled(pair, rows, session.targets(own, self.comparison.schemes))
            yield from ((batch, targets.select(batch)) for batch in self.batches)
            return
        yield first, rescaled(pair, rows.select(first), session.targets(own, self.comparison.schemes, first))
        anchored = SCHEMES[pair.scheme].anchored(session.layers)
        current = Recorded(run, experiment, {"edit": course["edit"]}, CURRENT)
        for batch in later:
            targets = session.targets(current, (pair.scheme,), batch, anchored)
            yield batch, rescaled(pair, rows.select(batch), targets)

    def _step(
        self, run: Run, cell: Labels, batch: range, targets: Targets, edits: BatchEdits, refit: Refit
    ) -> int | None:
        """Edit a batch, and look unless that has been done; why the edits end here, if they do."""
        scheme = SCHEMES[self.comparison.methods[cell["edit"]].scheme]
        try:
            if targets.finite(scheme.kind).any():
                with self.observer.observed(run, cell, batch, targets) as look_on:
                    edits.edit(batch, targets, refit, look_on)
        except InputError as error:
            if batch == self.batches[0]:
                raise
            note(f"facts {batch.start} to {batch.stop}: {error}")
            return FAILED
        if cell["look"] not in self.looks:
            return None
        if not run.done("measured", **cell).all():
            with edits.finished() as edit:
                self._look(run, Look(self.comparison, batch.stop, edit), cell)
        return self._broken(run, cell)

    def _look(self, run: Run, look: Look, cell: Labels) -> None:
        for measure in MEASURES:
            for variable, values, labels in measure(look):
                run.write(variable, values, **cell, **labels)
        run.commit("measured", MEASURED, **cell)

    def _broken(self, run: Run, cell: Labels) -> int | None:
        """Tell by which bound, if by any, the stored numbers of a look say that the model is broken."""
        config, unedited = self.config, float(run.read("perplexity", **UNEDITED_LOOK))
        perplexity, norms = float(run.read("perplexity", **cell)), run.read("update_norm", **cell)
        if config.stop_perplexity != "never" and not perplexity <= config.stop_perplexity * unedited:
            return PERPLEXITY
        return NORM if config.stop_norm != "never" and np.nanmax(norms, initial=0.0) > config.stop_norm else None

    def work(self, counts: Counts, cells: Sequence[Labels]) -> Iterable[Stage]:
        """Count descents on edited models, edits and looks."""
        comparison, courses = self.comparison, [cell for cell in cells if cell is not UNEDITED_LOOK]
        experiment, size = comparison.experiment, self.config.edits_per_batch
        rows, layers, later = experiment.rows, experiment.layers, [fact for b in self.batches[1:] for fact in b]
        pairs = [comparison.methods[course["edit"]] for course in courses]
        for course, pair in zip(courses, pairs, strict=True):
            for cell in self._descents(course, pair, later):
                yield from descent_work(counts, experiment, cell)
        yield from self.observer.work(counts, self.batches, len(courses))
        observed = self.config.observe > 0
        edits: Work = total(counts.edit(rows, SCHEMES[pair.scheme], layers, size, observed=observed) for pair in pairs)
        parts, text, decoded = comparison.evaluator.rows(), comparison.predicted_text, comparison.evaluator.decoded()
        share = sum(self.looks) / len(rows) / len(self.looks)  # of the questions, that a look asks on the average
        reading = counts.evaluation([text]) + counts.forward(comparison.text, counts.shape.blocks)
        asking = counts.evaluation(parts, decoded)
        looks = (asking * share + reading) * (len(self.looks) * len(courses))
        work = edits + looks + asking * 2 + reading  # of the unedited model, which every other is held against
        title = f"{counted(len(courses), 'course')} of {len(self.batches)} batches, looked at {len(self.looks)} times"
        projected = len(comparison.projected())
        yield counts.editing(title, work, len(layers), rows, projected=projected, parts=[*parts, text])

    def _descents(self, course: Labels, pair: Method, later: Sequence[int]) -> Iterator[Cell]:
        """List the descents of a course on edited models."""
        layers, kind, facts = self.comparison.experiment.layers, SCHEMES[pair.scheme].kind, tuple(later)
        if pair.refit and len(layers) > 1:
            yield REFIT_ANCHOR, {"anchor_layer": layers[-1]}, tuple(range(len(self.comparison.experiment.facts)))
        if course["targets"] == UNEDITED_TARGETS:
            return
        yield from ((ANCHOR, {"anchor_layer": layer}, facts) for layer in SCHEMES[pair.scheme].anchored(layers))
        if kind == COORDINATED:
            yield SHIFT, {}, facts
        if kind == SEPARATE:
            yield from ((INNER_ANCHOR, {"layer": layer}, facts) for layer in layers[1:-1])
        if kind in FIRSTS:
            yield FIRSTS[kind], {}, facts
