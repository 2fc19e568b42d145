"""Entries of the registry for runs of sequence."""

from jacobian_lab.report import conclusions
from jacobian_lab.report.entries import FigureEntry, TableEntry, drawing
from jacobian_lab.report.tables import breakdown, sequence

KIND = ("sequence",)
TABLES: dict[str, TableEntry] = {
    "sequence": TableEntry(
        kinds=KIND,
        caption="Edits one after another: efficacy and generalisation accuracy × 100 of the facts edited so far, and "
        "of the batch just edited; D_KL from the unedited model in nats, and neighbourhood success × 100; perplexity "
        "of the held-out text; the largest ‖ΔW‖/‖W‖ and condition number of the layers; mean norm of the held-out "
        "text's states at the last block; first and last loss of the descents of the batch just edited; mean [95 % "
        "bootstrap interval over facts].",
        needs=("perplexity",),
        make=sequence.sequence,
    ),
    "forgetting": TableEntry(
        kinds=KIND,
        caption="Forgetting: efficacy accuracy × 100 of the facts of each batch at each look from its own on; mean "
        "[95 % bootstrap interval over facts].",
        needs=("efficacy_accuracy",),
        lacking=sequence.no_edit,
        make=sequence.forgetting,
    ),
    "breakdown": TableEntry(
        kinds=KIND,
        caption="Batch by batch: the residual that its edit leaves, over the initial one; the cosine of J·δ with the "
        "residual before each layer's edit, and the curvature and leakage of the shift, means over the layers below "
        "the last; S = (J + Jᵀ)/2 and J of the batch's first facts just before its edit; mean [95 % bootstrap interval "
        "over facts].",
        needs=("residual_ratio",),
        made_by="sequence --observe 2",
        make=breakdown.breakdown,
    ),
}
"""Tables of sequences."""

FIGURES: dict[str, FigureEntry] = {
    "sequence": FigureEntry(
        kinds=KIND,
        caption="Edits one after another: what the facts edited so far still give, and the damage, a curve a method; "
        "bars are 95 % intervals; dotted: the unedited model.",
        needs=("perplexity",),
        lacking=sequence.no_edit,
        draw=drawing("sequence.sequence"),
        conclusion=conclusions.sequence,
        panels=lambda _dataset: 4,
        height=1.0,
    ),
    "forgetting": FigureEntry(
        kinds=KIND,
        caption="Forgetting: efficacy accuracy × 100 of each batch's facts (down) after so many facts have been edited "
        "(across), a map a method.",
        needs=("efficacy_accuracy",),
        lacking=sequence.no_edit,
        draw=drawing("sequence.forgetting"),
        conclusion=conclusions.forgetting,
        panels=lambda dataset: drawing("sequence.maps_across")(dataset),
        height=2.0,
    ),
    "norm_growth": FigureEntry(
        kinds=KIND,
        caption="Growth of norms: the largest ‖ΔW‖/‖W‖ of the layers along the sequence; and at its end the mean norm "
        "of the held-out text's states at each block, over the unedited model's.",
        needs=("update_norm", "state_norm"),
        lacking=sequence.no_edit,
        draw=drawing("sequence.norm_growth"),
        conclusion=conclusions.norm_growth,
        panels=lambda _dataset: 2,
        height=0.9,
    ),
    "breakdown": FigureEntry(
        kinds=KIND,
        caption="Batch by batch: the residual that its edit leaves, how well J·δ points at it, what leaks, and the "
        "least eigenvalue of S at the first layer just before the edit; means with 95 % intervals over facts.",
        needs=("residual_ratio",),
        made_by="sequence --observe 2",
        draw=drawing("sequence.breakdown"),
        conclusion=conclusions.breakdown,
        panels=lambda _dataset: 4,
        height=1.0,
    ),
}
"""Figures of sequences."""
