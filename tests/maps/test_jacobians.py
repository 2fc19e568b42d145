"""J against finite differences, reverse mode through the untouched model, and itself in all its forms."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from helpers.exact import load_exact
from helpers.reference import Plain, output_of, prompt
from scipy.sparse.linalg import LinearOperator
from torch.utils._python_dispatch import TorchDispatchMode

from jacobian_lab.maps.definiteness import definiteness
from jacobian_lab.maps.jacobians import dense_jacobians, jvp, layer_factors, linear_operator, to_numpy, vjp
from jacobian_lab.maps.replay import freeze, freeze_groups, replay, trajectory
from jacobian_lab.model.tokens import Prompt, fact_prompt

PAIRS = [(1, 4), (0, 5), (2, 3), (4, 5)]


def frozen_facts(model, facts, starts, last):
    return freeze(model, [fact_prompt(model.tokenizer, fact).cut() for fact in facts], starts, last)


def random(*shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


@pytest.mark.parametrize(("layer", "last", "site"), [*((*pair, "residual") for pair in PAIRS), (1, 4, "mlp")])
def test_against_central_differences(layer, last, site, family_model, facts):
    """Every column of every fact's J, in float64, for any pair of layers."""
    frozen = frozen_facts(family_model, facts, [layer], last)
    J = dense_jacobians(frozen, [layer], last, site=site)[:, 0]
    states = frozen.states(layer)
    step = 1e-5 * float(states.norm(dim=1).mean()) / math.sqrt(states.shape[1])
    with torch.no_grad():
        columns = [
            trajectory(frozen, layer, states + side * step * unit, last, site)[last][:, 0]
            for unit in torch.eye(states.shape[1], dtype=torch.float64)
            for side in (1, -1)
        ]
    quotient = torch.stack([(up - down) / (2 * step) for up, down in zip(columns[::2], columns[1::2], strict=True)], -1)
    for own, difference in zip(J, quotient, strict=True):
        assert (own - difference).norm() < 1e-7 * own.norm()


def test_against_reverse_mode_through_the_untouched_model(family_model, facts):
    plain = Plain(family_model.hf, family_model.tokenizer, family_model.blocks)
    frozen = frozen_facts(family_model, facts, [1], 4)
    sweep = dense_jacobians(frozen, [1, 2, 3], 4)
    for row, fact in enumerate(facts):
        for place, layer in enumerate((1, 2, 3)):
            expected = plain.jacobian(fact, layer, 4)
            assert (sweep[row, place] - expected).norm() < 1e-10 * expected.norm()


def test_mlp_site_against_hooks_on_the_mlps_themselves(family_model, facts):
    """A shift of what one MLP gives out, and what another then gives out, through the whole model."""
    fact = facts[1]
    ids, position = prompt(family_model.tokenizer, fact)
    modules = {layer: family_model.output_norm(layer) or family_model.projection(layer) for layer in (1, 4)}

    def through(shift):
        outputs = []

        def write(_module, _inputs, result):
            return result.index_put((torch.tensor(0), torch.tensor(position)), result[0, position] + shift)

        handles = [
            modules[1].register_forward_hook(write),
            modules[4].register_forward_hook(lambda _m, _i, result: outputs.append(result[0, position])),
        ]
        try:
            family_model.hf(torch.tensor([ids]))
        finally:
            for handle in handles:
                handle.remove()
        return outputs[0]

    expected = torch.func.jacrev(through)(torch.zeros(family_model.d_model, dtype=torch.float64))
    own = dense_jacobians(frozen_facts(family_model, [fact], [1], 4), [1], 4, site="mlp")[0, 0]
    assert (own - expected).norm() < 1e-10 * expected.norm()


@pytest.mark.parametrize("site", ["residual", "mlp"])
def test_all_forms_agree(site, family_model, facts):
    frozen = frozen_facts(family_model, facts, [1], 4)
    J = dense_jacobians(frozen, [1], 4, site=site)[:, 0]
    vectors = random(len(facts), family_model.d_model)
    close = {"rtol": 1e-10, "atol": 1e-11}
    torch.testing.assert_close(jvp(frozen, 1, 4, vectors, site=site), torch.einsum("rij,rj->ri", J, vectors), **close)
    torch.testing.assert_close(vjp(frozen, 1, 4, vectors, site=site), torch.einsum("rij,ri->rj", J, vectors), **close)
    for row in (0, 3):
        operator = linear_operator(frozen, row, 1, 4, site=site)
        assert isinstance(operator, LinearOperator)
        columns = vectors[:3].T.numpy()
        np.testing.assert_allclose(operator.matmat(columns), J[row] @ columns, rtol=1e-10, atol=1e-11)
        np.testing.assert_allclose(operator.H.matmat(columns), J[row].T @ columns, rtol=1e-10, atol=1e-11)


def test_at_other_states(tiny, facts):
    """Linearised where an edit has left the state, not only where the model does."""
    frozen = frozen_facts(tiny, facts, [1], 4)
    states = frozen.states(1) + random(len(facts), tiny.d_model)
    J = dense_jacobians(frozen, [1], 4, states)[:, 0]
    assert (J - dense_jacobians(frozen, [1], 4)[:, 0]).norm() > 0.01 * J.norm()
    direction, step = random(len(facts), tiny.d_model), 1e-6
    quotient = (replay(frozen, 1, states + step * direction, [4]) - replay(frozen, 1, states - step * direction, [4]))[
        :, 0
    ] / (2 * step)
    image = torch.einsum("rij,rj->ri", J, direction)
    assert (image - quotient).norm() < 1e-7 * image.norm()
    torch.testing.assert_close(jvp(frozen, 1, 4, direction, states), image)
    np.testing.assert_allclose(linear_operator(frozen, 2, 1, 4, states[2]).matvec(direction[2].numpy()), image[2])


def test_product_of_the_factors_is_the_sweep(family_model, facts):
    frozen = frozen_facts(family_model, facts, [0], 5)
    layers = [0, 1, 2, 3, 5]  # not only neighbours
    sweep = dense_jacobians(frozen, layers, 5)
    product = sweep[:, -1]
    torch.testing.assert_close(product, torch.eye(family_model.d_model, dtype=torch.float64).expand_as(product))
    for place, factor in reversed(list(enumerate(layer_factors(frozen, layers)))):
        product = product @ factor
        torch.testing.assert_close(product, sweep[:, place], rtol=1e-10, atol=1e-11)


def test_neither_batch_nor_budget_changes_anything(tiny, facts):
    frozen = frozen_facts(tiny, facts, [1], 4)
    together = dense_jacobians(frozen, [1, 2], 4)
    torch.testing.assert_close(dense_jacobians(frozen, [1, 2], 4, budget=1), together, rtol=1e-12, atol=1e-13)
    for row, fact in enumerate(facts):
        alone = dense_jacobians(frozen_facts(tiny, [fact], [1], 4), [1, 2], 4)[0]
        torch.testing.assert_close(together[row], alone, rtol=1e-10, atol=1e-12)


def test_groups_answer_in_the_order_of_the_rows(tiny, facts):
    rows = [fact_prompt(tiny.tokenizer, fact).cut() for fact in facts]
    groups = freeze_groups(tiny, rows, [1, 4], 4)
    whole = freeze(tiny, rows, [1, 4], 4)
    vectors = random(len(facts), tiny.d_model)
    torch.testing.assert_close(groups.states(4), whole.states(4))
    torch.testing.assert_close(
        groups.ask(lambda frozen, v: jvp(frozen, 1, 4, v), vectors), jvp(whole, 1, 4, vectors), rtol=1e-10, atol=1e-12
    )
    for index, row in groups.one_by_one():
        torch.testing.assert_close(row.states(1)[0], whole.states(1)[index])


class Counting(TorchDispatchMode):
    """Counts the calls of every operator."""

    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls[func.__name__.partition(".")[0]] += 1
        return func(*args, **(kwargs or {}))


def test_no_operation_takes_the_cotangents_one_by_one(family_model, facts):
    """Through one block the d cotangents go together: no operator runs as often as there are cotangents."""
    frozen = frozen_facts(family_model, facts[:1], [3], 4)
    for site in ("residual", "mlp"):
        with Counting() as counting:
            dense_jacobians(frozen, [3], 4, site=site)
        heavy = {name: n for name, n in counting.calls.items() if "backward" in name or name.endswith("mm")}
        assert heavy["mm"] > 0
        assert max(heavy.values()) < family_model.d_model, heavy
    with Counting() as counting:  # what the above would see if they went one by one
        dense_jacobians(frozen, [3], 4, budget=1)
    assert counting.calls["mm"] > family_model.d_model


def test_the_real_model_in_float32(real, facts):
    fact = facts[1]
    frozen = frozen_facts(real, [fact], [4], 8)
    sweep = dense_jacobians(frozen, [4, 5, 6, 7], 8)[0]
    assert sweep.dtype == torch.float32
    plain = Plain(real.hf, real.tokenizer, real.blocks)
    for place, layer in ((0, 4), (3, 7)):
        expected = plain.jacobian(fact, layer, 8)
        assert (sweep[place] - expected).norm() < 1e-4 * expected.norm()
    vector = random(1, real.d_model, dtype=torch.float32)
    assert (jvp(frozen, 4, 8, vector)[0] - sweep[0] @ vector[0]).norm() < 1e-4 * (sweep[0] @ vector[0]).norm()
    assert (vjp(frozen, 4, 8, vector)[0] - vector[0] @ sweep[0]).norm() < 1e-4 * (vector[0] @ sweep[0]).norm()


def test_a_decisive_token_with_nothing_before_it(family_model, facts):
    """A subject of one token at the very beginning: the prefix is empty."""
    row = fact_prompt(family_model.tokenizer, facts[1]).cut()
    alone = Prompt(row.ids[:1], 0)
    frozen = freeze(family_model, [alone], [1], 4)
    J = dense_jacobians(frozen, [1], 4)[:, 0]
    vector = random(1, family_model.d_model)
    step = 1e-5
    with torch.no_grad():
        ends = [replay(frozen, 1, frozen.states(1) + side * step * vector, [4])[:, 0] for side in (1, -1)]
    quotient = (ends[0] - ends[1])[0] / (2 * step)
    assert (J[0] @ vector[0] - quotient).norm() < 1e-7 * quotient.norm()
    torch.testing.assert_close(jvp(frozen, 1, 4, vector)[0], J[0] @ vector[0], rtol=1e-9, atol=1e-11)


def test_layers_above_the_last_are_refused(tiny, facts):
    frozen = frozen_facts(tiny, facts[:1], [1], 4)
    with pytest.raises(ValueError, match="layers up to 4, got 5"):
        dense_jacobians(frozen, [1, 5], 4)
    at_last = frozen_facts(tiny, facts[:1], [4], 4)
    vector = random(1, tiny.d_model)
    torch.testing.assert_close(jvp(at_last, 4, 4, vector, site="mlp"), vector)


def test_the_error_of_float32_is_within_what_the_verdict_allows(real, facts):
    exact = load_exact()
    for model in (real, exact):
        frozen = frozen_facts(model, facts[1:2], [4], 8)
        J = to_numpy(dense_jacobians(frozen, [4], 8)[0, 0])
        if model is real:
            verdict = definiteness(J)
    assert 0 < np.abs(verdict.eigenvalues - definiteness(J).eigenvalues).max() < verdict.error


def test_reading_the_mlp_of_a_block(family_model, facts):
    """What the MLP adds at the decisive token as the untouched model computes it."""
    ids, position = prompt(family_model.tokenizer, facts[0])
    outputs = []
    module = family_model.output_norm(3) or family_model.projection(3)
    handle = module.register_forward_hook(lambda _m, _i, result: outputs.append(output_of(result)))
    with torch.no_grad():
        family_model.hf(torch.tensor([ids]))
    handle.remove()
    frozen = frozen_facts(family_model, facts[:1], [1], 4)
    own = trajectory(frozen, 1, frozen.states(1), 3, "mlp")[3][0, 0]
    factor = getattr(family_model.hf.config, "residual_multiplier", 1.0)  # Granite's
    torch.testing.assert_close(own, factor * outputs[0][0, position], rtol=1e-10, atol=1e-12)
