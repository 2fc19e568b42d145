"""Measurements of every fact, in the order and the form that the page's script reads."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from jacobian_lab.catalogue import ROLES, UNEDITED
from jacobian_lab.report.tables.locating import total_effect
from jacobian_lab.report.tables.theorems import decided
from jacobian_lab.report.writing import below_last
from jacobian_lab.store.schema import DECISIONS

AVERAGED = ("paraphrase", "neighbor")
"""Dimensions of a fact's prompts: it has the mean over them."""
LEVELS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_"
"""Signs of a heat map's cells, from nothing to its peak: a sign a cell, since there are very many."""
DIGITS = 3
"""Digits of a number."""


@dataclass(frozen=True)
class Measure:
    """A number of every fact, under every method or scheme.

    Attributes:
        key: Its name in the page's data.
        name: Heading.
        meaning: Meaning, in a sentence.
        unit: "yes" (1 or 0), "share", "nat", or "number".
        variables: Variables that hold it, the first of which a run has it from.
        main: Whether it has a column beside the facts.
    """

    key: str
    name: str
    meaning: str
    unit: str
    variables: tuple[str, ...]
    main: bool = False


MEASURES = (
    Measure(
        "efficacy",
        "Efficacy",
        "Every token of the new answer is the likeliest, teacher forced.",
        "yes",
        ("efficacy_accuracy", "efficacy", "count_efficacy"),
        main=True,
    ),
    Measure("greedy", "Written", "Greedy decoding writes the whole new answer.", "yes", ("efficacy_greedy",)),
    Measure("success", "Success", "Success on the rewriting prompt.", "share", ("efficacy_success",)),
    Measure(
        "generalization",
        "Generalization",
        "Share of the paraphrases at which every token of the new answer is the likeliest.",
        "share",
        ("generalization_accuracy", "count_generalization"),
        main=True,
    ),
    Measure(
        "kl",
        "D_KL",
        "KL(before ‖ after) of the next token, mean over the neighbourhood prompts.",
        "nat",
        ("kl", "count_kl"),
        main=True,
    ),
    Measure(
        "neighborhood",
        "Neighbourhood",
        "Share of the neighbourhood prompts that still prefer their own answer.",
        "share",
        ("neighborhood_success",),
    ),
    Measure("nll_new", "NLL, new", "Mean NLL of the new answer.", "nat", ("nll_new",), main=True),
    Measure("nll_true", "NLL, true", "Mean NLL of the true answer.", "nat", ("nll_true",), main=True),
    Measure(
        "residual",
        "Residual left",
        "What is left of the residual at the last decisive layer; 0: the target is met, 1: nothing is done.",
        "number",
        ("residual_ratio", "final_ratio"),
        main=True,
    ),
    Measure(
        "aim",
        "Share realised",
        "Share of the anchor's shift at the last block that the edit makes.",
        "number",
        ("aim_share",),
    ),
)
SINGLE = (
    Measure("recalled", "Recalled", "The true answer's first token is the likeliest.", "yes", (), main=True),
    Measure("clean", "P(true)", "Probability of the true answer's first token.", "share", (), main=True),
    Measure("corrupted", "P, corrupted", "The same, the subject corrupted.", "share", (), main=True),
    Measure("effect", "Total effect", "Clean less corrupted.", "share", (), main=True),
    Measure("lambda_min", "Least λ_min", "Smallest λ_min of S over the layers.", "number", (), main=True),
    Measure("definite", "S ≻ 0", "Share of the layers at which S is positive definite.", "share", (), main=True),
)
"""Numbers of a fact that belong to no method."""


def plain(values: Any) -> Any:
    """Nested lists of numbers with few digits; none where there is no value."""
    array = np.asarray(values)
    if array.ndim:
        return [plain(value) for value in array] if array.ndim > 1 else [_short(value) for value in array.tolist()]
    return _short(array.item())


def _short(value: float) -> float | int | None:
    if not np.isfinite(value):
        return None
    short = float(f"{value:.{DIGITS}g}")
    return int(short) if short == int(short) else short


def measurements(dataset: xr.Dataset) -> dict[str, Any]:
    """Methods or schemes, and of each measure the values ``[method][fact]``; one row for all where it has none."""
    arrays = dict(_arrays(dataset))
    dims = max((_along(array) for array in arrays.values()), key=len, default=())
    stacked = {key: _stacked(array, dims) for key, array in arrays.items() if set(_along(array)) == set(dims)}
    alive = [np.isfinite(values).any(axis=1) for values in stacked.values()]
    measured = np.any(alive, axis=0) if alive else np.zeros(1, bool)
    names = list(itertools.compress(labels(dataset, dims), measured))
    rows = {key: values[measured] for key, values in stacked.items()}
    if "efficacy_unedited" in dataset and "efficacy" in rows:
        names.insert(0, UNEDITED)
        before = {"efficacy": dataset["efficacy_unedited"].values}
        blank = np.full(dataset.sizes["fact"], np.nan)
        rows = {key: np.vstack([before.get(key, blank), values]) for key, values in rows.items()}
    single = {key: values.values[None] for key, values in _single(dataset).items()}
    return {"edits": names, "values": {key: plain(values) for key, values in (rows | single).items()}}


def _arrays(dataset: xr.Dataset) -> Iterator[tuple[str, xr.DataArray]]:
    for measure in MEASURES:
        name = next((name for name in measure.variables if name in dataset), None)
        if name is None:
            continue
        array = dataset[name]
        array = array.mean([dim for dim in AVERAGED if dim in array.dims])
        if "window" in array.dims and "variant" not in array.dims:
            continue  # a window that a search observed is no try
        if "layer" in array.dims:
            array = array.isel(layer=-1)
        if array.notnull().any():
            yield measure.key, array


def _along(array: xr.DataArray) -> tuple[str, ...]:
    return tuple(str(dim) for dim in array.dims if dim != "fact")


def _stacked(array: xr.DataArray, dims: Sequence[str]) -> np.ndarray:
    """Values ``[row, fact]``, a row for each combination of labels."""
    return array.transpose(*dims, "fact").values.reshape(-1, array.sizes["fact"])


def labels(dataset: xr.Dataset, dims: Sequence[str]) -> list[str]:
    """Names of all combinations of labels, in the order of `_stacked`."""
    words = {
        "ridge": lambda value: f"λ = {value:g}",
        "window": lambda value: f"layers {value}",
        "count": lambda value: f"{value} layer{'' if value == 1 else 's'}",
        "targets": lambda value: f"{value} targets",
        "look": lambda value: f"{value} edited",
        "point": lambda value: f"λ × {value:g}",
    }
    names = [""]
    for dim in dims:
        own = [words.get(dim, str)(value) for value in dataset[dim].values.tolist()]
        names = [", ".join(filter(None, (name, word))) for name in names for word in own]
    return names


def _single(dataset: xr.Dataset) -> dict[str, xr.DataArray]:
    values: dict[str, xr.DataArray] = {}
    if "answer_clean" in dataset:
        values = {
            "recalled": dataset["recalled"],
            "clean": dataset["answer_clean"],
            "corrupted": dataset["answer_corrupted"],
            "effect": total_effect(dataset),
        }
    if "surveyed" in dataset:
        below = below_last(dataset)
        verdicts = decided(below)
        definite = (verdicts == DECISIONS["definite"]).where(verdicts.notnull())
        values |= {"lambda_min": below["lambda_min"].min("layer"), "definite": definite.mean("layer")}
    return {key: array for key, array in values.items() if array.notnull().any()}


def held_measures(values: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Descriptions of the measures that any of some runs has."""
    keys = set().union(*values)
    return [
        {name: getattr(measure, name) for name in ("key", "name", "meaning", "unit", "main")}
        for measure in (*MEASURES, *SINGLE)
        if measure.key in keys
    ]


def residual_lines(dataset: xr.Dataset) -> dict[str, Any] | None:
    """Residual of each fact by layer, or by number of layers: ``[fact][row][x]``; none if there is none."""
    for name, dim, axis in (("residual_ratio", "layer", "layer"), ("final_ratio", "count", "decisive layers")):
        if name in dataset and dataset[name].notnull().any():
            array = dataset[name]
            dims = [str(other) for other in array.dims if other not in {"fact", dim}]
            values = array.transpose("fact", *dims, dim).values.reshape(array.sizes["fact"], -1, array.sizes[dim])
            alive = np.isfinite(values).any(axis=(0, 2))
            rows = list(itertools.compress(labels(dataset, dims), alive))
            return {"axis": axis, "xs": dataset[dim].values.tolist(), "rows": rows, "values": plain(values[:, alive])}
    return None


def verdicts_by_layer(dataset: xr.Dataset) -> dict[str, Any] | None:
    """Range of S, verdict, and where the edits' shifts lie in it, by fact and layer; none where J was not surveyed."""
    if "surveyed" not in dataset:
        return None
    below = below_last(dataset)
    if not (below.sizes["layer"] and below["lambda_min"].notnull().any()):
        return None
    names = {"min": "lambda_min", "max": "lambda_max", "error": "lambda_error", "decision": "decision"}
    columns = {key: plain(below[name].transpose("fact", "layer").values) for key, name in names.items()}
    along = below.get("rayleigh")
    schemes = [] if along is None else list(map(str, along["scheme"].values))
    return {
        "layers": below["layer"].values.tolist(),
        **columns,
        "surveyed": plain(below["surveyed"].values),
        "schemes": schemes,
        "along": [] if along is None else plain(along.transpose("fact", "scheme", "layer").values),
    }


def traces(dataset: xr.Dataset, tokens: Sequence[Sequence[str]]) -> dict[str, Any] | None:
    """Heat maps of causal traces: of each fact and site its peak, and a sign for each token and layer; none if none."""
    if "effect" not in dataset:
        return None
    effect = dataset["effect"].transpose("fact", "site", "token", "layer").values
    counts = (dataset["role"].transpose("fact", "token").values > 0).sum(axis=1)
    peaks = np.nanmax(np.where(np.isfinite(effect), effect, 0), axis=(2, 3), initial=0)
    return {
        "sites": list(map(str, dataset["site"].values)),
        "layers": dataset["layer"].values.tolist(),
        "roles": ["", *ROLES],
        "tokens": [list(texts) for texts in tokens],
        "role": [row[:count] for row, count in zip(dataset["role"].values.tolist(), counts, strict=True)],
        "peaks": plain(peaks),
        "cells": [
            [_signs(effect[fact, site, :count], peaks[fact, site]) for site in range(effect.shape[1])]
            for fact, count in enumerate(counts)
        ],
    }


def _signs(effect: np.ndarray, peak: float) -> str:
    levels = np.nan_to_num(effect / peak if peak else effect).clip(0, 1) * (len(LEVELS) - 1)
    return "".join(LEVELS[int(level)] for level in np.rint(levels).ravel())
