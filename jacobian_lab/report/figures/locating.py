"""Heat maps of causal traces: by role of the token and layer, or by the tokens of one fact."""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import FigureBase
from matplotlib.ticker import MaxNLocator

from jacobian_lab.report.tables.locating import effects
from jacobian_lab.store.run import config_of

COLORS = {"residual": "Purples", "mlp": "Greens", "attention": "Reds"}
"""Colours of sites, as ROME has them; those of severed parts are the residual's."""

TICKS = 6
"""Most layers that are named on an axis."""


def locate(figure: FigureBase, dataset: xr.Dataset, fact: Any = None) -> None:
    """One panel a site: mean effect by role and layer, or that of each token of one fact."""
    if fact is None:
        cells = effects(dataset).mean("fact")
        labels = [str(role) for role in cells["role"].values]
    else:
        cells, labels = _of_fact(dataset, fact, figure)
    rows = [row for row in range(len(labels)) if np.isfinite(cells[row]).any()]
    axes = figure.subplots(1, dataset.sizes["site"], squeeze=False, sharey=True)[0]
    for ax, site in zip(axes, dataset["site"].values, strict=True):
        _heat_map(figure, ax, cells[rows].sel(site=site), COLORS.get(str(site), "Purples"))
        ax.set_title(str(site), fontsize="small")
    axes[0].set(yticks=range(len(rows)), yticklabels=[labels[row] for row in rows])
    axes[0].invert_yaxis()


def _of_fact(dataset: xr.Dataset, fact: Any, figure: FigureBase) -> tuple[xr.DataArray, list[str]]:
    """Effects of one fact, token by token, and its tokens, those of the subject with a star."""
    place = dataset["fact"].values.tolist().index(fact)
    one = dataset.isel(fact=place)
    tokens = [text.strip() or repr(text) for text in config_of(dataset)["provenance"]["tokens"][place]]
    roles = one["role"].values[: len(tokens)]
    labels = [f"{text}*" if role in {1, 2, 3} else text for text, role in zip(tokens, roles, strict=True)]
    clean, corrupted = float(one["answer_clean"]), float(one["answer_corrupted"])
    figure.suptitle(f"fact {fact}: probability {clean:.3f}, corrupted {corrupted:.3f}", fontsize="small")
    return one["effect"][: len(tokens)], [label.replace("$", r"\$") for label in labels]


def _heat_map(figure: FigureBase, ax: Axes, values: xr.DataArray, colors: str) -> None:
    """One panel, on a scale of its own, with a point at its peak."""
    effect, layers = values.transpose(..., "layer").values, values["layer"].values
    top = max(float(np.nanmax(effect)), np.finfo(float).tiny)
    mesh = ax.pcolormesh(np.arange(len(layers)), np.arange(len(effect)), effect, cmap=colors, vmin=0.0, vmax=top)
    row, column = np.unravel_index(np.nanargmax(effect), effect.shape)
    ax.plot(column, row, marker="o", markersize=2.5, color="black", linestyle="none")
    ticks = range(0, len(layers), -(-len(layers) // TICKS))
    ax.set(xlabel="layer", xticks=ticks, xticklabels=[int(layers[tick]) for tick in ticks])
    ax.grid(visible=False)
    bar = figure.colorbar(mesh, ax=ax, location="bottom", shrink=0.9, aspect=30, ticks=MaxNLocator(4))
    bar.ax.tick_params(labelsize="xx-small")
    bar.outline.set_linewidth(0.3)
