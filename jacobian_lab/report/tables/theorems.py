"""Tables of the theorems, an edit's decomposition and effort, step sizes, layer counts, Jacobians and transfer."""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pandas as pd
import xarray as xr

from jacobian_lab.report.captions import facts_line
from jacobian_lab.report.intervals import summaries_of
from jacobian_lab.report.tables.residuals import MEANS, wide
from jacobian_lab.report.tables.transfer import SPOKEN, by_group
from jacobian_lab.report.writing import DEGREES, Table, below_last, seed_of
from jacobian_lab.store.run import config_of
from jacobian_lab.store.schema import DECISIONS, RANDOM_DIRECTIONS

Row = tuple[str, xr.DataArray] | tuple[str, xr.DataArray, xr.DataArray]
"""Label; values, one a fact and layer (or number of layers); for shares, the number of trials of each."""

DECIDED = {DECISIONS["definite"]: "True", DECISIONS["indefinite"]: "False", DECISIONS["undecided"]: "undecided"}
"""Verdicts on S in ``conditions.csv``."""

CONDITIONS = (
    "lambda_min",
    "lambda_max",
    "positive_share",
    "definite",
    "sigma_max",
    "cholesky",
    "lambda_error",
    "margin",
    "sigma_min",
    "spectral_radius",
    "henrici",
    "rotation",
    "distance",
)


def decided(dataset: xr.Dataset) -> xr.DataArray:
    """Verdicts on S of the facts whose J has been surveyed; NaN for the others."""
    return dataset["decision"].where(dataset["surveyed"] == 1)


def definite_jacobians(dataset: xr.Dataset) -> tuple[int, int]:
    """Count the Jacobians whose S is positive definite, and all that have been surveyed."""
    verdicts = decided(dataset)
    return int((verdicts == DECISIONS["definite"]).sum()), int(verdicts.notnull().sum())


def forward_shifts(dataset: xr.Dataset) -> tuple[int, int]:
    """Count the shifts of edits with cos(Jδ, δ) > 0, and all shifts."""
    cosines = dataset["linear_cosine"]
    return int((cosines > 0).sum()), int(cosines.notnull().sum())


HALF = ("bfloat16", "float16")
NOT_KNOWN = {
    "trust_share": "The step trusted to 10 % is not known: {dtype} rounds a replayed state by more than a tenth of the "
    "shortest steps; give --dtype float32."
}
"""Reasons why a variable cannot be measured with half as many bits."""

CAUTIONS = {
    "decomposition": "In {dtype} curvature has the rounding of two replays in it, and is too large by that.",
    "step_size": "In {dtype} harm that begins below a tenth of t* is left out: rounding decides where.",
}
"""Cautions about rounding with half as many bits, by table."""


def as_table(dataset: xr.Dataset, name: str) -> Table:
    """One of the tables, with its texts."""
    long = summarized(dataset, name)
    counts = long["count"][long["count"] > 0]
    cells = (
        MEANS.replace("median", "median; of shares, how many of how many") if long["trials"].notna().any() else MEANS
    )
    return Table(wide(long), " ".join([*_reasons(dataset, name), facts_line(dataset, counts, cells)]), long)


def summarized(dataset: xr.Dataset, name: str) -> pd.DataFrame:
    """One of the tables in long form."""
    heads, cells, rows = [], [], []
    dim = "layer"
    for label, values, *counted in ROWS[name](dataset):
        (dim,) = (str(dim) for dim in values.dims if dim != "fact")
        for place, cell in zip(values[dim].values.tolist(), values.transpose(dim, "fact").values, strict=True):
            trials = [of.where(values.notnull()).sel({dim: place}).values for of in counted]
            sums = [(np.rint(np.nansum(cell * of)), np.nansum(of)) for of in trials] or [(np.nan, np.nan)]
            heads.append((label, place, *sums[0]))
            cells.append(cell)
            rows.append(bool(np.isfinite(cell).any()) or _not_known(dataset, values))
    frame = pd.DataFrame(heads, columns=["row", "count_of_layers" if dim == "count" else dim, "hits", "trials"])
    means = summaries_of(np.array(cells, dtype=float).reshape(len(cells), dataset.sizes["fact"]), seed_of(dataset))
    counts = [frame.pop(name) for name in ("hits", "trials")]
    return pd.concat([frame, means, *counts], axis=1)[np.array(rows, dtype=bool)].reset_index(drop=True)


def _reasons(dataset: xr.Dataset, name: str) -> list[str]:
    """Reasons why some rows are not known, or not to be taken at their word."""
    unknown = {values.name for _, values, *_ in ROWS[name](dataset) if _not_known(dataset, values)}
    dtype = config_of(dataset)["settings"]["dtype"]
    reasons = [reason for variable, reason in NOT_KNOWN.items() if variable in unknown]
    reasons += [caution for table, caution in CAUTIONS.items() if table == name and dtype in HALF]
    return [reason.format(dtype=dtype) for reason in reasons]


def _not_known(dataset: xr.Dataset, values: xr.DataArray) -> bool:
    return values.name in NOT_KNOWN and config_of(dataset)["settings"]["dtype"] in HALF


def conditions(dataset: xr.Dataset) -> pd.DataFrame:
    """Spectra in numbers and the verdict of theorem 2, one row for each fact and layer below the last."""
    last = max(config_of(dataset)["settings"]["layers"])
    names = [name for name in CONDITIONS if name in dataset]
    frame = dataset[[*names, "decision", "surveyed"]].to_dataframe(dim_order=["fact", "layer"]).reset_index()
    frame = frame[(frame["surveyed"] == 1) & (frame["layer"] < last)]
    frame = frame.assign(definite=frame["decision"].map(DECIDED), distance=last - frame["layer"])
    return frame[["fact", "layer", *CONDITIONS]]


def neither(dataset: xr.Dataset) -> str:
    """Name the variables of theorem 2's table where a run has none of them."""
    below = below_last(dataset)
    held = any(np.isfinite(below[name]).any() for name in ("lambda_min", "linear_cosine"))
    return "" if held else "lambda_min or linear_cosine"


def _schemes(dataset: xr.Dataset) -> Iterator[tuple[str, xr.Dataset]]:
    for scheme in dataset["scheme"].values:
        yield str(scheme), dataset.sel(scheme=scheme)


def _share(label: str, values: xr.DataArray, condition: xr.DataArray) -> Row:
    """The share of facts at which a condition holds, of those with a value."""
    holds = condition.astype(float).where(values.notnull())
    return label, holds, xr.ones_like(holds)


def _random_positive(dataset: xr.Dataset) -> Row:
    share = dataset["random_positive"]
    return "random directions: share with cos(Jv, v) > 0", share, xr.full_like(share, RANDOM_DIRECTIONS)


def _verdicts(dataset: xr.Dataset) -> Iterator[Row]:
    verdicts = decided(dataset)
    yield _share("S ≻ 0, share of facts", verdicts, verdicts == DECISIONS["definite"])
    yield _share("undecided, share of facts", verdicts, verdicts == DECISIONS["undecided"])


def _theorem_1(dataset: xr.Dataset) -> Iterator[Row]:
    dataset = below_last(dataset)
    for scheme, edit in _schemes(dataset):
        yield f"{scheme}: eigen-residual sin∠(Jδ, δ)", edit["eigen_residual"]
        yield f"{scheme}: Rayleigh quotient β", edit["rayleigh"]
        yield f"{scheme}: cos(Jδ, δ)", edit["linear_cosine"]
        yield f"{scheme}: gain ‖Jδ‖/‖δ‖", edit["gain"]
        yield f"{scheme}: angle to the nearest eigenvector, °", edit["eigenvector_angle"] * DEGREES
        yield f"{scheme}: angle to the nearest invariant plane, °", edit["plane_angle"] * DEGREES
    yield "random directions: eigen-residual", dataset["random_residual"]
    yield "random directions: Rayleigh quotient β", dataset["random_rayleigh"]
    yield "random directions: cos(Jv, v)", dataset["random_cosine"]
    yield "random directions: gain ‖Jv‖/‖v‖", dataset["random_gain"]
    yield "random directions: angle to the nearest eigenvector, °", dataset["random_eigenvector_angle"] * DEGREES
    yield "random directions: angle to the nearest invariant plane, °", dataset["random_plane_angle"] * DEGREES
    yield "J's real eigenvectors: largest eigen-residual", dataset["eigenvector_residual"]
    positive = "J's real eigenvectors: share with cos(Jv, v) > 0"
    yield positive, dataset["eigenvector_positive"], dataset["eigenvector_count"]


def _theorem_2(dataset: xr.Dataset) -> Iterator[Row]:
    dataset = below_last(dataset)
    yield from _verdicts(dataset)
    yield "λ_min of S", dataset["lambda_min"]
    yield "positive eigenvalues of S, share", dataset["positive_share"]
    yield _random_positive(dataset)
    for scheme, edit in _schemes(dataset):
        along = edit["linear_cosine"]
        yield _share(f"{scheme}: share of facts with cos(Jδ, δ) > 0", along, along > 0)
        yield f"{scheme}: cos(Jδ, δ), linear", edit["linear_cosine"]
        yield f"{scheme}: cos(δ_L, δ), realised", edit["cosine"].where(edit["linear_cosine"].notnull())
        yield f"{scheme}: place of β between λ_min (0) and λ_max (1)", edit["range_position"]


def _decomposition(dataset: xr.Dataset) -> Iterator[Row]:
    dataset = below_last(dataset)
    for scheme, edit in _schemes(dataset):
        for term, symbol in (("linear", "J·δ"), ("curvature", "curvature"), ("leakage", "leakage")):
            yield f"{scheme}: ‖{symbol}‖ / ‖δ_L‖", edit[f"{term}_norm"] / edit["passive_shift_norm"]
            yield f"{scheme}: cos({symbol}, R)", edit[f"{term}_residual_cosine"]
        for term in ("initial", "linear", "curvature", "leakage"):
            yield f"{scheme}: share of {term} in the residual left", edit[f"share_{term}"]


def _effort(dataset: xr.Dataset) -> Iterator[Row]:
    for scheme, edit in _schemes(dataset):
        price = edit["price"]
        yield f"{scheme}: share of the effort", edit["effort"]
        yield f"{scheme}: price", price
        yield f"{scheme}: share of the price", price / price.sum("layer", min_count=1)
        yield f"{scheme}: carried to the last layer", edit["carried"]
        yield f"{scheme}: carried by J·δ", edit["carried_linear"]
        if (edit["out_of_reach"] > 0).any():  # a norm stands behind the MLPs
            yield f"{scheme}: share of the residual out of reach", edit["out_of_reach"]


def _step_size(dataset: xr.Dataset) -> Iterator[Row]:
    for scheme, edit in _schemes(below_last(dataset)):
        yield f"{scheme}: best step t*, by J", edit["best_step"]
        yield f"{scheme}: best step, replayed", edit["best_step_replayed"]
        yield f"{scheme}: residual after t*, replayed", edit["best_residual"]
        yield f"{scheme}: residual after the best replayed step", edit["best_residual_replayed"]
        yield _share(f"{scheme}: share of facts with t* > 0", edit["best_step"], edit["best_step"] > 0)
        yield f"{scheme}: step beyond which J predicts harm", edit["harm_bound"]
        yield f"{scheme}: step beyond which replay shows harm, where there is one", edit["harm_bound_replayed"]
        harm = edit["harm_bound_replayed"].notnull()
        yield _share(f"{scheme}: share of facts with harm up to 3|t*|", edit["best_step"], harm)
        yield f"{scheme}: norm of the step trusted to 10 %, over ‖h‖", edit["trust_share"]


def _layer_count(dataset: xr.Dataset) -> Iterator[Row]:
    for scheme, edit in _schemes(dataset):
        yield f"{scheme}: residual left, own target", edit["final_ratio"]
        yield f"{scheme}: residual left, optimised target", edit["final_ratio_against_optimised"]
        yield f"{scheme}: efficacy", edit["count_efficacy"]
        yield f"{scheme}: generalisation", edit["count_generalization"]
        yield f"{scheme}: D_KL", edit["count_kl"]


def _damping(dataset: xr.Dataset) -> Iterator[Row]:
    last = int(dataset["layer"].values[-1])
    for row in dataset["row"].values:
        edit = dataset.sel(row=row)
        yield f"{row}: residual left", edit["residual_ratio"]
        yield f"{row}: cos(J·δ, R)", edit["linear_residual_cosine"].where(edit["layer"] < last)
        yield f"{row}: realised", edit["realised"]
        yield f"{row}: efficacy", edit["efficacy"].expand_dims(layer=[last])


def _jacobian(dataset: xr.Dataset) -> Iterator[Row]:
    yield from _verdicts(dataset)
    yield "λ_min of S", dataset["lambda_min"]
    yield "λ_max of S", dataset["lambda_max"]
    yield "positive eigenvalues of S, share", dataset["positive_share"]
    yield _random_positive(dataset)
    yield "σ_max of J", dataset["sigma_max"]
    yield "σ_min of J", dataset["sigma_min"]
    yield "spectral radius of J", dataset["spectral_radius"]
    yield "random directions: gain ‖Jv‖/‖v‖", dataset["random_gain"]
    yield "Henrici's departure from normality", dataset["henrici"]
    yield "rotation ‖A‖/‖S‖", dataset["rotation"]


def _transfer(dataset: xr.Dataset) -> Iterator[Row]:
    for group, prompts in by_group(dataset):
        yield f"share that arrives: {SPOKEN[group]}", prompts["transferred"].mean("prompt")
    yield "share that the key gets of its own fact's shift, kᵀA⁻¹k", dataset["own_share"]
    yield "kᵀC⁻¹k", dataset["ease"]


ROWS: Mapping[str, Callable[[xr.Dataset], Iterator[Row]]] = {
    "theorem1": _theorem_1,
    "theorem2": _theorem_2,
    "decomposition": _decomposition,
    "effort": _effort,
    "step_size": _step_size,
    "layer_count": _layer_count,
    "damping": _damping,
    "jacobian": _jacobian,
    "transfer": _transfer,
}
"""The rows of each table, from an open run of its kind."""
