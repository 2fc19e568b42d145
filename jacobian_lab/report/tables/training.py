"""Tables of methods that train: their losses, the prompts that a memory serves, the change of the weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from operator import itemgetter

import numpy as np
import pandas as pd
import xarray as xr

from jacobian_lab.report.captions import facts_of
from jacobian_lab.report.paper import Metric
from jacobian_lab.report.tables.methods import means, text_table, texts_by_row
from jacobian_lab.report.writing import Table, number, seed_of

PROMPTS = {"distance": "prompts", "distance_paraphrase": "paraphrases", "distance_neighbor": "neighbourhood"}
"""Variables of a router's distances, and labels of their prompts."""

AIMS = {"aim_cosine": Metric("cosine", scale=1.0, best=0), "aim_share": Metric("share realised", scale=1.0, best=0)}
"""Alignment of an edit with the anchors."""


@dataclass(frozen=True, eq=False)
class Routed:
    """Decisions of a router on the prompts of one kind.

    Attributes:
        distances: Distance of the memory from the model's own matrix over its threshold, one a prompt, in no order.
    """

    distances: np.ndarray

    @property
    def served(self) -> float:
        """The share of the prompts that the memory serves."""
        return float((self.distances >= 1).mean()) if self.distances.size else np.nan


def routed(dataset: xr.Dataset, method: str) -> Mapping[str, Routed]:
    """Decisions of a method's router, by kind of prompt."""
    edit, decisions = dataset.sel(edit=method), {}
    for name, label in PROMPTS.items():
        values = edit[name]
        if "neighbor" in values.dims:
            values = values.where(edit["neighbor_edited"] == 0)
        flat = values.values.ravel()
        decisions[label] = Routed(flat[~np.isnan(flat)])
    return decisions


def with_router(dataset: xr.Dataset) -> list[str]:
    """Methods whose router has been asked."""
    return [str(name) for name in dataset["edit"].values if np.isfinite(dataset["distance"].sel(edit=name)).any()]


def lacking(dataset: xr.Dataset) -> str:
    """Name the lack of a run that cannot give `training`."""
    return "" if np.isfinite(dataset["changed_norm"]).any() or with_router(dataset) else "a method that trains"


def training(dataset: xr.Dataset) -> Table:
    """Each method that trains: its steps and losses, what its memory serves, or what its network changed."""
    columns: dict[str, dict[str, str]] = {}
    for name in with_router(dataset):
        edit, kinds = dataset.sel(edit=name), routed(dataset, name)
        steps, loss = edit["training_steps"].values, edit["training_loss"].values
        columns[name] = {
            "steps a fact, mean": number(float(steps.mean()), 1),
            "loss at a fact's last step, median": number(_median(loss), 3),
            "threshold": number(float(edit["threshold"]), 3),
            **{f"median distance over it, {kind}": number(_median(r.distances), 3) for kind, r in kinds.items()},
            **{f"served by the memory, {kind}": number(100 * r.served, 1) for kind, r in kinds.items()},
        }
    for name in map(str, dataset["edit"].values):
        edit = dataset.sel(edit=name)
        norm, rank = edit["changed_norm"], edit["changed_rank"].values
        if np.isfinite(norm).any():
            blocks = edit["block"].values[np.isfinite(norm.values)]
            columns[name] = {
                "loss at a fact's last step, median": number(_median(edit["training_loss"].values), 3),
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
    """Alignment of every method's shift at the last block with the shift to which its anchor leads."""
    methods = [str(name) for name in dataset["edit"].values if np.isfinite(dataset["aim_share"].sel(edit=name)).any()]
    keys = [(name, metric) for name in methods for metric in AIMS]
    cells = means([(dataset[metric].sel(edit=name), AIMS[metric]) for name, metric in keys], seed_of(dataset))
    long = pd.DataFrame(keys, columns=["method", "metric"]).join(cells)
    frame = text_table(texts_by_row(long, AIMS, itemgetter("method")), AIMS)
    return Table(frame, facts_of(dataset, long["count"]), long)


def _median(values: np.ndarray) -> float:
    return float(np.nanmedian(values)) if not np.isnan(values).all() else np.nan
