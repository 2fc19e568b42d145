"""What a run holds, to be looked at: tables as data frames, figures, and what each command writes beside the store."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, TypeVar

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from jacobian_lab.errors import InputError
from jacobian_lab.report.captions import model_name
from jacobian_lab.report.entries import Entry
from jacobian_lab.report.figures.style import save, style
from jacobian_lab.report.paper import read_paper
from jacobian_lab.report.registry import FIGURES, TABLES
from jacobian_lab.report.tables.descents import answered_facts, failed_facts, unmet_anchors, unmet_shifts
from jacobian_lab.report.writing import Table, below_last, write_csv, write_table
from jacobian_lab.store.run import open_run
from jacobian_lab.store.schema import command_of

E = TypeVar("E", bound=Entry)


class Results:
    """The results of a run.

    Args:
        folder: The run's folder.
        kind: The kind that it must be of, if that matters.

    Attributes:
        folder: The folder.
        dataset: Every array with its dimensions, meaning and units; schemes or methods that have been measured.
        config: What ``config.json`` holds: ``format``, ``kind``, ``settings``, ``provenance``, ``coordinates``.
        kind: The kind of run: one of `KINDS`.

    Raises:
        InputError: If there is no run, or not of this kind, or something that it had finished is missing.

    Examples:
        >>> run = Results("runs/reproduce")  # doctest: +SKIP
        >>> run.tables  # doctest: +SKIP
        ('table1', 'table2', 'table5', 'efficacy', 'measurements', 'theorem2', 'decomposition', 'conditions')
        >>> run.table("table2")  # doctest: +SKIP
        >>> run.figure("residual_by_layer").savefig("residual.pdf")  # doctest: +SKIP
    """

    def __init__(self, folder: Path | str, kind: str | None = None) -> None:
        self.folder = Path(folder)
        self.dataset: xr.Dataset = open_run(self.folder, kind)
        self.config: dict[str, Any] = self.dataset.attrs["config"]
        self.kind: str = self.config["kind"]
        self._made: dict[str, Table] = {}

    @property
    def facts(self) -> int:
        """How many facts the run has."""
        return self.dataset.sizes["fact"]

    @property
    def tables(self) -> tuple[str, ...]:
        """Names of the tables that the run can give."""
        return self._held(TABLES)

    @property
    def figures(self) -> tuple[str, ...]:
        """Names of the figures that the run can give."""
        return self._held(FIGURES)

    def table(self, name: str) -> pd.DataFrame:
        """A table as one reads it."""
        return self._table(name).frame.copy()

    def numbers(self, name: str) -> pd.DataFrame:
        """A table as its CSV file has it: numbers, a row for each cell where it has intervals."""
        made = self._table(name)
        return (made.frame if made.numbers is None else made.numbers).copy()

    def caption(self, name: str) -> str:
        """What is in a table, of which model and facts, and of which the paper's rows are."""
        return _caption(name, self._table(name))

    def figure(self, name: str) -> Figure:
        """Draw a figure at ICML's sizes and with its fonts."""
        entry = self._entry(FIGURES, name, "figure")
        shown = below_last(self.dataset) if entry.below else self.dataset
        column, panels = ("full", entry.panels(shown)) if entry.panels else ("half", 1)
        with style(column, panels, entry.height):
            figure = plt.figure()
            try:
                entry.draw(figure, self.dataset)
                figure.draw_without_rendering()  # ticks take their fonts when they are first drawn
            finally:
                plt.close(figure)
        return figure

    def save_figure(self, name: str, folder: Path | str | None = None) -> list[Path]:
        """Draw a figure into files."""
        figure = self.figure(name)
        with style():
            return save(figure, self.folder / "figures" if folder is None else Path(folder), name)

    def write(self, *names: str, **given: Any) -> str:
        """Write tables beside the store: Markdown, LaTeX and CSV, or CSV alone where there is no caption."""
        texts = []
        for name in names:
            entry = TABLES[name]
            if self.kind not in entry.kinds or entry.lacks(self.dataset):
                continue
            made = self._make(name, **given) if given else self._table(name)
            write_csv(self.folder / f"{name}.csv", made.frame if made.numbers is None else made.numbers)
            if entry.caption:
                texts.append(write_table(self.folder / name, made.frame, _caption(name, made), made.bold))
        return "\n\n".join(texts)

    def __repr__(self) -> str:
        return "\n".join([
            f"{type(self).__name__}({str(self.folder)!r}): {command_of(self.kind)}, {model_name(self.dataset)}, "
            f"{self._facts_and_layers()}",
            f"finished: {self._finished()}; tables: {', '.join(self.tables)}; figures: {', '.join(self.figures)}",
        ])

    def _repr_html_(self) -> str:
        rows = {
            "kind": command_of(self.kind),
            "model": model_name(self.dataset),
            "facts, layers": self._facts_and_layers(),
            "finished": self._finished(),
            "tables": ", ".join(self.tables),
            "figures": ", ".join(self.figures),
            "folder": str(self.folder),
        }
        lines = (f"<tr><th>{name}</th><td>{escape(text)}</td></tr>" for name, text in rows.items())
        return f"<table>{''.join(lines)}</table>"

    def _facts_and_layers(self) -> str:
        facts = self.config["provenance"].get("facts", {})
        source = f" of {facts['source']}" if facts.get("source") else ""
        part = f" [{facts['slice']}]" if facts.get("slice") else ""
        layers = self.config["settings"]["layers"]
        return f"{self.facts} facts{source}{part}, layers {', '.join(map(str, layers))}"

    def _finished(self) -> str:
        """What has been measured, in words."""
        dataset, parts = self.dataset, []
        for dim, plural in (("scheme", "schemes"), ("edit", "methods")):
            if dim in dataset.dims:
                mark = dataset["counted" if "counted" in dataset else "measured"] > 0
                names = dataset[dim].values[mark.any([other for other in mark.dims if other != dim]).values]
                parts.append(f"{len(names)} {plural} ({', '.join(names)})" if len(names) else f"no {plural}")
        if "surveyed" in dataset:
            parts.append(f"Jacobians of {int((dataset['surveyed'] == 1).sum())} of {self.facts} facts")
        if "studied" in dataset:
            parts += [str(name) for name in dataset["study"].values[(dataset["studied"] == 1).any("scheme").values]]
        return ", ".join(parts)

    def _held(self, entries: Mapping[str, E]) -> tuple[str, ...]:
        return tuple(n for n, entry in entries.items() if self.kind in entry.kinds and not entry.lacks(self.dataset))

    def _entry(self, entries: Mapping[str, E], name: str, what: str) -> E:
        if name not in entries:
            there = ", ".join(self._held(entries))
            raise InputError(f"expected a {what} among {there}, got {name!r}: choose one of them")
        entry = entries[name]
        if self.kind not in entry.kinds:
            of, there = " or ".join(map(command_of, entry.kinds)), ", ".join(self._held(entries))
            raise InputError(
                f"expected a {what} of a run of jacobian-lab {command_of(self.kind)} ({there}), got {name}, which is "
                f"of {of}: choose another, or another run"
            )
        if missing := entry.lacks(self.dataset):
            raise InputError(
                f"expected a run that holds {missing}, got {self.folder} without: make it with jacobian-lab "
                f"{command_of(entry.made_by)}, to {self.folder}"
            )
        return entry

    def _table(self, name: str) -> Table:
        self._entry(TABLES, name, "table")
        if name not in self._made:
            self._made[name] = self._make(name)
        return self._made[name]

    def _make(self, name: str, **given: Any) -> Table:
        entry = TABLES[name]
        used = [self._table(entry.uses).frame] if entry.uses else []
        return entry.make(self.dataset, *used, **given)


def _caption(name: str, made: Table) -> str:
    number = f"Table {name.removeprefix('table')}. " if name.removeprefix("table").isdecimal() else ""
    return f"{number}{TABLES[name].caption} {made.note}".strip()


def figure_script(name: str) -> None:
    """The whole of a script in ``figures/``: read a run, draw it, say where it went."""
    entry = FIGURES[name]
    made_by = command_of(entry.made_by)
    parser = argparse.ArgumentParser(prog=f"{name}.py", description=entry.caption)
    parser.add_argument("run", type=Path, help=f"folder of a run, as jacobian-lab {made_by} makes it")
    parser.add_argument("--out", type=Path, help="where to write; the run's folder 'figures' by default")
    arguments = parser.parse_args()
    mpl.use("agg")
    try:
        paths = Results(arguments.run, entry.kinds[0]).save_figure(name, arguments.out)
    except InputError as error:
        sys.stderr.write(f"{name}.py: {error}\n")
        sys.exit(2)
    sys.stdout.write("\n".join(map(str, paths)) + "\n")


SCHEMES = ("table1", "table2", "table5")
"""The paper's tables of schemes."""


def write_reports(folder: Path | str, tables: Sequence[str] = SCHEMES) -> str:
    """Write measurements, tables and efficacy of a run of tables."""
    results = Results(folder, "tables")
    text = results.write("measurements", *tables, "efficacy")
    results.write("descents")
    failed, answered = failed_facts(results.dataset), answered_facts(results.dataset)
    lines = (
        unmet_anchors(results.dataset),
        unmet_shifts(results.dataset),
        f"Facts without a finite anchor, left out of every mean: {', '.join(failed)}." if failed else "",
        f"Facts that the model answers already, left out of ratios: {', '.join(answered)}." if answered else "",
    )
    return "\n\n".join(filter(None, (text, *lines)))


def write_account(folder: Path | str, name: str) -> str:
    """Write one table of the theorems, of what an edit does, of step sizes, layer counts or Jacobians."""
    results = Results(folder, TABLES[name].kinds[0])
    results.write("descents")
    text = results.write("conditions", name, *(("own_ridges",) if name == "frontier" else ()))
    return text or f"{TABLES[name].caption} The run holds no such layer."


def write_comparison(folder: Path | str, tables: Sequence[str] | None = None, paper: Path | None = None) -> str:
    """Write tables of methods, ``metrics.csv``, intervals, records, weights and gains."""
    given = {} if paper is None else {"paper": read_paper(paper)}
    results = Results(folder, "edit_table")
    if tables is None:
        own = results.config["provenance"].get("protocol")
        tables = tuple(name for name, t in TABLES.items() if t.model and t.model == own) or ("table3", "table4")
    results.write("metrics", "metrics_intervals", "records", "weights", "descents")
    parts = [results.write(*tables, "edit_table", **given), results.write("damage", "training", "aims", "gains")]
    parts += [
        unmet_anchors(results.dataset),
        unmet_anchors(results.dataset, "refit_anchor"),
        unmet_shifts(results.dataset),
    ]
    if failed := failed_facts(results.dataset):
        parts.append(f"Facts without a finite anchor, not edited, counted as they are: {', '.join(failed)}.")
    return "\n\n".join(filter(None, parts))
