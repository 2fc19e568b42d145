"""Numerical range of J = J_{l→L}, departure from normality and rotation, in float64."""

import numpy as np
import scipy.linalg
from jaxtyping import Float
from numpy import ndarray


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
