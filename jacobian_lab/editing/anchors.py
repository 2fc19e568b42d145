"""Anchors by gradient descent, all facts side by side."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from jacobian_lab.maps.hooks import decisive_states
from jacobian_lab.maps.replay import Frozen, freeze, replay_logits
from jacobian_lab.model.rows import FactRows

PADDING = 1.25
"""The longest tail of a batch is at most this many times the shortest."""
Progress = Callable[[int, float], None]
"""Called after every pass with the number of facts that it finished and the mean loss of those running."""


@dataclass(frozen=True)
class AnchorSettings:
    """How an anchor is optimised (methods.md §2).

    Attributes:
        lr: Adam's learning rate.
        steps: Passes N, of which at most N - 1 update the anchor.
        weight_decay: Weight of ‖δ‖ / ‖h_0‖² in the loss.
        kl_factor: Weight of the KL divergence at the decisive token of ``"{subject} is a"``.
        clamp: ‖δ‖ is kept below this share of ‖h_0‖.
        stop_loss: A fact whose loss is below this is done.

    Example:
        >>> import jacobian_lab as jl
        >>> jl.AnchorSettings(lr=0.1, steps=35)
        AnchorSettings(lr=0.1, steps=35, weight_decay=0.5, kl_factor=0.0625, clamp=0.75, stop_loss=0.05)
    """

    lr: float = 0.5
    steps: int = 25
    weight_decay: float = 0.5
    kl_factor: float = 0.0625
    clamp: float = 0.75
    stop_loss: float = 0.05


@dataclass(frozen=True, eq=False)
class Anchors:
    """Optimised states of the decisive token, one a fact.

    Attributes:
        layer: The layer that they belong to.
        states: h_0 + δ, ``[fact, d_model]``, in float32 or better; NaN where the loss was not finite.
        loss: The loss at the last pass.
        passes: How many passes were made.
    """

    layer: int
    states: Float[Tensor, "fact d_model"]
    loss: Float[Tensor, " fact"]
    passes: Int[Tensor, " fact"]


def optimise_anchors(rows: FactRows, layer: int, settings: AnchorSettings, progress: Progress | None = None) -> Anchors:
    """Find the states at `layer` that make the model give the new answers (methods.md §2).

    The facts are optimised side by side. Each has its own optimiser, its own stop, and leaves the
    batch when it is done, so that no fact's result depends on the others'. The loss is computed in
    float64 whatever the model's dtype: in float32 its rounding alone moved an anchor by 2e-4.

    Args:
        rows: The facts, of the unedited model; see `anchor_batches` for which of many to take together.
        layer: The anchor layer.
        settings: How to optimise.
        progress: Told of every pass.

    Returns:
        The anchors, in the order of the facts.

    Example:
        >>> import jacobian_lab as jl
        >>> model, facts = jl.load_model(), jl.load_facts("builtin", "0:2")
        >>> anchors = jl.optimise_anchors(jl.fact_rows(model, facts), 4, jl.AnchorSettings(steps=3))
        >>> anchors.states.shape, anchors.passes.tolist()
        (torch.Size([2, 576]), [3, 3])
    """
    model = rows.model
    contexts = [row for answered in rows.answered_contexts for row in answered]
    bare = decisive_states(model, rows.bare, [layer])[:, 0]
    start = bare.to(torch.promote_types(model.dtype, torch.float32))
    descent = _Descent(freeze(model, contexts, [layer]), freeze(model, rows.kl, [layer]), layer, start, settings)
    descent.run(progress)
    return Anchors(layer, descent.states, descent.loss, descent.passes)


def anchor_batches(rows: FactRows, size: int) -> list[list[int]]:
    """Which facts to optimise together: those whose tails are about equally long.

    Args:
        rows: The facts.
        size: Facts in a batch at the most.

    Returns:
        Indices of the facts of each batch; every index once.
    """
    tails = [row.tail for row in rows.answered]
    groups: list[list[int]] = []
    for index in sorted(range(len(rows)), key=tails.__getitem__):
        fits = groups and len(groups[-1]) < size and tails[index] <= PADDING * tails[groups[-1][0]]
        if fits:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


class _Descent:
    """Adam on one δ a fact, all facts in one batch, each leaving when it is done.

    Rows of fact f are ``f·contexts … f·contexts + contexts - 1``; whenever facts leave, all that
    belongs to a fact is selected by the same indices.
    """

    def __init__(
        self,
        rows: Frozen,
        kl_rows: Frozen,
        layer: int,
        start: Float[Tensor, "fact d_model"],
        settings: AnchorSettings,
    ) -> None:
        self.rows, self.kl_rows, self.layer, self.settings = rows, kl_rows, layer, settings
        self.start, self.contexts = start, len(rows) // len(start)
        self.norms = torch.linalg.vector_norm(start, dim=1)
        self.deltas = [torch.zeros_like(row, requires_grad=True) for row in start]
        self.adam = torch.optim.Adam(self.deltas, lr=settings.lr)
        self.reference: Tensor | None = None
        self.states = torch.full_like(start, math.nan)
        self.loss = torch.full_like(self.norms, math.nan, dtype=torch.float64)
        self.passes = torch.zeros(len(start), dtype=torch.long, device=start.device)

    def run(self, progress: Progress | None) -> None:
        """Make passes until every fact is done."""
        active = torch.arange(len(self.start), device=self.start.device)
        for number in range(1, self.settings.steps + 1):
            losses = self._losses(active)
            value = losses.detach()
            self.loss[active], self.passes[active] = value, number
            finite = torch.isfinite(value)
            done = ~finite | (value < self.settings.stop_loss) | (number == self.settings.steps)
            with torch.no_grad():
                for fact in active[done & finite].tolist():
                    self.states[fact] = self.start[fact] + self.deltas[fact]
            if progress is not None:
                progress(int(done.sum()), float(value[finite].mean()) if finite.any() else math.nan)
            stay = torch.nonzero(~done)[:, 0]
            if not len(stay):
                return
            self._update(losses[stay].sum(), active[stay].tolist())
            if len(stay) < len(active):
                active = active[stay]
                self._keep(stay)

    def _losses(self, active: Int[Tensor, " active"]) -> Float[Tensor, " active"]:
        """The loss of each active fact at its δ."""
        settings, layer = self.settings, self.layer
        delta = torch.stack([self.deltas[fact] for fact in active.tolist()])
        spread = delta.repeat_interleave(self.contexts, dim=0)
        log_p = replay_logits(self.rows, layer, self.rows.states(layer) + spread).double().log_softmax(-1)
        answer = self.rows.answer
        picked = log_p.gather(-1, answer.clamp(min=0)[..., None])[..., 0] * (answer >= 0)
        nll = -(picked.sum(1) / (answer >= 0).sum(1)).view(-1, self.contexts).mean(1)
        kl_logits = replay_logits(self.kl_rows, layer, self.kl_rows.states(layer) + delta)[:, 0]
        kl_log_p = kl_logits.double().log_softmax(-1)
        if self.reference is None:  # the first pass is at δ = 0
            self.reference = kl_log_p.detach()
        divergence = (kl_log_p.exp() * (kl_log_p - self.reference)).sum(-1)
        decay = torch.linalg.vector_norm(delta, dim=1) / self.norms[active] ** 2
        return nll + settings.kl_factor * divergence + settings.weight_decay * decay

    def _update(self, loss: Float[Tensor, ""], facts: list[int]) -> None:
        """One step of Adam for the facts that go on; the others' gradients stay absent."""
        self.adam.zero_grad(set_to_none=True)
        gradients = torch.autograd.grad(loss, [self.deltas[fact] for fact in facts])
        for fact, gradient in zip(facts, gradients, strict=True):
            self.deltas[fact].grad = gradient
        self.adam.step()
        with torch.no_grad():
            for fact in facts:
                delta, limit = self.deltas[fact], self.settings.clamp * self.norms[fact]
                norm = torch.linalg.vector_norm(delta)
                if norm > limit:
                    delta.mul_(limit / norm)

    def _keep(self, stay: Int[Tensor, " stay"]) -> None:
        """Let the rows of facts that are done go."""
        assert self.reference is not None
        contexts = torch.arange(self.contexts, device=stay.device)
        self.rows = self.rows.select((stay[:, None] * self.contexts + contexts).flatten())
        self.kl_rows, self.reference = self.kl_rows.select(stay), self.reference[stay]
