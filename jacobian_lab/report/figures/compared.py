"""Figures of methods beside one another."""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import FigureBase

from jacobian_lab.catalogue import CR, FE, method, without_setting
from jacobian_lab.report.figures.axes import arms, error_bars
from jacobian_lab.report.figures.style import RULE_COLORS, RULE_MARKERS, STYLES
from jacobian_lab.report.paper import METRICS
from jacobian_lab.report.tables.frontier import along_ridges
from jacobian_lab.report.tables.methods import STEPS, Step, both_ways, gains_of, summaries

LINES = ("-", "--", ":", "-.")
"""Lines of a rule's further settings, one after the other."""


def efficacy_specificity(figure: FigureBase, dataset: xr.Dataset) -> None:
    """Efficacy against specificity of every method; arrows lead from a rule to the same with replay."""
    cells = {(row["method"], row["metric"]): row for row in summaries(dataset).to_dict("records")}
    planes = (("kl", "efficacy_success"), ("top1", "generalization_accuracy"))
    for ax, (across, up) in zip(figure.subplots(1, 2), planes, strict=True):
        places = {}
        for name in map(str, dataset["edit"].values):
            x, y = cells[name, across], cells[name, up]
            rule, fill = filled(name, replayed=any(both_ways(dataset, step) for step in STEPS))
            look = {"color": RULE_COLORS.get(rule, "0.4"), "marker": RULE_MARKERS.get(rule, "x"), "markersize": 4}
            errors = {f"{axis}err": arms(v["mean"], v["low"], v["high"])[:, None] for axis, v in (("x", x), ("y", y))}
            places[name] = (x["mean"], y["mean"])
            ax.errorbar(*places[name], **errors, elinewidth=0.4, linestyle="", label=name, **look, **fill)
        for before, after in STEPS:
            for rule in both_ways(dataset, (before, after)):
                arrow = {"arrowstyle": "->", "color": RULE_COLORS.get(rule, "0.4"), "linewidth": 0.7}
                arrow |= {"shrinkA": 3, "shrinkB": 3}
                ax.annotate("", places[rule + after], places[rule + before], arrowprops=arrow)
        ax.set(xlabel=_axis(across), ylabel=_axis(up))
        if METRICS[across].best < 0:
            ax.invert_xaxis()  # right and up is better, in both planes
    figure.legend(*ax.get_legend_handles_labels(), fontsize="x-small", loc="outside upper center", ncols=7)


def frontier(figure: FigureBase, dataset: xr.Dataset) -> None:
    """Generalisation against disturbance along λ, a curve a scheme; λ at the points, the smallest ringed."""
    points = along_ridges(dataset).set_index(["metric", "method", "ridge"])
    up = points.loc["generalization_accuracy"]
    settings = list(dict.fromkeys(without_setting(name)[1] for name in up.index.get_level_values("method")))
    axes = figure.subplots(1, 2, sharey=True)
    for ax, across in zip(axes, ("kl", "top10"), strict=True):
        for name in dict.fromkeys(up.index.get_level_values("method")):
            x, y = points.loc[across].loc[name].sort_index(), up.loc[name].sort_index()
            line = LINES[settings.index(without_setting(name)[1]) % len(LINES)]
            look = STYLES[method(name).scheme] | {"linestyle": line}
            errors = {f"{axis}err": arms(v["mean"], v["low"], v["high"]) for axis, v in (("x", x), ("y", y))}
            ax.errorbar(x["mean"], y["mean"], **errors, elinewidth=0.3, linewidth=1, markersize=3, label=name, **look)
            ax.plot(x["mean"].iloc[0], y["mean"].iloc[0], "o", fillstyle="none", color="0.3", markersize=6)
        ax.set(xlabel=_axis(across))
    places = zip(points.loc["kl"]["mean"], up["mean"], up.index, strict=True)
    for *place, (name, ridge) in places:
        near = {
            "xytext": (3, 3),
            "textcoords": "offset points",
            "fontsize": 4,
            "color": STYLES[method(name).scheme]["color"],
        }
        axes[0].annotate(f"{ridge:g}", tuple(place), **near)
    axes[0].set(ylabel=_axis("generalization_accuracy"), xscale="log")
    axes[0].invert_xaxis()  # right and up is better, in both planes
    figure.legend(*ax.get_legend_handles_labels(), fontsize="x-small", loc="outside upper center", ncols=7)


def filled(name: str, replayed: bool) -> tuple[str, dict[str, Any]]:
    """A method's rule, and the filling of its marker: hollow without replay, half with FE, wholly with CR."""
    if name.endswith(CR):
        return name.removesuffix(CR), {}
    if name.endswith(FE):
        return name.removesuffix(FE), {"fillstyle": "left", "markerfacecoloralt": "white"}
    return name, {"markerfacecolor": "white"} if replayed else {}


def gain(figure: FigureBase, dataset: xr.Dataset, step: Step) -> None:
    """Gain of one way of making targets over another, rule by rule, paired over facts, with intervals."""
    gained, rules = gains_of(dataset, (step,)), both_ways(dataset, step)
    axes = figure.subplots(1, 2, width_ratios=(5, 1))
    shares = [metric for metric, kind in METRICS.items() if kind.scale > 1]
    for ax, metrics in zip(axes, (shares, ["kl"]), strict=True):
        for place, rule in enumerate(rules):
            cells = gained[gained["rule"] == rule].set_index("metric").loc[metrics]
            offset = (place - (len(rules) - 1) / 2) * 0.8 / max(1, len(rules))
            look = {"color": RULE_COLORS.get(rule, "0.4"), "marker": RULE_MARKERS.get(rule, "x"), "linestyle": ""}
            error_bars(
                ax, np.arange(len(metrics)) + offset, *(cells[n] for n in ("mean", "low", "high")), label=rule, **look
            )
        ax.axhline(0, color="0.3", linewidth=0.6)
        ax.set_xlim(-0.6, len(metrics) - 0.4)
        ax.set_xticks(range(len(metrics)), [_axis(metric).replace(" ", "\n") for metric in metrics], fontsize="x-small")
        ax.grid(visible=False, axis="x")
    axes[0].set(ylabel=f"gain from {step[1][1:].upper()}, points")
    axes[1].set(ylabel="change (less is better)")
    figure.legend(
        *axes[0].get_legend_handles_labels(), fontsize="x-small", loc="outside upper center", ncols=len(rules)
    )


def _axis(metric: str) -> str:
    kind = METRICS[metric]
    return r"$D_{KL}$, nat" if metric == "kl" else kind.label
