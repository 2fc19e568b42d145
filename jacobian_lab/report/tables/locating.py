"""Causal traces by role of the token, layer and site, and the layers that they point to."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from jacobian_lab.catalogue import ROLES, SUBJECT_END
from jacobian_lab.errors import InputError
from jacobian_lab.progress import counted
from jacobian_lab.report.captions import facts_line, model_name
from jacobian_lab.report.intervals import summaries_of, summarise
from jacobian_lab.report.writing import Table, number, seed_of, with_interval
from jacobian_lab.store.run import config_of

WINDOWED = ("mlp", "attention")
"""Sites that are restored in windows. A hidden state of the prompt's last token brings everything back in the end."""

DIGITS = 4
"""Digits of an effect."""


def effects(dataset: xr.Dataset) -> xr.DataArray:
    """Effects by role: of each fact the mean over its tokens of a role, ``[fact, role, layer, site]``."""
    by_role = [dataset["effect"].where(dataset["role"] == place).mean("token") for place in range(1, 1 + len(ROLES))]
    return xr.concat(by_role, pd.Index(ROLES, name="role")).transpose("fact", "role", "layer", "site")


def total_effect(dataset: xr.Dataset) -> xr.DataArray:
    """Total effect of each traced fact: clean less corrupted probability."""
    total = dataset["answer_clean"] - dataset["answer_corrupted"]
    return total.where(dataset["effect"].notnull().any(["token", "layer", "site"]))


def long_table(dataset: xr.Dataset) -> pd.DataFrame:
    """Means over facts with their intervals, one row for each role, layer and site that has any."""
    stacked = effects(dataset).stack(cell=["site", "role", "layer"])
    heads = pd.DataFrame(stacked["cell"].values.tolist(), columns=["site", "role", "layer"])
    means = summaries_of(stacked.transpose("cell", "fact").values, seed_of(dataset)).rename(columns={"mean": "effect"})
    frame = heads.join(means)
    return frame[frame["count"] > 0].reset_index(drop=True)


def as_table(dataset: xr.Dataset) -> Table:
    """The peak of every site and role; as numbers, every cell."""
    long, total = long_table(dataset), float(total_effect(dataset).mean())
    peaks = long.loc[long.groupby(["site", "role"], sort=False)["effect"].idxmax()]
    rows = {
        "role": peaks["role"],
        "peak layer": peaks["layer"].astype(str),
        "effect": [_interval(row) for row in peaks.to_dict("records")],
        "share of the total effect": [number(effect / total) for effect in peaks["effect"]],
    }
    frame = pd.DataFrame(rows).set_index(peaks["site"])
    numbers = long[["role", "layer", "site", "effect", "low", "high"]]
    return Table(frame, f"{facts_line(dataset, long['count'])} {_means(dataset)}", numbers)


def summary(dataset: xr.Dataset) -> Iterator[str]:
    """Sum up a run of traces in sentences."""
    traced, total = total_effect(dataset), summarise(total_effect(dataset).values, seed_of(dataset))
    yield f"{counted(int(traced.notnull().sum()), 'fact')} traced in {model_name(dataset)}. {_means(dataset)}"
    long = long_table(dataset)
    for site, rows in long.groupby("site", sort=False):
        own = rows[rows["role"] == SUBJECT_END] if site not in WINDOWED else rows
        peak = own.iloc[int(own["effect"].to_numpy().argmax())]
        later = _handover(rows, str(site))
        yield (
            f"{site}: most comes back at the {_spoken(peak['role'])} token, at layer {peak['layer']}: "
            f"{_interval(peak.to_dict())} of a total effect of {number(total['mean'], DIGITS)}{later}."
        )
    yield from filter(None, [pointed_out(dataset)])


def pointed_out(dataset: xr.Dataset) -> str:
    """Name the layers that tracing points to; empty where no MLP was traced."""
    if "mlp" not in dataset["site"].values:
        return ""
    (layer, effect), *_ = ranked_layers(dataset)
    width = min(5, dataset.sizes["layer"])
    window = decisive_window(dataset, width)
    return (
        f"The MLP's effect at the last subject token is largest at layer {layer} ({number(effect, DIGITS)}); of "
        f"{width} traced layers in a row, {window[0]} to {window[-1]} have the most."
    )


def ranked_layers(dataset: xr.Dataset) -> list[tuple[int, float]]:
    """Layers by the mean effect of their MLP at the last subject token, the largest first."""
    if "mlp" not in dataset["site"].values:
        raise InputError("expected a run of jacobian-lab locate with the site mlp, got one without: trace it too")
    mean = effects(dataset).sel(role=SUBJECT_END, site="mlp").mean("fact")
    if not np.isfinite(mean).all():
        raise InputError("expected a run of jacobian-lab locate with a traced fact, got none: finish it first")
    order = np.argsort(-mean.values, kind="stable")
    return [(int(mean["layer"].values[place]), float(mean.values[place])) for place in order]


def decisive_window(dataset: xr.Dataset, width: int) -> tuple[int, ...]:
    """Traced layers in a row with the largest sum of the MLP's effects at the last subject token; first of equals."""
    by_layer = dict(sorted(ranked_layers(dataset)))
    layers = list(by_layer)
    if not 0 < width <= len(layers):
        raise InputError(f"expected a width from 1 to {len(layers)}, got {width}: choose another")
    sums = np.convolve(list(by_layer.values()), np.ones(width), mode="valid")
    first = int(sums.argmax())
    return tuple(layers[first : first + width])


def _handover(rows: pd.DataFrame, site: str) -> str:
    """Layer from which on a state of the prompt's last token brings more back than one of the subject's."""
    if site in WINDOWED:
        return ""
    by_role = rows.pivot_table(index="layer", columns="role", values="effect")
    if not {"last", SUBJECT_END} <= set(by_role):
        return ""
    before = np.flatnonzero(by_role["last"] <= by_role[SUBJECT_END])
    above = by_role.index[1 + before[-1] :] if len(before) else by_role.index
    return f"; from layer {above[0]} on more at the prompt's last token" if len(above) else ""


def _interval(row: dict[Any, Any]) -> str:
    return with_interval(row, DIGITS, mean="effect")


def _spoken(role: str) -> str:
    return "prompt's last" if role == "last" else role


def _means(dataset: xr.Dataset) -> str:
    """Probabilities with and without noise, and the settings of the traces."""
    settings, deviation = config_of(dataset)["settings"], config_of(dataset)["provenance"]["deviation"]
    done = dataset["traced"] == 1
    clean, corrupted = (float(dataset[name].where(done).mean()) for name in ("answer_clean", "answer_corrupted"))
    recalled = f"{int((dataset['recalled'] == 1).sum())} of {int(done.sum())}"
    return (
        f"The answer's first token has a probability of {number(clean, DIGITS)}, with the subject corrupted of "
        f"{number(corrupted, DIGITS)}; it is the likeliest of {recalled} facts. Noise: {settings['noise']:g} × "
        f"{deviation:.3g}, {settings['samples']} draws; windows of {settings['window']} layers."
    )
