"""Tables of edits one after another: every look at every method, and what each batch still answers at each look."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from jacobian_lab.catalogue import COORDINATED, JOINT, RESTARTED, SCHEMES, UNEDITED, method
from jacobian_lab.report.captions import facts_of
from jacobian_lab.report.paper import METRICS, Metric
from jacobian_lab.report.tables.methods import MORE, cell_text, labels, means
from jacobian_lab.report.writing import Table, number, seed_of
from jacobian_lab.store.run import config_of
from jacobian_lab.store.sequences import CURRENT, ENDS, MEASURED

LAST = "efficacy_accuracy_last"
SHOWN: dict[str, Metric] = {
    "efficacy_accuracy": Metric("efficacy, all so far"),
    LAST: Metric("efficacy, last batch"),
    "generalization_accuracy": METRICS["generalization_accuracy"],
    "kl": METRICS["kl"],
    "neighborhood_success": MORE["neighborhood_success"],
}
"""Columns with intervals, over the facts edited so far."""
PLAIN = {
    "perplexity": "perplexity ↓",
    "update_norm": "‖ΔW‖/‖W‖ ↓",
    "state_norm": "state norm",
    "condition_number": "condition number",
    "first_loss": "first loss",
    "last_loss": "last loss",
}
"""Columns without."""
DESCENTS = {COORDINATED: "coordinated_shift", RESTARTED: "restarted_anchor", JOINT: "joint_anchor"}
"""Descents that targets of a kind come from, if these are not anchors."""


class Course(NamedTuple):
    """A method with the model that its targets are made on.

    Attributes:
        method: Its name.
        targets: The model; empty of the unedited one.
        looks: Facts edited at each look.
        values: The run at these looks.
    """

    method: str
    targets: str
    looks: list[int]
    values: xr.Dataset

    @property
    def label(self) -> str:
        """Name in tables and figures."""
        return f"{self.method}, {self.targets} targets" if self.targets else self.method


def courses(dataset: xr.Dataset) -> Iterator[Course]:
    """Give every method with every model that its targets were made on, and the looks that were made."""
    for name in map(str, dataset["edit"].values):
        for targets in map(str, dataset["targets"].values):
            own = dataset.sel(edit=name, targets=targets)
            places = np.flatnonzero(own["measured"].values == MEASURED)
            if len(places):
                at = own.isel(look=places)
                yield Course(name, "" if name == UNEDITED else targets, [int(n) for n in at["look"].values], at)


def edited_courses(dataset: xr.Dataset) -> list[Course]:
    """List the methods of a run that edit, with the model that their targets are made on."""
    return [course for course in courses(dataset) if course.targets]


def batches(dataset: xr.Dataset) -> list[slice]:
    """Places of the facts of each batch."""
    count = dataset.sizes["fact"]
    size = config_of(dataset)["settings"]["edits_per_batch"] or count
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def last_batch(dataset: xr.Dataset, look: int) -> slice:
    """Places of the facts of the batch before a look."""
    return next((batch for batch in batches(dataset) if batch.stop == look), slice(0, 0))


def along_looks(dataset: xr.Dataset) -> pd.DataFrame:
    """A row for each method and look: means with intervals, damage, norms and losses."""
    heads, cells, plain = [], [], []
    for course in courses(dataset):
        for look in course.looks:
            at = course.values.sel(look=look)
            heads.append({"method": course.method, "targets": course.targets, "edited": look})
            cells.append([(_of(at, metric, last_batch(dataset, look)), kind) for metric, kind in SHOWN.items()])
            plain.append(_plain(dataset, course, at))
    frame = pd.DataFrame(heads)
    flat = means([cell for row in cells for cell in row], seed_of(dataset))
    for place, metric in enumerate(SHOWN):
        rows = flat.iloc[place :: len(SHOWN)].reset_index(drop=True)
        frame[metric], frame[f"{metric}_low"], frame[f"{metric}_high"] = rows["mean"], rows["low"], rows["high"]
        if metric == "efficacy_accuracy":
            frame.insert(3, "facts", rows["count"])
    return frame.join(pd.DataFrame(plain))


def _of(at: xr.Dataset, metric: str, batch: slice) -> xr.DataArray:
    """Values of a metric at a look, those of the last batch alone if that is asked."""
    return within(at["efficacy_accuracy"], batch) if metric == LAST else at[metric]


def within(values: xr.DataArray, batch: slice) -> xr.DataArray:
    """Values of a batch, and NaN at all other facts."""
    places = xr.DataArray(np.arange(values.sizes["fact"]), dims="fact")
    return values.where((places >= batch.start) & (places < batch.stop))


def _plain(dataset: xr.Dataset, course: Course, at: xr.Dataset) -> dict[str, float]:
    """Numbers of a look that are no means over facts; norms and conditions are the largest of the layers."""
    values = {
        "perplexity": float(at["perplexity"]),
        "update_norm": float(at["update_norm"].max()),
        "state_norm": float(at["state_norm"].isel(block=-1)),
        "condition_number": float(at["condition_number"].max()),
    }
    if course.method == UNEDITED:
        return values | {"first_loss": np.nan, "last_loss": np.nan}
    batch = last_batch(dataset, int(at["look"]))
    first, last = (losses(dataset, course, name)[batch] for name in ("first_loss", "loss"))
    return values | {"first_loss": _mean(first), "last_loss": _mean(last)}


def _mean(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else np.nan


def losses(dataset: xr.Dataset, course: Course, name: str) -> np.ndarray:
    """First or last loss of the descent that each fact's targets come from, ``[fact]``."""
    scheme, layers = SCHEMES[method(course.method).scheme], dataset["layer"].values.tolist()
    descent = DESCENTS.get(scheme.kind, "anchor")
    at: dict[str, Any] = {"anchor_layer": scheme.anchored(tuple(layers))[-1]} if descent == "anchor" else {}
    unedited = dataset[f"{descent}_{name}"].sel(at).values
    if course.targets != "current":
        return np.asarray(unedited)
    own = dataset.sel({**at, "edit": course.method})
    later = own[f"{CURRENT}{descent}_passes"].values > 0
    return np.where(later, own[f"{CURRENT}{descent}_{name}"].values, unedited)


def sequence(dataset: xr.Dataset) -> Table:
    """`along_looks` as texts."""
    frame = along_looks(dataset)
    rows: dict[str, list[str]] = {}
    for row in frame.to_dict("records"):
        parts = [row["method"], *([f"{row['targets']} targets"] if row["targets"] else []), f"{row['edited']} edited"]
        cells = [cell_text(_cell(row, metric), kind) for metric, kind in SHOWN.items()]
        rows[", ".join(parts)] = cells + [_number(row[name]) for name in PLAIN]
    texts = pd.DataFrame.from_dict(rows, orient="index", columns=[*labels(SHOWN), *PLAIN.values()])
    note = " ".join([*ended(dataset), facts_of(dataset, frame["facts"][frame["facts"] > 0])])
    return Table(texts.rename_axis("method"), note, frame)


def _cell(row: dict[Any, Any], metric: str) -> dict[str, Any]:
    return {"mean": row[metric], "low": row[f"{metric}_low"], "high": row[f"{metric}_high"]}


def _number(value: float) -> str:
    return f"{value:.1e}" if abs(value) >= 1e4 else number(value)


def ended(dataset: xr.Dataset) -> Iterator[str]:
    """Name the methods whose edits ended early, a sentence each."""
    for course in edited_courses(dataset):
        marks = dataset["measured"].sel(edit=course.method, targets=course.targets)
        early = np.flatnonzero(np.isin(marks.values, list(ENDS)))
        if len(early):
            facts, reason = int(marks["look"].values[early[0]]), ENDS[int(marks.values[early[0]])]
            yield f"{course.label}: ended before {facts} facts by {reason}."


def forgotten(dataset: xr.Dataset) -> pd.DataFrame:
    """A row for each method, batch and look from the batch's own on: the share of its facts that are answered."""
    heads, cells, every = [], [], batches(dataset)
    ends = {batch.stop: place for place, batch in enumerate(every)}
    for course in edited_courses(dataset):
        for place, batch in enumerate(every):
            for look in (look for look in course.looks if look >= batch.stop):
                heads.append((course.method, course.targets, place + 1, look, ends[look] - place))
                values = course.values["efficacy_accuracy"].sel(look=look)
                cells.append((within(values, batch), SHOWN["efficacy_accuracy"]))
    frame = pd.DataFrame(heads, columns=["method", "targets", "batch", "look", "age"])
    return frame.join(means(cells, seed_of(dataset)).rename(columns={"mean": "efficacy"}))


def forgetting(dataset: xr.Dataset) -> Table:
    """`forgotten` as a matrix: batches below one another, looks side by side."""
    long = forgotten(dataset)
    texts: dict[str, dict[str, str]] = {}
    for row in long.to_dict("records"):
        label = f"{row['method']}, {row['targets']} targets, batch {row['batch']}"
        texts.setdefault(label, {})[f"{row['look']} edited"] = cell_text(
            {"mean": row["efficacy"], "low": row["low"], "high": row["high"]}, SHOWN["efficacy_accuracy"]
        )
    frame = pd.DataFrame.from_dict(texts, orient="index").fillna("").rename_axis("batch")
    return Table(frame, facts_of(dataset, long["count"][long["count"] > 0]), long)


def no_edit(dataset: xr.Dataset) -> str:
    """Name the lack of a run that holds no edit."""
    return "" if any(course.targets for course in courses(dataset)) else "a look at an edited model"
