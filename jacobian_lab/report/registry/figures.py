"""Figures of the registry, but for those of runs of transfer and of sequence."""

from functools import partial

from jacobian_lab.catalogue import CR, FE
from jacobian_lab.report import conclusions
from jacobian_lab.report.entries import FigureEntry, drawing
from jacobian_lab.report.tables import methods, residuals, training
from jacobian_lab.report.writing import schemes_with


def _gain(caption: str, step: methods.Step) -> FigureEntry:
    return FigureEntry(
        kinds=("edit_table",),
        caption=caption,
        needs=("efficacy_success",),
        lacking=partial(methods.no_pair, steps=(step,)),
        draw=partial(drawing("compared.gain"), step=step),
        conclusion=partial(conclusions.gain, step=step),
        panels=lambda _dataset: 2,
    )


FIGURES: dict[str, FigureEntry] = {
    "cosine_by_layer": FigureEntry(
        caption="Table 1 as a figure: how well an edit's shift keeps its direction on the way to the last "
        "layer; means with 95 % intervals over facts.",
        needs=("cosine",),
        lacking=partial(residuals.lacking, name="table1"),
        draw=drawing("schemes.cosine_by_layer"),
        conclusion=conclusions.cosine_by_layer,
    ),
    "residual_by_layer": FigureEntry(
        caption="Tables 2 and 5 as a figure: the residual that each scheme leaves after each layer's edit, on the left "
        "over that of the last layer's optimised target, on the right over that of its own; means with 95 % intervals "
        "over facts, a logarithmic axis.",
        needs=("residual_ratio",),
        draw=drawing("schemes.residual_by_layer"),
        conclusion=conclusions.residual_by_layer,
        panels=lambda dataset: len(drawing("schemes.residual_tables")(dataset)),
    ),
    "spread_by_fact": FigureEntry(
        caption="The remaining residual of every single fact under each scheme, and the median; a logarithmic axis.",
        needs=("residual_ratio",),
        draw=drawing("schemes.spread_by_fact"),
        conclusion=conclusions.spread_by_fact,
        panels=lambda dataset: min(4, dataset.sizes["scheme"]),
        height=1.5,
    ),
    "theorem1": FigureEntry(
        caption="Theorem 1: how far the edits' shifts are from eigenvectors of J, against random directions; means "
        "with 95 % intervals over facts; the axis of angles does not begin at zero.",
        needs=("range_position",),
        made_by="theorem1",
        below=True,
        draw=drawing("conditions.theorem1"),
        conclusion=conclusions.theorem1,
        panels=lambda dataset: 1 + drawing("conditions.has_angles")(dataset),
        height=0.6,
    ),
    "theorem2": FigureEntry(
        caption="Theorem 2: the strict condition on S, with the pairs of fact and layer that meet it; the milder one "
        "along the edits' own directions, by J and as it came, means with 95 % intervals over facts.",
        needs=("lambda_min", "linear_cosine"),
        below=True,
        draw=drawing("conditions.theorem2"),
        conclusion=conclusions.theorem2,
        panels=lambda _dataset: 3,
    ),
    "decomposition": FigureEntry(
        caption="What an edit does at the last layer: J·δ, curvature and leakage, scheme by scheme; means "
        "with 95 % intervals over facts.",
        needs=("linear_norm",),
        below=True,
        draw=drawing("schemes.decomposition"),
        conclusion=conclusions.decomposition,
        panels=lambda dataset: len(schemes_with(dataset, "linear_norm")),
        height=1.2,
    ),
    "step_size": FigureEntry(
        caption="Figure 3, measured: the residual after other steps along the edits' shifts, layer by layer; medians "
        "over facts, the bands from quartile to quartile, steps over the best one that J predicts.",
        needs=("step_replayed",),
        made_by="step_size",
        below=True,
        draw=drawing("schemes.step_size"),
        conclusion=conclusions.step_size,
        panels=lambda dataset: dataset.sizes["layer"],
        height=1.0,
    ),
    "layer_count": FigureEntry(
        kinds=("layer_count",),
        caption="The residual that is left, generalisation and D_KL against the number of decisive layers; means with "
        "95 % intervals over facts.",
        needs=("final_ratio",),
        draw=drawing("schemes.layer_count"),
        conclusion=conclusions.layer_count,
        panels=lambda dataset: len(drawing("schemes.counted")(dataset)),
    ),
    "jacobian": FigureEntry(
        kinds=("jacobian",),
        caption="Spectra of the Jacobians, and medians over facts, and how far they are from normal against the "
        "distance, means with 95 % intervals.",
        needs=("singular_value",),
        made_by="jacobian --survey dense",
        draw=drawing("conditions.jacobian"),
        conclusion=conclusions.jacobian,
        panels=lambda _dataset: 4,
        height=1.0,
    ),
    "locate": FigureEntry(
        kinds=("locate",),
        caption="Causal tracing: how much of the answer's probability comes back when a state is restored, by role of "
        "the token and layer, each site on its own scale; white: nothing, or less; a point marks the peak.",
        needs=("effect",),
        draw=drawing("locating.locate"),
        conclusion=conclusions.locate,
        panels=lambda dataset: dataset.sizes["site"],
        height=1.0,
        of_fact=True,
    ),
    "effort": FigureEntry(
        caption="Who carries what: each layer's share of the effort, its price, and its part of the change at the last "
        "layer, scheme by scheme; means over facts.",
        needs=("effort", "price", "carried"),
        draw=drawing("schemes.effort"),
        conclusion=conclusions.effort,
        panels=lambda dataset: len(drawing("schemes.carriers")(dataset)),
        height=1.3,
    ),
    "efficacy_specificity": FigureEntry(
        kinds=("edit_table",),
        caption="Each rule without replay, with forward and with coordinated replay: what it edits, and what it leaves "
        "alone; means with 95 % intervals, the unedited model dotted.",
        needs=("efficacy_accuracy",),
        draw=drawing("compared.efficacy_specificity"),
        conclusion=conclusions.methods,
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
        conclusion=conclusions.routing,
        panels=lambda dataset: len(training.with_router(dataset)),
        height=0.35,
    ),
    "frontier": FigureEntry(
        kinds=("frontier",),
        caption="The frontier: what is generalised against what is disturbed along λ, which stands at the points, a "
        "curve a scheme; a ring marks its smallest λ, bars are 95 % intervals, D_KL is on a logarithmic axis.",
        needs=("efficacy_success",),
        draw=drawing("compared.frontier"),
        conclusion=conclusions.frontier,
        panels=lambda _dataset: 2,
    ),
    "tune": FigureEntry(
        kinds=("tune",),
        caption="A search: what is generalised against what is disturbed along λ, method by method, a curve for each "
        "window and descent, the bound of D_KL dotted, the choice ringed; last, every window's score (lines) and what "
        "the finalists generalise within the bound (points).",
        needs=("kl",),
        draw=drawing("tune.tune"),
        conclusion=conclusions.tune,
        panels=lambda dataset: dataset.sizes["edit"] + 1,
        height=1.0,
    ),
    "fe_gain": _gain("What forward replay adds to each rule, paired over facts; means with 95 % intervals.", ("", FE)),
    "cr_gain": _gain(
        "What coordinated replay adds to forward replay, rule by rule, paired over facts; means with 95 % intervals.",
        (FE, CR),
    ),
}
"""Figures by name."""
