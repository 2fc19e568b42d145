"""Figures from stored arrays, in the style of an ICML column, legible in grey."""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from tueplots import axes, figsizes, fontsizes

from jacobian_lab.errors import InputError
from jacobian_lab.reporting import PAPER, PAPER_LAYERS, table
from jacobian_lab.runs import open_run

_SHADES = sns.color_palette("cubehelix", 6)
STYLES: dict[str, dict[str, Any]] = {
    "backward-dividing": {"color": _SHADES[1], "marker": "o"},
    "backward-full": {"color": _SHADES[2], "marker": "s"},
    "one-layer": {"color": _SHADES[4], "marker": "D"},
    "independent": {"color": _SHADES[3], "marker": "^"},
    "forward-replay": {"color": _SHADES[0], "marker": "v"},
}
"""Each scheme has one colour and one marker in every figure; colours differ in lightness too."""


TIMES_LIKE = {"font.family": "STIXGeneral", "mathtext.fontset": "stix", "pdf.fonttype": 42}
"""The Times of ICML, in the free cut that matplotlib carries; embedded as TrueType."""


@contextmanager
def style(column: str = "half", columns: int = 1, height: float = 0.75) -> Iterator[None]:
    """Draw and save with ICML's sizes and fonts.

    Args:
        column: ``"half"`` for one column, ``"full"`` for the page's width.
        columns: Panels in a row.
        height: Height of a panel over its width.

    Yields:
        Nothing.
    """
    size = figsizes.icml2024_half if column == "half" else figsizes.icml2024_full
    with mpl.rc_context(), sns.axes_style("whitegrid"):
        mpl.rcParams.update(size(ncols=columns, height_to_width_ratio=height) | fontsizes.icml2024())
        mpl.rcParams.update(axes.lines() | TIMES_LIKE)
        yield


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


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write a figure as PDF and as PNG.

    Args:
        figure: The figure.
        folder: Where to; made if absent.
        name: File name without its ending.

    Returns:
        The two paths.

    Raises:
        InputError: If the folder cannot be written.
    """
    paths = [folder / f"{name}.pdf", folder / f"{name}.png"]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in paths:
            figure.savefig(path, dpi=300)
    except OSError as error:
        raise InputError(
            f"expected a folder for figures that can be written, got {folder} ({error.strerror}): choose another"
        ) from error
    return paths


def script(draw: Callable[[FigureBase, xr.Dataset], None], description: str | None, *, wide: bool = False) -> None:
    """The whole of a script in ``figures/``: read a run, draw it, say where it went.

    Args:
        draw: Draws an open run on an empty figure; its name is the figure's.
        description: What the script does.
        wide: Whether to draw across the page, with a panel for each scheme.
    """
    name = draw.__name__
    parser = argparse.ArgumentParser(prog=f"{name}.py", description=description)
    parser.add_argument("run", type=Path, help="folder of a run, as jacobian-lab tables makes it")
    parser.add_argument("--out", type=Path, help="where to write; the run's folder 'figures' by default")
    arguments = parser.parse_args()
    mpl.use("agg")
    try:
        dataset = _measured(arguments.run)
        with style("full", columns=dataset.sizes["scheme"], height=1.2) if wide else style():
            figure = plt.figure()
            draw(figure, dataset)
            paths = save(figure, arguments.out or arguments.run / "figures", name)
    except InputError as error:
        sys.stderr.write(f"{name}.py: {error}\n")
        sys.exit(2)
    sys.stdout.write("\n".join(map(str, paths)) + "\n")


def _measured(folder: Path) -> xr.Dataset:
    """Open a run that there is something to draw of."""
    dataset = open_run(folder)
    if not dataset.sizes["scheme"]:
        raise InputError(f"expected a run with a measured scheme, got {folder} without one: finish it first")
    return dataset


def _curves(ax: Axes, dataset: xr.Dataset, variable: str, *tables: str) -> None:
    """Mean and interval by layer of each scheme's own row in some tables."""
    layers = [int(layer) for layer in dataset["layer"].values]
    for name in tables:
        long = table(dataset, name)
        long = long[(long["variable"] == variable) & (long["row"] == long["scheme"])]
        for scheme, rows in long.groupby("scheme", sort=False):
            look = STYLES.get(str(scheme), {})
            error = np.nan_to_num([rows["mean"] - rows["low"], rows["high"] - rows["mean"]])
            ax.errorbar(
                rows["layer"],
                rows["mean"],
                error,
                label=scheme,
                capsize=1.5,
                markersize=3,
                linewidth=1,
                **look,
            )
            if (name, scheme) in PAPER and len(layers) == len(PAPER_LAYERS):
                ax.plot(
                    layers,
                    PAPER[name, str(scheme)],
                    linestyle="--",
                    linewidth=0.8,
                    markersize=3,
                    **look | {"markerfacecolor": "white"},
                )
    ax.plot([], [], linestyle="--", color="0.3", linewidth=0.8, label="paper (Llama-3-8B)")
    ax.set(xlabel="edited layer", xticks=layers)
    ax.legend(fontsize="x-small", loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)
