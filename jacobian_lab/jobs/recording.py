"""Descents recorded in a run: what is left of them, what that costs, and how it is computed."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from jacobian_lab.jobs.counts import Counts
from jacobian_lab.jobs.experiment import Experiment
from jacobian_lab.jobs.job import Labels, Part
from jacobian_lab.planning.work import Stage
from jacobian_lab.progress import counted
from jacobian_lab.session.descents import (
    ANCHOR,
    CLAMPED,
    FIRST_LOSS,
    LOSS,
    PASSES,
    RESTARTED_ANCHOR,
    SHIFT,
    Optimized,
    places_of,
)
from jacobian_lab.session.session import kinds_of
from jacobian_lab.store.completion import Completion
from jacobian_lab.store.run import Run


class Recorded:
    """A recorder that keeps descents in a run, and takes from another run what that has.

    Args:
        run: The run.
        experiment: Whose descents they are.
        at: Labels of further dimensions, where the run has descents of several kinds.
        prefix: Beginning of the names under which the run has them; of those with one no other run is asked.
    """

    def __init__(self, run: Run, experiment: Experiment, at: Labels | None = None, prefix: str = "") -> None:
        self._run, self._experiment, self._labels = run, experiment, run.coordinates["fact"]
        self._at: Labels = at or {}
        self._prefix = prefix
        self._donated: set[str] = set()

    def missing(self, name: str, where: Labels, facts: Sequence[int]) -> list[int]:
        """List those of some facts that the run lacks, once what the donor has is copied."""
        lacking = self._lacking(name, where, facts)
        if not lacking or self._prefix or name in self._donated or self._experiment.donor is None:
            return lacking
        self._donated.add(name)
        self._experiment.donor.give(self._run, name, self._experiment.settings(), self._experiment.deciding(name))
        return self._lacking(name, where, facts)

    def put(self, name: str, where: Labels, facts: Sequence[int], optimized: Optimized) -> None:
        """Write and commit a batch."""
        (states, loss, passes, clamped, first), labels, name = optimized, self._where(facts, where), self._prefix + name
        written = {name: states.double(), LOSS.format(name): loss, CLAMPED.format(name): clamped}
        if FIRST_LOSS.format(name) in self._run.variables:
            written[FIRST_LOSS.format(name)] = first
        for variable, values in written.items():
            self._run.write(variable, values, **self._within(variable, labels))
        mark = PASSES.format(name)
        self._run.commit(mark, passes, **self._within(mark, labels))

    def get(self, name: str, where: Labels, facts: Sequence[int]) -> Float[Tensor, "fact ..."]:
        """Read the states or shifts of some facts, in float64."""
        name = self._prefix + name
        return torch.tensor(self._run.read(name, **self._within(name, self._where(facts, where))))

    def _lacking(self, name: str, where: Labels, facts: Sequence[int]) -> list[int]:
        mark = PASSES.format(self._prefix + name)
        done = self._run.done(mark, **self._within(mark, self._where(facts, where))).reshape(-1)
        return [fact for fact, is_done in zip(facts, done, strict=True) if not is_done]

    def _where(self, facts: Sequence[int], where: Labels) -> dict[str, Any]:
        return {"fact": [self._labels[fact] for fact in facts], **self._at, **where}

    def _within(self, variable: str, where: Labels) -> dict[str, Any]:
        return {dim: labels for dim, labels in where.items() if dim in self._run.variables[variable].dims}


Cell = tuple[str, Labels, tuple[int, ...]]
"""A descent's name, where it is recorded, and the indices of the facts that are left."""


def left_of(
    done: Completion, experiment: Experiment, name: str, where: Labels, facts: Sequence[int] | None = None
) -> tuple[int, ...]:
    """Indices of the facts, among some or all, that a run lacks a descent of."""
    every = experiment.labels()
    facts = range(len(every)) if facts is None else facts
    labels = [every[fact] for fact in facts]
    cells = np.broadcast_to(
        done.cells(PASSES.format(name), fact=labels, **_marked(name, where)).reshape(-1), len(labels)
    )
    return tuple(fact for fact, is_done in zip(facts, cells, strict=True) if not is_done)


def work_of(counts: Counts, experiment: Experiment, cell: Cell) -> list[Stage]:
    """Count the descents of a cell, but for what another run gives."""
    (name, where, left), donor, labels = cell, experiment.donor, experiment.labels()
    if donor is not None:
        left_labels, own_settings = [labels[fact] for fact in left], experiment.settings()
        there = donor.gives(name, _marked(name, where), left_labels, own_settings, experiment.deciding(name))
        left = tuple(fact for fact, is_there in zip(left, there, strict=True) if not is_there)
    return descent_work(counts, experiment, (name, where, left))


def descent_work(counts: Counts, experiment: Experiment, cell: Cell) -> list[Stage]:
    """Count the descents of a cell."""
    name, where, left = cell
    if not left:
        return []
    layers = where.get("layer", where.get("anchor_layer", experiment.layers))
    first, count = (layers, 1) if isinstance(layers, int) else (layers[0], len(layers))
    stage = f"coordinated shifts at {counted(count, 'layer')}" if name == SHIFT else f"{_plural(name)} at layer {first}"
    steps, size = experiment.session.anchor.steps, experiment.config.anchors_per_batch
    times = experiment.session.replay.starts if name == RESTARTED_ANCHOR else 1
    session = experiment.session
    measures = session.anchor.needs_transfers or (name == SHIFT and session.coordination.needs_transfers)
    measured = experiment.layers if name == SHIFT else (first,)
    transfers = [counts.transfers(experiment.rows, measured)] if measures else []
    return [*transfers, counts.descent(stage, experiment.rows.select(left), first, times * steps, size)]


def _plural(name: str) -> str:
    return f"{name}s".replace("_", " ")


def _marked(name: str, where: Labels) -> Labels:
    """Labels of a descent's mark, which has no layers where these are shifts'."""
    return {dim: label for dim, label in where.items() if name != SHIFT or dim != "anchor_layer"}


def descents(
    experiment: Experiment,
    layers: Sequence[int],
    shifted: Sequence[Labels],
    at: Labels | None = None,
    schemes: Iterable[str] = (),
    facts: Sequence[int] | None = None,
) -> Part:
    """Describe the part of a run that holds anchors at some layers, coordinated shifts, and what else schemes need.

    `Recorded` has ``at``; the facts are all by default.
    """
    session, at = experiment.session, at or {}
    for where in shifted:
        session.coordination.check(tuple(where.get("anchor_layer", session.layers)))
    places: list[tuple[str, Labels]] = [(ANCHOR, {"anchor_layer": layer, **at}) for layer in layers]
    places += [(SHIFT, where) for where in shifted]
    further = places_of(kinds_of(schemes), session.layers)
    places += further

    def todo(done: Completion) -> list[Cell]:
        cells = [(name, where, left_of(done, experiment, name, where, facts)) for name, where in places]
        return [cell for cell in cells if cell[2]]

    def work(counts: Counts, cells: Sequence[Cell]) -> Iterable[Stage]:
        return [stage for cell in cells for stage in work_of(counts, experiment, cell)]

    def compute(run: Run, cells: Sequence[Cell]) -> None:
        recorder, names = Recorded(run, experiment, at), {name for name, _, _ in cells}
        if ANCHOR in names:
            session.anchors(recorder, layers, facts=facts)
        for where in shifted if SHIFT in names else ():
            session.shifts(recorder, tuple(where["anchor_layer"]) if where else None, where, facts)
        for name in dict.fromkeys(name for name, _ in further if name in names):
            session.optimize(recorder, name, facts)

    return Part(todo, compute, work)
