"""Target schemes: which residual each layer is given, and the targets made of anchors."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from jacobian_lab.errors import InputError
from jacobian_lab.facts.fact import Fact
from jacobian_lab.maps.replay import freeze_groups, replay
from jacobian_lab.model.language_model import LanguageModel, Layers


@dataclass(frozen=True)
class Scheme:
    """How targets are made of anchors: two answers for the loop over layers (methods.md §4).

    Attributes:
        edited: Which of the decisive layers are edited.
        read: At which layer the hidden state is read, and compared with its target, when the i-th
            of the edited layers is edited.
        divisor: What the residual read there is divided by before the i-th of m layers gets it.
        kind: Whose target at the last layer is the scheme's own: ``"optimised"`` there, or ``"replayed"``.
        damping: μ of `damped_pullback`, for schemes that solve a layer's shift from J_{l→L} instead
            of copying the residual.
    """

    edited: Callable[[Layers], Layers]
    read: Callable[[Layers, int], int]
    divisor: Callable[[int, int], int]
    kind: str
    damping: float | None = None


def _all(layers: Layers) -> Layers:
    return layers


def _last(layers: Layers) -> Layers:
    return layers[-1:]


def _ends(layers: Layers) -> Layers:
    return layers if len(layers) == 1 else (layers[0], layers[-1])


def _at_last(layers: Layers, index: int) -> int:
    return layers[-1]


def _at_own(layers: Layers, index: int) -> int:
    return layers[index]


def _undivided(index: int, count: int) -> int:
    return 1


def _remaining(index: int, count: int) -> int:
    return count - index


OPTIMISED, REPLAYED = "optimised", "replayed"
DAMPING = 0.01
"""μ of the scheme ``jacobian-pullback`` unless told otherwise."""

SCHEMES: dict[str, Scheme] = {
    "backward-dividing": Scheme(_all, _at_last, _remaining, OPTIMISED),
    "backward-full": Scheme(_all, _at_last, _undivided, OPTIMISED),
    "one-layer": Scheme(_last, _at_last, _undivided, OPTIMISED),
    "independent": Scheme(_ends, _at_own, _undivided, OPTIMISED),
    "forward-replay": Scheme(_all, _at_own, _undivided, REPLAYED),
    "jacobian-pullback": Scheme(_all, _at_last, _remaining, OPTIMISED, DAMPING),
}
"""Any scheme goes with any update rule of `jacobian_lab.editing.layers`."""


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
    """Target states for one set of decisive layers, of both kinds.

    Attributes:
        layers: The decisive layers.
        optimised: Anchors at the first and at the last layer, by layer, ``[fact, d_model]``.
        replayed: The first anchor replayed to every layer, by layer, ``[fact, d_model]``.
    """

    layers: Layers
    optimised: dict[int, Float[Tensor, "fact d_model"]]
    replayed: dict[int, Float[Tensor, "fact d_model"]]

    def of(self, kind: str, layer: int) -> Float[Tensor, "fact d_model"]:
        """m_l of one kind.

        Args:
            kind: ``"optimised"`` or ``"replayed"``.
            layer: The layer; optimised targets exist at the first and the last only.

        Returns:
            The targets.
        """
        return (self.optimised if kind == OPTIMISED else self.replayed)[layer]

    def finite(self) -> Bool[Tensor, " fact"]:
        """Facts all of whose targets are finite, whichever scheme needs them: all schemes edit the same facts."""
        every = [*self.optimised.values(), *self.replayed.values()]
        return torch.stack([torch.isfinite(states).all(-1) for states in every]).all(0)

    def usable(self) -> Bool[Tensor, " fact"]:
        """Which facts take part in a solve: those whose targets are finite.

        Returns:
            Whether each does.

        Raises:
            InputError: If none does.
        """
        usable = self.finite()
        if not usable.any():
            raise InputError("expected at least one fact with a finite anchor, got none: lower --anchor-lr")
        return usable

    def select(self, facts: Sequence[int]) -> "Targets":
        """Targets of some of the facts.

        Args:
            facts: Their indices.

        Returns:
            These targets.
        """
        chosen = list(facts)
        return Targets(
            self.layers,
            {layer: states[chosen] for layer, states in self.optimised.items()},
            {layer: states[chosen] for layer, states in self.replayed.items()},
        )


@torch.no_grad()
def replay_targets(
    model: LanguageModel, facts: Sequence[Fact], anchors: Float[Tensor, "fact d_model"], layers: Layers
) -> Float[Tensor, "layer fact d_model"]:
    """Forward replay: what an anchor becomes at the layers above (methods.md §4).

    Args:
        model: The model, unedited.
        facts: The facts.
        anchors: Their anchors at the first of the layers.
        layers: The decisive layers, ascending.

    Returns:
        Targets in the order of `layers`; the first are the anchors themselves.
    """
    rows = [model.fact_prompt(fact).cut() for fact in facts]
    frozen = freeze_groups(model, rows, layers[:1], layers[-1])
    by_row = frozen.ask(lambda group, states: replay(group, layers[0], states, layers).transpose(0, 1), anchors)
    return torch.cat([anchors[None], by_row.transpose(0, 1)[1:].to(anchors.dtype)])


def make_targets(
    model: LanguageModel, facts: Sequence[Fact], layers: Layers, anchors: Mapping[int, Float[Tensor, "fact d_model"]]
) -> Targets:
    """Targets of both kinds from the anchors at the first and at the last decisive layer.

    Args:
        model: The model, unedited.
        facts: The facts.
        layers: The decisive layers, ascending.
        anchors: Anchors by layer.

    Returns:
        The targets.
    """
    replayed = replay_targets(model, facts, anchors[layers[0]], layers)
    return Targets(layers, dict(anchors), dict(zip(layers, replayed, strict=True)))
