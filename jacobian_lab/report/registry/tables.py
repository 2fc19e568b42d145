"""Tables of the registry, but for those of runs of transfer and of sequence."""

from collections.abc import Callable
from functools import partial
from typing import Any

from jacobian_lab.catalogue import CR, FE, METHODS
from jacobian_lab.report.entries import TableEntry, nothing
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


TABLES: dict[str, TableEntry] = {
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
        lacking=methods.no_pair,
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
"""Tables by name."""
