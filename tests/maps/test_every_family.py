"""Every family's blocks, as replay calls them, against the untouched model one row at a time."""

from dataclasses import replace

import pytest
import torch
from helpers.reference import Plain
from helpers.small import EVERY, LACKING

from jacobian_lab.maps.agreement import check_replay
from jacobian_lab.maps.jacobians import dense_jacobians, jvp
from jacobian_lab.maps.replay import freeze, replay, replay_logits
from jacobian_lab.maps.stepwise import StepwisePass

LAYERS = (1, 2, 4)
BEFORE = ("", "In the old book of towers and rivers ", "Therefore, as everybody on the other side of the river knows, ")


@pytest.fixture(scope="module", params=EVERY)
def model(request, load_exact):
    if request.param in LACKING:
        pytest.skip(f"this version of transformers has no {request.param}")
    return load_exact(request.param)


@pytest.fixture(scope="module")
def long(facts):
    """Facts whose subjects stand behind nothing, and behind more tokens than a window holds."""
    return [replace(fact, id=n, prompt=BEFORE[n % 3] + fact.prompt) for n, fact in enumerate(facts)]


def far(got, expected):
    return float((got - expected).norm() / expected.norm())


@torch.no_grad()
def test_states_and_logits_are_those_of_the_model_with_another_state(model, long):
    """Rows of several lengths side by side, each with a state of its own, tails as long as their answers."""
    plain, rows = Plain(model.hf, model.tokenizer, model.blocks), [model.fact_prompt(f, answer=True) for f in long]
    windows = {model.window(layer) for layer in range(model.n_layers)} - {None}
    assert max(row.decisive for row in rows) > 2 * max(windows, default=1)
    assert max(row.tail for row in rows) > max(windows, default=1)
    frozen = freeze(model, rows, LAYERS)
    generator = torch.Generator().manual_seed(0)
    for start in LAYERS:
        states = frozen.states(start)
        states = states * (1 + 0.3 * torch.randn(states.shape, generator=generator, dtype=states.dtype))
        read = range(start, model.n_layers)
        got, logits = replay(frozen, start, states, read), replay_logits(frozen, start, states)
        for index, row in enumerate(rows):
            own_logits, own = plain.states(list(row.ids), row.decisive, read, start, states[index])
            assert far(got[index], torch.stack(list(own.values()))) < 1e-10
            answer = len(row.answer)
            assert far(logits[index, :answer], own_logits[-answer:]) < 1e-10


def test_jacobians_are_reverse_modes(model, long):
    plain, rows = Plain(model.hf, model.tokenizer, model.blocks), [model.fact_prompt(fact).cut() for fact in long[:3]]
    frozen = freeze(model, rows, [1], 4)
    sweep, direction = dense_jacobians(frozen, [1, 3], 4), torch.ones(3, model.d_model, dtype=model.dtype)
    pushed = jvp(frozen, 1, 4, direction)
    for row, fact in enumerate(long[:3]):
        for place, layer in enumerate((1, 3)):
            assert far(sweep[row, place], plain.jacobian(fact, layer, 4)) < 1e-10
        assert far(pushed[row], sweep[row, 0].sum(1)) < 1e-10


def test_what_an_mlp_adds_is_what_its_block_adds_behind_attention(model, long):
    """At site mlp, J is what a change of the state makes of the last block's output, less what it makes of the rest."""
    frozen = freeze(model, [model.fact_prompt(long[1]).cut()], [1], 4)
    J = dense_jacobians(frozen, [1], 4, site="mlp")[0, 0]
    plain, (row,) = Plain(model.hf, model.tokenizer, model.blocks), [model.fact_prompt(long[1]).cut()]
    module = model.joining(4)
    zeros = lambda _m, _i, output: torch.zeros_like(output)  # noqa: E731
    direction, ends = torch.randn(model.d_model, generator=torch.Generator().manual_seed(0), dtype=model.dtype), []
    with torch.no_grad():
        for sign in (1, -1):
            state = frozen.states(1)[0] + sign * 1e-5 * direction
            whole = plain.states(list(row.ids), row.decisive, [4], 1, state)[1][4]
            handle = module.register_forward_hook(zeros)
            ends.append(whole - plain.states(list(row.ids), row.decisive, [4], 1, state)[1][4])
            handle.remove()
    assert far(J @ direction, (ends[0] - ends[1]) / 2e-5) < 1e-7


@torch.no_grad()
def test_keys_are_those_of_the_model_as_it_has_been_edited(model, long):
    if not model.family.projection:
        pytest.skip("experts have no keys")
    rows, before = [model.fact_prompt(fact) for fact in long], {layer: model.weight(layer).clone() for layer in LAYERS}
    generator, inputs = torch.Generator().manual_seed(0), []
    stepwise = StepwisePass(model, rows)
    try:
        for layer in LAYERS:
            keys = stepwise.keys(layer)
            handle = model.projection(layer).register_forward_pre_hook(lambda _m, values: inputs.append(values[0]))
            for key, row in zip(keys, rows, strict=True):
                model.hf(torch.tensor([row.ids]))
                assert far(key, inputs.pop().view(len(row.ids), -1)[row.decisive]) < 1e-10
            handle.remove()
            model.weight(layer).add_(torch.randn(keys.shape[1], generator=generator, dtype=model.dtype))
    finally:
        for layer, weight in before.items():
            model.weight(layer).copy_(weight)


def test_the_check_at_load_time_passes(model, long):
    record = check_replay(model, long, LAYERS)
    assert max(record.states, record.logits) < 1e-10
