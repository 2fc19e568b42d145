"""Means with their bootstrap intervals."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

CONFIDENCE = 0.95
RESAMPLES = 9999
"""Resamples of an interval, looked up at every call."""

NUMBERS_AT_ONCE = 20_000_000
"""Largest batch of resamples."""


def intervals(
    sums: Float[np.ndarray, "cells facts"], weights: Float[np.ndarray, "cells facts"], seed: int
) -> pd.DataFrame:
    """Means of many cells with their 95 % intervals, by the percentile bootstrap over facts.

    Cells with values of the same facts are resampled together, each as it would be alone. A fact without a weight
    is in no resample.
    """
    part = np.isfinite(sums) & (weights > 0)
    rows = np.full((len(sums), 3), np.nan)
    for mask in {row.tobytes(): row for row in part}.values():
        cells = np.flatnonzero((part == mask).all(axis=1))
        if mask.any():
            rows[cells] = _resampled(sums[np.ix_(cells, mask)], weights[np.ix_(cells, mask)], seed)
    frame = pd.DataFrame(rows, columns=["mean", "low", "high"])
    return frame.assign(count=part.sum(axis=1))


def _resampled(sums: np.ndarray, weights: np.ndarray, seed: int) -> np.ndarray:
    """Mean, low and high of each cell, ``[cell, 3]``."""
    from scipy import stats  # takes a second to import

    def mean(total: np.ndarray, weight: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.asarray(total.sum(axis) / weight.sum(axis))

    means = mean(sums, weights)
    if sums.shape[1] == 1:
        return np.stack([means, np.full_like(means, np.nan), np.full_like(means, np.nan)], axis=1)
    interval = stats.bootstrap(
        (sums, weights),
        mean,
        n_resamples=RESAMPLES,
        batch=max(1, NUMBERS_AT_ONCE // sums.size),
        paired=True,
        vectorized=True,
        axis=-1,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=seed,
    ).confidence_interval
    return np.stack([means, interval.low, interval.high], axis=1)


def summaries_of(values: Float[np.ndarray, "cells facts"], seed: int) -> pd.DataFrame:
    """Mean with its interval, and median, of what is finite in each cell."""
    values = np.where(np.isfinite(values), values, np.nan)
    frame = intervals(values, np.ones_like(values), seed)
    finite = [row[~np.isnan(row)] for row in values]
    frame.insert(3, "median", [float(np.median(row)) if len(row) else np.nan for row in finite])
    return frame


def summarise(values: Sequence[float] | np.ndarray, seed: int = 0) -> dict[str, float]:
    """Mean with its interval, and median, of what is finite in one cell."""
    frame = summaries_of(np.asarray(values, dtype=float)[None], seed)
    return {str(name): column[0] for name, column in frame.items()}
