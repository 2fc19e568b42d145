"""Figures of target schemes, layer by layer."""

import math

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import FigureBase

from jacobian_lab.report.figures.axes import error_bars, mean_curve, plain_decades
from jacobian_lab.report.figures.style import STYLES
from jacobian_lab.report.paper import paper_residuals
from jacobian_lab.report.tables.residuals import table
from jacobian_lab.report.writing import below_last, schemes_with

OPPOSITES = ("backward-dividing", "forward-replay")
"""The two schemes that the paper sets against each other; figures with room for two show these."""

CARRIERS = ("backward-dividing", "backward-full", "forward-replay", "coordinated-replay")
"""Schemes that share the effort differently."""


def cosine_by_layer(figure: FigureBase, dataset: xr.Dataset) -> None:
    """Table 1 as curves: mean cosine of δ_l and δ_L^l with its interval, the paper's dashed."""
    ax = figure.subplots()
    _curves(ax, dataset, "cosine", "table1")
    ax.set(ylabel=r"$\cos(\delta_l, \delta_L^l)$", ylim=(min(0.0, ax.get_ylim()[0]), 1.05))


def residual_by_layer(figure: FigureBase, dataset: xr.Dataset) -> None:
    """Tables 2 and 5 as curves, a panel each: mean remaining residual of every scheme, the paper's dashed.

    The panels have one scale and two denominators: the residual of the last layer's optimised target, and that of the
    scheme's own.
    """
    tables = residual_tables(dataset)
    panels = figure.subplots(1, len(tables), sharey=True, squeeze=False)[0]
    for ax, name in zip(panels, tables, strict=True):
        _curves(ax, dataset, "residual_ratio", name)
        ax.set(yscale="log", title=RESIDUALS[name])
        plain_decades(ax.yaxis)
    panels[0].set(ylabel="remaining residual")


RESIDUALS = {"table2": "of the last layer's target", "table5": "of the scheme's own target"}
"""What each table's residual is over."""


def residual_tables(dataset: xr.Dataset) -> list[str]:
    """Tables of residuals that a run has rows of."""
    return [name for name in RESIDUALS if len(_own(dataset, "residual_ratio", name))]


def spread_by_fact(figure: FigureBase, dataset: xr.Dataset) -> None:
    """One panel a scheme: the remaining residual of every fact, and the median."""
    schemes = schemes_with(dataset, "residual_ratio")
    rows, columns = shape_of(len(schemes))
    panels = figure.subplots(rows, columns, sharey=True, sharex=True, squeeze=False)
    for ax in panels.flat[len(schemes) :]:
        ax.remove()
    for ax, scheme in zip(panels.flat, schemes, strict=False):
        values, layers = dataset["residual_ratio"].sel(scheme=scheme).values, dataset["layer"].values
        edited = np.isfinite(values).any(axis=0)
        ax.plot(layers, values.T, color="0.6", linewidth=0.4, marker=".", markersize=1.5)
        median = np.full(len(layers), np.nan)  # no line through layers that are not edited
        median[edited] = np.nanmedian(values[:, edited], axis=0)
        ax.plot(layers, median, **STYLES.get(scheme, {}), linewidth=1, markersize=3)
        ax.axhline(1.0, color="0.3", linewidth=0.5, linestyle=":")
        ax.set_title(scheme, fontsize="small")
        ax.set(xticks=layers, yscale="log")
        ax.yaxis.set(major_formatter="{x:g}")
    figure.supxlabel("edited layer", fontsize="medium")
    figure.supylabel("remaining residual", fontsize="medium")


def shape_of(panels: int) -> tuple[int, int]:
    """Rows and columns of panels: one row up to four, then two and more."""
    columns = panels if panels <= COLUMNS else math.ceil(panels / math.ceil(panels / COLUMNS))
    return math.ceil(panels / columns), columns


COLUMNS = 4
"""Panels of a row at the most."""


def decomposition(figure: FigureBase, dataset: xr.Dataset) -> None:
    """One panel a scheme: norms of J·δ, curvature and leakage over that of the passive shift, means over facts."""
    below = below_last(dataset)
    schemes = schemes_with(below, "linear_norm")
    panels = np.atleast_1d(figure.subplots(1, len(schemes), sharey=True, sharex=True))
    for ax, scheme in zip(panels, schemes, strict=True):
        edit = below.sel(scheme=scheme)
        for term, label, grey, marker in _TERMS:
            values = edit[f"{term}_norm"] / edit["passive_shift_norm"]
            mean_curve(ax, dataset, values, label=label, color=grey, marker=marker)
        ax.set_title(scheme, fontsize="small")
    panels[0].set(ylabel=r"norm over $\|\delta_L\|$", ylim=(0, None))
    figure.legend(*panels[0].get_legend_handles_labels(), fontsize="x-small", loc="outside upper center", ncols=3)


_TERMS = (
    ("linear", r"$J\delta$", "0.1", "o"),
    ("curvature", "curvature", "0.45", "s"),
    ("leakage", "leakage", "0.7", "^"),
)


def effort(figure: FigureBase, dataset: xr.Dataset) -> None:
    """One panel a scheme, a group of bars a layer: shares of effort, price and change, means over facts.

    Effort, the norm of a layer's shift, and price, what that costs at least in disturbance, as shares of all layers';
    and the layer's part of the change at the last layer: bars of a kind add up to one. The mark is what J·δ carries.
    """
    schemes = carriers(dataset)
    panels = np.atleast_1d(figure.subplots(1, len(schemes), sharey=True))
    shares = {
        "effort": dataset["effort"],
        "price": dataset["price"] / dataset["price"].sum("layer", min_count=1),
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
        total = float(dataset["price"].sel(scheme=scheme).sum("layer", min_count=1).mean())
        ax.axhline(0, color="0.3", linewidth=0.5)
        ax.set_title(f"{scheme}\ntotal price {total:.2g}", fontsize="small")
        ax.set(xlabel="layer", xticks=layers)
        ax.grid(visible=False, axis="x")
    panels[0].set(ylabel="share")
    figure.legend(*panels[0].get_legend_handles_labels(), fontsize="x-small", loc="outside upper center", ncols=4)


def carriers(dataset: xr.Dataset) -> list[str]:
    """Schemes that show how effort is shared."""
    held = schemes_with(dataset, "effort")
    return [name for name in CARRIERS if name in held] or held


def step_size(figure: FigureBase, dataset: xr.Dataset) -> None:
    """Figure 3, measured: one panel a layer, the residual after a step along δ, replayed and as J predicts.

    Steps are over |t*|, so that where t* > 0 J predicts the least residual at 1 and harm from 2 on;
    medians over facts, with quartiles of the replayed curve.
    """
    below = below_last(dataset)
    studied = schemes_with(below, "step_replayed")
    schemes = [name for name in OPPOSITES if name in studied] or studied[:2]
    panels = np.atleast_1d(figure.subplots(1, below.sizes["layer"], sharey=True, sharex=True))
    steps = below["step"].values
    for ax, layer in zip(panels, below["layer"].values, strict=True):
        for scheme in schemes:
            edit = below.sel(scheme=scheme, layer=layer)
            if not np.isfinite(edit["step_replayed"]).any():
                continue
            color = STYLES.get(scheme, {}).get("color")
            low, middle, high = np.nanquantile(edit["step_replayed"].values, (0.25, 0.5, 0.75), axis=0)
            ax.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
            ax.plot(steps, middle, color=color, linewidth=1, label=f"{scheme}, replayed")
            predicted = np.nanmedian(edit["step_predicted"].values, axis=0)
            ax.plot(steps, predicted, color=color, linewidth=0.8, linestyle="--", label=f"{scheme}, by $J$")
        ax.axhline(1, color="0.3", linewidth=0.5, linestyle=":")
        ax.set_title(f"layer {layer}", fontsize="small")
        ax.set(xlabel=r"step $t$ over $\vert t^{\ast}\vert$", xticks=[0, 1, 2, 3])
    panels[0].set(ylabel="remaining residual", ylim=(0, None))
    figure.legend(*panels[0].get_legend_handles_labels(), fontsize="x-small", loc="outside upper center", ncols=4)


def layer_count(figure: FigureBase, dataset: xr.Dataset) -> None:
    """Residual, generalisation and D_KL by the number of decisive layers, means with intervals."""
    variables = counted(dataset)
    axes = figure.subplots(1, len(variables), squeeze=False)[0]
    for ax, (name, label) in zip(axes, variables.items(), strict=True):
        schemes = schemes_with(dataset, name)
        for place, scheme in enumerate(schemes):
            values = dataset[name].sel(scheme=scheme)
            dim = next(str(dim) for dim in values.dims if dim != "fact")
            dodged = values.assign_coords({dim: values[dim] + DODGE * (place - (len(schemes) - 1) / 2)})
            mean_curve(ax, dataset, dodged, label=scheme, **STYLES.get(scheme, {}))
        ax.set(xlabel="decisive layers", ylabel=label, xticks=dataset[dim].values)
        ax.set(**{"yscale": "log"} if name == "final_ratio" else {"ylim": (0, None)})
    axes[0].axhline(1.0, color="0.3", linewidth=0.5, linestyle=":")
    plain_decades(axes[0].yaxis)
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize="x-small", loc="outside upper center", ncols=5)


DODGE = 0.12
"""Layers by which the schemes' intervals stand apart."""


def counted(dataset: xr.Dataset) -> dict[str, str]:
    """Variables that a run has by the number of decisive layers, with their labels."""
    labels = {
        "final_ratio": "residual left at the last layer",
        "count_generalization": "generalisation, share",
        "count_kl": r"$D_{KL}$, nat",
    }
    return {name: label for name, label in labels.items() if schemes_with(dataset, name)}


def _own(dataset: xr.Dataset, variable: str, name: str) -> pd.DataFrame:
    """A table's rows of the schemes themselves."""
    long = table(dataset, name)
    return long[(long["variable"] == variable) & (long["row"] == long["scheme"])]


def _curves(ax: Axes, dataset: xr.Dataset, variable: str, name: str) -> None:
    """Mean and interval by layer of each scheme's own row in a table."""
    layers, beside = [int(layer) for layer in dataset["layer"].values], False
    for scheme, rows in _own(dataset, variable, name).groupby("scheme", sort=False):
        look = STYLES.get(str(scheme), {})
        edited = rows.set_index("layer").reindex(layers)  # no line through layers that are not edited
        error_bars(ax, layers, *(edited[column] for column in ("mean", "low", "high")), label=scheme, **look)
        paper = paper_residuals(name, str(scheme), len(layers))
        if np.isfinite(paper).any():
            hollow = look | {"markerfacecolor": "white"}
            ax.plot(layers, paper, linestyle="--", linewidth=0.8, markersize=3, **hollow)
            beside = True
    if beside:
        ax.plot([], [], linestyle="--", color="0.3", linewidth=0.8, label="paper (Llama-3-8B)")
    ax.set(xlabel="edited layer", xticks=layers)
    ax.legend(fontsize="x-small", frameon=False)
