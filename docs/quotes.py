"""Numbers that prose quotes from the tables of runs: found, compared, and filled anew.

A quoted number is followed by a comment that names its cell, which no reader sees:

    52<!--= zsre-frontier/frontier :: memit+cr, λ = 700 :: generalisation accuracy -->

that is, of the file ``results/runs/zsre-frontier/frontier.md``, the row and the column; a label may be shortened to a
beginning that no other has. Last may stand ``low`` or ``high`` for an end of the interval. A number
has as many decimals as the prose gives it, and a sign only if the prose gives it one.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

DOCS = Path(__file__).resolve().parent
RUNS = DOCS / "results" / "runs"
PAGES = (DOCS.parent / "README.md", *sorted(page for page in DOCS.rglob("*.md") if RUNS not in page.parents))

QUOTE = re.compile(r"(?P<sign>[+−-]?)(?P<number>\d+(?:\.\d+)?)(?P<unit> ?%?)<!--= (?P<source>[^>]*?) ?-->")
CELL = re.compile(r"[+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?")
ENDS = {"low": 1, "high": 2}


class UnknownSourceError(ValueError):
    """A quote whose file, row, column or end of an interval is not there."""


@dataclass(frozen=True)
class Quote:
    """One quoted number.

    Attributes:
        line: Its line in the page.
        quoted: The number as the page has it.
        right: The number as the table has it, with as many decimals.
        source: Its cell, as the page names it.
    """

    line: int
    quoted: str
    right: str
    source: str


def quotes(text: str) -> Iterator[Quote]:
    """The numbers that a page quotes.

    Args:
        text: The page.

    Yields:
        Each, in order.
    """
    for match in QUOTE.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        yield Quote(line, match["sign"] + match["number"], _right(match), match["source"])


def filled(text: str) -> str:
    """A page with every quoted number as its table has it now.

    Args:
        text: The page.

    Returns:
        The page.
    """
    return QUOTE.sub(lambda match: f"{_right(match)}{match['unit']}<!--= {match['source']} -->", text)


def _right(match: re.Match[str]) -> str:
    value = cell_value(match["source"])
    decimals = len(match["number"].partition(".")[2])
    written = f"{abs(value):.{decimals}f}"
    if not match["sign"]:
        return written
    minus = "-" if match["sign"] == "-" else "−"
    return (minus if value < 0 else "+") + written


def cell_value(source: str) -> float:
    """The number that a quote names.

    Args:
        source: ``run/table :: row :: column``, and ``:: low`` or ``:: high`` for an end of its interval.

    Returns:
        The number.

    Raises:
        UnknownSourceError: If there is none.
    """
    parts = [part.strip() for part in source.split("::")]
    if len(parts) not in {3, 4}:
        raise UnknownSourceError(f"expected run/table :: row :: column, got {source!r}")
    file = RUNS / f"{parts[0]}.md"
    if not file.is_file():
        raise UnknownSourceError(f"no {file.relative_to(DOCS)} for {source!r}")
    header, rows = _table(file)
    row = rows[_index(parts[1], list(rows), source)]
    column = _index(parts[2], header, source)
    numbers = CELL.findall(row[header.index(column)])
    place = ENDS.get(parts[3], len(numbers)) if len(parts) > 3 else 0
    if place >= len(numbers):
        raise UnknownSourceError(f"no such number in the cell of {source!r}")
    return float(numbers[place])


def as_csv(file: Path) -> Iterator[str]:
    """The cells of a Markdown table as CSV.

    Args:
        file: The table.

    Yields:
        A header, and a line a cell that holds numbers: row, column, its number, and the ends of its interval.
    """
    header, rows = _table(file)
    yield "row,column,value,low,high"
    for row, cells in rows.items():
        for column, cell in zip(header, cells, strict=True):
            if numbers := CELL.findall(cell):
                value, *ends = numbers
                low, high = ends[:2] if "[" in cell else ("", "")
                yield f'"{row}","{column}",{value},{low},{high}'


def _index(label: str, labels: list[str], source: str) -> str:
    """The label that is meant: the same, or the only one that begins so."""
    meant = [full for full in labels if full == label] or [full for full in labels if full.startswith(label)]
    if len(meant) != 1:
        raise UnknownSourceError(f"expected one of {labels}, got {label!r} in {source!r}")
    return meant[0]


@cache
def _table(file: Path) -> tuple[list[str], dict[str, list[str]]]:
    """Column labels, and cells by row label, of the Markdown table in a file."""
    lines = [line for line in file.read_text("utf-8").splitlines() if line.startswith("|")]
    header, _, *rows = (_cells(line) for line in lines)
    return header[1:], {row[0]: row[1:] for row in rows}


def _cells(line: str) -> list[str]:
    cells = re.split(r"(?<!\\)\|", line.strip().strip("|"))
    return [cell.replace(r"\|", "|").replace("**", "").strip() for cell in cells]
