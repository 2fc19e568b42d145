"""Sweeps over one setting: the number of decisive layers, the μ of jacobian-pullback, and λ."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from jacobian_lab.editing.methods import paired
from jacobian_lab.editing.schemes import SCHEMES, make_targets
from jacobian_lab.errors import InputError
from jacobian_lab.evaluation.examination import Examination
from jacobian_lab.evaluation.questions import style_of
from jacobian_lab.facts.fact import Fact
from jacobian_lab.jobs.bench import Aimed, Bench, any_coordinated, measured_edit
from jacobian_lab.jobs.config import DampingConfig, FrontierConfig, LayerCountConfig
from jacobian_lab.jobs.job import Job, Labels, Part, cell_by_cell
from jacobian_lab.jobs.methods import Comparison
from jacobian_lab.jobs.setup import prepare
from jacobian_lab.maps.agreement import check_replay
from jacobian_lab.model.devices import Places
from jacobian_lab.model.language_model import Layers
from jacobian_lab.planning.costs import Costs, Stage
from jacobian_lab.progress import counted
from jacobian_lab.store.arrays import exists, read_config
from jacobian_lab.store.finished import Finished
from jacobian_lab.store.run import Run

MOST = 8
"""Decisive layers at the most, unless told otherwise."""

YARDSTICKS = ("backward-dividing", "backward-full")
PULLBACK = "jacobian-pullback, μ = {:g}"


def run_layer_count(config: LayerCountConfig, *, progress: bool = True) -> Path:
    """Edit with 1, 2, … decisive layers, the last of them fixed."""
    return layer_count_job(config, progress=progress).carry_out()


def layer_count_job(config: LayerCountConfig, *, progress: bool = True, sketch: Places | None = None) -> Job:
    """The job of `run_layer_count`."""
    experiment = prepare(config, asked=_without_probes, sketch=sketch)
    last = experiment.layers[-1]
    most = min(MOST, last + 1) if config.most is None else config.most
    if most > last + 1:
        raise InputError(f"expected at most {last + 1} layers up to layer {last}, got ⟨most⟩ {most}: lower it")
    layers = tuple(range(last - most + 1, last + 1))
    if sketch is None:
        check_replay(experiment.model, experiment.facts, layers)
    experiment = replace(experiment, layers=layers, crew=experiment.crew.of(layers))
    facts = list(map(_without_probes, experiment.facts))
    bench, examination = Bench(experiment, progress), Examination(experiment.model, facts, style_of(facts), False)
    coordinated, counts = any_coordinated(config.schemes), range(1, most + 1)

    def shifted(run: Run) -> dict[int, torch.Tensor]:
        shifted = counts if coordinated else ()
        return {n: bench.shifts(run, layers[-n:], count=n, anchor_layer=list(layers[-n:])) for n in shifted}

    def edited(run: Run) -> None:
        anchors, shifts = bench.anchors(run, layers), shifted(run)
        examination.remember(experiment.crew)

        def left(scheme: str, count: int) -> Iterator[tuple[str, Any, Labels]]:
            chosen = layers[-count:]
            ends: dict[int, torch.Tensor] = {layer: anchors[layer] for layer in {chosen[0], chosen[-1]}}
            targets = make_targets(experiment.rows, chosen, ends, shifts.get(count))
            _, values = measured_edit(
                bench.setting, SCHEMES[scheme], targets, examine=partial(examination.means, experiment.crew)
            )
            yield "final_ratio", values["residual_ratio"][:, -1], {}
            yield "final_norm", values["residual_norm"][:, -1], {}
            yield "final_ratio_against_optimised", values["residual_ratio_against_optimised"][:, -1], {}
            yield "count_efficacy", values["efficacy"], {}
            yield "count_generalization", values["generalization_accuracy"], {}
            yield "count_kl", values["kl"], {}

        cells = [{"scheme": scheme, "count": n} for n in counts for scheme in config.schemes]
        cell_by_cell(run, "counted", cells, left, "edits", "edit", progress)

    wanted: list[tuple[str, Labels]] = [("anchor_passes", {})]
    if coordinated:
        wanted.append(("coordinated_shift_passes", {}))

    def cost(costs: Costs, done: Finished) -> list[Stage]:
        shifts: dict[Layers, Labels] = {layers[-n:]: {"count": n} for n in counts if coordinated}
        descents = bench.cost_of_descents(costs, done, layers, shifts)
        rows, asked = experiment.rows, costs.evaluation(examination.rows(), shared=True)
        todo = [(each, n) for each in config.schemes for n in counts if not done.all("counted", scheme=each, count=n)]
        edits = sum((costs.edit(rows, SCHEMES[each], layers[-n:], observed=True) + asked for each, n in todo), 0.0)
        name = f"{counted(len(todo), 'edit')}, evaluated"
        return [*descents, costs.editing(name, edits + asked, most, rows=rows, observed=True)]

    return Job(
        "layer_count",
        experiment.model,
        config.out,
        experiment.settings(),
        bench.provenance,
        {
            "fact": experiment.labels(),
            "scheme": list(SCHEMES),
            "count": counts,
            "anchor_layer": list(layers),
            "d_model": range(experiment.model.d_model),
        },
        [Part([*wanted, ("counted", {"scheme": list(config.schemes)})], edited, cost=cost)],
        before=bench.begin,
        before_cost=bench.cost_before,
        kept=bench.kept,
        descents=bench.descents,
        crew=bench.experiment.crew,
    )


def run_damping(config: DampingConfig, *, progress: bool = True) -> Path:
    """Edit with each μ, beside backward spreading."""
    return damping_job(config, progress=progress).carry_out()


def damping_job(config: DampingConfig, *, progress: bool = True, sketch: Places | None = None) -> Job:
    """The job of `run_damping`."""
    experiment = prepare(config, sketch=sketch)
    bench = Bench(experiment, progress)
    edits = {name: (SCHEMES[name], config.pullback_damping) for name in YARDSTICKS}
    edits |= {PULLBACK.format(value): (SCHEMES["jacobian-pullback"], value) for value in config.dampings}

    def damped(run: Run) -> None:
        targets = bench.targets(run, (*YARDSTICKS, "jacobian-pullback"))

        def left(row: str) -> Iterator[tuple[str, Any, Labels]]:
            scheme, damping = edits[row]
            layers, values = measured_edit(replace(bench.setting, damping=damping), scheme, targets)
            for name in ("residual_ratio", "linear_residual_cosine", "realised", "update_norm"):
                yield name, values[name], {"layer": list(layers)}
            yield "efficacy", values["efficacy"], {}

        cell_by_cell(run, "measured", [{"row": row} for row in edits], left, "μ", "edit", progress)

    def cost(costs: Costs, done: Finished) -> list[Stage]:
        rows, asked = experiment.rows, costs.evaluation([experiment.rows.answered])
        todo = [scheme for row, (scheme, _) in edits.items() if not done.all("measured", row=row)]
        made = sum((costs.edit(rows, scheme, experiment.layers, observed=True) + asked for scheme in todo), 0.0)
        descents = bench.cost_of_descents(costs, done, experiment.anchor_layers)
        name, most = counted(len(todo), "edit"), len(experiment.layers)
        return [*descents, costs.editing(name, made, most, rows=rows, observed=True)]

    return Job(
        "damping",
        experiment.model,
        config.out,
        experiment.settings() | {"dampings": list(config.dampings)},
        bench.provenance,
        {
            "fact": experiment.labels(),
            "row": list(edits),
            "layer": list(experiment.layers),
            "anchor_layer": list(experiment.anchor_layers),
            "d_model": range(experiment.model.d_model),
        },
        [Part([("anchor_passes", {}), ("measured", {})], damped, cost=cost)],
        before=bench.begin,
        before_cost=bench.cost_before,
        kept=bench.kept,
        descents=bench.descents,
        crew=bench.experiment.crew,
    )


def run_frontier(config: FrontierConfig, *, progress: bool = True) -> Path:
    """Edit with one rule under every scheme at each λ, and evaluate: what is gained against what is disturbed.

    Anchors, keys and moments are shared by all points.
    """
    return frontier_job(config, progress=progress).carry_out()


def frontier_job(config: FrontierConfig, *, progress: bool = True, sketch: Places | None = None) -> Job:
    """The job of `run_frontier`."""
    methods = [paired(config.rule, scheme) for scheme in config.schemes]
    at_work = Comparison.of(config, methods, progress, sketch=sketch)
    bench = at_work.bench
    try:
        ridges = sorted(set(config.ridges or _held(config.out) or _decades(bench.ridge if sketch is None else 1.0)))
    finally:
        at_work.experiment.crew.release()  # who took the keys for λ: nobody does if the work is not begun

    def measured(run: Run) -> None:
        targets = bench.targets(run, config.schemes)
        at_work.examination.remember(at_work.experiment.crew)

        def point(edit: str, ridge: float) -> list[tuple[str, Any, Labels]]:
            return at_work.measure(edit, Aimed(replace(bench.setting, ridge=ridge), targets))

        cells = [{"edit": name, "ridge": ridge} for name in methods for ridge in ridges]
        cell_by_cell(run, "measured", cells, point, "frontier", "edit", progress)

    wanted = {"edit": methods, "ridge": ridges}
    return Job(
        "frontier",
        at_work.experiment.model,
        config.out,
        at_work.settings() | {"ridges": ridges},
        bench.provenance,
        at_work.coordinates | {"ridge": ridges},
        [
            *at_work.parts(),
            Part([("measured", wanted)], measured, cost=lambda costs, done: at_work.cost(costs, done, ridges)),
        ],
        before=at_work.begin,
        before_cost=at_work.cost_before,
        kept=bench.kept,
        descents=bench.descents,
        crew=bench.experiment.crew,
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
    """What `run_layer_count` asks of a fact."""
    return replace(fact, probes=())
