"""Tables of a run of transfer: accuracy and loss while shifts are imposed, beside those after the edit."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
import xarray as xr

from jacobian_lab.catalogue import PROMPT_GROUPS
from jacobian_lab.report.captions import facts_line
from jacobian_lab.report.intervals import summaries_of
from jacobian_lab.report.writing import Table, seed_of, with_interval

SPOKEN = {
    "seen": "contexts seen",
    "held out": "contexts held out",
    "paraphrase": "paraphrases",
    "neighborhood": "neighbourhood prompts, at the token that gets most",
}
"""Groups of prompts, as tables call them."""
ANSWERED = PROMPT_GROUPS[:3]
"""Groups whose prompts the new answer belongs to."""
SCALES = {"accuracy": 100.0, "nll": 1.0}
"""Metrics of imposed shifts, and their factors in tables."""
AFTER = "after the edit"


def by_group(dataset: xr.Dataset) -> Iterator[tuple[str, xr.Dataset]]:
    """Give the groups of prompts that a run has, and the run at their prompts."""
    groups = np.array([str(label).rpartition(" ")[0] for label in dataset["prompt"].values])
    for group in PROMPT_GROUPS:
        if (groups == group).any():
            yield group, dataset.isel(prompt=np.flatnonzero(groups == group))


def imposed_and_edited(dataset: xr.Dataset) -> pd.DataFrame:
    """Tabulate accuracy and loss by scheme and group of prompts, at every share and after the edit (share NaN)."""
    heads, cells = [], []
    for scheme in dataset["scheme"].values:
        for group, prompts in by_group(dataset.sel(scheme=scheme)):
            for metric, scale in SCALES.items() if group in ANSWERED else ():
                for share in [*dataset["share"].values, np.nan]:
                    edited = np.isnan(share)
                    values = prompts[f"edited_{metric}"] if edited else prompts[f"imposed_{metric}"].sel(share=share)
                    heads.append((str(scheme), group, metric, float(share)))
                    cells.append(scale * values.mean("prompt").values)
    frame = pd.DataFrame(heads, columns=["scheme", "group", "metric", "share"])
    by_fact = np.array(cells, dtype=float).reshape(len(cells), dataset.sizes["fact"])
    return frame.join(summaries_of(by_fact, seed_of(dataset)).drop(columns="median"))


def imposed(dataset: xr.Dataset) -> Table:
    """`imposed_and_edited` as texts, shares side by side."""
    long = imposed_and_edited(dataset)
    texts: dict[str, dict[str, str]] = {}
    for row in long.to_dict("records"):
        decimals = 1 if row["metric"] == "accuracy" else 3
        label = f"{row['scheme']}, {SPOKEN[row['group']]}: {'accuracy' if row['metric'] == 'accuracy' else 'loss'}"
        column = AFTER if np.isnan(row["share"]) else f"{row['share']:g} of the shift"
        texts.setdefault(label, {})[column] = with_interval(row, decimals)
    frame = pd.DataFrame.from_dict(texts, orient="index").rename_axis("shifts of")
    counts = long["count"][long["count"] > 0]
    return Table(frame, facts_line(dataset, counts, ", mean [95 % bootstrap interval over facts]"), long)
