"""Figures of edits one after another."""

from typing import Any

import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import FigureBase
from matplotlib.ticker import MaxNLocator

from jacobian_lab.catalogue import CR, FE, UNEDITED
from jacobian_lab.report.figures.axes import arms
from jacobian_lab.report.figures.style import RULE_COLORS, RULE_MARKERS, rule_and_suffix
from jacobian_lab.report.tables.breakdown import along_batches
from jacobian_lab.report.tables.sequence import SHOWN, Course, along_looks, courses, edited_courses, forgotten

LINES = {"current": "-", "unedited": "--"}
"""Lines by the model that targets are made on."""
PANELS = ("efficacy_accuracy", "generalization_accuracy", "kl", "perplexity")
MAPS = 4
"""Heat maps side by side at the most."""
BATCH_PANELS = {
    "residual_left": "residual left",
    "residual_cosine": r"$\cos(J\delta, R)$",
    "leakage": r"leakage over $\|\delta_L\|$",
    "lambda_min": r"$\lambda_{\min}$ of $S$",
}
"""Quantities of a batch that are drawn, and their labels."""
LOGARITHMIC = ("kl", "perplexity", "update_norm")
AXES = {"kl": r"$D_{KL}$, nat", "perplexity": "perplexity", "update_norm": r"$\|\Delta W\|/\|W\|$, largest layer"}
"""Labels of axes that are not called as in the table."""


def maps_across(dataset: xr.Dataset) -> int:
    """Number of heat maps side by side."""
    return min(MAPS, len(edited_courses(dataset)))


def sequence(figure: FigureBase, dataset: xr.Dataset) -> None:
    """Efficacy, generalisation, D_KL and perplexity along the sequence, a curve a method."""
    rows = along_looks(dataset)
    for ax, name in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
        _curves(ax, dataset, rows, name)
        unedited = rows[rows["method"] == UNEDITED]
        if name != "kl" and len(unedited):
            ax.axhline(unedited[name].iloc[0], color="0.3", linewidth=0.6, linestyle=":")
    _legend(figure, ax)


def forgetting(figure: FigureBase, dataset: xr.Dataset) -> None:
    """Efficacy of each batch at each look, a heat map a method."""
    long, every, across = forgotten(dataset), edited_courses(dataset), maps_across(dataset)
    axes = figure.subplots(-(-len(every) // across), across, squeeze=False)
    for ax in axes.ravel()[len(every) :]:
        ax.remove()
    for ax, course in zip(axes.ravel(), every, strict=False):
        own = long[(long["method"] == course.method) & (long["targets"] == course.targets)]
        matrix = own.pivot(index="batch", columns="look", values="efficacy")
        image = ax.imshow(matrix, vmin=0, vmax=100, cmap="viridis", aspect="auto", interpolation="nearest")
        ax.set_xticks(range(len(matrix.columns)), matrix.columns, fontsize="xx-small", rotation=90)
        ax.set_yticks(range(len(matrix.index)), matrix.index, fontsize="xx-small")
        ax.set_title(f"{course.method}\n{course.targets} targets", fontsize="x-small")
        ax.set(xlabel="facts edited")
        ax.grid(visible=False)
    for ax in axes[:, 0]:
        ax.set(ylabel="batch")
    figure.colorbar(image, ax=list(axes.ravel()[: len(every)]), label="efficacy accuracy", shrink=0.8)


def breakdown(figure: FigureBase, dataset: xr.Dataset) -> None:
    """Quantities of each batch's edit and of J before it, a curve a method."""
    rows = along_batches(dataset)
    for ax, (name, label) in zip(figure.subplots(1, len(BATCH_PANELS)), BATCH_PANELS.items(), strict=True):
        for course in edited_courses(dataset):
            own = rows[(rows["method"] == course.method) & (rows["targets"] == course.targets)]
            own = own[own["quantity"] == name]
            bars = arms(own["mean"], own["low"], own["high"])
            look = {"linewidth": 1, "markersize": 3, "elinewidth": 0.3, "label": course.label, **_look(course)}
            ax.errorbar(own["batch"], own["mean"], yerr=bars, **look)
        ax.set(xlabel="batch", ylabel=label)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(figure, ax)


def norm_growth(figure: FigureBase, dataset: xr.Dataset) -> None:
    """Norms of the changes along the sequence, and norms of states by block at its end."""
    first, second = figure.subplots(1, 2)
    _curves(first, dataset, along_looks(dataset), "update_norm")
    unedited = [c.values["state_norm"].isel(look=0) for c in courses(dataset) if not c.targets]
    for course in edited_courses(dataset):
        norms = course.values["state_norm"].isel(look=-1)
        ratio = norms / unedited[0] if unedited else norms
        second.plot(ratio["block"].values, ratio.values, linewidth=1, markersize=2, **_look(course))
    second.set(xlabel="block", ylabel="state norm, over the unedited model's" if unedited else "state norm")
    _legend(figure, first)


def _curves(ax: Axes, dataset: xr.Dataset, rows: pd.DataFrame, name: str) -> None:
    """A number of each look along the facts edited, with its interval if it has one."""
    for course in edited_courses(dataset):
        own = rows[(rows["method"] == course.method) & (rows["targets"] == course.targets)]
        bars: dict[str, Any] = (
            {"yerr": arms(own[name], own[f"{name}_low"], own[f"{name}_high"])} if name in SHOWN else {}
        )
        look = {"linewidth": 1, "markersize": 3, "elinewidth": 0.3, "label": course.label, **_look(course)}
        ax.errorbar(own["edited"], own[name], **bars, **look)
    label = AXES.get(name) or SHOWN[name].label
    ax.set(xlabel="facts edited", ylabel=label, yscale="log" if name in LOGARITHMIC else "linear")


def _look(course: Course) -> dict[str, Any]:
    """Colour and marker of the rule: hollow without replay, half filled with FE, wholly with CR."""
    rule, suffix = rule_and_suffix(course.method)
    fills = {"": {"markerfacecolor": "white"}, FE: {"fillstyle": "left", "markerfacecoloralt": "white"}, CR: {}}
    look = {"color": RULE_COLORS.get(rule, "0.4"), "marker": RULE_MARKERS.get(rule, "x"), **fills[suffix]}
    return look | {"linestyle": LINES[course.targets]}


def _legend(figure: FigureBase, ax: Axes) -> None:
    figure.legend(*ax.get_legend_handles_labels(), fontsize="x-small", loc="outside upper center", ncols=4)
