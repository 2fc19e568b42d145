"""Each rule against an independent dense computation in float64, on small problems with known answers."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from jacobian_lab.editing.rules import RULES, Problem, RuleSettings, alphaedit, emmet, memit, prune, rect
from jacobian_lab.editing.solving import factored, largest_singular_value, null_space, shrink
from jacobian_lab.errors import InputError

D_MODEL, D_MLP, FACTS = 7, 12, 5


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


K, R, W = random(D_MLP, FACTS), random(D_MODEL, FACTS, seed=1), random(D_MODEL, D_MLP, seed=3)
CORPUS = random(D_MLP, 40, seed=2)
C = CORPUS @ CORPUS.T / 40
PROBLEM = Problem(4, K, R, C, W, ridge=3.0)
OLD = random(D_MLP, 4, seed=8)


def after(rule, keys, problem=PROBLEM):
    """The problem as a batch of these keys has left it."""
    first = replace(problem, keys=keys, residuals=random(D_MODEL, keys.shape[1], seed=12), has_next=True)
    return replace(problem, carried=rule(first).carried)


def singular_values(matrix):
    return np.linalg.svd(matrix.numpy(), compute_uv=False)


def close(actual, expected, tolerance=1e-10):
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), rtol=tolerance, atol=tolerance)


def with_singular_values(values, seed=5):
    left = torch.linalg.qr(random(D_MODEL, len(values), seed=seed))[0]
    right = torch.linalg.qr(random(D_MLP, len(values), seed=seed + 1))[0]
    return left @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ right.T


def test_memit_solves_the_normal_equations():
    update = memit(PROBLEM)
    # the minimiser of ‖ΔW K − R‖² + λ tr(ΔW C ΔWᵀ), as stacked least squares
    half = np.linalg.cholesky(3.0 * C.numpy())
    left = np.vstack([K.T.numpy(), half.T])
    right = np.vstack([R.T.numpy(), np.zeros((12, 7))])
    expected = np.linalg.lstsq(left, right, rcond=None)[0].T
    np.testing.assert_allclose(update.delta.numpy(), expected, rtol=1e-10, atol=1e-12)


def test_without_ridge_the_residual_is_met_exactly():
    K, R = random(6, 6), random(4, 6, seed=1)
    update = memit(Problem(0, K, R, torch.eye(6, dtype=torch.float64), torch.zeros(4, 6), ridge=0.0))
    torch.testing.assert_close(update.delta @ K, R, rtol=1e-8, atol=1e-8)


def test_condition_number_is_an_estimate_of_the_dense_one():
    basis, _ = torch.linalg.qr(random(30, 30))
    matrix = basis @ torch.diag(torch.logspace(0, 5, 30, dtype=torch.float64)) @ basis.T
    matrix = (matrix + matrix.T) / 2
    estimate = factored(matrix, "matrix", "").condition
    exact = np.linalg.cond(matrix.numpy(), 1)
    assert exact / 3 <= estimate <= exact * (1 + 1e-8)


def test_old_keys_stay_in_the_solve():
    """Old keys are further facts whose residual is zero."""
    together = replace(PROBLEM, keys=torch.cat([K, OLD], 1), residuals=torch.cat([R, torch.zeros(D_MODEL, 4)], 1))
    close(memit(after(memit, OLD)).delta, memit(together).delta)


def test_with_vanishing_ridge_one_layer_meets_its_target_exactly():
    for rule in (memit, prune):
        exact = memit(replace(PROBLEM, ridge=1e-9))
        close(exact.delta @ K, R, 1e-6)
        large = replace(PROBLEM, weight=100 * W, ridge=1e-9)  # no singular value is above its largest
        assert rule(large).delta.allclose(exact.delta)


@pytest.mark.parametrize(
    ("kind", "base", "expected"),
    [
        ("log", 1.2, lambda s, m: math.log(s) - math.log(m) + m),
        ("log_a", 1.2, lambda s, m: math.log(s, 1.2) - math.log(m, 1.2) + m),
        ("log_a", 2.0, lambda s, m: math.log2(s) - math.log2(m) + m),
        ("linear", 1.2, lambda s, m: s / 2 + m / 2),
    ],
)
def test_prune_shrinks_what_is_above_the_weights_largest_singular_value(kind, base, expected):
    weight, delta = with_singular_values([2.0, 1.0, 0.5], seed=9), with_singular_values([8.0, 3.0, 2.0, 1.5, 0.1])
    pruned, count = shrink(delta, largest_singular_value(weight), kind, base)
    assert count in {2, 3}  # 2.0 is the limit itself, where every kind gives 2.0
    values_after = sorted([*(expected(s, 2.0) for s in (8.0, 3.0)), 2.0, 1.5, 0.1], reverse=True)
    close(singular_values(pruned)[:5], values_after, 1e-9)
    left, sigma, right = np.linalg.svd(delta.numpy(), full_matrices=False)
    new = np.array([expected(s, 2.0) if s > 2.0 + 1e-9 else s for s in sigma])
    close(pruned, left @ np.diag(new) @ right, 1e-9)


@pytest.mark.parametrize(("kind", "base"), [("log", 1.2), ("log_a", 1.2), ("log_a", 2.0), ("linear", 1.2)])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.999, 1.001])
@pytest.mark.parametrize("shape", [(7, 12), (12, 7)])
def test_prune_by_the_short_side_is_prune_by_singular_value_decomposition(shape, share, kind, base):
    delta = random(*shape, seed=20)
    left, sigma, right = np.linalg.svd(delta.numpy(), full_matrices=False)
    limit = share * sigma[0]
    logarithm = np.log(sigma / limit) / (math.log(base) if kind == "log_a" else 1)
    shrunk = sigma / 2 + limit / 2 if kind == "linear" else logarithm + limit
    expected = left @ np.diag(np.where(sigma >= limit, shrunk, sigma)) @ right
    pruned, count = shrink(delta, torch.tensor(limit), kind, base)
    assert count == (sigma >= limit).sum() == {0.05: 7, 0.3: 6, 0.999: 1, 1.001: 0}[share]
    assert np.linalg.norm(pruned.numpy() - expected) < 1e-12 * np.linalg.norm(expected)
    assert share <= 1 or torch.equal(pruned, delta)


def test_prunes_limit_is_the_weights_spectral_norm():
    close(largest_singular_value(W), np.linalg.norm(W.numpy(), 2), 1e-13)
    close(largest_singular_value(W.float()), np.linalg.norm(W.float().double().numpy(), 2), 1e-13)


def test_prunes_limit_is_taken_of_the_weight_before_all_edits():
    problem = replace(PROBLEM, weight=W / 50, ridge=1e-3)
    later = replace(after(partial(prune, kind="linear"), OLD, problem), weight=100 * W)
    expected, count = shrink(memit(later).delta, largest_singular_value(W / 50), "linear")
    update = prune(later, kind="linear")
    close(update.delta, expected)
    assert update.notes["shrunk_values"] == count > 0


def test_prune_is_memit_then_shrinking():
    problem = replace(PROBLEM, weight=W / 50, ridge=1e-3)
    update = prune(problem, kind="linear")
    delta, count = shrink(memit(problem).delta, largest_singular_value(W / 50), "linear")
    close(update.delta, delta)
    assert update.notes["shrunk_values"] == count > 0


@pytest.mark.parametrize(("by", "share"), [("magnitude", 0.6), ("relative", 0.2), ("magnitude", 0.25)])
def test_rect_keeps_the_largest_entries(by, share):
    full = memit(PROBLEM).delta.numpy()
    size = np.abs(full) if by == "magnitude" else np.abs(full / W.numpy())
    order = np.argsort(size, axis=None)
    expected = full.copy()
    expected.flat[order[: round((1 - share) * full.size)]] = 0
    update = rect(PROBLEM, by=by, share=share)
    close(update.delta, expected)
    assert np.count_nonzero(update.delta) == round(share * full.size)
    assert update.notes["kept_energy"] == pytest.approx((expected**2).sum() / (full**2).sum())
    default = rect(PROBLEM, by=by).delta
    assert np.count_nonzero(default) == round({"magnitude": 0.6, "relative": 0.2}[by] * full.size)


def low_rank():
    """A second moment with five directions that keys of a corpus never take, and keys that it is made of."""
    basis = torch.linalg.qr(random(D_MLP, D_MLP, seed=4))[0]
    corpus = basis[:, 5:] @ random(7, 60, seed=6)
    return basis[:, :5], corpus, corpus @ corpus.T / 60


def test_alphaedit_leaves_the_corpus_keys_alone():
    space, corpus, moment = low_rank()
    update = alphaedit(replace(PROBLEM, second_moment=moment), threshold=1e-6)
    assert update.notes["null_space_rank"] == 5
    assert update.notes["trace_left_out"] == pytest.approx(1)
    assert (update.delta @ corpus).abs().max() < 1e-12
    assert (update.delta @ K).abs().max() > 1e-3
    close(update.delta @ space @ space.T, update.delta, 1e-12)


@pytest.mark.parametrize("earlier", [None, OLD])
def test_alphaedit_is_the_unsymmetric_solve(earlier):
    threshold = float(torch.linalg.eigvalsh(C)[6]) + 1e-9
    values, vectors = np.linalg.eigh(C.numpy())
    basis = vectors[:, values < threshold]
    P, old = basis @ basis.T, np.zeros((D_MLP, D_MLP)) if earlier is None else (earlier @ earlier.T).numpy()
    left = P @ (K @ K.T).numpy() + P @ old + 10 * np.eye(D_MLP)
    expected = np.linalg.solve(left, P @ (K @ R.T).numpy()).T
    rule = partial(alphaedit, threshold=threshold)
    update = rule(PROBLEM if earlier is None else after(rule, earlier))
    assert update.notes["null_space_rank"] == 7
    assert update.notes["trace_left_out"] == pytest.approx(values[7:].sum() / values.sum())
    close(update.delta, expected)


def test_the_null_spaces_threshold_is_absolute_or_in_units_of_the_mean():
    values = torch.linalg.eigvalsh(C)
    for scale in (1.0, 1e4):
        space = null_space(scale * C, 0.5, relative=True)
        assert space.basis.shape[1] == int((values < 0.5 * values.mean()).sum())
    assert null_space(C, 0.5).basis.shape[1] == int((values < 0.5).sum())
    with pytest.raises(InputError, match=r"of C below 0.0001 for AlphaEdit's null space, got none.*raise alphaedit"):
        null_space(C, 1e-4)
    with pytest.raises(InputError, match=r"of C at layer 4 below 0\.0001"):
        alphaedit(PROBLEM, threshold=1e-4)


def test_emmet_is_its_formula_and_meets_its_constraint_as_epsilon_vanishes():
    A = 3.0 * C.numpy()
    inverse = np.linalg.inv(A)
    middle = np.linalg.inv(K.numpy().T @ inverse @ K.numpy() + 0.1 * np.eye(FACTS))
    close(emmet(PROBLEM).delta, R.numpy() @ middle @ K.numpy().T @ inverse)
    exact = emmet(PROBLEM, epsilon=1e-12)
    close(exact.delta @ K, R, 1e-8)
    # of all changes that meet it, the one with the least tr(ΔW A ΔWᵀ): others differ by Z with Z K = 0
    free = random(D_MODEL, D_MLP, seed=11)
    Z = free - free @ K @ torch.linalg.pinv(K)
    close((exact.delta @ torch.tensor(A) * Z).sum(), 0.0, 1e-6)
    whole = emmet(replace(PROBLEM, second_moment=C + OLD @ OLD.T / 3.0))
    close(emmet(after(emmet, OLD)).delta, whole.delta)


@pytest.mark.parametrize("epsilon", [0.01, 0.1, 1.0])
def test_emmet_is_memit_at_ridge_times_epsilon(epsilon):
    """The push-through identity; the paper's two rules are one where a batch is the first."""
    close(emmet(PROBLEM, epsilon=epsilon).delta, memit(replace(PROBLEM, ridge=3.0 * epsilon)).delta)


@pytest.mark.parametrize("name", RULES)
def test_rules_are_pure(name):
    inputs = [K, R, C, W / 50]
    copies = [tensor.clone() for tensor in inputs]
    rule = RuleSettings(alphaedit_relative=True, alphaedit_threshold=1.0).rule(name)
    problem = Problem(4, *inputs, 3.0)
    first, second = rule(problem), rule(problem)
    assert torch.equal(first.delta, second.delta)
    later = after(rule, OLD, problem)
    assert torch.equal(rule(later).delta, rule(replace(later, has_next=True)).delta)
    assert first.delta.dtype == torch.float64
    assert all(torch.equal(a, b) for a, b in zip(inputs, copies, strict=True))
