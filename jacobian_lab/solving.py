"""Solves with a matrix that grows by K Kᵀ, batch after batch, and is factored only now and then (methods.md §3, §5)."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from scipy.linalg.lapack import dpocon
from torch import Tensor

from jacobian_lab.errors import InputError

Matrix = Float[Tensor, "n n"]

FOLD = 0.25
"""Columns beyond this share of a matrix's width are folded into its factor."""


@dataclass(frozen=True, eq=False)
class Factored:
    """A symmetric positive definite matrix ``L Lᵀ + K Kᵀ``: one that is factored, and columns that came since.

    Attributes:
        name: What it is, for messages.
        hint: What to do where it is singular.
        factor: L, lower triangular.
        condition: Condition number of L Lᵀ in the 1-norm, as LAPACK estimates it from L.
        columns: K.
        whitened: Z = L⁻¹ K.
        inner: The Cholesky factor of I + Zᵀ Z.
    """

    name: str
    hint: str
    factor: Matrix
    condition: float
    columns: Float[Tensor, "n m"]
    whitened: Float[Tensor, "n m"]
    inner: Float[Tensor, "m m"]

    def plus(self, keys: Float[Tensor, "n k"]) -> "Factored":
        """The matrix with ``keys · keysᵀ`` added to it.

        Args:
            keys: Further columns.

        Returns:
            The sum; factored anew where its columns have become many, or cannot stand beside the factor
            to working precision.

        Raises:
            InputError: If it is singular.
        """
        columns = torch.cat([self.columns, keys], dim=1)
        if columns.shape[1] <= FOLD * len(self.factor):
            added = torch.linalg.solve_triangular(self.factor, keys, upper=False)
            inner = _extended(self.inner, self.whitened.T @ added, added.T @ added)
            if inner is not None:
                return replace(self, columns=columns, whitened=torch.cat([self.whitened, added], dim=1), inner=inner)
        return factored(self.factor @ self.factor.T + columns @ columns.T, self.name, self.hint)

    def solve(self, right: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        """Solve with the matrix, by Woodbury's formula where columns stand beside the factor.

        Args:
            right: The right-hand side.

        Returns:
            The matrix's inverse times it.
        """
        if not self.columns.shape[1]:
            return torch.cholesky_solve(right, self.factor)
        whitened = torch.linalg.solve_triangular(self.factor, right, upper=False)
        shared = torch.cholesky_solve(self.whitened.T @ whitened, self.inner)
        return self._unwhitened(whitened - self.whitened @ shared)

    def solve_newest(self, keys: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        """Solve for the columns that `plus` was given last: exacter than `solve`, since nothing is subtracted.

        Args:
            keys: These columns.

        Returns:
            The matrix's inverse times them.
        """
        if not self.columns.shape[1]:
            return torch.cholesky_solve(keys, self.factor)
        newest = torch.eye(len(self.inner), dtype=keys.dtype, device=keys.device)[:, -keys.shape[1] :]
        return self._unwhitened(self.whitened @ torch.cholesky_solve(newest, self.inner))

    def _unwhitened(self, right: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        return torch.linalg.solve_triangular(self.factor.T, right, upper=True)


def factored(matrix: Matrix, name: str, hint: str) -> Factored:
    """Factor a matrix.

    Args:
        matrix: A symmetric positive definite matrix, in float64.
        name: What it is, for the message.
        hint: What to do if it is singular.

    Returns:
        The matrix, with no columns beside its factor.

    Raises:
        InputError: If it is not positive definite to working precision.
    """
    factor, info = torch.linalg.cholesky_ex(matrix)
    reciprocal = 0.0
    if not int(info):
        reciprocal = float(dpocon(factor.cpu().numpy(), float(torch.linalg.matrix_norm(matrix, 1)), uplo="L")[0])
    if not reciprocal > torch.finfo(matrix.dtype).eps:
        raise InputError(
            f"expected a positive definite {name} to solve with, got one that is singular to working precision: {hint}"
        )
    none = matrix.new_zeros(len(matrix), 0)
    return Factored(name, hint, factor, 1 / reciprocal, none, none, matrix.new_zeros(0, 0))


def advice(second_moment: Matrix, ridge: float) -> str:
    """What to do where a matrix made of λC is singular.

    Args:
        second_moment: C.
        ridge: λ.

    Returns:
        A hint for `factored`.
    """
    if not ridge:
        return "raise --ridge"
    silent = int((second_moment.diagonal() == 0).sum())
    if silent:
        return f"{silent} of {len(second_moment)} neurons are silent on the corpus: give another, or other --layers"
    return "give a longer corpus, or raise --ridge"


def _extended(
    inner: Float[Tensor, "m m"], cross: Float[Tensor, "m k"], gram: Float[Tensor, "k k"]
) -> Float[Tensor, "all all"] | None:
    """The Cholesky factor of I + ZᵀZ with further columns in Z; none where it is singular to working precision."""
    below = torch.linalg.solve_triangular(inner, cross, upper=False).T
    left = gram - below @ below.T + torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    corner, info = torch.linalg.cholesky_ex(left)
    if int(info) or gram.diagonal().max() * torch.finfo(gram.dtype).eps > 1:
        return None
    upper = torch.cat([inner, torch.zeros_like(cross)], dim=1)
    return torch.cat([upper, torch.cat([below, corner], dim=1)])
