"""Facts in one batch against the same in several, old keys kept: equal by algebra for rules of one quadratic."""

from dataclasses import replace

import pytest
import torch
from helpers.small import CONFIGS, make_folder

from jacobian_lab.catalogue import METHODS, Method
from jacobian_lab.editing.layers import Setting, restored
from jacobian_lab.editing.methods import BatchEdits
from jacobian_lab.editing.problems import CarriedState, Problem
from jacobian_lab.editing.rules import RuleSettings
from jacobian_lab.editing.schemes import Targets
from jacobian_lab.facts.reading import load_facts
from jacobian_lab.maps.hooks import decisive_states
from jacobian_lab.model.loading import load_model
from jacobian_lab.model.rows import fact_rows

D_MODEL, D_MLP, FACTS, RIDGE = 12, 24, 8, 3.0
SETTINGS = RuleSettings(
    alphaedit_threshold=1.5,
    alphaedit_relative=True,
    alphaedit_l2=0.7,
    encore_norm_ridge=0.5,
    rlsedit_norm_ridge=0.2,
    emmet_epsilon=1.0,
)
EXACT = ("memit", "encore", "rlsedit", "alphaedit", "nas", "betaedit", "emmet")
"""Each minimises ‖(W + ΔW) K − V‖² and a fixed quadratic of the total change; EMMET with ε = 1 alone."""
INEXACT = ("rect", "nse", "lyaplock", "sphere", "rome")


def problem_of_all():
    generator = torch.Generator().manual_seed(3)
    weight, keys, values, text = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((D_MODEL, D_MLP), (D_MLP, FACTS), (D_MODEL, FACTS), (D_MLP, 3 * D_MLP))
    )
    scales = torch.logspace(-1, 1, D_MLP, dtype=torch.float64)[:, None]
    second_moment = (scales * text) @ (scales * text).T / text.shape[1]
    return Problem(0, keys, values - weight @ keys, second_moment, weight, RIDGE, has_next=True)


def total_change(rule, problem, size, *, old_keys=True):
    """The change of all batches, each with the residuals that the ones before have left."""
    weight, carried, changes = problem.weight, None, torch.zeros_like(problem.weight)
    values = problem.residuals + weight @ problem.keys
    for start in range(0, FACTS, size):
        keys = problem.keys[:, start : start + size]
        residuals = values[:, start : start + size] - weight @ keys
        update = rule(replace(problem, keys=keys, residuals=residuals, weight=weight, carried=carried))
        weight, changes, carried = weight + update.delta, changes + update.delta, update.carried
        carried = carried if old_keys or carried is None else carried.without_keys()
    return changes


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("size", [1, 3, 4])
def test_several_batches_are_one_where_the_objective_is_one_quadratic(name, size):
    rule, problem = SETTINGS.rule(name), problem_of_all()
    jointly = total_change(rule, problem, FACTS)
    assert (total_change(rule, problem, size) - jointly).norm() < 1e-10 * jointly.norm()
    without = total_change(rule, problem, size, old_keys=False)
    assert (without - jointly).norm() > 1e-3 * jointly.norm()


@pytest.mark.parametrize("name", INEXACT)
def test_several_batches_are_not_one_for_the_others(name):
    rule, problem = SETTINGS.rule(name), problem_of_all()
    jointly = total_change(rule, problem, FACTS)
    assert (total_change(rule, problem, 2) - jointly).norm() > 1e-3 * jointly.norm()


def test_emmet_counts_old_keys_otherwise():
    rule, problem = replace(SETTINGS, emmet_epsilon=0.1).rule("emmet"), problem_of_all()
    jointly = total_change(rule, problem, FACTS)
    assert (total_change(rule, problem, 2) - jointly).norm() > 1e-3 * jointly.norm()


def test_without_old_keys_a_batch_is_solved_as_the_first_is():
    """MEMIT of each batch alone on the weight that the ones before have left; PRUNE keeps its limit."""
    problem = problem_of_all()
    changes = torch.zeros_like(problem.weight)
    for start in range(0, FACTS, 4):
        keys = problem.keys[:, start : start + 4]
        residuals = problem.residuals[:, start : start + 4] - changes @ keys
        changes += residuals @ keys.T @ torch.linalg.inv(RIDGE * problem.second_moment + keys @ keys.T)
    own = total_change(SETTINGS.rule("memit"), problem, 4, old_keys=False)
    torch.testing.assert_close(own, changes, rtol=1e-10, atol=1e-12)
    limit = torch.tensor(2.0)
    state = CarriedState(limit=limit, keys=problem.keys, queue=3.0, renewed=4).without_keys()
    assert (state.limit, state.keys, state.matrix, state.queue, state.renewed) == (limit, None, None, 3.0, 0)


def test_a_model_is_the_same_after_one_batch_and_several(tmp_path):
    """One layer and bare prompts, so that what is solved is linear; several layers are not, and differ."""
    model = load_model(make_folder(tmp_path / "gpt2", CONFIGS["gpt2"]), device="cpu", dtype="float64")
    rows = fact_rows(model, load_facts("builtin", "0:6"))
    generator = torch.Generator().manual_seed(0)
    moments, states = {}, {}
    for layer in (2, 4):
        text = torch.randn((model.d_mlp, 200), generator=generator, dtype=torch.float64)
        moments[layer] = text @ text.T / 200
        own = decisive_states(model, rows.bare, [layer])[:, 0]
        states[layer] = own + 0.1 * torch.randn(own.shape, generator=generator, dtype=torch.float64)
    setting, targets = Setting(rows, moments, 0.1), Targets((2, 4), states, {})

    def edited(pair, size):
        with restored(model, (2, 4)):
            edits = BatchEdits(pair, setting, (2, 4), SETTINGS, several=size < 6)
            for start in range(0, 6, size):
                batch = range(start, start + size)
                edits.edit(batch, targets.select(batch))
            edits.finish()
            return torch.stack([model.weight(layer) - weight for layer, weight in before.items()])

    before = {layer: model.weight(layer).clone() for layer in (2, 4)}
    for rule in ("memit", "alphaedit", "encore"):
        jointly, apart = (edited(Method("one-layer", rule), size) for size in (6, 2))
        assert (apart - jointly).norm() < 1e-9 * jointly.norm()
    jointly, apart = (edited(METHODS["memit"], size) for size in (6, 2))
    assert (apart - jointly).norm() > 1e-6 * jointly.norm()
