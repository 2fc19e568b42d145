"""Figure of a search over layers, λ, learning rate and passes."""

from typing import Any

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import FigureBase
from matplotlib.ticker import LogLocator, NullFormatter

from jacobian_lab.catalogue import method
from jacobian_lab.report.figures.style import STYLES
from jacobian_lab.store.run import config_of
from jacobian_lab.tries import (
    LABELS,
    Criterion,
    choices,
    criterion_of,
    evaluated_tries,
    gain_of,
    observed_windows,
    within,
)

COLORS = "viridis"
"""Windows by their place, in every panel."""


def tune(figure: FigureBase, dataset: xr.Dataset) -> None:
    """Frontiers of the finalists of each method, and every window's score beside what it generalises."""
    tries, observed = evaluated_tries(dataset), observed_windows(dataset)
    criterion, windows = criterion_of(config_of(dataset)["settings"], tries), dataset["window"].values
    labels = choices(tries, criterion)
    colors = dict(zip(windows, mpl.colormaps[COLORS](np.linspace(0, 0.85, len(windows))), strict=True))
    *axes, last = figure.subplots(1, len(labels) + 1)
    for ax, (name, label) in zip(axes, labels.items(), strict=True):
        _frontiers(ax, tries[tries["method"] == name], label, criterion, colors)
        ax.set(title=name, xlabel=r"$D_{KL}$, nat", xscale="log")
        ax.xaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter="{x:g}", minor_formatter=NullFormatter())
        ax.sharey(axes[0])
        ax.invert_xaxis()  # right and up is better
    axes[0].set(ylabel=LABELS[gain_of(tries)])
    places = {window: place for place, window in enumerate(windows)}
    for name in labels:
        look: dict[str, Any] = STYLES[method(name).scheme]
        scores = observed[observed["method"] == name]
        last.plot(scores["window"].map(places), 100 * scores["score"], color=look["color"], linewidth=0.7, label=name)
        own = tries[tries["method"] == name]
        bests = own.loc[[within(group, criterion.kl_bound) for _, group in own.groupby("window", sort=False)]]
        last.plot(bests["window"].map(places), bests["gain"], linestyle="", markersize=4, **look)
    last.set(title="windows", xlabel="layers", ylabel="score × 100, generalisation")
    last.set_xticks(range(len(windows)), list(windows), rotation=60, fontsize="x-small")
    last.legend(fontsize="xx-small")


def _frontiers(ax: Axes, tries: Any, label: Any, criterion: Criterion, colors: Any) -> None:
    """Curves along λ, one for each window and descent."""
    base = tries["variant"].iloc[0]
    for (window, variant), group in tries.groupby(["window", "variant"], sort=False):
        along = group.sort_values("ridge")
        own = variant == base
        ax.plot(
            along["kl"],
            along["gain"],
            "-o" if own else "--o",
            color=colors[window],
            linewidth=1 if own else 0.6,
            markersize=2.5 if own else 1.5,
            label=window if own else f"{window}, {variant}",
        )
    ax.axvline(criterion.kl_bound, color="0.4", linestyle=":", linewidth=0.8)
    ax.plot(*tries.loc[label, ["kl", "gain"]], "o", fillstyle="none", color="#b3161f", markersize=7)
    ax.legend(fontsize="xx-small")
