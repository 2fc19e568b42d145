"""From a run of edit_table to Tables 3, 4, 6 and 7: methods with intervals, the paper's rows beside ours, gains."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from jacobian_lab.report.captions import facts_of, meanings
from jacobian_lab.report.intervals import intervals
from jacobian_lab.report.paper import METRICS, Metric, paper_methods, rows_beside, source_line
from jacobian_lab.report.writing import Table, number, seed_of

UNEDITED, FORWARD, COORDINATED = "unedited", "+fe", "+cr"
FURTHER = "further: "
"""What the name of a column of further questions begins with: a group may be called like a variable."""

Step = tuple[str, str]
"""From one way of making a rule's targets to another: what the methods' names end with."""
STEPS: tuple[Step, ...] = (("", FORWARD), (FORWARD, COORDINATED))
"""What forward replay adds to a rule, and what coordinated replay adds to that."""
GAINS: tuple[Step, ...] = (*STEPS, ("", COORDINATED))
"""The same, and what coordinated replay adds to the rule alone."""

MORE: Mapping[str, Metric] = {
    "efficacy_greedy": Metric("efficacy, greedy"),
    "generalization_greedy": Metric("generalisation, greedy"),
    "neighborhood_success": Metric("neighbourhood success", flat=True),
}
"""What is measured beside the paper's columns."""

Cell = tuple[xr.DataArray, Metric]
"""The values of one method and metric, with a dimension ``fact``, and how they are averaged."""


def records(dataset: xr.Dataset) -> pd.DataFrame:
    """Every record's own means, which the tables' are made of."""
    names = [*METRICS, *MORE, *further(dataset), "nll_new", "nll_true"]
    means = xr.Dataset({name: column(dataset, name) for name in names}).map(
        lambda values: values.mean([dim for dim in values.dims if dim not in {"fact", "edit"}])
    )
    means["neighborhood_prompts"] = dataset["kl"].notnull().sum("neighbor")
    frame = means.to_dataframe(dim_order=["edit", "fact"]).reset_index().rename(columns={"edit": "method"})
    return frame[["method", "fact", *names, "neighborhood_prompts"]]


def further(dataset: xr.Dataset) -> dict[str, Metric]:
    """Columns beyond the paper's: what a layout asks besides, such as portability or multi-hop questions."""
    held = dataset["probe_accuracy"].notnull()
    asked = held.any([dim for dim in held.dims if dim != "probe"])
    names = [f"{FURTHER}{group}" for group in dataset["probe"].values[asked.values]]
    return {name: Metric(name) for name in names}


def column(dataset: xr.Dataset, metric: str) -> xr.DataArray:
    """The values of a metric, or of a group of further questions."""
    if not metric.startswith(FURTHER):
        return dataset[metric]
    return dataset["probe_accuracy"].sel(probe=metric.removeprefix(FURTHER), drop=True)


def summaries(dataset: xr.Dataset) -> pd.DataFrame:
    """Every metric of every method, with its interval."""
    kinds = {**METRICS, **MORE, **further(dataset)}
    keys = [(str(name), metric) for name in dataset["edit"].values for metric in kinds]
    cells = [(column(dataset, metric).sel(edit=name), kinds[metric]) for name, metric in keys]
    return pd.DataFrame(keys, columns=["method", "metric"]).join(means(cells, seed_of(dataset)))


def gains_of(dataset: xr.Dataset, steps: Sequence[Step] = GAINS) -> pd.DataFrame:
    """What a step adds to each rule: differences of the same facts, paired."""
    kinds = {**METRICS, **further(dataset)}
    keys = [
        (rule, rule + after, rule + before, metric)
        for before, after in steps
        for rule in both_ways(dataset, (before, after))
        for metric in kinds
    ]
    columns = {metric: column(dataset, metric) for metric in kinds}
    differences = [
        (columns[metric].sel(edit=method) - columns[metric].sel(edit=against), kinds[metric])
        for _, method, against, metric in keys
    ]
    frame = pd.DataFrame(keys, columns=["rule", "method", "against", "metric"])
    return frame.join(means(differences, seed_of(dataset)))


def means(cells: Sequence[Cell], seed: int) -> pd.DataFrame:
    """Means over prompts and facts, with their intervals over facts."""
    if not cells:
        return pd.DataFrame(columns=["mean", "low", "high", "count"])
    sums, weights = (np.stack(part) for part in zip(*(by_fact(*cell) for cell in cells), strict=True))
    return intervals(sums, weights, seed)


def by_fact(values: xr.DataArray, kind: Metric) -> tuple[np.ndarray, np.ndarray]:
    """For each fact what it adds to the mean, and with which weight."""
    prompts = values.values.reshape(values.sizes["fact"], -1) * kind.scale
    sums, counts = np.nansum(prompts, axis=1), np.isfinite(prompts).sum(axis=1).astype(float)
    if kind.flat:
        return sums, counts
    return sums / np.maximum(counts, 1), np.minimum(counts, 1)


def weights(dataset: xr.Dataset) -> pd.DataFrame:
    """What each method did to each weight."""
    names = [str(name) for name in dataset if dataset[name].dims == ("edit", "layer")]
    frame = dataset[names].to_dataframe(dim_order=["edit", "layer"]).reset_index().rename(columns={"edit": "method"})
    frame = frame[np.isfinite(frame["update_norm"])]
    return frame.loc[:, ["method", "layer", *names]].dropna(axis="columns", how="all")


def both_ways(dataset: xr.Dataset, step: Step) -> list[str]:
    """Rules that were measured on both sides of a step."""
    before, after = step
    edited = list(map(str, dataset["edit"].values))
    rules = [name.removesuffix(before) for name in edited if name.endswith(before)]
    return [rule for rule in rules if rule + after in edited]


def metrics_table(dataset: xr.Dataset, summed: pd.DataFrame) -> Table:
    """``metrics.csv``: the paper's columns, and those that a layout adds, of every method."""
    frame = _wide_means(summed).reindex(columns=[*METRICS, *further(dataset)])
    return Table(frame, numbers=frame.reset_index())


def _wide_means(summed: pd.DataFrame) -> pd.DataFrame:
    order = list(dict.fromkeys(summed["method"]))
    frame = summed.pivot(index="method", columns="metric", values="mean").reindex(order)
    return frame.rename_axis(columns=None)


def compared(
    dataset: xr.Dataset,
    summed: pd.DataFrame,
    *,
    model: str = "",
    table: str = "",
    ours: Sequence[str] = (),
    paper: pd.DataFrame | None = None,
) -> Table:
    """Methods beside each other, the best of each column in bold, the paper's row below ours."""
    style, kinds = dataset.attrs["config"]["settings"]["metrics"], {**METRICS, **further(dataset)}
    model = model or _known(dataset)
    printed = rows_beside(paper_methods(), style, model, table)
    beside = printed if paper is None else rows_beside(paper, style, model, table)
    order = held = [str(name) for name in dataset["edit"].values]
    if table:
        order = list(dict.fromkeys([UNEDITED, *printed.index, *beside.index[beside["table"] == table], *ours]))
    methods, shown = [name for name in order if name in held], beside[beside.index.isin(order)]
    cells = {(row["method"], row["metric"]): row for row in summed.to_dict("records")}
    rows: dict[str, list[str]] = {}
    for method in order:
        if method in held:
            rows[method] = [cell_text(cells[method, metric], kind) for metric, kind in kinds.items()]
        if method in shown.index:
            (source,) = shown.loc[[method]].to_dict("records")
            name = f"{method}, paper" + (f" ({source['model']})" if source["model"] else "")
            rows[name] = [_number(source.get(metric, np.nan), kind) for metric, kind in kinds.items()]
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=labels(kinds)).rename_axis("method")
    numbers = metrics_table(dataset, summed).frame.loc[methods]
    counts = [cells[method, metric]["count"] for method in methods for metric in kinds]
    told = source_line(shown) if paper is None else "The paper's rows: as the file that was given has them."
    note = " ".join(filter(None, (meanings(dataset), facts_of(dataset, counts, methods), told)))
    return Table(frame, note, numbers.reset_index(), _best(numbers, kinds, frame))


def _best(numbers: pd.DataFrame, kinds: Mapping[str, Metric], frame: pd.DataFrame) -> pd.DataFrame:
    """Which cells of a table are the best of our methods in their column."""
    ranked = numbers.drop(index=UNEDITED, errors="ignore") * [kind.best for kind in kinds.values()]
    best = (ranked == ranked.max()).set_axis(frame.columns, axis=1)
    return best.reindex(frame.index, fill_value=False)


def _known(dataset: xr.Dataset) -> str:
    """The model whose numbers stand beside a run's: its own, or, if the paper has not edited it, the paper's first."""
    known = list(dict.fromkeys(paper_methods()["model"]))
    own = dataset.attrs["config"]["provenance"].get("protocol")
    return str(own) if own in known else known[0]


def damage(dataset: xr.Dataset, summed: pd.DataFrame) -> Table:
    """What the paper's columns leave out: the older literature's measure, perplexity, decoding, the weights."""
    means = _wide_means(summed)
    rows = {}
    edited = dataset["neighbor_edited"]
    for name in dataset["edit"].values:
        chosen = dataset.sel(edit=name)
        told = [(chosen[f"{kind}_greedy"], chosen[f"{kind}_accuracy"]) for kind in ("efficacy", "generalization")]
        differ = sum(int((greedy.notnull() & (greedy != forced)).sum()) for greedy, forced in told)
        checked = sum(int(greedy.notnull().sum()) for greedy, _ in told)
        rows[str(name)] = {
            "neighbourhood success": _number(means.loc[name, "neighborhood_success"], MORE["neighborhood_success"]),
            "D_KL, prompts not edited": _number(float(chosen["kl"].where(edited == 0).mean()), METRICS["kl"]),
            "perplexity": f"{float(chosen['perplexity']):.2f}",
            "largest change of a weight": f"{_largest(chosen, 'update_norm', 'changed_norm'):.3f}",
            "of it not stored": f"{_largest(chosen, 'unstored', 'changed_unstored'):.1e}",
            "greedy decoding differs": f"{differ} of {checked}",
        }
        space = chosen["null_space_rank"].values
        if np.isfinite(space).any():
            left = chosen["trace_left_out"].values
            rows[str(name)]["null space"] = (
                f"rank {np.nanmin(space):.0f}–{np.nanmax(space):.0f}, leaves out {np.nanmin(left):.2f}–"
                f"{np.nanmax(left):.2f} of the trace"
            )
        if float(chosen["shrunk_values"].sum()):
            rows[str(name)]["shrunk singular values"] = f"{float(chosen['shrunk_values'].sum()):.0f}"
    frame = pd.DataFrame.from_dict(rows, orient="index").fillna("").rename_axis("method")
    counterfact = dataset.attrs["config"]["settings"]["metrics"] == "counterfact"
    success = "the prompt's own answer before the new one" if counterfact else "share of its own answer's tokens"
    shown = (dataset["neighborhood_success"], dataset["kl"].where(edited == 0))
    counts = np.concatenate([values.notnull().any("neighbor").sum("fact") for values in shown])
    note = (
        f"Neighbourhood success: {success}; neighbourhood prompts that are edited themselves "
        f"({int((edited == 1).sum())} of {int(edited.notnull().sum())}) are left out of the second column. "
        f"{facts_of(dataset, counts)}"
    )
    return Table(frame, note, frame.reset_index())


def _largest(chosen: xr.Dataset, *names: str) -> float:
    """The largest value of some variables, one of them by layer, one by block; 0 where no weight was changed."""
    values = np.concatenate([np.ravel(chosen[name].values) for name in names])
    return float(np.nanmax(values, initial=0.0, where=np.isfinite(values)))


def gains(dataset: xr.Dataset) -> Table:
    """`gains_of`, as one reads it."""
    gained, kinds = gains_of(dataset), {**METRICS, **further(dataset)}
    rows: dict[str, list[str]] = {}
    for row in gained.to_dict("records"):
        rows.setdefault(f"{row['method']} − {row['against']}", []).append(cell_text(row, kinds[row["metric"]], "+"))
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=labels(kinds)).rename_axis("difference")
    return Table(frame, f"{meanings(dataset)} {facts_of(dataset, gained['count'], gained['method'])}", gained)


def cell_text(row: Mapping[Any, Any], kind: Metric, sign: str = "") -> str:
    """A mean with its interval, as one reads it."""
    interval = (
        "" if np.isnan(row["low"]) else f" [{_number(row['low'], kind, sign)}, {_number(row['high'], kind, sign)}]"
    )
    return _number(row["mean"], kind, sign) + interval


def _number(value: float, kind: Metric, sign: str = "") -> str:
    return number(value, 1 if kind.scale > 1 else 3, sign)


def labels(metrics: Mapping[str, Metric]) -> list[str]:
    """What columns are called, with an arrow to the better side."""
    return [f"{kind.label} {'↑' if kind.best > 0 else '↓'}" for kind in metrics.values()]
