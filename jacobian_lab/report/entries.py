"""What is known of a table or a figure before there is a run: of which kind it is, what it needs, what makes it."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import xarray as xr
from matplotlib.figure import FigureBase

from jacobian_lab.report.writing import Table, below_last


def nothing(_dataset: xr.Dataset) -> str:
    """What a run lacks that lacks nothing."""
    return ""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What is shown of a kind of run.

    Attributes:
        kinds: The kinds of run, among `KINDS`.
        caption: What is in it.
        needs: Variables that the run must hold values of.
        made_by: The command that computes them, as Python spells it; options may follow.
        below: Whether they are needed below the last layer, where J says something.
        lacking: What else a run lacks, in words; empty if nothing.
    """

    kinds: tuple[str, ...] = ("tables",)
    caption: str = ""
    needs: tuple[str, ...] = ()
    made_by: str = "tables"
    below: bool = False
    lacking: Callable[[xr.Dataset], str] = nothing

    def lacks(self, dataset: xr.Dataset) -> str:
        """What a run of the kind would have to hold besides."""
        shown = below_last(dataset) if self.below else dataset
        missing = [name for name in self.needs if name not in shown or not np.isfinite(shown[name]).any()]
        return missing[0] if missing else self.lacking(dataset)


@dataclass(frozen=True, kw_only=True)
class TableEntry(Entry):
    """A table; one without a caption goes to a CSV file alone.

    Attributes:
        make: Computes it from an open run, and from the frame of the table that it uses.
        uses: Another table that it is made of.
        edits: Schemes or methods that the paper's table has: what its script edits with by default.
        model: The known model that the paper's table is of.
    """

    make: Callable[..., Table]
    uses: str = ""
    edits: tuple[str, ...] = ()
    model: str = ""


@dataclass(frozen=True, kw_only=True)
class FigureEntry(Entry):
    """A figure.

    Attributes:
        draw: Draws an open run on an empty figure.
        panels: How many stand side by side, across the page; in one column if it is not said.
        height: Height of a panel over its width.
    """

    draw: Callable[[FigureBase, xr.Dataset], None]
    panels: Callable[[xr.Dataset], int] | None = None
    height: float = 0.75
