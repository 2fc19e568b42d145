"""Captions of figures: conclusions against numbers that were written into a run, counted by hand."""

import numpy as np
import pytest
from helpers.runs import COORDINATES, FACTS, METHODS, SCHEMES, make_run

from jacobian_lab.report.intervals import summarise
from jacobian_lab.report.registry import FIGURES
from jacobian_lab.report.results import Results

SEED = 3


def conclusion(folder, kind, name, **written):
    run = Results(make_run(folder / "run", kind, **written))
    return FIGURES[name].conclusion(run.dataset)


def by_scheme(values, layer=-1):
    """Numbers of a layer that every fact has alike, scheme by scheme, and one half at all others."""
    array = np.full((len(FACTS), len(SCHEMES), 5), 0.5)
    array[:, :, layer] = np.array(values)
    return array


@pytest.mark.parametrize("kind", COORDINATES)
def test_every_figure_of_a_whole_run_has_a_conclusion_with_numbers(kind, results):
    run = results[kind]
    for name in run.figures:
        sentence, caption = FIGURES[name].conclusion(run.dataset), run.figure_caption(name)
        assert sentence.endswith("."), name
        assert any(sign.isdigit() for sign in sentence) or sentence.startswith("Neither "), name
        assert "nan" not in sentence
        assert caption.startswith(FIGURES[name].caption)
        assert sentence in caption
        assert caption.endswith(f"my_model, {len(FACTS)} facts (builtin 0:6), layers 4-8.")


def test_lambda_stands_in_a_caption(tmp_path):
    run = Results(make_run(tmp_path / "run", "tables", provenance={"ridge": 720.0}))
    assert run.figure_caption("effort").endswith("layers 4-8, λ = 720.")


def test_means_have_the_intervals_of_tables(tmp_path):
    values = by_scheme([0.1, 0.2, 0.3, 0.4, 0.6])
    values[:, 0, -1] = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    own = summarise(values[:, 0, -1], SEED)
    first = f"0.35 [{own['low']:.2f}, {own['high']:.2f}] under backward-dividing"
    assert conclusion(tmp_path, "tables", "residual_by_layer", residual_ratio=values) == (
        f"After layer 8 the mean residual of a scheme's own target is {first}, 0.40 [0.40, 0.40] under forward-replay "
        "and 0.60 [0.60, 0.60] under coordinated-replay."
    )


def test_facts_that_keep_most_are_counted(tmp_path):
    values = by_scheme([0.45, 0.0, 0.0, 0.0, 0.9])
    values[:2, 0, -1] = 0.51
    sentence = conclusion(tmp_path, "tables", "spread_by_fact", residual_ratio=values)
    assert sentence.endswith("for 2 under backward-dividing, 0 under forward-replay and 6 under coordinated-replay.")


def test_definite_jacobians_and_forward_shifts_are_counted_below_the_last_layer(tmp_path):
    decision, cosine = np.ones((6, 5)), np.ones((6, len(SCHEMES), 5))
    decision[0, 1], decision[2, 0], cosine[1, 1, 1], cosine[:, :, 4] = -1, 0, -0.1, -1.0
    run = Results(make_run(tmp_path / "run", "tables", linear_cosine=cosine))
    run.dataset["decision"][:] = decision
    run.dataset["surveyed"][5] = 0
    assert FIGURES["theorem2"].conclusion(run.dataset) == (
        "S is positive definite for 18 of 20 Jacobians; cos(Jδ, δ) is above zero along 119 of 120 shifts."
    )


def test_a_single_layer_below_the_last_stands_once(tmp_path):
    labels = {"layer": [7, 8]}
    run = Results(make_run(tmp_path / "run", "tables", {"layers": [7, 8]}, coordinates=labels))
    assert FIGURES["cosine_by_layer"].conclusion(run.dataset).count("at layer") == 1


def edited(**by_method):
    """Numbers of a metric, one a method, alike for all facts; NaN for methods that are not named."""
    return np.array([by_method.get(name.replace("+", "_"), np.nan) for name in METHODS])


def test_methods_are_named_by_what_they_generalise_and_disturb(tmp_path):
    gains = np.broadcast_to(edited(unedited=1.0, memit=0.5, memit_fe=0.75)[:, None], (6, len(METHODS), 2))
    damage = np.broadcast_to(edited(unedited=0.0, memit=0.2, memit_fe=0.3)[:, None], (6, len(METHODS), 3))
    answers = np.broadcast_to(edited(unedited=0.0, memit=0.5, memit_fe=1.0), (6, len(METHODS)))
    written = {"generalization_accuracy": gains, "kl": damage, "efficacy_accuracy": answers}
    assert conclusion(tmp_path, "edit_table", "efficacy_specificity", **written) == (
        "memit+fe generalises furthest, to 75.0 [75.0, 75.0] % of the paraphrases. memit disturbs least, by 0.20 "
        "[0.20, 0.20] nat, at 50 % of the answers."
    )
    assert conclusion(tmp_path / "b", "edit_table", "fe_gain", **written) == (
        "Clear of zero: generalisation under memit (+25.0 [+25.0, +25.0]); D_KL under memit (+0.10 [+0.10, +0.10])."
    )
    written["kl"] = damage * 0
    written["generalization_accuracy"] = gains * 0
    assert conclusion(tmp_path / "c", "edit_table", "fe_gain", **written) == (
        "Neither generalisation nor D_KL is clear of zero."
    )


def test_frontiers_are_held_to_a_bound_that_all_methods_keep(tmp_path):
    """The third method's least D_KL is the largest of the four's: the bound."""
    damage = np.array([[0.1, 0.5], [0.2, 0.4], [0.3, 0.6], [0.3, 0.05]])
    gains = np.array([[0.2, 0.9], [0.4, 0.9], [0.1, 0.9], [0.3, 0.7]])
    written = {
        "kl": np.broadcast_to(damage[None, :, :, None], (6, 4, 2, 3)),
        "generalization_accuracy": np.broadcast_to(gains[None, :, :, None], (6, 4, 2, 2)),
    }
    assert conclusion(tmp_path, "frontier", "frontier", **written) == (
        "At a D_KL of at most 0.30 nat, which each comes down to, memit@backward-full to 70.0 %, memit+fe to 40.0 %, "
        "memit to 20.0 % and memit+cr to 10.0 % of the paraphrases."
    )


def test_sequences_are_summed_up_by_their_ends(tmp_path):
    data = Results(make_run(tmp_path / "run", "sequence")).dataset
    answers, norms, first = data["efficacy_accuracy"], data["update_norm"], FACTS[:2]
    answers[:], norms[:] = 0.5, 0.1
    answers.loc[{"edit": "memit", "targets": "current"}] = 1.0
    answers.loc[{"edit": "memit+cr", "targets": "current", "fact": first, "look": 2}] = 1.0
    answers.loc[{"edit": "memit+cr", "targets": "current", "fact": first, "look": 6}] = 0.0
    norms.loc[{"edit": "memit", "targets": "unedited", "look": 4, "layer": 5}] = 3.0
    assert FIGURES["sequence"].conclusion(data) == (
        "memit on current targets gives 100.0 % of all new answers after 6 facts and memit+cr on current targets gives "
        "33.3 % of all new answers after 6 facts: the most and the fewest."
    )
    assert FIGURES["forgetting"].conclusion(data) == (
        "memit+cr on current targets forgets most of its first batch: 100 % at first, 0 at last."
    )
    assert FIGURES["norm_growth"].conclusion(data) == (
        "memit changes a weight most: by 3.00 of its norm after 4 facts."
    )
    left, lowest = data["residual_ratio"], data["lambda_min"]
    left[:], lowest[:] = 0.1, np.nan
    left.loc[{"edit": "memit+cr", "targets": "current", "fact": FACTS[4:], "layer": 8}] = 0.4
    grown = "Under memit+cr on current targets the residual left grows most, from 0.10 in the first batch to 0.40 in "
    assert FIGURES["breakdown"].conclusion(data) == f"{grown}the last."
    lowest.loc[{"edit": "memit+cr", "targets": "current", "layer": 4}] = [-1.0, np.nan, -2.0, np.nan, -3.0, np.nan]
    assert FIGURES["breakdown"].conclusion(data) == (
        f"{grown}the last; λ_min of S is -1.00 before the first and -3.00 before the last."
    )


def test_layers_that_do_not_stand_in_a_row_are_named(tmp_path):
    run = Results(make_run(tmp_path / "run", "tables", {"layers": [4, 6, 8]}, coordinates={"layer": [4, 6, 8]}))
    assert run.figure_caption("effort").endswith("layers 4,6,8.")
