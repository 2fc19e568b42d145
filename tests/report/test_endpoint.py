"""A trial's endpoint against sums by hand, its intervals and p values against SciPy's."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from jacobian_lab.report import endpoint, intervals
from jacobian_lab.report.endpoint import ALL, COLUMNS, compared, holm, interval, reached, sign_flips, texts
from jacobian_lab.tries import averaged_best, bounds_around

BOUNDS = (0.1, 1.0)


@pytest.fixture(autouse=True)
def as_many_resamples_as_users_have(monkeypatch):
    monkeypatch.setattr(intervals, "RESAMPLES", 9999)


def points_of(rows):
    frame = pd.DataFrame(rows, columns=["model", "data", "batch", "seed", "scheme", "ridge", "generalization", "kl"])
    return frame.assign(efficacy=frame["generalization"], top10=frame["generalization"])


def one_each(values, model="m", data="d"):
    """One point within both bounds a batch and scheme: the endpoint is its gain."""
    return points_of([
        (model, data, f"batch {at}", 0, scheme, 1.0, gain, 0.05)
        for scheme, gains in values.items()
        for at, gain in enumerate(gains)
    ])


def test_the_endpoint_is_the_mean_over_bounds_of_the_best_within_each():
    points = points_of([
        ("m", "d", "0:32", 0, "a", 1.0, 80.0, 0.5),
        ("m", "d", "0:32", 0, "a", 10.0, 60.0, 0.1),
        ("m", "d", "0:32", 0, "a", 99.0, 30.0, 0.01),
        ("m", "d", "0:32", 0, "b", 1.0, 90.0, 2.0),
        ("m", "d", "0:32", 0, "b", 10.0, np.nan, 0.01),
        ("m", "d", "0:32", 1, "a", 1.0, 50.0, 0.2),
    ])
    values = reached(points, "generalization", BOUNDS)
    assert values.to_dict("records") == [{"model": "m", "data": "d", "batch": "0:32", "a": (70 + 25) / 2, "b": 0.0}]
    assert reached(points, "top10", BOUNDS)["b"].item() == 100.0  # nothing edited: all of the ten stay
    assert bounds_around(0.1)[0] == pytest.approx(0.01)
    assert bounds_around(0.1)[-1] == pytest.approx(1.0)
    assert averaged_best(np.array([1.0, 3.0]), np.array([0.1, 1.0]), BOUNDS) == 2.0


def test_intervals_resample_batches_within_their_stratum():
    """Against all resamples of two batches by hand, and the variance that they ought to have."""
    values, strata = np.array([1.0, 3.0]), np.zeros(2, int)
    mean, low, high = interval(values, strata, 0)
    assert (mean, low, high) == pytest.approx((2.0, 2 - np.sqrt(2), 2 + np.sqrt(2)))
    assert np.isnan(interval(np.array([4.0, 6.0]), np.array([0, 1]), 0)[1])
    rng = np.random.default_rng(1)
    values, strata = rng.normal(size=40), np.array([0] * 30 + [1] * 10)
    expected = np.sqrt(values[:30].var(ddof=1) / 30 + values[30:].var(ddof=1) / 10) / 2
    mean, low, high = interval(values, strata, 0)
    assert mean == pytest.approx((values[:30].mean() + values[30:].mean()) / 2)
    assert (high - low) / 2 == pytest.approx(1.96 * expected, rel=0.05)


@pytest.mark.parametrize("count", [5, 8])
def test_p_values_are_those_of_all_ways_of_flipping_signs(count):
    differences = np.random.default_rng(count).normal(0.8, 1, count)
    strata = np.arange(count) % 2
    result = stats.permutation_test(
        (differences,),
        lambda x, axis: (x[..., strata == 0].mean(axis) + x[..., strata == 1].mean(axis)) / 2,
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf,
    )
    assert sign_flips(differences, strata, 0) == pytest.approx(result.pvalue)


def test_no_p_value_is_below_what_the_batches_allow():
    assert sign_flips(np.array([1.0, 2.0, 3.0]), np.zeros(3, int), 0) == 2 / 2**3
    assert sign_flips(np.zeros(3), np.zeros(3, int), 0) == 1
    many = np.random.default_rng(0).normal(0.5, 1, 20)
    assert sign_flips(many, np.zeros(20, int), 0) == pytest.approx(stats.ttest_1samp(many, 0).pvalue, abs=0.02)
    assert sign_flips(np.ones(20), np.zeros(20, int), 0) == 2.0**-endpoint.EXACT


def test_holm_by_hand():
    corrected = holm(np.array([0.04, np.nan, 0.01, 0.03, 0.5]))
    np.testing.assert_allclose(corrected, [0.09, np.nan, 0.04, 0.09, 0.5])
    np.testing.assert_allclose(holm(np.array([0.6, 0.7])), [1.0, 1.0])
    assert holm(np.array([np.nan])).tolist() == pytest.approx([np.nan], nan_ok=True)


def test_holm_keeps_the_rate_of_any_false_discovery():
    rng = np.random.default_rng(0)
    false = [holm(rng.uniform(size=10)).min() < 0.05 for _ in range(4000)]
    assert np.mean(false) == pytest.approx(0.05, abs=0.012)


def test_all_pairs_are_compared_on_each_data_set_and_on_all():
    gains = {"dividing": [50.0, 52.0, 54.0], "forward": [60.0, 61.0, 65.0], "coordinated": [70.0, 70.0, 76.0]}
    more = {name: values[:2] for name, values in gains.items()}
    points = pd.concat([one_each(gains), one_each(more, data="e")])
    frame = compared(points, "generalization", BOUNDS)
    assert tuple(frame.columns) == COLUMNS
    assert len(frame) == 3 * (3 + 3)
    cell = frame.set_index(["data", "scheme", "against"])
    row = cell.loc[("d", "forward", "dividing")]
    assert (row["mean"], row["batches"], row["p"]) == pytest.approx((10.0, 3, 0.25))
    pooled = cell.loc[(ALL, "coordinated", "forward")]
    assert pooled["mean"] == pytest.approx((np.mean([10, 9, 11]) + np.mean([10, 9])) / 2)
    assert pooled["p"] == 2 / 2**5
    tests = frame["p"].notna()
    np.testing.assert_allclose(frame.loc[tests, "p_holm"], holm(frame.loc[tests, "p"].to_numpy()))
    assert frame.loc[~tests, "against"].eq("").all()
    told = texts(frame)
    assert told.loc["m, d: forward − dividing", "mean [95 %]"].startswith("+10.0 [+")
    assert told.loc["m, all data, each alike: coordinated", "batches"] == "5"


def test_the_comparison_named_before_stands_outside_holms_correction():
    gains = {"a": [50.0, 52.0, 54.0], "b": [60.0, 61.0, 65.0], "c": [70.0, 70.0, 76.0]}
    points = pd.concat([one_each(gains, model, data) for model in ("m", "n") for data in ("d", "e")])
    frame = compared(points, "generalization", BOUNDS, confirmatory=("m", "c", "b"))
    named = (frame["model"] == "m") & (frame["data"] == ALL) & (frame["scheme"] == "c") & (frame["against"] == "b")
    assert named.sum() == 1
    assert frame.loc[named, "p_holm"].item() == frame.loc[named, "p"].item() == 2 / 2**6
    others = frame["p"].notna() & ~named
    np.testing.assert_allclose(frame.loc[others, "p_holm"], holm(frame.loc[others, "p"].to_numpy()))
    groups = [("m", "d"), ("m", "e"), ("n", "d"), ("n", "e"), ("m", ALL), ("n", ALL), (ALL, ALL)]
    assert list(frame[["model", "data"]].drop_duplicates().itertuples(index=False, name=None)) == groups
    assert "all, each alike: c" in texts(frame).index


def test_a_batch_counts_where_both_schemes_have_it_and_its_seeds_count_as_one():
    points = one_each({"a": [10.0, 20.0, 30.0], "b": [15.0, 25.0]})
    again = points[points["batch"] == "batch 0"].assign(seed=1, generalization=lambda f: f["generalization"] + 4)
    frame = compared(pd.concat([points, again]), "generalization", BOUNDS).set_index(["scheme", "against"])
    assert frame.loc[("a", ""), ["mean", "batches"]].tolist() == [pytest.approx((12 + 20 + 30) / 3), 3]
    assert frame.loc[("b", "a"), ["mean", "batches"]].tolist() == [5.0, 2]


def test_the_endpoint_finds_a_difference_between_batches_that_facts_would_hide():
    """Batches that differ by far more than schemes do: paired differences see what unpaired means do not."""
    rng = np.random.default_rng(0)
    level = rng.uniform(20, 80, 8)
    frame = compared(one_each({"a": level, "b": level + rng.normal(2, 0.5, 8)}), "efficacy", BOUNDS)
    cell = frame.set_index(["scheme", "against"])
    difference = cell.loc[("b", "a")]
    assert 1 < difference["low"] < difference["mean"] < difference["high"] < 3
    assert difference["p"] == 2 / 2**8
    widths = [cell.loc[(name, "")]["high"] - cell.loc[(name, "")]["low"] for name in "ab"]
    assert min(widths) > 10 * (difference["high"] - difference["low"])
    assert all(np.isfinite(frame[["mean", "low", "high"]]).all())
    assert frame["endpoint"].unique().tolist() == ["efficacy"]
