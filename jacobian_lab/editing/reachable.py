"""Nearest reachable changes of an MLP's write u where a norm follows it.

N(u) = g ⊙ u / sqrt(mean(u²) + ε) lies on the ellipsoid {g ⊙ x : ‖x‖ = r}, whatever the weights are. A residual R of the
stream asks for the point t = N(u) + R, and the nearest point of the ellipsoid is what an edit can give.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from jacobian_lab.maps.writes import joined, rms
from jacobian_lab.model.language_model import LanguageModel

PASSES, EXACT = 100, 1e-14
"""Newton's steps at the most, and the relative error of the length at which they end."""
LARGE = 1e6
"""A vector of this number has a mean square beside which ε is nothing."""


def gains(model: LanguageModel, layer: int) -> Float[Tensor, " d_model"]:
    """Gains g of the norm behind an MLP, read from what it makes of a constant vector.

    Args:
        model: The model, of a family with such a norm.
        layer: The block's index.

    Returns:
        g in float64.
    """
    return joined(model, layer, torch.full((model.d_model,), LARGE, dtype=torch.float64, device=model.device))


def nearest_on_ellipsoid(
    gains: Float[Tensor, " d_model"],
    targets: Float[Tensor, "fact d_model"],
    radii: Float[Tensor, " fact"],
    start: Float[Tensor, "fact d_model"],
) -> Float[Tensor, "fact d_model"]:
    """Least squares on a sphere: argmin ‖g ⊙ x − t‖² subject to ‖x‖ = r.

    By Lagrange x_i = g_i t_i / (g_i² + μ), with μ > −min g² where ‖x‖ = r. Newton's method on 1/‖x‖ − 1/r, which is
    concave in μ, ascends to the root from the lower end of its bracket. In the hard case, where ‖x‖ < r even there,
    the missing length lies along the coordinates with the least g²: the error is the same for all directions of them.

    Args:
        gains: g.
        targets: t of each fact.
        radii: r of each fact, above zero.
        start: The hard case's free coordinates follow those of this vector.

    Returns:
        x of each fact; NaN where the target is not finite.
    """
    weights, squares = gains * targets, gains.square()
    gaps = squares - squares.min()  # μ + min g² is the unknown: a root near the end is as exact as others
    free = gaps == 0

    def at(multipliers: Float[Tensor, "fact 1"]) -> Float[Tensor, "fact d_model"]:
        return torch.where(weights == 0, weights, weights / (gaps + multipliers))

    length = radii[:, None]
    multipliers = torch.linalg.vector_norm(weights * free, dim=-1, keepdim=True) / length
    for _ in range(PASSES):
        x = at(multipliers)
        norms = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        excess = norms / length - 1
        if not (excess > EXACT).any():
            break
        slopes = torch.where(x == 0, x, x.square() / (gaps + multipliers)).sum(-1, keepdim=True)
        multipliers = torch.where(excess > EXACT, multipliers + excess * norms.square() / slopes, multipliers)
    x = at(multipliers)
    norms = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    missing = (length.square() - norms.square()).clamp(min=0).sqrt()
    hard = (multipliers == 0) & (norms < length)
    return torch.where(hard, x + missing * _unit(torch.where(free, start, 0.0), free), x * (length / norms))


def reachable_changes(
    model: LanguageModel,
    layer: int,
    writes: Float[Tensor, "fact d_model"] | None,
    residuals: Float[Tensor, "fact d_model"],
) -> tuple[Float[Tensor, "fact d_model"], Float[Tensor, " fact"]]:
    """Changes of u that bring the stream nearest to its residuals, and the shares of these that are out of reach.

    The scale of u' = s x is free, since N(s x) is the same for every s; s = ⟨u, x⟩ / ⟨x, x⟩ is the least change of u.
    Where that points backward, u' keeps the length of u.

    Args:
        model: The model.
        layer: The block's index.
        writes: u of each fact; none where it joins the stream as it is.
        residuals: R of each fact, in float64.

    Returns:
        u' − u, or where u joins the stream as it is R over its multiplier; and ‖N(u') − N(u) − R‖ / ‖R‖, zero there.
    """
    if writes is None:
        return residuals / model.mlp_factor, torch.zeros_like(residuals[:, 0])
    g, u = gains(model, layer), writes.double()
    here = joined(model, layer, u)
    radii = torch.linalg.vector_norm(here, dim=-1) / torch.linalg.vector_norm(g * u, dim=-1)  # of ε too, over rms(u)
    lengths = radii * torch.linalg.vector_norm(u, dim=-1)
    x = nearest_on_ellipsoid(g, here + residuals, lengths, u)
    x = x / rms(x)[:, None]
    along = (u * x).mean(-1)
    changed = torch.where(along > 0, along, rms(u))[:, None] * x
    sizes = torch.linalg.vector_norm(residuals, dim=-1)
    off = torch.linalg.vector_norm(joined(model, layer, changed) - here - residuals, dim=-1)
    return changed - u, torch.where(sizes > 0, off / sizes, sizes)


def _unit(vectors: Float[Tensor, "fact d_model"], free: Tensor) -> Float[Tensor, "fact d_model"]:
    """Vectors of length one along the same directions; along the first free coordinate where there is none."""
    norms = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    first = torch.zeros_like(vectors[0])
    first[free.nonzero()[0]] = 1.0
    return torch.where(norms > 0, vectors / norms, first)
