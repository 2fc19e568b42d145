"""Anchors, and shifts at several layers at once, by gradient descent, all facts side by side."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from jacobian_lab.editing.delivery import fact_generator
from jacobian_lab.editing.descent import NO_CONDITIONS, Conditions, Descent, Progress
from jacobian_lab.editing.settings import AnchorSettings, CoordinationSettings
from jacobian_lab.maps.writes import shifted_states
from jacobian_lab.model.language_model import Layers
from jacobian_lab.model.rows import FactRows


@dataclass(frozen=True, eq=False)
class Anchors:
    """Optimised states of the decisive token, one a fact.

    Attributes:
        layer: The layer that they belong to.
        states: h_0 + δ, behind a norm h_0 + N(u + δ) − N(u), ``[fact, d_model]``, in float32 or better; NaN where the
            loss was not finite.
        loss: The loss at the last pass.
        passes: How many passes were made.
        clamped: Share of the updates after which the clamp scaled the fact's shifts back.
        first_loss: The loss at the first pass.
    """

    layer: int
    states: Float[Tensor, "fact d_model"]
    loss: Float[Tensor, " fact"]
    passes: Int[Tensor, " fact"]
    clamped: Float[Tensor, " fact"]
    first_loss: Float[Tensor, " fact"]


@dataclass(frozen=True, eq=False)
class CoordinatedShifts:
    """Optimised shifts of the decisive token at several layers, one set a fact.

    Attributes:
        layers: The layers, ascending.
        shifts: Write shifts δ_l, ``[fact, layer, d_model]``, in float32 or better; NaN where the loss was not finite.
        loss: The loss at the last pass.
        passes: How many passes were made.
        clamped: Share of the updates after which the clamp scaled the fact's shifts back.
        first_loss: The loss at the first pass.
    """

    layers: Layers
    shifts: Float[Tensor, "fact layer d_model"]
    loss: Float[Tensor, " fact"]
    passes: Int[Tensor, " fact"]
    clamped: Float[Tensor, " fact"]
    first_loss: Float[Tensor, " fact"]


def optimize_anchors(
    rows: FactRows,
    layer: int,
    settings: AnchorSettings | None = None,
    progress: Progress | None = None,
    conditions: Conditions = NO_CONDITIONS,
) -> Anchors:
    """Find the states at `layer` that make the model give the new answers (methods.md §2).

    The facts are optimised side by side. Each has its own optimiser, its own stop, and leaves the
    batch when it is done, so that no fact's result depends on the others'. The loss is computed
    in float64 whatever the model's dtype: in float32 its rounding alone moved an anchor by 2e-4.

    Args:
        rows: The facts, of the unedited model; see `anchor_batches` for which of many to take together.
        layer: The anchor layer.
        settings: How to optimise; by default as `AnchorSettings.of` has it for the model.
        progress: Told of every pass.
        conditions: Further conditions of these facts' descents.

    Returns:
        The anchors, in the order of the facts.

    Examples:
        >>> import jacobian_lab as jl
        >>> model, facts = jl.load_model(), jl.load_facts("builtin", "0:2")
        >>> anchors = jl.optimize_anchors(jl.fact_rows(model, facts), 4, jl.AnchorSettings(steps=3))
        >>> anchors.states.shape, anchors.passes.tolist()
        (torch.Size([2, 576]), [3, 3])
    """
    settings = settings or AnchorSettings.of(rows.model)
    descent = Descent(settings.rows(rows), (layer,), settings, conditions=conditions)
    descent.run(progress)
    states = shifted_states(rows.model, rows.bare, layer, descent.shifts[:, 0])
    return Anchors(layer, states, descent.loss, descent.passes, descent.clamped, descent.first_loss)


def best_anchors(
    rows: FactRows,
    layer: int,
    settings: AnchorSettings,
    starts: Sequence[Float[Tensor, "fact d_model"]],
    progress: Progress | None = None,
    conditions: Conditions = NO_CONDITIONS,
) -> Anchors:
    """Find each fact's anchor by several descents, and take that of the least final loss.

    Args:
        rows: The facts, of the unedited model.
        layer: The anchor layer.
        settings: How to optimise.
        starts: Shifts that the descents begin at, over the norms of what they shift (`random_starts`).
        progress: Told of every pass.
        conditions: Further conditions of these facts' descents.

    Returns:
        The anchors, with the passes of all descents together.
    """
    last = len(starts) - 1
    every = [
        optimize_anchors(
            rows,
            layer,
            settings,
            progress if progress is None or place == last else partial(_unfinished, progress),
            replace(conditions, starts=start[:, None]),
        )
        for place, start in enumerate(starts)
    ]
    losses = torch.stack([anchors.loss for anchors in every])
    best = losses.nan_to_num(nan=torch.inf).argmin(0)
    facts = torch.arange(len(rows), device=best.device)
    states, clamped, first = (
        torch.stack([getattr(a, name) for a in every])[best, facts] for name in ("states", "clamped", "first_loss")
    )
    return Anchors(layer, states, losses[best, facts], torch.stack([a.passes for a in every]).sum(0), clamped, first)


def _unfinished(progress: Progress, _finished: int, loss: float) -> None:
    """Tell of a pass that finishes no fact: further descents follow."""
    progress(0, loss)


def random_starts(rows: FactRows, size: float, seed: int, number: int) -> Float[Tensor, "fact d_model"]:
    """Draw shifts of one norm in random directions, each fact's by itself.

    Args:
        rows: The facts.
        size: The norm.
        seed: The seed.
        number: Number of the start.

    Returns:
        The shifts, in float64; those of a fact depend on no other fact.
    """
    draws = [
        torch.randn(rows.model.d_model, generator=fact_generator(fact, seed, number), dtype=torch.float64)
        for fact in rows.facts
    ]
    directions = torch.stack(draws)
    return size * directions / torch.linalg.vector_norm(directions, dim=-1, keepdim=True)


def coordinate_shifts(
    rows: FactRows,
    layers: Layers,
    settings: AnchorSettings | None = None,
    coordination: CoordinationSettings | None = None,
    eases: Float[Tensor, "fact layer"] | None = None,
    progress: Progress | None = None,
    conditions: Conditions = NO_CONDITIONS,
) -> CoordinatedShifts:
    """Find shifts at all decisive layers that together make the model give the new answers (methods.md §4).

    One descent over them all, with the passes, the loss and the stop of a single anchor's: `optimize_anchors` is the
    case of one layer.

    Args:
        rows: The facts, of the unedited model.
        layers: The layers, ascending.
        settings: How to optimise, as in `optimize_anchors`; a step is shared by the layers, and so is the clamp.
        coordination: How the effort is shared; equally by default.
        eases: kᵀC⁻¹k of every fact and layer, where `coordination` needs them (`Setting.eases`).
        progress: Told of every pass.
        conditions: Further conditions of these facts' descents, such as the losses at which they end.

    Returns:
        The shifts, in the order of the facts.

    Raises:
        InputError: If the weights are not those of these layers, or C is singular where it weighs shifts.

    Examples:
        >>> import jacobian_lab as jl
        >>> rows = jl.fact_rows(jl.load_model(), jl.load_facts("builtin", "0:2"))
        >>> found = jl.coordinate_shifts(rows, (4, 6, 8), jl.AnchorSettings(steps=3))
        >>> found.shifts.shape, found.passes.tolist()
        (torch.Size([2, 3, 576]), [3, 3])
    """
    settings = settings or AnchorSettings.of(rows.model)
    conditions = conditions if eases is None else replace(conditions, eases=eases)
    descent = Descent(settings.rows(rows), layers, settings, coordination, conditions)
    descent.run(progress)
    return CoordinatedShifts(layers, descent.shifts, descent.loss, descent.passes, descent.clamped, descent.first_loss)
