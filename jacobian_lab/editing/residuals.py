"""Residuals that a scheme gives to a layer, read from the model as it is."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from jacobian_lab.catalogue import Scheme
from jacobian_lab.editing.schemes import Targets, damped_pullback
from jacobian_lab.maps.jacobians import dense_jacobians
from jacobian_lab.maps.replay import FrozenGroups, freeze_groups
from jacobian_lab.model.rows import FactRows


@dataclass(frozen=True, eq=False)
class Residuals:
    """Residuals of one layer.

    Attributes:
        frozen: The facts' bare prompts, frozen with the model as it is, from the layer to the last decisive one.
        full: m − h at the layer that the scheme reads, ``[fact, d_model]``, in float64.
        assigned: What the layer is given of them: whole, divided, or pulled back.
    """

    frozen: FrozenGroups
    full: Float[Tensor, "fact d_model"]
    assigned: Float[Tensor, "fact d_model"]


def assigned_residuals(rows: FactRows, scheme: Scheme, targets: Targets, index: int, damping: float) -> Residuals:
    """Read the residuals that a scheme gives to one of its layers (methods.md §4).

    Args:
        rows: The facts.
        scheme: The scheme.
        targets: The targets, of the unedited model.
        index: Which of the layers that the scheme edits.
        damping: μ, for the schemes that pull residuals back through J.

    Returns:
        The residuals, NaN for a fact without a finite target.
    """
    layers, last = scheme.edited(targets.layers), targets.layers[-1]
    layer, site = layers[index], scheme.read(layers, index)
    frozen = freeze_groups(rows.model, rows.bare, sorted({layer, site, last}), last)
    full = targets.of(scheme.kind, site).double() - frozen.states(site).double()
    assigned = full / scheme.divisor(index, len(layers))
    if scheme.pulls_back:
        assigned = _pulled_back(frozen, layer, last, assigned, damping)
    return Residuals(frozen, full, assigned)


def _pulled_back(
    frozen: FrozenGroups, layer: int, last: int, residuals: Float[Tensor, "fact d_model"], damping: float
) -> Float[Tensor, "fact d_model"]:
    """The shifts at `layer` whose linear images at `last` come nearest to the residuals; a Jacobian at a time."""
    shifts = torch.empty_like(residuals)
    for fact, row in frozen.one_by_one():
        J = dense_jacobians(row, [layer], last)[:, 0].double()
        shifts[fact] = damped_pullback(J, residuals[fact : fact + 1], damping)[0]
    return shifts
