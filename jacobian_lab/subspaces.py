"""What PRUNE and AlphaEdit see in a spectrum: too large changes, directions keys hardly take (methods.md §5)."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from jacobian_lab.errors import InputError

Eigh = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Eigenvalues, ascending, and eigenvectors of a symmetric matrix, as `torch.linalg.eigh` returns them."""


def largest_singular_value(weight: Float[Tensor, "d_model d_mlp"]) -> Float[Tensor, ""]:
    """PRUNE's limit, from the Gram matrix of the weight's rows.

    Args:
        weight: W before all edits.

    Returns:
        Its spectral norm, in float64.
    """
    rows = weight.double()
    return torch.linalg.eigvalsh(rows @ rows.T)[-1].sqrt()


def shrink(
    delta: Float[Tensor, "d_model d_mlp"], limit: Float[Tensor, ""], kind: str = "log", base: float = 1.2
) -> tuple[Float[Tensor, "d_model d_mlp"], int]:
    """PRUNE's restraint: σ_i ≥ σ_max becomes ln σ_i − ln σ_max + σ_max, with σ_max the largest of the weight.

    Singular values and left singular vectors are taken from the Gram matrix of the rows, the short side: only
    the part of the change along those that are too large is scaled.

    Args:
        delta: The change of one layer, or the total one after all edits.
        limit: σ_max.
        kind: ``"log"``; ``"log_a"``, with logarithms to `base`; ``"linear"``, ½σ_i + ½σ_max.
        base: 1.2, 1.5 or 2 in the literature.

    Returns:
        The restrained change, and how many singular values were too large.
    """
    delta = delta.double()
    squares, vectors = torch.linalg.eigh(delta @ delta.T)
    over = squares >= limit**2
    sigma, vectors = squares[over].sqrt(), vectors[:, over]
    logarithm = torch.log(sigma / limit) / (math.log(base) if kind == "log_a" else 1.0)
    shrunk = (sigma + limit) / 2 if kind == "linear" else logarithm + limit
    return delta + vectors @ ((shrunk / sigma - 1)[:, None] * (vectors.T @ delta)), int(over.sum())


@dataclass(frozen=True, eq=False)
class NullSpace:
    """Directions in which the keys of a corpus hardly lie.

    Attributes:
        basis: Û, eigenvectors of C with small eigenvalues, one a column.
        trace_left_out: Share of C's trace that lies outside.
    """

    basis: Float[Tensor, "d_mlp rank"]
    trace_left_out: float


def null_space(
    second_moment: Float[Tensor, "d_mlp d_mlp"],
    threshold: float = 0.02,
    *,
    relative: bool = False,
    eigh: Eigh = torch.linalg.eigh,
    name: str = "C",
) -> NullSpace:
    """AlphaEdit's null space of C (methods.md §5).

    Args:
        second_moment: C.
        threshold: Eigenvalues below it belong to the null space.
        relative: Whether the threshold is in units of the mean eigenvalue, so that the scale of the
            keys does not matter.
        eigh: Eigendecomposition, eigenvalues ascending; may remember what it has done.
        name: What the matrix is, for the message.

    Returns:
        Its basis, and what it leaves out.

    Raises:
        InputError: If it is empty.
    """
    values, vectors = eigh(second_moment)
    values, vectors = values.double(), vectors.double()
    limit = threshold * float(values.mean()) if relative else threshold
    rank = int((values < limit).sum())
    if not rank:
        raise InputError(
            f"expected eigenvalues of {name} below {limit:g} for AlphaEdit's null space, got none: the smallest is "
            f"{float(values[0]):.2g}: raise --alphaedit-threshold, or give --alphaedit-relative"
        )
    return NullSpace(vectors[:, :rank], float(values[rank:].sum() / values.sum()))
