"""Tables of a search over layers, λ, learning rate and passes."""

import numpy as np
import pandas as pd
import xarray as xr

from jacobian_lab.report.captions import facts_of
from jacobian_lab.report.writing import Table, number
from jacobian_lab.store.run import config_of
from jacobian_lab.tries import COLUMNS, LABELS, choices, evaluated_tries, gain_of, observed_windows, reasons, search_of

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
    criterion, _, variants = search_of(config_of(dataset)["settings"])
    base = str(dataset["variant"].values[0])
    observed, evaluated = observed_windows(dataset), evaluated_tries(dataset)
    chosen_labels = list(choices(evaluated, criterion).values())
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
    criterion, *_ = search_of(config_of(dataset)["settings"])
    evaluated = evaluated_tries(dataset)
    frame = numbers.drop(columns=["chosen", "method"]).map(_text)
    for name, decimals in DECIMALS.items():
        frame[name] = [number(value, decimals) for value in numbers[name]]
    frame = frame.set_axis(numbers["method"], axis=0).rename(columns=HEADINGS)
    bold = pd.DataFrame(np.repeat(numbers[["chosen"]].to_numpy(), frame.shape[1], axis=1), frame.index, frame.columns)
    rule = f"Chosen (bold): {criterion.words(LABELS[gain_of(evaluated)])}."
    counts = [dataset.sizes["fact"]]
    return Table(frame, " ".join([rule, *why(dataset), facts_of(dataset, counts)]), numbers, bold & (frame != ""))


def why(dataset: xr.Dataset) -> list[str]:
    """Say of each method what was chosen for it, and why."""
    criterion, *_ = search_of(config_of(dataset)["settings"])
    observed, evaluated = observed_windows(dataset), evaluated_tries(dataset)
    names = choices(evaluated, criterion)
    return [f"{name}: {reasons(observed, evaluated, name, criterion)}" for name in names]


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return str(value)
    return f"{value:.3g}" if isinstance(value, float) and not np.isnan(value) else ""
