"""WISE's margin loss, and the merge of its shards by TIES."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def margin(
    inside: Float[Tensor, " row"], outside: Float[Tensor, " other"], alpha: float, beta: float, gamma: float
) -> Float[Tensor, ""]:
    """L_a = ⟨d_out − d_in + γ⟩₊ + ⟨d_out − α⟩₊ + ⟨β − d_in⟩₊, each the mean over those rows where it is above zero."""

    def above(values: Tensor) -> Tensor:
        positive = values[values > 0]
        return positive.mean() if len(positive) else values.sum() * 0

    return above(outside - inside + gamma) + above(outside - alpha) + above(beta - inside)


def ties(
    base: Float[Tensor, "out in"],
    shards: Sequence[Float[Tensor, "out in"]],
    weights: Sequence[float],
    density: float,
) -> Float[Tensor, "out in"]:
    """Merge matrices that were trained from one: the largest changes of each, where they agree on the sign."""
    deltas = torch.stack([_largest(shard - base, density) for shard in shards])
    shares = deltas.new_tensor(list(weights)).view(-1, *[1] * base.dim())
    elected = torch.where((shares * deltas).sum(0) >= 0, 1.0, -1.0).to(base)
    agreeing = shares * (deltas.sign() == elected)
    return base + (agreeing * deltas).sum(0) / agreeing.sum(0).masked_fill(~agreeing.any(0), 1.0)


def _largest(delta: Tensor, density: float) -> Tensor:
    """The largest entries of a change, zero elsewhere."""
    count = int(density * delta.numel())
    if count >= delta.numel():
        return delta
    largest = torch.zeros_like(delta).flatten()
    places = delta.abs().flatten().topk(count).indices
    largest[places] = delta.flatten()[places]
    return largest.view_as(delta)
