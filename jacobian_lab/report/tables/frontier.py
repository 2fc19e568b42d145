"""Tables of a run of frontier: every method along λ, and each at a λ cross-validated over halves of the facts."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from jacobian_lab.catalogue import method
from jacobian_lab.report.captions import facts_of, meanings
from jacobian_lab.report.paper import METRICS
from jacobian_lab.report.tables.methods import (
    MORE,
    by_fact,
    difference,
    further,
    gains_of,
    summaries,
    text_table,
    texts_by_row,
)
from jacobian_lab.report.writing import Table

CHOOSES, BREAKS_TIES = ("generalization_accuracy", "efficacy_accuracy"), "kl"
"""Metrics that choose a method's λ, the first that both halves of the facts have, and the one among equals."""


def along_ridges(dataset: xr.Dataset) -> pd.DataFrame:
    """Every metric of every method at every λ, with its interval."""
    points = []
    for ridge in dataset["ridge"].values:
        at = dataset.sel(ridge=ridge)
        measured = at.isel(edit=np.flatnonzero(at["measured"].values == 1))
        if measured.sizes["edit"]:
            points.append(summaries(measured).assign(ridge=float(ridge)))
    return pd.concat(points, ignore_index=True)


def frontier(dataset: xr.Dataset) -> Table:
    """`along_ridges` as texts, a row a method and λ."""
    points, kinds = along_ridges(dataset), {**METRICS, **further(dataset)}
    places = {name: place for place, name in enumerate(dataset["edit"].values)}
    order = points["method"].map(places).rename("place")
    long = points.join(order).sort_values(["place", "ridge"], kind="stable").drop(columns="place")
    long = long[long["metric"].isin(list(kinds))]
    texts = texts_by_row(long, kinds, lambda row: f"{row['method']}, {weight(row['method'])} = {row['ridge']:g}")
    rows = pd.MultiIndex.from_frame(long[["method", "ridge"]].drop_duplicates())
    means = long.pivot(index=["method", "ridge"], columns="metric", values="mean")
    numbers = means.reindex(index=rows, columns=list(kinds)).rename_axis(columns=None).reset_index()
    return Table(
        text_table(texts, kinds), f"{_along(points)}{meanings(dataset)} {facts_of(dataset, long['count'])}", numbers
    )


def weight(name: str) -> str:
    """Name the weight that a method's rule goes along: AlphaEdit has no λ, but L2."""
    return "L2" if method(name).rule == "alphaedit" else "λ"


def _along(points: pd.DataFrame) -> str:
    """Sentence of a caption for a rule without λ."""
    return "AlphaEdit goes along its L2. " if any(weight(name) == "L2" for name in points["method"]) else ""


def cross_validated(dataset: xr.Dataset) -> Table:
    """Tabulate every method at its own λ: for each half of the facts, the one that is best on the other half.

    The halves are the facts at even and at odd places; best is the largest generalisation Accuracy (efficacy Accuracy
    where a half has no paraphrase), of equals the one with the least D_KL, and of those the smallest. So no fact's
    numbers have chosen the λ that they are reported at.
    """
    crossed, ridges, criteria = _crossed(dataset)
    kinds = {**METRICS, **further(crossed)}
    whole, gained = summaries(crossed), gains_of(crossed)

    def at_ridges(row: Mapping[Any, Any]) -> str:
        values = " and ".join(f"{ridge:g}" for ridge in ridges[row["method"]])
        return f"{row['method']}, {weight(row['method'])} = {values}"

    texts = texts_by_row(whole, kinds, at_ridges) | texts_by_row(gained, kinds, difference, "+")
    columns = pd.DataFrame(ridges, index=["ridge_even", "ridge_odd"]).T.rename_axis("method").reset_index()
    counts = whole["count"][whole["metric"].isin(list(kinds))]
    note = f"{_along(whole)}{_in_words(criteria)} {meanings(dataset)} {facts_of(dataset, counts)}"
    return Table(text_table(texts, kinds), note, pd.concat([whole, gained]).merge(columns, on="method"))


def no_halves(dataset: xr.Dataset) -> str:
    """Name the lack of a run that cannot give methods at their own λ."""
    if min(_evaluated(dataset).size, dataset.sizes["ridge"]) < 2:
        return "two facts and two values of λ"
    return "" if (dataset["measured"] == 1).all("ridge").any() else "a method at every λ"


def _crossed(dataset: xr.Dataset) -> tuple[xr.Dataset, dict[str, tuple[float, float]], list[str]]:
    """The run with each method at its own λ, its λ for the facts at even and at odd places, and the criteria."""
    evaluated = _evaluated(dataset)
    halves = [dataset[[*METRICS, *MORE, "probe_accuracy"]].isel(fact=evaluated[start::2]) for start in (0, 1)]
    whole = (dataset["measured"] == 1).all("ridge").values
    held = [name for name in (*CHOOSES, BREAKS_TIES) if all(half[name].notnull().any() for half in halves)]
    criteria = [next(name for name in CHOOSES if name in held), *(name for name in held if name == BREAKS_TIES)]
    parts, ridges = [], {}
    for edit in dataset["edit"].values[whole]:
        even, odd = (_best_ridge(half.sel(edit=edit), criteria) for half in halves)
        ridges[str(edit)] = (odd, even)
        at = [half.sel(edit=edit, ridge=ridge, drop=True) for half, ridge in zip(halves, (odd, even), strict=True)]
        parts.append(xr.concat(at, "fact"))
    crossed = xr.concat(parts, pd.Index(list(ridges), name="edit")).assign_attrs(dataset.attrs)
    return crossed, ridges, criteria


def _in_words(criteria: Sequence[str]) -> str:
    """Sentence of a caption about the choice of λ."""
    named = [f"the {'largest' if METRICS[name].best > 0 else 'least'} {METRICS[name].label}" for name in criteria]
    best, equals, *_ = [*named, "the smallest λ"]
    return f"Best: {best} (of equals {equals})."


def _evaluated(dataset: xr.Dataset) -> np.ndarray:
    """Places of the facts that the models were evaluated on."""
    return np.flatnonzero(dataset["efficacy_accuracy"].notnull().any(("edit", "ridge")))


def _best_ridge(half: xr.Dataset, criteria: Sequence[str]) -> float:
    """The λ of one method that is best on some facts; of equals the smallest, and never one without a value."""

    def goodness(metric: str, ridge: float) -> float:
        sums, weights = by_fact(half[metric].sel(ridge=ridge), METRICS[metric])
        return float(METRICS[metric].best * sums.sum() / weights.sum()) if weights.any() else -np.inf

    ridges = sorted(float(ridge) for ridge in half["ridge"].values)
    return max(ridges, key=lambda ridge: [goodness(metric, ridge) for metric in criteria])
