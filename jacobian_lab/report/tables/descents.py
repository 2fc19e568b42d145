"""How far the descents that anchors and shifts come from have got, and which facts take no part."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
import xarray as xr

from jacobian_lab.report.captions import model_name
from jacobian_lab.report.writing import Table

DESCENTS = {"anchor": "anchors", "refit_anchor": "refitted anchors", "coordinated_shift": "coordinated shifts"}


def descents(dataset: xr.Dataset) -> Table:
    """How many facts came below the loss that ends a descent, at what cost."""
    settings = dataset.attrs["config"]["settings"]["anchor"]
    stop, rows = settings["stop_loss"], {}
    for name, what in DESCENTS.items():
        for where, loss, passes in _places(dataset, name):
            made = loss.where(passes > 0).dropna("fact")
            if made.size:
                rows[what + where] = {
                    "facts": made.size,
                    f"below {stop:g}": int((made < stop).sum()),
                    "median loss": float(made.median()),
                    "largest loss": float(made.max()),
                    "passes": int(passes.sum()),
                }
    frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis("descent")
    note = f"At most {settings['steps']} passes a fact, at the learning rate {settings['lr']:g}. {model_name(dataset)}."
    return Table(frame.round(3), note, frame.reset_index())


def _places(dataset: xr.Dataset, name: str) -> Iterator[tuple[str, xr.DataArray, xr.DataArray]]:
    """Loss and passes of each place where there are such anchors or shifts, and what it is called."""
    if f"{name}_loss" not in dataset:
        return
    loss, passes = dataset[f"{name}_loss"], dataset[f"{name}_passes"]
    called = {"anchor_layer": " at layer {}", "count": " of {} layers"}
    (dim, *_) = [dim for dim in loss.dims if dim != "fact"] or [None]
    for label in [None] if dim is None else dataset[dim].values:
        where = {} if dim is None else {dim: label}
        yield called[str(dim)].format(label) if dim else "", loss.sel(where), passes.sel(where)


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
    """How many of the anchors did not come below the loss that ends their optimisation."""
    settings, loss = dataset.attrs["config"]["settings"]["anchor"], dataset[f"{name}_loss"]
    short, done = (loss >= settings["stop_loss"]).sum("fact"), loss.notnull().sum("fact")
    parts = [
        f"{int(short.sel(anchor_layer=layer))} of {int(done.sel(anchor_layer=layer))} at layer {layer}"
        for layer in loss["anchor_layer"].values
        if short.sel(anchor_layer=layer)
    ]
    what = f"{name}s".replace("_", " ").capitalize()
    ends = f"{settings['stop_loss']:g} nat in {settings['steps']} passes"
    return f"{what} whose loss did not come below {ends}: {', '.join(parts)}." if parts else ""


def unmet_shifts(dataset: xr.Dataset) -> str:
    """How many facts' coordinated shifts did not come below the loss that ends their optimisation, and which failed."""
    settings, made = dataset.attrs["config"]["settings"]["anchor"], dataset["coordinated_shift_passes"] > 0
    short = int((dataset["coordinated_shift_loss"] >= settings["stop_loss"]).sum())
    failed = dataset["coordinated_shift"].isnull().any(("layer", "d_model")) & made
    ends = f"{settings['stop_loss']:g} nat in {settings['steps']} passes"
    lines = [f"Coordinated shifts whose loss did not come below {ends}: {short} of {int(made.sum())}." if short else ""]
    names = ", ".join(map(str, dataset["fact"].values[failed.values]))
    lines.append(f"Facts without finite shifts, left out of coordinated-replay alone: {names}." if names else "")
    return "\n\n".join(filter(None, lines))
