"""One bootstrap for all cells: each as it would be alone."""

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from jacobian_lab.report import intervals
from jacobian_lab.report.intervals import summaries_of, summarise
from jacobian_lab.report.paper import METRICS
from jacobian_lab.report.tables.methods import means


def test_every_cell_is_as_scipy_has_it_alone():
    values = np.random.default_rng(1).normal(size=(5, 12))
    values[1, 3] = values[3, :6] = values[4] = np.nan
    frame = summaries_of(values, seed=3)
    for row, cell in zip(values, frame.to_dict("records"), strict=True):
        finite = row[np.isfinite(row)]
        assert cell["count"] == len(finite)
        if not len(finite):
            assert np.isnan([cell["mean"], cell["low"], cell["high"], cell["median"]]).all()
            continue
        alone = stats.bootstrap(
            (finite,), np.mean, n_resamples=intervals.RESAMPLES, method="percentile", rng=3
        ).confidence_interval
        assert (cell["mean"], cell["median"]) == (finite.mean(), np.median(finite))
        np.testing.assert_allclose((cell["low"], cell["high"]), (alone.low, alone.high), rtol=1e-12)


def test_resamples_are_one_setting(monkeypatch):
    values = np.random.default_rng(0).normal(size=9)
    few = summarise(values)
    monkeypatch.setattr(intervals, "RESAMPLES", 2000)
    assert summarise(values)["low"] != few["low"]
    assert summarise(values)["mean"] == few["mean"]


def test_batches_change_nothing(monkeypatch):
    values = np.random.default_rng(0).normal(size=(3, 9))
    whole = summaries_of(values, 1)
    monkeypatch.setattr(intervals, "NUMBERS_AT_ONCE", 60)
    assert summaries_of(values, 1).equals(whole)


def test_the_interval_is_that_of_the_normal_for_many_facts(monkeypatch):
    monkeypatch.setattr(intervals, "RESAMPLES", 9999)
    values = np.random.default_rng(0).normal(5, 2, 2000)
    summary = summarise(values)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert summary["low"] == pytest.approx(values.mean() - half, abs=0.01)
    assert summary["high"] == pytest.approx(values.mean() + half, abs=0.01)


def test_what_is_not_finite_is_left_out():
    assert summarise([1.0, np.nan, 3.0, np.inf])["mean"] == 2
    assert np.isnan(summarise([np.nan])["mean"])
    single = summarise([4.0])
    assert single["mean"] == 4
    assert np.isnan(single["low"])


def test_prompts_weigh_alike_where_the_mean_is_flat():
    values = xr.DataArray([[1.0, 1.0, 1.0], [0.0, np.nan, np.nan]], dims=("fact", "neighbor"))
    assert means([(values, METRICS["top1"])], 0)["mean"][0] == 75
    assert means([(values, METRICS["generalization_success"])], 0)["mean"][0] == 50
    empty = means([(values * np.nan, METRICS["kl"])], 0).iloc[0]
    assert empty["count"] == 0
    assert np.isnan(empty["mean"])
