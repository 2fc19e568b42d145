"""A page as a dictionary: all that it says, without a tag."""

import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd

from jacobian_lab.report.intervals import intervals
from jacobian_lab.report.page.circumstances import question
from jacobian_lab.report.page.drawings import drawings
from jacobian_lab.report.page.measures import (
    MEASURES,
    held_measures,
    measurements,
    residual_lines,
    traces,
    verdicts_by_layer,
)
from jacobian_lab.report.page.texts import fact_rows, fact_texts
from jacobian_lab.report.page.verdicts import verdicts, warnings
from jacobian_lab.report.registry import TABLES
from jacobian_lab.report.results import Results
from jacobian_lab.report.writing import number

SIDES = ("A", "B")
"""Names of two runs side by side."""
PAPER = ", paper ("
"""Part of the label of a row that has the paper's numbers."""


def page_of(runs: Sequence[Results], source: str | None = None) -> dict[str, Any]:
    """All that the page of a run, or of two, says.

    Args:
        runs: One run or two.
        source: The facts' file, if that is not where the runs say.
    """
    sides = SIDES[: len(runs)] if len(runs) > 1 else ("",)
    facts = joined([_facts_of(run, source) for run in runs])
    parts = [_part(run) for run in runs]
    data = {
        "runs": [{"side": side} | part for side, part in zip(sides, parts, strict=True)],
        "measures": held_measures([part["values"] for part in parts]),
        "facts": facts["rows"],
        "styles": _styles(),
    }
    return {
        "version": version("jacobian_lab"),
        "title": " and ".join(run.folder.resolve().name for run in runs),
        "runs": [_summary(run, side) for run, side in zip(runs, sides, strict=True)],
        "question": _compared([question(run) for run in runs]),
        "differences": differences(data) if len(runs) > 1 else None,
        "tables": _beside([_tables(run) for run in runs]),
        "figures": _beside([drawings(run, side) for run, side in zip(runs, sides, strict=True)]),
        "notes": facts["notes"],
        "data": data,
    }


def _facts_of(run: Results, source: str | None) -> tuple[list[dict[str, Any]], str]:
    facts, reason = fact_texts(run, source)
    return list(fact_rows(run, facts)), reason


def joined(sides: Sequence[tuple[list[dict[str, Any]], str]]) -> dict[str, Any]:
    """Facts of all runs, each once, with its place in every run; and why texts are missing."""
    rows: dict[tuple[str, ...], dict[str, Any]] = {}
    texts = {row["id"]: row for side, _ in sides for row in side if "prompt" in row}
    for place, (side, _) in enumerate(sides):
        for index, row in enumerate(side):
            text = row if "prompt" in row else texts.get(row["id"], row)
            key = (row["id"], text.get("prompt", ""), text.get("new", ""))
            entry = rows.setdefault(key, text | {"at": [None] * len(sides)})
            entry.setdefault("decisive", text.get("decisive"))
            entry["at"][place] = index
    return {"rows": list(rows.values()), "notes": list(dict.fromkeys(reason for _, reason in sides if reason))}


def _part(run: Results) -> dict[str, Any]:
    return measurements(run.dataset) | {
        "lines": residual_lines(run.dataset),
        "verdicts": verdicts_by_layer(run.dataset),
        "traces": traces(run.dataset, run.config["provenance"].get("tokens", [])),
    }


def _styles() -> dict[str, str]:
    from jacobian_lab.report.figures.style import STYLES  # matplotlib takes a second

    return {name: look["color"] for name, look in STYLES.items()}


def _summary(run: Results, side: str) -> dict[str, Any]:
    subject, finished = run.summary()
    return {
        "side": side,
        "name": run.folder.resolve().name,
        "subject": subject,
        "finished": finished,
        "verdicts": verdicts(run),
        "warnings": warnings(run),
    }


def _compared(sides: Sequence[Mapping[str, Mapping[str, str]]]) -> list[dict[str, Any]]:
    """Rows of words by group, with a cell for each run, and whether they differ."""
    return [
        {
            "name": group,
            "rows": [
                {"name": name, "cells": cells, "differs": len(set(cells)) > 1}
                for name in _union(side[group] for side in sides)
                for cells in [[side[group].get(name, "") for side in sides]]
            ],
        }
        for group in sides[0]
    ]


def _beside(sides: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Parts of the runs by name, side by side; none where a run has it not."""
    return [
        {"name": name, "title": _title(name), "sides": [side.get(name) for side in sides]} for name in _union(sides)
    ]


def _union(names: Iterable[Iterable[str]]) -> list[str]:
    return list(dict.fromkeys(name for own in names for name in own))


def _title(name: str) -> str:
    digits = name.removeprefix("table")
    return (
        f"Table {digits}"
        if digits.isdecimal()
        else re.sub(r"(?=\d+$)", " ", name.replace("_", " ").capitalize(), count=1)
    )


def _tables(run: Results) -> dict[str, dict[str, Any]]:
    """Every table with a caption; what goes to a CSV file alone has thousands of rows, and the facts have it."""
    named = (name for name in run.tables if TABLES[name].caption)
    return {name: table_of(run.table(name), run.caption(name), run.bold(name)) for name in named}


def table_of(frame: pd.DataFrame, caption: str, bold: pd.DataFrame | None = None) -> dict[str, Any]:
    """A table as texts.

    Args:
        frame: The table.
        caption: Its caption.
        bold: Mask of the cells that are in bold.
    """
    mask = np.zeros(frame.shape, bool) if bold is None else bold.to_numpy()
    rows = [
        {
            "label": str(label),
            "paper": PAPER in str(label),
            "cells": [{"text": _cell(text), "bold": bool(is_bold)} for text, is_bold in zip(cells, marks, strict=True)],
        }
        for label, cells, marks in zip(frame.index, frame.itertuples(index=False), mask, strict=True)
    ]
    heads = list(map(str, frame.columns))
    return {"caption": caption, "corner": str(frame.index.name or ""), "heads": heads, "rows": rows}


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{value:.4g}"
    return str(value)


def differences(data: Mapping[str, Any], seed: int = 0) -> dict[str, Any] | None:
    """Table of the second run's values less the first's, over the facts that both have; none if there is nothing.

    Args:
        data: The data of a page of two runs.
        seed: Seed of the intervals.
    """
    first, second = data["runs"]
    pairs = [row["at"] for row in data["facts"] if None not in row["at"]]
    edits = [name for name in first["edits"] if name in second["edits"]]
    measures = [m for m in MEASURES if m.key in first["values"] and m.key in second["values"]]
    if not (pairs and edits and measures):
        return None
    here, there = np.array(pairs).T
    values = [[_row(second, m.key, edit)[there] - _row(first, m.key, edit)[here] for m in measures] for edit in edits]
    flat = np.array(values).reshape(-1, len(pairs))
    finite = np.isfinite(flat)
    frame = intervals(np.where(finite, flat, 0), finite.astype(float), seed)
    texts = np.array([_difference(row) for _, row in frame.iterrows()], dtype=object).reshape(len(edits), -1)
    table = pd.DataFrame(texts, pd.Index(edits, name="method"), [m.name for m in measures])
    caption = (
        f"B less A, mean [95 % bootstrap interval] over the {len(pairs)} facts that both runs have; shares from 0 to 1."
    )
    return table_of(table.loc[(table != "").any(axis=1)], caption)


def _row(run: Mapping[str, Any], key: str, edit: str) -> np.ndarray:
    return np.array(run["values"][key][run["edits"].index(edit)], dtype=float)


def _difference(row: pd.Series) -> str:
    if np.isnan(row["mean"]):
        return ""
    around = "" if np.isnan(row["low"]) else f" [{number(row['low'], None, '+')}, {number(row['high'], None, '+')}]"
    return f"{number(row['mean'], None, '+')}{around}"
