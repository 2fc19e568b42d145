"""Theorem 2 as a verdict (methods.md §8): is the symmetric part S of J = J_{l→L} positive definite?

From J as an array ``[d_model, d_model]``, or on its own device as a tensor, in float64; what is too large to hold has
a matrix-free twin on a SciPy linear operator.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

from jacobian_lab.maps.conditions import Vectors
from jacobian_lab.maps.lanczos import MISS, Product, Ritz, lanczos

Decision = Literal["definite", "indefinite", "undecided"]

WIDEST_DENSE = 2048
"""Above this width the verdict is sought by Lanczos, without the matrix, where the processor would have the matrix."""

WIDEST_ON_CARD = 4096
"""The same where a card has it: for a random model of this width the verdict took an H200 1.5 s by the matrix, 7.6 by
Lanczos (`benchmarks/gpu.py`)."""

WIDEST_FORMED = 8192
"""Up to this width a matrix is formed by products where nothing less can prove *definite*: 2 GiB with its factor."""

STARTS = 3
"""Random vectors that Lanczos is begun at where the matrix is not formed and no counterexample shows itself."""

SMALL = 32
"""Below this width Lanczos has no room, and a matrix is cheap to form from products."""


@dataclass(frozen=True, eq=False, repr=False)
class Verdict:
    """Is S = (J + Jᵀ)/2 positive definite (theorem 2)?

    Attributes:
        eigenvalues: Eigenvalues of S, ascending: all of them from a dense J; λ_min and λ_max alone, NaN if they were
            not found, from a matrix-free one.
        rounding: How far off they may be, from the precision of J.
        missed: How much farther down λ_min, and farther up λ_max, may lie; 0 where all eigenvalues are there.
    """

    eigenvalues: Float[ndarray, " n"]
    rounding: float
    missed: tuple[float, float] = field(default=(0.0, 0.0), kw_only=True)

    @property
    def error(self) -> float:
        """Bound of the error of the eigenvalues."""
        return self.rounding + max(self.missed)

    @property
    def decision(self) -> Decision:
        """``"undecided"`` where λ_min is nearer to zero than it is known."""
        if self.smallest - self.missed[0] > self.rounding:
            return "definite"
        return "indefinite" if self.smallest < -self.rounding else "undecided"

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
        """Place of a direction in the real numerical range [λ_min, λ_max].

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
    """True if a symmetric matrix has a Cholesky factor.

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
    """Theorem 2's condition by Lanczos, from products with J and Jᵀ; no *definite* without a proof.

    *Indefinite* is certain and needs no matrix: `smallest_vector` is a v with vᵀJv < 0, beyond the rounding d·ε·σ_max.
    Where none is found, J is formed by d products up to a width of `WIDEST_FORMED`, and Cholesky factors of S − tI
    decide, by Rump's bound of their own rounding (BIT 46, 2006); above it Lanczos is begun at `STARTS` random vectors,
    and what they leave open below λ_min is part of the error: it holds but for a probability of `lanczos.MISS`, as do
    λ_min and λ_max wherever no matrix is formed.

    Args:
        J: The Jacobian as an operator with ``matvec`` and ``rmatvec``.
        sigma_max: Largest singular value of J, where it is known already; infinity if no decision is wanted.
        tolerance: Relative accuracy at which Lanczos stops.
        seed: Seed of its first vector.
        eps: ε, the precision of J's products; that of its dtype by default.

    Returns:
        The verdict with its certificate; "undecided", with an infinite error, where products are not finite.
    """
    width = J.shape[0]
    if width < SMALL:
        return definiteness(_formed(J), eps, sigma_max)
    eps = float(np.finfo(J.dtype).eps) if eps is None else eps
    sigma_max = largest_singular_value(J, tolerance, seed) if sigma_max is None else sigma_max
    rounding = _rounding(width, eps, sigma_max)

    def product(v: Float[ndarray, " d"]) -> Float[ndarray, " d"]:
        v = v.astype(J.dtype)
        return (J.matvec(v).astype(np.float64) + J.rmatvec(v)) / 2

    try:
        ritz = lanczos(product, width, seed, tolerance)
        verdict = _bounded(product, [ritz], rounding)
        if verdict.decision == "indefinite" or not np.isfinite(rounding):
            return verdict
        if width > WIDEST_FORMED:
            others = [lanczos(product, width, seed + start, tolerance) for start in range(1, STARTS)]
            return _bounded(product, [ritz, *others], rounding)
    except FloatingPointError:
        nothing = np.full(width, np.nan)
        return Definiteness(nothing[:2], np.inf, nothing, nothing)
    matrix = _formed(J)
    return _proven(symmetric_part(matrix), verdict) or definiteness(matrix, eps, sigma_max)


def largest_singular_value(J: LinearOperator, tolerance: float = 1e-5, seed: int = 0) -> float:
    """σ_max = √λ_max(JᵀJ) by Lanczos: the most that J can stretch.

    An estimate from below: it falls short by more than `tolerance` with a probability of at most `lanczos.MISS`, if
    that many steps suffice.

    Args:
        J: The Jacobian as an operator with ``matvec`` and ``rmatvec``.
        tolerance: Relative accuracy at which Lanczos stops.
        seed: Seed of its first vector.

    Returns:
        σ_max; NaN where products are not finite.
    """
    width = J.shape[0]
    if width < SMALL:
        return float(np.linalg.norm(_formed(J), 2))
    try:
        ritz = lanczos(lambda v: J.rmatvec(J.matvec(v.astype(J.dtype))), width, seed, tolerance, below=False)
    except FloatingPointError:
        return float("nan")
    return float(np.sqrt(max(ritz.values[-1], 0.0)))


def positive_share(eigenvalues: Float[ndarray, " d"]) -> float:
    """Share of the eigenvalues of S that are positive (theorem 2 holds iff it is 1).

    Args:
        eigenvalues: All eigenvalues of S.

    Returns:
        Between 0 and 1.
    """
    return float((eigenvalues > 0).mean())


def _bounded(product: Product, runs: Sequence[Ritz], rounding: float) -> Definiteness:
    """Verdict of Lanczos from random starts, all of which miss an eigenvalue with probability `MISS`."""
    miss = MISS ** (1 / len(runs))
    low = min(runs, key=lambda ritz: ritz.values[0]).lowest
    high = max(runs, key=lambda ritz: ritz.values[-1]).highest
    ends = np.array([low @ product(low), high @ product(high)])
    floor = min(ritz.values[0] - ritz.below(miss) for ritz in runs)
    roof = max(ritz.values[-1] + ritz.above(miss) for ritz in runs)
    return Definiteness(ends, rounding, low, high, missed=_missed(ends, floor, roof))


def _proven(S: Float[ndarray, "d d"], verdict: Definiteness) -> Definiteness | None:
    """A verdict by Lanczos with bounds from Cholesky factors; none where it was wrong."""
    least, most, (below, above) = verdict.smallest, verdict.largest, verdict.missed
    shifts = [least - below]
    if shifts[0] <= verdict.rounding < least:  # too far down to decide
        shifts.append((least + verdict.rounding) / 2)
    floor, roof = max(_floor(S, shift) for shift in shifts), -_floor(-S, -most - above)
    if not np.isfinite(roof - floor):
        return None
    return replace(verdict, missed=_missed(verdict.eigenvalues, floor, roof))


def _missed(ends: Float[ndarray, " 2"], floor: float, roof: float) -> tuple[float, float]:
    return max(float(ends[0] - floor), 0.0), max(float(roof - ends[1]), 0.0)


def _floor(S: Float[ndarray, "d d"], shift: float) -> float:
    """A lower bound of λ_min(S), a little below a shift; −∞ where no Cholesky factor proves it."""
    # where A has a computed factor, λ_min(A) ≥ −γ/(1 − γ)·tr(A) with γ = (d + 1)u/(1 − (d + 1)u) (Rump 2006)
    gamma = (len(S) + 2) * float(np.finfo(np.float64).eps)  # 2u: takes in 1 − γ and the rounding of the shift
    margin = gamma * (float(np.trace(S)) - len(S) * shift) + float(np.finfo(np.float64).tiny)
    shifted = S.copy()
    shifted.flat[:: len(S) + 1] -= shift - 2 * margin
    return shift - 3 * margin if is_positive_definite(shifted) else -np.inf


def _rounding(width: int, eps: float, norm: float) -> float:
    return float(width * eps * norm)


def _formed(J: LinearOperator) -> Float[ndarray, "d d"]:
    """The matrix of an operator, by as many products as it is wide."""
    return np.asarray(J.matmat(np.eye(J.shape[0], dtype=J.dtype)))
