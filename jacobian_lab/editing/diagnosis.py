"""Quantities of facts before their edit: keys beside one another, shares that a solve realises, and J along shifts."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from jacobian_lab.catalogue import Scheme
from jacobian_lab.editing.layers import KeyWalk, Setting
from jacobian_lab.editing.measures import norms
from jacobian_lab.editing.reachable import reachable_changes
from jacobian_lab.editing.residuals import assigned_residuals
from jacobian_lab.editing.schemes import Targets
from jacobian_lab.editing.solving import advice, factored
from jacobian_lab.maps.conditions import cosine, rayleigh_quotient
from jacobian_lab.maps.jacobians import jvp

KEYS_AT_ONCE = 1024
NEAREST = 3
"""Other facts that are listed with the cosines of their keys."""


@dataclass(frozen=True, eq=False)
class NearKeys:
    """The other facts whose keys are nearest, those with the largest cosine first.

    Attributes:
        cosines: Cosines of the keys, ``[fact, near]``; fewer columns where there are fewer other facts.
        facts: Indices of these facts.
    """

    cosines: Float[Tensor, "fact near"]
    facts: Int[Tensor, "fact near"]

    @property
    def largest(self) -> Float[Tensor, " fact"]:
        """The largest cosine of each fact; NaN where there is no other fact."""
        missing = self.cosines.new_full((len(self.cosines), 1), torch.nan)
        return torch.cat([self.cosines, missing], dim=1)[:, 0]


def nearest_keys(keys: Float[Tensor, "fact d_mlp"], count: int = NEAREST) -> NearKeys:
    """Find the other facts whose keys point the same way.

    Args:
        keys: Keys of all facts; or L⁻¹k with C = L Lᵀ, for cosines in the metric of C⁻¹.
        count: Facts to be listed at the most.

    Returns:
        These facts and the cosines.
    """
    directions = keys / norms(keys)[:, None]
    count, parts = min(count, len(keys) - 1), []
    for start in range(0, len(keys), KEYS_AT_ONCE):
        cosines = directions[start : start + KEYS_AT_ONCE] @ directions.T
        own = torch.arange(len(cosines), device=keys.device)
        cosines[own, own + start] = -torch.inf
        parts.append(cosines.topk(count, dim=1))
    return NearKeys(torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts]))


def solved_shares(
    whitened: Float[Tensor, "fact d_mlp"], ridge: float, name: str = "λI + KᵀC⁻¹K", hint: str = "raise ⟨ridge⟩"
) -> Float[Tensor, "fact other"]:
    """Share of every other fact's change that a joint solve gives to each fact: H = Kᵀ(λC + KKᵀ)⁻¹K.

    MEMIT's ΔW = R Kᵀ(λC + KKᵀ)⁻¹ changes the writes at the keys K by R H. With G = KᵀC⁻¹K it is (λI + G)⁻¹G, which is
    as wide as there are facts.

    Args:
        whitened: L⁻¹k of each fact, with C = L Lᵀ.
        ridge: λ.
        name: What is factored, for the message.
        hint: What to do if it is singular.

    Returns:
        H, symmetric; on its diagonal the share that a fact realises of its own change.

    Raises:
        InputError: If λI + G is singular.
    """
    gram = whitened @ whitened.T
    weighted = gram + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return factored(weighted, name, hint).solve(gram)


@dataclass(frozen=True, eq=False)
class LayerDiagnosis:
    """Quantities of one layer before anything is edited.

    Attributes:
        layer: The layer.
        values: A number of each fact by its name, ``[fact]``, in float64; NaN where it is not defined.
        near: The nearest keys by their cosine.
    """

    layer: int
    values: dict[str, Float[Tensor, " fact"]]
    near: NearKeys


@torch.no_grad()
def diagnosed_layers(setting: Setting, scheme: Scheme, targets: Targets) -> Iterator[LayerDiagnosis]:
    """Diagnose a joint edit by a scheme with MEMIT's rule, layer by layer, on the unedited model.

    Residuals are those that the scheme would give to a layer if no layer before were edited. δ is such a residual.

    - ``ease``: kᵀC⁻¹k.
    - ``key_cosine``, ``key_cosine_whitened``: largest cosine with another fact's key, plain and in the metric of C⁻¹.
    - ``alone``: kᵀC⁻¹k / (λ + kᵀC⁻¹k), the share of δ that a solve for this fact by itself realises.
    - ``together``: the diagonal of H, the same in the joint solve (`solved_shares`).
    - ``realised``: ⟨R H, R⟩ / ‖R‖² of the fact's change, what the others' solutions give to its key included.
    - ``crosstalk``: norm of what they give, over ‖R‖.
    - ``out_of_reach``: share of δ beyond the norm behind the MLP (`reachable_changes`); 0 without a norm.
    - ``residual_cosine``: cos(Jδ, m_L − h_L), with the scheme's own target m_L.
    - ``rayleigh``: δᵀJδ / δᵀδ, the place of δ in the numerical range of J.

    Args:
        setting: What the edit would be made with.
        scheme: The scheme.
        targets: The targets, of the unedited model.

    Yields:
        Every layer that the scheme edits.

    Raises:
        InputError: If no fact has a finite target, C is singular, or λI + KᵀC⁻¹K is.
    """
    model, rows, last = setting.model, setting.rows, targets.layers[-1]
    layers, usable = scheme.edited(targets.layers), targets.usable(scheme.kind)
    walk = KeyWalk(rows, layers, setting.executor)
    for index, layer in enumerate(layers):
        keys, factor = walk.keys(layer), setting.cholesky(layer)
        whitened = torch.linalg.solve_triangular(factor.to(keys.device), keys.T, upper=False).T
        near, ease = nearest_keys(keys), (whitened**2).sum(-1)
        residuals = assigned_residuals(rows, scheme, targets, index, setting.damping)
        frozen, delta = residuals.frozen, residuals.assigned
        changes, out_of_reach = reachable_changes(model, layer, frozen.writes(layer), delta)
        name = f"λI + KᵀC⁻¹K at layer {layer}"
        shares = solved_shares(whitened[usable], setting.ridge, name, advice(setting.moments[layer], setting.ridge))
        own, aims = shares.diagonal(), changes[usable]
        realised = ((shares @ aims) * aims).sum(-1) / (aims**2).sum(-1)
        crosstalk = norms(shares @ aims - own[:, None] * aims) / norms(aims)
        linear = frozen.ask(lambda part, delta: jvp(part, layer, last, delta), delta).double()  # noqa: B023
        target = targets.of(scheme.kind, last).double() - frozen.states(last).double()
        values = {
            "ease": ease,
            "key_cosine": near.largest,
            "key_cosine_whitened": nearest_keys(whitened, 1).largest,
            "alone": ease / (setting.ridge + ease),
            "together": _spread(own, usable),
            "realised": _spread(realised, usable),
            "crosstalk": _spread(crosstalk, usable),
            "out_of_reach": torch.where(usable, out_of_reach, torch.nan),
            "residual_cosine": cosine(linear, target),
            "rayleigh": rayleigh_quotient(delta, linear),
        }
        yield LayerDiagnosis(layer, values, near)


def _spread(values: Float[Tensor, " usable"], usable: Tensor) -> Float[Tensor, " fact"]:
    """Put values of the usable facts at their places, NaN elsewhere."""
    whole = values.new_full((len(usable),), torch.nan)
    whole[usable] = values
    return whole
