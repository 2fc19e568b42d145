"""Matrices with a known spectrum, and how near to it is near enough."""

import numpy as np

EPS = {dtype: float(np.finfo(dtype).eps) for dtype in (np.float32, np.float64)}
ROUNDING = 100 * EPS[np.float64]
ANGLE = np.sqrt(10 * ROUNDING)  # arccos loses half of the digits near 1


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def orthogonal(width, seed=0):
    return np.linalg.qr(random(width, width, seed=seed))[0]


def turn(theta):
    return np.array([[np.cos(theta), -np.sin(theta)], [np.sin(theta), np.cos(theta)]])


def with_spectrum(values, turning=1.0):
    """J whose symmetric part has these eigenvalues, and whose antisymmetric part is random."""
    basis, other = orthogonal(len(values)), random(len(values), len(values), seed=1)
    return basis @ np.diag(values) @ basis.T + turning * (other - other.T) / np.sqrt(len(values))


def near(actual, expected, atol=ROUNDING):
    np.testing.assert_allclose(actual, np.broadcast_to(expected, np.shape(actual)), rtol=0, atol=atol)
