"""What one pass of the loop over layers saw, and the quantities of Tables 1, 2 and 5 made of it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from jacobian_lab.editing.layers import bare_prompts, edit_layers
from jacobian_lab.editing.rules import Rule, memit
from jacobian_lab.editing.schemes import Scheme, Targets
from jacobian_lab.facts.fact import Fact
from jacobian_lab.maps.conditions import cosine, eigen_residual, gain, rayleigh_quotient
from jacobian_lab.maps.hooks import decisive_states
from jacobian_lab.maps.jacobians import jvp
from jacobian_lab.maps.replay import FrozenGroups, replay
from jacobian_lab.model.language_model import LanguageModel, Layers
from jacobian_lab.model.templates import Templates
from jacobian_lab.model.tokens import Prompt

NO_RESIDUAL = {torch.float64: 1e-5, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}
"""A residual below this share of the state's norm is zero to rounding: there is nothing to remain. In bfloat16 a state
differs by up to a hundredth of its norm from one batch to another."""


@dataclass(frozen=True, eq=False)
class EditRecord:
    """What one pass of the loop over layers saw; states are of the bare prompts' decisive tokens.

    Attributes:
        layers: The edited layers, ascending.
        residuals: What each layer was given, ``[layer, fact, d_model]``.
        wanted: The same before the scheme divided it.
        before: Hidden state of the edited layer just before its edit, ``[layer, fact, d_model]``.
        after: The same just after.
        last_before: Hidden state of the last decisive layer just before, ``[layer, fact, d_model]``.
        last_after: The same just after.
        linear: J·δ, with δ the layer's shift and J = J_{l→L} just before the edit, ``[layer, fact, d_model]``.
        replayed: F(h + δ) − F(h) by replay just before the edit: what δ does alone, ``[layer, fact, d_model]``.
        update_norm: ‖ΔW‖ / ‖W‖ in the Frobenius norm, ``[layer]``.
        condition: Condition number of the solve, ``[layer]``.
        unstored: Share of ΔW that the weight's dtype did not take, in the Frobenius norm, ``[layer]``.
        dtype: The model's, which says what is rounding.
    """

    layers: Layers
    residuals: Float[Tensor, "layer fact d_model"]
    wanted: Float[Tensor, "layer fact d_model"]
    before: Float[Tensor, "layer fact d_model"]
    after: Float[Tensor, "layer fact d_model"]
    last_before: Float[Tensor, "layer fact d_model"]
    last_after: Float[Tensor, "layer fact d_model"]
    linear: Float[Tensor, "layer fact d_model"]
    replayed: Float[Tensor, "layer fact d_model"]
    update_norm: Float[Tensor, " layer"]
    condition: Float[Tensor, " layer"]
    unstored: Float[Tensor, " layer"]
    dtype: torch.dtype


@dataclass(frozen=True, eq=False)
class LayerEdit:
    """One layer's edit, for those who look on: all that replay needs to ask what else might have been.

    Attributes:
        layer: The layer l.
        last: The last decisive layer L.
        frozen: The facts' bare prompts, frozen just before the edit, from l to L.
        residual: m_L − h_L just before the edit, against the scheme's own target, ``[fact, d_model]``.
        shift: δ, the realised change of h_l, ``[fact, d_model]``.
        linear: J·δ, ``[fact, d_model]``.
    """

    layer: int
    last: int
    frozen: FrozenGroups
    residual: Float[Tensor, "fact d_model"]
    shift: Float[Tensor, "fact d_model"]
    linear: Float[Tensor, "fact d_model"]


@torch.no_grad()
def apply_edit(
    model: LanguageModel,
    facts: Sequence[Fact],
    scheme: Scheme,
    targets: Targets,
    templates: Templates,
    second_moments: Mapping[int, Float[Tensor, "d_mlp d_mlp"]],
    ridge: float,
    rule: Rule = memit,
    inspect: Callable[[LayerEdit], None] | None = None,
) -> EditRecord:
    """Edit as `edit_layers` does, and observe what every layer's edit did (use within `restored`).

    Args:
        model: The model.
        facts: The facts.
        scheme: Which residual each layer is given.
        targets: The targets, of the unedited model.
        templates: Context templates that keys are averaged over.
        second_moments: C_l of each layer.
        ridge: λ.
        rule: What is done with keys and residuals.
        inspect: Shown every layer's edit just after it.

    Returns:
        What was seen.

    Raises:
        InputError: If no fact has a finite target, or a solve is singular.
    """
    last, bare, seen = targets.layers[-1], bare_prompts(model, facts), []
    for edit in edit_layers(model, facts, scheme, targets, templates, second_moments, ridge, rule):
        states = _observe(model, bare, edit.frozen, edit.layer, last)
        condition = edit.wanted.new_tensor(edit.update.condition)
        seen.append({"wanted": edit.wanted, "residuals": edit.given, **states, "condition": condition, **edit.stored})
        if inspect is not None:
            residual = targets.of(scheme.kind, last).double() - states["last_before"]
            shift = states["after"] - states["before"]
            inspect(LayerEdit(edit.layer, last, edit.frozen, residual, shift, states["linear"]))
    layers = scheme.edited(targets.layers)
    return EditRecord(layers, **{name: torch.stack([at[name] for at in seen]) for name in seen[0]}, dtype=model.dtype)


def _observe(
    model: LanguageModel, bare: Sequence[Prompt], frozen: FrozenGroups, layer: int, last: int
) -> dict[str, Float[Tensor, "fact d_model"]]:
    """States before and after a layer's edit, and what replay before it makes of the shift alone, in float64."""
    after, last_after = decisive_states(model, bare, [layer, last])
    before = frozen.states(layer)
    shift = after.double() - before.double()
    ends = [  # F(h) by replay too, though it is known: so the rounding of both is the same
        frozen.ask(lambda rows, states: replay(rows, layer, states, [last])[0], states).double()
        for states in (after, before)
    ]
    return {
        "before": before.double(),
        "after": after.double(),
        "last_before": frozen.states(last).double(),
        "last_after": last_after.double(),
        "linear": frozen.ask(lambda rows, delta: jvp(rows, layer, last, delta), shift).double(),
        "replayed": ends[0] - ends[1],
    }


def measure(record: EditRecord, targets: Targets, scheme: Scheme) -> dict[str, Float[Tensor, "..."]]:
    """The quantities of Tables 1, 2 and 5, and the exact split of each passive shift (methods.md §7).

    δ_L^l = J·δ + curvature + leakage: what the linear map makes of the layer's shift, what replaying
    the shift adds to that, and what the changed keys and values of the other tokens add. With R' the
    residual that the layer leaves and R the one that it found, R' = R − J·δ − curvature − leakage; the
    share of a term x in what is left is its part of R' along R', ⟨±x, R'⟩ / ‖R'‖², and the four add up to 1.

    Args:
        record: What the loop saw.
        targets: The targets, of both kinds.
        scheme: The scheme; its own target at the last layer is the one of its kind.

    Returns:
        Arrays ``[fact, layer]`` over the edited layers, but those of the weights, ``[layer]``; those
        with ``_against_`` in their name are taken against that kind of target. NaN for facts without
        a finite target, and for ratios to a residual that was zero, to the rounding of the model's dtype, from the
        beginning.
    """
    last, initial = targets.layers[-1], record.last_before[0]
    shift, passive = record.after - record.before, record.last_after - record.last_before
    values = {
        "cosine": torch.cosine_similarity(shift, passive, dim=-1),
        "unrealised": norms(record.wanted - shift) / norms(record.wanted),
        "realised": (shift * record.residuals).sum(-1) / (record.residuals**2).sum(-1),
        "shift_norm": norms(shift),
        "passive_shift_norm": norms(passive),
        "rayleigh": rayleigh_quotient(shift, record.linear),
        "eigen_residual": eigen_residual(shift, record.linear),
        "linear_cosine": cosine(shift, record.linear),
        "gain": gain(shift, record.linear),
    }
    found = targets.of(scheme.kind, last).double() - record.last_before
    left = found - passive
    values["share_initial"] = (found * left).sum(-1) / (left**2).sum(-1)
    for name, term in _split(record, passive).items():
        values[f"{name}_norm"] = norms(term)
        values[f"{name}_residual_cosine"] = torch.cosine_similarity(term, found, dim=-1)
        values[f"share_{name}"] = -(term * left).sum(-1) / (left**2).sum(-1)
    for kind in ("optimised", "replayed"):
        target = targets.of(kind, last).double()
        values[f"residual_norm_against_{kind}"] = norms(target - record.last_after)
        start = norms(target - initial)
        start[start <= NO_RESIDUAL[record.dtype] * norms(initial)] = math.nan
        values[f"residual_ratio_against_{kind}"] = norms(target - record.last_after) / start
    values["residual_ratio"] = values[f"residual_ratio_against_{scheme.kind}"]
    values["residual_norm"] = values[f"residual_norm_against_{scheme.kind}"]
    for name in _OF_RESIDUAL:
        values[name] = torch.where(values["residual_ratio"].isnan(), math.nan, values[name])
    usable = targets.finite()[:, None]
    by_fact = {name: torch.where(usable, value.T, math.nan) for name, value in values.items()}
    by_layer = {"update_norm": record.update_norm, "condition_number": record.condition, "unstored": record.unstored}
    return by_fact | by_layer


_OF_RESIDUAL = (
    "unrealised",
    "realised",
    "share_initial",
    *(name.format(term) for term in ("linear", "curvature", "leakage") for name in ("share_{}", "{}_residual_cosine")),
)
"""What says nothing of a fact that has no residual."""


def _split(record: EditRecord, passive: Float[Tensor, "layer fact d_model"]) -> dict[str, Tensor]:
    """The three terms of the passive shift."""
    return {
        "linear": record.linear,
        "curvature": record.replayed - record.linear,
        "leakage": passive - record.replayed,
    }


def norms(vectors: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row"]:
    """Euclidean norms along the last axis.

    Args:
        vectors: Hidden states or their changes.

    Returns:
        A norm for each.
    """
    return torch.linalg.vector_norm(vectors, dim=-1)
