"""Tables of a search over layers, λ, learning rate and passes."""

import numpy as np
import pandas as pd
import xarray as xr

from jacobian_lab.report.captions import facts_of
from jacobian_lab.report.writing import Table, number
from jacobian_lab.store.run import config_of
from jacobian_lab.tries import COLUMNS, Outcome

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


def tune(dataset: xr.Dataset) -> Table:
    """Every try as texts, the choice of each method in bold, and why it was chosen."""
    outcome = _outcome(dataset)
    numbers = _numbers(dataset, outcome)
    frame = numbers.drop(columns="chosen").map(_text)
    for name, decimals in DECIMALS.items():
        frame[name] = [number(value, decimals) for value in numbers[name]]
    frame = frame.rename(columns=HEADINGS).set_axis(pd.RangeIndex(1, len(frame) + 1, name="try"))
    bold = pd.DataFrame(np.repeat(numbers[["chosen"]].to_numpy(), frame.shape[1], axis=1), frame.index, frame.columns)
    caption = [f"Chosen (bold): {outcome.rule}.", *_why(outcome), facts_of(dataset, [dataset.sizes["fact"]])]
    return Table(frame, " ".join(caption), numbers, bold & (frame != ""))


def why(dataset: xr.Dataset) -> list[str]:
    """Say of each method what was chosen for it, and why."""
    return _why(_outcome(dataset))


def _outcome(dataset: xr.Dataset) -> Outcome:
    return Outcome.of(dataset, config_of(dataset)["settings"])


def _why(outcome: Outcome) -> list[str]:
    return [f"{name}: {outcome.because(name)}" for name in outcome.choices]


def _numbers(dataset: xr.Dataset, outcome: Outcome) -> pd.DataFrame:
    """Every try with the columns of ``tune.csv``, methods in their order."""
    variants, base = config_of(dataset)["settings"]["tune"]["variants"], str(dataset["variant"].values[0])
    evaluated = outcome.tries.assign(chosen=outcome.tries.index.isin(list(outcome.choices.values())))
    frame = pd.concat([outcome.observed.assign(variant=base, chosen=False), evaluated], ignore_index=True)
    frame["lr"], frame["steps"] = zip(*(variants[variant] for variant in frame["variant"]), strict=True)
    frame["layers"] = frame["window"]
    places = {str(name): place for place, name in enumerate(dataset["edit"].values)}
    order = frame["method"].map(places).sort_values(kind="stable").index
    return frame.loc[order, list(COLUMNS)].reset_index(drop=True)


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return str(value)
    return f"{value:.3g}" if isinstance(value, float) and not np.isnan(value) else ""
