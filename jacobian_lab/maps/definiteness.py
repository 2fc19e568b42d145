"""Theorem 2 as a verdict (methods.md §8): is the symmetric part S of J = J_{l→L} positive definite?

From J as an array ``[d_model, d_model]``, or on its own device as a tensor, in float64; what is too large to hold has
a matrix-free twin on a SciPy linear operator.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh
from torch import Tensor

from jacobian_lab.maps.conditions import Vectors

Decision = Literal["definite", "indefinite", "undecided"]

ROUGH = 1e-2
"""Relative accuracy with which a norm is estimated."""

WIDEST_DENSE = 2048
"""Above this width the verdict is sought by Lanczos, without the matrix, where the processor would have the matrix."""

WIDEST_ON_CARD = 4096
"""The same where a card has it: for a random model of this width the verdict took an H200 1.5 s by the matrix, 7.6 by
Lanczos (`benchmarks/gpu.py`)."""

SMALL = 32
"""Below this width Lanczos has no room, and a matrix is cheap to form from products."""


@dataclass(frozen=True, eq=False, repr=False)
class Verdict:
    """Is S = (J + Jᵀ)/2 positive definite (theorem 2)?

    Attributes:
        eigenvalues: Eigenvalues of S, ascending: all of them from a dense J; λ_min and λ_max alone, NaN if they were
            not found, from a matrix-free one.
        error: How far off they may be.
    """

    eigenvalues: Float[ndarray, " n"]
    error: float

    @property
    def decision(self) -> Decision:
        """``"undecided"`` where λ_min is nearer to zero than it is known."""
        return (
            "definite" if self.smallest > self.error else "indefinite" if self.smallest < -self.error else "undecided"
        )

    def __repr__(self) -> str:
        return f"S is {self.decision}: λ_min {self.smallest:.4g}, λ_max {self.largest:.4g}, to within {self.error:.1g}"

    @property
    def smallest(self) -> float:
        """λ_min of S."""
        return float(self.eigenvalues[0])

    @property
    def largest(self) -> float:
        """λ_max of S."""
        return float(self.eigenvalues[-1])

    @property
    def margin(self) -> float:
        """The least t for which S + tI is positive semidefinite; 0 if S is, NaN if that is not known."""
        return float(np.maximum(0.0, -self.smallest))

    def position(self, quotient: float) -> float:
        """Where a direction lies in the real numerical range [λ_min, λ_max].

        Args:
            quotient: Its Rayleigh quotient.

        Returns:
            0 at λ_min, 1 at λ_max; NaN where these are one.
        """
        width = self.largest - self.smallest
        return (quotient - self.smallest) / width if width else float("nan")


@dataclass(frozen=True, eq=False, repr=False)
class Definiteness(Verdict):
    """A verdict with its certificate.

    Attributes:
        smallest_vector: Unit eigenvector of λ_min; where S is indefinite, the counterexample: a
            direction v that is answered by its opposite, vᵀJv = λ_min < 0.
        largest_vector: Unit eigenvector of λ_max.
    """

    smallest_vector: Float[ndarray, " d"]
    largest_vector: Float[ndarray, " d"]


def in_double(J: Vectors) -> Vectors:
    """A matrix in float64.

    Args:
        J: As an array, or as a tensor on any device.

    Returns:
        The same kind, on the same device.
    """
    return J.double() if isinstance(J, Tensor) else J.astype(np.float64)


def symmetric_part(J: Float[Vectors, "d d"]) -> Float[Vectors, "d d"]:
    """S = (J + Jᵀ)/2, which has J's quadratic form.

    Args:
        J: The Jacobian.

    Returns:
        S, in float64.
    """
    J = in_double(J)
    return (J + J.T) / 2


def is_positive_definite(S: Float[Vectors, "d d"]) -> bool:
    """Whether a symmetric matrix has a Cholesky factor.

    Args:
        S: A symmetric matrix.

    Returns:
        The factorisation's verdict, which says nothing of how close it was; `definiteness` does.
    """
    return not torch.linalg.cholesky_ex(torch.as_tensor(in_double(S))).info.item()


def verdict_of(S: Float[Tensor, "d d"], eps: float, sigma_max: float) -> Verdict:
    """Theorem 2's condition from all eigenvalues of S, on its own device, without eigenvectors.

    Args:
        S: The symmetric part of J, in float64.
        eps: ε, the precision that J was computed in.
        sigma_max: Largest singular value of J.

    Returns:
        What `definiteness` says, less the certificate.
    """
    return Verdict(torch.linalg.eigvalsh(S).cpu().numpy(), _rounding(len(S), eps, sigma_max))


def definiteness(J: Float[ndarray, "d d"], eps: float | None = None, sigma_max: float | None = None) -> Definiteness:
    """Theorem 2's condition from all eigenvalues of S.

    The error is taken as d·ε·σ_max(J), a generous estimate of how far J is off: by Weyl's theorem no
    eigenvalue moves by more than that, and where J turns more than it stretches it is more than S
    would tell.

    Args:
        J: The Jacobian.
        eps: ε, the precision that J was computed in; that of its dtype by default.
        sigma_max: Largest singular value of J, where it is known already.

    Returns:
        The verdict with its certificate and all eigenvalues.

    Examples:
        >>> import numpy as np, jacobian_lab as jl
        >>> verdict = jl.definiteness(np.array([[1.0, 3.0], [1.0, 1.0]]))
        >>> verdict.decision, round(verdict.smallest, 6), round(verdict.largest, 6)
        ('indefinite', -1.0, 3.0)
        >>> verdict
        S is indefinite: λ_min -1, λ_max 3, to within ...
    """
    values, vectors = np.linalg.eigh(symmetric_part(J))
    eps = float(np.finfo(J.dtype).eps) if eps is None else eps
    norm = np.linalg.norm(J.astype(np.float64), 2) if sigma_max is None else sigma_max
    return Definiteness(values, _rounding(len(J), eps, float(norm)), vectors[:, 0], vectors[:, -1])


def definiteness_matrix_free(
    J: LinearOperator,
    sigma_max: float | None = None,
    *,
    tolerance: float = 1e-5,
    seed: int = 0,
    eps: float | None = None,
) -> Definiteness:
    """Theorem 2's condition by Lanczos, from products with J and Jᵀ alone.

    Some eigenvalue lies within ‖Sv − θv‖ of every Ritz value θ; that is the error bound, with
    d·ε·σ_max(J) for rounding. λ_min ≤ θ always, so that "indefinite" is certain; "definite" trusts that
    Lanczos, begun at a random vector, has not missed the lowest eigenvalue. S is shifted by twice its
    norm on the way, since ARPACK begins with a product, which would hide a null space.

    Args:
        J: The Jacobian as an operator with ``matvec`` and ``rmatvec``.
        sigma_max: Largest singular value of J, where it is known already.
        tolerance: Relative accuracy at which Lanczos stops.
        seed: Seed of its first vector.
        eps: ε, the precision of J's products; that of its dtype by default.

    Returns:
        The verdict with its certificate; "undecided", with an infinite error, if Lanczos does not converge.
    """
    width = J.shape[0]
    if width < SMALL:
        return definiteness(_formed(J), eps, sigma_max)
    S = LinearOperator(J.shape, matvec=lambda v: (J.matvec(v) + J.rmatvec(v)) / 2, dtype=J.dtype)
    start = np.random.default_rng(seed).standard_normal(width).astype(J.dtype)
    try:
        farthest = eigsh(S, k=1, which="LM", tol=ROUGH, v0=start, return_eigenvectors=False)
        lift = 2 * np.abs(farthest[0])
        lifted = LinearOperator(J.shape, matvec=lambda v: S.matvec(v) + lift * v, dtype=J.dtype)
        values, vectors = eigsh(lifted, k=2, which="BE", tol=tolerance, v0=start)
    except ArpackError:
        nothing = np.full(width, np.nan)
        return Definiteness(nothing[:2], np.inf, nothing, nothing)
    values = values.astype(np.float64) - lift
    off = max(np.linalg.norm(S.matvec(v) - value * v) for value, v in zip(values, vectors.T, strict=True))
    eps = float(np.finfo(J.dtype).eps) if eps is None else eps
    norm = largest_singular_value(J, tolerance, seed) if sigma_max is None else sigma_max
    rounding = _rounding(width, eps, norm)
    return Definiteness(
        values, float(off + rounding if np.isfinite(rounding) else np.inf), vectors[:, 0], vectors[:, -1]
    )


def largest_singular_value(J: LinearOperator, tolerance: float = 1e-5, seed: int = 0) -> float:
    """σ_max = √λ_max(JᵀJ) by Lanczos: the most that J can stretch.

    Args:
        J: The Jacobian as an operator with ``matvec`` and ``rmatvec``.
        tolerance: Relative accuracy at which Lanczos stops.
        seed: Seed of its first vector.

    Returns:
        σ_max; NaN if Lanczos does not converge.
    """
    width = J.shape[0]
    if width < SMALL:
        return float(np.linalg.norm(_formed(J), 2))
    square = LinearOperator(J.shape, matvec=lambda v: J.rmatvec(J.matvec(v)), dtype=J.dtype)
    start = np.random.default_rng(seed).standard_normal(width).astype(J.dtype)
    try:
        value = eigsh(square, k=1, which="LA", tol=tolerance, v0=start, return_eigenvectors=False)
    except ArpackError:
        return float("nan")
    return float(np.sqrt(value[0]))


def positive_share(eigenvalues: Float[ndarray, " d"]) -> float:
    """Share of the eigenvalues of S that are positive (theorem 2 holds iff it is 1).

    Args:
        eigenvalues: All eigenvalues of S.

    Returns:
        Between 0 and 1.
    """
    return float((eigenvalues > 0).mean())


def _rounding(width: int, eps: float, norm: float) -> float:
    return float(width * eps * norm)


def _formed(J: LinearOperator) -> Float[ndarray, "d d"]:
    """The matrix of a small operator."""
    return np.stack([J.matvec(unit) for unit in np.eye(J.shape[0], dtype=J.dtype)], axis=1)
