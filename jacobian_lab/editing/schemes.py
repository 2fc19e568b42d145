"""Target schemes: which residual each layer is given, and the targets made of anchors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from jacobian_lab.errors import InputError
from jacobian_lab.maps.hooks import decisive_states
from jacobian_lab.maps.replay import Frozen, freeze_groups, replay
from jacobian_lab.model.language_model import Layers
from jacobian_lab.model.rows import FactRows

Kind = Literal["optimised", "replayed", "coordinated"]
OPTIMISED: Kind = "optimised"
REPLAYED: Kind = "replayed"
COORDINATED: Kind = "coordinated"
DAMPING = 0.01
"""μ of the scheme ``jacobian-pullback`` unless told otherwise."""


@dataclass(frozen=True)
class Scheme:
    """Target scheme: the residual of each layer in the loop (methods.md §4).

    Attributes:
        edits: Which of the decisive layers are edited: all, the last, or both ends.
        reads: At which layer the hidden state is read, and compared with its target, when a layer is edited: at the
            last one, or at its own.
        divides: Whether a layer gets its share alone of the residual that it reads: one over the layers that are left.
        kind: Whose target at the last layer is the scheme's own: optimised there, replayed from the anchor at the
            first layer, or replayed with shifts at all of them.
        pulls_back: Whether a layer's shift is solved from J_{l→L} (`damped_pullback`) instead of being the residual.
    """

    edits: Literal["all", "last", "ends"]
    reads: Literal["last", "own"]
    divides: bool
    kind: Kind
    pulls_back: bool = False

    def edited(self, layers: Layers) -> Layers:
        """The layers that are edited.

        Args:
            layers: The decisive layers, ascending.

        Returns:
            Those of them.
        """
        if self.edits == "all":
            return layers
        return layers[-1:] if self.edits == "last" or len(layers) == 1 else (layers[0], layers[-1])

    def read(self, layers: Layers, index: int) -> int:
        """Layer where the residual is read.

        Args:
            layers: The edited layers.
            index: Which of them is edited now.

        Returns:
            The layer.
        """
        return layers[-1] if self.reads == "last" else layers[index]

    def divisor(self, index: int, count: int) -> int:
        """Divisor of the residual.

        Args:
            index: Which of the edited layers is edited now.
            count: How many there are.

        Returns:
            The number of layers that are left, or 1.
        """
        return count - index if self.divides else 1


SchemeName = Literal[
    "backward-dividing",
    "backward-full",
    "one-layer",
    "independent",
    "forward-replay",
    "coordinated-replay",
    "jacobian-pullback",
]
SCHEMES: dict[str, Scheme] = {
    "backward-dividing": Scheme("all", "last", divides=True, kind="optimised"),
    "backward-full": Scheme("all", "last", divides=False, kind="optimised"),
    "one-layer": Scheme("last", "last", divides=False, kind="optimised"),
    "independent": Scheme("ends", "own", divides=False, kind="optimised"),
    "forward-replay": Scheme("all", "own", divides=False, kind="replayed"),
    "coordinated-replay": Scheme("all", "own", divides=False, kind="coordinated"),
    "jacobian-pullback": Scheme("all", "last", divides=True, kind="optimised", pulls_back=True),
}
"""Any scheme goes with any update rule of `jacobian_lab.editing.rules`."""


def damped_pullback(
    J: Float[Tensor, "fact d_model d_model"], residuals: Float[Tensor, "fact d_model"], damping: float
) -> Float[Tensor, "fact d_model"]:
    """The shift at a layer that J carries nearest to a residual: argmin ‖J δ − r‖² + μ‖δ‖².

    Args:
        J: J_{l→L} of each fact.
        residuals: r, what the layer is to contribute at L.
        damping: μ, above zero; the larger, the shorter the shift and the nearer its direction to Jᵀr.

    Returns:
        (JᵀJ + μI)⁻¹ Jᵀ r of each fact.
    """
    normal = J.mT @ J + damping * torch.eye(J.shape[-1], dtype=J.dtype, device=J.device)
    right = (J.mT @ residuals[..., None]).to(normal.dtype)
    return torch.cholesky_solve(right, torch.linalg.cholesky(normal))[..., 0]


@dataclass(frozen=True, eq=False)
class Targets:
    """Target states for one set of decisive layers, of every kind that was made.

    Attributes:
        layers: The decisive layers.
        optimised: Anchors at the first and at the last layer, by layer, ``[fact, d_model]``.
        replayed: The first anchor replayed to every layer, by layer, ``[fact, d_model]``.
        coordinated: What coordinated shifts make of every layer, by layer, ``[fact, d_model]``; empty without shifts.
    """

    layers: Layers
    optimised: Mapping[int, Float[Tensor, "fact d_model"]]
    replayed: Mapping[int, Float[Tensor, "fact d_model"]]
    coordinated: Mapping[int, Float[Tensor, "fact d_model"]] = field(default_factory=dict)

    def of(self, kind: Kind, layer: int) -> Float[Tensor, "fact d_model"]:
        """m_l of one kind.

        Args:
            kind: Which.
            layer: The layer; optimised targets exist at the first and the last only.

        Returns:
            The targets.

        Raises:
            InputError: If there are none of this kind.
        """
        by_layer: Mapping[int, Float[Tensor, "fact d_model"]] = getattr(self, kind)
        if not by_layer:
            raise InputError(f"expected targets of the kind {kind}, got none: give make_targets the shifts")
        return by_layer[layer]

    def finite(self, kind: Kind = OPTIMISED) -> Bool[Tensor, " fact"]:
        """Facts all of whose optimised and replayed targets are finite, so that all schemes of these edit the same.

        Args:
            kind: The scheme's own kind; coordinated targets, which there need not be, count for no other.

        Returns:
            Whether each is.
        """
        every = [*self.optimised.values(), *self.replayed.values()]
        every += self.coordinated.values() if kind == COORDINATED else ()
        return torch.stack([torch.isfinite(states).all(-1) for states in every]).all(0)

    def usable(self, kind: Kind = OPTIMISED) -> Bool[Tensor, " fact"]:
        """Facts that take part in a solve: those whose targets are finite.

        Args:
            kind: The scheme's own kind.

        Returns:
            Whether each does.

        Raises:
            InputError: If none does.
        """
        usable = self.finite(kind)
        if not usable.any():
            raise InputError("expected at least one fact with a finite anchor, got none: lower ⟨anchor.lr⟩")
        return usable

    def select(self, facts: Sequence[int]) -> "Targets":
        """Targets of some of the facts.

        Args:
            facts: Their indices.

        Returns:
            These targets.
        """
        indices = list(facts)
        kinds = (self.optimised, self.replayed, self.coordinated)
        return Targets(self.layers, *({layer: states[indices] for layer, states in kind.items()} for kind in kinds))


@torch.no_grad()
def replay_targets(
    rows: FactRows,
    anchors: Float[Tensor, "fact d_model"],
    layers: Layers,
    shifts: Float[Tensor, "fact layer d_model"] | None = None,
) -> Float[Tensor, "fact layer d_model"]:
    """Forward replay: what an anchor becomes at the layers above (methods.md §4).

    Args:
        rows: The facts, of the unedited model.
        anchors: Their anchors at the first of the layers.
        layers: The decisive layers, ascending.
        shifts: For coordinated replay, what is added behind each of the layers; those at the first are in the anchors.

    Returns:
        Targets in the order of `layers`; the first are the anchors themselves.
    """
    frozen = freeze_groups(rows.model, rows.bare, layers[:1], layers[-1])
    shifts = anchors.new_zeros(*anchors.shape[:1], len(layers), anchors.shape[1]) if shifts is None else shifts

    def along(group: Frozen, states: Tensor, added: Tensor) -> Tensor:
        above = dict(zip(layers[1:], added[:, 1:].unbind(1), strict=True))
        return replay(group, layers[0], states, layers, above)

    replayed = frozen.ask(along, anchors, shifts)
    return torch.cat([anchors[:, None], replayed[:, 1:].to(anchors.dtype)], dim=1)


def make_targets(
    rows: FactRows,
    layers: Layers,
    anchors: Mapping[int, Float[Tensor, "fact d_model"]],
    shifts: Float[Tensor, "fact layer d_model"] | None = None,
) -> Targets:
    """Targets of every kind from the anchors at the first and at the last decisive layer, and from shifts at all.

    Args:
        rows: The facts, of the unedited model.
        layers: The decisive layers, ascending.
        anchors: Anchors by layer.
        shifts: Coordinated shifts, if there are.

    Returns:
        The targets.

    Examples:
        >>> import jacobian_lab as jl
        >>> rows = jl.fact_rows(jl.load_model(), jl.load_facts("builtin", "0:2"))
        >>> anchors = {layer: jl.optimize_anchors(rows, layer, jl.AnchorSettings(steps=2)).states for layer in (4, 8)}
        >>> targets = jl.make_targets(rows, (4, 6, 8), anchors)
        >>> targets.of("replayed", 6).shape
        torch.Size([2, 576])
    """
    replayed = replay_targets(rows, anchors[layers[0]], layers)
    coordinated = {}
    if shifts is not None:
        first = decisive_states(rows.model, rows.bare, [layers[0]])[:, 0].to(shifts.dtype) + shifts[:, 0]
        coordinated = dict(zip(layers, replay_targets(rows, first, layers, shifts).unbind(1), strict=True))
    return Targets(layers, anchors, dict(zip(layers, replayed.unbind(1), strict=True)), coordinated)
