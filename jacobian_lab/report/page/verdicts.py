"""Verdicts of a run in plain words, with the numbers that they rest on."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import xarray as xr

from jacobian_lab.catalogue import UNEDITED
from jacobian_lab.progress import counted
from jacobian_lab.report.captions import model_name
from jacobian_lab.report.headlines import headlines
from jacobian_lab.report.intervals import summarise
from jacobian_lab.report.page.measures import labels
from jacobian_lab.report.paper import METRICS
from jacobian_lab.report.results import Results
from jacobian_lab.report.tables import locating, tune
from jacobian_lab.report.tables.convergence import caveats
from jacobian_lab.report.tables.methods import GAINS, both_ways, column, gains_of, means
from jacobian_lab.report.tables.sequence import along_looks, edited_courses, ended, forgotten
from jacobian_lab.report.tables.theorems import definite_jacobians
from jacobian_lab.report.tables.transfer import SPOKEN, by_group
from jacobian_lab.report.writing import below_last, number, seed_of
from jacobian_lab.store.run import config_of

GAINED = ("generalization_accuracy", "kl")
"""Metrics of which paired differences are put in words."""


def verdicts(run: Results) -> list[str]:
    """Sum up a run in sentences."""
    return list(SENTENCES[run.kind](run.dataset))


def warnings(run: Results) -> list[str]:
    """Name what takes no part in the means, and descents that did not arrive."""
    return list(caveats(run.dataset)) if run.kind in {"tables", "edit_table"} else []


def _schemes(dataset: xr.Dataset) -> Iterator[str]:
    if dataset.sizes["scheme"]:
        yield from headlines(dataset)
    else:
        yield "No scheme has been measured yet."


def _methods(dataset: xr.Dataset) -> Iterator[str]:
    names = [str(name) for name in dataset["edit"].values]
    edited = [name for name in names if name != UNEDITED]
    if not edited:
        yield "No method has been measured yet."
        return
    yield (
        f"{counted(dataset.sizes['fact'], 'fact')} edited in {model_name(dataset)} with "
        f"{counted(len(edited), 'method')}; the same questions were put to the model before and after."
    )
    for metric in ("efficacy_accuracy", "generalization_accuracy", "kl"):
        yield from _best(dataset, metric, edited, UNEDITED in names)
    yield from _gains(dataset)


def _best(dataset: xr.Dataset, metric: str, names: list[str], unedited: bool) -> Iterator[str]:
    """Name the method with the best mean of a metric, and the worst."""
    kind = METRICS[metric]
    rows = [*names, *([UNEDITED] if unedited else [])]
    frame = means([(column(dataset, metric).sel(edit=name), kind) for name in rows], seed_of(dataset))
    cells = dict(zip(rows, frame.to_dict("records"), strict=True))
    order = sorted((n for n in names if np.isfinite(cells[n]["mean"])), key=lambda n: -kind.best * cells[n]["mean"])
    if not order:
        return
    unit = " nat" if metric == "kl" else " %"
    words = f"{kind.label[0].upper()}{kind.label[1:]}: best with {order[0]}, {_interval(cells[order[0]], unit)}"
    if len(order) > 1:
        words += f"; worst with {order[-1]}, {_interval(cells[order[-1]], unit)}"
    if unedited and metric != "kl":
        words += f"; {number(float(cells[UNEDITED]['mean']), 1)}{unit} before any edit"
    yield f"{words}."


def _gains(dataset: xr.Dataset) -> Iterator[str]:
    steps = [step for step in GAINS if both_ways(dataset, step)]
    if not steps:
        return
    frame = gains_of(dataset, steps)
    for row in frame[frame["metric"].isin(GAINED)].to_dict("records"):
        if np.isnan(row["mean"]):
            continue
        kind, unit = METRICS[row["metric"]], " nat" if row["metric"] == "kl" else " points"
        apart = row["low"] > 0 or row["high"] < 0
        yield (
            f"{row['method']} against {row['against']}, {kind.label}: {_interval(row, unit, '+')}"
            f"{'' if apart else ', no difference that these facts can tell'}."
        )


def _interval(row: Mapping[Any, Any], unit: str = "", sign: str = "") -> str:
    decimals = 1 if unit in {" %", " points"} else None
    low, high = (number(float(row[name]), decimals, sign) for name in ("low", "high"))
    around = f" [{low}, {high}]" if low else ""
    return f"{number(float(row['mean']), decimals, sign)}{unit}{around}"


def _frontier(dataset: xr.Dataset) -> Iterator[str]:
    yield f"{counted(dataset.sizes['fact'], 'fact')} edited in {model_name(dataset)} at {dataset.sizes['ridge']} λ."
    stacked = dataset.stack(edit_and_ridge=("edit", "ridge")).transpose("edit_and_ridge", ...)
    flat = stacked.drop_vars(["edit_and_ridge", "edit", "ridge"]).rename(edit_and_ridge="edit")
    flat = flat.assign_coords(edit=labels(dataset, ("edit", "ridge")))
    measured = [str(name) for name in flat["edit"].values[flat["measured"].values == 1]]
    if not measured:
        yield "Nothing has been measured yet."
    for metric in ("generalization_accuracy", "kl") if measured else ():
        yield from _best(flat, metric, measured, False)


def _jacobians(dataset: xr.Dataset) -> Iterator[str]:
    below = below_last(dataset)
    definite, total = definite_jacobians(below)
    facts = int((dataset["surveyed"] == 1).sum())
    yield f"J of {counted(facts, 'fact')} in {model_name(dataset)}, from each layer to layer {_last(dataset)}."
    if total:
        yield f"S = (J + Jᵀ)/2 is positive definite for {definite:,} of {total:,} Jacobians (theorem 2’s condition)."
        least = below["lambda_min"].mean("fact")
        layers = [f"{number(float(value))} at layer {layer}" for layer, value in zip(*_columns(least), strict=True)]
        yield f"λ_min of S, mean over facts: {', '.join(layers)}."


def _last(dataset: xr.Dataset) -> int:
    return int(max(config_of(dataset)["settings"]["layers"]))


def _columns(array: xr.DataArray) -> tuple[list[int], list[float]]:
    return array["layer"].values.tolist(), array.values.tolist()


def _counts(dataset: xr.Dataset) -> Iterator[str]:
    for name in dataset["scheme"].values:
        values = dataset["final_ratio"].sel(scheme=name)
        done = [int(count) for count in dataset["count"].values if values.sel(count=count).notnull().any()]
        if done:
            few, many = (summarise(values.sel(count=count).values, seed_of(dataset)) for count in (done[0], done[-1]))
            yield (
                f"{name} leaves {_interval(few)} of the residual with {counted(done[0], 'layer')}, "
                f"{_interval(many)} with {done[-1]}."
            )


def _dampings(dataset: xr.Dataset) -> Iterator[str]:
    left = dataset["residual_ratio"].isel(layer=-1).mean("fact")
    left = left.isel(row=np.argsort(left.values))
    rows = [f"{row} {number(float(left.sel(row=row)))}" for row in left["row"].values if left.sel(row=row).notnull()]
    if rows:
        yield f"Residual left at layer {int(dataset['layer'].values[-1])}, mean over facts: {', '.join(rows)}."


def _transfers(dataset: xr.Dataset) -> Iterator[str]:
    first, last = dataset["layer"].values[[0, -1]]
    for group, prompts in by_group(dataset):
        shares = prompts["transferred"].mean("prompt")
        low, high = (summarise(shares.sel(layer=layer).values, seed_of(dataset)) for layer in (first, last))
        if np.isfinite(low["mean"]) and np.isfinite(high["mean"]):
            yield (
                f"Of a layer's shift {SPOKEN[group]} get {_interval(low)} at layer {first} and {_interval(high)} at "
                f"layer {last}, mean over facts."
            )


def _sequences(dataset: xr.Dataset) -> Iterator[str]:
    """Say what the first batch still gives at the end, and what the edits did beside."""
    rows, every = along_looks(dataset), edited_courses(dataset)
    yield f"{counted(dataset.sizes['fact'], 'fact')} in batches, one after another, in {model_name(dataset)}."
    if not every:
        yield "No method has been measured yet."
        return
    old = forgotten(dataset)
    for course in every:
        at = (old["method"] == course.method) & (old["targets"] == course.targets) & (old["batch"] == 1)
        first, last = (old[at].iloc[place]["efficacy"] for place in (0, -1))
        row = rows[(rows["method"] == course.method) & (rows["targets"] == course.targets)].iloc[-1]
        yield (
            f"{course.label}: the first batch is answered to {number(first, 1)} % after its own edit and to "
            f"{number(last, 1)} % after {course.looks[-1]} facts; perplexity then {number(row['perplexity'])}, D_KL "
            f"{number(row['kl'])} nat, ‖ΔW‖/‖W‖ {number(row['update_norm'])}."
        )
    yield from ended(dataset)


SENTENCES: Mapping[str, Callable[[xr.Dataset], Iterator[str]]] = {
    "tables": _schemes,
    "edit_table": _methods,
    "frontier": _frontier,
    "jacobian": _jacobians,
    "layer_count": _counts,
    "damping": _dampings,
    "locate": locating.summary,
    "sequence": _sequences,
    "transfer": _transfers,
    "tune": lambda dataset: iter(tune.why(dataset)),
}
"""Sentences of each kind of run."""
