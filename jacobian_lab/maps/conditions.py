"""Theorems 1 and 2 as measures and verdicts on one J = J_{l→L} (methods.md §8), and what lies beyond.

Measures along a direction take δ and its image Jδ, ``[..., d_model]``, wherever the image comes
from; measures of a matrix take J as an array ``[d_model, d_model]`` and compute in float64. What is
too large to hold has a matrix-free twin on a SciPy linear operator.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.linalg
from jaxtyping import Float
from numpy import ndarray
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh

Decision = Literal["definite", "indefinite", "undecided"]

ROUGH = 1e-2
"""Relative accuracy with which a norm is estimated."""

SMALL = 32
"""Below this width Lanczos has no room, and a matrix is cheap to form from products."""


def rayleigh_quotient(delta: Float[ndarray, "*n d"], image: Float[ndarray, "*n d"]) -> Float[ndarray, "*n"]:
    """β = ⟨δ, Jδ⟩ / ⟨δ, δ⟩: by what J stretches δ along itself (theorem 1).

    Args:
        delta: Directions, not zero.
        image: Their images Jδ.

    Returns:
        β of each.
    """
    return np.asarray((delta * image).sum(-1) / (delta * delta).sum(-1))


def eigen_residual(delta: Float[ndarray, "*n d"], image: Float[ndarray, "*n d"]) -> Float[ndarray, "*n"]:
    """‖Jδ − βδ‖ / ‖Jδ‖ = sin∠(Jδ, δ): zero iff δ is an eigenvector (theorem 1).

    Args:
        delta: Directions, not zero.
        image: Their images Jδ.

    Returns:
        Between 0 and 1; 0 where Jδ vanishes, which makes δ an eigenvector too.
    """
    rest = np.linalg.norm(image - rayleigh_quotient(delta, image)[..., None] * delta, axis=-1)
    return _ratio(rest, np.linalg.norm(image, axis=-1))


def cosine(delta: Float[ndarray, "*n d"], image: Float[ndarray, "*n d"]) -> Float[ndarray, "*n"]:
    """cos(Jδ, δ): positive iff the passive shift does not point away (theorem 2's milder condition).

    Args:
        delta: Directions.
        image: Their images Jδ.

    Returns:
        Between -1 and 1; 0 where either vanishes.
    """
    norms = np.linalg.norm(delta, axis=-1) * np.linalg.norm(image, axis=-1)
    return np.asarray(np.clip(_ratio((delta * image).sum(-1), norms), -1, 1))


def gain(delta: Float[ndarray, "*n d"], image: Float[ndarray, "*n d"]) -> Float[ndarray, "*n"]:
    """‖Jδ‖ / ‖δ‖, between the smallest and the largest singular value of J.

    Args:
        delta: Directions, not zero.
        image: Their images Jδ.

    Returns:
        The gain of each.
    """
    return np.asarray(np.linalg.norm(image, axis=-1) / np.linalg.norm(delta, axis=-1))


@dataclass(frozen=True, eq=False)
class Eigenspaces:
    """Real eigenvectors and real invariant planes of J, which theorem 1 asks δ to lie in.

    Attributes:
        values: Eigenvalues, complex, ``[d_model]``.
        lines: Unit eigenvectors of the real ones, ``[line, d_model]``.
        planes: Orthonormal bases of the planes of the complex pairs, ``[plane, 2, d_model]``.
    """

    values: ndarray
    lines: Float[ndarray, "line d"]
    planes: Float[ndarray, "plane 2 d"]


def eigenspaces(J: Float[ndarray, "d d"]) -> Eigenspaces:
    """Split J's eigenvectors into what a real direction can lie in.

    Args:
        J: The Jacobian.

    Returns:
        Its lines and planes.
    """
    values, vectors = np.linalg.eig(J.astype(np.float64))
    lines = vectors[:, values.imag == 0].real.T
    pairs = vectors[:, values.imag > 0].T
    bases = np.linalg.qr(np.stack([pairs.real, pairs.imag], axis=-1))[0]
    planes = np.swapaxes(bases, 1, 2).reshape(len(pairs), 2, len(J))
    return Eigenspaces(values.astype(np.complex128), lines, planes)


def eigenvector_angle(spaces: Eigenspaces, delta: Float[ndarray, "*n d"]) -> Float[ndarray, "*n"]:
    """Angle between δ and the nearest real eigenvector (theorem 1).

    Args:
        spaces: What `eigenspaces` returned.
        delta: Directions, not zero.

    Returns:
        Radians, between 0 and π/2; NaN if J has no real eigenvector.
    """
    return _smallest_angle(np.abs(_unit(delta) @ spaces.lines.T))


def plane_angle(spaces: Eigenspaces, delta: Float[ndarray, "*n d"]) -> Float[ndarray, "*n"]:
    """Angle between δ and the nearest real invariant plane of a complex pair (theorem 1).

    Args:
        spaces: What `eigenspaces` returned.
        delta: Directions, not zero.

    Returns:
        Radians, between 0 and π/2; NaN if J has no complex pair.
    """
    inside = np.tensordot(_unit(delta), spaces.planes, axes=(-1, -1))
    return _smallest_angle(np.linalg.norm(inside, axis=-1))


@dataclass(frozen=True, eq=False)
class Definiteness:
    """Is S = (J + Jᵀ)/2 positive definite (theorem 2)?

    Attributes:
        decision: ``"undecided"`` where λ_min is nearer to zero than it is known.
        smallest: λ_min of S.
        largest: λ_max of S.
        error: How far off both may be.
        smallest_vector: Unit eigenvector of λ_min; where S is indefinite, the counterexample: a
            direction v that is answered by its opposite, vᵀJv = λ_min < 0.
        largest_vector: Unit eigenvector of λ_max.
    """

    decision: Decision
    smallest: float
    largest: float
    error: float
    smallest_vector: Float[ndarray, " d"]
    largest_vector: Float[ndarray, " d"]

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


def symmetric_part(J: Float[ndarray, "d d"]) -> Float[ndarray, "d d"]:
    """S = (J + Jᵀ)/2, which has J's quadratic form.

    Args:
        J: The Jacobian.

    Returns:
        S, in float64.
    """
    J = J.astype(np.float64)
    return (J + J.T) / 2


def is_positive_definite(S: Float[ndarray, "d d"]) -> bool:
    """Whether a symmetric matrix has a Cholesky factor.

    Args:
        S: A symmetric matrix.

    Returns:
        LAPACK's verdict, which says nothing of how close it was; `definiteness` does.
    """
    try:
        scipy.linalg.cholesky(S)
    except np.linalg.LinAlgError:
        return False
    return True


def definiteness(
    J: Float[ndarray, "d d"], eps: float | None = None, sigma_max: float | None = None
) -> tuple[Definiteness, Float[ndarray, " d"]]:
    """Theorem 2's condition from all eigenvalues of S.

    The error is taken as d·ε·σ_max(J), a generous estimate of how far J is off: by Weyl's theorem no
    eigenvalue moves by more than that, and where J turns more than it stretches it is more than S
    would tell.

    Args:
        J: The Jacobian.
        eps: ε, the precision that J was computed in; that of its dtype by default.
        sigma_max: Largest singular value of J, where it is known already.

    Returns:
        The verdict with its certificate, and all eigenvalues, ascending.
    """
    values, vectors = np.linalg.eigh(symmetric_part(J))
    eps = float(np.finfo(J.dtype).eps) if eps is None else eps
    norm = np.linalg.norm(J.astype(np.float64), 2) if sigma_max is None else sigma_max
    error = np.float64(len(J) * eps * norm)
    return _verdict(values[0], values[-1], error, vectors[:, 0], vectors[:, -1]), values


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
        return definiteness(np.stack([J.matvec(row) for row in np.eye(width, dtype=J.dtype)], axis=1), eps, sigma_max)[
            0
        ]
    S = LinearOperator(J.shape, matvec=lambda v: (J.matvec(v) + J.rmatvec(v)) / 2, dtype=J.dtype)
    start = np.random.default_rng(seed).standard_normal(width).astype(J.dtype)
    try:
        farthest = eigsh(S, k=1, which="LM", tol=ROUGH, v0=start, return_eigenvectors=False)
        lift = 2 * np.abs(farthest[0])
        lifted = LinearOperator(J.shape, matvec=lambda v: S.matvec(v) + lift * v, dtype=J.dtype)
        values, vectors = eigsh(lifted, k=2, which="BE", tol=tolerance, v0=start)
    except ArpackError:
        nothing = np.full(width, np.nan)
        return Definiteness("undecided", np.nan, np.nan, np.inf, nothing, nothing)
    values = values.astype(np.float64) - lift
    off = max(np.linalg.norm(S.matvec(v) - value * v) for value, v in zip(values, vectors.T, strict=True))
    eps = float(np.finfo(J.dtype).eps) if eps is None else eps
    norm = largest_singular_value(J, tolerance, seed) if sigma_max is None else sigma_max
    rounding = width * eps * norm
    error = np.float64(off + rounding if np.isfinite(rounding) else np.inf)
    return _verdict(values[0], values[1], error, vectors[:, 0], vectors[:, 1])


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
        columns = [J.matvec(row) for row in np.eye(width, dtype=J.dtype)]
        return float(np.linalg.norm(np.stack(columns, axis=1), 2))
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


def numerical_range(J: Float[ndarray, "d d"], points: int = 64) -> ndarray:
    """Boundary of W(J) = {x*Jx : ‖x‖ = 1} over complex x, by Johnson's support lines (1978).

    S is positive definite iff W(J) lies right of the imaginary axis, since its real parts are
    [λ_min(S), λ_max(S)]; the Rayleigh quotients of real δ lie on the real axis within it.

    Args:
        J: The Jacobian.
        points: Directions in which the boundary is touched, an even number: for a real J half of them
            mirror the others.

    Returns:
        Complex points of the boundary, counter-clockwise from the rightmost, ``[points]``.
    """
    J = J.astype(np.float64)
    upper = []
    for angle in np.linspace(0, np.pi, points // 2 + 1):
        turned = np.exp(-1j * angle) * J
        _, vectors = scipy.linalg.eigh((turned + turned.conj().T) / 2, subset_by_index=[len(J) - 1] * 2)
        upper.append(vectors[:, 0].conj() @ J @ vectors[:, 0])
    return np.array(upper + [point.conjugate() for point in reversed(upper[1:-1])])


def henrici_departure(J: Float[ndarray, "d d"], eigenvalues: ndarray) -> float:
    """Henrici's departure from normality, (‖J‖_F² − Σ|λ|²)^½ / ‖J‖_F: 0 iff J is normal.

    Args:
        J: The Jacobian.
        eigenvalues: Its eigenvalues.

    Returns:
        Between 0 and 1; 0 for J = 0.
    """
    whole = float(np.linalg.norm(J.astype(np.float64)) ** 2)
    rest = whole - float((np.abs(eigenvalues) ** 2).sum())
    return float(np.sqrt(max(rest, 0.0) / whole)) if whole else 0.0


def rotation(J: Float[ndarray, "d d"]) -> float:
    """‖A‖_F / ‖S‖_F with A = (J − Jᵀ)/2: how much J turns, against how much it stretches.

    Args:
        J: The Jacobian.

    Returns:
        0 for a symmetric J; infinity for an antisymmetric one.
    """
    J = J.astype(np.float64)
    turning, stretching = np.linalg.norm(J - J.T), np.linalg.norm(J + J.T)
    if not turning:
        return 0.0
    return float(turning / stretching) if stretching else float("inf")


def _verdict(
    smallest: np.floating, largest: np.floating, error: np.floating, low: ndarray, high: ndarray
) -> Definiteness:
    decision: Decision = "definite" if smallest > error else "indefinite" if smallest < -error else "undecided"
    return Definiteness(decision, float(smallest), float(largest), float(error), low, high)


def _ratio(part: np.generic | ndarray, whole: np.generic | ndarray) -> ndarray:
    """``part / whole``, 0 where the whole vanishes."""
    out = np.zeros(np.shape(whole))
    return np.divide(part, whole, out=out, where=np.asarray(whole) > 0)


def _unit(vectors: ndarray) -> ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _smallest_angle(cosines: ndarray) -> ndarray:
    """Over the last axis, which may be empty."""
    if not cosines.shape[-1]:
        return np.full(cosines.shape[:-1], np.nan)
    return np.asarray(np.arccos(np.minimum(cosines.max(-1), 1.0)))
