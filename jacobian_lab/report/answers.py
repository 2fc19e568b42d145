"""Tables and page of what edited models answer and write, beside the unedited one: numbers and texts, no model."""

import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any

import numpy as np
import pandas as pd

from jacobian_lab.report.intervals import summaries_of

Z = 1.96
"""Standard errors on either side of a value in a 95 % interval."""

COLUMNS = [
    "edit",
    "task",
    "metric",
    "value",
    "low",
    "high",
    "items",
    "chance",
    "change",
    "change_low",
    "change_high",
    "lost",
    "gained",
]
"""Columns of the tasks' numbers: shares from 0 to 1, changes against the unedited model, and counts of items."""


def task_numbers(
    scores: Mapping[str, Mapping[str, Sequence[float]]], chances: Mapping[str, float], seed: int = 0
) -> pd.DataFrame:
    """Accuracy of each edit on each task with its interval, and its change, paired by item.

    Args:
        scores: 1 or 0 for each item, by edit and task; the unedited model first.
        chances: Expected score of a random choice, by task.
        seed: Seed of the intervals.
    """
    return pd.DataFrame(_scored(scores, chances, seed), columns=COLUMNS)


def _scored(
    scores: Mapping[str, Mapping[str, Sequence[float]]], chances: Mapping[str, float], seed: int
) -> Iterator[dict[str, Any]]:
    for task, chance in chances.items():
        values = np.array([by_task[task] for by_task in scores.values()], dtype=float)
        change = values - values[0]
        levels, changes = summaries_of(values, seed), summaries_of(change, seed)
        for place, edit in enumerate(scores):
            level, moved = levels.iloc[place], changes.iloc[place]
            row = {"edit": edit, "task": task, "metric": "accuracy", "value": level["mean"]}
            row |= {"low": level["low"], "high": level["high"], "items": values.shape[1], "chance": chance}
            row |= {"change": moved["mean"], "change_low": moved["low"], "change_high": moved["high"]}
            yield row | {"lost": int((change[place] < 0).sum()), "gained": int((change[place] > 0).sum())}


def harness_numbers(scores: Mapping[str, Sequence[Mapping[str, Any]]]) -> pd.DataFrame:
    """The same columns for metrics of a harness: intervals by their standard errors, and changes without one.

    Args:
        scores: ``task``, ``metric``, ``value``, ``stderr`` and ``documents`` of each metric, by edit; the
            unedited model first.
    """
    first = {(score["task"], score["metric"]): score["value"] for score in next(iter(scores.values()), ())}
    rows = [
        {
            "edit": edit,
            "task": score["task"],
            "metric": score["metric"],
            "value": score["value"],
            "low": score["value"] - Z * score["stderr"],
            "high": score["value"] + Z * score["stderr"],
            "items": score["documents"],
            "change": score["value"] - first[score["task"], score["metric"]],
        }
        for edit, own in scores.items()
        for score in own
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def task_table(numbers: pd.DataFrame) -> pd.DataFrame:
    """A row for each edit, with a score and its change for each task, × 100."""
    table = pd.DataFrame(index=pd.Index(numbers["edit"].unique(), name="edit"))
    for (task, metric), part in numbers.groupby(["task", "metric"], sort=False):
        rows = part.set_index("edit")
        name = str(task) if metric == "accuracy" else f"{task}, {metric}"
        table[f"{name} (n = {rows['items'].iloc[0]})"] = [
            _cell(row, "value", "low", "high") for _, row in rows.iterrows()
        ]
        table[f"{name}, change"] = [
            _cell(row, "change", "change_low", "change_high", "+") for _, row in rows.iterrows()
        ]
    table.loc[table.index[:1], table.columns[1::2]] = ""
    return table


def _cell(row: pd.Series, value: str, low: str, high: str, sign: str = "") -> str:
    return _interval(100 * row[value], 100 * row[low], 100 * row[high], f"{sign}.1f")


def _interval(mean: float, low: float, high: float, form: str) -> str:
    around = "" if pd.isna(low) else f" [{low:{form}}, {high:{form}}]"
    return "" if pd.isna(mean) else f"{mean:{form}}{around}"


def generation_table(numbers: pd.DataFrame, measures: Sequence[str], seed: int = 0) -> pd.DataFrame:
    """Mean of each measure of the texts with its interval; a row for each edit.

    Args:
        numbers: A row for each edit and fact, with ``edit`` and the measures.
        measures: Names of the measures.
        seed: Seed of the intervals.
    """
    edits = numbers["edit"].unique()
    table = pd.DataFrame(index=pd.Index(edits, name="edit"))
    for measure in measures:
        values = np.stack([numbers.loc[numbers["edit"] == edit, measure].to_numpy(dtype=float) for edit in edits])
        table[measure.replace("_", " ")] = [
            _interval(row["mean"], row["low"], row["high"], ".2f") for _, row in summaries_of(values, seed).iterrows()
        ]
    return table


def texts_page(title: str, facts: Sequence[Mapping[str, str]], texts: Mapping[str, Sequence[str]]) -> str:
    """HTML page of what each model writes after each fact's prompt, side by side, the new answer marked.

    Args:
        title: Title of the page.
        facts: ``prompt``, ``new`` and ``true`` of each fact.
        texts: A text for each fact, by edit; the unedited model first.
    """
    from jinja2 import Environment, StrictUndefined

    rows = [
        {**fact, "texts": [marked(own[place], fact["new"]) for own in texts.values()]}
        for place, fact in enumerate(facts)
    ]
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    source = (files(__package__) / "answers.html").read_text("utf-8")
    return template.from_string(source).render(title=title, edits=list(texts), facts=rows)


def marked(text: str, answer: str) -> list[tuple[str, bool]]:
    """Parts of a text, and whether each is the answer; case is ignored."""
    parts = re.split(f"({re.escape(answer)})", text, flags=re.IGNORECASE)
    return [(part, bool(place % 2)) for place, part in enumerate(parts) if part]
