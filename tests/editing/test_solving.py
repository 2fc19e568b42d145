"""Batches one after the other against a dense solve of each, and what is said of a matrix that is singular."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from jacobian_lab.editing import solving
from jacobian_lab.editing.rules import Problem, alphaedit, emmet, memit
from jacobian_lab.editing.solving import advice, factored
from jacobian_lab.errors import InputError

D_MODEL, D_MLP, FACTS, RIDGE = 9, 40, 24, 3.0
WIDTH = 10  # of so many columns the last is still carried beside the factor


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


KEYS, RESIDUALS, WEIGHT = random(D_MLP, FACTS), random(D_MODEL, FACTS, seed=1), random(D_MODEL, D_MLP, seed=2)
KEYS[:, 5] = KEYS[:, 4] + 1e-3 * KEYS[:, 5]  # two facts with nearly the same key


def moment(condition):
    basis = torch.linalg.qr(random(D_MLP, D_MLP, seed=3))[0]
    values = torch.logspace(0, -float(np.log10(condition)), D_MLP, dtype=torch.float64)
    matrix = basis @ torch.diag(values) @ basis.T
    return (matrix + matrix.T) / 2


def sequence(rule, C, size):
    """Each batch's update, its problem with what the batch before has handed on."""
    carried = None
    for start in range(0, FACTS, size):
        part = slice(start, start + size)
        problem = Problem(4, KEYS[:, part], RESIDUALS[:, part], C, WEIGHT, RIDGE, carried, has_next=True)
        update = rule(problem)
        carried = update.carried
        yield update


def dense_memit(C, S, K, R):
    return np.linalg.solve(RIDGE * C + S + K @ K.T, K @ R.T).T


def dense_emmet(C, S, K, R):
    """Least squares in the eigenbasis of A, damped: the inverses of its formula would lose digits."""
    values, vectors = np.linalg.eigh(RIDGE * C + S)
    roots, facts = np.sqrt(values), K.shape[1]
    stacked = np.vstack([(vectors.T @ K) / roots[:, None], np.sqrt(0.1) * np.eye(facts)])
    right = np.vstack([np.diag(1 / roots), np.zeros((facts, D_MLP))])
    return R @ np.linalg.lstsq(stacked, right, rcond=None)[0] @ vectors.T


def dense_alphaedit(C, S, K, R):
    values, vectors = np.linalg.eigh(C)
    P = vectors[:, values < 0.5] @ vectors[:, values < 0.5].T
    return np.linalg.solve(P @ (K @ K.T + S) + 10 * np.eye(D_MLP), P @ K @ R.T).T


SEQUENTIAL = {
    "memit": (memit, dense_memit),
    "emmet": (emmet, dense_emmet),
    "alphaedit": (partial(alphaedit, threshold=0.5), dense_alphaedit),
}


@pytest.mark.parametrize("condition", [10, 1e6])
@pytest.mark.parametrize("size", [1, 3, WIDTH, WIDTH + 1, FACTS])
@pytest.mark.parametrize("name", SEQUENTIAL)
def test_batches_one_after_the_other_are_the_dense_solves_of_each(name, size, condition):
    """Columns carried beside the factor, folded into it, and batches too wide to be carried."""
    rule, dense = SEQUENTIAL[name]
    C, S = moment(condition), np.zeros((D_MLP, D_MLP))
    for start, update in zip(range(0, FACTS, size), sequence(rule, C, size), strict=True):
        K, R = KEYS[:, start : start + size].numpy(), RESIDUALS[:, start : start + size].numpy()
        expected = dense(C.numpy(), S, K, R)
        assert np.linalg.norm(update.delta.numpy() - expected) < 1e-9 * np.linalg.norm(expected)
        S += K @ K.T


@pytest.mark.parametrize(("size", "factorings"), [(1, 3), (3, 2), (WIDTH + 1, 2), (FACTS, 1)])
def test_a_matrix_is_factored_and_its_condition_estimated_only_when_columns_have_become_many(
    size, factorings, monkeypatch
):
    calls, original = [], solving.dpocon
    monkeypatch.setattr(solving, "dpocon", lambda *a, **k: calls.append(a[0].shape) or original(*a, **k))
    conditions = [update.condition for update in sequence(memit, moment(1e3), size)]
    assert calls == [(D_MLP, D_MLP)] * factorings
    assert len(set(conditions)) == factorings


def test_a_single_batch_is_a_cholesky_solve_to_the_last_bit():
    C = moment(1e3)
    factor = torch.linalg.cholesky(RIDGE * C + KEYS @ KEYS.T)
    expected = torch.cholesky_solve(KEYS @ RESIDUALS.T, factor).T
    alone = Problem(4, KEYS, RESIDUALS, C, WEIGHT, RIDGE)
    assert torch.equal(memit(alone).delta, expected)
    assert memit(alone).carried is None
    assert torch.equal(memit(replace(alone, has_next=True)).delta, expected)


@pytest.mark.parametrize("matrix", [torch.zeros(3, 3), torch.diag(torch.tensor([1.0, 1.0, 1e-18])), -torch.eye(3)])
def test_a_singular_matrix_is_refused(matrix):
    with pytest.raises(InputError, match=r"definite M to solve with, got .* singular to working precision: mend it"):
        factored(matrix.double(), "M", "mend it")


def test_a_matrix_that_becomes_singular_is_refused_by_name():
    """Two facts with the same key, and next to nothing of C."""
    matrix = factored(1e-18 * torch.eye(D_MLP, dtype=torch.float64), "M at layer 4", "raise --ridge")
    with pytest.raises(InputError, match=r"M at layer 4 to solve with, .*: raise --ridge$"):
        matrix.plus(KEYS[:, :1]).plus(KEYS[:, [0]])


@pytest.mark.parametrize("rule", [memit, emmet])
def test_a_singular_solve_names_its_layer(rule):
    low = KEYS[:, :5] @ KEYS[:, :5].T
    with pytest.raises(InputError, match=r"at layer 4 to solve with.*give a longer corpus, or raise ridge$"):
        rule(Problem(4, KEYS[:, :3], RESIDUALS[:, :3], low, WEIGHT, RIDGE))


def test_advice_says_what_helps():
    C = moment(10)
    assert advice(C, 0.0) == "raise ⟨ridge⟩"
    assert advice(C, 1.0) == "give a longer corpus, or raise ⟨ridge⟩"
    C[:5] = C[:, :5] = 0  # no ridge helps here
    assert advice(C, 1.0) == "5 of 40 neurons are silent on the corpus: give another, or other ⟨layers⟩"
