"""Anchors, and shifts at several layers at once, by gradient descent, all facts side by side."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from jacobian_lab.errors import InputError
from jacobian_lab.maps.hooks import decisive_states
from jacobian_lab.maps.likelihood import answer_is_likeliest, answer_nll
from jacobian_lab.maps.replay import Frozen, freeze, replay_outputs
from jacobian_lab.maps.writes import moved_at, normed_writes, rms, shifted_states
from jacobian_lab.model.language_model import LanguageModel, Layers
from jacobian_lab.model.rows import FactRows

HALVINGS, TIGHT = 40, 1e-5
"""Halvings of a scale that the clamp looks for, and the relative excess that is rounding."""
Progress = Callable[[int, float], None]
"""Called after every pass with the number of facts that it finished and the mean loss of those running."""


@dataclass(frozen=True)
class AnchorSettings:
    """Settings of an anchor's descent (methods.md §2).

    Attributes:
        lr: Adam's learning rate; behind a norm in units of rms(u), u the bare prompt's write.
        steps: Passes N, of which at most N - 1 update the anchor.
        weight_decay: Weight of ‖δ‖ / ‖h_0‖² in the loss.
        kl_factor: Weight of the KL divergence at the decisive token of ``"{subject} is a"``.
        clamp: ‖δ‖ is kept below this share of ‖h_0‖.
        stop_loss: A fact whose loss is below this is done.
        dtype: Dtype of a copy of the model that the descent runs in, such as ``"bfloat16"`` where that is multiplied
            faster; the model's own by default. Losses and shifts are in float32 or better all the same.
        likeliest: A fact is done too after so many passes in which every token of its answer is the likeliest in all
            contexts, as in ENCORE (arXiv 2502.01636); by its loss alone by default.

    Examples:
        >>> import jacobian_lab as jl
        >>> jl.AnchorSettings(lr=0.1, steps=35).clamp
        0.75
    """

    lr: float = 0.5
    steps: int = 25
    weight_decay: float = 0.5
    kl_factor: float = 0.0625
    clamp: float = 0.75
    stop_loss: float = 0.05
    dtype: str | None = None
    likeliest: int | None = None

    @classmethod
    def of(cls, model: LanguageModel) -> "AnchorSettings":
        """Settings for a model: the literature's learning rate and passes where it is known, else an educated guess.

        Args:
            model: The model.

        Returns:
            The settings.
        """
        defaults = model.defaults()
        return cls(lr=defaults.anchor_lr, steps=defaults.anchor_steps)

    def rows(self, rows: FactRows) -> FactRows:
        """Facts with the model that the descent runs in.

        Args:
            rows: The facts.

        Returns:
            The same; in another dtype with a copy of the model.
        """
        return rows if self.dtype is None else replace(rows, model=rows.model.cast(getattr(torch, self.dtype)))


@dataclass(frozen=True, eq=False)
class Anchors:
    """Optimised states of the decisive token, one a fact.

    Attributes:
        layer: The layer that they belong to.
        states: h_0 + δ, behind a norm h_0 + N(u + δ) − N(u), ``[fact, d_model]``, in float32 or better; NaN where the
            loss was not finite.
        loss: The loss at the last pass.
        passes: How many passes were made.
    """

    layer: int
    states: Float[Tensor, "fact d_model"]
    loss: Float[Tensor, " fact"]
    passes: Int[Tensor, " fact"]


Weighting = Literal["equal", "front", "eased"]
Budget = Literal["shared", "each"]
Decay = Literal["norm", "price"]


@dataclass(frozen=True)
class CoordinationSettings:
    """Shares of the decisive layers in a coordinated descent (methods.md §4).

    Attributes:
        weighting: How far a step moves each layer: equal; front, falling evenly from the first layer to the last; or
            eased, as the root of kᵀC⁻¹k, which makes a layer's shift cheap.
        budget: What the clamp bounds: the sum of ‖δ_l‖ / ‖h_l‖ over layers (shared), or each of them.
        decay: What the loss has beside the answer: norm, Σ ‖δ_l‖ / ‖h_l‖² with the anchors' weight; or price,
            Σ ‖δ_l‖² / (kᵀC⁻¹k), the least disturbance that realises the shifts, by the paper's Eq. 3. Behind a norm
            the norm's ‖δ_l‖ and the clamp's are of the stream's change, and the price is over rms(u_l)².
        price: Weight of the price.

    Examples:
        >>> import jacobian_lab as jl
        >>> jl.CoordinationSettings()
        CoordinationSettings(weighting='equal', budget='shared', decay='norm', price=1.0)
    """

    weighting: Weighting = "equal"
    budget: Budget = "shared"
    decay: Decay = "norm"
    price: float = 1.0

    @property
    def needs_eases(self) -> bool:
        """True if the descent depends on kᵀC⁻¹k."""
        return self.weighting == "eased" or self.decay == "price"

    def shares(self, eases: Float[Tensor, "fact layer"]) -> Float[Tensor, "fact layer"]:
        """Step of each layer over the step of a single anchor; the squares add up to one.

        Args:
            eases: kᵀC⁻¹k of every fact and layer; for other weightings its shape alone matters.

        Returns:
            The shares.
        """
        weights = torch.ones_like(eases)
        if self.weighting == "front":
            weights *= torch.arange(eases.shape[1], 0, -1).to(eases)
        elif self.weighting == "eased":
            weights = eases.sqrt()
        return weights / torch.linalg.vector_norm(weights, dim=1, keepdim=True)


@dataclass(frozen=True, eq=False)
class CoordinatedShifts:
    """Optimised shifts of the decisive token at several layers, one set a fact.

    Attributes:
        layers: The layers, ascending.
        shifts: Write shifts δ_l, ``[fact, layer, d_model]``, in float32 or better; NaN where the loss was not finite.
        loss: The loss at the last pass.
        passes: How many passes were made.
    """

    layers: Layers
    shifts: Float[Tensor, "fact layer d_model"]
    loss: Float[Tensor, " fact"]
    passes: Int[Tensor, " fact"]


def optimize_anchors(
    rows: FactRows, layer: int, settings: AnchorSettings | None = None, progress: Progress | None = None
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
    descent = _Descent(settings.rows(rows), (layer,), settings)
    descent.run(progress)
    states = shifted_states(rows.model, rows.bare, layer, descent.shifts[:, 0])
    return Anchors(layer, states, descent.loss, descent.passes)


def coordinate_shifts(
    rows: FactRows,
    layers: Layers,
    settings: AnchorSettings | None = None,
    coordination: CoordinationSettings | None = None,
    eases: Float[Tensor, "fact layer"] | None = None,
    progress: Progress | None = None,
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

    Returns:
        The shifts, in the order of the facts.

    Examples:
        >>> import jacobian_lab as jl
        >>> rows = jl.fact_rows(jl.load_model(), jl.load_facts("builtin", "0:2"))
        >>> found = jl.coordinate_shifts(rows, (4, 6, 8), jl.AnchorSettings(steps=3))
        >>> found.shifts.shape, found.passes.tolist()
        (torch.Size([2, 3, 576]), [3, 3])
    """
    settings = settings or AnchorSettings.of(rows.model)
    descent = _Descent(settings.rows(rows), layers, settings, coordination, eases)
    descent.run(progress)
    return CoordinatedShifts(layers, descent.shifts, descent.loss, descent.passes)


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


class _Descent:
    """Adam on the shifts of every fact, one a layer, all facts in one batch, each leaving when it is done.

    Rows of fact f are ``f·contexts … f·contexts + contexts - 1``; whenever facts leave, all that
    belongs to a fact is selected by the same indices.
    """

    def __init__(
        self,
        rows: FactRows,
        layers: Layers,
        settings: AnchorSettings,
        coordination: CoordinationSettings | None = None,
        eases: Float[Tensor, "fact layer"] | None = None,
    ) -> None:
        model, first = rows.model, layers[0]
        contexts = [row for answered in rows.answered_contexts for row in answered]
        bare = decisive_states(model, rows.bare, list(layers))
        self.layers, self.settings, self.coordination = layers, settings, coordination or CoordinationSettings()
        self.model, self.writes = model, normed_writes(model, rows.bare, layers)
        self.start = bare.to(torch.promote_types(model.dtype, torch.float32))
        self.rows, self.kl_rows = freeze(model, contexts, [first]), freeze(model, rows.kl, [first])
        self.contexts = len(contexts) // len(self.start)
        self.norms = torch.linalg.vector_norm(self.start, dim=-1)
        self.eases = torch.ones_like(self.norms) if eases is None else eases.to(self.norms)
        if not self.eases.isfinite().all():
            raise InputError(
                "expected a positive definite C to weigh shifts by, got a singular one: give a longer corpus"
            )
        self.units = torch.ones_like(self.norms) if self.writes is None else rms(self.writes.to(self.start))
        self.shares = self.coordination.shares(self.eases) * self.units
        self.moves = [torch.zeros_like(row, requires_grad=True) for row in self.start]  # shifts over shares
        self.adam = torch.optim.Adam(self.moves, lr=settings.lr)
        self.reference: Tensor | None = None
        self.shifts = torch.full_like(self.start, math.nan)
        self.loss = torch.full_like(self.norms[:, 0], math.nan, dtype=torch.float64)
        self.passes = torch.zeros(len(self.start), dtype=torch.long, device=self.start.device)
        self.answered = torch.zeros_like(self.passes)  # passes in which the answer was the likeliest

    def run(self, progress: Progress | None) -> None:
        """Make passes until every fact is done."""
        active = torch.arange(len(self.start), device=self.start.device)
        for number in range(1, self.settings.steps + 1):
            losses = self._losses(active)
            value = losses.detach()
            self.loss[active], self.passes[active] = value, number
            finite = torch.isfinite(value)
            done = ~finite | (value < self.settings.stop_loss) | (number == self.settings.steps)
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
        outputs = self._outputs(self.rows, shifts.repeat_interleave(self.contexts, dim=0))
        nll = answer_nll(self.rows, outputs).view(-1, self.contexts).mean(1)
        if self.settings.likeliest is not None:
            self.answered[active] += answer_is_likeliest(self.rows, outputs).view(-1, self.contexts).all(1)
        kl_logits = self.kl_rows.model.head(self._outputs(self.kl_rows, shifts)[:, 0])
        kl_log_p = kl_logits.double().log_softmax(-1)
        if self.reference is None:  # the first pass is at shifts of 0
            self.reference = kl_log_p.detach()
        divergence = (kl_log_p.exp() * (kl_log_p - self.reference)).sum(-1)
        return nll + self.settings.kl_factor * divergence + self._decay(shifts, active)

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

        self.moves[fact].mul_(largest_scales(spent, limit, torch.ones_like(norms))[:, None])

    def _keep(self, stay: Int[Tensor, " stay"]) -> None:
        """Let the rows of facts that are done go."""
        assert self.reference is not None
        contexts = torch.arange(self.contexts, device=stay.device)
        self.rows = self.rows.select((stay[:, None] * self.contexts + contexts).flatten())
        self.kl_rows, self.reference = self.kl_rows.select(stay), self.reference[stay]
