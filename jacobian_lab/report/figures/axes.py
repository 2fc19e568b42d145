"""Helpers that several figures draw with on their axes."""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import LogLocator, NullFormatter

from jacobian_lab.report.intervals import summaries_of
from jacobian_lab.report.writing import seed_of


def mean_curve(ax: Axes, dataset: xr.Dataset, values: xr.DataArray, **look: Any) -> None:
    """Mean over facts with its 95 % interval along the other dimension."""
    dim = next(str(dim) for dim in values.dims if dim != "fact")
    places = values[dim].values
    if not np.isfinite(values).any():
        return
    means = summaries_of(values.transpose(dim, "fact").values, seed_of(dataset))
    error_bars(ax, places, *(means[name].to_numpy() for name in ("mean", "low", "high")), **look)
    ax.set(xlabel="layer", xticks=places)


def error_bars(ax: Axes, places: Any, mean: Any, low: Any, high: Any, **look: Any) -> None:
    """Means with their intervals."""
    ax.errorbar(places, mean, arms(mean, low, high), **{"capsize": 1.5, "markersize": 3, "linewidth": 1, **look})


def arms(mean: Any, low: Any, high: Any) -> np.ndarray:
    """Lengths of intervals below and above their means, as matplotlib takes them."""
    return np.nan_to_num([mean - low, high - mean]).clip(min=0)


def plain_decades(axis: Axis) -> None:
    """Write 1, 2 and 5 of every decade at a logarithmic axis, as plain numbers."""
    axis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter="{x:g}", minor_formatter=NullFormatter())
