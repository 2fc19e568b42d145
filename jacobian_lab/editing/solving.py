"""Solves with a matrix that grows by K Kᵀ, batch after batch, and is factored only now and then (methods.md §3, §5)."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import torch
from jaxtyping import Float
from scipy.linalg.lapack import dpocon
from torch import Tensor

from jacobian_lab.errors import InputError

Matrix = Float[Tensor, "n n"]

REALISED = 0.9
"""The share of what a layer is given that a fact alone realises, at the λ that suits a model."""

FOLD = 0.25
"""Columns beyond this share of a matrix's width are folded into its factor."""

WOODBURY_LIMIT = 2e7
"""Woodbury's formula on the factor of C is used where C's condition number times that of I + ZᵀZ is below it: up to
twice as much it agreed with a solve from the whole matrix to 1e-10 (tests/editing/test_woodbury.py)."""


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
        raise InputError(_singular(name, hint))
    none = matrix.new_zeros(len(matrix), 0)
    return Factored(name, hint, factor, 1 / reciprocal, none, none, matrix.new_zeros(0, 0))


def grown(moment: Factored, scale: float, keys: Float[Tensor, "n k"], name: str, hint: str) -> Factored | None:
    """``sM + K Kᵀ`` from the factor of M, by Woodbury's formula, without factoring anything as wide as M.

    Args:
        moment: M, with no columns beside its factor.
        scale: s, above zero.
        keys: K, of which there may be none.
        name: What the sum is, for messages.
        hint: What to do where it is singular.

    Returns:
        The sum; none where K has too many columns for this to be cheaper, or the conditioning forbids it.
    """
    if keys.shape[1] > FOLD * len(keys):
        return None
    factor = math.sqrt(scale) * moment.factor.to(keys)
    whitened = torch.linalg.solve_triangular(factor, keys, upper=False)
    gram = whitened.T @ whitened
    spread = float(torch.linalg.eigvalsh(gram)[-1]) if gram.numel() else 0.0
    if moment.condition * (1 + spread) > WOODBURY_LIMIT:
        return None
    inner = torch.linalg.cholesky(gram + torch.eye(len(gram), dtype=gram.dtype, device=gram.device))
    return Factored(name, hint, factor, moment.condition, keys, whitened, inner)


Factor = Callable[[Matrix, str, torch.device], Factored]
"""Factors a second moment that messages call by a name, on a device."""


def remembered_factor() -> Factor:
    """A Cholesky factorisation that is made once of each second moment; L stays on the host, which holds several."""

    @cache
    def factor(second_moment: Matrix, name: str, device: torch.device) -> Factored:
        matrix = factored(second_moment.to(device), name, advice(second_moment, 1.0))
        return replace(matrix, factor=matrix.factor.cpu())

    return factor


def damped_inverse(
    factor: Matrix, keys: Float[Tensor, "n k"], damping: float, name: str, hint: str
) -> tuple[Float[Tensor, "k n"], float]:
    """``(Kᵀ A⁻¹ K + εI)⁻¹ Kᵀ A⁻¹`` with A = L Lᵀ.

    By QR of L⁻¹K with √ε·I below it, whose condition number is the root of that of what is inverted.

    Args:
        factor: L, lower triangular.
        keys: K.
        damping: ε.
        name: What is inverted, for the message.
        hint: What to do if it is singular.

    Returns:
        The inverse of K in the metric of A, damped; and the condition number of what is inverted, a 1-norm estimate.

    Raises:
        InputError: If the factor of what is inverted is singular to working precision.
    """
    whitened = torch.linalg.solve_triangular(factor, keys, upper=False)
    root = math.sqrt(damping) * torch.eye(keys.shape[1], dtype=keys.dtype, device=keys.device)
    Q, T = torch.linalg.qr(torch.cat([whitened, root]))
    reciprocal = float(dpocon(T.cpu().numpy(), float(torch.linalg.matrix_norm(T.T @ T, 1)), uplo="U")[0])
    if not reciprocal > torch.finfo(T.dtype).eps ** 2:
        raise InputError(_singular(name, hint))
    inverse = torch.linalg.solve_triangular(T, Q[: len(keys)].T, upper=True)
    return torch.linalg.solve_triangular(factor, inverse, upper=False, left=False), 1 / reciprocal


def _singular(name: str, hint: str) -> str:
    return f"expected a positive definite {name} to solve with, got one that is singular to working precision: {hint}"


def suited_ridge(eases: Float[Tensor, "fact layer"]) -> float:
    """λ at which a fact alone realises `REALISED` of what a layer is given, the median over facts and layers.

    Alone, a key k with e = kᵀC⁻¹k realises e / (λ + e) of its residual, by the closed form of Eq. 3.

    Args:
        eases: e of facts and layers.

    Returns:
        λ, to two digits.

    Raises:
        InputError: If C is singular, so that nothing is known of e.
    """
    if not eases.isfinite().all():
        raise InputError(
            "expected a positive definite C to choose λ by, got a singular one: give a longer corpus, other ⟨layers⟩, "
            "or ⟨ridge⟩ and as many facts as C is wide"
        )
    return float(f"{float(eases.median()) * (1 - REALISED) / REALISED:.1e}")


def advice(second_moment: Matrix, ridge: float) -> str:
    """Advice where a matrix made of λC is singular.

    Args:
        second_moment: C.
        ridge: λ.

    Returns:
        A hint for `factored`.
    """
    if not ridge:
        return "raise ⟨ridge⟩"
    silent = int((second_moment.diagonal() == 0).sum())
    if silent:
        return f"{silent} of {len(second_moment)} neurons are silent on the corpus: give another, or other ⟨layers⟩"
    return "give a longer corpus, or raise ⟨ridge⟩"


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


def leading_directions(weight: Float[Tensor, "d_model d_mlp"], share: float) -> Float[Tensor, "d_mlp rank"]:
    """SPHERE's directions: those along which a weight's rows, each of length one, lie the most.

    Taken from the Gram matrix of the rows, the short side.

    Args:
        weight: W.
        share: They are the leading eigenvectors of the rows' second moment whose eigenvalues hold up to this share of
            its trace, and one more.

    Returns:
        The directions, orthonormal.
    """
    rows = weight.double()
    rows = rows / (torch.linalg.vector_norm(rows, dim=1, keepdim=True) + 1e-8)
    squares, vectors = torch.linalg.eigh(rows @ rows.T)
    squares, vectors = squares.flip(0), vectors.flip(1)
    count = min(int((squares.cumsum(0) / squares.sum() <= share).sum()) + 1, len(squares))
    return torch.linalg.qr(rows.T @ vectors[:, :count])[0]


@dataclass(frozen=True, eq=False)
class NullSpace:
    """Directions in which the keys of a corpus hardly lie.

    Attributes:
        basis: Û, eigenvectors of C with small eigenvalues, one a column.
        trace_left_out: Share of C's trace that lies outside.
    """

    basis: Float[Tensor, "d_mlp rank"]
    trace_left_out: float


def remembered_eigh(device: torch.device) -> Eigh:
    """An eigendecomposition that is made once of each matrix.

    Args:
        device: Where it is made; it is kept on the host, which holds several.

    Returns:
        The function.
    """

    def eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(matrix.to(device))
        return values.cpu(), vectors.cpu()

    return cache(eigh)


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
            f"{float(values[0]):.2g}: raise ⟨alphaedit_threshold⟩, or give ⟨alphaedit_relative⟩"
        )
    return NullSpace(vectors[:, :rank], float(values[rank:].sum() / values.sum()))
