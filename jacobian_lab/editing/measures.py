"""Observations of one edit, layer by layer, and the quantities of Tables 1, 2 and 5."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from jacobian_lab.catalogue import OPTIMISED, REPLAYED, Scheme
from jacobian_lab.editing.layers import LayerEdit, Setting, edit_layers
from jacobian_lab.editing.paper_rules import memit
from jacobian_lab.editing.problems import CarriedStates, Rule
from jacobian_lab.editing.schemes import Targets
from jacobian_lab.maps.conditions import cosine, eigen_residual, gain, rayleigh_quotient
from jacobian_lab.maps.hooks import decisive_states, decisive_writes
from jacobian_lab.maps.jacobians import jvp
from jacobian_lab.maps.replay import replay
from jacobian_lab.maps.writes import rms

NO_RESIDUAL = {torch.float64: 1e-5, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}
"""A residual below this share of the state's norm is zero to rounding: there is nothing to remain. In bfloat16 a state
differs by up to a hundredth of its norm from one batch to another."""


FACTS_AT_ONCE = 256
"""Facts whose states at all layers are put side by side."""


@dataclass(frozen=True, eq=False)
class ObservedEdit(LayerEdit):
    """One layer's edit with what it did to the bare prompts' decisive tokens, each ``[fact, d_model]`` in float64.

    Attributes:
        residual: m_L − h_L just before the edit, against the scheme's own target.
        before: Hidden state of the layer just before its edit.
        after: The same just after.
        last_before: Hidden state of the last decisive layer just before.
        last_after: The same just after.
        linear: J·δ, with δ the layer's shift and J = J_{l→L} just before the edit.
        replayed: F(h + δ) − F(h) by replay just before the edit: what δ does alone.
        write_shift: The change of the write u; behind a norm over rms(u).
        ease: kᵀC⁻¹k of each fact just before the edit, ``[fact]`` (`eases`).
    """

    residual: Float[Tensor, "fact d_model"]
    before: Float[Tensor, "fact d_model"]
    after: Float[Tensor, "fact d_model"]
    last_before: Float[Tensor, "fact d_model"]
    last_after: Float[Tensor, "fact d_model"]
    linear: Float[Tensor, "fact d_model"]
    replayed: Float[Tensor, "fact d_model"]
    write_shift: Float[Tensor, "fact d_model"]
    ease: Float[Tensor, " fact"]

    @property
    def shift(self) -> Float[Tensor, "fact d_model"]:
        """δ, the realised change of h_l."""
        return self.after - self.before

    @property
    def passive_shift(self) -> Float[Tensor, "fact d_model"]:
        """δ_L^l, the change of h_L that the layer's edit makes."""
        return self.last_after - self.last_before


@torch.no_grad()
def observed_edits(
    setting: Setting,
    scheme: Scheme,
    targets: Targets,
    rule: Rule = memit,
    carried: CarriedStates | None = None,
) -> Iterator[ObservedEdit]:
    """Edit as `edit_layers` does, and observe what every layer's edit did (use within `restored`).

    Args:
        setting: What the edit is made with.
        scheme: Which residual each layer is given.
        targets: The targets, of the unedited model.
        rule: What is done with keys and residuals.
        carried: As `edit_layers` has it.

    Yields:
        Every layer's edit just after it.
    """
    for edit in edit_layers(setting, scheme, targets, rule, carried):
        layer, last, frozen = edit.layer, edit.last, edit.frozen
        now = decisive_states(setting.model, setting.rows.bare, [layer, last]).double()
        after, last_after = now.unbind(1)
        before, last_before = frozen.states(layer), frozen.states(last).double()
        shift, writes = after - before.double(), frozen.writes(layer)
        ends = [  # F(h) by replay too, though it is known: so the rounding of both is the same
            frozen.ask(lambda rows, states: replay(rows, layer, states, [last])[:, 0], states).double()  # noqa: B023
            for states in (after.to(before.dtype), before)
        ]
        linear = frozen.ask(lambda rows, delta: jvp(rows, layer, last, delta), shift).double()  # noqa: B023
        yield ObservedEdit(
            **vars(edit),
            residual=targets.of(scheme.kind, last).double() - last_before,
            before=before.double(),
            after=after,
            last_before=last_before,
            last_after=last_after,
            linear=linear,
            replayed=ends[0] - ends[1],
            write_shift=shift / setting.model.mlp_factor
            if writes is None
            else _over_rms(setting, layer, writes.double()),
            ease=setting.ease(layer, edit.keys),
        )


def _over_rms(setting: Setting, layer: int, writes: Float[Tensor, "fact d_model"]) -> Float[Tensor, "fact d_model"]:
    """Change of the writes u since they were read, over their root mean square."""
    now = decisive_writes(setting.model, setting.rows.bare, [layer])[:, 0].double()
    return (now - writes) / rms(writes)[:, None]


def measure(edits: Sequence[ObservedEdit], targets: Targets, scheme: Scheme) -> dict[str, Float[Tensor, "..."]]:
    """The quantities of Tables 1, 2 and 5, and the exact split of each passive shift (methods.md §7).

    δ_L^l = J·δ + curvature + leakage: what the linear map makes of the layer's shift, what replaying
    the shift adds to that, and what the changed keys and values of the other tokens add. With R' the
    residual that the layer leaves and R the one that it found, R' = R − J·δ − curvature − leakage; the
    share of a term x in what is left is its part of R' along R', ⟨±x, R'⟩ / ‖R'‖², and the four add up to 1.

    With Δ the change that all edits make at L, the passive shifts add up to it: ``carried`` is a layer's part of Δ
    along Δ, and adds up to 1 over the layers; ``carried_linear`` is that of J·δ, and ``summed_cosine`` and
    ``summed_ratio`` hold the sum of J·δ over the layers up to this one against what they have changed at L.

    Args:
        edits: What the loop saw, layer by layer.
        targets: The targets of the scheme's own kind, and optimised and replayed ones where they are to be compared.
        scheme: The scheme; its own target at the last layer is the one of its kind.

    Returns:
        Arrays ``[fact, layer]`` over the edited layers, but those of the weights, ``[layer]``; those
        with ``_against_`` in their name are taken against that kind of target. NaN for facts without
        a finite target, and for ratios to a residual that was zero, to the rounding of the model's dtype, from the
        beginning.
    """
    count = len(edits[0].keys)
    parts = [slice(start, start + FACTS_AT_ONCE) for start in range(0, count, FACTS_AT_ONCE)]
    measured = [_measured(edits, targets, scheme, part) for part in parts]
    by_layer = {
        "update_norm": [edit.update_norm for edit in edits],
        "condition_number": [edit.update.condition for edit in edits],
        "unstored": [edit.unstored for edit in edits],
    }
    by_fact = {name: torch.cat([part[name] for part in measured]) for name in measured[0]}
    return by_fact | {name: torch.tensor(values, dtype=torch.float64) for name, values in by_layer.items()}


def _measured(
    edits: Sequence[ObservedEdit], targets: Targets, scheme: Scheme, facts: slice
) -> dict[str, Float[Tensor, "fact layer"]]:
    """Quantities of `measure` for a slice of the facts."""

    def over_layers(name: str) -> Float[Tensor, "fact layer ..."]:
        return torch.stack([getattr(edit, name)[facts] for edit in edits], dim=1)

    last, dtype = targets.layers[-1], edits[0].frozen.dtype
    shift, passive, linear = over_layers("shift"), over_layers("passive_shift"), over_layers("linear")
    last_before, last_after = over_layers("last_before"), over_layers("last_after")
    full, residual, initial = over_layers("full_residual"), over_layers("assigned_residual"), last_before[:, :1]
    values = {
        "cosine": torch.cosine_similarity(shift, passive, dim=-1),
        "unrealised": norms(full - shift) / norms(full),
        "realised": (shift * residual).sum(-1) / (residual**2).sum(-1),
        "shift_norm": norms(shift),
        "passive_shift_norm": norms(passive),
        "rayleigh": rayleigh_quotient(shift, linear),
        "eigen_residual": eigen_residual(shift, linear),
        "linear_cosine": cosine(shift, linear),
        "gain": gain(shift, linear),
        "out_of_reach": over_layers("out_of_reach"),
        "effort": norms(shift) / norms(shift).sum(1, keepdim=True),
        "price": norms(over_layers("write_shift")) ** 2 / over_layers("ease"),
    }
    changed, summed = last_after - initial, linear.cumsum(1)
    whole = changed[:, -1:]
    values["carried"] = (passive * whole).sum(-1) / (whole**2).sum(-1)
    values["carried_linear"] = (linear * whole).sum(-1) / (whole**2).sum(-1)
    values["summed_cosine"] = cosine(summed, changed)
    values["summed_ratio"] = norms(summed) / norms(changed)
    before = over_layers("residual")
    left = before - passive
    values["share_initial"] = (before * left).sum(-1) / (left**2).sum(-1)
    replayed = over_layers("replayed")
    terms = {"linear": linear, "curvature": replayed - linear, "leakage": passive - replayed}
    for name, term in terms.items():
        values[f"{name}_norm"] = norms(term)
        values[f"{name}_residual_cosine"] = torch.cosine_similarity(term, before, dim=-1)
        values[f"share_{name}"] = -(term * left).sum(-1) / (left**2).sum(-1)
    others = ((OPTIMISED, "_against_optimised"), (REPLAYED, "_against_replayed"))
    held = [(kind, name) for kind, name in others if last in getattr(targets, kind)]
    for kind, name in (*held, (scheme.kind, "")):
        target = targets.of(kind, last)[facts].double()[:, None]
        values[f"residual_norm{name}"] = norms(target - last_after)
        start = norms(target - initial)
        start[start <= NO_RESIDUAL[dtype] * norms(initial)] = math.nan
        values[f"residual_ratio{name}"] = norms(target - last_after) / start
    for name in _OF_RESIDUAL:
        values[name] = torch.where(values["residual_ratio"].isnan(), math.nan, values[name])
    usable = targets.finite(scheme.kind)[facts, None]
    return {name: torch.where(usable, value, math.nan) for name, value in values.items()}


_OF_RESIDUAL = (
    "unrealised",
    "realised",
    "share_initial",
    *(name.format(term) for term in ("linear", "curvature", "leakage") for name in ("share_{}", "{}_residual_cosine")),
)
"""What says nothing of a fact that has no residual."""


def norms(vectors: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row"]:
    """Euclidean norms along the last axis.

    Args:
        vectors: Hidden states or their changes.

    Returns:
        A norm for each.
    """
    return torch.linalg.vector_norm(vectors, dim=-1)
