"""Batches of a sequence held against the first: J just before each edit, and the split of what the edit did."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from jacobian_lab.report.captions import facts_of
from jacobian_lab.report.intervals import summaries_of
from jacobian_lab.report.tables.sequence import batches, edited_courses, within
from jacobian_lab.report.writing import Table, below_last, seed_of, with_interval

BROKEN_DOWN = {
    "residual_left": "residual left at the last layer ↓",
    "residual_cosine": "cos(Jδ, R) ↑",
    "curvature": "curvature over ‖δ_L‖",
    "leakage": "leakage over ‖δ_L‖",
    "lambda_min": "λ_min of S, first layer",
    "sigma_max": "σ_max of J, first layer",
}
"""Quantities of a batch; those of J·δ are means over the layers below the last."""


class Head(NamedTuple):
    """Labels of a row.

    Attributes:
        method: The method.
        targets: The model that targets are made on.
        batch: Which batch, from 1 on.
        quantity: One of `BROKEN_DOWN`.
    """

    method: str
    targets: str
    batch: int
    quantity: str


def quantities(course: xr.Dataset) -> dict[str, xr.DataArray]:
    """Compute a value a fact for each of `BROKEN_DOWN`, in one course."""
    below, first = below_last(course), course.isel(layer=0)
    return {
        "residual_left": course["residual_ratio"].isel(layer=-1),
        "residual_cosine": below["linear_residual_cosine"].mean("layer"),
        "curvature": (below["curvature_norm"] / below["passive_shift_norm"]).mean("layer"),
        "leakage": (below["leakage_norm"] / below["passive_shift_norm"]).mean("layer"),
        "lambda_min": first["lambda_min"],
        "sigma_max": first["sigma_max"],
    }


def batch_values(dataset: xr.Dataset) -> Iterator[tuple[Head, np.ndarray]]:
    """Give every quantity of every batch that was observed, by fact; NaN outside the batch."""
    for course in edited_courses(dataset):
        for name, by_fact in quantities(dataset.sel(edit=course.method, targets=course.targets)).items():
            for batch, span in enumerate(batches(dataset), 1):
                values = within(by_fact, span).values
                if np.isfinite(values).any():
                    yield Head(course.method, course.targets, batch, name), values


def along_batches(dataset: xr.Dataset) -> pd.DataFrame:
    """Tabulate `batch_values` as means with intervals, a row each."""
    heads, cells = zip(*batch_values(dataset), strict=True)
    return pd.DataFrame(heads).join(summaries_of(np.stack(cells), seed_of(dataset)).drop(columns="median"))


def breakdown(dataset: xr.Dataset) -> Table:
    """`along_batches` as texts, a row a batch."""
    long = along_batches(dataset)
    texts: dict[str, dict[str, str]] = {}
    for row in long.to_dict("records"):
        label = f"{row['method']}, {row['targets']} targets, batch {row['batch']}"
        texts.setdefault(label, {})[BROKEN_DOWN[row["quantity"]]] = with_interval(row)
    frame = pd.DataFrame.from_dict(texts, orient="index").fillna("").rename_axis("method")
    return Table(frame, facts_of(dataset, [dataset.sizes["fact"]]), long)
