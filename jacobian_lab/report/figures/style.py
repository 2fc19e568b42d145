"""Look and files of figures: ICML's sizes and fonts, colours that differ in grey."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import seaborn as sns
import xarray as xr
from matplotlib.figure import Figure
from tueplots import axes, figsizes, fontsizes

from jacobian_lab.catalogue import CR, FE
from jacobian_lab.errors import InputError
from jacobian_lab.report.entries import FigureEntry
from jacobian_lab.report.writing import below_last

STYLES: dict[str, dict[str, Any]] = {
    "forward-replay": {"color": "#0d1b3e", "marker": "v"},
    "jacobian-pullback": {"color": "#5a1e73", "marker": "P"},
    "coordinated-replay": {"color": "#b3161f", "marker": "*"},
    "backward-dividing": {"color": "#1b84cc", "marker": "o"},
    "independent": {"color": "#ac9150", "marker": "^"},
    "backward-full": {"color": "#62c39a", "marker": "s"},
    "one-layer": {"color": "#f0bedd", "marker": "D"},
    "first-layer": {"color": "#501743", "marker": "d"},
    "independent-everywhere": {"color": "#43451d", "marker": "<"},
    "forward-replay-divided": {"color": "#377477", "marker": "1"},
    "forward-replay-restarted": {"color": "#d77949", "marker": "2"},
    "forward-replay-joint": {"color": "#a8a1ea", "marker": "3"},
}
"""Each scheme has one colour and one marker in every figure; those of a table differ in grey too, and so do the
controls and the three that they are held against."""


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
    "wise": "<",
    "rledit": ">",
}
_LADDER = sns.cubehelix_palette(len(RULE_MARKERS), start=2.4, rot=-1.6, hue=1.1, dark=0.12, light=0.78, reverse=True)
_LATER = {
    "rome": "8",
    "nse": "p",
    "encore": "h",
    "sphere": "H",
    "nas": "o",
    "betaedit": "^",
    "lyaplock": "s",
    "rlsedit": "D",
}
_LATER_LADDER = sns.cubehelix_palette(len(_LATER), start=0.4, rot=1.2, hue=1.4, dark=0.2, light=0.7)
RULE_COLORS = dict(zip([*RULE_MARKERS, *_LATER], [*_LADDER, *_LATER_LADDER], strict=True))
RULE_MARKERS |= _LATER
"""Each rule has one marker and one colour in every figure; it is half filled with FE, and filled with CR."""


def rule_and_suffix(method: str) -> tuple[str, str]:
    """Take the suffix of a scheme from a method's name; empty without replay."""
    suffix = next((suffix for suffix in (FE, CR) if method.endswith(suffix)), "")
    return method.removesuffix(suffix), suffix


TIMES_LIKE = {"font.family": "STIXGeneral", "mathtext.fontset": "stix", "pdf.fonttype": 42}
"""The Times of ICML, in the free cut that matplotlib carries; embedded as TrueType."""


@contextmanager
def style(column: str = "half", columns: int = 1, height: float = 0.75) -> Iterator[None]:
    """Draw and save with ICML's sizes and fonts."""
    size = figsizes.icml2024_half if column == "half" else figsizes.icml2024_full
    with mpl.rc_context(), sns.axes_style("whitegrid"):
        mpl.rcParams.update(size(ncols=columns, height_to_width_ratio=height) | fontsizes.icml2024())
        mpl.rcParams.update(axes.lines() | TIMES_LIKE)
        yield


def drawn(entry: FigureEntry, dataset: xr.Dataset, **of_fact: Any) -> Figure:
    """Draw a figure of an open run, or of one of its facts."""
    column, panels = "half", 1
    if entry.panels:
        column, panels = "full", entry.panels(below_last(dataset) if entry.below else dataset)
    with style(column, panels, entry.height):
        figure = plt.figure()
        try:
            entry.draw(figure, dataset, **of_fact)
            figure.draw_without_rendering()  # ticks take their fonts when they are first drawn
        finally:
            plt.close(figure)
    return figure


def save(figure: Figure, *paths: Path) -> None:
    """Write a figure into files of the formats that their endings say."""
    formats = figure.canvas.get_supported_filetypes()
    if unwritable := [path for path in paths if path.suffix[1:] not in formats]:
        raise InputError(f"expected a file that ends in .pdf, .png or .svg, got {unwritable[0]}: give another name")
    try:
        with style():
            for path in paths:
                path.parent.mkdir(parents=True, exist_ok=True)
                figure.savefig(path, dpi=300)
    except OSError as error:
        raise InputError(
            f"expected a folder for figures that can be written, got {path.parent} ({error.strerror}): choose another"
        ) from error
