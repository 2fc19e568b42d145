"""From a run of frontier to its tables: every method along λ, and each at its own λ, chosen on other facts."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr

from jacobian_lab.report.captions import facts_of, meanings
from jacobian_lab.report.paper import METRICS
from jacobian_lab.report.tables.methods import (
    MORE,
    by_fact,
    cell_text,
    further,
    gains_of,
    labels,
    summaries,
)
from jacobian_lab.report.writing import Table

CHOOSES, BREAKS_TIES = ("generalization_accuracy", "efficacy_accuracy"), "kl"
"""By which metric a method's λ is chosen, the first that both halves of the facts have, and by which among equals."""


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
    """`along_ridges`, as one reads it: a row a method and λ."""
    found, kinds = along_ridges(dataset), {**METRICS, **further(dataset)}
    cells = {(row["method"], row["ridge"], row["metric"]): row for row in found.to_dict("records")}
    points = sorted({(method, ridge) for method, ridge, _ in cells}, key=lambda point: _order(dataset, *point))
    texts = {
        f"{method}, λ = {ridge:g}": [cell_text(cells[method, ridge, metric], kind) for metric, kind in kinds.items()]
        for method, ridge in points
    }
    frame = pd.DataFrame.from_dict(texts, orient="index", columns=labels(kinds)).rename_axis("method")
    numbers = pd.DataFrame(points, columns=["method", "ridge"])
    for metric in kinds:
        numbers[metric] = [cells[method, ridge, metric]["mean"] for method, ridge in points]
    counts = found["count"][found["metric"].isin(list(kinds))]
    return Table(frame, f"{meanings(dataset)} {facts_of(dataset, counts)}", numbers)


def _order(dataset: xr.Dataset, method: str, ridge: float) -> tuple[int, float]:
    return list(dataset["edit"].values).index(method), ridge


def own_ridges(dataset: xr.Dataset) -> Table:
    """Every method at its own λ: for each half of the facts, the one that is best on the other half.

    The halves are the facts at even and at odd places; best is the largest generalisation Accuracy (efficacy Accuracy
    where a half has no paraphrase), of equals the one with the least D_KL, and of those the smallest. So no fact's
    numbers have chosen the λ that they are reported at.
    """
    crossed, chosen, criteria = _crossed(dataset)
    kinds = {**METRICS, **further(crossed)}
    whole, gained = summaries(crossed), gains_of(crossed)
    rows: dict[str, list[str]] = {}
    for row in whole[whole["metric"].isin(list(kinds))].to_dict("records"):
        name = f"{row['method']}, λ = {' and '.join(f'{ridge:g}' for ridge in chosen[row['method']])}"
        rows.setdefault(name, []).append(cell_text(row, kinds[row["metric"]]))
    for row in gained.to_dict("records"):
        name = f"{row['method']} − {row['against']}"
        rows.setdefault(name, []).append(cell_text(row, kinds[row["metric"]], "+"))
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=labels(kinds)).rename_axis("method")
    ridges = pd.DataFrame(chosen, index=["ridge_even", "ridge_odd"]).T.rename_axis("method").reset_index()
    counts = whole["count"][whole["metric"].isin(list(kinds))]
    note = f"{_in_words(criteria)} {meanings(dataset)} {facts_of(dataset, counts)}"
    return Table(frame, note, pd.concat([whole, gained]).merge(ridges, on="method"))


def no_halves(dataset: xr.Dataset) -> str:
    """What a run lacks for methods at their own λ."""
    if min(_asked(dataset).size, dataset.sizes["ridge"]) < 2:
        return "two facts and two values of λ"
    return "" if (dataset["measured"] == 1).all("ridge").any() else "a method at every λ"


def _crossed(dataset: xr.Dataset) -> tuple[xr.Dataset, dict[str, tuple[float, float]], list[str]]:
    """The run with each method at its own λ; which these are for the facts at even and at odd places; by what."""
    asked = _asked(dataset)
    halves = [dataset[[*METRICS, *MORE, "probe_accuracy"]].isel(fact=asked[start::2]) for start in (0, 1)]
    whole = (dataset["measured"] == 1).all("ridge").values
    held = [name for name in (*CHOOSES, BREAKS_TIES) if all(half[name].notnull().any() for half in halves)]
    criteria = [next(name for name in CHOOSES if name in held), *(name for name in held if name == BREAKS_TIES)]
    parts, chosen = [], {}
    for edit in dataset["edit"].values[whole]:
        even, odd = (_best_ridge(half.sel(edit=edit), criteria) for half in halves)
        chosen[str(edit)] = (odd, even)
        at = [half.sel(edit=edit, ridge=ridge, drop=True) for half, ridge in zip(halves, (odd, even), strict=True)]
        parts.append(xr.concat(at, "fact"))
    crossed = xr.concat(parts, pd.Index(list(chosen), name="edit")).assign_attrs(dataset.attrs)
    return crossed, chosen, criteria


def _in_words(criteria: Sequence[str]) -> str:
    """What a caption says of how λ is chosen."""
    named = [f"the {'largest' if METRICS[name].best > 0 else 'least'} {METRICS[name].label}" for name in criteria]
    best, equals, *_ = [*named, "the smallest λ"]
    return f"Best: {best} (of equals {equals})."


def _asked(dataset: xr.Dataset) -> np.ndarray:
    """Places of the facts that the models were evaluated on."""
    return np.flatnonzero(dataset["efficacy_accuracy"].notnull().any(("edit", "ridge")))


def _best_ridge(half: xr.Dataset, criteria: Sequence[str]) -> float:
    """The λ of one method that is best on some facts; of equals the smallest, and never one without a value."""

    def goodness(metric: str, ridge: float) -> float:
        sums, weights = by_fact(half[metric].sel(ridge=ridge), METRICS[metric])
        return float(METRICS[metric].best * sums.sum() / weights.sum()) if weights.any() else -np.inf

    ridges = sorted(float(ridge) for ridge in half["ridge"].values)
    return max(ridges, key=lambda ridge: [goodness(metric, ridge) for metric in criteria])
