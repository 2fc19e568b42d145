"""Target schemes: which residual each layer is given, and the targets made of anchors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from jacobian_lab.catalogue import COORDINATED, OPTIMISED, REPLAYED, SEPARATE, Kind
from jacobian_lab.errors import InputError
from jacobian_lab.maps.replay import Frozen, freeze_groups, replay
from jacobian_lab.maps.writes import shifted_states
from jacobian_lab.model.language_model import Layers
from jacobian_lab.model.rows import FactRows

NONE: Mapping[Kind, Tensor] = {}
DAMPING = 0.01
"""μ of the scheme ``jacobian-pullback`` unless told otherwise."""


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
        separate: Anchors at every layer, by layer, ``[fact, d_model]``; empty without those between the ends.
        restarted: The best of several first anchors replayed, by layer, ``[fact, d_model]``; empty without.
        joint: The first anchor that is drawn to the last one, replayed, ``[fact, d_model]``; empty without.
    """

    layers: Layers
    optimised: Mapping[int, Float[Tensor, "fact d_model"]]
    replayed: Mapping[int, Float[Tensor, "fact d_model"]]
    coordinated: Mapping[int, Float[Tensor, "fact d_model"]] = field(default_factory=dict)
    separate: Mapping[int, Float[Tensor, "fact d_model"]] = field(default_factory=dict)
    restarted: Mapping[int, Float[Tensor, "fact d_model"]] = field(default_factory=dict)
    joint: Mapping[int, Float[Tensor, "fact d_model"]] = field(default_factory=dict)

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
            raise InputError(f"expected targets of the kind {kind}, got none: give make_targets its descent")
        return by_layer[layer]

    def finite(self, kind: Kind = OPTIMISED) -> Bool[Tensor, " fact"]:
        """Facts all of whose optimised and replayed targets are finite, so that all schemes of these edit the same.

        Args:
            kind: The scheme's own kind; targets that there need not be count for no other.

        Returns:
            Whether each is.
        """
        every = [*self.optimised.values(), *self.replayed.values()]
        every += getattr(self, kind).values() if kind not in {OPTIMISED, REPLAYED} else ()
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
        kinds = (getattr(self, item.name) for item in fields(self)[1:])
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
        shifts: For coordinated replay, the write shifts at each of the layers; those at the first are in the anchors.

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
    inner: Mapping[int, Float[Tensor, "fact d_model"]] | None = None,
    firsts: Mapping[Kind, Float[Tensor, "fact d_model"]] = NONE,
) -> Targets:
    """Targets of every kind from the anchors at the first and at the last decisive layer, and from shifts at all.

    Args:
        rows: The facts, of the unedited model.
        layers: The decisive layers, ascending.
        anchors: Anchors by layer; without one at the first layer nothing is replayed from it.
        shifts: Coordinated shifts, if there are.
        inner: Anchors at the layers between, by layer, if there are.
        firsts: Further anchors at the first layer, which are replayed, by kind.

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

    def replayed(
        first: Float[Tensor, "fact d_model"], shifts: Float[Tensor, "fact layer d_model"] | None = None
    ) -> dict[int, Float[Tensor, "fact d_model"]]:
        return dict(zip(layers, replay_targets(rows, first, layers, shifts).unbind(1), strict=True))

    further = {kind: replayed(first) for kind, first in firsts.items()}
    if shifts is not None:
        further[COORDINATED] = replayed(shifted_states(rows.model, rows.bare, layers[0], shifts[:, 0]), shifts)
    if inner is not None:
        further[SEPARATE] = {layer: ({**inner, **anchors})[layer] for layer in layers}
    first = anchors.get(layers[0])
    return Targets(layers, anchors, {} if first is None else replayed(first), **further)
