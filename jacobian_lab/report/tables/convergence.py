"""Convergence of the descents that anchors and shifts come from, and the facts that take no part."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
import xarray as xr

from jacobian_lab.report.captions import model_name
from jacobian_lab.report.writing import Table
from jacobian_lab.store.run import config_of

DESCENTS = {
    "anchor": "anchors",
    "refit_anchor": "refitted anchors",
    "inner_anchor": "anchors",
    "restarted_anchor": "best of restarted anchors",
    "joint_anchor": "joint anchors",
    "coordinated_shift": "coordinated shifts",
}


def descents(dataset: xr.Dataset) -> Table:
    """Count the facts that came below the loss that ends a descent, with losses, passes and the clamp's activity."""
    settings = config_of(dataset)["settings"]["anchor"]
    stop, rows = settings["stop_loss"], {}
    for name, label in DESCENTS.items():
        for place, loss, passes, clamped in _places(dataset, name):
            losses = loss.where(passes > 0).dropna("fact")
            if losses.size:
                rows[label + place] = {
                    "facts": losses.size,
                    f"below {stop:g}": int((losses < stop).sum()),
                    "median loss": float(losses.median()),
                    "largest loss": float(losses.max()),
                    "passes": int(passes.sum()),
                    "clamped facts": int((clamped > 0).sum()) if clamped.notnull().any() else np.nan,
                    "clamped share of updates": float(clamped.mean()),
                }
    frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis("descent").dropna(axis="columns", how="all")
    note = f"At most {settings['steps']} passes a fact, at the learning rate {settings['lr']:g}. {model_name(dataset)}."
    return Table(frame.round(3), note, frame.reset_index())


def _places(dataset: xr.Dataset, name: str) -> Iterator[tuple[str, xr.DataArray, xr.DataArray, xr.DataArray]]:
    """Label, loss, passes and clamped share of each place where there are such anchors or shifts."""
    if f"{name}_loss" not in dataset:
        return
    loss, passes, clamped = (dataset[f"{name}_{what}"] for what in ("loss", "passes", "clamped"))
    texts = {"anchor_layer": " at layer {}", "layer": " at layer {}", "count": " of {} layers"}
    (dim, *_) = [dim for dim in loss.dims if dim != "fact"] or [None]
    for label in [None] if dim is None else dataset[dim].values:
        place = {} if dim is None else {dim: label}
        yield texts[str(dim)].format(label) if dim else "", loss.sel(place), passes.sel(place), clamped.sel(place)


def failed_facts(dataset: xr.Dataset) -> list[str]:
    """Facts whose anchor's loss was not finite; they keep their place with NaN."""
    failed = xr.DataArray(np.zeros(dataset.sizes["fact"], dtype=bool), dims="fact")
    for name in ("anchor", "refit_anchor"):
        if name in dataset:
            lost = dataset[name].isnull().any("d_model")
            failed = failed | (lost & (dataset[f"{name}_passes"] > 0)).any("anchor_layer")
    if "replayed_target" in dataset:
        lost = dataset["replayed_target"].isnull().any(("layer", "d_model"))
        failed = failed | (lost & (dataset["anchor_passes"] > 0).all("anchor_layer"))
    return [str(fact) for fact in dataset["fact"].values[failed.values]]


def answered_facts(dataset: xr.Dataset) -> list[str]:
    """Facts whose loss was low enough without any update at some anchor layer."""
    first = (dataset["anchor_passes"] == 1).any("anchor_layer")
    finite = dataset["anchor"].notnull().all(("anchor_layer", "d_model"))
    return [str(fact) for fact in dataset["fact"].values[(first & finite).values]]


def unmet_anchors(dataset: xr.Dataset, name: str = "anchor") -> str:
    """Count the anchors whose loss did not come below the one that ends their descent."""
    loss = dataset[f"{name}_loss"]
    short, done = (loss >= _stop_loss(dataset)).sum("fact"), loss.notnull().sum("fact")
    parts = [
        f"{int(short.sel(anchor_layer=layer))} of {int(done.sel(anchor_layer=layer))} at layer {layer}"
        for layer in loss["anchor_layer"].values
        if short.sel(anchor_layer=layer)
    ]
    return _unmet(dataset, f"{name}s".replace("_", " ").capitalize(), ", ".join(parts))


def unmet_shifts(dataset: xr.Dataset) -> str:
    """Count the facts whose shifts did not come below the loss that ends their descent, and name those that failed."""
    optimised = dataset["coordinated_shift_passes"] > 0
    short = int((dataset["coordinated_shift_loss"] >= _stop_loss(dataset)).sum())
    failed = dataset["coordinated_shift"].isnull().any(("layer", "d_model")) & optimised
    count = _unmet(dataset, "Coordinated shifts", f"{short} of {int(optimised.sum())}" if short else "")
    names = ", ".join(map(str, dataset["fact"].values[failed.values]))
    failures = f"Facts without finite shifts, left out of coordinated-replay alone: {names}." if names else ""
    return "\n\n".join(filter(None, (count, failures)))


def _stop_loss(dataset: xr.Dataset) -> float:
    return float(config_of(dataset)["settings"]["anchor"]["stop_loss"])


def _unmet(dataset: xr.Dataset, descents: str, counts: str) -> str:
    ends = f"{_stop_loss(dataset):g} nat in {config_of(dataset)['settings']['anchor']['steps']} passes"
    return f"{descents} whose loss did not come below {ends}: {counts}." if counts else ""


def caveats(dataset: xr.Dataset) -> Iterator[str]:
    """Descents that did not converge, and facts that take no part in a run of schemes or of methods."""
    names = [name for name in ("anchor", "refit_anchor") if f"{name}_loss" in dataset]
    lines = [*(unmet_anchors(dataset, name) for name in names), unmet_shifts(dataset)]
    yield from filter(None, lines)
    schemes, failed = "scheme" in dataset.dims, ", ".join(failed_facts(dataset))
    if failed:
        treatment = "left out of every mean" if schemes else "not edited, counted as they are"
        yield f"Facts without a finite anchor, {treatment}: {failed}."
    if schemes and (answered := ", ".join(answered_facts(dataset))):
        yield f"Facts that the model answers already, left out of ratios: {answered}."
