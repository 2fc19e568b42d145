"""The one loop over layers; any rule of `jacobian_lab.editing.rules` goes with any scheme."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from jacobian_lab.catalogue import Scheme
from jacobian_lab.crew.crew import ALONE, Crew, called
from jacobian_lab.editing.rules import Kept, Problem, Rule, Update, memit
from jacobian_lab.editing.schemes import DAMPING, Targets, damped_pullback
from jacobian_lab.editing.solving import factored
from jacobian_lab.errors import InputError
from jacobian_lab.facts.fact import Fact
from jacobian_lab.maps.hooks import decisive_keys
from jacobian_lab.maps.jacobians import dense_jacobians
from jacobian_lab.maps.replay import FrozenGroups, freeze_groups
from jacobian_lab.model.edited import sole_edit
from jacobian_lab.model.language_model import LanguageModel
from jacobian_lab.model.rows import FactRows

KEYS_AT_ONCE = 64
"""Facts whose keys are taken together."""


@dataclass(frozen=True, eq=False)
class Setting:
    """What an edit is made with, whatever the method.

    Attributes:
        rows: The facts as the model reads them, and the model.
        moments: C of each decisive layer, ``[d_mlp, d_mlp]``.
        ridge: λ, the weight of C in the solve.
        damping: μ, for the schemes that pull residuals back through J.
        crew: Who takes the keys.
    """

    rows: FactRows
    moments: Mapping[int, Float[Tensor, "d_mlp d_mlp"]]
    ridge: float
    damping: float = DAMPING
    crew: Crew = ALONE

    @property
    def model(self) -> LanguageModel:
        """The model."""
        return self.rows.model

    @property
    def facts(self) -> tuple[Fact, ...]:
        """The facts."""
        return self.rows.facts

    def eases(self, layers: Sequence[int]) -> Float[Tensor, "fact layer"]:
        """kᵀC⁻¹k of every fact, on the model as it is now.

        Args:
            layers: Decisive layers.

        Returns:
            `eases` of each.
        """
        keys = (averaged_keys(self.rows, layer, self.crew) for layer in layers)
        return torch.stack([eases(k, self.moments[layer]) for k, layer in zip(keys, layers, strict=True)], dim=1)

    def select(self, facts: Sequence[int]) -> "Setting":
        """The same for some of the facts.

        Args:
            facts: Their indices.

        Returns:
            What an edit of these is made with.
        """
        return replace(self, rows=self.rows.select(facts))


@dataclass(frozen=True, eq=False)
class LayerEdit:
    """One layer's edit, just after it was made.

    Attributes:
        layer: The layer l.
        last: The last decisive layer L.
        frozen: The facts' bare prompts, frozen just before the edit, from l to L.
        wanted: Residuals before the scheme divided or pulled them back, ``[fact, d_model]``.
        given: Residuals that the layer was given, ``[fact, d_model]``.
        keys: k_l just before the edit, ``[fact, d_mlp]``, in float64.
        update: What the rule made of them.
        update_norm: ‖ΔW‖ / ‖W‖ in the Frobenius norm.
        unstored: Share of ΔW that the weight's dtype did not take, in the Frobenius norm.
    """

    layer: int
    last: int
    frozen: FrozenGroups
    wanted: Float[Tensor, "fact d_model"]
    given: Float[Tensor, "fact d_model"]
    keys: Float[Tensor, "fact d_mlp"]
    update: Update
    update_norm: float
    unstored: float


@contextmanager
def restored(model: LanguageModel, layers: Sequence[int]) -> Iterator[None]:
    """Put the weights of the MLP output projections back bit for bit on leaving, whatever happens within.

    Args:
        model: The model.
        layers: The layers whose weights may be changed within.

    Yields:
        Nothing.

    Raises:
        InputError: If the model is edited already.
    """
    with sole_edit(model):
        before = {layer: model.weight(layer).clone() for layer in layers}
        try:
            yield
        finally:
            for layer, weight in before.items():
                model.weight(layer).copy_(weight)


@torch.no_grad()
def edit_layers(
    setting: Setting, scheme: Scheme, targets: Targets, rule: Rule = memit, kept: dict[int, Kept] | None = None
) -> Iterator[LayerEdit]:
    """Edit all facts jointly, layer after layer, and leave the model edited (use within `restored`).

    Keys and hidden states are measured anew after every layer's edit. A fact whose target is not
    finite keeps its place and takes no part in the solve.

    Args:
        setting: What the edit is made with.
        scheme: Which residual each layer is given.
        targets: The targets, of the unedited model.
        rule: What is done with keys and residuals.
        kept: Where these facts are one batch of several: what the rule handed on after the batch before, by
            layer; what it hands on now takes its place.

    Yields:
        Every layer's edit just after it; the next layer is not looked at before it is asked for.

    Raises:
        InputError: If no fact has a finite target, or a solve is singular.
    """
    model, rows = setting.model, setting.rows
    layers, last = scheme.edited(targets.layers), targets.layers[-1]
    usable = targets.usable(scheme.kind)
    for index, layer in enumerate(layers):
        site = scheme.read(layers, index)
        frozen = freeze_groups(model, rows.bare, sorted({layer, site, last}), last)
        wanted = targets.of(scheme.kind, site).double() - frozen.states(site).double()
        given = wanted / scheme.divisor(index, len(layers))
        if scheme.pulls_back:
            given = _pulled_back(frozen, layer, last, given, setting.damping)
        keys, old = averaged_keys(rows, layer, setting.crew), model.weight_at_home(layer)
        problem = Problem(layer, keys[usable].T, given[usable].T, setting.moments[layer], old, setting.ridge)
        if kept is not None:
            problem = replace(problem, kept=kept.get(layer), goes_on=True)
        update = rule(problem)
        if kept is not None and update.kept is not None:
            kept[layer] = update.kept
        stored = write_weight(model, layer, old, update.delta)
        yield LayerEdit(layer, last, frozen, wanted, given, keys, update, **stored)


def write_weight(
    model: LanguageModel,
    layer: int,
    old: Float[Tensor, "d_model d_mlp"],
    delta: Float[Tensor, "d_model d_mlp"],
) -> dict[str, float]:
    """Write ``old + delta`` into a layer's weight, added up in float64, and say what that did to it.

    Args:
        model: The model.
        layer: The layer.
        old: What its weight was.
        delta: The change that is asked for, in float32 or float64.

    Returns:
        ``update_norm`` and ``unstored`` as `LayerEdit` has them.

    Raises:
        InputError: If the weight's dtype does not hold the sum.
    """
    weight, new = model.weight(layer), old.double() + delta.double()
    weight.copy_(new.to(weight.dtype))
    if not torch.isfinite(weight).all():
        dtype = str(weight.dtype).removeprefix("torch.")
        raise InputError(
            f"expected an edit that {dtype} holds, got NaN or infinity in the weight of layer {layer}: "
            "lower ⟨anchor.clamp⟩, raise ⟨ridge⟩ or edit in float32"
        )
    size, lost = torch.linalg.matrix_norm(delta.double()), torch.linalg.matrix_norm(new - weight.to(new))
    return {
        "update_norm": float(size / torch.linalg.matrix_norm(old.double())),
        "unstored": float(lost / size),
    }


def averaged_keys(rows: FactRows, layer: int, crew: Crew = ALONE) -> Float[Tensor, "fact d_mlp"]:
    """Keys averaged inside each template group, then over the groups (methods.md §3).

    Args:
        rows: The facts.
        layer: The layer.
        crew: Who takes them.

    Returns:
        One key a fact, in float64.
    """
    pieces = [range(start, min(start + KEYS_AT_ONCE, len(rows))) for start in range(0, len(rows), KEYS_AT_ONCE)]
    keys = torch.empty(len(rows), rows.model.d_mlp, dtype=torch.float64, device=rows.model.device)
    busy = crew if len(pieces) > 1 else ALONE  # for one piece weights need not be sent
    named = partial(called, labels=[fact.id for fact in rows.facts])
    for piece, found in busy.map(pieces, partial(_keys, rows, layer), named=named):
        keys[list(piece)] = found.to(keys.device)
    return keys


@torch.no_grad()
def _keys(rows: FactRows, layer: int, piece: Sequence[int]) -> Float[Tensor, "some d_mlp"]:
    rows = rows.select(piece)
    every = [row for contexts in rows.contexts for row in contexts]
    keys = decisive_keys(rows.model, every, layer).double().view(len(rows), len(rows.weights), -1)
    return torch.einsum("ftk,t->fk", keys, keys.new_tensor(rows.weights)).cpu()


def eases(keys: Float[Tensor, "fact d_mlp"], second_moment: Float[Tensor, "d_mlp d_mlp"]) -> Float[Tensor, " fact"]:
    """kᵀC⁻¹k: the larger, the less a shift disturbs; the least ΔW with ΔW k = δ, weighed by C, costs ‖δ‖² over it.

    Args:
        keys: k of each fact, in float64.
        second_moment: C of the layer.

    Returns:
        A number for each fact, in tokens of the corpus per token; NaN where C is singular.
    """
    try:
        factor = factored(second_moment.to(keys.device), "C", "").factor
    except InputError:
        return torch.full_like(keys[:, 0], torch.nan)
    return (torch.linalg.solve_triangular(factor, keys.T, upper=False) ** 2).sum(0)


def _pulled_back(
    frozen: FrozenGroups, layer: int, last: int, residuals: Float[Tensor, "fact d_model"], damping: float
) -> Float[Tensor, "fact d_model"]:
    """The shifts at `layer` whose linear images at `last` come nearest to the residuals; a Jacobian at a time."""
    shifts = torch.empty_like(residuals)
    for fact, row in frozen.one_by_one():
        J = dense_jacobians(row, [layer], last)[:, 0].double()
        shifts[fact] = damped_pullback(J, residuals[fact : fact + 1], damping)[0]
    return shifts
