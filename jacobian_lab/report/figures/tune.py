"""Figure of a search over layers, λ, learning rate and passes."""

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import FigureBase

from jacobian_lab.catalogue import method
from jacobian_lab.report.figures.axes import plain_decades
from jacobian_lab.report.figures.style import STYLES
from jacobian_lab.store.run import config_of
from jacobian_lab.tries import LABELS, Criterion, Outcome, gain_of, within

COLORS = "viridis"
"""Windows by their place, in every panel."""


def tune(figure: FigureBase, dataset: xr.Dataset) -> None:
    """Frontiers of the finalists of each method, and every window's score beside what it generalises."""
    outcome, windows = Outcome.of(dataset, config_of(dataset)["settings"]), [str(w) for w in dataset["window"].values]
    tries, criterion, labels = outcome.tries, outcome.criterion, outcome.choices
    colors = dict(zip(windows, mpl.colormaps[COLORS](np.linspace(0, 0.85, len(windows))), strict=True))
    axes = figure.subplots(1, len(labels) + 1)
    handles: dict[str, Any] = {}
    for ax, (name, label) in zip(axes, labels.items(), strict=False):
        if ax is not axes[0]:
            ax.sharey(axes[0])
        handles |= _frontiers(ax, tries[tries["method"] == name], label, criterion, colors)
        ax.set(title=name, xlabel=r"$D_{KL}$, nat", xscale="log")
        plain_decades(ax.xaxis)
        ax.tick_params(axis="x", labelsize="x-small", rotation=40)
        ax.invert_xaxis()  # right and up is better
    axes[0].set(ylabel=LABELS[gain_of(tries)])
    _windows(axes[-1], outcome.observed, tries, criterion, windows)
    places = sorted(handles, key=lambda label: (windows.index(label.partition(": ")[0]), ":" in label))
    figure.legend([handles[p] for p in places], places, fontsize="xx-small", loc="outside upper center", ncols=5)


def _frontiers(
    ax: Axes, tries: pd.DataFrame, label: Any, criterion: Criterion, colors: Mapping[str, Any]
) -> dict[str, Any]:
    """Curves along λ, one for each window and descent, with their labels."""
    base, handles = tries["variant"].iloc[0], {}
    for (window, variant), group in tries.groupby(["window", "variant"], sort=False):
        along, own = group.sort_values("ridge"), variant == base
        look: dict[str, Any] = {"linewidth": 1, "markersize": 2.5} if own else {"linewidth": 0.6, "markersize": 1.5}
        (line,) = ax.plot(along["kl"], along["gain"], "-o" if own else "--o", color=colors[str(window)], **look)
        handles[str(window) if own else f"{window}: {variant}"] = line
    ax.axvline(criterion.kl_bound, color="0.4", linestyle=":", linewidth=0.8)
    ax.plot(*tries.loc[label, ["kl", "gain"]], "o", fillstyle="none", color="#b3161f", markersize=7)
    return handles


def _windows(ax: Axes, observed: pd.DataFrame, tries: pd.DataFrame, criterion: Criterion, windows: list[str]) -> None:
    """Scores of every window, and what the finalists generalise within the bound."""
    places = {window: place for place, window in enumerate(windows)}
    for name, own in tries.groupby("method", sort=False):
        look: dict[str, Any] = STYLES[method(str(name)).scheme]
        scores = observed[observed["method"] == name]
        ax.plot(scores["window"].map(places), 100 * scores["score"], color=look["color"], linewidth=0.7, label=name)
        bests = own.loc[[within(group, criterion.kl_bound) for _, group in own.groupby("window", sort=False)]]
        ax.plot(bests["window"].map(places), bests["gain"], linestyle="", markersize=4, **look)
    ax.set(title="windows", xlabel="layers", ylabel="score × 100, generalisation")
    ax.set_xticks(range(len(windows)), windows, rotation=40, fontsize="x-small")
    ax.legend(fontsize="xx-small")
