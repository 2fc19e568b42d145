"""Tries of a search over settings, as rows, and the choice among them. The search and its report share it.

A window's score and a criterion are pure functions of rows; neither torch nor a model is known here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float

CriterionName = Literal["bound", "frontier"]
WINDOW, RIDGE, DESCENT = "window", "ridge", "descent"
"""Stages of a search: every window observed, the finalists along λ, and the best window with other descents."""
COLUMNS = (
    *("method", "stage", "layers", "ridge", "lr", "steps", "reached", "passes", "realised", "residual_ratio"),
    *("disturbance", "score", "efficacy", "generalization", "kl", "top10", "seconds", "chosen"),
)
"""Columns of ``tune.csv``."""
GRID = tuple(10 ** (step / 4) for step in range(-4, 5))
"""Bounds of D_KL that the criterion frontier averages over, as factors of the one that is given."""


@dataclass(frozen=True)
class Criterion:
    """A rule by which the best of some tries is chosen.

    Attributes:
        name: bound, or frontier.
        kl_bound: Largest mean D_KL of the chosen try, in nats.
    """

    name: CriterionName
    kl_bound: float

    def best(self, tries: pd.DataFrame) -> Any:
        """Choose one.

        Args:
            tries: Tries of one method, with ``window``, ``variant``, ``gain`` (what is to be large) and ``kl``.

        Returns:
            Its label in the index: the best within the bound. With frontier it is one of the layers and descents whose
            gain, averaged over bounds, is largest; of equals the first.
        """
        if self.name == "frontier":
            groups = [group for _, group in tries.groupby(["window", "variant"], sort=False)]
            tries = max(groups, key=self.averaged)
        return within(tries, self.kl_bound)

    def averaged(self, tries: pd.DataFrame) -> float:
        """Average the best gain over the bounds of `GRID`.

        Args:
            tries: Tries with ``gain`` and ``kl``.

        Returns:
            The mean; a bound that no try keeps counts as 0.
        """
        return averaged_best(tries["gain"].to_numpy(), tries["kl"].to_numpy(), bounds_around(self.kl_bound))

    def words(self, gain: str) -> str:
        """Put the rule into words.

        Args:
            gain: Label of what is to be large.

        Returns:
            A phrase.
        """
        bound = f"the best {gain} at a mean D_KL of at most {self.kl_bound:g} nat"
        if self.name == "bound":
            return bound
        low, high = GRID[0] * self.kl_bound, GRID[-1] * self.kl_bound
        return f"layers and descents by the best {gain} averaged over bounds of D_KL, {low:g} to {high:g}; λ by {bound}"


def bounds_around(bound: float) -> list[float]:
    """Make a grid of bounds of D_KL.

    Args:
        bound: The middle one, in nats.

    Returns:
        Nine bounds, from a tenth to ten times as much, evenly spaced on a logarithmic axis.
    """
    return [factor * bound for factor in GRID]


def averaged_best(
    gains: Float[np.ndarray, " point"], kls: Float[np.ndarray, " point"], bounds: Sequence[float], nothing: float = 0.0
) -> float:
    """Average, over bounds of D_KL, the best gain of the points within a bound.

    Args:
        gains: What is to be large at each point; NaN is never the best.
        kls: Mean D_KL of each point, in nats.
        bounds: The bounds.
        nothing: Gain within a bound that no point keeps.

    Returns:
        The mean.
    """
    held = [gains[(kls <= bound) & np.isfinite(gains)] for bound in bounds]
    return float(np.mean([np.max(best, initial=-np.inf) if len(best) else nothing for best in held]))


def within(tries: pd.DataFrame, bound: float) -> Any:
    """Choose the try with the largest gain within a bound of D_KL.

    Args:
        tries: Tries with ``gain`` and ``kl``.
        bound: The bound.

    Returns:
        Its label in the index; of equals the one with the least D_KL, and of these the first. Where none is within the
        bound, the one with the least D_KL.
    """
    allowed = tries[tries["kl"] <= bound]
    if allowed.empty:
        return tries["kl"].idxmin()
    return allowed.sort_values(["gain", "kl"], ascending=[False, True], kind="stable").index[0]


def score(reached: float, residual_ratio: float, disturbance: float) -> float:
    """Score a window before anything is evaluated: what an edit there brings about, and at what price.

    Args:
        reached: Share of facts whose descent came below the loss that ends it.
        residual_ratio: Mean residual that the edit leaves at the last layer, over the initial one.
        disturbance: What the edit changes of a typical token's state at the least, as a share of that.

    Returns:
        The share that was reached, times the share that was realised, over 1 plus the disturbance: from 0 to 1; 0 where
        one of them is unknown.
    """
    return float(np.nan_to_num(reached * (1 - np.clip(residual_ratio, 0, 1)) / (1 + disturbance)))


def finalists(scores: Mapping[str, float], count: int) -> list[str]:
    """Choose the windows with the best scores.

    Args:
        scores: A score for each window.
        count: Their number.

    Returns:
        Their names, best first; of equals those that come first.
    """
    return sorted(scores, key=lambda window: -scores[window])[:count]


def observed_windows(dataset: xr.Dataset) -> pd.DataFrame:
    """Tabulate the edits that were observed, one for each window and method.

    Args:
        dataset: A run of tune, or its part ``observed``.

    Returns:
        A row for each.
    """
    rows = []
    for edit, window in _cells(dataset["observed"]):
        cell = dataset.sel(edit=edit, window=window)
        ratio = cell["residual_ratio"].dropna("layer", how="all")
        left = float(ratio.isel(layer=-1).mean()) if ratio.sizes["layer"] else np.nan
        reached = float(cell["observed_reached"])
        rows.append({
            "method": edit,
            "stage": WINDOW,
            "window": window,
            "ridge": float(cell["suited_ridge"]),
            "reached": 100 * reached,
            "passes": float(cell["observed_passes"]),
            "realised": float(cell["realised"].mean()),
            "residual_ratio": left,
            "disturbance": float(cell["disturbance"]),
            "score": score(reached, left, float(cell["disturbance"])),
            "efficacy": 100 * float(cell["observed_efficacy"].mean()),
            "seconds": float(cell["observed_seconds"]),
        })
    return pd.DataFrame(rows)


def evaluated_tries(dataset: xr.Dataset) -> pd.DataFrame:
    """Tabulate the edits that were evaluated.

    Args:
        dataset: A run of tune, or its part ``measured``.

    Returns:
        A row for each; ``gain`` is generalisation, or efficacy where no fact has a paraphrase.
    """
    rows, base = [], str(dataset["variant"].values[0])
    for edit, window, variant, point in _cells(dataset["measured"]):
        cell = dataset.sel(edit=edit, window=window, variant=variant, point=point)
        rows.append({
            "method": edit,
            "stage": RIDGE if variant == base else DESCENT,
            "window": window,
            "variant": variant,
            "ridge": float(cell["ridge"]),
            "reached": 100 * float(cell["reached"]),
            "passes": float(cell["passes"]),
            "efficacy": 100 * float(cell["efficacy_accuracy"].mean()),
            "generalization": 100 * float(cell["generalization_accuracy"].mean("paraphrase").mean()),
            "kl": float(cell["kl"].mean()),
            "top10": 100 * float(cell["top10"].mean()),
            "seconds": float(cell["seconds"]),
        })
    frame = pd.DataFrame(rows)
    return frame.assign(gain=frame[gain_of(frame)]) if rows else frame


def gain_of(tries: pd.DataFrame) -> str:
    """Name the column that is to be large: generalisation, or efficacy where no fact has a paraphrase."""
    return "generalization" if tries["generalization"].notna().any() else "efficacy"


def _cells(mark: xr.DataArray) -> list[tuple[str, ...]]:
    """Labels of the cells that are finished, windows in their order and methods within."""
    order = [dim for dim in ("window", "variant", "edit", "point") if dim in mark.dims]
    ordered = mark.transpose(*order)
    labels = [dict(zip(order, cell, strict=True)) for cell in np.argwhere(ordered.values == 1)]
    names = [{dim: mark[dim].values[place].item() for dim, place in cell.items()} for cell in labels]
    return [tuple(cell[str(dim)] for dim in mark.dims) for cell in names]


def criterion_of(settings: Mapping[str, Any], tries: pd.DataFrame) -> Criterion:
    """Read the rule of a search, and fill in the bound that suits the facts if none was set.

    Args:
        settings: A run's settings.
        tries: Rows of `evaluated_tries`.

    Returns:
        The rule. The bound that suits is the median D_KL of all methods' finalists along λ, to two digits.
    """
    search = settings["tune"]
    bound = search["kl_bound"]
    if bound is None:
        bound = float(f"{tries.loc[tries['stage'] == RIDGE, 'kl'].median():.1e}") if len(tries) else np.nan
    return Criterion(search["criterion"], bound)


def choices(tries: pd.DataFrame, criterion: Criterion) -> dict[str, Any]:
    """Choose the best try of each method.

    Args:
        tries: Rows of `evaluated_tries`.
        criterion: The rule.

    Returns:
        Labels in the index, by method.
    """
    groups = tries.groupby("method", sort=False) if len(tries) else ()
    return {str(method): criterion.best(group) for method, group in groups}


@dataclass(frozen=True, eq=False)
class Outcome:
    """Everything that a search has tried, and the choice of each method.

    Attributes:
        observed: Rows of `observed_windows`.
        tries: Rows of `evaluated_tries`.
        criterion: The rule of the choice.
        choices: Labels of the chosen tries in the index, by method.
    """

    observed: pd.DataFrame
    tries: pd.DataFrame
    criterion: Criterion
    choices: Mapping[str, Any]

    @classmethod
    def of(cls, dataset: xr.Dataset, settings: Mapping[str, Any]) -> "Outcome":
        """Read a run of tune once.

        Args:
            dataset: The run.
            settings: Its settings.

        Returns:
            The outcome.
        """
        tries = evaluated_tries(dataset)
        criterion = criterion_of(settings, tries)
        return cls(observed_windows(dataset), tries, criterion, choices(tries, criterion))

    @property
    def rule(self) -> str:
        """The rule in words."""
        return self.criterion.words(LABELS[gain_of(self.tries)])

    def because(self, method: str) -> str:
        """Say why the choice for a method is what it is.

        Args:
            method: The method.

        Returns:
            `reasons`.
        """
        return reasons(self.observed, self.tries, method, self.criterion)


def reasons(observed: pd.DataFrame, tries: pd.DataFrame, method: str, criterion: Criterion) -> str:
    """Say why the choice for a method is what it is.

    Args:
        observed: Rows of `observed_windows`.
        tries: Rows of `evaluated_tries`.
        method: The method.
        criterion: The rule of the choice.

    Returns:
        Sentences, the first of which begins with the layers.
    """
    scores = observed[observed["method"] == method].set_index("window")["score"]
    own = tries[tries["method"] == method]
    choice = own.loc[criterion.best(own)]
    along = own[own["stage"] == RIDGE]
    return " ".join(
        filter(
            None,
            (
                _of_window(choice, along, scores, criterion),
                _of_ridge(choice, own, observed, criterion),
                _of_descent(choice, own, criterion),
            ),
        )
    )


def _of_window(choice: pd.Series, along: pd.DataFrame, scores: pd.Series, criterion: Criterion) -> str:
    """Compare the chosen window with the other finalists, and say how it became one."""
    window, label = choice["window"], LABELS[gain_of(along)]
    bests = {str(name): group.loc[criterion.best(group)] for name, group in along.groupby("window", sort=False)}
    others = [f"layers {name}: {_outcome(row, criterion)}" for name, row in bests.items() if name != window]
    own = _outcome(bests[window], criterion)
    if len(scores) == 1:
        return f"Layers {window}, the only ones that were tried: {label} {own}."
    compared = (
        f"of the {len(bests)} windows that were evaluated along λ they do best: {label} {own} ({'; '.join(others)})"
    )
    if not others:
        compared = f"they alone were evaluated along λ: {label} {own}"
    order = finalists({str(name): float(value) for name, value in scores.items()}, len(scores))
    place = order.index(window) + 1
    return (
        f"Layers {window} because {compared}. Before any question they were number {place} of {len(scores)}, with a "
        f"score of {scores[window]:.2f}."
    )


def _outcome(row: pd.Series, criterion: Criterion) -> str:
    """Gain and D_KL of a try."""
    beyond = "" if row["kl"] <= criterion.kl_bound else ", beyond the bound"
    return f"{row['gain']:.1f} at D_KL {row['kl']:.3f}{beyond}"


def _of_ridge(choice: pd.Series, own: pd.DataFrame, observed: pd.DataFrame, criterion: Criterion) -> str:
    """Compare the chosen λ with the one that suits the window, and say where the grid ends."""
    suited = float(observed.loc[observed["window"] == choice["window"], "ridge"].iloc[0])
    group = own[(own["window"] == choice["window"]) & (own["variant"] == choice["variant"])]
    text = f"λ = {choice['ridge']:g} is {choice['ridge'] / suited:.2g} of what suits them"
    if choice["kl"] > criterion.kl_bound:
        text += f": no try kept D_KL within {criterion.kl_bound:g}, and this disturbs least"
    ends = {group["ridge"].max(): "largest", group["ridge"].min(): "least"}
    if len(group) > 1 and choice["ridge"] in ends:
        text += f", the {ends[choice['ridge']]} that was tried: further values may do better"
    return f"{text}."


def _of_descent(choice: pd.Series, own: pd.DataFrame, criterion: Criterion) -> str:
    """Compare the chosen descents with the others on the same window."""
    variants = {
        str(name): group.loc[criterion.best(group)]
        for name, group in own[own["window"] == choice["window"]].groupby("variant", sort=False)
    }
    others = [f"{name}: {_outcome(row, criterion)}" for name, row in variants.items() if name != choice["variant"]]
    text = f"Descents at {choice['variant']}, {_outcome(choice, criterion)}"
    return f"{text} ({'; '.join(others)})." if others else f"{text}."


LABELS = {"generalization": "generalisation accuracy", "efficacy": "efficacy accuracy"}
"""Labels of what is to be large."""
