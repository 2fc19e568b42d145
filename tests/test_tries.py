"""The choice among tries of a search, against tables that are read by eye."""

import math

import pandas as pd
import pytest

from jacobian_lab.tries import DESCENT, GRID, RIDGE, Criterion, choices, criterion_of, finalists, reasons, score, within

TRIES = pd.DataFrame(
    [
        ("memit", RIDGE, "0-1", "slow", 1.0, 60.0, 0.30),
        ("memit", RIDGE, "0-1", "slow", 10.0, 50.0, 0.10),
        ("memit", RIDGE, "2-3", "slow", 1.0, 55.0, 0.19),
        ("memit", RIDGE, "2-3", "slow", 10.0, 20.0, 0.01),
        ("memit", DESCENT, "2-3", "fast", 1.0, 55.0, 0.18),
        ("memit", DESCENT, "2-3", "fast", 10.0, 10.0, 0.02),
        ("memit+fe", RIDGE, "0-1", "slow", 1.0, 90.0, 0.90),
        ("memit+fe", RIDGE, "0-1", "slow", 10.0, 80.0, 0.80),
    ],
    columns=["method", "stage", "window", "variant", "ridge", "gain", "kl"],
    index=[10, 11, 12, 13, 14, 15, 16, 17],
)
MEMIT = TRIES[TRIES["method"] == "memit"]


@pytest.mark.parametrize(
    ("bound", "label"),
    [(1.0, 10), (0.30, 10), (0.2, 14), (0.185, 14), (0.15, 11), (0.05, 13), (0.001, 13)],
    ids=["all", "at the bound", "equals by D_KL", "one of equals", "the next", "little", "none keeps it"],
)
def test_the_best_within_a_bound(bound, label):
    assert within(MEMIT, bound) == label


def test_the_first_of_equals_in_everything():
    assert within(pd.concat([MEMIT.loc[[14]].rename({14: 20}), MEMIT.loc[[14]]]), 0.2) == 20


def test_a_try_without_a_number_is_never_the_best():
    assert within(MEMIT.assign(gain=MEMIT["gain"].where(MEMIT.index != 14)), 0.2) == 12


def test_the_average_over_bounds_counts_a_bound_that_none_keeps_as_nothing():
    """Bounds from 0.02 to 2: the first of 20 at 0.01, the second of 55 from 0.19 on, and 0.2 is the fifth of nine."""
    bounds = [0.02, 0.0356, 0.0632, 0.1125, 0.2, 0.356, 0.632, 1.125, 2.0]
    assert [0.2 * factor for factor in GRID] == pytest.approx(bounds, rel=1e-2)
    criterion = Criterion("frontier", 0.2)
    assert criterion.averaged(MEMIT.loc[[12, 13]]) == pytest.approx((4 * 20 + 5 * 55) / 9)
    assert criterion.averaged(MEMIT.loc[[10, 11]]) == pytest.approx((3 * 0 + 2 * 50 + 4 * 60) / 9)
    assert criterion.averaged(MEMIT.loc[[10]]) == pytest.approx(4 * 60 / 9)


def test_the_frontier_chooses_layers_by_the_average_and_the_ridge_by_the_bound():
    """Of 39.4, 37.8 and 35.0 the first; at a bound of 0.05 that window's least disturbing try."""
    assert Criterion("frontier", 0.2).best(MEMIT) == 12
    assert Criterion("bound", 0.2).best(MEMIT) == 14
    assert Criterion("bound", 0.35).best(MEMIT) == 10
    assert Criterion("frontier", 0.35).best(MEMIT) == 10


def test_every_method_is_judged_by_its_own_best():
    assert choices(TRIES, Criterion("bound", 0.2)) == {"memit": 14, "memit+fe": 17}


def test_a_bound_that_is_not_given_is_the_median_of_the_finalists():
    """Of 0.30, 0.10, 0.19, 0.01, 0.90 and 0.80: between 0.19 and 0.30; other descents do not count."""
    settings = {"tune": {"criterion": "bound", "kl_bound": None}}
    assert criterion_of(settings, TRIES) == Criterion("bound", 0.24)
    assert criterion_of({"tune": {"criterion": "frontier", "kl_bound": 0.5}}, TRIES) == Criterion("frontier", 0.5)


@pytest.mark.parametrize(
    ("reached", "left", "disturbance", "expected"),
    [(1, 0, 0, 1), (0.5, 0.2, 0, 0.4), (1, 0.5, 1, 0.25), (1, 1.7, 0, 0), (1, -0.1, 0, 1), (1, math.nan, 0, 0)],
)
def test_a_score_is_what_arrives_and_is_realised_at_its_price(reached, left, disturbance, expected):
    assert score(reached, left, disturbance) == pytest.approx(expected)


def test_finalists_are_the_best_and_of_equals_the_first():
    assert finalists({"a": 0.1, "b": 0.5, "c": 0.5, "d": 0.9}, 3) == ["d", "b", "c"]
    assert finalists({"a": 0.1}, 3) == ["a"]


def test_the_reasons_name_layers_rivals_ridge_and_descents():
    tries = TRIES.assign(generalization=TRIES["gain"])
    observed = pd.DataFrame({
        "method": ["memit"] * 3,
        "window": ["0-1", "2-3", "4-5"],
        "ridge": [10.0, 10.0, 10.0],
        "score": [0.8, 0.9, 0.1],
    })
    text = reasons(observed, tries, "memit", Criterion("bound", 0.2))
    assert text.startswith("Layers 2-3 because of the 2 windows that were evaluated along λ they do best")
    assert "55.0 at D_KL 0.190 (layers 0-1: 50.0 at D_KL 0.100)" in text
    assert "number 1 of 3, with a score of 0.90" in text
    assert "λ = 1 is 0.1 of what suits them, the least that was tried" in text
    assert "Descents at fast, 55.0 at D_KL 0.180 (slow: 55.0 at D_KL 0.190)." in text
    alone = reasons(observed, tries[tries["window"] == "0-1"], "memit", Criterion("bound", 0.05))
    assert "beyond the bound" in alone
    assert "no try kept D_KL within 0.05, and this disturbs least" in alone
