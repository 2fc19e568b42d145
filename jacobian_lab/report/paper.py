"""The paper's tables of methods: their columns, their rows, and the numbers that stand beside ours."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from jacobian_lab.errors import InputError


@dataclass(frozen=True)
class Metric:
    """A column of the tables.

    Attributes:
        label: What it is called.
        scale: What it is multiplied by: shares are given × 100.
        best: Whether the largest (1) or the smallest (-1) is the best.
        flat: Whether prompts are averaged at once, instead of each record's first (metrics.md).
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

MORE: Mapping[str, Metric] = {
    "efficacy_greedy": Metric("efficacy, greedy"),
    "generalization_greedy": Metric("generalisation, greedy"),
    "neighborhood_success": Metric("neighbourhood success", flat=True),
}


@dataclass(frozen=True)
class EditTable:
    """One of the paper's tables.

    Attributes:
        model: The known model that it is of.
        methods: Its rows below the unedited model.
    """

    model: str
    methods: tuple[str, ...]


_FIRST = ("onelayer", "memit", "blue", "memit+fe")
_PAIRS = ("prune", "prune+fe", "rect", "rect+fe", "alphaedit", "alphaedit+fe")
TABLES: Mapping[str, EditTable] = {
    "table3": EditTable("llama-3-8b-instruct", _FIRST),
    "table4": EditTable("llama-3-8b-instruct", ("memit", "memit+fe", *_PAIRS)),
    "table6": EditTable("gpt2-xl", (*_FIRST, *_PAIRS)),
    "table7": EditTable("gpt-j-6b", (*_FIRST, *_PAIRS)),
}

PAPER: Mapping[tuple[str, str], Mapping[str, float]] = {
    ("counterfact", "onelayer"): {"efficacy_success": 76.2},
    ("counterfact", "memit"): {"efficacy_success": 97.4, "generalization_accuracy": 48.0, "kl": 0.41, "top1": 77.5},
    ("counterfact", "blue"): {"efficacy_success": 98.4, "generalization_accuracy": 60.1, "kl": 0.35, "top1": 81.0},
    ("counterfact", "memit+fe"): {"efficacy_success": 99.9, "generalization_accuracy": 61.0, "kl": 0.34, "top1": 82.7},
    ("zsre", "memit"): {"efficacy_success": 92.6, "generalization_accuracy": 72.6, "kl": 0.60, "top1": 45.3},
    ("zsre", "blue"): {"efficacy_success": 94.6, "generalization_accuracy": 78.2, "kl": 0.18, "top1": 66.7},
    ("zsre", "memit+fe"): {"efficacy_success": 97.6, "generalization_accuracy": 84.3, "kl": 0.09, "top1": 75.6},
}
"""What of the paper's tables could be had where this was written, from summaries of it: Llama-3-8B-Instruct, 2,000
facts in one batch. `read_paper` takes the rest from a file."""

PAPER_MODEL = "llama-3-8b-instruct"


def read_paper(path: Path) -> dict[str, dict[str, float]]:
    """Read somebody's numbers, to stand beside ours.

    Args:
        path: A CSV file in the layout of ``metrics.csv``; cells may be empty.

    Returns:
        Values by method and metric.

    Raises:
        InputError: If it cannot be read or has other columns.
    """
    expected = f"expected a CSV file with the columns method, {', '.join(METRICS)}"
    try:
        frame = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{expected}, got {path} ({str(error).splitlines()[0]:.100}): check the file") from error
    if "method" not in frame or not set(frame.columns) <= {"method", *METRICS}:
        raise InputError(f"{expected}, got {', '.join(map(str, frame.columns))} in {path}: check the file")
    try:
        rows = frame.set_index("method").astype(float)
    except ValueError as error:
        raise InputError(f"{expected} of numbers, got another in {path} ({error}): check the file") from error
    return {str(method): dict(row.dropna()) for method, row in rows.iterrows()}
