"""Entries of the registry: kinds of run, caption, requirements, and the function that makes a table or a figure."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from jacobian_lab.report.writing import Table, below_last


def nothing(_dataset: xr.Dataset) -> str:
    """Give no words about a run: nothing is required of it, or concluded."""
    return ""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A table or a figure of some kinds of run.

    Attributes:
        kinds: The kinds of run, among `KINDS`.
        caption: Its content.
        needs: Variables that the run must hold values of.
        made_by: The command that computes them, as Python spells it, perhaps with options; that of the kind by default.
        below: Whether they are needed below the last layer, where J says something.
        lacking: Names in words any further requirement that a run does not meet; empty if it meets all.
    """

    kinds: tuple[str, ...] = ("tables",)
    caption: str = ""
    needs: tuple[str, ...] = ()
    made_by: str = ""
    below: bool = False
    lacking: Callable[[xr.Dataset], str] = nothing

    @property
    def command(self) -> str:
        """The command that computes its variables."""
        return self.made_by or self.kinds[0]

    def lacks(self, dataset: xr.Dataset) -> str:
        """Name the first requirement that a run of the kind does not meet; empty if it meets all."""
        needed = below_last(dataset) if self.below else dataset
        missing = [name for name in self.needs if name not in needed or not np.isfinite(needed[name]).any()]
        return missing[0] if missing else self.lacking(dataset)


@dataclass(frozen=True, kw_only=True)
class TableEntry(Entry):
    """A table; one without a caption goes to a CSV file alone.

    Attributes:
        make: Computes it from an open run, and from the frame of `uses` if there is one.
        uses: Computes a frame that several tables share.
        edits: Schemes or methods that the paper's table has: what its script edits with by default.
        model: The known model that the paper's table is of.
    """

    make: Callable[..., Table]
    uses: Callable[[xr.Dataset], pd.DataFrame] | None = None
    edits: tuple[str, ...] = ()
    model: str = ""


@dataclass(frozen=True, kw_only=True)
class FigureEntry(Entry):
    """A figure.

    Attributes:
        draw: Draws an open run on an empty figure.
        panels: Counts the panels side by side, across the page; one column without.
        height: Height of a panel over its width.
        of_fact: Whether it can be drawn of a single fact.
        conclusion: Gives what the figure of a run shows, in sentences with numbers.
    """

    draw: Callable[..., None]
    panels: Callable[[xr.Dataset], int] | None = None
    height: float = 0.75
    of_fact: bool = False
    conclusion: Callable[[xr.Dataset], str] = nothing


def drawing(path: str) -> Callable[..., Any]:
    """A function of `report.figures`, which is imported when it is called."""

    def call(*arguments: Any, **options: Any) -> Any:
        module, name = path.split(".")
        return getattr(import_module(f"jacobian_lab.report.figures.{module}"), name)(*arguments, **options)

    return call
