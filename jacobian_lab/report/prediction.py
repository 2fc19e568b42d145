"""Predictors of a fact's outcome, one by one and all together, cross-validated over batches of facts and over models.

Facts are compared within an edit alone: facts of one edited model, so that neither batches nor models that are easier
than others make a predictor look good. What is left out and resampled is a batch of facts, with all edits of it.

Left-out batches share most of what they are fitted to, so that the sign of a predictor of no use may differ between
them: its interval is too narrow, on either side of 0.5. A predictor counts as one where the gain in likelihood is above
zero, too (`predicts`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from scipy.optimize import minimize
from scipy.special import expit, xlog1py, xlogy

from jacobian_lab.report.intervals import intervals

ALL, EVERY_MODEL = "all together", "every model"
OWN, OTHERS = "its own other batches", "other models"
"""Facts that a fit is made from: the model's, less a batch; those of the other models."""
LOGARITHMIC = ("loss", "rank", "probability", "ease")
"""Beginnings of the names of predictors that are taken by their logarithm."""
LEAST, ALIKE = 1e-12, 1e-9
"""The least number that a logarithm is taken of; facts whose predictors spread less than this do not differ."""
PENALTY = 1.0
"""Weight of ½‖w‖² beside the sum over facts, with predictors of variance one; the intercept is free."""
MISSING = 0.05
"""A predictor that more of the facts lack is not among those that are taken together."""
PLACE = ("model", "batch", "edit", "method")
"""Columns that say where an outcome was seen: ``edit`` is one edited model, ``batch`` the facts that it edits."""
COLUMNS = (
    *("outcome", "predictor", "method", "model", "fitted_on", "measure", "value", "low", "high"),
    *("gain", "gain_low", "gain_high", "predicts", "slope", "share", "facts", "batches"),
)


def fit_logistic(
    x: Float[np.ndarray, "fact predictor"], successes: Float[np.ndarray, " fact"], trials: Float[np.ndarray, " fact"]
) -> Float[np.ndarray, " coefficient"]:
    """Fit log-odds of success that are linear in the predictors, with a penalty.

    Args:
        x: The predictors.
        successes: Successes of each fact.
        trials: Its trials.

    Returns:
        Coefficients, the intercept first.
    """
    design = np.column_stack([np.ones(len(x)), x])
    penalty = PENALTY * (np.arange(design.shape[1]) > 0)

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        logits = design @ w
        value = (trials * np.logaddexp(0, logits) - successes * logits).sum() + (penalty * w**2).sum() / 2
        return float(value), design.T @ (trials * expit(logits) - successes) + penalty * w

    def curvature(w: np.ndarray) -> np.ndarray:
        p = expit(design @ w)
        return np.asarray((design.T * (trials * p * (1 - p))) @ design + np.diag(penalty))

    fit = minimize(loss, np.zeros(design.shape[1]), jac=True, hess=curvature, method="trust-exact")
    return np.asarray(fit.x)


def fit_linear(
    x: Float[np.ndarray, "fact predictor"], values: Float[np.ndarray, " fact"], trials: Float[np.ndarray, " fact"]
) -> Float[np.ndarray, " coefficient"]:
    """Fit values that are linear in the predictors, by least squares with the same penalty.

    Args:
        x: The predictors.
        values: The value of each fact.
        trials: Its weight.

    Returns:
        Coefficients, the intercept first.
    """
    design = np.column_stack([np.ones(len(x)), x])
    penalty = PENALTY * np.diag(np.arange(design.shape[1]) > 0)
    weighted = design.T * trials
    return np.asarray(np.linalg.solve(weighted @ design + penalty, weighted @ values))


def pairs(
    scores: Float[np.ndarray, " fact"], successes: Float[np.ndarray, " fact"], trials: Float[np.ndarray, " fact"]
) -> tuple[float, float]:
    """Count the pairs of a success and a failure of two facts, and those in which the success has the higher score.

    Args:
        scores: A score of each fact.
        successes: Its successes.
        trials: Its trials.

    Returns:
        Pairs that are in order, a tie counting half, and all pairs; their ratio is the area under the ROC curve.
    """
    weights = np.outer(successes, trials - successes)
    np.fill_diagonal(weights, 0.0)
    order = np.sign(scores[:, None] - scores[None])
    return float((weights * (1 + order) / 2).sum()), float(weights.sum())


@dataclass(frozen=True)
class Outcome:
    """An outcome of a fact's edit.

    Attributes:
        column: Its column: the share of successes, or a positive value.
        trials: Column of the trials that the share is of; none where it is one.
        success: Whether it is a share of successes; otherwise its logarithm is fitted, less the edit's mean.
    """

    column: str
    trials: str | None = None
    success: bool = True


OUTCOMES = (
    Outcome("efficacy"),
    Outcome("generalization", "paraphrases"),
    Outcome("kl", success=False),
)


@dataclass(frozen=True, eq=False)
class Facts:
    """Facts with an outcome and predictors, those of variance one within each model.

    Attributes:
        x: The predictors.
        values: Successes, or the logarithm less its mean over the edit.
        trials: Trials of each fact.
        models: Its model.
        batches: Its batch.
        edits: Its edit.
    """

    x: Float[np.ndarray, "fact predictor"]
    values: Float[np.ndarray, " fact"]
    trials: Float[np.ndarray, " fact"]
    models: np.ndarray
    batches: np.ndarray
    edits: np.ndarray

    def select(self, mask: Bool[np.ndarray, " fact"]) -> "Facts":
        """Select some of the facts.

        Args:
            mask: Which.

        Returns:
            These.
        """
        return Facts(**{name: values[mask] for name, values in vars(self).items()})


def standardised(frame: pd.DataFrame, predictors: Sequence[str]) -> pd.DataFrame:
    """Give predictors mean 0 and variance 1 within each model, some by their logarithm.

    Args:
        frame: A row for each fact and edit, with ``model`` and the predictors.
        predictors: The predictors.

    Returns:
        A column for each predictor; 0 where a model's facts do not differ.
    """
    x = frame[list(predictors)].astype(float)
    logarithmic = [name for name in predictors if name.startswith(LOGARITHMIC)]
    x[logarithmic] = np.log10(x[logarithmic].clip(lower=LEAST))
    by_model = x.groupby(frame["model"])
    spread = by_model.transform("std")
    return ((x - by_model.transform("mean")) / spread).where((spread > ALIKE) | x.isna(), 0.0)


def facts_of(frame: pd.DataFrame, outcome: Outcome, x: pd.DataFrame) -> Facts:
    """Take the facts that have an outcome and some predictors.

    Args:
        frame: A row for each fact and edit: `PLACE` and outcomes.
        outcome: The outcome.
        x: The predictors, as `standardised` has them.

    Returns:
        The facts; of values that are no shares of successes, predictors less their mean over the edit.
    """
    trials = frame[outcome.trials].astype(float) if outcome.trials else pd.Series(1.0, frame.index)
    present = x.notna().all(axis=1) & frame[outcome.column].notna() & (trials > 0)
    frame, x, trials = frame[present], x[present], trials[present]
    values = frame[outcome.column].astype(float) * trials
    if not outcome.success:
        values = frame[outcome.column].astype(float).clip(lower=LEAST).map(np.log10)
        values -= values.groupby(frame["edit"]).transform("mean")
        x = x.sub(x.groupby(frame["edit"]).transform("mean"))
    places = (frame[name].to_numpy(str) for name in ("model", "batch", "edit"))
    return Facts(x.to_numpy(), values.to_numpy(), trials.to_numpy(), *places)


@dataclass(frozen=True, eq=False)
class Scored:
    """Sums over the facts of each batch that was left out, and the weights that they are over.

    Attributes:
        value: The measure: pairs in order, or the squared error that the fit saves.
        weight: What it is over: pairs, or the squared values.
        gain: Log-likelihood of the fit less that of the share of successes alone; 0 for other outcomes.
        trials: Trials.
    """

    value: float
    weight: float
    gain: float
    trials: float


def scored(own: Facts, rest: Facts, outcome: Outcome) -> Iterator[Scored]:
    """Score the batches of some facts by a fit to others.

    Args:
        own: The facts that are left out.
        rest: The facts that the fit is made from.
        outcome: The outcome.

    Yields:
        Sums of each batch; nothing where the others have but one outcome.
    """
    share = rest.values.sum() / rest.trials.sum() if len(rest.values) else 0.0
    if not len(rest.values) or (outcome.success and not 0 < share < 1):
        return
    coefficients = (fit_logistic if outcome.success else fit_linear)(rest.x, rest.values, rest.trials)
    for batch in np.unique(own.batches):
        part = own.select(own.batches == batch)
        scores, trials = coefficients[0] + part.x @ coefficients[1:], float(part.trials.sum())
        if not outcome.success:
            whole = float((part.values**2).sum())
            yield Scored(whole - float(((part.values - scores) ** 2).sum()), whole, 0.0, trials)
            continue
        counts = [pairs(scores[at], part.values[at], part.trials[at]) for at in _masks(part.edits)]
        failures = part.trials - part.values
        fitted = part.values * -np.logaddexp(0, -scores) + failures * -np.logaddexp(0, scores)
        alone = xlogy(part.values, share) + xlog1py(failures, -share)
        wins, weight = np.sum(counts, axis=0)
        yield Scored(float(wins), float(weight), float((fitted - alone).sum()), trials)


def _masks(labels: np.ndarray) -> Iterator[np.ndarray]:
    return (labels == label for label in np.unique(labels))


def predicted(frame: pd.DataFrame, predictors: Sequence[str], seed: int = 0) -> pd.DataFrame:
    """Fit and cross-validate every predictor of every outcome, for each method, over batches and across models.

    Args:
        frame: A row for each fact and edit: `PLACE`, outcomes and predictors.
        predictors: The predictors.
        seed: Seed of the bootstrap.

    Returns:
        Columns `COLUMNS`, the best first. The value is the area under the ROC curve of success, 0.5 where nothing is
        predicted, or R² of the logarithm; the gain is in nats a trial over the share of successes alone. It predicts
        where both intervals, or that of R², lie above what is no use. The slope is that of a fit to all facts, for a
        standard deviation. A row whose facts are all successes, or all failures, is
        left out, and so is one of a single batch.
    """
    rows = []
    for method, own in frame.groupby("method", sort=False):
        usable = [name for name in predictors if own[name].nunique() > 1]
        together = [name for name in usable if own[name].isna().mean() <= MISSING]
        x = standardised(own, usable)
        sets = {name: [name] for name in usable} | ({ALL: together} if len(together) > 1 else {})
        for outcome in OUTCOMES:
            for name, columns in sets.items():
                rows += [
                    {"outcome": outcome.column, "predictor": name, "method": method, **row}
                    for row in _cross_validated(facts_of(own, outcome, x[columns]), outcome, seed)
                ]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    order = {outcome.column: place for place, outcome in enumerate(OUTCOMES)}
    places = table["outcome"].map(order)
    return table.iloc[np.lexsort((-table["value"].to_numpy(float), places.to_numpy(float)))].reset_index(drop=True)


def _cross_validated(facts: Facts, outcome: Outcome, seed: int) -> Iterator[dict[str, object]]:
    """Rows of one set of predictors: each model by its own batches and by the others, and all models by the latter."""
    across: list[Scored] = []
    models = list(np.unique(facts.models))
    for model in models:
        here = facts.models == model
        own, others = facts.select(here), facts.select(~here)
        folds = [scored(own.select(at), own.select(~at), outcome) for at in _masks(own.batches)]
        yield from _row([part for fold in folds for part in fold], own, model, OWN, outcome, seed)
        by_others = list(scored(own, others, outcome))
        across += by_others
        yield from _row(by_others, own, model, OTHERS, outcome, seed)
    if len(models) > 1:
        yield from _row(across, facts, EVERY_MODEL, OTHERS, outcome, seed)


def _row(
    parts: Sequence[Scored], facts: Facts, model: str, fitted_on: str, outcome: Outcome, seed: int
) -> Iterator[dict[str, object]]:
    parts = [part for part in parts if part.weight > 0]
    if not parts:
        return
    value, low, high = _interval([part.value for part in parts], [part.weight for part in parts], seed)
    gains = [np.nan] * 3
    if outcome.success:
        gains = _interval([part.gain for part in parts], [part.trials for part in parts], seed)
    fit = fit_logistic if outcome.success else fit_linear
    single = facts.x.shape[1] == 1
    yield {
        "model": model,
        "fitted_on": fitted_on,
        "measure": "area" if outcome.success else "R²",
        **dict(zip(("value", "low", "high"), (value, low, high), strict=True)),
        **dict(zip(("gain", "gain_low", "gain_high"), gains, strict=True)),
        "predicts": low > 0.5 and gains[1] > 0 if outcome.success else low > 0,
        "slope": fit(facts.x, facts.values, facts.trials)[1] if single else np.nan,
        "share": facts.values.sum() / facts.trials.sum() if outcome.success else np.nan,
        "facts": len(facts.values),
        "batches": len(parts),
    }


def _interval(sums: Sequence[float], weights: Sequence[float], seed: int) -> list[float]:
    """Ratio of sums over batches with its 95 % interval, stretched by √(n / (n − 1)): few batches look too sure."""
    (row,) = intervals(np.array([sums]), np.array([weights]), seed).to_dict("records")
    count = len(sums)
    stretch = np.sqrt(count / (count - 1)) if count > 1 else np.nan
    return [row["mean"], *(row["mean"] + stretch * (row[end] - row["mean"]) for end in ("low", "high"))]


def texts(table: pd.DataFrame) -> pd.DataFrame:
    """Put the rows of `predicted` into words.

    Args:
        table: The rows.

    Returns:
        A row for each.
    """

    def spread(value: float, low: float, high: float) -> str:
        return "" if np.isnan(value) else f"{value:.3f}" + ("" if np.isnan(low) else f" [{low:.3f}, {high:.3f}]")

    rows = [
        {
            "outcome": row["outcome"],
            "predictor": row["predictor"],
            "method": row["method"],
            "model": row["model"],
            "fitted on": row["fitted_on"],
            "measure": f"{row['measure']} {spread(row['value'], row['low'], row['high'])}",
            "gain over the share, nats": spread(row["gain"], row["gain_low"], row["gain_high"]),
            "predicts": "yes" if row["predicts"] else "",
            "slope": "" if np.isnan(row["slope"]) else f"{row['slope']:+.2f}",
            "successes": "" if np.isnan(row["share"]) else f"{100 * row['share']:.0f} %",
            "facts": row["facts"],
            "batches": row["batches"],
        }
        for row in table.to_dict("records")
    ]
    return pd.DataFrame(rows)
