"""A run of schemes summed up in words, beside the paper's numbers."""

from collections.abc import Iterator, Mapping

import numpy as np
import xarray as xr

from jacobian_lab.report.captions import model_name
from jacobian_lab.report.paper import paper_residuals
from jacobian_lab.report.tables.theorems import definite_jacobians, forward_shifts
from jacobian_lab.report.writing import listed, number
from jacobian_lab.store.run import config_of

NAMES: Mapping[str, tuple[str, str]] = {
    "backward-dividing": ("spreading backwards", "table2"),
    "forward-replay": ("forward replay", "table5"),
    "coordinated-replay": ("coordinated replay", "table5"),
}
"""Schemes that are compared in words: what they are called, and the paper's table that has them."""

PARTS = ((1.0, "all"), (0.9, "nearly all"), (0.5, "most"), (0.1, "some"), (0.0, "few"))
"""Least shares, and the words for them."""


def headlines(dataset: xr.Dataset) -> Iterator[str]:
    """Sum up a run of schemes in sentences."""
    layers, schemes = [int(layer) for layer in dataset["layer"].values], list(map(str, dataset["scheme"].values))
    facts = config_of(dataset)["provenance"]["facts"]
    yield (
        f"{dataset.sizes['fact']} facts of {facts['source']} were edited in {model_name(dataset)} at layers "
        f"{layers[0]} to {layers[-1]}, under {len(schemes)} target schemes with the same anchors, keys and seed."
    )
    yield from _residuals(dataset, [name for name in NAMES if name in schemes], layers)
    if "backward-dividing" in schemes and len(layers) > 1:
        cosine = float(dataset["cosine"].sel(scheme="backward-dividing", layer=layers[0]).mean())
        paper = paper_residuals("table1", "backward-dividing", len(layers))[0]
        yield (
            f"A shift at layer {layers[0]} {_direction(cosine)} on its way: what arrives at layer {layers[-1]} has a "
            f"cosine of {number(cosine)} with it{_beside(paper)}."
        )
    yield from _theorem_2(dataset, layers)
    answered = [100 * float(dataset["efficacy"].sel(scheme=name).mean()) for name in schemes]
    before = 100 * float(dataset["efficacy_unedited"].mean())
    span = (
        f"{min(answered):.0f}"
        if round(min(answered)) == round(max(answered))
        else (f"{min(answered):.0f} to {max(answered):.0f}")
    )
    yield (
        f"{_part(min(answered) / 100).capitalize()} facts get their new answer, under the weakest scheme too: {span} % "
        f"of them, {before:.0f} % before."
    )


def _residuals(dataset: xr.Dataset, schemes: list[str], layers: list[int]) -> Iterator[str]:
    """Say how much of the residual each scheme leaves, and which leaves least."""
    ratios = dataset["residual_ratio"].sel(layer=layers[-1])
    left = {name: float(ratios.sel(scheme=name).mean()) for name in schemes}
    left = {name: ratio for name, ratio in sorted(left.items(), key=lambda item: item[1]) if np.isfinite(ratio)}
    if not left:
        return
    sentences = []
    for name, ratio in left.items():
        words, table = NAMES[name]
        sentences.append(f"with {words} {number(ratio)}{_beside(paper_residuals(table, name, len(layers))[-1])}")
    yield (
        f"After the last edit, {listed(sentences)} of the residual at layer {layers[-1]} is left (0: the target is "
        "met; the paper's model is Llama-3-8B)."
    )
    if len(left) > 1:
        yield f"{NAMES[next(iter(left))][0].capitalize()} comes nearest to its own target."


def _theorem_2(dataset: xr.Dataset, layers: list[int]) -> Iterator[str]:
    """Say for how many Jacobians theorem 2's condition holds, and along how many shifts its mild form."""
    below = dataset.sel(layer=layers[:-1])
    (definite, jacobians), (forward, shifts) = definite_jacobians(below), forward_shifts(below)
    if not jacobians:
        return
    yield (
        f"Theorem 2's condition holds for {_part(definite / jacobians) if definite else 'no'} Jacobians: S is positive "
        f"definite for {definite:,} of {jacobians:,}."
    )
    if shifts:
        yield (
            f"Yet {_part(forward / shifts)} shifts of the edits point forward: cos(Jδ, δ) > 0 along {forward:,} of the "
            f"edits' {shifts:,} shifts."
        )


def _part(share: float) -> str:
    """Put a share in words."""
    return next(words for least, words in PARTS if share >= least)


def _direction(cosine: float) -> str:
    """Say how far a direction is kept."""
    if cosine >= 0.9:
        return "keeps its direction"
    return "keeps its direction in part" if cosine >= 0.5 else "loses its direction"


def _beside(paper: float) -> str:
    return "" if np.isnan(paper) else f" (paper {number(paper)})"
