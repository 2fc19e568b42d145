"""Sweeps over one setting: the number of decisive layers, the μ of jacobian-pullback, and λ."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from jacobian_lab.catalogue import SCHEMES, paired, with_setting
from jacobian_lab.editing.schemes import make_targets
from jacobian_lab.errors import InputError
from jacobian_lab.evaluation.evaluator import Evaluator
from jacobian_lab.evaluation.questions import style_of
from jacobian_lab.facts.fact import Fact
from jacobian_lab.jobs.comparison import Aimed, Comparison, Measured
from jacobian_lab.jobs.config import DampingConfig, FrontierConfig, LayerCountConfig
from jacobian_lab.jobs.counts import Counts
from jacobian_lab.jobs.experiment import prepare
from jacobian_lab.jobs.job import Job, Labels, Part, each_cell, unfinished
from jacobian_lab.jobs.measuring import measured_edit
from jacobian_lab.jobs.recording import Recorded, descents
from jacobian_lab.maps.agreement import check_replay
from jacobian_lab.model.devices import Places
from jacobian_lab.planning.work import Stage, total
from jacobian_lab.progress import counted
from jacobian_lab.session.descents import FIRSTS
from jacobian_lab.session.session import any_coordinated
from jacobian_lab.store.arrays import exists, read_config
from jacobian_lab.store.run import Run

MOST = 8
"""Decisive layers at the most, unless told otherwise."""

YARDSTICKS = ("backward-dividing", "backward-full")
ALPHAEDIT = "alphaedit"
PULLBACK = "jacobian-pullback, μ = {:g}"


def layer_count_job(config: LayerCountConfig, *, progress: bool = True, sketch: Places | None = None) -> Job:
    """Edit with 1, 2, … decisive layers, the last of them fixed."""
    for name in config.schemes:
        if SCHEMES[name].kind in FIRSTS:
            raise InputError(f"expected schemes without descents of their own, got {name}: leave it out of ⟨schemes⟩")
    experiment = prepare(config, questions=_without_probes, progress=progress, sketch=sketch)
    last = experiment.layers[-1]
    most = min(MOST, last + 1) if config.max_layers is None else config.max_layers
    if most > last + 1:
        raise InputError(f"expected at most {last + 1} layers up to layer {last}, got ⟨max_layers⟩ {most}: lower it")
    layers, counts_of_layers = tuple(range(last - most + 1, last + 1)), range(1, most + 1)
    if sketch is None:
        check_replay(experiment.model, experiment.facts, layers)
    experiment = experiment.with_layers(layers)
    session, rows, coordinated = experiment.session, experiment.rows, any_coordinated(config.schemes)
    facts = list(map(_without_probes, experiment.facts))
    evaluator = Evaluator(experiment.model, facts, style_of(facts), False)
    shifted = {n: {"count": n, "anchor_layer": list(layers[-n:])} for n in counts_of_layers if coordinated}
    cells = [{"scheme": scheme, "count": n} for n in counts_of_layers for scheme in config.schemes]

    def work(counts: Counts, left: Sequence[Labels]) -> Iterable[Stage]:
        parts = evaluator.rows()
        answers = counts.evaluation(parts)
        edit_work = total(
            counts.edit(rows, SCHEMES[cell["scheme"]], layers[-cell["count"] :], observed=True) + answers
            for cell in left
        )
        yield counts.editing(
            f"{counted(len(left), 'edit')}, evaluated", edit_work + answers, most, rows, observed=True, parts=parts
        )

    def compute(run: Run, left: Sequence[Labels]) -> None:
        recorder = Recorded(run, experiment)
        anchors = session.anchors(recorder, layers)
        shifts = {n: session.shifts(recorder, layers[-n:], where) for n, where in shifted.items()}
        evaluator.remember(experiment.executor)

        def edit(scheme: str, count: int) -> Iterator[tuple[str, Any, Labels]]:
            own = layers[-count:]
            ends: dict[int, torch.Tensor] = {layer: anchors[layer] for layer in {own[0], own[-1]}}
            targets = make_targets(rows, own, ends, shifts.get(count), anchors)
            examine = partial(evaluator.means, experiment.executor)
            _, values = measured_edit(session.setting, SCHEMES[scheme], targets, examine=examine)
            yield "final_ratio", values["residual_ratio"][:, -1], {}
            yield "final_norm", values["residual_norm"][:, -1], {}
            yield "final_ratio_against_optimised", values["residual_ratio_against_optimised"][:, -1], {}
            yield "count_efficacy", values["efficacy"], {}
            yield "count_generalization", values["generalization_accuracy"], {}
            yield "count_kl", values["kl"], {}

        each_cell(run, "counted", left, edit, "edits", "edit", progress)

    return Job(
        "layer_count",
        experiment.model,
        config.out,
        experiment.settings(),
        experiment.solved,
        {
            "fact": experiment.labels(),
            "scheme": list(SCHEMES),
            "count": counts_of_layers,
            "anchor_layer": list(layers),
            "d_model": range(experiment.model.d_model),
        },
        [
            descents(experiment, layers, list(shifted.values())),
            Part(lambda done: unfinished(done, "counted", cells), compute, work),
        ],
        before=experiment.preparation(),
        descents=session.descent_dtype,
        executor=experiment.executor,
    )


def damping_job(config: DampingConfig, *, progress: bool = True, sketch: Places | None = None) -> Job:
    """Edit with each μ, beside backward spreading."""
    experiment = prepare(config, progress=progress, sketch=sketch)
    session, rows, layers = experiment.session, experiment.rows, experiment.layers
    edits = {name: (SCHEMES[name], config.pullback_damping) for name in YARDSTICKS}
    edits |= {PULLBACK.format(value): (SCHEMES["jacobian-pullback"], value) for value in config.dampings}
    cells = [{"row": row} for row in edits]

    def work(counts: Counts, left: Sequence[Labels]) -> Iterable[Stage]:
        answers = counts.evaluation([rows.answered])
        edit_work = total(counts.edit(rows, edits[cell["row"]][0], layers, observed=True) + answers for cell in left)
        yield counts.editing(counted(len(left), "edit"), edit_work, len(layers), rows, observed=True)

    def compute(run: Run, left: Sequence[Labels]) -> None:
        targets = session.targets(Recorded(run, experiment), (*YARDSTICKS, "jacobian-pullback"))

        def edit(row: str) -> Iterator[tuple[str, Any, Labels]]:
            scheme, damping = edits[row]
            edited, values = measured_edit(replace(session.setting, damping=damping), scheme, targets)
            for name in ("residual_ratio", "linear_residual_cosine", "realised", "update_norm"):
                yield name, values[name], {"layer": list(edited)}
            yield "efficacy", values["efficacy"], {}

        each_cell(run, "measured", left, edit, "μ", "edit", progress)

    return Job(
        "damping",
        experiment.model,
        config.out,
        experiment.settings() | {"dampings": list(config.dampings)},
        experiment.solved,
        {
            "fact": experiment.labels(),
            "row": list(edits),
            "layer": list(layers),
            "anchor_layer": list(session.anchor_layers),
            "d_model": range(experiment.model.d_model),
        },
        [
            descents(experiment, session.anchor_layers, []),
            Part(lambda done: unfinished(done, "measured", cells), compute, work),
        ],
        before=experiment.preparation(),
        descents=session.descent_dtype,
        executor=experiment.executor,
    )


def frontier_job(config: FrontierConfig, *, progress: bool = True, sketch: Places | None = None) -> Job:
    """Edit with one rule under every scheme at each λ, and evaluate: what is gained against what is disturbed.

    Anchors, keys and moments are shared by all points. AlphaEdit, which has no λ, goes along its L2.
    """
    if config.thresholds and config.rule != ALPHAEDIT:
        raise InputError(f"expected ⟨thresholds⟩ with ⟨rule⟩ alphaedit, got them with {config.rule}: leave them out")
    methods = [paired(config.rule, scheme) for scheme in config.schemes]
    edits = {name: (name, config.rules) for name in methods}
    if thresholds := sorted(set(config.thresholds or ())):
        rules = {value: replace(config.rules, alphaedit_threshold=value) for value in thresholds}
        edits = {with_setting(name, value): (name, own) for name in methods for value, own in rules.items()}
    comparison = Comparison.of(config, methods, progress, sketch=sketch)
    experiment = comparison.experiment
    session = experiment.session

    def own_weight() -> float:
        if config.rule == ALPHAEDIT:
            return config.rules.alphaedit_l2
        return session.ridge if sketch is None else 1.0

    try:
        ridges = sorted(set(config.ridges or _held(config.out) or _decades(own_weight())))
    finally:
        experiment.executor.release()  # who took the keys for λ: nobody does if the work is not begun
    cells = [{"edit": label, "ridge": ridge} for label in edits for ridge in ridges]

    def work(counts: Counts, left: Sequence[Labels]) -> Iterable[Stage]:
        return comparison.work(counts, [edits[cell["edit"]][0] for cell in left])

    def compute(run: Run, left: Sequence[Labels]) -> None:
        targets = session.targets(Recorded(run, experiment), config.schemes)
        comparison.evaluator.remember(experiment.executor)

        def point(edit: str, ridge: float) -> Measured:
            name, own_rules = edits[edit]
            if config.rule == ALPHAEDIT:
                return comparison.measure(name, Aimed(targets, rules=replace(own_rules, alphaedit_l2=ridge)))
            return comparison.measure(name, Aimed(targets, setting=replace(session.setting, ridge=ridge)))

        each_cell(run, "measured", left, point, "frontier", "edit", progress)

    labels = [*comparison.coordinates["edit"], *(label for label in edits if thresholds)]
    return Job(
        "frontier",
        experiment.model,
        config.out,
        comparison.settings() | {"ridges": ridges} | ({"thresholds": thresholds} if thresholds else {}),
        experiment.solved,
        comparison.coordinates | {"edit": labels, "ridge": ridges},
        [*comparison.parts(), Part(lambda done: unfinished(done, "measured", cells), compute, work)],
        before=comparison.preparation(min(thresholds, default=None)),
        descents=session.descent_dtype,
        executor=experiment.executor,
    )


def _held(folder: Path | None) -> list[float]:
    """The values of λ that a run has been made with; none where there is no run, 1 where it is one that is refused."""
    if folder is None or not exists(folder):
        return []
    return list(read_config(folder)["settings"].get("ridges", [1.0]))


def _decades(ridge: float) -> list[float]:
    """λ from a thirtieth to thirty times a value, in seven steps, with two digits."""
    return [float(f"{ridge * 10 ** (0.5 * step):.1e}") if step else ridge for step in range(-3, 4)]


def _without_probes(fact: Fact) -> Fact:
    """A fact as layer-count asks about it."""
    return replace(fact, probes=())
