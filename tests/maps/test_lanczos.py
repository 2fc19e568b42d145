"""Lanczos and its bounds against dense eigenvalues: what is said to hold but for a probability holds."""

import numpy as np
import pytest
from helpers.matrices import EPS, near, with_spectrum

from jacobian_lab.maps import lanczos as module
from jacobian_lab.maps.lanczos import MISS, lanczos

SPECTRA = {
    "even": np.linspace(-1, 2, 300),
    "a cluster below": np.r_[-1e-3, np.full(30, 1e-3), np.linspace(0.1, 2, 269)],
    "crowded ends": np.cos(np.linspace(0, np.pi, 300)),
    "one value": np.full(300, 0.7),
    "two values": np.repeat([-1.0, 3.0], [299, 1]),
    "nothing": np.zeros(300),
}


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("tolerance", [1e-1, 1e-5])
def test_no_eigenvalue_lies_beyond_the_bounds(name, tolerance):
    values = np.sort(SPECTRA[name])  # of a diagonal matrix: a start at random knows no basis
    slack = 100 * EPS[np.float64]
    for seed in range(4):
        ritz = lanczos(lambda v: values * v, 300, seed, tolerance)
        for end, theta, reach in (
            (values[0], ritz.values[0], ritz.below()),
            (-values[-1], -ritz.values[-1], ritz.above()),
        ):
            assert theta - reach - slack <= end <= theta + slack
            assert reach <= tolerance * np.abs(ritz.values).max() + slack
        near([v @ (values * v) for v in (ritz.lowest, ritz.highest)], ritz.values[[0, -1]], atol=slack)


def test_a_miss_is_as_rare_as_it_is_said_to_be(monkeypatch):
    """The probability is large enough to be seen, and the steps are too few to know the end."""
    monkeypatch.setattr(module, "STEPS", 8)
    values = np.cos(np.linspace(0, np.pi, 400))
    ritz = [lanczos(lambda v: values * v, 400, seed, 0.0) for seed in range(200)]
    for miss in (0.5, 0.1, 0.01):
        missed = np.mean([one.values[0] - one.below(miss) > -1 for one in ritz])
        assert missed <= miss + 2 * np.sqrt(miss / 200)
    assert all(one.below(0.5) < one.below(0.01) < one.below(MISS) for one in ritz)


def test_it_is_sharper_than_the_bound_for_the_worst_spectrum():
    """Kuczyński and Woźniakowski's: a miss by ε of the spread at the most with 1.648·√n·exp(−(2k−1)√ε)."""
    values = np.linspace(-1, 2, 2000)
    ritz = lanczos(lambda v: values * v, 2000, 0, 1e-3)
    worst = (np.log(1.648 * np.sqrt(2000) / MISS) / (2 * len(ritz.values) - 1)) ** 2 * 3
    assert 0 < ritz.below() < worst


def test_products_that_are_not_finite_are_refused():
    S = with_spectrum(np.linspace(0, 1, 20))
    S[3, 4] = np.inf
    with pytest.raises(FloatingPointError):
        lanczos(lambda v: S @ v, 20, 0, 1e-5)


def test_float32_products_are_enough():
    S = with_spectrum(np.linspace(-1, 2, 120), turning=0.0).astype(np.float32)
    ritz = lanczos(lambda v: S @ v.astype(np.float32), 120, 0, 1e-5)
    near(ritz.values[[0, -1]], [-1, 2], atol=1e-5)
