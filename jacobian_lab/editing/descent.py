"""The descent that all anchors and shifts come from: Adam on the facts' shifts, side by side."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from jacobian_lab.editing.settings import AnchorSettings, CoordinationSettings
from jacobian_lab.errors import InputError
from jacobian_lab.maps.hooks import decisive_states
from jacobian_lab.maps.likelihood import answer_is_likeliest, answer_nll
from jacobian_lab.maps.replay import Frozen, freeze, replay, replay_outputs
from jacobian_lab.maps.writes import moved_at, normed_writes, rms
from jacobian_lab.model.language_model import Layers
from jacobian_lab.model.rows import FactRows

HALVINGS, TIGHT = 40, 1e-5
"""Halvings of a scale that the clamp looks for, and the relative excess that is rounding."""
Progress = Callable[[int, float], None]
"""Called after every pass with the number of facts that it finished and the mean loss of those running."""


@dataclass(frozen=True, eq=False)
class Conditions:
    """Conditions of a descent, fact by fact, beside its settings.

    Attributes:
        eases: kᵀC⁻¹k of every layer.
        transfers: Mean share of a shift at every layer that arrives at held-out contexts.
        limits: Losses at which descents end; where one is not finite, that of the settings ends the fact's.
        starts: Shifts that descents begin at, over the norms of what they shift; zero by default.
        aims: States m that the replayed state h of the bare prompt is drawn to, by aim_weight · ‖h − m‖² / ‖m‖² in the
            loss.
        aim_layer: The layer of these states.
        aim_weight: Weight of their distance.
        delivered: Shares of the shifts at which each pass takes the answer's and the KL term's loss (`delivery`).
    """

    eases: Float[Tensor, "fact layer"] | None = None
    limits: Float[Tensor, " fact"] | None = None
    starts: Float[Tensor, "fact layer d_model"] | None = None
    aims: Float[Tensor, "fact d_model"] | None = None
    aim_layer: int = 0
    aim_weight: float = 0.0
    transfers: Float[Tensor, "fact layer"] | None = None
    delivered: Float[Tensor, "fact pass layer"] | None = None

    def select(self, facts: Sequence[int]) -> "Conditions":
        """Select some of the facts.

        Args:
            facts: Their indices.

        Returns:
            Their conditions.
        """
        indices = list(facts)
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        by_fact: dict[str, Any] = {name: value[indices] for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **by_fact)

    def stops(self, stop_loss: float, like: Float[Tensor, " fact"]) -> Float[Tensor, " fact"]:
        """Losses below which descents end: the least ones above `limits`.

        Args:
            stop_loss: The loss of facts without a limit.
            like: A tensor whose shape, dtype and device the losses have.

        Returns:
            A loss for each fact.
        """
        usual = torch.full_like(like, stop_loss)
        if self.limits is None:
            return usual
        limits = self.limits.to(like)
        return torch.where(limits.isfinite(), limits.nextafter(torch.full_like(limits, math.inf)), usual)


NO_CONDITIONS = Conditions()


def largest_scales(
    spent: Callable[[Float[Tensor, " layer"]], Float[Tensor, " layer"]],
    limit: Float[Tensor, ""],
    scales: Float[Tensor, " layer"],
) -> Float[Tensor, " layer"]:
    """Scale shifts back until what they spend is within a limit.

    A single division does it where the stream's change is linear in the shift. Behind a norm it is concave, so that
    more is spent than the division allows; then the scales are bisected.

    Args:
        spent: Each layer's expense at some scales, in the limit's units.
        limit: The limit.
        scales: The largest scales, 1.

    Returns:
        The scales.
    """
    sizes = spent(scales)
    low, high = torch.zeros_like(scales), torch.where(sizes > limit, limit / sizes, scales)
    beyond = spent(high) > limit * (1 + TIGHT)
    for _ in range(HALVINGS if beyond.any() else 0):
        middle = (low + high) / 2
        over = beyond & (spent(middle) > limit)
        low, high = torch.where(over, low, middle), torch.where(over, middle, high)
    return torch.where(beyond, low, high)


class Descent:
    """Adam on the shifts of every fact, one a layer, all facts in one batch, each leaving when it is done.

    Rows of fact f are ``f·contexts … f·contexts + contexts - 1``; whenever facts leave, all that
    belongs to a fact is selected by the same indices.

    Args:
        rows: The facts.
        layers: The layers, ascending.
        settings: The descent's settings.
        coordination: Shares of the layers; equal by default.
        conditions: What else is known of each fact.
    """

    def __init__(
        self,
        rows: FactRows,
        layers: Layers,
        settings: AnchorSettings,
        coordination: CoordinationSettings | None = None,
        conditions: Conditions = NO_CONDITIONS,
    ) -> None:
        model, first = rows.model, layers[0]
        contexts = [row for answered in rows.answered_contexts for row in answered]
        bare = decisive_states(model, rows.bare, list(layers))
        self.layers, self.settings, self.coordination = layers, settings, coordination or CoordinationSettings()
        self.coordination.check(layers)
        self.model, self.writes = model, normed_writes(model, rows.bare, layers)
        self.start = bare.to(torch.promote_types(model.dtype, torch.float32))
        self.rows, self.kl_rows = freeze(model, contexts, [first]), freeze(model, rows.kl, [first])
        self.contexts = len(contexts) // len(self.start)
        self.norms = torch.linalg.vector_norm(self.start, dim=-1)
        self.eases = torch.ones_like(self.norms) if conditions.eases is None else conditions.eases.to(self.norms)
        if not self.eases.isfinite().all():
            raise InputError(
                "expected a positive definite C to weigh shifts by, got a singular one: give a longer corpus"
            )
        self.units = torch.ones_like(self.norms) if self.writes is None else rms(self.writes.to(self.start))
        transfers = None if conditions.transfers is None else conditions.transfers.to(self.norms)
        self.shares = self.coordination.shares(self.eases, transfers) * self.units
        starts = torch.zeros_like(self.start)
        if conditions.starts is not None:
            lengths = self.norms if self.writes is None else torch.linalg.vector_norm(self.writes.to(starts), dim=-1)
            starts = conditions.starts.to(starts) * (lengths / self.shares)[..., None]
        self.moves = [start.clone().requires_grad_() for start in starts]  # shifts over shares
        self.adam = torch.optim.Adam(self.moves, lr=settings.lr)
        self.reference: Tensor | None = None
        self.shifts = torch.full_like(self.start, math.nan)
        self.loss = torch.full_like(self.norms[:, 0], math.nan, dtype=torch.float64)
        self.first_loss = self.loss
        self.aims = None if conditions.aims is None else conditions.aims.to(self.start)
        self.aim_layer, self.aim_weight = conditions.aim_layer, conditions.aim_weight
        self.aim_rows = None if self.aims is None else freeze(model, rows.bare, [first], self.aim_layer)
        self.delivered = None if conditions.delivered is None else conditions.delivered.to(self.start)
        self.number = 1
        self.limits = conditions.stops(settings.stop_loss, self.loss)
        self.passes = torch.zeros(len(self.start), dtype=torch.long, device=self.start.device)
        self.clamps = torch.zeros_like(self.passes)
        self.answered = torch.zeros_like(self.passes)  # passes in which the answer was the likeliest

    @property
    def clamped(self) -> Float[Tensor, " fact"]:
        """Share of each fact's updates that the clamp scaled back; 0 where there was none."""
        return self.clamps.double() / (self.passes - 1).clamp(min=1)

    def run(self, progress: Progress | None) -> None:
        """Make passes until every fact is done."""
        active = torch.arange(len(self.start), device=self.start.device)
        for number in range(1, self.settings.steps + 1):
            self.number = number
            losses = self._losses(active)
            value = losses.detach()
            self.loss[active], self.passes[active] = value, number
            if number == 1:
                self.first_loss = value
            finite = torch.isfinite(value)
            done = ~finite | (value < self.limits[active]) | (number == self.settings.steps)
            done |= self.answered[active] >= (self.settings.likeliest or math.inf)
            with torch.no_grad():
                for fact in active[done & finite].tolist():
                    self.shifts[fact] = self._shift(fact)
            if progress is not None:
                progress(int(done.sum()), float(value[finite].mean()) if finite.any() else math.nan)
            stay = torch.nonzero(~done)[:, 0]
            if not len(stay):
                return
            self._update(losses[stay].sum(), active[stay].tolist())
            if len(stay) < len(active):
                active = active[stay]
                self._keep(stay)

    def _shift(self, fact: int) -> Float[Tensor, "layer d_model"]:
        return self.shares[fact][:, None] * self.moves[fact]

    def _sizes(
        self, shifts: Float[Tensor, "*active layer d_model"], active: Int[Tensor, "*active"]
    ) -> Float[Tensor, "*active layer"]:
        """Norms of the changes of the stream that shifts make, each layer by itself."""
        writes = None if self.writes is None else self.writes[active]
        return torch.linalg.vector_norm(moved_at(self.model, self.layers, writes, shifts), dim=-1)

    def _losses(self, active: Int[Tensor, " active"]) -> Float[Tensor, " active"]:
        """The loss of each active fact at its shifts."""
        shifts = torch.stack([self._shift(fact) for fact in active.tolist()])
        outputs = self._outputs(self.rows, self._arriving(shifts, active).repeat_interleave(self.contexts, dim=0))
        nll = answer_nll(self.rows, outputs).view(-1, self.contexts).mean(1)
        if self.settings.likeliest is not None:
            self.answered[active] += answer_is_likeliest(self.rows, outputs).view(-1, self.contexts).all(1)
        kl_log_p = self._kl_log_p(self._arriving(shifts, active))  # anew: gradients add up in the order of whole shifts
        if self.reference is None:
            with torch.no_grad():  # the first pass is at shifts of 0, unless there are starts
                self.reference = self._kl_log_p(torch.zeros_like(shifts)) if shifts.any() else kl_log_p.detach()
        divergence = (kl_log_p.exp() * (kl_log_p - self.reference)).sum(-1)
        loss = nll + self.settings.kl_factor * divergence + self._decay(shifts, active)
        return loss if self.aim_rows is None else loss + self._distances(self.aim_rows, shifts, active)

    def _arriving(
        self, shifts: Float[Tensor, "active layer d_model"], active: Int[Tensor, " active"]
    ) -> Float[Tensor, "active layer d_model"]:
        """Shifts as far as they are delivered in this pass."""
        return shifts if self.delivered is None else shifts * self.delivered[active, self.number - 1, :, None]

    def _kl_log_p(self, shifts: Float[Tensor, "active layer d_model"]) -> Float[Tensor, "active vocab"]:
        """Logarithms of the next token's probabilities after the KL prompt."""
        return self.kl_rows.model.head(self._outputs(self.kl_rows, shifts)[:, 0]).double().log_softmax(-1)

    def _distances(
        self, rows: Frozen, shifts: Float[Tensor, "active layer d_model"], active: Int[Tensor, " active"]
    ) -> Float[Tensor, " active"]:
        """Weighted squared distances of the replayed states to the aims, over the aims' squared norms."""
        assert self.aims is not None
        first, aims = self.layers[0], self.aims[active].double()
        above = dict(zip(self.layers[1:], shifts[:, 1:].unbind(1), strict=True))
        states = replay(rows, first, rows.shifted(first, shifts[:, 0]), [self.aim_layer], above)[:, 0].double()
        return self.aim_weight * (states - aims).square().sum(-1) / aims.square().sum(-1)

    def _outputs(self, rows: Frozen, shifts: Float[Tensor, "row layer d_model"]) -> Float[Tensor, "row answer d_model"]:
        first = self.layers[0]
        above = dict(zip(self.layers[1:], shifts[:, 1:].unbind(1), strict=True))
        return replay_outputs(rows, first, rows.shifted(first, shifts[:, 0]), above)

    def _decay(
        self, shifts: Float[Tensor, "active layer d_model"], active: Int[Tensor, " active"]
    ) -> Float[Tensor, " active"]:
        if self.coordination.decay == "price":
            squares = (shifts**2).sum(-1) / (self.model.mlp_factor * self.units[active]) ** 2
            return self.coordination.price * (squares / self.eases[active]).sum(-1)
        sizes = self._sizes(shifts, active)
        return self.settings.weight_decay * (sizes / self.norms[active] ** 2).sum(-1)

    def _update(self, loss: Float[Tensor, ""], facts: list[int]) -> None:
        """One step of Adam for the facts that go on; the others' gradients stay absent."""
        self.adam.zero_grad(set_to_none=True)
        gradients = torch.autograd.grad(loss, [self.moves[fact] for fact in facts])
        for fact, gradient in zip(facts, gradients, strict=True):
            self.moves[fact].grad = gradient
        self.adam.step()
        with torch.no_grad():
            for fact in facts:
                self._clamp(fact)

    def _clamp(self, fact: int) -> None:
        """Scale a fact's shifts back into the budget."""
        norms, shift = self.norms[fact], self._shift(fact)
        limit = self.settings.clamp * norms[0]

        def spent(scales: Float[Tensor, " layer"]) -> Float[Tensor, " layer"]:
            sizes = self._sizes(scales[:, None] * shift, torch.tensor(fact)) * (norms[0] / norms)  # of the first layer
            return sizes.sum().expand_as(sizes) if self.coordination.budget == "shared" else sizes

        scales = largest_scales(spent, limit, torch.ones_like(norms))
        self.clamps[fact] += (scales < 1).any()
        self.moves[fact].mul_(scales[:, None])

    def _keep(self, stay: Int[Tensor, " stay"]) -> None:
        """Let the rows of facts that are done go."""
        assert self.reference is not None
        contexts = torch.arange(self.contexts, device=stay.device)
        self.rows = self.rows.select((stay[:, None] * self.contexts + contexts).flatten())
        self.kl_rows, self.reference = self.kl_rows.select(stay), self.reference[stay]
        self.aim_rows = None if self.aim_rows is None else self.aim_rows.select(stay)
