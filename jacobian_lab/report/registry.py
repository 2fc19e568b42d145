"""Registry of tables and figures: for each the kinds of run, the variables, the command and the function that make it.

The same rows serve the command line, the scripts in ``analyses/`` and ``figures/``, and `Results`. Figures are drawn by
`jacobian_lab.report.figures`, which is imported when the first one is.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import xarray as xr

from jacobian_lab.catalogue import CR, FE, METHODS
from jacobian_lab.report import sequence, transfer
from jacobian_lab.report.entries import FigureEntry, TableEntry, drawing, nothing
from jacobian_lab.report.paper import paper_methods, paper_schemes
from jacobian_lab.report.tables import convergence, frontier, locating, methods, residuals, theorems, training, tune
from jacobian_lab.report.writing import Table
from jacobian_lab.store.schema import KINDS


def _residuals(name: str, caption: str, needs: str, *more: str) -> TableEntry:
    """Table 1, 2 or 5 of the paper; `more` are our schemes beside those that it has."""
    return TableEntry(
        caption=caption,
        needs=(needs,),
        lacking=partial(residuals.lacking, name=name),
        make=partial(residuals.as_table, name=name),
        edits=(*paper_schemes(name), *more),
    )


def _account(name: str, caption: str, *needs: str, made_by: str = "", below: bool = True) -> TableEntry:
    return TableEntry(
        kinds=(name if name in KINDS else "tables",),
        caption=caption,
        needs=needs,
        made_by=made_by or name,
        below=below,
        lacking=theorems.neither if name == "theorem2" else nothing,
        make=partial(theorems.as_table, name=name),
    )


def _of_methods(caption: str, make: Callable[..., Table], uses: Any = methods.summaries, **more: Any) -> TableEntry:
    return TableEntry(
        kinds=("edit_table",),
        caption=caption,
        needs=("efficacy_success",),
        make=make,
        uses=uses,
        **more,
    )


def _no_pair(dataset: xr.Dataset, steps: Sequence[methods.Step] = methods.GAINS) -> str:
    names = " or ".join(f"a method{before.upper()} and the same with {after[1:].upper()}" for before, after in steps)
    return "" if any(methods.both_ways(dataset, step) for step in steps) else names


_CELLS = (
    "Shares × 100, D_KL in nats; mean [95 % bootstrap interval over facts]; best of each column in bold; the paper's "
    "row below ours."
)
_RULES = ("memit", "prune", "rect", "alphaedit")
"""The paper's update rules."""
_FORWARD, _COORDINATED = (tuple(rule + suffix for rule in _RULES) for suffix in (FE, CR))
_BELOW_PAPER = {
    "table3": _COORDINATED,
    "table4": ("memit", *_FORWARD[:1], *_COORDINATED),
    "table6": (*_FORWARD[1:], *_COORDINATED),
    "table7": (*_FORWARD[1:], *_COORDINATED),
}
"""The paper's tables of methods, and our methods below its own."""


def _methods(name: str, *more: str) -> TableEntry:
    rows = paper_methods()[paper_methods()["table"] == name]
    edits = (*(method for method in dict.fromkeys(rows["method"]) if method in METHODS), *more)
    (model,) = set(rows["model"])
    make = partial(methods.compared, table=name, model=model, own_methods=edits)
    return _of_methods(_CELLS, make, edits=edits, model=model)


TABLES: Mapping[str, TableEntry] = {
    "table1": _residuals(
        "table1",
        "Cosine of the shift that an edit makes at its layer and the passive shift that this makes at the last layer.",
        "cosine",
    ),
    "table2": _residuals(
        "table2",
        "Remaining residual at the last layer after the edit of each layer, over the initial one; the target is the "
        "anchor optimised at the last layer.",
        "residual_ratio",
    ),
    "table5": _residuals(
        "table5",
        "Remaining residual with forward replay, whose target at the last layer is replayed from the anchor at the "
        "first, and with coordinated replay, whose is replayed with shifts at all; below, each scheme against the "
        "others' targets, and absolute norms.",
        "residual_ratio",
        "coordinated-replay",
    ),
    "efficacy": TableEntry(
        caption="Efficacy accuracy: share of facts whose new answer is the argmax at every token, teacher forced, with "
        "its 95 % bootstrap interval.",
        needs=("efficacy_unedited",),
        make=residuals.efficacy_shown,
    ),
    "descents": TableEntry(
        kinds=("tables", "edit_table", "frontier", "layer_count", "damping", "transfer"),
        caption="Descents: facts whose loss came below that which ends a descent; the loss at the last pass, in nats; "
        "passes until all facts were done.",
        needs=("anchor_loss",),
        make=convergence.descents,
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
    **transfer.TABLES,
    **sequence.TABLES,
    "frontier": TableEntry(
        kinds=("frontier",),
        caption="One update rule under several target schemes along λ: shares × 100, D_KL in nats; mean [95 % "
        "bootstrap interval over facts].",
        needs=("efficacy_success",),
        make=frontier.frontier,
    ),
    "own_ridges": TableEntry(
        kinds=("frontier",),
        caption="Each method at its own λ: for the facts at even places the one that is best on those at odd places, "
        "and the other way round; below, paired differences: shares × 100, D_KL in nats; mean [95 % bootstrap interval "
        "over facts].",
        needs=("efficacy_success",),
        lacking=frontier.no_halves,
        make=frontier.cross_validated,
    ),
    "tune": TableEntry(
        kinds=("tune",),
        caption="A search over layers, λ, learning rate and passes. Stage window: an edit at the λ that suits it, "
        "observed; ridge: the finalists along λ; descent: other descents on the best window. Score: share of facts "
        "whose descent arrived (reached), times the share of the way that the edit went, over 1 plus the disturbance: "
        "what the shifts change of other tokens' states at the least, over these. Shares × 100, D_KL in nats.",
        needs=("kl",),
        make=tune.tune,
    ),
    "jacobian": _account(
        "jacobian",
        "J from the layer to the last one, at the decisive token.",
        "lambda_min",
        below=False,
    ),
    "locate": TableEntry(
        kinds=("locate",),
        caption="Causal tracing: the probability of the true answer's first token with a state restored, less that "
        "with the subject corrupted alone; for each site and role of the token the layer where the mean over facts is "
        "largest, with its 95 % bootstrap interval.",
        needs=("effect",),
        make=locating.as_table,
    ),
    **{name: _methods(name, *more) for name, more in _BELOW_PAPER.items()},
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
        make=training.aims,
    ),
    "metrics": _of_methods("", methods.metrics_table),
    "records": _of_methods("", lambda dataset: Table(methods.records(dataset)), uses=None),
    "weights": _of_methods("", lambda dataset: Table(methods.weights(dataset)), uses=None),
}
"""Tables by name: files, scripts in ``analyses/`` and, with a dash for the underscore, commands are called the same."""


def _gain(caption: str, step: methods.Step) -> FigureEntry:
    return FigureEntry(
        kinds=("edit_table",),
        caption=caption,
        needs=("efficacy_success",),
        lacking=partial(_no_pair, steps=(step,)),
        draw=partial(drawing("compared.gain"), step=step),
        panels=lambda _dataset: 2,
    )


FIGURES: Mapping[str, FigureEntry] = {
    "cosine_by_layer": FigureEntry(
        caption="Table 1 as a figure: how well an edit's shift keeps its direction on the way to the last layer.",
        needs=("cosine",),
        lacking=partial(residuals.lacking, name="table1"),
        draw=drawing("schemes.cosine_by_layer"),
    ),
    "residual_by_layer": FigureEntry(
        caption="Tables 2 and 5 as a figure: the residual that each scheme leaves after each layer's edit, on the left "
        "over that of the last layer's optimised target, on the right over that of its own; a logarithmic axis.",
        needs=("residual_ratio",),
        draw=drawing("schemes.residual_by_layer"),
        panels=lambda dataset: len(drawing("schemes.residual_tables")(dataset)),
    ),
    "spread_by_fact": FigureEntry(
        caption="The remaining residual of every single fact under each scheme, and the median; a logarithmic axis.",
        needs=("residual_ratio",),
        draw=drawing("schemes.spread_by_fact"),
        panels=lambda dataset: min(4, dataset.sizes["scheme"]),
        height=1.5,
    ),
    "theorem1": FigureEntry(
        caption="Theorem 1: how far the edits' shifts are from eigenvectors of J, against random directions; the axis "
        "of angles does not begin at zero.",
        needs=("range_position",),
        made_by="theorem1",
        below=True,
        draw=drawing("conditions.theorem1"),
        panels=lambda dataset: 1 + drawing("conditions.has_angles")(dataset),
        height=0.6,
    ),
    "theorem2": FigureEntry(
        caption="Theorem 2: the strict condition on S, with the pairs of fact and layer that meet it; the milder one "
        "along the edits' own directions, by J and as it came.",
        needs=("lambda_min", "linear_cosine"),
        below=True,
        draw=drawing("conditions.theorem2"),
        panels=lambda _dataset: 3,
    ),
    "decomposition": FigureEntry(
        caption="What an edit does at the last layer: J·δ, curvature and leakage, scheme by scheme.",
        needs=("linear_norm",),
        below=True,
        draw=drawing("schemes.decomposition"),
        panels=lambda dataset: len(drawing("axes.schemes_with")(dataset, "linear_norm")),
        height=1.2,
    ),
    "step_size": FigureEntry(
        caption="Figure 3, measured: the residual after other steps along the edits' shifts, layer by layer; medians "
        "over facts, the bands from quartile to quartile, steps over the best one that J predicts.",
        needs=("step_replayed",),
        made_by="step_size",
        below=True,
        draw=drawing("schemes.step_size"),
        panels=lambda dataset: dataset.sizes["layer"],
        height=1.0,
    ),
    "layer_count": FigureEntry(
        kinds=("layer_count",),
        caption="The residual that is left, generalisation and D_KL against the number of decisive layers.",
        needs=("final_ratio",),
        draw=drawing("schemes.layer_count"),
        panels=lambda dataset: len(drawing("schemes.counted")(dataset)),
    ),
    "jacobian": FigureEntry(
        kinds=("jacobian",),
        caption="Spectra of the Jacobians, and how far they are from normal against the distance.",
        needs=("singular_value",),
        made_by="jacobian --survey dense",
        draw=drawing("conditions.jacobian"),
        panels=lambda _dataset: 4,
        height=1.0,
    ),
    "locate": FigureEntry(
        kinds=("locate",),
        caption="Causal tracing: how much of the answer's probability comes back when a state is restored, by role of "
        "the token and layer, each site on its own scale; white: nothing, or less; a point marks the peak.",
        needs=("effect",),
        draw=drawing("locating.locate"),
        panels=lambda dataset: dataset.sizes["site"],
        height=1.0,
        of_fact=True,
    ),
    "effort": FigureEntry(
        caption="Who carries what: each layer's share of the effort, its price, and its part of the change at the last "
        "layer, scheme by scheme.",
        needs=("effort", "price", "carried"),
        draw=drawing("schemes.effort"),
        panels=lambda dataset: len(drawing("schemes.carriers")(dataset)),
        height=1.3,
    ),
    "efficacy_specificity": FigureEntry(
        kinds=("edit_table",),
        caption="Each rule without replay, with forward and with coordinated replay: what it edits, and what it leaves "
        "alone; means with 95 % intervals, the unedited model dotted.",
        needs=("efficacy_accuracy",),
        draw=drawing("compared.efficacy_specificity"),
        panels=lambda _dataset: 4,
        height=1.4,
    ),
    "routing": FigureEntry(
        kinds=("edit_table",),
        caption="Which prompts a side memory serves: distances of edited, paraphrased and neighbourhood prompts, and "
        "the threshold.",
        needs=("distance",),
        made_by="edit_table --methods wise",
        draw=drawing("training.routing"),
        panels=lambda dataset: len(training.with_router(dataset)),
        height=0.35,
    ),
    "frontier": FigureEntry(
        kinds=("frontier",),
        caption="The frontier: what is generalised against what is disturbed along λ, which stands at the points, a "
        "curve a scheme; a ring marks its smallest λ, bars are 95 % intervals, D_KL is on a logarithmic axis.",
        needs=("efficacy_success",),
        draw=drawing("compared.frontier"),
        panels=lambda _dataset: 2,
    ),
    **transfer.FIGURES,
    **sequence.FIGURES,
    "tune": FigureEntry(
        kinds=("tune",),
        caption="A search: what is generalised against what is disturbed along λ, method by method, a curve for each "
        "window and descent, the bound of D_KL dotted, the choice ringed; last, every window's score (lines) and what "
        "the finalists generalise within the bound (points).",
        needs=("kl",),
        draw=drawing("tune.tune"),
        panels=lambda dataset: dataset.sizes["edit"] + 1,
        height=1.0,
    ),
    "fe_gain": _gain("What forward replay adds to each rule, paired over facts.", ("", FE)),
    "cr_gain": _gain(
        "What coordinated replay adds to forward replay, rule by rule, paired over facts.",
        (FE, CR),
    ),
}
"""Figures by name: their files and the scripts in ``figures/`` are called the same."""
