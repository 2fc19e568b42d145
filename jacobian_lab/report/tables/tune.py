"""Tables of a search over layers, λ, learning rate and passes."""

import numpy as np
import pandas as pd
import xarray as xr

from jacobian_lab.report.captions import facts_of
from jacobian_lab.report.writing import Table, number
from jacobian_lab.store.run import config_of
from jacobian_lab.tries import (
    COLUMNS,
    LABELS,
    choices,
    criterion_of,
    evaluated_tries,
    gain_of,
    observed_windows,
    reasons,
)

HEADINGS = {
    "residual_ratio": "residual left",
    "generalization": "generalisation",
    "kl": "D_KL",
    "top10": "Top-10",
    "steps": "passes allowed",
    "lr": "lr",
    "ridge": "λ",
}
DECIMALS = {"reached": 1, "passes": 1, "efficacy": 1, "generalization": 1, "top10": 1, "kl": 3, "seconds": 1}


def tries(dataset: xr.Dataset) -> pd.DataFrame:
    """Every try of a search with the columns of ``tune.csv``, methods in their order."""
    settings, base = config_of(dataset)["settings"], str(dataset["variant"].values[0])
    observed, evaluated = observed_windows(dataset), evaluated_tries(dataset)
    variants = settings["tune"]["variants"]
    chosen_labels = list(choices(evaluated, criterion_of(settings, evaluated)).values())
    evaluated = evaluated.assign(chosen=evaluated.index.isin(chosen_labels))
    frame = pd.concat([observed.assign(variant=base, chosen=False), evaluated], ignore_index=True)
    frame["lr"], frame["steps"] = zip(*(variants[variant] for variant in frame["variant"]), strict=True)
    frame["layers"] = frame["window"]
    places = {str(name): place for place, name in enumerate(dataset["edit"].values)}
    order = frame["method"].map(places).sort_values(kind="stable").index
    return frame.loc[order, list(COLUMNS)].reset_index(drop=True)


def tune(dataset: xr.Dataset) -> Table:
    """Every try as texts, the choice of each method in bold, and why it was chosen."""
    numbers = tries(dataset)
    evaluated = evaluated_tries(dataset)
    criterion = criterion_of(config_of(dataset)["settings"], evaluated)
    frame = numbers.drop(columns="chosen").map(_text)
    for name, decimals in DECIMALS.items():
        frame[name] = [number(value, decimals) for value in numbers[name]]
    frame = frame.rename(columns=HEADINGS).set_axis(pd.RangeIndex(1, len(frame) + 1, name="try"))
    bold = pd.DataFrame(np.repeat(numbers[["chosen"]].to_numpy(), frame.shape[1], axis=1), frame.index, frame.columns)
    rule = f"Chosen (bold): {criterion.words(LABELS[gain_of(evaluated)])}."
    counts = [dataset.sizes["fact"]]
    return Table(frame, " ".join([rule, *why(dataset), facts_of(dataset, counts)]), numbers, bold & (frame != ""))


def why(dataset: xr.Dataset) -> list[str]:
    """Say of each method what was chosen for it, and why."""
    observed, evaluated = observed_windows(dataset), evaluated_tries(dataset)
    criterion = criterion_of(config_of(dataset)["settings"], evaluated)
    names = choices(evaluated, criterion)
    return [f"{name}: {reasons(observed, evaluated, name, criterion)}" for name in names]


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return str(value)
    return f"{value:.3g}" if isinstance(value, float) and not np.isnan(value) else ""
