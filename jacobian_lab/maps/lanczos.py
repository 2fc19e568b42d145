"""Both ends of a symmetric operator's spectrum by Lanczos, and how far beyond them an eigenvalue may still lie.

Lanczos, begun at a unit vector q, makes q_{j+1} = p_j(S) q with polynomials p_j, whose zeros after k steps are the Ritz
values θ_i and whose leading coefficient is 1/Πβ_j. An eigenvector v of λ has |p_k(λ)|·|vᵀq| = |vᵀq_{k+1}| ≤ 1; and a
random q in n dimensions has |vᵀq| ≤ t with probability at most t·√(2n/π). Hence, but for a probability p,

    Π|θ_i − λ| ≤ √(2n/π)/p · Πβ_j,

which bounds λ beyond the Ritz values, where the left side grows. These are the Lanczos bounds of van Dorsselaer,
Hochstenbach and van der Vorst (SIAM J. Matrix Anal. Appl. 22, 2000). They know the spectrum that Lanczos saw, and are
sharper than the bound for the worst one, 1.648·√n·exp(−(2k−1)√ε) for a miss by ε of the spread (Kuczyński and
Woźniakowski, SIAM J. Matrix Anal. Appl. 13, 1992). Neither knows of rounding in the products, which is added elsewhere.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy.linalg import eigh_tridiagonal, eigvalsh_tridiagonal
from scipy.optimize import brentq

MISS = 1e-6
"""Probability p, at the most, that an eigenvalue lies beyond the bound of one end."""

STEPS = 1000
"""Steps at the most: as many vectors are held."""

PACE = 10
"""Steps from one look at the bounds to the next."""

NOTHING = -700.0
"""Logarithm of what is as good as no distance."""

Product = Callable[[Float[ndarray, " n"]], Float[ndarray, " n"]]


@dataclass(frozen=True, eq=False)
class Ritz:
    """Ritz values and vectors of S from one random start.

    Attributes:
        diagonal: α_1 to α_k.
        couplings: β_1 to β_k, the last of them the coupling to what was not seen.
        basis: q_1 to q_k.
    """

    diagonal: Float[ndarray, " k"]
    couplings: Float[ndarray, " k"]
    basis: Float[ndarray, "k n"]

    @cached_property
    def values(self) -> Float[ndarray, " k"]:
        """Ritz values θ, ascending."""
        return np.asarray(eigvalsh_tridiagonal(self.diagonal, self.couplings[:-1]))

    @property
    def lowest(self) -> Float[ndarray, " n"]:
        """Unit Ritz vector of the lowest θ."""
        return self._vector(0)

    @property
    def highest(self) -> Float[ndarray, " n"]:
        """Unit Ritz vector of the highest θ."""
        return self._vector(len(self.diagonal) - 1)

    def below(self, miss: float = MISS) -> float:
        """Distance below the lowest Ritz value within which an eigenvalue may lie.

        Args:
            miss: The probability with which one may lie farther.

        Returns:
            The distance.
        """
        return _reach(self.values - self.values[0], self._limit(miss))

    def above(self, miss: float = MISS) -> float:
        """Distance above the highest Ritz value within which an eigenvalue may lie.

        Args:
            miss: The probability with which one may lie farther.

        Returns:
            The distance.
        """
        return _reach(self.values[-1] - self.values, self._limit(miss))

    def _limit(self, miss: float) -> float:
        """Logarithm of the most that Π|θ_i − λ| can be."""
        return float(np.log(self.couplings).sum() + np.log(2 * self.basis.shape[1] / np.pi) / 2 - np.log(miss))

    def _vector(self, place: int) -> Float[ndarray, " n"]:
        _, vectors = eigh_tridiagonal(self.diagonal, self.couplings[:-1], select="i", select_range=(place, place))
        return _unit(vectors[:, 0] @ self.basis)


def lanczos(product: Product, width: int, seed: int, tolerance: float, *, below: bool = True) -> Ritz:
    """Lanczos in float64 with full reorthogonalisation, until the ends are known.

    Args:
        product: v ↦ Sv, in any precision.
        width: n.
        seed: Seed of the first vector.
        tolerance: It stops where no eigenvalue lies beyond an end by more than this share of the largest |θ|, where
            the Krylov space is exhausted, as that of zero and the identity is at once, or after `STEPS`.
        below: Whether the lower end is to be known too.

    Returns:
        The Ritz values and the outermost vectors.

    Raises:
        FloatingPointError: If a product is not finite.
    """
    most, scale = min(width, STEPS), 0.0
    basis, diagonal, couplings = np.zeros((most, width)), np.zeros(most), np.zeros(most)
    vector = _unit(np.random.default_rng(seed).standard_normal(width))
    for step in range(most):
        basis[step] = vector
        image = product(vector).astype(np.float64)
        if not np.isfinite(image).all():
            raise FloatingPointError("expected finite products")
        scale = max(scale, float(np.linalg.norm(image)))
        diagonal[step] = vector @ image
        for _ in range(2):  # once more for what rounding leaves
            image -= (basis[: step + 1] @ image) @ basis[: step + 1]
        floor = width * np.finfo(np.float64).eps * scale + np.finfo(np.float64).tiny
        couplings[step] = max(float(np.linalg.norm(image)), floor)
        exhausted = step + 1 == most or couplings[step] == floor
        if exhausted or (step + 1) % PACE == 0:
            ritz = Ritz(diagonal[: step + 1], couplings[: step + 1], basis[: step + 1])
            open_ends = (ritz.above(), ritz.below() if below else 0.0)
            if exhausted or max(open_ends) <= tolerance * np.abs(ritz.values).max():
                break
        vector = image / couplings[step]
    return ritz


def _reach(distances: Float[ndarray, " k"], limit: float) -> float:
    """The g at which the logarithms of ``distances + g``, of which one is zero, sum to a limit."""

    def excess(log_g: float) -> float:
        return float(np.log(distances + np.exp(log_g)).sum() - limit)

    highest = limit / len(distances) + 1  # beyond where it would be if all distances were zero
    return 0.0 if excess(NOTHING) >= 0 else float(np.exp(brentq(excess, NOTHING, highest)))


def _unit(vector: Float[ndarray, " n"]) -> Float[ndarray, " n"]:
    return np.asarray(vector / np.linalg.norm(vector))
