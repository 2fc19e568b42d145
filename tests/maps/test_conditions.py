"""Theorem 1 against closed forms: measures along a direction, lines and planes."""

import numpy as np
import pytest
import torch
from helpers.matrices import ANGLE, ROUNDING, near, orthogonal, random, turn
from scipy.linalg import block_diag, subspace_angles

from jacobian_lab.maps import conditions
from jacobian_lab.maps.conditions import eigenspaces, eigenvector_angle, plane_angle

MEASURES = (conditions.rayleigh_quotient, conditions.eigen_residual, conditions.cosine, conditions.gain)


@pytest.mark.parametrize("value", [3.0, 0.1, 0.0, -2.0])
def test_theorem_1_on_eigenvectors(value):
    delta = random(5, 7)
    near(conditions.rayleigh_quotient(delta, value * delta), value)
    near(conditions.eigen_residual(delta, value * delta), 0.0)
    near(conditions.cosine(delta, value * delta), np.sign(value))
    near(conditions.gain(delta, value * delta), abs(value))


@pytest.mark.parametrize("theta", [0.0, 0.3, np.pi / 2, 2.0, np.pi, -0.7])
@pytest.mark.parametrize("shape", [(2,), (6, 2), (3, 4, 2)])
def test_theorem_1_on_rotations(theta, shape):
    delta = random(*shape)
    expected = {"rayleigh_quotient": 5 * np.cos(theta), "cosine": np.cos(theta), "gain": 5.0}
    for name, value in (expected | {"eigen_residual": abs(np.sin(theta))}).items():
        measured = getattr(conditions, name)(delta, 5 * delta @ turn(theta).T)
        assert measured.shape == shape[:-1]
        near(measured, value)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 3, 5)])
def test_tensors_are_measured_as_arrays_are(measure, shape):
    delta, image = random(*shape), random(*shape, seed=1)
    by_torch, by_numpy = measure(torch.from_numpy(delta), torch.from_numpy(image)), measure(delta, image)
    assert isinstance(by_torch, torch.Tensor)
    assert isinstance(by_numpy, np.ndarray)
    np.testing.assert_allclose(by_torch.numpy(), by_numpy, rtol=ROUNDING)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
@pytest.mark.parametrize("shape", [(), (2,)])
def test_zero_directions_give_nan_quietly_and_zero_images_zero(kind, shape):
    nothing, values = kind(np.zeros((*shape, 3))), kind(random(*shape, 3))
    expected = {"rayleigh_quotient": (np.nan, 0.0), "gain": (np.nan, 0.0), "eigen_residual": (0.0, 0.0)}
    for name, (of_nothing, to_nothing) in (expected | {"cosine": (0.0, 0.0)}).items():
        measure = getattr(conditions, name)
        near(measure(nothing, nothing), of_nothing)
        near(measure(values, nothing), to_nothing)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_what_is_not_known_stays_unknown(measure, kind):
    near(measure(kind(random(3)), kind(np.full(3, np.nan))), np.nan)


@pytest.fixture(scope="module")
def skew():
    """Three lines and two planes in a basis that is not orthogonal."""
    basis = random(7, 7, seed=3)
    return basis, eigenspaces(basis @ block_diag(2, -1, 0.5, 3 * turn(1), 0.7 * turn(2.5)) @ np.linalg.inv(basis))


def test_eigenspaces_are_found_in_any_basis(skew):
    basis, spaces = skew
    expected = np.array([2, -1, 0.5, *(3 * np.exp([1j, -1j])), *(0.7 * np.exp([2.5j, -2.5j]))])
    near(np.sort_complex(spaces.values), np.sort_complex(expected), atol=ROUNDING * np.linalg.cond(basis))
    assert (spaces.lines.shape, spaces.planes.shape) == ((3, 7), (2, 2, 7))
    near(np.linalg.norm(spaces.lines, axis=1), 1.0)
    near(spaces.planes @ np.swapaxes(spaces.planes, 1, 2), np.eye(2))
    near(eigenvector_angle(spaces, -4 * basis[:, :3].T), 0.0, atol=ANGLE)
    near(plane_angle(spaces, np.concatenate([random(6, 2) @ basis[:, 3:5].T, basis[:, 5:].T])), 0.0, atol=ANGLE)


def test_angles_are_those_from_the_nearest_line_and_plane(skew):
    basis, spaces = skew
    for delta in random(9, 7, seed=4):
        lines = [subspace_angles(basis[:, [i]], delta[:, None])[0] for i in range(3)]
        planes = [subspace_angles(basis[:, [i, i + 1]], delta[:, None])[0] for i in (3, 5)]
        near([eigenvector_angle(spaces, delta), plane_angle(spaces, delta)], [min(lines), min(planes)], atol=ANGLE)


@pytest.mark.parametrize("angle", [0.0, 0.2, 0.7])
def test_angles_of_symmetric_and_orthogonal_matrices(angle):
    basis, low, high = orthogonal(3), np.cos(angle), np.sin(angle)
    symmetric = eigenspaces(basis @ np.diag([1.0, 2.0, -3.0]) @ basis.T)
    near(eigenvector_angle(symmetric, basis @ [0, high, low]), angle, atol=ANGLE)
    spin, raised = eigenspaces(basis @ block_diag(turn(1), 1) @ basis.T), basis @ [0.6 * low, 0.8 * low, high]
    near([plane_angle(spin, raised), eigenvector_angle(spin, raised)], [angle, np.pi / 2 - angle], atol=ANGLE)


def test_angles_are_nan_where_there_is_nothing_to_be_near():
    for delta in (random(2), random(4, 2)):
        assert np.isnan(eigenvector_angle(eigenspaces(turn(1)), delta)).all()
        assert np.isnan(plane_angle(eigenspaces(np.diag([1.0, 2.0])), delta)).all()


def test_a_number_has_one_line_and_no_plane():
    spaces, delta = eigenspaces(np.array([[-2.0]])), np.array([[3.0], [-1.0]])
    near(eigenvector_angle(spaces, delta), 0.0)
    assert np.isnan(plane_angle(spaces, delta)).all()


def test_eigenvalues_are_complex_even_where_all_are_real():
    assert np.iscomplexobj(eigenspaces(np.diag([1.0, 2.0])).values)
