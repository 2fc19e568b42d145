"""Transfer of a key: the share of a shift that a solve gives to the keys of other contexts."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

Solve = Callable[[Float[Tensor, "d_mlp fact"]], Float[Tensor, "d_mlp fact"]]
"""A⁻¹ times some columns, such as `Factored.solve`."""


def transferred(
    own: Float[Tensor, "fact d_mlp"], others: Float[Tensor, "fact context d_mlp"], solve: Solve
) -> Float[Tensor, "fact context"]:
    """Share of each fact's shift that arrives at its other contexts: k'ᵀA⁻¹k / kᵀA⁻¹k.

    The change of least cost ΔW = δ kᵀA⁻¹ / (kᵀA⁻¹k) gives δ to the key k, and this share of δ to a key k'. With
    A = λC + kkᵀ the share is that of A = C, since A⁻¹k is a multiple of C⁻¹k (Sherman and Morrison).

    Args:
        own: Keys k that the solve is made of, in float64.
        others: Keys k' of each fact in other contexts, in float64.
        solve: Solves with A.

    Returns:
        The shares, 1 for the key itself.
    """
    solved = solve(own.T).T
    return torch.einsum("fcn,fn->fc", others, solved) / (own * solved).sum(-1, keepdim=True)
