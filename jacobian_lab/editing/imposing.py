"""Shifts that targets ask for, to be imposed by replay where nothing is edited."""

import torch
from jaxtyping import Float
from torch import Tensor

from jacobian_lab.catalogue import COORDINATED, REPLAYED, Kind
from jacobian_lab.editing.reachable import reachable_changes
from jacobian_lab.editing.schemes import Targets
from jacobian_lab.errors import InputError
from jacobian_lab.maps.replay import Shifts, freeze_groups
from jacobian_lab.model.rows import FactRows


@torch.no_grad()
def imposed_shifts(
    rows: FactRows, targets: Targets, kind: Kind, shifts: Float[Tensor, "fact layer d_model"] | None = None
) -> Shifts:
    """Write shifts that a kind of target is made of.

    An optimised target is one shift at the last layer, a replayed one the anchor's at the first layer. Behind a norm
    an anchor's write is known up to its scale. The shift is then the one that an edit is asked for
    (`reachable_changes`).

    Args:
        rows: The facts, of the unedited model.
        targets: Their targets.
        kind: The kind.
        shifts: Coordinated shifts, at each of the targets' layers, for the kind of that name.

    Returns:
        By layer, δ of every fact.

    Raises:
        InputError: If coordinated shifts are asked for and there are none.
    """
    if kind == COORDINATED:
        if shifts is None:
            raise InputError("expected coordinated shifts to impose, got none: give them with the kind coordinated")
        return dict(zip(targets.layers, shifts.unbind(1), strict=True))
    layer = targets.layers[0 if kind == REPLAYED else -1]
    frozen = freeze_groups(rows.model, rows.bare, [layer], layer)
    residuals = targets.of(kind, layer).double() - frozen.states(layer).double()
    changes, _ = reachable_changes(rows.model, layer, frozen.writes(layer), residuals)
    return {layer: changes * rows.model.mlp_factor}
