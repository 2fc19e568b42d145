"""Figures from stored arrays: each draws an open run on an empty figure."""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import FigureBase
from matplotlib.ticker import MaxNLocator

from jacobian_lab.report.intervals import summaries_of
from jacobian_lab.report.methods import COORDINATED, FORWARD, STEPS, Step, both_ways, gains_of, summaries
from jacobian_lab.report.paper import METRICS, paper_residuals
from jacobian_lab.report.residuals import table
from jacobian_lab.report.style import RULE_COLORS, RULE_MARKERS, STYLES
from jacobian_lab.report.writing import DEGREES, below_last, seed_of
from jacobian_lab.store.schema import DECISIONS

YARDSTICK = {"color": "0.5", "linestyle": ":", "linewidth": 1, "marker": "x", "markersize": 3}
"""How random directions are drawn."""

OPPOSITES = ("backward-dividing", "forward-replay")
"""The two schemes that the paper sets against each other; figures with room for two show these."""

CARRIERS = ("backward-dividing", "backward-full", "forward-replay", "coordinated-replay")
"""The schemes that differ in who carries what."""


def cosine_by_layer(figure: FigureBase, dataset: xr.Dataset) -> None:
    """Table 1 as curves: mean cosine of δ_l and δ_L^l with its interval, the paper's dashed.

    Args:
        figure: An empty figure, or part of one.
        dataset: An open run.
    """
    ax = figure.subplots()
    _curves(ax, dataset, "cosine", "table1")
    ax.set(ylabel=r"$\cos(\delta_l, \delta_L^l)$", ylim=(min(0.0, ax.get_ylim()[0]), 1.05))


def residual_by_layer(figure: FigureBase, dataset: xr.Dataset) -> None:
    """Tables 2 and 5 as curves: mean remaining residual of every scheme, the paper's dashed.

    Args:
        figure: An empty figure, or part of one.
        dataset: An open run.
    """
    ax = figure.subplots()
    _curves(ax, dataset, "residual_ratio", "table2", "table5")
    ax.set(ylabel="remaining residual", ylim=(0, None))


def spread_by_fact(figure: FigureBase, dataset: xr.Dataset) -> None:
    """One panel a scheme: the remaining residual of every fact, and the median.

    Args:
        figure: An empty figure, or part of one.
        dataset: An open run.
    """
    schemes = [str(name) for name in dataset["scheme"].values]
    panels = np.atleast_1d(figure.subplots(1, len(schemes), sharey=True, sharex=True))
    for ax, scheme in zip(panels, schemes, strict=True):
        chosen = dataset["residual_ratio"].sel(scheme=scheme)
        values, layers = chosen.values, dataset["layer"].values
        edited = np.isfinite(values).any(axis=0)
        ax.plot(
            layers[edited],
            values[:, edited].T,
            color="0.6",
            linewidth=0.4,
            marker=".",
            markersize=1.5,
        )
        median = np.nanmedian(values[:, edited], axis=0)
        ax.plot(layers[edited], median, **STYLES.get(scheme, {}), linewidth=1, markersize=3)
        ax.axhline(1.0, color="0.3", linewidth=0.5, linestyle=":")
        ax.set_title(scheme, fontsize="small")
        ax.set(xlabel="edited layer", xticks=layers)
    panels[0].set(ylabel="remaining residual", ylim=(0, None))


def theorem1(figure: FigureBase, dataset: xr.Dataset) -> None:
    """How far the layers' shifts are from eigenvectors: sin∠(Jδ, δ), and the angle to the nearest one.

    Args:
        figure: An empty figure, or part of one.
        dataset: An open run of tables that theorem 1 has been tested on.
    """
    below = below_last(dataset)
    left, right = figure.subplots(1, 2)
    for scheme in schemes_with(below, "eigen_residual"):
        chosen = below.sel(scheme=scheme)
        _mean_curve(left, dataset, chosen["eigen_residual"], label=scheme, **STYLES.get(scheme, {}))
        _mean_curve(right, dataset, chosen["eigenvector_angle"] * DEGREES, **STYLES.get(scheme, {}))
    _mean_curve(left, dataset, below["random_residual"], label="random directions", **YARDSTICK)
    _mean_curve(right, dataset, below["random_eigenvector_angle"] * DEGREES, **YARDSTICK)
    left.set(ylabel=r"$\sin\angle(J\delta, \delta)$", ylim=(0, 1.02))
    right.set(ylabel="nearest eigenvector (°)", ylim=(0, 92))
    figure.legend(*left.get_legend_handles_labels(), fontsize="x-small", loc="outside upper center", ncols=4)


def theorem2(figure: FigureBase, dataset: xr.Dataset) -> None:
    """The strict condition and the milder one: the ends of S's spectrum for every fact, and cos(Jδ, δ).

    Args:
        figure: An empty figure, or part of one.
        dataset: An open run of tables.
    """
    below = below_last(dataset)
    left, middle, right = figure.subplots(1, 3)
    layers = below["layer"].values
    for name, marker, label in (("lambda_max", "^", r"$\lambda_{\max}$"), ("lambda_min", "v", r"$\lambda_{\min}$")):
        shift = np.linspace(-0.25, 0.25, below.sizes["fact"])
        for place, layer in enumerate(layers):
            look = {
                "color": "0.2" if marker == "v" else "0.65",
                "marker": marker,
                "linestyle": "none",
                "markersize": 1.5,
            }
            left.plot(layer + shift, below[name].values[:, place], label=label if not place else None, **look)
    left.axhline(0, color="0.3", linewidth=0.6)
    left.set(ylabel=r"eigenvalues of $S$", xlabel="layer", xticks=layers)
    left.set_ylim(top=1.25 * left.get_ylim()[1])
    left.legend(fontsize="x-small", frameon=False, loc="upper right", ncols=2)
    definite = (below["decision"] == DECISIONS["definite"]).where(below["surveyed"] == 1)
    middle.plot(layers, definite.mean("fact"), **YARDSTICK | {"label": r"$S \succ 0$"})
    for scheme in schemes_with(below, "linear_cosine"):
        chosen, look = below.sel(scheme=scheme), STYLES.get(scheme, {})
        positive = (chosen["linear_cosine"] > 0).where(chosen["linear_cosine"].notnull())
        middle.plot(layers, positive.mean("fact"), label=scheme, markersize=3, linewidth=1, **look)
        right.plot(layers, chosen["linear_cosine"].mean("fact"), markersize=3, linewidth=1, **look)
        hollow = look | {"markerfacecolor": "white", "linestyle": "--"}
        right.plot(layers, chosen["cosine"].mean("fact"), markersize=3, linewidth=0.8, **hollow)
    middle.set(ylabel="share of facts", ylim=(-0.04, 1.04))
    right.plot([], [], color="0.3", label=r"$\cos(J\delta, \delta)$")
    right.plot([], [], color="0.3", linestyle="--", label="realised")
    right.legend(fontsize="x-small", frameon=False)
    right.set(ylabel="mean cosine", ylim=(min(0.0, right.get_ylim()[0]), 1.02))
    for ax in (middle, right):
        ax.set(xlabel="layer", xticks=layers)
    figure.legend(*middle.get_legend_handles_labels(), fontsize="x-small", loc="outside upper center", ncols=7)


def decomposition(figure: FigureBase, dataset: xr.Dataset) -> None:
    """One panel a scheme: norms of J·δ, curvature and leakage over that of the passive shift, means over facts.

    Args:
        figure: An empty figure, or part of one.
        dataset: An open run of tables.
    """
    below = below_last(dataset)
    schemes = schemes_with(below, "linear_norm")
    panels = np.atleast_1d(figure.subplots(1, len(schemes), sharey=True, sharex=True))
    for ax, scheme in zip(panels, schemes, strict=True):
        chosen = below.sel(scheme=scheme)
        for term, label, grey, marker in _TERMS:
            values = chosen[f"{term}_norm"] / chosen["passive_shift_norm"]
            _mean_curve(ax, dataset, values, label=label, color=grey, marker=marker)
        ax.set_title(scheme, fontsize="small")
    panels[0].set(ylabel=r"norm over $\|\delta_L\|$", ylim=(0, None))
    figure.legend(*panels[0].get_legend_handles_labels(), fontsize="x-small", loc="outside upper center", ncols=3)


_TERMS = (
    ("linear", r"$J\delta$", "0.1", "o"),
    ("curvature", "curvature", "0.45", "s"),
    ("leakage", "leakage", "0.7", "^"),
)


def step_size(figure: FigureBase, dataset: xr.Dataset) -> None:
    """Figure 3, measured: one panel a layer, the residual after a step along δ, replayed and as J predicts.

    Steps are over |t*|, so that where t* > 0 J predicts the least residual at 1 and harm from 2 on;
    medians over facts, with quartiles of the replayed curve.

    Args:
        figure: An empty figure, or part of one.
        dataset: An open run of tables whose step sizes have been studied.
    """
    below = below_last(dataset)
    studied = schemes_with(below, "step_replayed")
    schemes = [name for name in OPPOSITES if name in studied] or studied[:2]
    panels = np.atleast_1d(figure.subplots(1, below.sizes["layer"], sharey=True, sharex=True))
    steps = below["step"].values
    for ax, layer in zip(panels, below["layer"].values, strict=True):
        for scheme in schemes:
            chosen = below.sel(scheme=scheme, layer=layer)
            if not np.isfinite(chosen["step_replayed"]).any():
                continue
            color = STYLES.get(scheme, {}).get("color")
            low, middle, high = np.nanquantile(chosen["step_replayed"].values, (0.25, 0.5, 0.75), axis=0)
            ax.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
            ax.plot(steps, middle, color=color, linewidth=1, label=f"{scheme}, replayed")
            predicted = np.nanmedian(chosen["step_predicted"].values, axis=0)
            ax.plot(steps, predicted, color=color, linewidth=0.8, linestyle="--", label=f"{scheme}, by $J$")
        ax.axhline(1, color="0.3", linewidth=0.5, linestyle=":")
        ax.set_title(f"layer {layer}", fontsize="small")
        ax.set(xlabel=r"$t / |t^*|$", xticks=[0, 1, 2, 3])
    panels[0].set(ylabel="remaining residual", ylim=(0, None))
    figure.legend(*panels[0].get_legend_handles_labels(), fontsize="x-small", loc="outside upper center", ncols=4)


def layer_count(figure: FigureBase, dataset: xr.Dataset) -> None:
    """The residual that is left against the number of decisive layers, means with intervals.

    Args:
        figure: An empty figure, or part of one.
        dataset: An open run of layer counts.
    """
    ax = figure.subplots()
    for scheme in schemes_with(dataset, "final_ratio"):
        _mean_curve(ax, dataset, dataset["final_ratio"].sel(scheme=scheme), label=scheme, **STYLES.get(scheme, {}))
    ax.axhline(1.0, color="0.3", linewidth=0.5, linestyle=":")
    ax.set(xlabel="decisive layers", ylabel="residual left at the last layer", ylim=(0, None))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(fontsize="x-small", loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)


def jacobian(figure: FigureBase, dataset: xr.Dataset) -> None:
    """Spectra of S and of J by layer, medians over facts, and how far J is from normal against the distance.

    Args:
        figure: An empty figure, or part of one.
        dataset: An open run of Jacobians, dense.
    """
    left, middle, gains, right = figure.subplots(1, 4)
    layers = dataset["layer"].values
    last = max(dataset.attrs["config"]["settings"]["layers"])
    places = np.linspace(0, 1, dataset.sizes["rank"])
    for place, layer in enumerate(layers):
        chosen, grey = dataset.sel(layer=layer), str(0.7 * place / max(1, len(layers) - 1))
        left.plot(
            places, chosen["symmetric_eigenvalue"].median("fact"), color=grey, linewidth=1, label=f"layer {layer}"
        )
        middle.plot(places, chosen["singular_value"].median("fact"), color=grey, linewidth=1)
    left.axhline(0, color="0.3", linewidth=0.6, linestyle=":")
    left.set(ylabel=r"eigenvalues of $S$", xlabel="share of the spectrum", yscale="symlog")
    middle.set(ylabel=r"singular values of $J$", xlabel="share of the spectrum", yscale="log")
    left.legend(fontsize="x-small", frameon=False)
    distance = dataset.assign_coords(layer=last - layers)
    _mean_curve(right, dataset, distance["henrici"], label="Henrici's departure", color="0.1", marker="o")
    _mean_curve(right, dataset, distance["rotation"], label=r"rotation $\|A\|/\|S\|$", color="0.5", marker="s")
    _mean_curve(gains, dataset, distance["sigma_max"], label=r"$\sigma_{\max}$", color="0.1", marker="o")
    _mean_curve(gains, dataset, distance["random_gain"], label="random directions", color="0.5", marker="s")
    gains.set(xlabel="distance $L - l$", ylabel="gain", ylim=(0, None))
    gains.legend(fontsize="x-small", frameon=False)
    right.set(xlabel="distance $L - l$", ylim=(0, None))
    right.legend(fontsize="x-small", frameon=False)


def effort(figure: FigureBase, dataset: xr.Dataset) -> None:
    """One panel a scheme, a group of bars a layer: who carries what, means over facts.

    Effort, the norm of a layer's shift, and price, what that costs at least in disturbance, as shares of all layers';
    and the layer's part of the change at the last layer, of which J·δ accounts for the mark. All add up to one.

    Args:
        figure: An empty figure, or part of one.
        dataset: An open run of tables.
    """
    schemes = carriers(dataset)
    panels = np.atleast_1d(figure.subplots(1, len(schemes), sharey=True))
    shares = {
        "effort": dataset["effort"],
        "price": dataset["price"] / dataset["price"].sum("layer"),
        "carried to the last layer": dataset["carried"],
    }
    layers, width = dataset["layer"].values, 0.8 / len(shares)
    for ax, scheme in zip(panels, schemes, strict=True):
        for place, (label, values) in enumerate(shares.items()):
            at = layers + (place - 1) * width
            mean = values.sel(scheme=scheme).mean("fact")
            ax.bar(at, mean, width, label=label, color=str(0.75 - 0.3 * place), edgecolor="none")
        linear = dataset["carried_linear"].sel(scheme=scheme).mean("fact")
        ax.plot(at, linear, label=r"carried by $J\delta$", linestyle="", marker="_", markersize=5, color="#c1272d")
        total = float(dataset["price"].sel(scheme=scheme).sum("layer").mean())
        ax.axhline(0, color="0.3", linewidth=0.5)
        ax.set_title(f"{scheme}\ntotal price {total:.2g}", fontsize="small")
        ax.set(xlabel="layer", xticks=layers)
        ax.grid(visible=False, axis="x")
    panels[0].set(ylabel="share")
    figure.legend(*panels[0].get_legend_handles_labels(), fontsize="x-small", loc="outside upper center", ncols=4)


def carriers(dataset: xr.Dataset) -> list[str]:
    """Schemes that show how effort is shared.

    Args:
        dataset: An open run of tables.

    Returns:
        Those that the run has of the four that differ most, or all that it has.
    """
    held = schemes_with(dataset, "effort")
    return [name for name in CARRIERS if name in held] or held


def efficacy_specificity(figure: FigureBase, dataset: xr.Dataset) -> None:
    """Every method in the plane of what it edits and what it leaves alone; arrows lead from a rule to it with replay.

    Args:
        figure: An empty figure, or part of one.
        dataset: An open run of edit_table.
    """
    cells = {(row["method"], row["metric"]): row for row in summaries(dataset).to_dict("records")}
    planes = (("kl", "efficacy_success"), ("top1", "generalization_accuracy"))
    for ax, (across, up) in zip(figure.subplots(1, 2), planes, strict=True):
        places = {}
        for name in map(str, dataset["edit"].values):
            x, y = cells[name, across], cells[name, up]
            rule, fill = _filled(name, replayed=any(both_ways(dataset, step) for step in STEPS))
            look = {"color": RULE_COLORS.get(rule, "0.4"), "marker": RULE_MARKERS.get(rule, "x"), "markersize": 4}
            errors = {
                f"{axis}err": np.nan_to_num([[v["mean"] - v["low"]], [v["high"] - v["mean"]]])
                for axis, v in (("x", x), ("y", y))
            }
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


def _filled(name: str, replayed: bool) -> tuple[str, dict[str, Any]]:
    """A method's rule, and how its marker is filled: hollow without replay, half with FE, wholly with CR."""
    if name.endswith(COORDINATED):
        return name.removesuffix(COORDINATED), {}
    if name.endswith(FORWARD):
        return name.removesuffix(FORWARD), {"fillstyle": "left", "markerfacecoloralt": "white"}
    return name, {"markerfacecolor": "white"} if replayed else {}


def gain(figure: FigureBase, dataset: xr.Dataset, step: Step) -> None:
    """What a way of making targets adds to another, rule by rule, paired over facts, with intervals.

    Args:
        figure: An empty figure, or part of one.
        dataset: An open run of edit_table that holds a rule on both sides of the step.
        step: What the names of the two methods end with.
    """
    gained, rules = gains_of(dataset, (step,)), both_ways(dataset, step)
    axes = figure.subplots(1, 2, width_ratios=(3, 1))
    shares = [metric for metric, kind in METRICS.items() if kind.scale > 1]
    for ax, metrics in zip(axes, (shares, ["kl"]), strict=True):
        for place, rule in enumerate(rules):
            chosen = gained[gained["rule"] == rule].set_index("metric").loc[metrics]
            offset = (place - (len(rules) - 1) / 2) * 0.8 / max(1, len(rules))
            look = {"color": RULE_COLORS.get(rule, "0.4"), "marker": RULE_MARKERS.get(rule, "x"), "linestyle": ""}
            _error_bars(
                ax, np.arange(len(metrics)) + offset, *(chosen[n] for n in ("mean", "low", "high")), label=rule, **look
            )
        ax.axhline(0, color="0.3", linewidth=0.6)
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


def schemes_with(dataset: xr.Dataset, variable: str) -> list[str]:
    """Schemes that there is something to draw of.

    Args:
        dataset: An open run, or some of its layers.
        variable: One of its variables.

    Returns:
        The names of those with a finite value of it.
    """
    return [str(name) for name in dataset["scheme"].values if np.isfinite(dataset[variable].sel(scheme=name)).any()]


def _mean_curve(ax: Axes, dataset: xr.Dataset, values: xr.DataArray, **look: Any) -> None:
    """Mean over facts with its 95 % interval along the other dimension, of values made from a run's."""
    dim = next(str(dim) for dim in values.dims if dim != "fact")
    places = values[dim].values
    if not np.isfinite(values).any():
        return
    found = summaries_of(values.transpose(dim, "fact").values, seed_of(dataset))
    _error_bars(ax, places, *(found[name].to_numpy() for name in ("mean", "low", "high")), **look)
    ax.set(xlabel="layer", xticks=places)


def _error_bars(ax: Axes, places: Any, mean: Any, low: Any, high: Any, **look: Any) -> None:
    error = np.nan_to_num([mean - low, high - mean])
    ax.errorbar(places, mean, error, **{"capsize": 1.5, "markersize": 3, "linewidth": 1, **look})


def _curves(ax: Axes, dataset: xr.Dataset, variable: str, *tables: str) -> None:
    """Mean and interval by layer of each scheme's own row in some tables."""
    layers, beside = [int(layer) for layer in dataset["layer"].values], False
    for name in tables:
        long = table(dataset, name)
        long = long[(long["variable"] == variable) & (long["row"] == long["scheme"])]
        for scheme, rows in long.groupby("scheme", sort=False):
            look = STYLES.get(str(scheme), {})
            _error_bars(ax, *(rows[name] for name in ("layer", "mean", "low", "high")), label=scheme, **look)
            paper = paper_residuals(name, str(scheme), len(layers))
            if np.isfinite(paper).any():
                hollow = look | {"markerfacecolor": "white"}
                ax.plot(layers, paper, linestyle="--", linewidth=0.8, markersize=3, **hollow)
                beside = True
    if beside:
        ax.plot([], [], linestyle="--", color="0.3", linewidth=0.8, label="paper (Llama-3-8B)")
    ax.set(xlabel="edited layer", xticks=layers)
    ax.legend(fontsize="x-small", loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)
