"""Batches of a sequence held against the first: J just before each edit, and the split of what the edit did."""

import numpy as np
import pandas as pd
import xarray as xr

from jacobian_lab.report.captions import facts_of
from jacobian_lab.report.intervals import summaries_of
from jacobian_lab.report.tables.sequence import batches, courses
from jacobian_lab.report.writing import Table, below_last, number, seed_of

BROKEN_DOWN = {
    "residual_left": "residual left at the last layer ↓",
    "residual_cosine": "cos(Jδ, R) ↑",
    "curvature": "curvature over ‖δ_L‖",
    "leakage": "leakage over ‖δ_L‖",
    "lambda_min": "λ_min of S, first layer",
    "sigma_max": "σ_max of J, first layer",
}
"""Quantities of a batch; those of J·δ are means over the layers below the last."""


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


def along_batches(dataset: xr.Dataset) -> pd.DataFrame:
    """Tabulate every quantity of every batch that was observed, with its interval, a row each."""
    heads, cells = [], []
    places = np.arange(dataset.sizes["fact"])
    for course in courses(dataset):
        own = dataset.sel(edit=course.method, targets=course.targets) if course.targets else None
        values = {} if own is None else quantities(own)
        for name, by_fact in values.items():
            for batch, span in enumerate(batches(dataset), 1):
                inside = np.where((places >= span.start) & (places < span.stop), by_fact.values, np.nan)
                if np.isfinite(inside).any():
                    heads.append((course.method, course.targets, batch, name))
                    cells.append(inside)
    frame = pd.DataFrame(heads, columns=["method", "targets", "batch", "quantity"])
    stacked = np.array(cells, dtype=float).reshape(len(cells), len(places))
    return frame.join(summaries_of(stacked, seed_of(dataset)).drop(columns="median"))


def breakdown(dataset: xr.Dataset) -> Table:
    """`along_batches` as texts, a row a batch."""
    long = along_batches(dataset)
    texts: dict[str, dict[str, str]] = {}
    for row in long.to_dict("records"):
        mean, low, high = (number(row[name]) for name in ("mean", "low", "high"))
        label = f"{row['method']}, {row['targets']} targets, batch {row['batch']}"
        texts.setdefault(label, {})[BROKEN_DOWN[row["quantity"]]] = f"{mean} [{low}, {high}]" if low else mean
    frame = pd.DataFrame.from_dict(texts, orient="index").fillna("").rename_axis("method")
    return Table(frame, facts_of(dataset, [dataset.sizes["fact"]]), long)
