"""What captions and footnotes say of a run."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import xarray as xr

from jacobian_lab.report.writing import facts_in_cells

DEGREES = 180 / np.pi


def failed_facts(dataset: xr.Dataset) -> list[str]:
    """Facts whose anchor's loss was not finite; they keep their place with NaN.

    Args:
        dataset: An open run of tables or of edit_table.

    Returns:
        Their ids.
    """
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
    """Facts whose loss was low enough without any update at some anchor layer.

    Args:
        dataset: An open run.

    Returns:
        Their ids; a ratio to their residual, which is zero, is NaN.
    """
    first = (dataset["anchor_passes"] == 1).any("anchor_layer")
    finite = dataset["anchor"].notnull().all(("anchor_layer", "d_model"))
    return [str(fact) for fact in dataset["fact"].values[(first & finite).values]]


def unmet_anchors(dataset: xr.Dataset, name: str = "anchor") -> str:
    """How many of the anchors did not come below the loss that ends their optimisation.

    Args:
        dataset: An open run.
        name: ``"anchor"`` or ``"refit_anchor"``.

    Returns:
        A line for below the tables; empty where all did, or none was optimised.
    """
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


def below_last(dataset: xr.Dataset) -> xr.Dataset:
    """The layers l below the last decisive one, L, where J_{l→L} says something.

    Args:
        dataset: An open run.

    Returns:
        Part of it.
    """
    last = max(dataset.attrs["config"]["settings"]["layers"])
    return dataset.sel(layer=[layer for layer in dataset["layer"].values if layer < last])


def seed_of(dataset: xr.Dataset) -> int:
    """The seed that a run was made with; its intervals are resampled with it too.

    Args:
        dataset: An open run.

    Returns:
        The seed.
    """
    return int(dataset.attrs["config"]["settings"]["seed"])


def model_name(dataset: xr.Dataset) -> str:
    """What a caption calls the model.

    Args:
        dataset: An open run.

    Returns:
        Its name.
    """
    return str(dataset.attrs["config"]["provenance"]["model"])


def facts_line(dataset: xr.Dataset, counts: Iterable[Any]) -> str:
    """What a caption says of model, facts and cells.

    Args:
        dataset: An open run.
        counts: Facts that have a value, for each cell.

    Returns:
        One sentence.
    """
    facts = facts_in_cells(dataset.sizes["fact"], counts)
    return f"{model_name(dataset)}, {facts}, mean [95 % bootstrap interval] (median)."
