"""Tables 1, 2 and 5 from stored arrays, the paper's rows beside ours."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from jacobian_lab.report.captions import answered_facts, facts_line, failed_facts, model_name, seed_of, unmet_anchors
from jacobian_lab.report.intervals import summarise
from jacobian_lab.report.writing import facts_in_cells, write_csv, write_table
from jacobian_lab.store.run import open_run
from jacobian_lab.store.schema import KINDS

PAPER_LAYERS = (4, 5, 6, 7, 8)
"""Decisive layers of Llama-3-8B-Instruct in the paper."""

PAPER: dict[tuple[str, str], tuple[float, ...]] = {
    ("table1", "backward-dividing"): (0.34, 0.41, 0.54, 0.72, 1.00),
    ("table2", "backward-dividing"): (0.96, 0.91, 0.83, 0.69, 0.36),
    ("table2", "backward-full"): (1.19, 0.90, 0.74, 0.56, 0.23),
    ("table2", "one-layer"): (np.nan, np.nan, np.nan, np.nan, 0.55),
    ("table5", "forward-replay"): (0.37, 0.15, 0.08, 0.05, 0.03),
}
"""Tables 1, 2 and 5 of arXiv 2605.00358v2: Llama-3-8B-Instruct, 2,000 CounterFact facts, means."""


@dataclass(frozen=True)
class Line:
    """One row of a table: a quantity of one scheme over the layers.

    Attributes:
        scheme: The scheme.
        variable: The stored variable.
        label: What the row is called.
    """

    scheme: str
    variable: str
    label: str


@dataclass(frozen=True)
class Table:
    """What a table shows.

    Attributes:
        caption: What is in its cells.
        schemes: The schemes that the paper's table has.
        lines: Its rows; those of schemes that a run lacks are left out.
    """

    caption: str
    schemes: tuple[str, ...]
    lines: tuple[Line, ...]


def _own(*schemes: str, variable: str = "residual_ratio") -> tuple[Line, ...]:
    return tuple(Line(scheme, variable, scheme) for scheme in schemes)


_BACKWARD = ("backward-dividing", "backward-full", "one-layer", "independent", "jacobian-pullback")
TABLES = {
    "table1": Table(
        "Cosine of the shift that an edit makes at its layer and the passive shift that this makes at the last layer.",
        ("backward-dividing",),
        _own("backward-dividing", "jacobian-pullback", variable="cosine"),
    ),
    "table2": Table(
        "Remaining residual at the last layer after the edit of each layer, over the initial one; the target is the "
        "anchor optimised at the last layer.",
        ("backward-dividing", "backward-full", "one-layer"),
        _own(*_BACKWARD),
    ),
    "table5": Table(
        "Remaining residual with forward replay, whose target at the last layer is replayed from the anchor at the "
        "first; below, each scheme against the other's target, and absolute norms.",
        ("forward-replay",),
        (
            *_own("forward-replay"),
            Line(
                "forward-replay",
                "residual_ratio_against_optimised",
                "forward-replay, against the optimised target",
            ),
            *(
                Line(
                    scheme,
                    "residual_ratio_against_replayed",
                    f"{scheme}, against the replayed target",
                )
                for scheme in _BACKWARD
            ),
            *(Line(s, "residual_norm", f"{s}, norm") for s in ("forward-replay", *_BACKWARD)),
        ),
    ),
}


def table(dataset: xr.Dataset, name: str) -> pd.DataFrame:
    """One of the paper's tables, in long form.

    Args:
        dataset: An open run.
        name: ``"table1"``, ``"table2"`` or ``"table5"``.

    Returns:
        One row for each line and edited layer: ``row, scheme, variable, layer, mean, low, high,
        median, count, paper``. The paper's values stand where the number of decisive layers is the
        paper's, layer for layer in order.
    """
    layers = [int(layer) for layer in dataset["layer"].values]
    seed = seed_of(dataset)
    rows = []
    for line in TABLES[name].lines:
        if line.scheme not in dataset["scheme"].values:
            continue
        paper = PAPER.get((name, line.label), ()) if len(layers) == len(PAPER_LAYERS) else ()
        for place, layer in enumerate(layers):
            chosen = dataset.sel(scheme=line.scheme, layer=layer)
            if not np.isfinite(chosen["update_norm"]):
                continue  # the scheme does not edit this layer
            summary = summarise(chosen[line.variable].values, seed)
            rows.append(
                {
                    "row": line.label,
                    "scheme": line.scheme,
                    "variable": line.variable,
                    "layer": layer,
                }
                | summary
                | {"paper": paper[place] if paper else np.nan}
            )
    columns = [
        "row",
        "scheme",
        "variable",
        "layer",
        "mean",
        "low",
        "high",
        "median",
        "count",
        "paper",
    ]
    return pd.DataFrame(rows, columns=columns)


def wide(long: pd.DataFrame) -> pd.DataFrame:
    """A table as one reads it: layers side by side, the paper's row below ours.

    Args:
        long: What `table` returns.

    Returns:
        Text cells, ``mean [low, high] (median)``.
    """
    dim = "layer" if "layer" in long else "count_of_layers"
    out: dict[str, dict[int, str]] = {}
    for row in long.to_dict("records"):
        interval = "" if np.isnan(row["low"]) else f" [{_number(row['low'])}, {_number(row['high'])}]"
        cell = f"{_number(row['mean'])}{interval} ({_number(row['median'])})" if row["count"] else "not known"
        out.setdefault(row["row"], {})[row[dim]] = cell
        if not np.isnan(row.get("paper", np.nan)):
            out.setdefault(f"{row['row']}, paper (Llama-3-8B)", {})[row[dim]] = _number(row["paper"])
    frame = pd.DataFrame.from_dict(out, orient="index", columns=sorted(set(long[dim]))).fillna("")
    frame.columns = pd.Index([f"{dim.removesuffix('_of_layers')} {label}" for label in frame.columns])
    return frame.rename_axis("row")


def _number(value: float) -> str:
    """Two decimals, or two digits of what would be lost with them."""
    return f"{value:.1e}" if 0 < abs(value) < 0.005 else f"{value:.2f}"


def efficacy_table(dataset: xr.Dataset) -> pd.DataFrame:
    """Per scheme: efficacy and what its edit cost.

    Args:
        dataset: An open run.

    Returns:
        One row a scheme, the unedited model first: share of facts answered, its interval, and the
        largest relative change of a weight.
    """
    seed = seed_of(dataset)
    rows = [
        {
            "scheme": "unedited",
            **summarise(dataset["efficacy_unedited"].values, seed),
            "largest_update": 0.0,
        }
    ]
    for scheme in dataset["scheme"].values:
        chosen = dataset.sel(scheme=scheme)
        largest = float(chosen["update_norm"].max())
        rows.append({
            "scheme": str(scheme),
            **summarise(chosen["efficacy"].values, seed),
            "largest_update": largest,
        })
    return pd.DataFrame(rows).drop(columns="median").rename(columns={"mean": "efficacy"})


def measurements(dataset: xr.Dataset) -> pd.DataFrame:
    """Every measurement, one row for each fact, scheme and edited layer.

    Args:
        dataset: An open run.

    Returns:
        Columns ``fact, scheme, layer, residual_ratio, cosine`` and the other measures, those of studies
        where a study was made.
    """
    names = [name for name, variable in KINDS["tables"].items() if variable.dims == ("fact", "scheme", "layer")]
    columns = [*names, "efficacy", "update_norm", "condition_number", "unstored"]
    frame = dataset[columns].to_dataframe(dim_order=["fact", "scheme", "layer"]).reset_index()
    frame = frame[np.isfinite(frame["update_norm"])]
    return frame[["fact", "scheme", "layer", *columns]].dropna(axis="columns", how="all")


def write_reports(folder: Path, tables: Sequence[str] = tuple(TABLES)) -> str:
    """Write a run's measurements and tables beside its store.

    Args:
        folder: The run's folder.
        tables: Which tables.

    Returns:
        The tables in Markdown, as the command line prints them.
    """
    dataset = open_run(folder)
    write_csv(folder / "measurements.csv", measurements(dataset))
    parts = []
    for name in tables:
        long = table(dataset, name)
        if long.empty:
            continue
        caption = f"{name.replace('table', 'Table ')}. {TABLES[name].caption} {facts_line(dataset, long['count'])}"
        write_csv(folder / f"{name}.csv", long)
        parts.append(write_table(folder / name, wide(long), caption))
    efficacy = efficacy_table(dataset)
    write_csv(folder / "efficacy.csv", efficacy)
    caption = (
        "Efficacy accuracy: share of facts whose new answer is the argmax at every token, teacher forced, with its "
        f"95 % bootstrap interval. {model_name(dataset)}, {facts_in_cells(dataset.sizes['fact'], efficacy['count'])}."
    )
    parts.append(write_table(folder / "efficacy", efficacy.round(3).set_index("scheme"), caption))
    parts.append(unmet_anchors(dataset))
    failed = failed_facts(dataset)
    if failed:
        parts.append(f"Facts without a finite anchor, left out of every mean: {', '.join(failed)}.")
    answered = answered_facts(dataset)
    if answered:
        parts.append(f"Facts that the model answers already, left out of ratios: {', '.join(answered)}.")
    return "\n\n".join(filter(None, parts))
