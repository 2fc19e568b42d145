"""Theorem 1 as measures along a direction δ (methods.md §8): is δ an eigenvector of J, or in an invariant plane of it?

The four measures of δ and its image Jδ take ``[..., d_model]``, wherever the image comes from, as NumPy arrays or as
torch tensors, and give the same kind back in its precision and on its device. Where δ is zero and a measure is 0/0, it
is NaN. Angles are taken from the eigenvectors of J as an array.
"""

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

Vectors = TypeVar("Vectors", ndarray, Tensor)
"""NumPy arrays or torch tensors: what a measure is given, it gives back."""


def rayleigh_quotient(delta: Float[Vectors, "*n d"], image: Float[Vectors, "*n d"]) -> Float[Vectors, "*n"]:
    """β = ⟨δ, Jδ⟩ / ⟨δ, δ⟩: by what J stretches δ along itself (theorem 1).

    Args:
        delta: Directions δ.
        image: Their images Jδ.

    Returns:
        β of each; NaN where δ is zero.
    """
    return _ratio((delta * image).sum(-1), (delta * delta).sum(-1))


def eigen_residual(delta: Float[Vectors, "*n d"], image: Float[Vectors, "*n d"]) -> Float[Vectors, "*n"]:
    """‖Jδ − βδ‖ / ‖Jδ‖ = sin∠(Jδ, δ): zero iff δ is an eigenvector (theorem 1).

    Args:
        delta: Directions δ, not zero.
        image: Their images Jδ.

    Returns:
        Between 0 and 1; 0 where Jδ vanishes, which makes δ an eigenvector too.
    """
    rest = image - rayleigh_quotient(delta, image)[..., None] * delta
    return _zero_where(_norm(image) == 0, _ratio(_norm(rest), _norm(image)))


def cosine(delta: Float[Vectors, "*n d"], image: Float[Vectors, "*n d"]) -> Float[Vectors, "*n"]:
    """cos(Jδ, δ): positive iff the passive shift does not point away (theorem 2's milder condition).

    Args:
        delta: Directions δ.
        image: Their images Jδ.

    Returns:
        Between -1 and 1; 0 where either vanishes.
    """
    norms = _norm(delta) * _norm(image)
    return _zero_where(norms == 0, _ratio((delta * image).sum(-1), norms).clip(-1, 1))


def gain(delta: Float[Vectors, "*n d"], image: Float[Vectors, "*n d"]) -> Float[Vectors, "*n"]:
    """‖Jδ‖ / ‖δ‖, between the smallest and the largest singular value of J.

    Args:
        delta: Directions δ.
        image: Their images Jδ.

    Returns:
        The gain of each; NaN where δ is zero.
    """
    return _ratio(_norm(image), _norm(delta))


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

    Examples:
        >>> import numpy as np, jacobian_lab as jl
        >>> spaces = jl.eigenspaces(np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 2.0]]))  # turns about z
        >>> spaces.lines.shape, spaces.planes.shape
        ((1, 3), (1, 2, 3))
        >>> np.abs(spaces.lines)
        array([[0., 0., 1.]])
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


def _norm(vectors: Vectors) -> Any:  # NumPy makes a number of what has no axis left
    return (vectors * vectors).sum(-1) ** 0.5


def _ratio(part: Any, whole: Any) -> Any:
    """``part / whole``, quietly NaN where both are zero."""
    if isinstance(whole, Tensor):
        return part / whole
    with np.errstate(invalid="ignore"):
        return np.asarray(part / whole)


def _zero_where(vanishes: Any, values: Any) -> Any:
    return torch.where(vanishes, 0.0, values) if isinstance(values, Tensor) else np.where(vanishes, 0.0, values)


def _unit(vectors: ndarray) -> ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _smallest_angle(cosines: ndarray) -> ndarray:
    """Over the last axis, which may be empty."""
    if not cosines.shape[-1]:
        return np.full(cosines.shape[:-1], np.nan)
    return np.asarray(np.arccos(np.minimum(cosines.max(-1), 1.0)))
