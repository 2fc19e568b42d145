"""Norm anchors (NAS, arXiv 2602.02543): targets whose MLP part has the length that it has on average."""

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from jacobian_lab.catalogue import Kind
from jacobian_lab.editing.schemes import Targets
from jacobian_lab.maps.hooks import decisive_states, decisive_writes
from jacobian_lab.maps.writes import joined
from jacobian_lab.model.rows import FactRows

TOO_LONG, COUNTED = 2.0, 0.95
"""A vector longer than so many mean lengths is given up; the share of the shortest ones that the mean is taken over."""


@torch.no_grad()
def norm_anchored(rows: FactRows, targets: Targets, kind: Kind) -> Targets:
    """Rescale the targets of a kind, each layer's by itself.

    A target m asks the MLP for v + m − h, with h the state and v what the MLP adds to it.

    Args:
        rows: The facts, of the unedited model.
        targets: Their targets.
        kind: The kind whose targets are rescaled.

    Returns:
        The targets, where v + m − h has the mean length over the facts.
    """
    model, by_layer = rows.model, getattr(targets, kind)
    layers = sorted(by_layer)
    states, writes = decisive_states(model, rows.bare, layers), decisive_writes(model, rows.bare, layers)
    anchored: dict[int, Tensor] = {}
    for place, layer in enumerate(layers):
        goal = by_layer[layer].double()
        state = states[:, place].double()
        added = model.mlp_factor * joined(model, layer, writes[:, place]).double()
        anchored[layer] = (state + anchored_values(added, goal - state) - added).to(by_layer[layer].dtype)
    changed: dict[str, Any] = {kind: anchored}
    return replace(targets, **changed)


def anchored_values(
    values: Float[Tensor, "fact d_model"], shifts: Float[Tensor, "fact d_model"]
) -> Float[Tensor, "fact d_model"]:
    """Give v + δ of every fact the mean length, and v where v + δ is longer than twice that.

    Args:
        values: v.
        shifts: δ; NaN where a fact has none.

    Returns:
        What the MLP is to add.
    """
    goals = values + shifts
    lengths = torch.linalg.vector_norm(goals, dim=-1, keepdim=True)
    finite = lengths[lengths.isfinite()].sort().values
    mean = finite[: len(finite) - int((1 - COUNTED) * len(finite) + 1e-9)].mean()
    return torch.where(lengths > TOO_LONG * mean, values, goals * (mean / lengths))
