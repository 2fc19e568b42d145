"""What is to be known of methods that train: how far they learnt, which prompts a memory serves, what was changed."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from jacobian_lab.report.captions import facts_of
from jacobian_lab.report.paper import Metric
from jacobian_lab.report.tables.methods import cell_text, means
from jacobian_lab.report.writing import Table, number, seed_of

PROMPTS = {"distance": "prompts", "distance_paraphrase": "paraphrases", "distance_neighbor": "neighbourhood"}
"""What a router judges, and what it is called."""

AIMS = {"aim_cosine": Metric("cosine", scale=1.0), "aim_share": Metric("share realised", scale=1.0)}
"""How far an edit goes where the anchors lead."""


@dataclass(frozen=True, eq=False)
class Routed:
    """What a router makes of the prompts of one kind.

    Attributes:
        distances: How far the memory is from the model's own matrix over its threshold, one a prompt, in no order.
    """

    distances: np.ndarray

    @property
    def served(self) -> float:
        """The share of the prompts that the memory serves."""
        return float((self.distances >= 1).mean()) if self.distances.size else np.nan


def routed(dataset: xr.Dataset, method: str) -> Mapping[str, Routed]:
    """Where a method's router sends what."""
    chosen = dataset.sel(edit=method)
    found = {}
    for name, called in PROMPTS.items():
        values = chosen[name]
        if "neighbor" in values.dims:
            values = values.where(chosen["neighbor_edited"] == 0)
        flat = values.values.ravel()
        found[called] = Routed(flat[~np.isnan(flat)])
    return found


def with_router(dataset: xr.Dataset) -> list[str]:
    """Methods whose router has been asked."""
    return [str(name) for name in dataset["edit"].values if np.isfinite(dataset["distance"].sel(edit=name)).any()]


def lacking(dataset: xr.Dataset) -> str:
    """What a run lacks for `training`."""
    return "" if np.isfinite(dataset["changed_norm"]).any() or with_router(dataset) else "a method that trains"


def training(dataset: xr.Dataset) -> Table:
    """Each method that trains: its steps and losses, what its memory serves, or what its network changed."""
    columns: dict[str, dict[str, str]] = {}
    for name in with_router(dataset):
        chosen, found = dataset.sel(edit=name), routed(dataset, name)
        steps, loss = chosen["training_steps"].values, chosen["training_loss"].values
        columns[name] = {
            "steps a fact, mean": number(float(steps.mean()), 1),
            "loss at a fact's last step, median": number(_median(loss), 3),
            "threshold": number(float(chosen["threshold"]), 3),
            **{f"median distance over it, {kind}": number(_median(each.distances), 3) for kind, each in found.items()},
            **{f"served by the memory, {kind}": number(100 * each.served, 1) for kind, each in found.items()},
        }
    for name in map(str, dataset["edit"].values):
        chosen = dataset.sel(edit=name)
        norm, rank = chosen["changed_norm"], chosen["changed_rank"].values
        if np.isfinite(norm).any():
            blocks = chosen["block"].values[np.isfinite(norm.values)]
            columns[name] = {
                "loss at a fact's last step, median": number(_median(chosen["training_loss"].values), 3),
                "blocks that are changed": f"{blocks.min()} to {blocks.max()}",
                "largest ‖ΔW‖/‖W‖ of a block": number(float(norm.max()), 4),
                "median of these": number(float(np.nanmedian(norm)), 4),
                "largest rank of a ΔW": f"{np.nanmax(rank):.0f}",
            }
    frame = pd.DataFrame(columns).fillna("").rename_axis("quantity")
    note = (
        f"Neighbourhood prompts that are edited themselves are left out. {facts_of(dataset, [dataset.sizes['fact']])}"
    )
    return Table(frame, note, frame.reset_index())


def aims(dataset: xr.Dataset) -> Table:
    """How far every method carries the decisive token where the anchors lead."""
    methods = [str(name) for name in dataset["edit"].values if np.isfinite(dataset["aim_share"].sel(edit=name)).any()]
    keys = [(name, metric) for name in methods for metric in AIMS]
    found = means([(dataset[metric].sel(edit=name), AIMS[metric]) for name, metric in keys], seed_of(dataset))
    told = pd.DataFrame(keys, columns=["method", "metric"]).join(found)
    rows: dict[str, list[str]] = {}
    for row in told.to_dict("records"):
        rows.setdefault(row["method"], []).append(cell_text(row, AIMS[row["metric"]]))
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=[each.label for each in AIMS.values()])
    return Table(frame.rename_axis("method"), facts_of(dataset, told["count"]), told)


def _median(values: np.ndarray) -> float:
    kept = values[~np.isnan(values)]
    return float(np.median(kept)) if kept.size else np.nan
