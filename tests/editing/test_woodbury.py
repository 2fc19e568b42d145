"""Solves from a factor of C that is made once, against solves from the whole matrix."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from jacobian_lab.editing import solving
from jacobian_lab.editing.problems import Problem
from jacobian_lab.editing.rules import RULES, RuleSettings
from jacobian_lab.editing.solving import factored, grown, remembered_factor

D_MODEL, D_MLP = 11, 60


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moment(condition):
    basis = torch.linalg.qr(random(D_MLP, D_MLP, seed=3))[0]
    values = torch.logspace(0, -math.log10(condition), D_MLP, dtype=torch.float64)
    matrix = basis @ torch.diag(values) @ basis.T
    return (matrix + matrix.T) / 2


def columns(matrix, count, kind):
    """Keys as the corpus has them, with two that are nearly the same, or of directions that the corpus hardly has."""
    if kind == "strange":
        return random(D_MLP, count)
    keys = torch.linalg.cholesky(matrix) @ random(D_MLP, count)
    if count > 1 and kind == "twins":
        keys[:, 1] = keys[:, 0] + 1e-6 * keys[:, 1]
    return keys


def problem(matrix, keys, ridge):
    residuals, weight = random(D_MODEL, keys.shape[1], seed=1), random(D_MODEL, D_MLP, seed=2)
    return Problem(4, keys, residuals, matrix, weight, ridge)


def apart(change, expected):
    return float((change - expected).norm() / expected.norm())


@pytest.mark.parametrize("kind", ["usual", "twins", "strange"])
@pytest.mark.parametrize("condition", [10, 1e3, 1e5, 1e7, 1e9])
def test_a_solve_by_woodbury_is_the_direct_one(condition, kind):
    """To 1e-10 at any conditioning: where that forbids it, there is a direct one."""
    matrix, used = moment(condition), []
    remembered = factored(matrix, "C", "")
    for count in (1, 5, int(solving.FOLD * D_MLP), D_MLP):
        keys = columns(matrix, count, kind)
        for ridge in (1e-4, 1e-2, 1.0, 100.0):
            plain = problem(matrix, keys, ridge)
            solved = replace(plain, factored_moment=lambda: remembered)
            expected = torch.linalg.solve(ridge * matrix + keys @ keys.T, keys @ plain.residuals.T).T
            used.append(grown(remembered, ridge, keys, "", "") is not None)
            assert apart(RULES["memit"](solved).delta, RULES["memit"](plain).delta) < 1e-10
            if used[-1]:
                assert apart(RULES["memit"](solved).delta, expected) < 1e-10
            else:
                assert torch.equal(RULES["memit"](solved).delta, RULES["memit"](plain).delta)
    assert not any(used[-4:])  # too many columns to be cheaper
    assert any(used) == (condition < (1e4 if kind == "strange" else 1e6))


@pytest.mark.parametrize("name", ["memit", "prune", "rect", "emmet", "rome", "lyaplock"])
def test_batches_of_any_rule_by_woodbury_are_those_without(name):
    matrix = moment(1e3)
    rule, remembered, keys = RuleSettings().rule(name), factored(matrix, "C", ""), columns(matrix, 12, "usual")
    whole = problem(matrix, keys, 0.5)
    carried = {True: None, False: None}
    for start in range(0, 12, 3):
        part = slice(start, start + 3)
        batch = replace(whole, keys=keys[:, part], residuals=whole.residuals[:, part], has_next=True)
        changes = {}
        for by_woodbury in carried:
            factor = (lambda: remembered) if by_woodbury else None
            update = rule(replace(batch, carried=carried[by_woodbury], factored_moment=factor))
            carried[by_woodbury], changes[by_woodbury] = update.carried, update.delta
        assert apart(changes[True], changes[False]) < 1e-10


def test_a_moment_is_factored_once_for_all_batches_rules_and_ridges(monkeypatch):
    calls, original = [], torch.linalg.cholesky_ex
    monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda m: calls.append(len(m)) or original(m))
    matrix = moment(1e3)
    factor, keys = remembered_factor(), columns(matrix, 12, "usual")
    once = partial(factor, matrix, "C", matrix.device)
    for name in ("memit", "rect", "emmet", "rome", "lyaplock"):
        for ridge in (0.3, 3.0):
            carried = None
            for start in range(0, 12, 4):
                part = replace(problem(matrix, keys[:, start : start + 4], ridge), has_next=True, carried=carried)
                carried = RULES[name](replace(part, factored_moment=once)).carried
    assert calls.count(D_MLP) == 1


def test_a_singular_moment_leaves_the_direct_solve():
    """C alone cannot be factored; with enough keys λC + K Kᵀ can."""
    low = random(D_MLP, 20) @ random(20, D_MLP)
    low, keys = low @ low.T, random(D_MLP, D_MLP, seed=7)
    factor = partial(remembered_factor(), low, "C at layer 4", low.device)
    plain = problem(low, keys, 0.5)
    assert torch.equal(RULES["memit"](replace(plain, factored_moment=factor)).delta, RULES["memit"](plain).delta)
