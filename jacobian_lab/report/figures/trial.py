"""Figure of a trial: frontiers of several batches of facts, models and data sets."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import FigureBase

from jacobian_lab.report.figures.axes import plain_decades
from jacobian_lab.report.figures.style import STYLES

OTHER = {"color": "0.5", "marker": "."}
"""Look of a scheme that has none of its own."""


def frontiers(figure: FigureBase, points: pd.DataFrame) -> None:
    """Generalisation against disturbance along λ, a panel for each model and data set.

    Thin lines are batches of facts, thick ones their means at the same λ, which is written at the points.

    Args:
        figure: The figure.
        points: A row for each point, as a trial's ``trial.csv`` has them.
    """
    models, files = points["model"].unique(), points["data"].unique()
    axes = figure.subplots(len(models), len(files), squeeze=False, sharex="row", sharey="row")
    for row, model in zip(axes, models, strict=True):
        for ax, data in zip(row, files, strict=True):
            _panel(ax, points[(points["model"] == model) & (points["data"] == data)])
            ax.set_title(f"{model}\n{data}", fontsize="small")
        row[0].set(ylabel="Generalisation accuracy")
        row[0].invert_xaxis()  # right and up is better
    for ax in axes[-1]:
        ax.set(xlabel=r"$D_{KL}$, nat")
    handles = {label: line for ax in axes.flat for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, fontsize="x-small", loc="outside upper center", ncols=3)


def _panel(ax: Axes, points: pd.DataFrame) -> None:
    ax.set(xscale="log")
    for scheme, own in points.groupby("scheme", sort=False):
        look = STYLES.get(str(scheme), OTHER)
        for _, batch in own.groupby(["batch", "seed"], sort=False):
            along = batch.sort_values("ridge")
            ax.plot(along["kl"], along["generalization"], color=look["color"], linewidth=0.4, alpha=0.5)
        means = own.groupby("ridge")[["kl", "generalization"]].mean()
        ax.plot(means["kl"], means["generalization"], markersize=4, linewidth=1.2, label=scheme, **look)
        for ridge, kl, generalization in means.itertuples():
            ax.annotate(
                f"{ridge:g}",
                (kl, generalization),
                xytext=(3, 3),
                textcoords="offset points",
                fontsize=4,
                color=look["color"],
            )
    plain_decades(ax.xaxis)
    ax.tick_params(axis="x", labelsize="x-small", rotation=40)
