"""Conclusions of figures: a sentence of a caption with the numbers that its run shows, or none."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from jacobian_lab.catalogue import UNEDITED
from jacobian_lab.report.intervals import summarise
from jacobian_lab.report.paper import METRICS
from jacobian_lab.report.tables import locating
from jacobian_lab.report.tables.breakdown import batch_values
from jacobian_lab.report.tables.methods import Step, both_ways, by_fact, means
from jacobian_lab.report.tables.sequence import batches, edited_courses, within
from jacobian_lab.report.tables.theorems import definite_jacobians, forward_shifts
from jacobian_lab.report.tables.training import routed, with_router
from jacobian_lab.report.tables.transfer import SPOKEN, by_group
from jacobian_lab.report.writing import DEGREES, below_last, listed, number, schemes_with, seed_of, with_interval
from jacobian_lab.store.run import config_of
from jacobian_lab.tries import Outcome

MAIN = ("backward-dividing", "forward-replay", "coordinated-replay")
"""Schemes that conclusions name; of a run without them, its first three."""
Cell = Mapping[Any, Any]
"""A mean with the ends of its interval."""
GAIN, DAMAGE = "generalization_accuracy", "kl"
"""Metrics that methods are compared by."""


def cosine_by_layer(dataset: xr.Dataset) -> str:
    """Give the cosine at the ends of the layers below the last."""
    below = below_last(dataset)
    schemes = _main(below, "cosine")
    if not schemes:
        return ""
    layers = [int(layer) for layer in below["layer"].values[[0, -1]]]
    at = [f"{_mean(below, below['cosine'].sel(scheme=schemes[0], layer=layer))} at layer {layer}" for layer in layers]
    return f"Under {schemes[0]} the cosine is {listed(list(dict.fromkeys(at)))}."


def residual_by_layer(dataset: xr.Dataset) -> str:
    """Give the residual that each scheme leaves of its own target."""
    last = dataset.isel(layer=-1)
    left = _of_schemes(last, "residual_ratio", last["residual_ratio"])
    return left and f"After layer {int(last['layer'])} the mean residual of a scheme's own target is {left}."


def spread_by_fact(dataset: xr.Dataset) -> str:
    """Count the facts that keep most of their residual."""
    last = dataset["residual_ratio"].isel(layer=-1)
    counts = [f"{int((last.sel(scheme=name) > 0.5).sum())} under {name}" for name in _main(dataset, "residual_ratio")]
    layer, facts = int(last["layer"]), dataset.sizes["fact"]
    return f"Of {facts} facts, more than half of the residual is left after layer {layer} for {listed(counts)}."


def theorem1(dataset: xr.Dataset) -> str:
    """Compare shifts with random directions at the layer next to the last."""
    edge = below_last(dataset).isel(layer=-1)
    layer = int(edge["layer"])
    if edge["eigenvector_angle"].notnull().any():
        angles = _of_schemes(edge, "eigenvector_angle", edge["eigenvector_angle"] * DEGREES, 1)
        random = _mean(edge, edge["random_eigenvector_angle"] * DEGREES, 1)
        return f"At layer {layer} the angle to the nearest eigenvector, in degrees, is {angles}; {random} at random."
    sines = _of_schemes(edge, "eigen_residual", edge["eigen_residual"])
    return sines and f"At layer {layer} the sine is {sines}; {_mean(edge, edge['random_residual'])} at random."


def theorem2(dataset: xr.Dataset) -> str:
    """Count the Jacobians and the shifts that meet the strict and the milder condition."""
    below = below_last(dataset)
    (definite, decided), (forward, shifts) = definite_jacobians(below), forward_shifts(below)
    return (
        f"S is positive definite for {definite:,} of {decided:,} Jacobians; cos(Jδ, δ) is above zero along "
        f"{forward:,} of {shifts:,} shifts."
    )


def decomposition(dataset: xr.Dataset) -> str:
    """Give the share of curvature at the first layer."""
    first = below_last(dataset).isel(layer=0)
    bent = _of_schemes(first, "curvature_norm", first["curvature_norm"] / first["passive_shift_norm"])
    return f"At layer {int(first['layer'])} the curvature over ‖δ_L‖ is {bent}."


def step_size(dataset: xr.Dataset) -> str:
    """Give the best steps at the first layer."""
    first = below_last(dataset).isel(layer=0)
    steps = _of_schemes(first, "best_step_replayed", first["best_step_replayed"])
    return steps and f"At layer {int(first['layer'])} the best step, over the step taken, is on average {steps}."


def layer_count(dataset: xr.Dataset) -> str:
    """Give the residual with the fewest and with the most layers."""
    schemes, counts = _main(dataset, "final_ratio"), [int(count) for count in dataset["count"].values[[0, -1]]]
    pairs = [
        " and ".join(_mean(dataset, dataset["final_ratio"].sel(scheme=name, count=count)) for count in counts)
        + f" under {name}"
        for name in schemes
    ]
    return f"With {counts[0]} and with {counts[1]} layers the residual left is {'; '.join(pairs)}."


def jacobian(dataset: xr.Dataset) -> str:
    """Count the definite Jacobians, and give the least eigenvalue of S at the first layer."""
    first, (definite, decided) = dataset.isel(layer=0), definite_jacobians(dataset)
    return (
        f"S is positive definite for {definite:,} of {decided:,} Jacobians; at layer {int(first['layer'])} the mean of "
        f"its least eigenvalue is {_mean(first, first['lambda_min'])}."
    )


locate = locating.pointed_out


def effort(dataset: xr.Dataset) -> str:
    """Give the first layer's share of the effort."""
    first = dataset.isel(layer=0)
    return f"Of the effort, layer {int(first['layer'])} has {_of_schemes(first, 'effort', first['effort'])}."


def methods(dataset: xr.Dataset) -> str:
    """Name the method that generalises furthest, and the one that disturbs least."""
    names = [str(name) for name in dataset["edit"].values if name != UNEDITED]
    gains, damages, answers = (_by_method(dataset, names, metric) for metric in (GAIN, DAMAGE, "efficacy_accuracy"))
    sentences = []
    if gains:
        name = max(gains, key=lambda own: gains[own]["mean"])
        sentences.append(f"{name} generalises furthest, to {with_interval(gains[name], 1)} % of the paraphrases.")
    if damages:
        name = min(damages, key=lambda own: damages[own]["mean"])
        share = number(answers[name]["mean"], 0)
        sentences.append(f"{name} disturbs least, by {with_interval(damages[name])} nat, at {share} % of the answers.")
    return " ".join(sentences)


def _by_method(dataset: xr.Dataset, names: Sequence[str], metric: str) -> dict[str, Cell]:
    """Give the mean of a metric with its interval, for each method that has one."""
    frame = means([(dataset[metric].sel(edit=name), METRICS[metric]) for name in names], seed_of(dataset))
    cells = zip(names, frame.to_dict("records"), strict=True)
    return {name: cell for name, cell in cells if np.isfinite(cell["mean"])}


def gain(dataset: xr.Dataset, step: Step) -> str:
    """Name the rules whose gain in generalisation, or change of D_KL, is clear of zero."""
    rules, (before, after) = both_ways(dataset, step), step
    clear = []
    for metric, words, decimals in ((GAIN, "generalisation", 1), (DAMAGE, "D_KL", 2)):
        paired = [dataset[metric].sel(edit=rule + after) - dataset[metric].sel(edit=rule + before) for rule in rules]
        frame = means([(difference, METRICS[metric]) for difference in paired], seed_of(dataset)).set_axis(rules)
        off = frame[(frame["low"] > 0) | (frame["high"] < 0)]
        if len(off):
            changes = [f"{rule} ({with_interval(cell, decimals, '+')})" for rule, cell in off.to_dict("index").items()]
            clear.append(f"{words} under {listed(changes)}")
    return f"Clear of zero: {'; '.join(clear)}." if clear else "Neither generalisation nor D_KL is clear of zero."


def routing(dataset: xr.Dataset) -> str:
    """Give the share of each kind of prompt that a memory serves."""
    parts = []
    for name in with_router(dataset):
        kinds = routed(dataset, name).items()
        shares = [f"{100 * prompts.served:.0f} % of the {kind}" for kind, prompts in kinds if prompts.distances.size]
        parts.append(f"The memory of {name} serves {listed(shares)}.")
    return " ".join(parts)


def frontier(dataset: xr.Dataset) -> str:
    """Compare methods within the least D_KL that all of them come down to."""
    points = pd.DataFrame([point for name in dataset["edit"].values for point in _points(dataset.sel(edit=name))])
    if points.empty:
        return ""
    bound = points.groupby("method")["kl"].min().max()
    bests = points[points["kl"] <= bound].groupby("method", sort=False)["gain"].max().sort_values(ascending=False)
    reached = listed([f"{name} to {best:.1f} %" for name, best in bests.items()])
    return f"At a D_KL of at most {number(bound)} nat, which each comes down to, {reached} of the paraphrases."


def _points(edit: xr.Dataset) -> Iterator[dict[str, object]]:
    """Give the mean generalisation and D_KL of one method at each λ."""
    for ridge in edit["ridge"].values:
        sums = {metric: by_fact(edit[metric].sel(ridge=ridge), METRICS[metric]) for metric in (GAIN, DAMAGE)}
        if all(weights.any() for _, weights in sums.values()):
            gained, disturbed = (float(total.sum() / weights.sum()) for total, weights in sums.values())
            yield {"method": str(edit["edit"].values), "gain": gained, "kl": disturbed}


def tune(dataset: xr.Dataset) -> str:
    """Name the layers and λ that were chosen for each method."""
    outcome = Outcome.of(dataset, config_of(dataset)["settings"])
    tries = {name: outcome.tries.loc[label] for name, label in outcome.choices.items()}
    words = [f"layers {own['window']} and λ = {own['ridge']:.3g} for {name}" for name, own in tries.items()]
    return f"Chosen: {listed(words)}."


def transfer(dataset: xr.Dataset) -> str:
    """Give the share that arrives at each group of prompts at the first layer."""
    first = dataset.isel(layer=0)
    shares = [f"{_mean(own, own['transferred'].mean('prompt'))} at {SPOKEN[group]}" for group, own in by_group(first)]
    return f"At layer {int(first['layer'])} {listed(shares)} arrives."


def sequence(dataset: xr.Dataset) -> str:
    """Name the method that still gives most new answers at its last look, and the one that gives fewest."""
    ends = [(course, course.values["efficacy_accuracy"].isel(look=-1)) for course in edited_courses(dataset)]
    ordered = sorted(ends, key=lambda end: -float(end[1].mean()))
    words = [
        f"{course.method} on {course.targets} targets gives {number(100 * float(answered.mean()), 1)} % of all new "
        f"answers after {course.looks[-1]} facts"
        for course, answered in (ordered[0], *ordered[1:][-1:])
    ]
    return f"{listed(words)}: the most and the fewest." if len(words) > 1 else f"{words[0]}."


def forgetting(dataset: xr.Dataset) -> str:
    """Name the method that forgets most of its first batch."""
    first = batches(dataset)[0]
    ends = []
    for course in edited_courses(dataset):
        answered = within(course.values["efficacy_accuracy"], first).mean("fact")
        answered = answered.sel(look=[look for look in course.looks if look >= first.stop])
        ends.append((course.method, course.targets, 100 * float(answered[0]), 100 * float(answered[-1])))
    name, targets, before, after = max(ends, key=lambda end: end[2] - end[3])
    return f"{name} on {targets} targets forgets most of its first batch: {before:.0f} % at first, {after:.0f} at last."


def norm_growth(dataset: xr.Dataset) -> str:
    """Name the method whose weights change most."""
    norms = [(course, course.values["update_norm"].max("layer")) for course in edited_courses(dataset)]
    course, along = max(norms, key=lambda own: float(own[1].max()))
    grown, look = float(along.max()), course.looks[int(along.values.argmax())]
    return f"{course.method} changes a weight most: by {number(grown)} of its norm after {look} facts."


def breakdown(dataset: xr.Dataset) -> str:
    """Name the method whose batches leave most more of their residual than the first, and what J said before."""
    along: dict[str, dict[tuple[str, str], list[float]]] = {}
    for head, values in batch_values(dataset):
        along.setdefault(head.quantity, {}).setdefault(head[:2], []).append(float(np.nanmean(values)))
    left, lowest = along["residual_left"], along.get("lambda_min", {})
    course = max(left, key=lambda own: left[own][-1] - left[own][0])
    first, last = number(left[course][0]), number(left[course][-1])
    words = (
        f"Under {course[0]} on {course[1]} targets the residual left grows most, from {first} in the first batch to "
        f"{last} in the last"
    )
    if course not in lowest:
        return f"{words}."
    before, after = number(lowest[course][0]), number(lowest[course][-1])
    return f"{words}; λ_min of S is {before} before the first and {after} before the last."


def _main(dataset: xr.Dataset, variable: str) -> list[str]:
    held = schemes_with(dataset, variable)
    return [name for name in MAIN if name in held] or held[:3]


def _of_schemes(dataset: xr.Dataset, variable: str, values: xr.DataArray, decimals: int | None = None) -> str:
    """Join a mean over facts of each scheme."""
    schemes = _main(dataset, variable)
    phrases = [f"{_mean(dataset, values.sel(scheme=name), decimals)} under {name}" for name in schemes]
    return listed(phrases) if phrases else ""


def _mean(dataset: xr.Dataset, values: xr.DataArray, decimals: int | None = None) -> str:
    return with_interval(summarise(values.values, seed_of(dataset)), decimals)
