"""Endpoint of a trial: the best that a scheme reaches within bounds of D_KL, compared over batches of facts.

What is resampled is a batch of facts that were edited together, not a fact. Batches of the same facts with other seeds
of the templates are averaged first, since they are no independent ones.
"""

from collections.abc import Sequence
from itertools import combinations, permutations, product

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from jacobian_lab.report import intervals
from jacobian_lab.tries import averaged_best

NOTHING = {"generalization": 0.0, "efficacy": 0.0, "top10": 100.0}
"""Endpoints, the primary one first, and what a bound counts for that no point keeps."""
STRATUM = ("model", "data")
ALL = "all"
"""Name of the mean over data sets, or over models."""
EXACT = 14
"""Most batches whose signs are flipped in every way; of more, as many ways are drawn."""
COLUMNS = (*STRATUM, "endpoint", "scheme", "against", "mean", "low", "high", "batches", "p", "p_holm")


def reached(points: pd.DataFrame, endpoint: str, bounds: Sequence[float]) -> pd.DataFrame:
    """Compute the endpoint of every scheme and batch.

    Args:
        points: A row for each point along λ: ``model``, ``data``, ``batch``, ``seed``, ``scheme``, ``kl`` in nats, and
            the endpoint × 100.
        endpoint: A column, of `NOTHING`.
        bounds: Bounds of D_KL.

    Returns:
        ``model``, ``data``, ``batch`` and a column for each scheme, the mean over seeds; NaN where a scheme is missing.
    """
    keys = [*STRATUM, "batch", "seed", "scheme"]
    cells = [
        (*key, averaged_best(own[endpoint].to_numpy(float), own["kl"].to_numpy(float), bounds, NOTHING[endpoint]))
        for key, own in points.groupby(keys, sort=False)
    ]
    frame = pd.DataFrame(cells, columns=[*keys, "value"])
    wide = frame.pivot_table(index=[*STRATUM, "batch"], columns="scheme", values="value", aggfunc="mean", sort=False)
    return wide.reindex(columns=list(dict.fromkeys(points["scheme"]))).rename_axis(columns=None).reset_index()


def weights_of(strata: Int[np.ndarray, " batch"]) -> Float[np.ndarray, " batch"]:
    """Weigh batches so that every stratum counts alike.

    Args:
        strata: Stratum of each batch.

    Returns:
        Weights, which add up to one.
    """
    names, place, counts = np.unique(strata, return_inverse=True, return_counts=True)
    return np.asarray(1 / (len(names) * counts[place]))


def interval(
    values: Float[np.ndarray, " batch"], strata: Int[np.ndarray, " batch"], seed: int
) -> tuple[float, float, float]:
    """Mean over strata of their batches' means, with its 95 % interval by a bootstrap over batches.

    Batches are resampled within their stratum. A resample's distance from the mean is stretched by √(n / (n − 1)), n
    the batches of the stratum, without which few batches look too sure. A stratum of one batch has no spread.

    Args:
        values: A value of each batch.
        strata: Its stratum.
        seed: Seed of the resampling.

    Returns:
        Mean, low and high; the latter NaN where no stratum has two batches.
    """
    mean = float(weights_of(strata) @ values)
    groups = [values[strata == name] for name in np.unique(strata)]
    if max(map(len, groups)) < 2:
        return mean, np.nan, np.nan
    rng, moved = np.random.default_rng(seed), np.zeros(intervals.RESAMPLES)
    for group in (group for group in groups if len(group) > 1):
        drawn = rng.choice(group, (intervals.RESAMPLES, len(group))).mean(1)
        moved += np.sqrt(len(group) / (len(group) - 1)) * (drawn - group.mean()) / len(groups)
    low, high = np.quantile(mean + moved, [(1 - intervals.CONFIDENCE) / 2, (1 + intervals.CONFIDENCE) / 2])
    return mean, float(low), float(high)


def sign_flips(differences: Float[np.ndarray, " batch"], strata: Int[np.ndarray, " batch"], seed: int) -> float:
    """Two-sided p value of paired differences: how many ways of flipping their signs come as far from zero.

    Args:
        differences: Difference of two schemes in each batch.
        strata: Its stratum.
        seed: Seed of the ways, where not all are taken.

    Returns:
        The share of ways; never below 2 / 2ⁿ with n batches.
    """
    parts, count = weights_of(strata) * differences, len(differences)
    if count <= EXACT:
        ways = np.array(list(product((1.0, -1.0), repeat=count)))
    else:
        drawn = np.random.default_rng(seed).choice((1.0, -1.0), (2**EXACT - 1, count))
        ways = np.concatenate([np.ones((1, count)), drawn])
    rounding = 1e-12 * np.abs(parts).sum()
    return float((np.abs(ways @ parts) >= abs(parts.sum()) - rounding).mean())


def holm(p_values: Float[np.ndarray, " test"]) -> Float[np.ndarray, " test"]:
    """Correct p values for the number of comparisons (Holm 1979).

    Args:
        p_values: The values; NaN is no comparison.

    Returns:
        The corrected ones: the k-th smallest of m times m − k + 1, never below a smaller one's, and 1 at the most.
    """
    corrected, there = np.full(len(p_values), np.nan), np.flatnonzero(np.isfinite(p_values))
    order = there[np.argsort(p_values[there], kind="stable")]
    steps = p_values[order] * np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0) if len(order) else steps
    return corrected


def compared(
    points: pd.DataFrame, endpoint: str, bounds: Sequence[float], seed: int = 0, confirmatory: Sequence[str] = ()
) -> pd.DataFrame:
    """Compare all schemes by an endpoint, on every data set, on all of a model, and on all models.

    Args:
        points: See `reached`.
        endpoint: See `reached`.
        bounds: See `reached`.
        seed: Seed of the resampling.
        confirmatory: Model and two schemes of the one comparison, over the model's data sets, that was named before.

    Returns:
        Columns `COLUMNS`: a row for each scheme, and below it one for each pair, ``scheme`` less ``against`` over the
        batches that have both. Holm's correction is over all pairs of the endpoint but the confirmatory one.
    """
    values = reached(points, endpoint, bounds)
    schemes = [str(name) for name in values.columns if name not in {*STRATUM, "batch"}]
    pairs = [(scheme, "") for scheme in schemes] + [(after, before) for before, after in combinations(schemes, 2)]
    groups = [(key, own) for key, own in values.groupby(list(STRATUM), sort=False)]
    models = [(name, own) for name, own in values.groupby("model", sort=False)]
    groups += [((name, ALL), own) for name, own in models if own["data"].nunique() > 1]
    groups += [((ALL, ALL), values)] if len(models) > 1 else []
    rows = []
    for (model, data), own in groups:
        strata = own.groupby(list(STRATUM), sort=False).ngroup().to_numpy()
        for scheme, against in pairs:
            held = (own[scheme] - own[against] if against else own[scheme]).to_numpy(float)
            there = np.isfinite(held)
            if not there.any():
                continue
            p_value = sign_flips(held[there], strata[there], seed) if against else np.nan
            summary = interval(held[there], strata[there], seed)
            rows.append((model, data, endpoint, scheme, against, *summary, int(there.sum()), p_value))
    frame = pd.DataFrame(rows, columns=[name for name in COLUMNS if name != "p_holm"])
    named = {(*confirmatory[:1], *pair) for pair in permutations(confirmatory[1:])}
    keys = frame[["model", "scheme", "against"]].itertuples(index=False, name=None)
    alone = (frame["data"] == ALL) & np.array([key in named for key in keys], dtype=bool)
    corrected = holm(frame["p"].mask(alone).to_numpy(float))
    return frame.assign(p_holm=np.where(alone, frame["p"], corrected))[list(COLUMNS)]


def texts(frame: pd.DataFrame) -> pd.DataFrame:
    """Put the rows of `compared` into words.

    Args:
        frame: The rows.

    Returns:
        A row for each, with the mean and its interval, the batches and both p values.
    """
    rows = {}
    for row in frame.to_dict("records"):
        place = "all, each alike" if row["model"] == ALL else f"{row['model']}, {row['data']}"
        place = place.replace(f", {ALL}", ", all data, each alike")
        label = f"{row['scheme']} − {row['against']}" if row["against"] else row["scheme"]
        sign = "+" if row["against"] else ""
        spread = "" if np.isnan(row["low"]) else f" [{row['low']:{sign}.1f}, {row['high']:{sign}.1f}]"
        p_values = ["" if np.isnan(row[name]) else f"{row[name]:.2g}" for name in ("p", "p_holm")]
        rows[f"{place}: {label}"] = [f"{row['mean']:{sign}.1f}{spread}", str(row["batches"]), *p_values]
    columns = ["mean [95 %]", "batches", "p", "p, Holm"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("scheme")
