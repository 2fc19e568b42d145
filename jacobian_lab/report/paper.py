"""The paper's numbers, as printed in arXiv 2605.00358v2, and the columns of its tables of methods."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd

from jacobian_lab.errors import InputError


@dataclass(frozen=True)
class Metric:
    """A column of the tables of methods.

    Attributes:
        label: Its label.
        scale: Factor of its values: shares are given × 100.
        best: Direction of the better values: 1 up, -1 down, 0 neither.
        flat: Whether prompts are averaged at once, instead of each record's first.
    """

    label: str
    scale: float = 100.0
    best: int = 1
    flat: bool = False


METRICS: Mapping[str, Metric] = {
    "efficacy_success": Metric("efficacy success"),
    "efficacy_accuracy": Metric("efficacy accuracy"),
    "generalization_success": Metric("generalisation success"),
    "generalization_accuracy": Metric("generalisation accuracy"),
    "kl": Metric("D_KL", scale=1.0, best=-1, flat=True),
    "top1": Metric("Top-1", flat=True),
    "top5": Metric("Top-5", flat=True),
    "top10": Metric("Top-10", flat=True),
}
"""The paper's columns, and those of ``metrics.csv``."""

DATASETS = {"counterfact": "CounterFact", "zsre": "ZsRE"}
FACTS = "2,000"
"""Number of facts that the paper edits, in one batch, on every model and data set."""

_OF = ("table", "model", "dataset")
"""Columns that say what a row of numbers is of."""


def read_paper(path: Path) -> pd.DataFrame:
    """Read numbers of methods that somebody has measured, to stand beside ours."""
    expected = f"expected a CSV file with the columns method, {', '.join(METRICS)} (and {', '.join(_OF)})"
    try:
        frame = pd.read_csv(path, dtype=dict.fromkeys((*_OF, "method"), str))
    except (OSError, ValueError) as error:
        raise InputError(f"{expected}, got {path} ({str(error).splitlines()[0]:.100}): check the file") from error
    if "method" not in frame or not set(frame.columns) <= {*_OF, "method", *METRICS}:
        raise InputError(f"{expected}, got {', '.join(map(str, frame.columns))} in {path}: check the file")
    frame = frame.reindex(columns=[*_OF, "method", *METRICS])
    try:
        frame = frame.astype(dict.fromkeys(METRICS, float))
    except ValueError as error:
        raise InputError(f"{expected} of numbers, got another in {path} ({error}): check the file") from error
    texts = frame[[*_OF, "method"]].astype(object).fillna("")
    numbers = texts["table"].str.removeprefix("table")
    texts["table"] = numbers.where(numbers == "", "table" + numbers)
    return texts.join(frame[list(METRICS)])


@functools.cache
def paper_methods() -> pd.DataFrame:
    """Tables 3, 4, 6 and 7 of the paper."""
    return read_paper(_data("paper_tables.csv"))


def rows_beside(numbers: pd.DataFrame, dataset: str, model: str, table: str = "") -> pd.DataFrame:
    """Select the rows of a table: those that name no other data set, model or number."""
    own = {"dataset": dataset, "model": model} | ({"table": table} if table else {})
    for column, value in own.items():
        numbers = numbers[numbers[column].isin(["", value])]
    return numbers.drop_duplicates("method").set_index("method")


@functools.cache
def _residuals() -> pd.DataFrame:
    return pd.read_csv(_data("paper_residuals.csv"))


def paper_layers() -> list[int]:
    """List the layers of the paper's Tables 1, 2 and 5."""
    return sorted(set(_residuals()["layer"]))


def paper_residuals(table: str, scheme: str, layers: int) -> np.ndarray:
    """A row of Tables 1, 2 or 5 of the paper."""
    numbers, places = _residuals(), paper_layers()
    if layers != len(places):
        return np.full(layers, np.nan)
    row = numbers[(numbers["table"] == int(table.removeprefix("table"))) & (numbers["scheme"] == scheme)]
    return row.set_index("layer")["value"].reindex(places).to_numpy()


def paper_schemes(table: str) -> tuple[str, ...]:
    """Target schemes of Table 1, 2 or 5 of the paper."""
    numbers = _residuals()
    return tuple(dict.fromkeys(numbers["scheme"][numbers["table"] == int(table.removeprefix("table"))]))


def source_line(numbers: pd.DataFrame | None = None) -> str:
    """Sentence of a caption about the paper's rows."""
    rows = _residuals() if numbers is None else numbers
    pairs = rows[["model", "dataset"]].drop_duplicates().to_numpy()
    named = [", ".join(filter(None, (model, DATASETS.get(dataset, dataset)))) for model, dataset in pairs]
    return f"The paper's rows: {'; '.join(named)}, {FACTS} facts." if named else ""


def _data(name: str) -> Path:
    return Path(str(files("jacobian_lab.report") / "data" / name))
