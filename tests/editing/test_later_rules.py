"""Each later rule against its authors' function, written plainly in float64, over batches one after the other."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from helpers import official

from jacobian_lab.catalogue import KEYLESS, PROJECTING, RIDGELESS
from jacobian_lab.editing.norm_anchors import anchored_values
from jacobian_lab.editing.problems import Problem
from jacobian_lab.editing.rules import RULES, RuleSettings
from jacobian_lab.editing.solving import factored, leading_directions
from jacobian_lab.errors import InputError

D_MODEL, D_MLP, FACTS, RIDGE, L2 = 9, 40, 24, 3.0, 2.0


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


KEYS, RESIDUALS, WEIGHT = random(D_MLP, FACTS), random(D_MODEL, FACTS, seed=1), random(D_MODEL, D_MLP, seed=2)
CORPUS = torch.logspace(0, -2, D_MLP, dtype=torch.float64)[:, None] * random(D_MLP, 80, seed=3)
C = CORPUS @ CORPUS.T / 80
THRESHOLD = float(torch.linalg.eigvalsh(C)[24]) + 1e-9
SETTINGS = RuleSettings(
    alphaedit_threshold=THRESHOLD,
    alphaedit_l2=L2,
    nse_share=0.7,
    encore_norm_ridge=1.5,
    rlsedit_norm_ridge=0.25,
    sphere_share=0.4,
    sphere_strength=0.3,
    betaedit_renewal=6,
    lyaplock_tolerance=1.3,
)
PLAIN = {
    "rome": official.rome,
    "nse": partial(official.nse, ridge=RIDGE, share=0.7),
    "encore": partial(official.encore, ridge=RIDGE, norm_ridge=1.5),
    "sphere": partial(official.sphere, threshold=THRESHOLD, l2=L2, share=0.4, strength=0.3),
    "nas": partial(official.alphaedit, threshold=THRESHOLD, l2=L2),
    "betaedit": partial(official.betaedit, ridge=RIDGE, threshold=THRESHOLD, l2=L2, renewal=6),
    "lyaplock": partial(official.lyaplock, ridge=RIDGE, tolerance=1.3),
    "rlsedit": partial(official.rlsedit, ridge=RIDGE, norm_ridge=0.25),
}


def batches(size):
    return [(KEYS[:, at : at + size], RESIDUALS[:, at : at + size]) for at in range(0, FACTS, size)]


def sequence(rule, size, weight=WEIGHT, last_has_next=True):
    """Every batch's update, on the weight that the batches before have left."""
    carried, moment = None, factored(C, "C", "")
    for number, (keys, residuals) in enumerate(batches(size), 1):
        has_next = last_has_next or number * size < FACTS
        update = rule(Problem(4, keys, residuals, C, weight, RIDGE, carried, has_next, lambda: moment))
        carried, weight = update.carried, weight + update.delta
        yield update


def apart(change, expected):
    return np.linalg.norm(np.asarray(change) - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("size", [1, 4, FACTS])
@pytest.mark.parametrize("name", PLAIN)
def test_a_rule_is_its_authors_function(name, size):
    size = 1 if name == "rome" else size
    numbers = [(keys.numpy(), residuals.numpy()) for keys, residuals in batches(size)]
    plain = PLAIN[name](C.numpy(), WEIGHT.numpy(), numbers)
    for update, expected in zip(sequence(SETTINGS.rule(name), size), plain, strict=True):
        assert apart(update.delta, expected) < 1e-9
        assert update.condition >= 1


@pytest.mark.parametrize("name", PLAIN)
def test_a_single_batch_is_the_first_of_several(name):
    """And hands nothing on."""
    rule, alone = SETTINGS.rule(name), Problem(4, KEYS, RESIDUALS, C, WEIGHT, RIDGE)
    update = rule(alone)
    assert update.carried is None
    assert torch.equal(update.delta, rule(replace(alone, has_next=True)).delta)
    assert apart(next(sequence(rule, FACTS)).delta, update.delta.numpy()) < 1e-9


def test_rome_in_one_batch_meets_every_residual_with_the_least_disturbance():
    update = RULES["rome"](Problem(4, KEYS, RESIDUALS, C, WEIGHT, RIDGE))
    np.testing.assert_allclose(update.delta @ KEYS, RESIDUALS, rtol=0, atol=1e-9)
    free = random(D_MODEL, D_MLP, seed=11)
    other = free - free @ KEYS @ torch.linalg.pinv(KEYS)  # another change that meets them differs by such a one
    assert abs(float((update.delta @ C * other).sum())) < 1e-9


def test_two_facts_with_one_key_are_refused_by_rome():
    keys = torch.cat([KEYS[:, :1], KEYS[:, :1]], dim=1)
    with pytest.raises(InputError, match=r"Kᵀ C⁻¹ K at layer 4 to solve with, .* one by one: edits_per_batch 1"):
        RULES["rome"](Problem(4, keys, RESIDUALS[:, :2], C, WEIGHT, RIDGE))


def test_nse_edits_the_neurons_that_hold_the_share_alone():
    update = RULES["nse"](Problem(4, KEYS, RESIDUALS, C, WEIGHT, RIDGE), share=0.5)
    edited = (update.delta != 0).any(0)
    activity = KEYS.abs().sum(1)
    assert float(activity[edited].sum()) <= 0.5 * float(activity.sum())
    assert float(activity[edited].min()) > float(activity[~edited].max())
    whole = RULES["nse"](Problem(4, KEYS, RESIDUALS, C, WEIGHT, RIDGE), share=1.0).delta
    assert apart(whole, RULES["memit"](Problem(4, KEYS, RESIDUALS, C, WEIGHT, RIDGE)).delta.numpy()) < 1e-12
    one = RULES["nse"](Problem(4, KEYS, RESIDUALS, C, WEIGHT, RIDGE), share=1e-9).delta
    assert int((one != 0).any(0).sum()) == 1


def test_spheres_directions_hold_the_share_of_the_rows():
    U = leading_directions(WEIGHT, 0.4)
    np.testing.assert_allclose(U.T @ U, np.eye(U.shape[1]), rtol=0, atol=1e-12)
    rows = WEIGHT / torch.linalg.vector_norm(WEIGHT, dim=1, keepdim=True)

    def held(basis):
        return float(((rows @ basis) ** 2).sum() / D_MODEL)

    assert held(leading_directions(WEIGHT, 0.4)) > 0.4 - 1e-6
    assert leading_directions(WEIGHT, 1.0).shape[1] == D_MODEL


def test_betaedit_renews_its_null_space_after_so_many_edits():
    ranks = [update.notes["null_space_rank"] for update in sequence(SETTINGS.rule("betaedit"), 4)]
    assert ranks[0] == ranks[1] == 25
    assert ranks[2] == ranks[3] < 25  # renewed after 8 edits, the first multiple of four that is at least six
    assert ranks[4] == ranks[5] < ranks[2]


def test_lyaplocks_queue_grows_with_the_disturbance_and_not_below_one():
    queues = [update.carried.queue for update in sequence(SETTINGS.rule("lyaplock"), 4)]
    assert queues[0] == 1
    assert max(queues) > 1.5
    patient = RuleSettings(lyaplock_tolerance=1e6).rule("lyaplock")
    assert all(update.carried.queue == 1 for update in sequence(patient, 4))


@pytest.mark.parametrize("size", [1, 4, FACTS])
def test_rlsedit_minimises_its_objective_over_all_batches(size):
    """Least squares over every fact so far, with the targets that these had: a sequence is one batch."""
    weight, targets = WEIGHT, []
    for (keys, residuals), update in zip(batches(size), sequence(SETTINGS.rule("rlsedit"), size), strict=True):
        targets.append((weight @ keys + residuals, keys))
        weight = weight + update.delta
    values, keys = (torch.cat(every, dim=1) for every in zip(*targets, strict=True))
    root = torch.linalg.cholesky(RIDGE * C + 0.25 * torch.eye(D_MLP, dtype=torch.float64))
    left, right = torch.cat([keys.T, root.T]), torch.cat([values.T, root.T @ WEIGHT.T])
    expected = np.linalg.lstsq(left.numpy(), right.numpy(), rcond=None)[0].T
    assert apart(weight, expected) < 1e-9


def test_rlsedit_is_memit_unless_it_is_told_to_stay():
    for one, other in zip(sequence(RuleSettings().rule("rlsedit"), 4), sequence(RULES["memit"], 4), strict=True):
        assert torch.equal(one.delta, other.delta)


@pytest.mark.parametrize("facts", [5, 20, 60])
def test_norm_anchors_are_those_of_their_authors(facts):
    values, shifts = random(facts, D_MODEL, seed=5), random(facts, D_MODEL, seed=6)
    shifts[1] *= 30
    anchored = anchored_values(values, shifts)
    np.testing.assert_allclose(anchored, official.norm_anchor(values.numpy(), shifts.numpy()), rtol=1e-12)
    assert torch.equal(anchored[1], values[1]) or facts == 5
    shifts[0] = float("nan")
    assert anchored_values(values, shifts)[0].isnan().all()
    assert anchored_values(values, shifts)[1:].isfinite().all()


@pytest.mark.parametrize("name", RULES)
def test_what_a_rule_is_said_to_need_is_what_it_reads(name):
    """λ, a null space of C, and a C that is definite by itself."""
    rule = RuleSettings(alphaedit_threshold=THRESHOLD).rule(name)
    problem = Problem(4, KEYS, RESIDUALS, C, WEIGHT, RIDGE)
    assert torch.allclose(rule(problem).delta, rule(replace(problem, ridge=2 * RIDGE)).delta) == (name in RIDGELESS)
    low = CORPUS[:, :30] @ CORPUS[:, :30].T
    for moment, needing in ((C + torch.eye(D_MLP), PROJECTING), (low, KEYLESS)):
        changed = replace(problem, second_moment=moment)
        if name in needing:
            with pytest.raises(InputError):
                rule(changed)
        else:
            assert rule(changed).delta.isfinite().all()


def test_settings_of_an_older_run_are_those_of_the_paper():
    assert set(RuleSettings().stored()) == {
        "prune_kind",
        "prune_base",
        "prune_scope",
        "rect_by",
        "rect_kept",
        "alphaedit_threshold",
        "alphaedit_relative",
        "alphaedit_l2",
        "emmet_epsilon",
    }
    assert RuleSettings(nse_share=0.5).stored()["nse_share"] == 0.5
