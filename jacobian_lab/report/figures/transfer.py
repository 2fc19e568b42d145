"""Figure of a run of transfer."""

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import FigureBase

from jacobian_lab.report.figures.axes import error_bars, mean_curve
from jacobian_lab.report.figures.style import STYLES
from jacobian_lab.report.tables.transfer import ANSWERED, SPOKEN, by_group, imposed_and_edited

LOOKS = {
    "seen": {"color": "0.6", "marker": "s"},
    "held out": {"color": "#1b84cc", "marker": "o"},
    "paraphrase": {"color": "#0d1b3e", "marker": "v"},
    "neighborhood": {"color": "#b3161f", "marker": "x"},
}


def transfer(figure: FigureBase, dataset: xr.Dataset) -> None:
    """Shares by layer; then accuracy against the share imposed, beside it at "edit" that after the edit."""
    long = imposed_and_edited(dataset)
    long = long[(long["metric"] == "accuracy") & (long["count"] > 0)]
    groups = groups_of(dataset)
    first, *others = np.atleast_1d(figure.subplots(1, 1 + len(groups)))
    for group, prompts in by_group(dataset):
        mean_curve(first, dataset, prompts["transferred"].mean("prompt"), label=SPOKEN[group], **LOOKS[group])
    first.axhline(1.0, color="0.3", linewidth=0.5, linestyle=":")
    first.set(ylabel="share of the shift that arrives")
    first.legend(fontsize="xx-small")
    for ax, group in zip(others, groups, strict=True):
        _against_shares(ax, long[long["group"] == group])
        ax.set(ylabel=f"accuracy, {SPOKEN[group]}", ylim=(0, 105))
    if others:
        handles = others[0].get_legend_handles_labels()
        figure.legend(*handles, fontsize="x-small", loc="outside upper center", ncols=3)


def groups_of(dataset: xr.Dataset) -> list[str]:
    """List the groups of prompts with a panel: all whose answers were scored but the contexts seen."""
    return [g for g, own in by_group(dataset) if g in ANSWERED[1:] and np.isfinite(own["imposed_accuracy"]).any()]


def _against_shares(ax: Axes, rows: pd.DataFrame) -> None:
    """One curve a scheme over the shares, and a mark for what its edit came to."""
    shares = sorted(rows["share"].dropna().unique())
    gap = (shares[-1] - shares[0]) / 6 if len(shares) > 1 else 0.1
    schemes = list(dict.fromkeys(rows["scheme"]))
    for place, scheme in enumerate(schemes):
        own, look = rows[rows["scheme"] == scheme], STYLES[scheme]
        imposed = own.dropna(subset="share").sort_values("share")
        error_bars(ax, imposed["share"], *(imposed[n] for n in ("mean", "low", "high")), label=scheme, **look)
        edited = own[own["share"].isna()]
        at = [shares[-1] + gap * (1 + (place - (len(schemes) - 1) / 2) / 4)] * len(edited)
        hollow = {**look, "linestyle": "", "markerfacecolor": "white"}
        error_bars(ax, at, *(edited[n] for n in ("mean", "low", "high")), **hollow)
    ax.set_xticks([*shares, shares[-1] + gap], [*(f"{share:g}" for share in shares), "edit"])
    ax.set(xlabel="share of the shift, imposed")
