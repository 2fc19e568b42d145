"""Tables 1, 2 and 5 from stored arrays, the paper's rows beside ours."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from jacobian_lab.catalogue import OPTIMISED, SCHEMES, SEPARATE, UNEDITED
from jacobian_lab.report.captions import facts_line
from jacobian_lab.report.intervals import summaries_of
from jacobian_lab.report.paper import paper_layers, paper_residuals, source_line
from jacobian_lab.report.writing import Table, number, seed_of, with_interval
from jacobian_lab.store.schema import KINDS


@dataclass(frozen=True)
class Line:
    """One row of a table: a quantity of one scheme over the layers.

    Attributes:
        scheme: The scheme.
        variable: The stored variable.
        label: Label of the row.
    """

    scheme: str
    variable: str
    label: str


def _own(*schemes: str, variable: str = "residual_ratio") -> tuple[Line, ...]:
    return tuple(Line(scheme, variable, scheme) for scheme in schemes)


_BACKWARD = tuple(name for name, scheme in SCHEMES.items() if scheme.kind in {OPTIMISED, SEPARATE})
_REPLAYING = tuple(name for name in SCHEMES if name not in _BACKWARD)
ROWS: Mapping[str, tuple[Line, ...]] = {
    "table1": _own("backward-dividing", "jacobian-pullback", variable="cosine"),
    "table2": _own(*_BACKWARD),
    "table5": (
        *_own(*_REPLAYING),
        *(Line(s, "residual_ratio_against_optimised", f"{s}, against the optimised target") for s in _REPLAYING),
        *(
            Line(s, "residual_ratio_against_replayed", f"{s}, against the replayed target")
            for s in ("coordinated-replay", *_BACKWARD)
        ),
        *(Line(s, "residual_norm", f"{s}, norm") for s in (*_REPLAYING, *_BACKWARD)),
    ),
}
"""Rows of the paper's tables, with schemes that it has not; those of schemes that a run lacks are left out."""


def lacking(dataset: xr.Dataset, name: str) -> str:
    """Name the schemes of a table where a run has none of them."""
    schemes = dict.fromkeys(line.scheme for line in ROWS[name])
    return "" if set(schemes) & set(dataset["scheme"].values) else f"one of the schemes {', '.join(schemes)}"


def table(dataset: xr.Dataset, name: str) -> pd.DataFrame:
    """One of the paper's tables, in long form."""
    layers = [int(layer) for layer in dataset["layer"].values]
    heads, cells = [], []
    for line in ROWS[name]:
        if line.scheme not in dataset["scheme"].values:
            continue
        scheme = dataset.sel(scheme=line.scheme)
        own = line.label == line.scheme
        paper = paper_residuals(name, line.scheme if own else "", len(layers))
        for place in np.flatnonzero(np.isfinite(scheme["update_norm"].values)):  # the layers that the scheme edits
            heads.append((line.label, line.scheme, line.variable, layers[place], paper[place]))
            cells.append(scheme[line.variable].values[:, place])
    frame = pd.DataFrame(heads, columns=["row", "scheme", "variable", "layer", "paper"])
    values = np.array(cells).reshape(len(cells), dataset.sizes["fact"])
    frame = frame.join(summaries_of(values, seed_of(dataset)))
    return frame[["row", "scheme", "variable", "layer", "mean", "low", "high", "median", "count", "paper"]]


def as_table(dataset: xr.Dataset, name: str) -> Table:
    """One of the paper's tables, with its texts."""
    long = table(dataset, name)
    count, beside = len(paper_layers()), source_line() if long["paper"].notna().any() else ""
    if dataset.sizes["layer"] != count:
        beside = f"The paper's rows have {count} layers, and stand beside as many alone."
    return Table(wide(long), f"{facts_line(dataset, long['count'], MEANS)} {beside}".rstrip(), long)


MEANS = ", mean [95 % bootstrap interval] (median)"
"""Detail of a caption: the content of a cell."""


def wide(long: pd.DataFrame) -> pd.DataFrame:
    """Texts of a table in long form: layers side by side, the paper's row below ours."""
    dim = "layer" if "layer" in long else "count_of_layers"
    out: dict[str, dict[int, str]] = {}
    for row in long.to_dict("records"):
        counted = not np.isnan(row.get("trials", np.nan))
        middle = f"{row['hits']:,.0f} of {row['trials']:,.0f}" if counted else number(row["median"])
        cell = f"{with_interval(row)} ({middle})" if row["count"] else "not known"
        out.setdefault(row["row"], {})[row[dim]] = cell
        if not np.isnan(row.get("paper", np.nan)):
            out.setdefault(f"{row['row']}, paper (Llama-3-8B)", {})[row[dim]] = number(row["paper"])
    frame = pd.DataFrame.from_dict(out, orient="index", columns=sorted(set(long[dim]))).fillna("")
    frame.columns = pd.Index([f"{dim.removesuffix('_of_layers')} {label}" for label in frame.columns])
    return frame.rename_axis("row")


def efficacy_table(dataset: xr.Dataset) -> pd.DataFrame:
    """Efficacy and largest weight change of each scheme."""
    schemes = [str(name) for name in dataset["scheme"].values]
    values = np.stack([dataset["efficacy_unedited"].values, *dataset["efficacy"].values.T])
    frame = summaries_of(values, seed_of(dataset)).drop(columns="median").rename(columns={"mean": "efficacy"})
    frame.insert(0, "scheme", [UNEDITED, *schemes])
    return frame.assign(largest_update=[0.0, *dataset["update_norm"].max("layer").values])


def efficacy_shown(dataset: xr.Dataset) -> Table:
    """`efficacy_table` to three digits."""
    frame = efficacy_table(dataset)
    return Table(frame.round(3).set_index("scheme"), facts_line(dataset, frame["count"]), frame)


def measurements(dataset: xr.Dataset) -> pd.DataFrame:
    """Every measurement, one row for each fact, scheme and edited layer."""
    names = [name for name, variable in KINDS["tables"].items() if variable.dims == ("fact", "scheme", "layer")]
    columns = [*names, "efficacy", "update_norm", "condition_number", "unstored"]
    frame = dataset[columns].to_dataframe(dim_order=["fact", "scheme", "layer"]).reset_index()
    frame = frame[np.isfinite(frame["update_norm"])]
    return frame[["fact", "scheme", "layer", *columns]].dropna(axis="columns", how="all")
