"""The one loop over layers; any rule of `jacobian_lab.editing.rules` goes with any scheme."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from jacobian_lab.editing.rules import Kept, Problem, Rule, Update, memit
from jacobian_lab.editing.schemes import Scheme, Targets, damped_pullback
from jacobian_lab.errors import InputError
from jacobian_lab.facts.fact import Fact
from jacobian_lab.maps.hooks import decisive_keys
from jacobian_lab.maps.jacobians import dense_jacobians
from jacobian_lab.maps.replay import FrozenGroups, freeze_groups
from jacobian_lab.model.language_model import LanguageModel
from jacobian_lab.model.templates import Templates, template_weights
from jacobian_lab.model.tokens import Prompt


@contextmanager
def restored(model: LanguageModel, layers: Sequence[int]) -> Iterator[None]:
    """Put the weights of the MLP output projections back bit for bit on leaving, whatever happens within.

    Args:
        model: The model.
        layers: The layers whose weights may be changed within.

    Yields:
        Nothing.
    """
    before = {layer: model.weight(layer).clone() for layer in layers}
    try:
        yield
    finally:
        for layer, weight in before.items():
            model.weight(layer).copy_(weight)


@dataclass(frozen=True, eq=False)
class LayerUpdate:
    """One layer's edit, just after it was made.

    Attributes:
        layer: The layer l.
        frozen: The facts' bare prompts, frozen just before the edit, from l to the last decisive layer.
        wanted: Residuals before the scheme divided or pulled them back, ``[fact, d_model]``.
        given: Residuals that the layer was given, ``[fact, d_model]``.
        update: What was added to the weight.
        stored: What `write_weight` said.
    """

    layer: int
    frozen: FrozenGroups
    wanted: Float[Tensor, "fact d_model"]
    given: Float[Tensor, "fact d_model"]
    update: Update
    stored: Mapping[str, Float[Tensor, ""]]


@torch.no_grad()
def edit_layers(
    model: LanguageModel,
    facts: Sequence[Fact],
    scheme: Scheme,
    targets: Targets,
    templates: Templates,
    second_moments: Mapping[int, Float[Tensor, "d_mlp d_mlp"]],
    ridge: float,
    rule: Rule = memit,
    kept: dict[int, Kept] | None = None,
) -> Iterator[LayerUpdate]:
    """Edit all facts jointly, layer after layer, and leave the model edited (use within `restored`).

    Keys and hidden states are measured anew after every layer's edit. A fact whose target is not
    finite keeps its place and takes no part in the solve.

    Args:
        model: The model.
        facts: The facts.
        scheme: Which residual each layer is given.
        targets: The targets, of the unedited model.
        templates: Context templates that keys are averaged over.
        second_moments: C_l of each layer.
        ridge: λ.
        rule: What is done with keys and residuals.
        kept: Where these facts are one batch of several: what the rule handed on after the batch before, by
            layer; what it hands on now takes its place.

    Yields:
        Every layer's edit just after it; the next layer is not looked at before it is asked for.

    Raises:
        InputError: If no fact has a finite target, or a solve is singular.
    """
    layers, last = scheme.edited(targets.layers), targets.layers[-1]
    bare = bare_prompts(model, facts)
    usable = targets.usable()
    for index, layer in enumerate(layers):
        site = scheme.read(layers, index)
        frozen = freeze_groups(model, bare, sorted({layer, site, last}), last)
        wanted = targets.of(scheme.kind, site).double() - frozen.states(site).double()
        given = wanted / scheme.divisor(index, len(layers))
        if scheme.damping is not None:
            given = _pulled_back(frozen, layer, last, given, scheme.damping)
        keys, old = _averaged_keys(model, facts, templates, layer)[usable], model.weight(layer).clone()
        problem = Problem(layer, keys.T, given[usable].T, second_moments[layer], old, ridge)
        if kept is not None:
            problem = replace(problem, kept=kept.get(layer), goes_on=True)
        update = rule(problem)
        if kept is not None and update.kept is not None:
            kept[layer] = update.kept
        stored = write_weight(model, layer, old, update.delta)
        yield LayerUpdate(layer, frozen, wanted, given, update, stored)


def write_weight(
    model: LanguageModel,
    layer: int,
    old: Float[Tensor, "d_model d_mlp"],
    delta: Float[Tensor, "d_model d_mlp"],
) -> dict[str, Float[Tensor, ""]]:
    """Write ``old + delta`` into a layer's weight, added up in float64, and say what that did to it.

    Args:
        model: The model.
        layer: The layer.
        old: What its weight was.
        delta: The change that is asked for, in float32 or float64.

    Returns:
        ``update_norm`` and ``unstored`` as `EditRecord` has them.

    Raises:
        InputError: If the weight's dtype does not hold the sum.
    """
    weight, new = model.weight(layer), old.double() + delta.double()
    weight.copy_(new.to(weight.dtype))
    if not torch.isfinite(weight).all():
        dtype = str(weight.dtype).removeprefix("torch.")
        raise InputError(
            f"expected an edit that {dtype} holds, got NaN or infinity in the weight of layer {layer}: "
            "lower --anchor-clamp, raise --ridge or edit in float32"
        )
    size, lost = torch.linalg.matrix_norm(delta.double()), torch.linalg.matrix_norm(new - weight.double())
    return {"update_norm": size / torch.linalg.matrix_norm(old.double()), "unstored": lost / size}


def _pulled_back(
    frozen: FrozenGroups, layer: int, last: int, residuals: Float[Tensor, "fact d_model"], damping: float
) -> Float[Tensor, "fact d_model"]:
    """The shifts at `layer` whose linear images at `last` come nearest to the residuals; a Jacobian at a time."""
    shifts = torch.empty_like(residuals)
    for fact, row in frozen.one_by_one():
        J = dense_jacobians(row, [layer], last)[0].double()
        shifts[fact] = damped_pullback(J, residuals[fact : fact + 1], damping)[0]
    return shifts


def bare_prompts(model: LanguageModel, facts: Sequence[Fact]) -> list[Prompt]:
    """The facts' prompts in no template, up to the decisive token."""
    return [model.fact_prompt(fact).cut() for fact in facts]


def _averaged_keys(
    model: LanguageModel, facts: Sequence[Fact], templates: Templates, layer: int
) -> Float[Tensor, "fact d_mlp"]:
    """Keys averaged inside each template group, then over the groups (methods.md §3), in float64."""
    weighted = template_weights(templates)
    rows: list[Prompt] = [model.fact_prompt(fact, text) for fact in facts for text, _ in weighted]
    keys = decisive_keys(model, rows, layer).double().view(len(facts), len(weighted), -1)
    weights = keys.new_tensor([weight for _, weight in weighted])
    return torch.einsum("ftk,t->fk", keys, weights)
