"""Means with their bootstrap intervals."""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from scipy import stats

from jacobian_lab.report.paper import Metric

CONFIDENCE = 0.95
RESAMPLES = 9999


def summarise(values: Sequence[float] | np.ndarray, seed: int = 0) -> dict[str, float]:
    """Mean with its bootstrap interval, and median, of what is finite.

    Args:
        values: One value a fact.
        seed: Seed of the resampling.

    Returns:
        ``mean``, ``low``, ``high`` (95 %, percentile bootstrap over facts; NaN for a single fact),
        ``median`` and ``count``.
    """
    finite = np.asarray(values, dtype=float)
    finite = finite[np.isfinite(finite)]
    if not len(finite):
        return {"mean": np.nan, "low": np.nan, "high": np.nan, "median": np.nan, "count": 0}
    low = high = np.nan
    if len(finite) > 1:
        interval = stats.bootstrap(
            (finite,),
            np.mean,
            n_resamples=RESAMPLES,
            batch=1000,
            confidence_level=CONFIDENCE,
            method="percentile",
            rng=seed,
        ).confidence_interval
        low, high = float(interval.low), float(interval.high)
    return {
        "mean": float(finite.mean()),
        "low": low,
        "high": high,
        "median": float(np.median(finite)),
        "count": len(finite),
    }


NUMBERS_AT_ONCE = 20_000_000
"""What a batch of resamples may hold."""


def intervals(cells: Sequence[tuple[xr.DataArray, Metric]], seed: int) -> list[dict[str, float]]:
    """Means and bootstrap intervals over facts, one resampling for all cells."""
    if not cells:
        return []
    sums, counts = (np.stack(part) for part in zip(*(_by_fact(*cell) for cell in cells), strict=True))

    def mean(total: np.ndarray, count: np.ndarray, axis: int = -1) -> np.ndarray:
        with np.errstate(invalid="ignore"):  # 0 / 0 where no fact has a value
            return np.asarray(total.sum(axis) / count.sum(axis))

    means = mean(sums, counts)
    low = high = np.full_like(means, np.nan)
    if sums.shape[1] > 1:
        interval = stats.bootstrap(
            (sums, counts),
            mean,
            n_resamples=RESAMPLES,
            batch=max(1, NUMBERS_AT_ONCE // sums.size),
            paired=True,
            axis=-1,
            confidence_level=CONFIDENCE,
            method="percentile",
            rng=seed,
        ).confidence_interval
        low, high = np.asarray(interval.low), np.asarray(interval.high)
    return [
        {"mean": float(m), "low": float(lo), "high": float(hi), "count": int((weight > 0).sum())}
        for m, lo, hi, weight in zip(means, low, high, counts, strict=True)
    ]


def _by_fact(values: xr.DataArray, kind: Metric) -> tuple[np.ndarray, np.ndarray]:
    """For each fact what it adds to the mean, and with which weight."""
    prompts = values.values.reshape(values.sizes["fact"], -1) * kind.scale
    sums, counts = np.nansum(prompts, axis=1), np.isfinite(prompts).sum(axis=1).astype(float)
    if kind.flat:
        return sums, counts
    return sums / np.maximum(counts, 1), np.minimum(counts, 1)
