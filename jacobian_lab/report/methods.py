"""From a run of edit-table to Tables 3, 4, 6 and 7: methods with intervals, the paper's rows beside ours, FE's gain."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from jacobian_lab.report.captions import model_name, seed_of, unmet_anchors
from jacobian_lab.report.intervals import intervals
from jacobian_lab.report.paper import METRICS, MORE, PAPER, PAPER_MODEL, TABLES, Metric, read_paper
from jacobian_lab.report.writing import facts_in_cells, write_csv, write_table
from jacobian_lab.store.run import open_run

UNEDITED, FORWARD = "unedited", "+fe"


def records(dataset: xr.Dataset) -> pd.DataFrame:
    """Every record's own means, which the tables' are made of.

    Args:
        dataset: An open run.

    Returns:
        One row for each method and fact: shares and nats as stored, a record's prompts averaged, and the number of its
        ``neighborhood_prompts``, by which flat means weigh it.
    """
    names = [*METRICS, *MORE, *further(dataset), "nll_new", "nll_true"]
    means = xr.Dataset({name: _column(dataset, name) for name in names}).map(
        lambda values: values.mean([dim for dim in values.dims if dim not in {"fact", "edit"}])
    )
    means["neighborhood_prompts"] = dataset["kl"].notnull().sum("neighbor")
    frame = means.to_dataframe(dim_order=["edit", "fact"]).reset_index().rename(columns={"edit": "method"})
    return frame[["method", "fact", *names, "neighborhood_prompts"]]


def further(dataset: xr.Dataset) -> dict[str, Metric]:
    """Columns beyond the paper's: what a layout asks besides, such as portability or multi-hop questions.

    Args:
        dataset: An open run of edit-table.

    Returns:
        A column for each group of further questions that the run's facts hold.
    """
    asked = dataset["probe_accuracy"].notnull().any(("fact", "edit"))
    return {str(group): Metric(str(group)) for group in dataset["probe"].values[asked.values]}


def _column(dataset: xr.Dataset, metric: str) -> xr.DataArray:
    return dataset[metric] if metric in dataset else dataset["probe_accuracy"].sel(probe=metric, drop=True)


def summaries(dataset: xr.Dataset) -> pd.DataFrame:
    """Every metric of every method, with its interval.

    Args:
        dataset: An open run.

    Returns:
        ``method, metric, mean, low, high, count``, shares × 100: 95 % percentile bootstrap over facts.
    """
    kinds = {**METRICS, **MORE, **further(dataset)}
    keys = [(str(name), metric) for name in dataset["edit"].values for metric in kinds]
    found = intervals([(_column(dataset, m).sel(edit=name), kinds[m]) for name, m in keys], seed_of(dataset))
    return pd.DataFrame([{"method": k[0], "metric": k[1], **each} for k, each in zip(keys, found, strict=True)])


def forward_gains(dataset: xr.Dataset) -> pd.DataFrame:
    """What forward replay adds to each rule: differences of the same facts, paired.

    Args:
        dataset: An open run.

    Returns:
        ``rule, metric, mean, low, high, count`` of (with FE − without), for rules that were measured both ways.
    """
    edited = set(dataset["edit"].values)
    rules = [str(name) for name in dataset["edit"].values if f"{name}{FORWARD}" in edited]
    kinds = {**METRICS, **further(dataset)}
    keys = [(rule, metric) for rule in rules for metric in kinds]
    columns = {metric: _column(dataset, metric) for metric in kinds}
    differences = [(columns[m].sel(edit=f"{rule}{FORWARD}") - columns[m].sel(edit=rule), kinds[m]) for rule, m in keys]
    found = intervals(differences, seed_of(dataset))
    rows = [{"rule": k[0], "metric": k[1], **each} for k, each in zip(keys, found, strict=True)]
    return pd.DataFrame(rows, columns=["rule", "metric", "mean", "low", "high", "count"])


def weights(dataset: xr.Dataset) -> pd.DataFrame:
    """What each method did to each weight.

    Args:
        dataset: An open run.

    Returns:
        One row for each method and edited layer; columns that say nothing are left out.
    """
    names = [str(name) for name in dataset if dataset[name].dims == ("edit", "layer")]
    frame = dataset[names].to_dataframe(dim_order=["edit", "layer"]).reset_index().rename(columns={"edit": "method"})
    frame = frame[np.isfinite(frame["update_norm"])]
    return frame.loc[:, ["method", "layer", *names]].dropna(axis="columns", how="all")


def write_comparison(folder: Path, tables: tuple[str, ...] | None = None, paper: Path | None = None) -> str:
    """Write tables, ``metrics.csv``, intervals, records, weights and gains beside a run's store.

    Args:
        folder: The run's folder.
        tables: Which of `TABLES`; those of the run's model by default, Tables 3 and 4 if it is in none.
        paper: Numbers to stand beside ours, as `read_paper` reads them.

    Returns:
        The tables in Markdown, as the command line prints them.
    """
    given = read_paper(paper) if paper else None
    dataset = open_run(folder, "edit_table")
    long = summaries(dataset)
    means = long.pivot_table(index="method", columns="metric", values="mean", sort=False, dropna=False)
    columns = [*METRICS, *further(dataset)]
    metrics = means.reindex(index=dataset["edit"].values, columns=columns).rename_axis(index="method", columns=None)
    write_csv(folder / "metrics.csv", metrics, index=True)
    write_csv(folder / "metrics_intervals.csv", long)
    write_csv(folder / "records.csv", records(dataset))
    write_csv(folder / "weights.csv", weights(dataset))
    own = dataset.attrs["config"]["provenance"]["protocol"]
    if tables is None:
        tables = tuple(name for name, t in TABLES.items() if t.model == own) or ("table3", "table4")
    parts = []
    for name in tables:
        chosen = [UNEDITED, *(m for m in TABLES[name].methods if m in metrics.index)]
        title = f"{name.replace('table', 'Table ')}. "
        parts.append(_write(folder / name, dataset, long, chosen, title, given, TABLES[name].model))
        write_csv(folder / f"{name}.csv", metrics.loc[chosen], index=True)
    parts.append(_write(folder / "edit_table", dataset, long, list(metrics.index), "All methods. ", given, own))
    parts.append(_write_damage(folder, dataset, long))
    parts.append(_write_gains(folder, dataset))
    parts += [unmet_anchors(dataset), unmet_anchors(dataset, "refit_anchor"), _failed(dataset)]
    return "\n\n".join(filter(None, parts))


def _write(
    stem: Path,
    dataset: xr.Dataset,
    long: pd.DataFrame,
    methods: list[str],
    title: str,
    given: Mapping[str, Mapping[str, float]] | None,
    model: str,
) -> str:
    """One table: our rows, the best of each column in bold, the paper's below each."""
    kinds = {**METRICS, **further(dataset)}
    style = dataset.attrs["config"]["settings"]["metrics"]
    known = {m: values for (s, m), values in PAPER.items() if s == style}
    others = {each.model for each in TABLES.values()} - {PAPER_MODEL}
    beside = given if given is not None else {} if model in others else known
    label = "paper" if given is not None else f"paper ({PAPER_MODEL})"
    cells = {(row["method"], row["metric"]): row for row in long.to_dict("records")}
    best = {
        metric: max((kind.best * cells[m, metric]["mean"] for m in methods if m != UNEDITED), default=np.nan)
        for metric, kind in kinds.items()
    }
    rows: dict[str, list[str]] = {}
    bold: dict[str, list[bool]] = {}
    for method in methods:
        rows[method] = [_cell(cells[method, metric], kind) for metric, kind in kinds.items()]
        bold[method] = [
            method != UNEDITED and kind.best * cells[method, metric]["mean"] == best[metric]
            for metric, kind in kinds.items()
        ]
        if method in beside:
            name = f"{method}, {label}"
            rows[name] = [_number(beside[method].get(m, np.nan), kind) for m, kind in kinds.items()]
            bold[name] = [False] * len(kinds)
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=_labels(kinds)).rename_axis("method")
    marks = pd.DataFrame.from_dict(bold, orient="index", columns=frame.columns)
    counts = [cells[method, metric]["count"] for method in methods for metric in kinds]
    caption = (
        f"{title}Shares × 100, D_KL in nats; mean [95 % bootstrap interval over facts]; {_meanings(dataset)}; "
        f"best of each column in bold. {_facts(dataset, counts)}"
    )
    return write_table(stem, frame, caption, marks)


def _write_damage(folder: Path, dataset: xr.Dataset, long: pd.DataFrame) -> str:
    """What the paper's columns leave out: the older literature's measure, perplexity, decoding, the weights."""
    means = long.pivot_table(index="method", columns="metric", values="mean", sort=False, dropna=False)
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
            "largest change of a weight": f"{np.nan_to_num(chosen['update_norm'].max()):.3f}",
            "of it not stored": f"{np.nan_to_num(chosen['unstored'].max()):.1e}",
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
    caption = (
        f"Damage and cost: neighbourhood success ({success}) × 100, D_KL without those neighbourhood prompts that are "
        f"edited themselves ({int((edited == 1).sum())} of {int(edited.notnull().sum())}), perplexity of the held-out "
        "text, ‖ΔW‖/‖W‖, prompts where greedy decoding differs from teacher-forced accuracy. "
        f"{_facts(dataset, counts)}"
    )
    return write_table(folder / "damage", frame, caption)


def _write_gains(folder: Path, dataset: xr.Dataset) -> str:
    gained = forward_gains(dataset)
    if gained.empty:
        return ""
    kinds = {**METRICS, **further(dataset)}
    write_csv(folder / "gains.csv", gained)
    wide = pd.DataFrame.from_dict(dict(_gain_rows(gained, kinds)), orient="index", columns=_labels(kinds))
    caption = (
        "What forward replay adds, with it less without it, the same facts: shares × 100, D_KL in nats; mean [95 % "
        f"bootstrap interval]; {_meanings(dataset)}. {_facts(dataset, gained['count'])}"
    )
    return write_table(folder / "gains", wide.rename_axis("rule"), caption)


def _failed(dataset: xr.Dataset) -> str:
    failed = dataset["anchor"].isnull().any(("anchor_layer", "d_model"))
    refitted = dataset["refit_anchor_passes"] > 0
    failed |= (dataset["refit_anchor"].isnull().any("d_model") & refitted).any("anchor_layer")
    if not failed.any():
        return ""
    ids = ", ".join(map(str, dataset["fact"].values[failed.values]))
    return f"Facts without a finite anchor, not edited, counted as they are: {ids}."


def _gain_rows(gained: pd.DataFrame, kinds: Mapping[str, Metric]) -> Iterator[tuple[str, list[str]]]:
    for rule, rows in gained.groupby("rule", sort=False):
        cells = {row["metric"]: row for row in rows.to_dict("records")}
        yield str(rule), [_cell(cells[metric], kind, sign="+") for metric, kind in kinds.items()]


def _cell(row: Mapping[Any, Any], kind: Metric, sign: str = "") -> str:
    interval = (
        "" if np.isnan(row["low"]) else f" [{_number(row['low'], kind, sign)}, {_number(row['high'], kind, sign)}]"
    )
    return _number(row["mean"], kind, sign) + interval


def _number(value: float, kind: Metric, sign: str = "") -> str:
    return "" if np.isnan(value) else f"{value:{sign}.{1 if kind.scale > 1 else 3}f}"


def _labels(metrics: Mapping[str, Metric]) -> list[str]:
    return [f"{kind.label} {'↑' if kind.best > 0 else '↓'}" for kind in metrics.values()]


def _meanings(dataset: xr.Dataset) -> str:
    """What a caption says of the columns."""
    counterfact = dataset.attrs["config"]["settings"]["metrics"] == "counterfact"
    success = "the new answer before the true one" if counterfact else "share of the answer's tokens, teacher forced"
    return (
        f"success: {success}; accuracy: every token of the answer the argmax, teacher forced; D_KL and Top-k: of the "
        "next token after neighbourhood prompts, against the unedited model"
    )


def _facts(dataset: xr.Dataset, counts: Iterable[Any]) -> str:
    source = Path(dataset.attrs["config"]["provenance"]["facts"]["source"]).name
    return f"{model_name(dataset)}, {facts_in_cells(dataset.sizes['fact'], counts)}, of {source}."
