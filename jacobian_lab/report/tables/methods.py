"""Tables 3, 4, 6 and 7: methods with intervals, the paper's rows beside ours, and gains."""

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from jacobian_lab.catalogue import CR, FE, UNEDITED
from jacobian_lab.report.captions import facts_of, meanings
from jacobian_lab.report.intervals import intervals
from jacobian_lab.report.paper import METRICS, Metric, paper_methods, rows_beside, source_line
from jacobian_lab.report.writing import Table, number, seed_of
from jacobian_lab.store.run import config_of

FURTHER = "further: "
"""Prefix of a column of further questions: a group may be called like a variable."""

Step = tuple[str, str]
"""Suffixes of a rule's name: of the methods before and after a change of its targets."""
STEPS: tuple[Step, ...] = (("", FE), (FE, CR))
"""From a rule to forward replay, and from that to coordinated replay."""
GAINS: tuple[Step, ...] = (*STEPS, ("", CR))
"""The same, and from a rule to coordinated replay."""

MORE: Mapping[str, Metric] = {
    "efficacy_greedy": Metric("efficacy, greedy"),
    "generalization_greedy": Metric("generalisation, greedy"),
    "neighborhood_success": Metric("neighbourhood success", flat=True),
}
"""Metrics beside the paper's columns."""

Cell = tuple[xr.DataArray, Metric]
"""The values of one method and metric, with a dimension ``fact``, and how they are averaged."""


def records(dataset: xr.Dataset) -> pd.DataFrame:
    """Means of every method and fact, which the tables average."""
    names = [*METRICS, *MORE, *further(dataset), "nll_new", "nll_true"]
    means = xr.Dataset({name: column(dataset, name) for name in names}).map(
        lambda values: values.mean([dim for dim in values.dims if dim not in {"fact", "edit"}])
    )
    means["neighborhood_prompts"] = dataset["kl"].notnull().sum("neighbor")
    frame = means.to_dataframe(dim_order=["edit", "fact"]).reset_index().rename(columns={"edit": "method"})
    return frame[["method", "fact", *names, "neighborhood_prompts"]]


def further(dataset: xr.Dataset) -> dict[str, Metric]:
    """Columns of a layout's further questions, such as portability or multi-hop."""
    held = dataset["probe_accuracy"].notnull()
    answered = held.any([dim for dim in held.dims if dim != "probe"])
    names = [f"{FURTHER}{group}" for group in dataset["probe"].values[answered.values]]
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
    """Paired differences that a step makes for each rule, over the same facts."""
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


def no_pair(dataset: xr.Dataset, steps: Sequence[Step] = GAINS) -> str:
    """Name the lack of a run that has no rule on both sides of any step."""
    names = " or ".join(f"a method{before.upper()} and the same with {after[1:].upper()}" for before, after in steps)
    return "" if any(both_ways(dataset, step) for step in steps) else names


def means(cells: Sequence[Cell], seed: int) -> pd.DataFrame:
    """Means over prompts and facts, with their intervals over facts."""
    if not cells:
        return pd.DataFrame(columns=["mean", "low", "high", "count"])
    sums, weights = (np.stack(part) for part in zip(*(by_fact(*cell) for cell in cells), strict=True))
    return intervals(sums, weights, seed)


def by_fact(values: xr.DataArray, kind: Metric) -> tuple[np.ndarray, np.ndarray]:
    """Sum and weight that each fact adds to the mean."""
    prompts = values.values.reshape(values.sizes["fact"], -1) * kind.scale
    sums, counts = np.nansum(prompts, axis=1), np.isfinite(prompts).sum(axis=1).astype(float)
    if kind.flat:
        return sums, counts
    return sums / np.maximum(counts, 1), np.minimum(counts, 1)


def weights(dataset: xr.Dataset) -> pd.DataFrame:
    """Change of each weight by each method."""
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
    own_methods: Sequence[str] = (),
    paper: pd.DataFrame | None = None,
) -> Table:
    """Compare methods, the best of each column in bold, the paper's row below ours."""
    style, kinds = config_of(dataset)["settings"]["metrics"], {**METRICS, **further(dataset)}
    model = model or _paper_model(dataset)
    printed = rows_beside(paper_methods(), style, model, table)
    beside = printed if paper is None else rows_beside(paper, style, model, table)
    order = measured = [str(name) for name in dataset["edit"].values]
    if table:
        order = list(dict.fromkeys([UNEDITED, *printed.index, *beside.index[beside["table"] == table], *own_methods]))
    methods, references = [name for name in order if name in measured], beside[beside.index.isin(order)]
    texts, rows = texts_by_row(summed, kinds, itemgetter("method")), {}
    for method in order:
        if method in measured:
            rows[method] = texts[method]
        if method in references.index:
            (source,) = references.loc[[method]].to_dict("records")
            name = f"{method}, paper" + (f" ({source['model']})" if source["model"] else "")
            rows[name] = [_number(source.get(metric, np.nan), kind) for metric, kind in kinds.items()]
    frame = text_table(rows, kinds)
    numbers = summed[summed["method"].isin(methods)].sort_values(
        "method", key=lambda c: c.map(methods.index), kind="stable"
    )
    counts = numbers["count"][numbers["metric"].isin(list(kinds))]
    source_text = source_line(references) if paper is None else "The paper's rows: as the file that was given has them."
    note = " ".join(filter(None, (meanings(dataset), facts_of(dataset, counts, methods), source_text)))
    best = _best(metrics_table(dataset, summed).frame.loc[methods], kinds, frame)
    return Table(frame, note, numbers.reset_index(drop=True), best)


def _best(numbers: pd.DataFrame, kinds: Mapping[str, Metric], frame: pd.DataFrame) -> pd.DataFrame:
    """Mask of the cells that are the best of our methods in their column."""
    ranked = numbers.drop(index=UNEDITED, errors="ignore") * [kind.best for kind in kinds.values()]
    best = (ranked == ranked.max()).set_axis(frame.columns, axis=1)
    return best.reindex(frame.index, fill_value=False)


def _paper_model(dataset: xr.Dataset) -> str:
    """Model whose numbers stand beside a run's: its own, or, if the paper has not edited it, the paper's first."""
    models = list(dict.fromkeys(paper_methods()["model"]))
    own = config_of(dataset)["provenance"].get("protocol")
    return str(own) if own in models else models[0]


def damage(dataset: xr.Dataset, summed: pd.DataFrame) -> Table:
    """Measures beyond the paper's columns: the older literature's, perplexity, decoding, the weights."""
    means = _wide_means(summed)
    rows = {}
    edited = dataset["neighbor_edited"]
    for name in dataset["edit"].values:
        edit = dataset.sel(edit=name)
        pairs = [(edit[f"{kind}_greedy"], edit[f"{kind}_accuracy"]) for kind in ("efficacy", "generalization")]
        differ = sum(int((greedy.notnull() & (greedy != forced)).sum()) for greedy, forced in pairs)
        checked = sum(int(greedy.notnull().sum()) for greedy, _ in pairs)
        rows[str(name)] = {
            "neighbourhood success": _number(means.loc[name, "neighborhood_success"], MORE["neighborhood_success"]),
            "D_KL, prompts not edited": _number(float(edit["kl"].where(edited == 0).mean()), METRICS["kl"]),
            "perplexity": f"{float(edit['perplexity']):.2f}",
            "largest change of a weight": f"{_largest(edit, 'update_norm', 'changed_norm'):.3f}",
            "of it not stored": f"{_largest(edit, 'unstored', 'changed_unstored'):.1e}",
            "greedy decoding differs": f"{differ} of {checked}",
        }
        space = edit["null_space_rank"].values
        if np.isfinite(space).any():
            left = edit["trace_left_out"].values
            rows[str(name)]["null space"] = (
                f"rank {np.nanmin(space):.0f}–{np.nanmax(space):.0f}, leaves out {np.nanmin(left):.2f}–"
                f"{np.nanmax(left):.2f} of the trace"
            )
        if float(edit["shrunk_values"].sum()):
            rows[str(name)]["shrunk singular values"] = f"{float(edit['shrunk_values'].sum()):.0f}"
    frame = pd.DataFrame.from_dict(rows, orient="index").fillna("").rename_axis("method")
    counterfact = config_of(dataset)["settings"]["metrics"] == "counterfact"
    success = "the prompt's own answer before the new one" if counterfact else "share of its own answer's tokens"
    columns = (dataset["neighborhood_success"], dataset["kl"].where(edited == 0))
    counts = np.concatenate([values.notnull().any("neighbor").sum("fact") for values in columns])
    note = (
        f"Neighbourhood success: {success}; neighbourhood prompts that are edited themselves "
        f"({int((edited == 1).sum())} of {int(edited.notnull().sum())}) are left out of the second column. "
        f"{facts_of(dataset, counts)}"
    )
    return Table(frame, note, frame.reset_index())


def _largest(edit: xr.Dataset, *names: str) -> float:
    """The largest value of some variables, one of them by layer, one by block; 0 where no weight was changed."""
    values = np.concatenate([np.ravel(edit[name].values) for name in names])
    return float(np.nanmax(values, initial=0.0, where=np.isfinite(values)))


def gains(dataset: xr.Dataset) -> Table:
    """`gains_of` as texts."""
    gained, kinds = gains_of(dataset), {**METRICS, **further(dataset)}
    texts = texts_by_row(gained, kinds, difference, "+")
    note = f"{meanings(dataset)} {facts_of(dataset, gained['count'], gained['method'])}"
    return Table(text_table(texts, kinds, "difference"), note, gained)


def difference(row: Mapping[Any, Any]) -> str:
    """Label of a row of `gains_of`."""
    return f"{row['method']} − {row['against']}"


def texts_by_row(
    long: pd.DataFrame, kinds: Mapping[str, Metric], label: Callable[[Mapping[Any, Any]], str], sign: str = ""
) -> dict[str, list[str]]:
    """Cells of a table, of one that has a row for each of them."""
    texts: dict[str, list[str]] = {}
    for row in long[long["metric"].isin(list(kinds))].to_dict("records"):
        texts.setdefault(label(row), []).append(cell_text(row, kinds[row["metric"]], sign))
    return texts


def text_table(texts: dict[str, list[str]], kinds: Mapping[str, Metric], name: str = "method") -> pd.DataFrame:
    """Table of texts with a column for each metric."""
    return pd.DataFrame.from_dict(texts, orient="index", columns=labels(kinds)).rename_axis(name)


def cell_text(row: Mapping[Any, Any], kind: Metric, sign: str = "") -> str:
    """Text of a mean with its interval."""
    interval = (
        "" if np.isnan(row["low"]) else f" [{_number(row['low'], kind, sign)}, {_number(row['high'], kind, sign)}]"
    )
    return _number(row["mean"], kind, sign) + interval


def _number(value: float, kind: Metric, sign: str = "") -> str:
    return number(value, 1 if kind.scale > 1 else 3, sign)


def labels(metrics: Mapping[str, Metric]) -> list[str]:
    """Labels of columns, with an arrow to the better side."""
    return [f"{kind.label} {' ↑↓'[kind.best]}".strip() for kind in metrics.values()]
