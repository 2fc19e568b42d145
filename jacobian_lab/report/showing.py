"""Tables and figures of a run for the command line and for the scripts in ``figures/``."""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import shorten

from jacobian_lab.errors import InputError
from jacobian_lab.report.entries import Entry
from jacobian_lab.report.registry import FIGURES, TABLES
from jacobian_lab.report.results import Results
from jacobian_lab.store.commands import command_of

COLUMNS = 100
"""Characters of a line."""


def show(folder: Path, names: Sequence[str] = ()) -> str:
    """List the tables and figures of a run; or print some tables, and draw some figures.

    A name that a table and a figure share is the table's.
    """
    run = Results(folder)
    return "\n\n".join(_text(run, name.replace("-", "_")) for name in names) or "\n".join(_listing(run))


def draw(folder: Path, name: str, out: Path | None = None, fact: str | None = None) -> Path:
    """Draw a figure of a run into a file, or into a folder as PDF, whose path is returned, and as PNG."""
    return _draw(Results(folder), name.replace("-", "_"), out, fact)[0]


def figure_script(name: str) -> None:
    """Run a script in ``figures/``: draw a figure of a run and print the paths of its files."""
    entry = FIGURES[name]
    parser = argparse.ArgumentParser(prog=f"{name}.py", description=entry.caption)
    parser.add_argument("run", type=Path, help=f"folder of a run, as jacobian-lab {command_of(entry.command)} makes it")
    parser.add_argument("--out", type=Path, help="file or folder to write; the run's folder 'figures' by default")
    arguments = parser.parse_args()
    try:
        paths = _draw(Results(arguments.run, entry.kinds[0]), name, arguments.out)
    except InputError as error:
        sys.stderr.write(f"{name}.py: {error}\n")
        sys.exit(2)
    sys.stdout.write("\n".join(map(str, paths)) + "\n")


def _draw(run: Results, name: str, out: Path | None = None, fact: str | None = None) -> list[Path]:
    import matplotlib as mpl  # takes a second

    mpl.use("agg")
    return run.save_figure(name, out, fact)


def _text(run: Results, name: str) -> str:
    if name in TABLES:
        return run.text(name)
    if name in FIGURES:
        return "\n".join([run.figure_caption(name), *map(str, _draw(run, name))])
    names = ", ".join(dict.fromkeys((*run.tables, *run.figures)))
    raise InputError(f"expected tables or figures among {names}, got {name!r}: choose among them")


def _listing(run: Results) -> Iterator[str]:
    subject, finished = run.summary()
    yield f"{run.folder}: {subject}\n{finished}"
    for heading, entries, names in (("tables", TABLES, run.tables), ("figures", FIGURES, run.figures)):
        yield f"\n{heading}"
        yield from (_line(entries, name) for name in names)


def _line(entries: Mapping[str, Entry], name: str) -> str:
    caption = entries[name].caption or f"numbers alone, {name}.csv"
    return f"  {name:<20} {shorten(caption, COLUMNS - 23, placeholder=' …')}"
