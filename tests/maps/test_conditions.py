"""Theorems 1 and 2 against closed forms and known spectra."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.linalg import block_diag, subspace_angles
from scipy.sparse.linalg import ArpackNoConvergence, aslinearoperator

from jacobian_lab.maps import conditions
from jacobian_lab.maps.conditions import (
    SMALL,
    definiteness,
    eigenspaces,
    eigenvector_angle,
    numerical_range,
    plane_angle,
)

EPS = {dtype: float(np.finfo(dtype).eps) for dtype in (np.float32, np.float64)}
ROUNDING = 100 * EPS[np.float64]
ANGLE = np.sqrt(10 * ROUNDING)  # arccos loses half of the digits near 1
LANCZOS = 1e-5
WIDTHS = (1, 5, SMALL - 1, SMALL, SMALL + 9)


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


def dense(J):
    return definiteness(J)[0]


def matrix_free(J, **options):
    return conditions.definiteness_matrix_free(aslinearoperator(J), **options)


def near(actual, expected, atol=ROUNDING):
    np.testing.assert_allclose(actual, np.broadcast_to(expected, np.shape(actual)), rtol=0, atol=atol)


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


SPECTRA = {
    "definite": (np.linspace(0.1, 2, 9), np.array([1e-9, 1, 3])),
    "indefinite": (np.linspace(-0.5, 2, 9), np.array([-1e-9, 1, 3]), np.linspace(-2, -1, 4)),
    "undecided": (np.linspace(0, 2, 9), np.array([0.0, 0, 1, 1])),
}


@pytest.mark.parametrize(("decision", "values"), [(name, values) for name in SPECTRA for values in SPECTRA[name]])
@pytest.mark.parametrize("turning", [0.0, 1.0])
def test_definiteness_of_known_spectra(decision, values, turning):
    J = with_spectrum(values, turning)
    verdict, found = definiteness(J)
    near(found, values)
    assert verdict.decision == decision
    near([verdict.smallest, verdict.largest, verdict.margin], [values[0], values[-1], max(0, -values[0])])
    low, high = verdict.smallest_vector, verdict.largest_vector
    near(np.linalg.norm([low, high], axis=1), 1.0)
    near([low @ J @ low, high @ J @ high], values[[0, -1]])
    near([verdict.position(float(v @ J @ v)) for v in (low, high)], [0, 1])
    near(verdict.position((values[0] + values[-1]) / 2), 0.5)
    S = conditions.symmetric_part(J)
    if decision != "undecided":
        assert conditions.is_positive_definite(S) == (decision == "definite")
    if decision == "indefinite":
        assert low @ J @ low < 0
        assert conditions.is_positive_definite(S + (verdict.margin + ROUNDING) * np.eye(len(J)))
        assert not conditions.is_positive_definite(S + (verdict.margin - ROUNDING) * np.eye(len(J)))


@pytest.mark.parametrize("sign", [1, -1])
def test_float32_is_less_sure_than_float64(sign):
    J = with_spectrum(np.array([sign * 1e-7, 0.5, 1]))
    double, single, computed = dense(J), dense(J.astype(np.float32)), definiteness(J, EPS[np.float32])[0]
    assert double.error < 1e-7 < min(single.error, computed.error)
    assert double.decision == ("definite" if sign > 0 else "indefinite")
    assert single.decision == computed.decision == "undecided"


@pytest.mark.parametrize("shift", [0.4, -0.1])
def test_a_normal_matrix_is_definite_iff_its_eigenvalues_lie_right(shift):
    basis, real = orthogonal(4), shift + np.repeat([0.3 * np.cos(0.5), 2 * np.cos(1.5)], 2)
    verdict, values = definiteness(basis @ block_diag(0.3 * turn(0.5), 2 * turn(1.5)) @ basis.T + shift * np.eye(4))
    near(values, np.sort(real))
    assert verdict.decision == ("definite" if (real > 0).all() else "indefinite")


@pytest.mark.parametrize(("value", "decision"), [(0.5, "indefinite"), (1.0, "definite")])
def test_positive_eigenvalues_do_not_make_a_jordan_block_definite(value, decision):
    verdict, values = definiteness(value * np.eye(6) + np.eye(6, k=1))
    near(values, value + np.cos(np.arange(6, 0, -1) * np.pi / 7))
    assert verdict.decision == decision


@pytest.mark.parametrize(
    ("theta", "decision"), [(1.57, "definite"), (np.pi / 2, "undecided"), (1.58, "indefinite"), (np.pi, "indefinite")]
)
def test_rotations_are_definite_below_a_right_angle(theta, decision):
    verdict, values = definiteness(turn(theta))
    near(values, np.cos(theta))
    assert verdict.decision == decision


@pytest.mark.parametrize("measure", [dense, matrix_free])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_rounding_of_what_only_turns_decides_nothing(measure, dtype):
    """S is no better known than the entries of J, however small it is beside them."""
    quarter = orthogonal(40) @ np.kron(np.eye(20), turn(np.pi / 2)) @ orthogonal(40).T
    for J in (quarter, with_spectrum(np.linspace(0.1, 0.2, 40) * EPS[dtype], turning=10.0)):
        assert measure(J.astype(dtype)).decision == "undecided"


@pytest.mark.parametrize(("value", "decision"), [(2.0, "definite"), (-2.0, "indefinite"), (0.0, "undecided")])
@pytest.mark.parametrize("width", [1, 3, SMALL + 2])
def test_definiteness_of_numbers_and_multiples_of_the_identity(value, decision, width):
    J = value * np.eye(width)
    assert dense(J).decision == matrix_free(J).decision == decision
    near([dense(J).smallest, dense(J).largest], value)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    ("low", "decision"), [(0.2, "definite"), (1e-3, "definite"), (0.0, "undecided"), (-0.2, "indefinite")]
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_matrix_free_definiteness_of_known_spectra(width, low, decision, dtype):
    values = np.linspace(low, 1, width)
    J = with_spectrum(values, turning=0.5).astype(dtype)
    verdict, tolerance = matrix_free(J), LANCZOS + 100 * EPS[dtype]
    assert verdict.decision == dense(J).decision == decision
    if np.isfinite(verdict.error):  # Lanczos may give up at zero
        near([verdict.smallest, verdict.largest], values[[0, -1]], atol=tolerance)
        near([v @ J @ v for v in (verdict.smallest_vector, verdict.largest_vector)], values[[0, -1]], atol=tolerance)
        assert verdict.error < 10 * tolerance


@pytest.mark.parametrize("seed", range(3))
def test_lanczos_does_not_miss_a_zero(seed):
    """ARPACK multiplies its first vector by S, which leaves nothing of the null space."""
    assert matrix_free(with_spectrum(np.array([0, *np.linspace(0.1, 1, 39)])), seed=seed).decision == "undecided"


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_largest_singular_value(width, dtype):
    J = orthogonal(width) @ np.diag(np.linspace(3, 0, width)) @ orthogonal(width, seed=1)
    tolerance = 3 * (100 * EPS[dtype] + (LANCZOS if width >= SMALL else 0))
    near(conditions.largest_singular_value(aslinearoperator(J.astype(dtype))), 3.0, atol=tolerance)


def test_nothing_is_decided_where_lanczos_does_not_converge(monkeypatch):
    def fail(*_, **__):
        raise ArpackNoConvergence("no", np.empty(0), np.empty((0, 0)))

    monkeypatch.setattr(conditions, "eigsh", fail)
    verdict = matrix_free(np.eye(SMALL))
    assert (verdict.decision, verdict.error) == ("undecided", np.inf)
    assert np.isnan([verdict.smallest, verdict.largest, *verdict.smallest_vector, *verdict.largest_vector]).all()
    assert np.isnan(conditions.largest_singular_value(aslinearoperator(np.eye(SMALL))))


@pytest.mark.parametrize(("values", "share"), [([-1.0, 0.0, 2.0, 3.0], 0.5), ([1.0], 1.0), ([-1.0], 0.0)])
def test_positive_share(values, share):
    assert conditions.positive_share(np.array(values)) == share


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
    near(conditions.henrici_departure(basis @ normal @ basis.T, values), 0.0, atol=np.sqrt(ROUNDING))
    near(conditions.henrici_departure(3 * np.eye(4, k=1), np.zeros(4)), 1.0)
    near(conditions.henrici_departure(turn(1) @ upper @ turn(1).T, np.array([3.0, -1.0])), 4 / np.sqrt(26))
    assert conditions.henrici_departure(np.zeros((2, 2)), np.zeros(2)) == 0.0


@pytest.mark.parametrize("theta", [0.0, 0.3, 1.5, 2.0, -0.4])
def test_rotation_is_the_tangent_of_a_plane_rotation(theta):
    near(conditions.rotation(5 * turn(theta)), abs(np.tan(theta)), atol=ROUNDING / np.cos(theta) ** 2)


def test_rotation_of_what_only_stretches_or_only_turns():
    J = random(5, 5)
    assert (conditions.rotation(J + J.T), conditions.rotation(J - J.T)) == (0.0, np.inf)


@st.composite
def jacobians(draw):
    width, seed, shift = draw(st.integers(1, 8)), draw(st.integers(0, 2**32 - 1)), draw(st.floats(-1, 6))
    J = random(width, width, seed=seed)
    return J + shift * np.eye(width) + draw(st.sampled_from([0, 1, 10])) * (J - J.T)


@settings(deadline=None)
@given(jacobians())
def test_definite_iff_no_direction_is_answered_by_its_opposite(J):
    verdict, values = definiteness(J)
    delta, slack = random(200, len(J), seed=1), ROUNDING * np.linalg.norm(J)
    quotients = np.einsum("ni,ij,nj->n", delta, J, delta) / (delta**2).sum(axis=1)
    assert verdict.smallest - slack <= quotients.min() <= quotients.max() <= verdict.largest + slack
    near(conditions.rayleigh_quotient(delta, delta @ J.T), quotients, atol=slack)
    if verdict.decision == "definite":
        assert (quotients > 0).all()
        assert conditions.positive_share(values) == 1
    if verdict.decision == "indefinite":
        assert verdict.smallest_vector @ J @ verdict.smallest_vector < 0


@settings(deadline=None)
@given(jacobians(), st.integers(0, 2**32 - 1), st.floats(1e-6, 1e6))
def test_the_verdict_does_not_depend_on_basis_scale_or_transposition(J, seed, scale):
    verdict, values = definiteness(J)
    slack = ROUNDING * np.linalg.norm(J)
    assume(abs(verdict.smallest) > slack)
    basis = orthogonal(len(J), seed)
    for other, by in ((basis @ J @ basis.T, 1.0), (scale * J, scale), (J.T, 1.0)):
        assert definiteness(other)[0].decision == verdict.decision
        near(definiteness(other)[1] / by, values, atol=slack)
