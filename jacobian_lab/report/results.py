"""Results of a run: tables as data frames, figures, and the files that each command writes beside the store."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pandas as pd
import xarray as xr

from jacobian_lab.errors import InputError
from jacobian_lab.facts.fact import listing
from jacobian_lab.report.captions import figure_line, model_name
from jacobian_lab.report.entries import Entry
from jacobian_lab.report.headlines import headlines
from jacobian_lab.report.paper import read_paper
from jacobian_lab.report.registry import FIGURES, TABLES
from jacobian_lab.report.tables import locating
from jacobian_lab.report.tables.convergence import caveats
from jacobian_lab.report.writing import Table, markdown, write_csv, write_table
from jacobian_lab.store.commands import command_of
from jacobian_lab.store.run import config_of, open_run

if TYPE_CHECKING:
    import matplotlib.figure

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
        >>> run["table2"]  # the same as run.table("table2")  # doctest: +SKIP
        >>> run.figure("residual_by_layer").savefig("residual.pdf")  # doctest: +SKIP
    """

    def __init__(self, folder: Path | str, kind: str | None = None) -> None:
        self.folder = Path(folder)
        self.dataset: xr.Dataset = open_run(self.folder, kind)
        self.config: dict[str, Any] = config_of(self.dataset)
        self.kind: str = self.config["kind"]
        self._tables: dict[str, Table] = {}
        self._shared = functools.cache(lambda compute: compute(self.dataset))

    @property
    def facts(self) -> int:
        """Number of facts."""
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
        """A table of texts, as it is read."""
        return self._table(name).frame.copy()

    def __getitem__(self, name: str) -> pd.DataFrame:
        return self.table(name)

    def __contains__(self, name: object) -> bool:
        return name in self.tables

    def __iter__(self) -> Iterator[str]:
        return iter(self.tables)

    def _ipython_key_completions_(self) -> list[str]:
        return list(self.tables)

    def numbers(self, name: str) -> pd.DataFrame:
        """A table as its CSV file has it: numbers, a row for each cell where it has intervals."""
        return _numbers(self._table(name)).copy()

    def caption(self, name: str) -> str:
        """Caption of a table: its content, model, facts, and the source of the paper's rows."""
        return _caption(name, self._table(name))

    def bold(self, name: str) -> pd.DataFrame | None:
        """Mask of a table's cells that are in bold; none if it has no such cells."""
        return self._table(name).bold

    def text(self, name: str) -> str:
        """A table in Markdown, below its caption."""
        table = self._table(name)
        return markdown(table.frame, _caption(name, table), table.bold)

    def figure_caption(self, name: str, fact: Any = None) -> str:
        """Caption of a figure: its content, a conclusion with numbers unless it is of one fact, and the run's facts."""
        entry = self._entry(FIGURES, name, "figure")
        conclusion = entry.conclusion(self.dataset) if fact is None else ""
        return " ".join(filter(None, (entry.caption, conclusion, figure_line(self.dataset))))

    def figure(self, name: str, fact: Any = None) -> "matplotlib.figure.Figure":
        """Draw a figure, of one fact where it can be, at ICML's sizes and with its fonts."""
        from jacobian_lab.report.figures.style import drawn  # matplotlib takes a second

        entry = self._entry(FIGURES, name, "figure")
        if fact is None:
            return drawn(entry, self.dataset)
        if not entry.of_fact:
            possible = ", ".join(figure for figure, other in FIGURES.items() if other.of_fact)
            raise InputError(f"expected a figure of single facts ({possible}), got {name} with ⟨fact⟩: leave it out")
        return drawn(entry, self.dataset, fact=self._label(fact))

    def save_figure(self, name: str, out: Path | str | None = None, fact: Any = None) -> list[Path]:
        """Draw a figure into a file, or into a folder as PDF and as PNG; by default into ``figures`` of the run."""
        from jacobian_lab.report.figures.style import save

        out = self.folder / "figures" if out is None else Path(out)
        stem = name if fact is None else f"{name}-{self.dataset['fact'].values.tolist().index(self._label(fact))}"
        paths = [out] if out.suffix and not out.is_dir() else [out / f"{stem}.pdf", out / f"{stem}.png"]
        save(self.figure(name, fact), *paths)
        return paths

    def _label(self, fact: Any) -> Any:
        """A fact's label, by its id as it is written."""
        labels = {str(label): label for label in self.dataset["fact"].values.tolist()}
        if str(fact) not in labels:
            raise InputError(
                f"expected the id of a fact of {self.folder}, got {fact!r}: give one of {listing(list(labels))}"
            )
        return labels[str(fact)]

    def write(self, *names: str, **options: Any) -> str:
        """Write tables beside the store and return their text; those that the run has not are left out.

        Files are Markdown, LaTeX and CSV, or CSV alone where there is no caption.
        """
        texts = []
        for name in names:
            entry = TABLES[name]
            if self.kind not in entry.kinds or entry.lacks(self.dataset):
                continue
            table = self._make(name, **options) if options else self._table(name)
            write_csv(self.folder / f"{name}.csv", _numbers(table))
            if entry.caption:
                texts.append(write_table(self.folder / name, table.frame, _caption(name, table), table.bold))
        return "\n\n".join(texts)

    def __repr__(self) -> str:
        subject, finished = self.summary()
        shows = f"tables: {', '.join(self.tables)}; figures: {', '.join(self.figures)}"
        return f"{type(self).__name__}({str(self.folder)!r}): {subject}\n{finished}; {shows}"

    def summary(self) -> tuple[str, str]:
        """Two lines: kind of run, model, facts and layers; and the parts that are finished."""
        subject = f"{command_of(self.kind)}, {model_name(self.dataset)}, {self._facts_and_layers()}"
        return subject, f"finished: {self._finished()}"

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
        """Measured schemes, methods, Jacobians and studies, in words."""
        dataset, parts = self.dataset, []
        for dim, plural in (("scheme", "schemes"), ("edit", "methods")):
            if dim in dataset.dims:
                mark = dataset["counted" if "counted" in dataset else "measured"] > 0
                names = dataset[dim].values[mark.any([other for other in mark.dims if other != dim]).values]
                parts.append(f"{len(names)} {plural} ({', '.join(names)})" if len(names) else f"no {plural}")
        if "surveyed" in dataset:
            parts.append(f"Jacobians of {int((dataset['surveyed'] == 1).sum())} of {self.facts} facts")
        if "traced" in dataset:
            parts.append(f"traces of {int((dataset['traced'] == 1).sum())} of {self.facts} facts")
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
                f"{command_of(entry.command)}, to {self.folder}"
            )
        return entry

    def _table(self, name: str) -> Table:
        self._entry(TABLES, name, "table")
        if name not in self._tables:
            self._tables[name] = self._make(name)
        return self._tables[name]

    def _make(self, name: str, **options: Any) -> Table:
        entry = TABLES[name]
        shared = [self._shared(entry.uses)] if entry.uses else []
        return entry.make(self.dataset, *shared, **options)


def _caption(name: str, table: Table) -> str:
    number = f"Table {name.removeprefix('table')}. " if name.removeprefix("table").isdecimal() else ""
    return f"{number}{TABLES[name].caption} {table.note}".strip()


def _numbers(table: Table) -> pd.DataFrame:
    return table.frame if table.numbers is None else table.numbers


BESIDE = {"frontier": ("own_ridges",), "sequence": ("forgetting", "breakdown"), "transfer": ("imposed",)}
"""Tables that are written with another one."""
SCHEMES = ("table1", "table2", "table5")
"""The paper's tables of schemes."""


def write_schemes(folder: Path | str) -> tuple[str, list[str]]:
    """Write every table of a run of schemes that its command makes, each once; their text, and its headlines."""
    run = Results(folder, "tables")
    text = run.write("measurements", "conditions", *SCHEMES, "efficacy", "theorem2")
    run.write("descents", "decomposition", "effort")
    return _joined(text, *caveats(run.dataset)), list(headlines(run.dataset))


def write_reports(folder: Path | str, tables: Sequence[str] = SCHEMES) -> str:
    """Write measurements, some of the paper's tables of schemes, and efficacy."""
    run = Results(folder, "tables")
    text = run.write("measurements", *tables, "efficacy")
    run.write("descents")
    return _joined(text, *caveats(run.dataset))


def write_account(folder: Path | str, name: str) -> str:
    """Write a table of the theorems, an edit's decomposition, step sizes, layer counts, Jacobians or transfer."""
    run = Results(folder, TABLES[name].kinds[0])
    run.write("descents")
    text = run.write("conditions", name, *BESIDE.get(name, ()))
    return text or f"{TABLES[name].caption} The run holds no such layer."


def write_locate(folder: Path | str) -> str:
    """Write the table of causal traces, and return it with a summary in words."""
    run = Results(folder, "locate")
    text = run.write("locate")
    return (
        _joined(text, *locating.summary(run.dataset)) if text else "No fact is recalled by the model: none is traced."
    )


def write_comparison(folder: Path | str, tables: Sequence[str] | None = None, paper: Path | None = None) -> str:
    """Write tables of methods, ``metrics.csv``, ``records.csv`` and gains."""
    options = {} if paper is None else {"paper": read_paper(paper)}
    run = Results(folder, "edit_table")
    if tables is None:
        own = run.config["provenance"].get("protocol")
        tables = tuple(name for name, t in TABLES.items() if t.model and t.model == own) or ("table3", "table4")
    run.write("metrics", "records", "descents")
    texts = run.write(*tables, "edit_table", **options), run.write("damage", "training", "aims", "gains")
    return _joined(*texts, *caveats(run.dataset))


def _joined(*texts: str) -> str:
    return "\n\n".join(filter(None, texts))
