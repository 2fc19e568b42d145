"""What each command writes beside a run's store, and prints."""

from collections.abc import Sequence
from pathlib import Path

from jacobian_lab.report.captions import answered_facts, failed_facts, unmet_anchors
from jacobian_lab.report.paper import read_paper
from jacobian_lab.report.registry import TABLES
from jacobian_lab.report.results import Results

SCHEMES = ("table1", "table2", "table5")
"""The paper's tables of schemes."""


def write_reports(folder: Path | str, tables: Sequence[str] = SCHEMES) -> str:
    """Write measurements, tables and efficacy of a run of tables.

    Args:
        folder: The run's folder.
        tables: Which of `SCHEMES`.

    Returns:
        The tables in Markdown, as the command line prints them, and what is to be known of the anchors.

    Raises:
        InputError: If it cannot be read, or they cannot be written.
    """
    results = Results(folder, "tables")
    text = results.write("measurements", *tables, "efficacy")
    failed, answered = failed_facts(results.dataset), answered_facts(results.dataset)
    lines = (
        unmet_anchors(results.dataset),
        f"Facts without a finite anchor, left out of every mean: {', '.join(failed)}." if failed else "",
        f"Facts that the model answers already, left out of ratios: {', '.join(answered)}." if answered else "",
    )
    return "\n\n".join(filter(None, (text, *lines)))


def write_account(folder: Path | str, name: str) -> str:
    """Write one table of the theorems, of what an edit does, of step sizes, layer counts or Jacobians.

    Args:
        folder: The run's folder.
        name: Its name in `TABLES`.

    Returns:
        The table in Markdown, as the command line prints it.

    Raises:
        InputError: If the run cannot be read, or is of another kind, or the table cannot be written.
    """
    text = Results(folder, TABLES[name].kinds[0]).write("conditions", name)
    return text or f"{TABLES[name].caption} The run holds no such layer."


def write_comparison(folder: Path | str, tables: Sequence[str] | None = None, paper: Path | None = None) -> str:
    """Write tables of methods, ``metrics.csv``, intervals, records, weights and gains.

    Args:
        folder: The run's folder.
        tables: Which of the paper's; those of the run's model by default, Tables 3 and 4 if it is in none.
        paper: Numbers to stand beside ours instead of the paper's, as `read_paper` reads them.

    Returns:
        The tables in Markdown, as the command line prints them, and what is to be known of the anchors.

    Raises:
        InputError: If the run or the numbers cannot be read, or the tables cannot be written.
    """
    given = {} if paper is None else {"paper": read_paper(paper)}
    results = Results(folder, "edit_table")
    if tables is None:
        own = results.config["provenance"].get("protocol")
        tables = tuple(name for name, t in TABLES.items() if t.model and t.model == own) or ("table3", "table4")
    results.write("metrics", "metrics_intervals", "records", "weights")
    parts = [results.write(*tables, "edit_table", **given), results.write("damage", "gains")]
    parts += [unmet_anchors(results.dataset), unmet_anchors(results.dataset, "refit_anchor")]
    if failed := failed_facts(results.dataset):
        parts.append(f"Facts without a finite anchor, not edited, counted as they are: {', '.join(failed)}.")
    return "\n\n".join(filter(None, parts))
