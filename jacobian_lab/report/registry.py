"""Every table and every figure once: of which kind of run, from which variables, made by which command, drawn by what.

The same rows serve the command line, the scripts in ``analyses/`` and ``figures/``, and `Results`.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import xarray as xr

from jacobian_lab.report.entries import FigureEntry, TableEntry, nothing
from jacobian_lab.report.figures import compared, conditions, parts, schemes
from jacobian_lab.report.figures import training as trained
from jacobian_lab.report.tables import frontier, methods, residuals, theorems, training
from jacobian_lab.report.tables.descents import descents
from jacobian_lab.report.writing import Table
from jacobian_lab.store.schema import KINDS

_FIRST = ("onelayer", "memit", "blue", "prune", "rect", "alphaedit", "memit+fe")
_FORWARD = ("prune+fe", "rect+fe", "alphaedit+fe")
_COORDINATED = ("memit+cr", "prune+cr", "rect+cr", "alphaedit+cr")
_PAIRS = ("prune", "prune+fe", "rect", "rect+fe", "alphaedit", "alphaedit+fe")


def _residuals(name: str, caption: str, needs: str, *edits: str) -> TableEntry:
    return TableEntry(
        caption=caption,
        needs=(needs,),
        lacking=partial(residuals.lacking, name=name),
        make=partial(residuals.shown, name=name),
        edits=edits,
    )


def _account(name: str, caption: str, *needs: str, made_by: str = "", below: bool = True) -> TableEntry:
    return TableEntry(
        kinds=(name if name in KINDS else "tables",),
        caption=caption,
        needs=needs,
        made_by=made_by or name,
        below=below,
        lacking=theorems.neither if name == "theorem2" else nothing,
        make=partial(theorems.shown, name=name),
    )


def _of_methods(caption: str, make: Callable[..., Table], uses: str = "metrics_intervals") -> TableEntry:
    return TableEntry(
        kinds=("edit_table",), caption=caption, needs=("efficacy_success",), made_by="edit_table", make=make, uses=uses
    )


def _no_pair(dataset: xr.Dataset, steps: Sequence[methods.Step] = methods.GAINS) -> str:
    names = " or ".join(f"a method{before.upper()} and the same with {after[1:].upper()}" for before, after in steps)
    return "" if any(methods.both_ways(dataset, step) for step in steps) else names


_CELLS = (
    "Shares × 100, D_KL in nats; mean [95 % bootstrap interval over facts]; best of each column in bold; the paper's "
    "row below ours."
)


def _methods(table: str, model: str, edits: tuple[str, ...], *more: str) -> TableEntry:
    """A table of the paper; `more` are our methods below those that the paper has."""
    return TableEntry(
        kinds=("edit_table",),
        caption=_CELLS,
        needs=("efficacy_success",),
        made_by="edit_table",
        make=partial(methods.compared, table=table, model=model, ours=(*edits, *more)),
        uses="metrics_intervals",
        edits=(*edits, *more),
        model=model,
    )


TABLES: Mapping[str, TableEntry] = {
    "table1": _residuals(
        "table1",
        "Cosine of the shift that an edit makes at its layer and the passive shift that this makes at the last layer.",
        "cosine",
        "backward-dividing",
    ),
    "table2": _residuals(
        "table2",
        "Remaining residual at the last layer after the edit of each layer, over the initial one; the target is the "
        "anchor optimised at the last layer.",
        "residual_ratio",
        "backward-dividing",
        "backward-full",
        "one-layer",
    ),
    "table5": _residuals(
        "table5",
        "Remaining residual with forward replay, whose target at the last layer is replayed from the anchor at the "
        "first, and with coordinated replay, whose is replayed with shifts at all; below, each scheme against the "
        "others' targets, and absolute norms.",
        "residual_ratio",
        "forward-replay",
        "coordinated-replay",
    ),
    "efficacy": TableEntry(
        caption="Efficacy accuracy: share of facts whose new answer is the argmax at every token, teacher forced, with "
        "its 95 % bootstrap interval.",
        needs=("efficacy_unedited",),
        make=residuals.efficacy_shown,
    ),
    "descents": TableEntry(
        kinds=("tables", "edit_table", "frontier", "layer_count", "damping"),
        caption="Descents: facts whose loss came below that which ends a descent; the loss at the last pass, in nats; "
        "passes until all facts were done.",
        needs=("anchor_loss",),
        make=descents,
    ),
    "measurements": TableEntry(needs=("update_norm",), make=lambda dataset: Table(residuals.measurements(dataset))),
    "theorem1": _account(
        "theorem1",
        "Theorem 1: how near the layers' shifts δ are to eigenvectors of J just before the edit, against random "
        "directions and J's own eigenvectors in the unedited model.",
        "range_position",
    ),
    "theorem2": _account(
        "theorem2",
        "Theorem 2: whether S = (J + Jᵀ)/2 of the unedited model is positive definite, and the milder condition "
        "cos(Jδ, δ) > 0 along the edits' own directions, with J just before the edit.",
    ),
    "decomposition": _account(
        "decomposition",
        "What an edit does at the last layer: δ_L = J·δ + curvature + leakage; norms, cosines with the residual R "
        "before the layer's edit, and shares in the residual that is left (they add up to 1).",
        "linear_norm",
    ),
    "effort": _account(
        "effort",
        "Who carries what: each layer's share of the effort ‖δ‖, its price ‖δ‖²/(kᵀC⁻¹k), the least that its shift "
        "disturbs, and its part of the change at the last layer, with what J·δ accounts for.",
        "effort",
        made_by="tables",
        below=False,
    ),
    "step_size": _account(
        "step_size",
        "Steps t forward along the layers' shifts δ (the edit makes t = 1), up to 3|t*|: the best, the harmful, and "
        "those that J predicts to 10 %.",
        "step_replayed",
    ),
    "conditions": TableEntry(
        kinds=("tables", "jacobian"),
        needs=("lambda_min",),
        made_by="theorem2",
        below=True,
        make=lambda dataset: Table(theorems.conditions(dataset)),
    ),
    "layer_count": _account(
        "layer_count",
        "Residual that is left at the last layer, over the initial one, against the number of decisive layers, the "
        "last one fixed; efficacy and generalisation: share of facts, and of their paraphrases, whose new answer is "
        "the argmax at every token, teacher forced; D_KL in nats; of each fact the mean over its prompts.",
        "final_ratio",
        below=False,
    ),
    "damping": _account(
        "damping",
        "Residual that is left at the last layer, over the initial one, under jacobian-pullback at several μ and under "
        "backward spreading; cosine of J·δ with the residual R before the layer's edit; share of what the layer was "
        "given that it realised; share of facts whose new answer is the argmax at every token, teacher forced.",
        "residual_ratio",
        below=False,
    ),
    "frontier": TableEntry(
        kinds=("frontier",),
        caption="One update rule under several target schemes along λ: shares × 100, D_KL in nats; mean [95 % "
        "bootstrap interval over facts].",
        needs=("efficacy_success",),
        made_by="frontier",
        make=frontier.frontier,
    ),
    "own_ridges": TableEntry(
        kinds=("frontier",),
        caption="Each method at its own λ: for the facts at even places the one that is best on those at odd places, "
        "and the other way round; below, paired differences: shares × 100, D_KL in nats; mean [95 % bootstrap interval "
        "over facts].",
        needs=("efficacy_success",),
        made_by="frontier",
        lacking=frontier.no_halves,
        make=frontier.own_ridges,
    ),
    "jacobian": _account(
        "jacobian",
        "J from the layer to the last one, at the decisive token.",
        "lambda_min",
        below=False,
    ),
    "table3": _methods("table3", "llama-3-8b-instruct", _FIRST, *_COORDINATED),
    "table4": _methods("table4", "llama-3-8b-instruct", _PAIRS, "memit", "memit+fe", *_COORDINATED),
    "table6": _methods("table6", "gpt2-xl", _FIRST, *_FORWARD, *_COORDINATED),
    "table7": _methods("table7", "gpt-j-6b", _FIRST, *_FORWARD, *_COORDINATED),
    "edit_table": _of_methods(f"All methods. {_CELLS}", methods.compared),
    "damage": _of_methods(
        "Damage and cost: neighbourhood success × 100, D_KL, perplexity of the held-out text, ‖ΔW‖/‖W‖, prompts where "
        "greedy decoding differs from teacher-forced accuracy.",
        methods.damage,
    ),
    "gains": TableEntry(
        kinds=("edit_table",),
        caption="What forward replay adds to a rule, what coordinated replay adds to that, and what it adds to the "
        "rule alone, the same facts: shares × 100, D_KL in nats; mean [95 % bootstrap interval].",
        needs=("efficacy_success",),
        made_by="edit_table",
        lacking=_no_pair,
        make=methods.gains,
    ),
    "training": TableEntry(
        kinds=("edit_table",),
        caption="Methods that train: what they learnt, which share (× 100) of the prompts of each kind a memory "
        "serves, and what was changed.",
        made_by="edit_table --methods wise rledit",
        lacking=training.lacking,
        make=training.training,
    ),
    "aims": TableEntry(
        kinds=("edit_table",),
        caption="The decisive token at the model's last block: cosine of the shift that the edit makes there with that "
        "to which the anchor at L leads, and the share of the latter that it realises; mean [95 % bootstrap interval "
        "over facts].",
        needs=("aim_share",),
        made_by="edit_table",
        make=training.aims,
    ),
    "metrics": _of_methods("", methods.metrics_table),
    "metrics_intervals": _of_methods("", lambda dataset: Table(methods.summaries(dataset)), uses=""),
    "records": _of_methods("", lambda dataset: Table(methods.records(dataset)), uses=""),
    "weights": _of_methods("", lambda dataset: Table(methods.weights(dataset)), uses=""),
}
"""Tables by name: files, scripts in ``analyses/`` and, with a dash for the underscore, commands are called the same."""


def _gain(caption: str, step: methods.Step) -> FigureEntry:
    return FigureEntry(
        kinds=("edit_table",),
        caption=caption,
        needs=("efficacy_success",),
        made_by="edit_table",
        lacking=partial(_no_pair, steps=(step,)),
        draw=partial(compared.gain, step=step),
        panels=lambda _dataset: 2,
    )


FIGURES: Mapping[str, FigureEntry] = {
    "cosine_by_layer": FigureEntry(
        caption="Table 1 as a figure: how well an edit's shift keeps its direction on the way to the last layer.",
        needs=("cosine",),
        lacking=partial(residuals.lacking, name="table1"),
        draw=schemes.cosine_by_layer,
    ),
    "residual_by_layer": FigureEntry(
        caption="Tables 2 and 5 as a figure: the residual that each scheme leaves after each layer's edit.",
        needs=("residual_ratio",),
        draw=schemes.residual_by_layer,
    ),
    "spread_by_fact": FigureEntry(
        caption="The remaining residual of every single fact under each scheme, and the median.",
        needs=("residual_ratio",),
        draw=schemes.spread_by_fact,
        panels=lambda dataset: dataset.sizes["scheme"],
        height=1.2,
    ),
    "theorem1": FigureEntry(
        caption="Theorem 1: how far the edits' shifts are from eigenvectors of J, against random directions; the axis "
        "of angles does not begin at zero.",
        needs=("range_position",),
        made_by="theorem1",
        below=True,
        draw=conditions.theorem1,
        panels=lambda dataset: 1 + conditions.has_angles(dataset),
        height=0.6,
    ),
    "theorem2": FigureEntry(
        caption="Theorem 2: the strict condition on S, and the milder one along the edits' own directions.",
        needs=("lambda_min", "linear_cosine"),
        below=True,
        draw=conditions.theorem2,
        panels=lambda _dataset: 3,
    ),
    "decomposition": FigureEntry(
        caption="What an edit does at the last layer: J·δ, curvature and leakage, scheme by scheme.",
        needs=("linear_norm",),
        below=True,
        draw=schemes.decomposition,
        panels=lambda dataset: len(parts.schemes_with(dataset, "linear_norm")),
        height=1.2,
    ),
    "step_size": FigureEntry(
        caption="Figure 3, measured: the residual after other steps along the edits' shifts, layer by layer; medians "
        "over facts, the bands from quartile to quartile, steps over the best one that J predicts.",
        needs=("step_replayed",),
        made_by="step_size",
        below=True,
        draw=schemes.step_size,
        panels=lambda dataset: dataset.sizes["layer"],
        height=1.0,
    ),
    "layer_count": FigureEntry(
        kinds=("layer_count",),
        caption="The residual that is left, generalisation and D_KL against the number of decisive layers.",
        needs=("final_ratio",),
        made_by="layer_count",
        draw=schemes.layer_count,
        panels=lambda dataset: len(schemes.counted(dataset)),
    ),
    "jacobian": FigureEntry(
        kinds=("jacobian",),
        caption="Spectra of the Jacobians, and how far they are from normal against the distance.",
        needs=("singular_value",),
        made_by="jacobian --survey dense",
        draw=conditions.jacobian,
        panels=lambda _dataset: 4,
        height=1.0,
    ),
    "effort": FigureEntry(
        caption="Who carries what: each layer's share of the effort, its price, and its part of the change at the last "
        "layer, scheme by scheme.",
        needs=("effort", "price", "carried"),
        draw=schemes.effort,
        panels=lambda dataset: len(schemes.carriers(dataset)),
        height=1.3,
    ),
    "efficacy_specificity": FigureEntry(
        kinds=("edit_table",),
        caption="Every method in the plane of what it edits and what it leaves alone, with and without replay.",
        needs=("efficacy_success",),
        made_by="edit_table",
        draw=compared.efficacy_specificity,
        panels=lambda _dataset: 2,
    ),
    "routing": FigureEntry(
        kinds=("edit_table",),
        caption="Which prompts a side memory serves: distances of edited, paraphrased and neighbourhood prompts, and "
        "the threshold.",
        needs=("distance",),
        made_by="edit_table --methods wise",
        draw=trained.routing,
        panels=lambda dataset: len(training.with_router(dataset)),
    ),
    "frontier": FigureEntry(
        kinds=("frontier",),
        caption="The frontier: what is generalised against what is disturbed along λ, which stands at the points, a "
        "curve a scheme; a ring marks its smallest λ, bars are 95 % intervals, D_KL is on a logarithmic axis.",
        needs=("efficacy_success",),
        made_by="frontier",
        draw=compared.frontier,
        panels=lambda _dataset: 2,
    ),
    "fe_gain": _gain("What forward replay adds to each rule, paired over facts.", ("", methods.FORWARD)),
    "cr_gain": _gain(
        "What coordinated replay adds to forward replay, rule by rule, paired over facts.",
        (methods.FORWARD, methods.COORDINATED),
    ),
}
"""Figures by name: their files and the scripts in ``figures/`` are called the same."""
