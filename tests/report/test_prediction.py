"""Fits against general solvers and closed forms, areas against sums by hand, and predictors whose truth is known."""

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import mannwhitneyu

from jacobian_lab.report import intervals, prediction
from jacobian_lab.report.prediction import ALL, EVERY_MODEL, OTHERS, OWN, fit_linear, fit_logistic, pairs, predicted


@pytest.fixture(autouse=True)
def more_resamples(monkeypatch):
    monkeypatch.setattr(intervals, "RESAMPLES", 999)


def test_a_logistic_fit_is_where_a_general_solver_ends():
    rng = np.random.default_rng(0)
    x, trials = rng.normal(size=(50, 3)), rng.integers(1, 4, 50).astype(float)
    successes = rng.binomial(trials.astype(int), expit(x[:, 0] - 0.5)).astype(float)

    def loss(w):
        p = expit(w[0] + x @ w[1:])
        return -(successes * np.log(p) + (trials - successes) * np.log(1 - p)).sum() + (w[1:] ** 2).sum() / 2

    expected = minimize(loss, np.zeros(4), method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-10}).x
    np.testing.assert_allclose(fit_logistic(x, successes, trials), expected, atol=1e-4)
    alone = fit_logistic(np.zeros((50, 1)), successes, trials)
    assert expit(alone[0]) == pytest.approx(successes.sum() / trials.sum(), abs=1e-5)


def test_a_linear_fit_is_least_squares_as_the_penalty_says(monkeypatch):
    rng = np.random.default_rng(0)
    x, values = rng.normal(size=(50, 2)), rng.normal(size=50)
    rows = np.vstack([np.column_stack([np.ones(50), x]), np.column_stack([np.zeros(2), np.eye(2)])])
    expected = np.linalg.lstsq(rows, np.concatenate([values, np.zeros(2)]), rcond=None)[0]
    np.testing.assert_allclose(fit_linear(x, values, np.ones(50)), expected)
    monkeypatch.setattr(prediction, "PENALTY", 0.0)
    np.testing.assert_allclose(fit_linear(x, values, np.ones(50)), np.linalg.lstsq(rows[:50], values, rcond=None)[0])


def test_pairs_are_those_of_a_rank_sum_and_never_of_one_fact():
    rng = np.random.default_rng(0)
    scores, successes = rng.integers(0, 8, 40).astype(float), rng.integers(0, 2, 40).astype(float)
    wins, every = pairs(scores, successes, np.ones(40))
    expected = mannwhitneyu(scores[successes == 1], scores[successes == 0]).statistic
    assert (wins, every) == (expected, successes.sum() * (40 - successes.sum()))
    # by hand: fact 0 has one of two, fact 1 two of two; one pair, the failure of fact 0 with each success of fact 1
    assert pairs(np.array([0.0, 1.0]), np.array([1.0, 2.0]), np.array([2.0, 2.0])) == (2.0, 2.0)


def truth(models=("m", "n", "o"), batches=6, size=32, seed=0):
    """Facts whose success and D_KL one predictor decides; batches and models differ by far more than facts do."""
    rng = np.random.default_rng(seed)
    parts = []
    for place, model in enumerate(models):
        for batch in range(batches):
            decides, noise = rng.normal(size=size), rng.normal(size=size)
            level = rng.normal()
            parts.append(
                pd.DataFrame({
                    "model": model,
                    "batch": f"{model} {batch}",
                    "edit": f"{model} {batch} memit",
                    "method": "memit",
                    "efficacy": (decides > np.quantile(decides, 0.3)).astype(float),
                    "generalization": rng.binomial(2, expit(decides)) / 2,
                    "paraphrases": 2,
                    "kl": np.exp(3 * place + level - 2 * decides),
                    "decides": (1 + place) * 7 * decides + 100 * place,
                    "against": -decides + 0.5 * rng.normal(size=size),
                    "noise": noise,
                    "of the batch": level,
                    "constant": 1.0,
                    "lacking": np.where(rng.uniform(size=size) < 0.3, np.nan, decides),
                })
            )
    return pd.concat(parts, ignore_index=True)


PREDICTORS = ["decides", "against", "noise", "of the batch", "constant", "lacking"]


@pytest.fixture(scope="module")
def table():
    return predicted(truth(), PREDICTORS)


def cell(table, outcome, predictor, model="m", fitted_on=OWN):
    (row,) = table[
        (table["outcome"] == outcome)
        & (table["predictor"] == predictor)
        & (table["model"] == model)
        & (table["fitted_on"] == fitted_on)
    ].to_dict("records")
    return row


@pytest.mark.parametrize(("model", "fitted_on"), [("m", OWN), ("n", OTHERS), (EVERY_MODEL, OTHERS)])
def test_what_decides_the_outcome_is_found_and_noise_is_not(table, model, fitted_on):
    decides = cell(table, "efficacy", "decides", model, fitted_on)
    assert decides["value"] > 0.99
    assert decides["gain_low"] > 0.2
    assert decides["slope"] > 0
    assert decides["predicts"]
    assert 0.6 < decides["share"] < 0.75
    noise = cell(table, "efficacy", "noise", model, fitted_on)
    assert 0.35 < noise["value"] < 0.65
    assert noise["low"] < 0.55
    assert noise["gain"] < 0.02
    assert not noise["predicts"]
    against = cell(table, "efficacy", "against", model, fitted_on)
    assert against["low"] > 0.75
    assert against["slope"] < 0
    assert cell(table, "efficacy", ALL, model, fitted_on)["value"] > 0.95
    assert 0.6 < cell(table, "generalization", "decides", model, fitted_on)["value"] < 0.95


def test_the_logarithm_of_d_kl_is_fitted_within_each_edit(table):
    for model, fitted_on in (("m", OWN), ("m", OTHERS), (EVERY_MODEL, OTHERS)):
        assert cell(table, "kl", "decides", model, fitted_on)["value"] > 0.9
        assert cell(table, "kl", "noise", model, fitted_on)["value"] < 0.1
        assert (
            cell(table, "kl", "of the batch", model, fitted_on)["value"] < 0.05
        )  # though it says which batch is worse
    row = cell(table, "kl", "decides")
    assert (row["measure"], row["slope"] < 0) == ("R²", True)
    assert np.isnan(row["gain"])


def test_what_tells_batches_apart_does_not_tell_facts_apart(table):
    assert cell(table, "efficacy", "of the batch")["value"] == pytest.approx(0.5)


def test_rows_count_what_they_are_of_and_stand_best_first(table):
    row = cell(table, "efficacy", "decides")
    assert (row["facts"], row["batches"]) == (6 * 32, 6)
    assert cell(table, "efficacy", "lacking")["facts"] < 6 * 32
    assert cell(table, "efficacy", "decides", EVERY_MODEL, OTHERS)["batches"] == 18
    assert "constant" not in set(table["predictor"])
    outcomes = table["outcome"].tolist()
    assert outcomes == sorted(outcomes, key=["efficacy", "generalization", "kl"].index)
    for _, own in table.groupby("outcome"):
        assert (np.diff(own["value"]) <= 0).all()
    rows_of_text = prediction.texts(table)
    assert rows_of_text.loc[0, "measure"].startswith("area 1.000 [")


def test_predictors_are_standardised_within_each_model_and_some_by_their_logarithm():
    frame = truth().assign(ease=lambda own: 10.0 ** own["decides"].clip(-9, 9))
    x = prediction.standardised(frame, ["decides", "ease", "constant", "lacking"])
    for model, own in x.groupby(frame["model"]):
        np.testing.assert_allclose(own["decides"].std(), 1.0)
        assert abs(own["decides"].mean()) < 1e-9
        raw = frame["decides"][frame["model"] == model].clip(-9, 9)
        np.testing.assert_allclose(own["ease"], (raw - raw.mean()) / raw.std() if raw.std() > 1e-9 else 0)
    assert (x["constant"] == 0).all()
    assert x["lacking"].isna().equals(frame["lacking"].isna())


def test_a_batch_is_never_fitted_to_itself(monkeypatch):
    """Turn the outcome of one batch round: its own area turns round and the others' hardly change."""
    facts = truth(models=("m",))
    turned = facts["batch"] == "m 0"
    facts.loc[turned, "efficacy"] = 1 - facts.loc[turned, "efficacy"]
    outcome = prediction.OUTCOMES[0]
    own = prediction.facts_of(facts, outcome, prediction.standardised(facts, ["decides"]))
    (left,) = prediction.scored(own.select(own.batches == "m 0"), own.select(own.batches != "m 0"), outcome)
    assert left.value / left.weight < 0.01
    assert left.gain < 0
    (other,) = prediction.scored(own.select(own.batches == "m 1"), own.select(own.batches != "m 1"), outcome)
    assert other.value / other.weight > 0.99


def test_two_batches_that_contradict_each_other_predict_each_other_the_wrong_way_round():
    facts = truth(("m",), batches=2)
    turned = facts["batch"] == "m 0"
    facts.loc[turned, "efficacy"] = 1 - facts.loc[turned, "efficacy"]
    facts = prediction.facts_of(facts, prediction.OUTCOMES[0], prediction.standardised(facts, ["decides"]))
    (row,) = prediction._cross_validated(facts, prediction.OUTCOMES[0], 0)
    assert row["value"] < 0.01


def test_noise_hardly_ever_counts_as_a_predictor():
    """The interval of the area alone would let a tenth of it through: the sign is free."""
    rows = []
    for seed in range(60):
        frame = truth(("m",), 4, 24, seed)
        facts = prediction.facts_of(frame, prediction.OUTCOMES[0], prediction.standardised(frame, ["noise"]))
        rows += list(prediction._cross_validated(facts, prediction.OUTCOMES[0], 0))
    assert np.mean([row["predicts"] for row in rows]) <= 0.05
    assert np.mean([row["value"] for row in rows]) == pytest.approx(0.5, abs=0.02)


def test_outcomes_that_do_not_differ_have_no_row():
    facts = truth(("m",)).assign(efficacy=1.0)
    table = predicted(facts, ["decides"])
    assert set(table["outcome"]) == {"generalization", "kl"}
    assert predicted(truth(("m",), batches=1), ["decides"]).empty
