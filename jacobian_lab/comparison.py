"""From a run of edit-table to Tables 3, 4, 6 and 7: methods with intervals, the paper's rows beside ours, FE's gain."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy import stats

from jacobian_lab.errors import InputError
from jacobian_lab.reporting import CONFIDENCE, RESAMPLES, write_table
from jacobian_lab.runs import open_run

NUMBERS_AT_ONCE = 20_000_000
"""What a batch of resamples may hold."""

UNEDITED, FORWARD = "unedited", "+fe"


@dataclass(frozen=True)
class Metric:
    """A column of the tables.

    Attributes:
        label: What it is called.
        scale: What it is multiplied by: shares are given × 100.
        best: Whether the largest (1) or the smallest (-1) is the best.
        flat: Whether prompts are averaged at once, instead of each record's first (metrics.md).
    """

    label: str
    scale: float = 100.0
    best: int = 1
    flat: bool = False


METRICS: Mapping[str, Metric] = {
    "efficacy_success": Metric("efficacy success"),
    "efficacy_accuracy": Metric("efficacy accuracy"),
    "generalization_success": Metric("generalisation success"),
    "generalization_accuracy": Metric("generalisation accuracy"),
    "kl": Metric("D_KL", scale=1.0, best=-1, flat=True),
    "top1": Metric("Top-1", flat=True),
    "top5": Metric("Top-5", flat=True),
    "top10": Metric("Top-10", flat=True),
}
"""The paper's columns, and those of ``metrics.csv``."""

MORE: Mapping[str, Metric] = {
    "efficacy_greedy": Metric("efficacy, greedy"),
    "generalization_greedy": Metric("generalisation, greedy"),
    "neighborhood_success": Metric("neighbourhood success", flat=True),
}


@dataclass(frozen=True)
class EditTable:
    """One of the paper's tables.

    Attributes:
        model: The known model that it is of.
        methods: Its rows below the unedited model.
    """

    model: str
    methods: tuple[str, ...]


_FIRST = ("onelayer", "memit", "blue", "memit+fe")
_PAIRS = ("prune", "prune+fe", "rect", "rect+fe", "alphaedit", "alphaedit+fe")
TABLES: Mapping[str, EditTable] = {
    "table3": EditTable("llama-3-8b-instruct", _FIRST),
    "table4": EditTable("llama-3-8b-instruct", ("memit", "memit+fe", *_PAIRS)),
    "table6": EditTable("gpt2-xl", (*_FIRST, *_PAIRS)),
    "table7": EditTable("gpt-j-6b", (*_FIRST, *_PAIRS)),
}

PAPER: Mapping[tuple[str, str], Mapping[str, float]] = {
    ("counterfact", "onelayer"): {"efficacy_success": 76.2},
    ("counterfact", "memit"): {"efficacy_success": 97.4, "generalization_accuracy": 48.0, "kl": 0.41, "top1": 77.5},
    ("counterfact", "blue"): {"efficacy_success": 98.4, "generalization_accuracy": 60.1, "kl": 0.35, "top1": 81.0},
    ("counterfact", "memit+fe"): {"efficacy_success": 99.9, "generalization_accuracy": 61.0, "kl": 0.34, "top1": 82.7},
    ("zsre", "memit"): {"efficacy_success": 92.6, "generalization_accuracy": 72.6, "kl": 0.60, "top1": 45.3},
    ("zsre", "blue"): {"efficacy_success": 94.6, "generalization_accuracy": 78.2, "kl": 0.18, "top1": 66.7},
    ("zsre", "memit+fe"): {"efficacy_success": 97.6, "generalization_accuracy": 84.3, "kl": 0.09, "top1": 75.6},
}
"""What of the paper's tables could be had where this was written, from summaries of it: Llama-3-8B-Instruct, 2,000
facts in one batch. `read_paper` takes the rest from a file."""

PAPER_MODEL = "llama-3-8b-instruct"


def read_paper(path: Path) -> dict[str, dict[str, float]]:
    """Read somebody's numbers, to stand beside ours.

    Args:
        path: A CSV file in the layout of ``metrics.csv``; cells may be empty.

    Returns:
        Values by method and metric.

    Raises:
        InputError: If it cannot be read or has other columns.
    """
    expected = f"expected a CSV file with the columns method, {', '.join(METRICS)}"
    try:
        frame = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{expected}, got {path} ({str(error).splitlines()[0]:.100}): check the file") from error
    if "method" not in frame or not set(frame.columns) <= {"method", *METRICS}:
        raise InputError(f"{expected}, got {', '.join(map(str, frame.columns))} in {path}: check the file")
    try:
        rows = frame.set_index("method").astype(float)
    except ValueError as error:
        raise InputError(f"{expected} of numbers, got another in {path} ({error}): check the file") from error
    return {str(method): dict(row.dropna()) for method, row in rows.iterrows()}


def records(dataset: xr.Dataset) -> pd.DataFrame:
    """Every record's own means, which the tables' are made of.

    Args:
        dataset: An open run.

    Returns:
        One row for each method and fact: shares and nats as stored, a record's prompts averaged, and the number of its
        ``neighborhood_prompts``, by which flat means weigh it.
    """
    names = [*METRICS, *MORE, "nll_new", "nll_true"]
    means = dataset[names].map(lambda values: values.mean([dim for dim in values.dims if dim not in {"fact", "edit"}]))
    means["neighborhood_prompts"] = dataset["kl"].notnull().sum("neighbor")
    frame = means.to_dataframe(dim_order=["edit", "fact"]).reset_index().rename(columns={"edit": "method"})
    return frame[["method", "fact", *names, "neighborhood_prompts"]]


def summaries(dataset: xr.Dataset) -> pd.DataFrame:
    """Every metric of every method, with its interval.

    Args:
        dataset: An open run.

    Returns:
        ``method, metric, mean, low, high, count``, shares × 100: 95 % percentile bootstrap over facts.
    """
    keys = [(str(name), metric) for name in dataset["edit"].values for metric in (*METRICS, *MORE)]
    kinds = {**METRICS, **MORE}
    found = _intervals([(dataset[metric].sel(edit=name), kinds[metric]) for name, metric in keys], _seed(dataset))
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
    keys = [(rule, metric) for rule in rules for metric in METRICS]
    differences = [
        (dataset[metric].sel(edit=f"{rule}{FORWARD}") - dataset[metric].sel(edit=rule), METRICS[metric])
        for rule, metric in keys
    ]
    found = _intervals(differences, _seed(dataset))
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
    dataset = open_run(folder, "edit-table")
    long = summaries(dataset)
    means = long.pivot_table(index="method", columns="metric", values="mean", sort=False, dropna=False)
    metrics = means.reindex(index=dataset["edit"].values, columns=list(METRICS)).rename_axis(
        index="method", columns=None
    )
    metrics.to_csv(folder / "metrics.csv")
    long.to_csv(folder / "metrics_intervals.csv", index=False)
    records(dataset).to_csv(folder / "records.csv", index=False)
    weights(dataset).to_csv(folder / "weights.csv", index=False)
    own = dataset.attrs["config"]["provenance"]["protocol"]
    if tables is None:
        tables = tuple(name for name, t in TABLES.items() if t.model == own) or ("table3", "table4")
    parts = []
    for name in tables:
        chosen = [UNEDITED, *(m for m in TABLES[name].methods if m in metrics.index)]
        title = f"{name.replace('table', 'Table ')}. "
        parts.append(_write(folder / name, dataset, long, chosen, title, given, TABLES[name].model))
        metrics.loc[chosen].to_csv(folder / f"{name}.csv")
    parts.append(_write(folder / "edit_table", dataset, long, list(metrics.index), "All methods. ", given, own))
    parts.append(_write_damage(folder, dataset, long))
    gained = forward_gains(dataset)
    if not gained.empty:
        gained.to_csv(folder / "gains.csv", index=False)
        wide = pd.DataFrame.from_dict(dict(_gain_rows(gained)), orient="index", columns=_labels(METRICS))
        caption = (
            "What forward replay adds, with it less without it, the same facts: mean [95 % bootstrap interval]. "
            f"{_facts(dataset)}"
        )
        parts.append(write_table(folder / "gains", wide.rename_axis("rule"), caption))
    failed = dataset["anchor"].isnull().any(("anchor_layer", "d_model"))
    refitted = dataset["refit_anchor_passes"] > 0
    failed |= (dataset["refit_anchor"].isnull().any("d_model") & refitted).any("anchor_layer")
    if failed.any():
        ids = ", ".join(map(str, dataset["fact"].values[failed.values]))
        parts.append(f"Facts without a finite anchor, not edited, counted as they are: {ids}.")
    return "\n\n".join(parts)


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
    style = dataset.attrs["config"]["settings"]["metrics"]
    known = {m: values for (s, m), values in PAPER.items() if s == style}
    others = {each.model for each in TABLES.values()} - {PAPER_MODEL}
    beside = given if given is not None else {} if model in others else known
    label = "paper" if given is not None else f"paper ({PAPER_MODEL})"
    cells = {(row["method"], row["metric"]): row for row in long.to_dict("records")}
    best = {
        metric: max((kind.best * cells[m, metric]["mean"] for m in methods if m != UNEDITED), default=np.nan)
        for metric, kind in METRICS.items()
    }
    rows: dict[str, list[str]] = {}
    bold: dict[str, list[bool]] = {}
    for method in methods:
        rows[method] = [_cell(cells[method, metric], kind) for metric, kind in METRICS.items()]
        bold[method] = [
            method != UNEDITED and kind.best * cells[method, metric]["mean"] == best[metric]
            for metric, kind in METRICS.items()
        ]
        if method in beside:
            name = f"{method}, {label}"
            rows[name] = [_number(beside[method].get(m, np.nan), kind) for m, kind in METRICS.items()]
            bold[name] = [False] * len(METRICS)
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=_labels(METRICS)).rename_axis("method")
    marks = pd.DataFrame.from_dict(bold, orient="index", columns=frame.columns)
    success = "the new answer before the true one" if style == "counterfact" else "share of the answer's tokens"
    caption = (
        f"{title}Shares × 100, D_KL in nats; mean [95 % bootstrap interval over facts]; success: {success}; "
        f"best of each column in bold. {_facts(dataset)}"
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
    caption = (
        f"Damage and cost: neighbourhood success ({success}) × 100, D_KL without those neighbourhood prompts that are "
        f"edited themselves ({int((edited == 1).sum())} of {int(edited.notnull().sum())}), perplexity of the held-out "
        f"text, ‖ΔW‖/‖W‖, prompts where greedy decoding differs from teacher-forced accuracy. {_facts(dataset)}"
    )
    return write_table(folder / "damage", frame, caption)


def _intervals(cells: Sequence[tuple[xr.DataArray, Metric]], seed: int) -> list[dict[str, float]]:
    """Means and bootstrap intervals over facts, one resampling for all cells."""
    if not cells:
        return []
    sums, counts = (np.stack(part) for part in zip(*(_by_fact(*cell) for cell in cells), strict=True))

    def mean(total: np.ndarray, count: np.ndarray, axis: int = -1) -> np.ndarray:
        with np.errstate(invalid="ignore"):  # 0 / 0 where no fact has a value
            return np.asarray(total.sum(axis) / count.sum(axis))

    means = mean(sums, counts)
    low = high = np.full_like(means, np.nan)
    if sums.shape[1] > 1:
        interval = stats.bootstrap(
            (sums, counts),
            mean,
            n_resamples=RESAMPLES,
            batch=max(1, NUMBERS_AT_ONCE // sums.size),
            paired=True,
            axis=-1,
            confidence_level=CONFIDENCE,
            method="percentile",
            rng=seed,
        ).confidence_interval
        low, high = np.asarray(interval.low), np.asarray(interval.high)
    return [
        {"mean": float(m), "low": float(lo), "high": float(hi), "count": int((weight > 0).sum())}
        for m, lo, hi, weight in zip(means, low, high, counts, strict=True)
    ]


def _by_fact(values: xr.DataArray, kind: Metric) -> tuple[np.ndarray, np.ndarray]:
    """For each fact what it adds to the mean, and with which weight."""
    prompts = values.values.reshape(values.sizes["fact"], -1) * kind.scale
    sums, counts = np.nansum(prompts, axis=1), np.isfinite(prompts).sum(axis=1).astype(float)
    if kind.flat:
        return sums, counts
    return sums / np.maximum(counts, 1), np.minimum(counts, 1)


def _gain_rows(gained: pd.DataFrame) -> Iterator[tuple[str, list[str]]]:
    for rule, rows in gained.groupby("rule", sort=False):
        cells = {row["metric"]: row for row in rows.to_dict("records")}
        yield str(rule), [_cell(cells[metric], kind, sign="+") for metric, kind in METRICS.items()]


def _cell(row: Mapping[Any, Any], kind: Metric, sign: str = "") -> str:
    interval = (
        "" if np.isnan(row["low"]) else f" [{_number(row['low'], kind, sign)}, {_number(row['high'], kind, sign)}]"
    )
    return _number(row["mean"], kind, sign) + interval


def _number(value: float, kind: Metric, sign: str = "") -> str:
    return "" if np.isnan(value) else f"{value:{sign}.{1 if kind.scale > 1 else 3}f}"


def _labels(metrics: Mapping[str, Metric]) -> list[str]:
    return [f"{kind.label} {'↑' if kind.best > 0 else '↓'}" for kind in metrics.values()]


def _facts(dataset: xr.Dataset) -> str:
    provenance = dataset.attrs["config"]["provenance"]
    source = Path(provenance["facts"]["source"]).name
    return f"{provenance['model']}, {dataset.sizes['fact']} facts of {source}."


def _seed(dataset: xr.Dataset) -> int:
    return int(dataset.attrs["config"]["settings"]["seed"])
