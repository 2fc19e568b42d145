"""How figures look and where they go: ICML's sizes and fonts, legible in grey; `charts` draws them."""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import xarray as xr
from matplotlib.figure import Figure, FigureBase
from tueplots import axes, figsizes, fontsizes

from jacobian_lab.errors import InputError
from jacobian_lab.report.captions import below_last
from jacobian_lab.store.run import open_run

_SHADES = sns.color_palette("cubehelix", 7)
STYLES: dict[str, dict[str, Any]] = {
    "backward-dividing": {"color": _SHADES[1], "marker": "o"},
    "backward-full": {"color": _SHADES[2], "marker": "s"},
    "one-layer": {"color": _SHADES[4], "marker": "D"},
    "independent": {"color": _SHADES[3], "marker": "^"},
    "forward-replay": {"color": _SHADES[0], "marker": "v"},
    "jacobian-pullback": {"color": _SHADES[5], "marker": "P"},
}
"""Each scheme has one colour and one marker in every figure; colours differ in lightness too."""


RULE_MARKERS = {
    "unedited": "*",
    "onelayer": "v",
    "memit": "o",
    "blue": "X",
    "blue-refit": "d",
    "prune": "s",
    "rect": "D",
    "alphaedit": "^",
    "emmet": "P",
}
RULE_COLORS = dict(zip(RULE_MARKERS, sns.color_palette("cubehelix", len(RULE_MARKERS) + 2), strict=False))
"""Each rule has one marker and one colour in every figure; with FE it is filled."""

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


def script(
    draw: Callable[[FigureBase, xr.Dataset], None],
    description: str | None,
    *,
    kind: str = "tables",
    needs: Sequence[str] = (),
    made_by: str = "tables",
    below: bool = False,
    panels: Callable[[xr.Dataset], int] | None = None,
    height: float = 0.75,
) -> None:
    """The whole of a script in ``figures/``: read a run, draw it, say where it went.

    Args:
        draw: Draws an open run on an empty figure; its name is the figure's.
        description: What the script does.
        kind: The kind of run that it draws.
        needs: Variables that the run must hold values of.
        made_by: The command that computes them.
        below: Whether it needs them below the last layer, where J says something.
        panels: Draws across the page, with as many panels as this says; else one in a column.
        height: Height of a panel over its width.

    Raises:
        InputError: Never to the caller: it ends the script with one line and status 2.
    """
    name = draw.__name__
    parser = argparse.ArgumentParser(prog=f"{name}.py", description=description)
    parser.add_argument("run", type=Path, help=f"folder of a run, as jacobian-lab {made_by} makes it")
    parser.add_argument("--out", type=Path, help="where to write; the run's folder 'figures' by default")
    arguments = parser.parse_args()
    mpl.use("agg")
    try:
        dataset = open_run(arguments.run, kind)
        shown = below_last(dataset) if below else dataset
        for variable in needs:
            if not np.isfinite(shown[variable]).any():
                raise InputError(
                    f"expected a run that holds {variable}, got {arguments.run} without: make it with "
                    f"jacobian-lab {made_by}, to {arguments.run}"
                )
        with style("full", columns=panels(shown), height=height) if panels else style(height=height):
            figure = plt.figure()
            draw(figure, dataset)
            paths = save(figure, arguments.out or arguments.run / "figures", name)
    except InputError as error:
        sys.stderr.write(f"{name}.py: {error}\n")
        sys.exit(2)
    sys.stdout.write("\n".join(map(str, paths)) + "\n")
