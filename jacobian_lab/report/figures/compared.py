"""Figures of methods beside one another."""

import numpy as np
import xarray as xr
from matplotlib.figure import FigureBase

from jacobian_lab.catalogue import CR, FE, UNEDITED, method, without_setting
from jacobian_lab.report.figures.axes import arms, error_bars
from jacobian_lab.report.figures.style import RULE_COLORS, RULE_MARKERS, STYLES, rule_and_suffix
from jacobian_lab.report.paper import METRICS
from jacobian_lab.report.tables.frontier import along_ridges
from jacobian_lab.report.tables.methods import Step, both_ways, gains_of, summaries

LINES = ("-", "--", ":", "-.")
"""Lines of a rule's further settings, one after the other."""


DUMBBELLS = ("efficacy_accuracy", "generalization_accuracy", "top10", "kl")
"""Metrics of the dumbbells, a panel each."""
SCHEMES = {"": "without replay", FE: "forward replay", CR: "coordinated replay"}
LOOKS = {
    "": STYLES["backward-dividing"],
    FE: STYLES["forward-replay"],
    CR: STYLES["coordinated-replay"],
}


def efficacy_specificity(figure: FigureBase, dataset: xr.Dataset) -> None:
    """Dumbbells: a row a rule, its points without replay, with forward and with coordinated replay; a panel a metric.

    Means with 95 % intervals; the dotted line is the unedited model.
    """
    cells = {(row["method"], row["metric"]): row for row in summaries(dataset).to_dict("records")}
    rows: dict[str, list[str]] = {}
    for name in map(str, dataset["edit"].values):
        if name != UNEDITED:
            rows.setdefault(rule_and_suffix(name)[0], []).append(name)
    metrics = [metric for metric in DUMBBELLS if any((name, metric) in cells for own in rows.values() for name in own)]
    axes = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for ax, metric in zip(axes, metrics, strict=True):
        for place, names in enumerate(rows.values()):
            own = [(cells[name, metric], rule_and_suffix(name)[1]) for name in names if (name, metric) in cells]
            means = [cell["mean"] for cell, _ in own]
            ax.plot([min(means), max(means)], [place, place], color="0.8", linewidth=2, zorder=1)
            for number, (cell, scheme) in enumerate(own):
                height = place + 0.16 * (number - (len(own) - 1) / 2)
                errors = {"xerr": arms(cell["mean"], cell["low"], cell["high"])[:, None]}
                look = {"markersize": 4, "elinewidth": 0.4, "linestyle": "", **LOOKS[scheme]}
                ax.errorbar(cell["mean"], height, **errors, label=SCHEMES[scheme], **look)
        if (UNEDITED, metric) in cells:
            ax.axvline(cells[UNEDITED, metric]["mean"], color="0.3", linewidth=0.6, linestyle=":")
        ax.set(xlabel=_axis(metric), yticks=range(len(rows)), yticklabels=list(rows))
        ax.grid(visible=False, axis="y")
    axes[0].invert_yaxis()
    handles = {label: line for ax in axes for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    order = [label for label in SCHEMES.values() if label in handles]
    figure.legend([handles[o] for o in order], order, fontsize="x-small", loc="outside upper center", ncols=3)


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
