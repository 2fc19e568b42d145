"""Anchors and coordinated shifts of many facts, optimized batch by batch, recorded as they are finished."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from jacobian_lab.catalogue import JOINT, RESTARTED, SEPARATE, Kind
from jacobian_lab.editing.anchors import (
    Anchors,
    CoordinatedShifts,
    best_anchors,
    coordinate_shifts,
    optimize_anchors,
    random_starts,
)
from jacobian_lab.editing.batches import anchor_batches
from jacobian_lab.editing.descent import NO_CONDITIONS, Conditions, Progress
from jacobian_lab.editing.settings import AnchorSettings, CoordinationSettings, ReplaySettings
from jacobian_lab.memory import free_memory
from jacobian_lab.model.language_model import Layers
from jacobian_lab.model.rows import FactRows
from jacobian_lab.parallel.executor import Executor, called
from jacobian_lab.progress import bar, note

Labels = Mapping[str, Any]
"""Where a descent is recorded, beside its facts."""

Optimized = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""States or shifts, losses, passes, clamped shares and first losses of a batch, fact by fact, on the host."""

ANCHOR, REFIT_ANCHOR, SHIFT = "anchor", "refit_anchor", "coordinated_shift"
"""Names under which descents are recorded: anchors of the unedited model, of an edited one, and coordinated shifts."""
INNER_ANCHOR, RESTARTED_ANCHOR, JOINT_ANCHOR = "inner_anchor", "restarted_anchor", "joint_anchor"
"""Names of the descents of further targets: anchors between the decisive layers' ends, and those at the first layer
that are the best of several, or drawn to the last layer's."""
FIRSTS: Mapping[Kind, str] = {RESTARTED: RESTARTED_ANCHOR, JOINT: JOINT_ANCHOR}
"""Descents at the first layer, by the kind of the targets that are replayed from them."""
LOSS, PASSES, CLAMPED, FIRST_LOSS = "{}_loss", "{}_passes", "{}_clamped", "{}_first_loss"
"""Names under which the rest of what a descent gives is recorded."""


@runtime_checkable
class Recorder(Protocol):
    """Keeps what descents give, fact by fact; facts are called by their indices."""

    def missing(self, name: str, where: Labels, facts: Sequence[int]) -> list[int]:
        """List those of some facts that are not recorded."""
        ...

    def put(self, name: str, where: Labels, facts: Sequence[int], optimized: Optimized) -> None:
        """Record a batch."""
        ...

    def get(self, name: str, where: Labels, facts: Sequence[int]) -> Float[Tensor, "fact ..."]:
        """Give the states or shifts of some facts, in float64; under the names of `LOSS` and `PASSES` these."""
        ...


class InMemory:
    """A recorder that lasts as long as its process."""

    def __init__(self) -> None:
        self._held: dict[str, dict[int, Tensor]] = {}

    def missing(self, name: str, where: Labels, facts: Sequence[int]) -> list[int]:
        """List those of some facts that are not held."""
        return [fact for fact in facts if fact not in self._at(name, where)]

    def put(self, name: str, where: Labels, facts: Sequence[int], optimized: Optimized) -> None:
        """Hold a batch."""
        names = (name, *(rest.format(name) for rest in (LOSS, PASSES, CLAMPED, FIRST_LOSS)))
        for held, values in zip(names, optimized, strict=True):
            self._at(held, where).update(zip(facts, values.double(), strict=True))

    def get(self, name: str, where: Labels, facts: Sequence[int]) -> Float[Tensor, "fact ..."]:
        """Give the states or shifts of some facts, or what else their descents gave, in float64."""
        return torch.stack([self._at(name, where)[fact] for fact in facts])

    def _at(self, name: str, where: Labels) -> dict[int, Tensor]:
        return self._held.setdefault(f"{name} {sorted(where.items())}", {})


@dataclass(frozen=True)
class Descent:
    """A descent of all facts.

    Attributes:
        name: Its name among those that recorders know.
        where: Where it is recorded, beside its facts.
        optimizer: Makes the function that optimizes a batch; asked for only where something is missing. The function is
            one of a module, or a `functools.partial` of one, so that it can be sent to workers.
    """

    name: str
    where: Labels
    optimizer: Callable[[], Callable[..., Optimized]]


def places_of(kinds: Iterable[Kind], layers: Layers) -> list[tuple[str, Labels]]:
    """List descents that kinds of targets need beside anchors at both ends and coordinated shifts: name and place."""
    places: list[tuple[str, Labels]] = []
    for kind in kinds:
        if kind == SEPARATE:
            places += [(INNER_ANCHOR, {"layer": layer}) for layer in layers[1:-1]]
        elif kind in FIRSTS:
            places.append((FIRSTS[kind], {}))
    return places


def anchor_descent(
    rows: FactRows,
    settings: AnchorSettings,
    layer: int,
    name: str = ANCHOR,
    conditions: Callable[[], Conditions] = Conditions,
) -> Descent:
    """Describe the descent of anchors at a layer, of the model as it is when they are optimized."""
    where = {"layer" if name == INNER_ANCHOR else "anchor_layer": layer}
    return Descent(name, where, lambda: partial(_anchors, rows, settings, layer, conditions=conditions()))


def shift_descent(
    rows: FactRows,
    settings: AnchorSettings,
    layers: Layers,
    coordination: CoordinationSettings,
    conditions: Callable[[], Conditions],
    where: Labels,
) -> Descent:
    """Describe the descent of coordinated shifts; conditions are asked for only where something is missing."""
    return Descent(SHIFT, where, lambda: partial(_shifts, rows, settings, layers, coordination, conditions()))


def restarted_descent(
    rows: FactRows,
    settings: AnchorSettings,
    layer: int,
    restarts: ReplaySettings,
    seed: int,
    conditions: Callable[[], Conditions],
) -> Descent:
    """Describe the descents of which each fact's best gives its anchor."""

    def optimizer() -> Callable[..., Optimized]:
        return partial(_restarted, rows, settings, layer, restarts, seed, conditions())

    return Descent(RESTARTED_ANCHOR, {}, optimizer)


def joint_descent(
    rows: FactRows, settings: AnchorSettings, layer: int, conditions: Callable[[], Conditions]
) -> Descent:
    """Describe the descent of anchors that are drawn to those at the last layer."""
    return Descent(JOINT_ANCHOR, {}, lambda: partial(_anchors, rows, settings, layer, conditions=conditions()))


def _anchors(
    rows: FactRows,
    settings: AnchorSettings,
    layer: int,
    batch: Sequence[int],
    progress: Progress | None = None,
    conditions: Conditions = NO_CONDITIONS,
) -> Optimized:
    own = conditions.select(batch)
    anchors = optimize_anchors(rows.select(batch), layer, settings, progress, own)
    return _optimized(anchors.states, anchors)


def _restarted(
    rows: FactRows,
    settings: AnchorSettings,
    layer: int,
    restarts: ReplaySettings,
    seed: int,
    conditions: Conditions,
    batch: Sequence[int],
    progress: Progress | None = None,
) -> Optimized:
    own = rows.select(batch)
    starts = [random_starts(own, restarts.size, seed, number) for number in range(restarts.starts)]
    anchors = best_anchors(own, layer, settings, starts, progress, conditions.select(batch))
    return _optimized(anchors.states, anchors)


def _shifts(
    rows: FactRows,
    settings: AnchorSettings,
    layers: Layers,
    coordination: CoordinationSettings,
    conditions: Conditions,
    batch: Sequence[int],
    progress: Progress | None = None,
) -> Optimized:
    own = conditions.select(batch)
    shifts = coordinate_shifts(rows.select(batch), layers, settings, coordination, progress=progress, conditions=own)
    return _optimized(shifts.shifts, shifts)


def _optimized(values: Tensor, descent: Anchors | CoordinatedShifts) -> Optimized:
    return values.cpu(), descent.loss.cpu(), descent.passes.cpu(), descent.clamped.cpu(), descent.first_loss.cpu()


def spread(
    values: Float[Tensor, "part *of_fact"], facts: Sequence[int] | None, count: int
) -> Float[Tensor, "fact *of_fact"]:
    """Put values of some facts at their places among all, and NaN at the others'; those of all stay as they are."""
    if facts is None:
        return values
    every = values.new_full((count, *values.shape[1:]), math.nan)
    every[list(facts)] = values
    return every


@dataclass(frozen=True)
class Batching:
    """Facts, the batches that they are put into, and who works on them.

    Attributes:
        rows: The facts.
        size: Facts in a batch at the most, if that is limited.
        dtype: Dtype of the copy of the model that descents run in; none where they run in the model itself.
        executor: Who optimizes.
        apart: Indices of facts that have batches of their own, such as those that another run gives.
    """

    rows: FactRows
    size: int | None
    dtype: torch.dtype | None
    executor: Executor
    apart: frozenset[int] = frozenset()

    def batches(self, facts: Sequence[int], apart: frozenset[int]) -> list[list[int]]:
        """Put facts into batches: those whose tails are about equally long, no more than memory holds."""
        cards, free = self._room()
        return [
            [group[index] for index in batch]
            for group in ([f for f in facts if f in apart], [f for f in facts if f not in apart])
            for batch in anchor_batches(self.rows.select(group), self.size, cards=cards, free=free, dtype=self.dtype)
        ]

    def _room(self) -> tuple[int, int]:
        """Cards of whoever optimizes, 0 for a processor, and the bytes that are free on each."""
        model, executor, load = self.rows.model, self.executor, self.executor.load
        weights, copied = sum(w.numel() for w in model.hf.parameters()), self.dtype.itemsize if self.dtype else 0
        if executor.free is None:
            free, cards = free_memory(model.devices) - weights * copied // max(1, model.cards), model.cards
        else:
            workers = load.beside * weights * (model.dtype.itemsize + copied) // load.worker_cards
            free, cards = (executor.free - workers) // load.beside, load.worker_cards if model.cards else 0
        return cards, max(0, free)


def descend(
    batching: Batching,
    descents: Sequence[Descent],
    recorder: Recorder,
    facts: Sequence[int] | None = None,
    *,
    progress: bool,
) -> list[Float[Tensor, "fact ..."]]:
    """Optimize what a recorder lacks of some descents of one name, and give the results.

    A batch that lacks some facts is optimized as a whole, so that the numbers are the same to the last bit. One that
    memory does not hold is halved.

    Args:
        batching: The facts, their batches, and who optimizes.
        descents: The descents.
        recorder: Keeps them.
        facts: Indices of the facts; all of them by default.
        progress: Whether to show a progress bar.

    Returns:
        The states or shifts of these facts for each descent, in float32 or better, where the model is.
    """
    rows, executor = batching.rows, batching.executor
    model, name = rows.model, descents[0].name
    facts = list(range(len(rows)) if facts is None else facts)
    batches = batching.batches(facts, frozenset() if name == REFIT_ANCHOR else batching.apart)
    labels = [fact.id for fact in rows.facts]

    def missing() -> list[frozenset[int]]:
        return [frozenset(recorder.missing(name, descent.where, facts)) for descent in descents]

    lacking, whole = missing(), len(descents) * len(facts)
    with bar(
        whole, f"{name}s".replace("_", " "), "anchor", done=whole - sum(map(len, lacking)), show=progress
    ) as progress_bar:

        def advance(finished: int, loss: float) -> None:
            progress_bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            progress_bar.update(finished)

        def tell(failed: int, next_size: int) -> None:
            progress_bar.n = whole - sum(map(len, missing()))  # less what did not fit
            note(f"out of memory with the anchors of {failed} facts side by side: going on with {next_size}")

        for descent, lacks in zip(descents, lacking, strict=True):
            left = [batch for batch in batches if lacks & set(batch)]
            if not left:
                continue
            work = descent.optimizer()
            work = partial(work, progress=advance) if executor.here else work
            for batch, optimized in executor.map(left, work, tell, partial(called, labels=labels)):
                recorder.put(name, descent.where, batch, optimized)
                if not executor.here:
                    advance(len(batch), float(optimized[1].nanmean()))
    model.drop_casts()
    dtype = torch.promote_types(model.dtype, torch.float32)
    return [recorder.get(name, descent.where, facts).to(model.device, dtype) for descent in descents]
