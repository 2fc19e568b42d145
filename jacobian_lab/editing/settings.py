"""Settings of descents, for anchors and for shifts at several layers at once."""

import math
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, Literal

import torch
from annotated_types import Gt
from jaxtyping import Float
from torch import Tensor

from jacobian_lab.errors import InputError
from jacobian_lab.model.language_model import LanguageModel, Layers
from jacobian_lab.model.rows import FactRows

LATER = {"later": True}
"""Metadata of a setting that joined when there were runs already: they were made with its default."""

Delivered = Literal["none", "random", "margin"]
MARGIN = 0.8
"""Share at which a margin asks for the answer, unless another is set."""


def usual(settings: Any) -> set[str]:
    """Names of later settings that are at their defaults, which runs do not keep.

    Args:
        settings: A dataclass of settings.

    Returns:
        The names.
    """
    later = (item for item in fields(settings) if item.metadata.get("later"))
    return {item.name for item in later if getattr(settings, item.name) == item.default}


def recorded(settings: Any) -> dict[str, Any]:
    """Settings as runs keep them, so that those of earlier versions compare equal.

    Args:
        settings: A dataclass of settings.

    Returns:
        Values by name, but none that is absent, and none of a later setting at its default.
    """
    values = {item.name: getattr(settings, item.name) for item in fields(settings)}
    return {name: value for name, value in values.items() if value is not None and name not in usual(settings)}


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
        delivered: Share of the shifts at which the answer and the KL term are taken: none, all of them; margin, a
            constant share, so that the descent goes on until the answer holds there; random, shares that are uniform
            between a least one and 1, for every pass and layer anew.
        delivered_share: The constant share, 0.8 by default; or the least of random ones, by default the measured mean
            share that the facts' keys in held-out contexts get of a shift.

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
    delivered: Delivered = field(default="none", metadata=LATER)
    delivered_share: float | None = None

    @property
    def needs_transfers(self) -> bool:
        """True if the descent depends on what of a shift arrives at held-out contexts."""
        return self.delivered == "random" and self.delivered_share is None

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


Weighting = Literal["equal", "front", "eased", "random", "transfer"]
Budget = Literal["shared", "each"]
Decay = Literal["norm", "price"]
Rate = Literal["root", "full", "divided"]
End = Literal["loss", "anchor"]
LEAST = 1e-6
"""Transfer that a layer is taken to have at the least."""
POWERS = {"root": 0.0, "full": 0.5, "divided": -0.5}
"""Power of the number of layers m that a rate lies above lr/√m."""


@dataclass(frozen=True)
class CoordinationSettings:
    """Shares of the decisive layers in a coordinated descent (methods.md §4).

    Attributes:
        weighting: How far a step moves each layer: equal; front, falling evenly from the first layer to the last;
            eased, as the root of kᵀC⁻¹k, which makes a layer's shift cheap; random, as a draw from all shares that add
            up to one; transfer, as a power of τ kᵀC⁻¹k, what arrives at held-out contexts over its price; or a number
            for each layer.
        budget: What the clamp bounds: the sum of ‖δ_l‖ / ‖h_l‖ over layers (shared), or each of them.
        decay: What the loss has beside the answer: norm, Σ ‖δ_l‖ / ‖h_l‖² with the anchors' weight; or price,
            Σ ‖δ_l‖² / (kᵀC⁻¹k), the least disturbance that realises the shifts, by the paper's Eq. 3. Behind a norm
            the norm's ‖δ_l‖ and the clamp's are of the stream's change, and the price is over rms(u_l)².
        price: Weight of the price.
        rate: Learning rate of each of m layers whose weights are equal: lr/√m (root), lr (full) or lr/m (divided).
        end: What ends a fact's descent before its passes do: the loss that ends an anchor's (loss), or the one at which
            its own anchor at the first layer ended (anchor).
        draw: Number of the draw of random weights, the same for all facts.
        power: Power of the weighting transfer: at 0 the weights are equal, at large ones all is at the best layer.

    Examples:
        >>> import jacobian_lab as jl
        >>> jl.CoordinationSettings(weighting=(2.0, 1.0, 1.0))
        CoordinationSettings(weighting=(2.0, 1.0, 1.0), budget='shared', decay='norm', price=1.0, rate='root',
        end='loss', draw=0, power=1.0)
    """

    weighting: Weighting | tuple[float, ...] = "equal"
    budget: Budget = "shared"
    decay: Decay = "norm"
    price: float = 1.0
    rate: Rate = field(default="root", metadata=LATER)
    end: End = field(default="loss", metadata=LATER)
    draw: Annotated[int, Gt(-1)] = field(default=0, metadata=LATER)
    power: float = field(default=1.0, metadata=LATER)

    @property
    def needs_eases(self) -> bool:
        """True if the descent depends on kᵀC⁻¹k."""
        return self.weighting in {"eased", "transfer"} or self.decay == "price"

    @property
    def needs_transfers(self) -> bool:
        """True if the descent depends on what of a shift arrives at held-out contexts."""
        return self.weighting == "transfer"

    def check(self, layers: Layers) -> None:
        """Refuse weights that are not those of some layers.

        Args:
            layers: The layers.

        Raises:
            InputError: If there are not as many, one is negative or not finite, or all are zero.
        """
        if isinstance(self.weighting, str):
            return
        usable = all(math.isfinite(weight) and weight >= 0 for weight in self.weighting) and any(self.weighting)
        if len(self.weighting) != len(layers) or not usable:
            numbers = ", ".join(f"{weight:g}" for weight in self.weighting)
            raise InputError(
                f"expected {len(layers)} weights, one for each of the layers {', '.join(map(str, layers))}, none "
                f"negative and one above zero, got ⟨coordination.weighting⟩ {numbers}: give others"
            )

    def shares(
        self, eases: Float[Tensor, "fact layer"], transfers: Float[Tensor, "fact layer"] | None = None
    ) -> Float[Tensor, "fact layer"]:
        """Step of each layer over the step of a single anchor; the squares add up to one at the rate lr/√m.

        Args:
            eases: kᵀC⁻¹k of every fact and layer; for other weightings its shape alone matters.
            transfers: Mean share τ of a shift that arrives at held-out contexts, for the weighting of that name.

        Returns:
            The shares.
        """
        weights = self._weights(eases, transfers)
        shares = weights / torch.linalg.vector_norm(weights, dim=1, keepdim=True)
        return shares * eases.shape[1] ** POWERS[self.rate]

    def _weights(
        self, eases: Float[Tensor, "fact layer"], transfers: Float[Tensor, "fact layer"] | None
    ) -> Float[Tensor, "fact layer"]:
        count = eases.shape[1]
        if not isinstance(self.weighting, str):
            return eases.new_tensor(self.weighting).expand_as(eases)
        if self.weighting == "transfer":
            if transfers is None:
                raise InputError("expected transfers for the weighting of that name, got none: see Setting.transfers")
            worth = transfers.clamp(min=LEAST).to(eases) * eases
            return (worth / worth.amax(1, keepdim=True)) ** self.power
        if self.weighting == "front":
            return torch.arange(count, 0, -1).to(eases).expand_as(eases)
        if self.weighting == "random":
            return random_shares(count, self.draw).to(eases).expand_as(eases)
        return eases.sqrt() if self.weighting == "eased" else torch.ones_like(eases)


@dataclass(frozen=True)
class ReplaySettings:
    """Settings of forward replay's controls, the schemes forward-replay-restarted and forward-replay-joint.

    Attributes:
        starts: Descents of the first anchor, each from its own random shift; the one that ends at the least loss is
            replayed. Five have as many parameters as coordinated replay at five layers.
        size: Norm of these shifts over that of what they shift, the state h_0 or, behind a norm, the write u.
        joint: Weight of ‖h_L − m_L‖² / ‖m_L‖² in the loss of the joint anchor, h_L the replayed state and m_L the
            anchor at the last decisive layer.

    Examples:
        >>> import jacobian_lab as jl
        >>> jl.ReplaySettings(starts=3)
        ReplaySettings(starts=3, size=0.05, joint=1.0)
    """

    starts: Annotated[int, Gt(0)] = field(default=5, metadata=LATER)
    size: float = field(default=0.05, metadata=LATER)
    joint: float = field(default=1.0, metadata=LATER)


def random_shares(count: int, draw: int) -> Float[Tensor, " layer"]:
    """Draw shares that add up to one, all as likely (Dirichlet's distribution with all parameters 1).

    Args:
        count: Number of shares.
        draw: Number of the draw.

    Returns:
        The shares, in float64.
    """
    generator = torch.Generator().manual_seed(draw)
    waits = torch.empty(count, dtype=torch.float64).exponential_(generator=generator)
    return waits / waits.sum()
