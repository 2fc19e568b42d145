"""The numerical range and normality against closed forms."""

import numpy as np
import pytest
from helpers.matrices import EPS, ROUNDING, near, orthogonal, random, turn, with_spectrum
from scipy.linalg import block_diag

from jacobian_lab.maps.spectra import henrici_departure, numerical_range, rotation


@pytest.mark.parametrize("points", [2, 8, 64])
def test_numerical_range_has_as_many_points_as_asked_for(points):
    assert numerical_range(random(4, 4), points).shape == (points,)


def test_numerical_range_of_a_normal_matrix_is_the_hull_of_its_eigenvalues():
    basis, values = orthogonal(5), np.array([-1.5, *(2 * np.exp([1.4j, -1.4j])), *np.exp([0.5j, -0.5j])])
    boundary = numerical_range(basis @ block_diag(-1.5, 2 * turn(1.4), turn(0.5)) @ basis.T, 40)
    towards = np.exp(-2j * np.pi * np.arange(40) / 40)
    hull = (towards[:, None] * values).real.max(axis=1)
    near((towards * boundary).real, hull)
    near((towards[:, None] * boundary).real.max(axis=1), hull)


def test_numerical_range_of_a_nilpotent_block_is_a_disc_and_of_a_rotation_a_segment():
    near(numerical_range(np.eye(2, k=1), 16), np.exp(2j * np.pi * np.arange(16) / 16) / 2)
    segment = numerical_range(turn(1), 16)
    near(segment.real, np.cos(1))
    near([segment.imag.max(), segment.imag.min()], [np.sin(1), -np.sin(1)])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_numerical_range_spans_the_spectrum_of_the_symmetric_part(dtype):
    boundary = numerical_range(with_spectrum(np.array([-0.5, 0.1, 0.2, 2])).astype(dtype))
    near([boundary.real.min(), boundary.real.max(), boundary[0]], [-0.5, 2, 2], atol=100 * EPS[dtype])
    near(boundary[1:], boundary[:0:-1].conj())


def test_henrici_departure():
    """The difference of squares leaves the root of their rounding."""
    basis, normal, upper = orthogonal(4), block_diag(2 * turn(1.4), turn(0.5)), np.array([[3.0, 4.0], [0.0, -1.0]])
    values = np.array([*(2 * np.exp([1.4j, -1.4j])), *np.exp([0.5j, -0.5j])])
    near(henrici_departure(basis @ normal @ basis.T, values), 0.0, atol=np.sqrt(ROUNDING))
    near(henrici_departure(3 * np.eye(4, k=1), np.zeros(4)), 1.0)
    near(henrici_departure(turn(1) @ upper @ turn(1).T, np.array([3.0, -1.0])), 4 / np.sqrt(26))
    assert henrici_departure(np.zeros((2, 2)), np.zeros(2)) == 0.0


@pytest.mark.parametrize("theta", [0.0, 0.3, 1.5, 2.0, -0.4])
def test_rotation_is_the_tangent_of_a_plane_rotation(theta):
    near(rotation(5 * turn(theta)), abs(np.tan(theta)), atol=ROUNDING / np.cos(theta) ** 2)


def test_rotation_of_what_only_stretches_or_only_turns():
    J = random(5, 5)
    assert (rotation(J + J.T), rotation(J - J.T)) == (0.0, np.inf)
