"""Keys of a pass that rests and goes on, against keys of passes from the embedding, after real edits."""

import pytest
import torch
from helpers.reference import hooks, prompt

from jacobian_lab.errors import InputError
from jacobian_lab.maps.stepwise import StepwisePass, decisive_keys
from jacobian_lab.model.tokens import fact_prompt

LAYERS = (0, 1, 3, 4)


def edit(model, layer):
    generator = torch.Generator().manual_seed(layer)
    model.weight(layer).add_(torch.randn(model.weight(layer).shape, generator=generator, dtype=model.dtype))


def plain_key(model, fact, layer):
    """Key of one fact by the whole untouched model."""
    ids, position = prompt(model.tokenizer, fact)
    inputs = []
    handle = model.projection(layer).register_forward_pre_hook(lambda _m, values: inputs.append(values[0]))
    model.hf(torch.tensor([ids]))
    handle.remove()
    return inputs[0][0, position]


@torch.no_grad()
def test_keys_are_those_of_the_model_as_it_has_been_edited(family_model, facts):
    model, rows = family_model, [fact_prompt(family_model.tokenizer, fact) for fact in facts]
    before = {layer: model.weight(layer).clone() for layer in LAYERS}
    unedited = decisive_keys(model, rows, LAYERS[-1])
    try:
        stepwise = StepwisePass(model, rows)
        for layer in LAYERS:
            keys = stepwise.keys(layer)
            assert torch.equal(keys, decisive_keys(model, rows, layer))
            for key, fact in zip(keys, facts, strict=True):
                torch.testing.assert_close(key, plain_key(model, fact, layer), rtol=1e-10, atol=1e-10)
            edit(model, layer)
        assert (keys - unedited).norm() > 0.1 * unedited.norm()
    finally:
        for layer, weight in before.items():
            model.weight(layer).copy_(weight)


def test_every_block_runs_once_and_is_itself_again(family_model, facts):
    model, rows = family_model, [fact_prompt(family_model.tokenizer, fact) for fact in facts]
    inner, runs = model.inner, dict.fromkeys(range(model.n_layers), 0)
    before = hooks(model)

    def count(layer):
        def hook(*_):
            runs[layer] += 1

        return hook

    handles = [inner(layer)[0].register_forward_hook(count(layer)) for layer in runs]
    stepwise = StepwisePass(model, rows)
    for layer in LAYERS:
        stepwise.keys(layer)
    for handle in handles:
        handle.remove()
    assert list(runs.values()) == [1, 1, 1, 1, 1, 0]
    assert not any("forward" in vars(module) for module in model.hf.modules())
    assert hooks(model) == before


def test_a_pass_without_states_runs_anew(tiny, facts):
    rows = [fact_prompt(tiny.tokenizer, fact) for fact in facts]
    stepwise = StepwisePass(tiny, rows)
    assert torch.equal(stepwise.keys(3, carry=False), decisive_keys(tiny, rows, 3))
    assert not stepwise.resting
    assert torch.equal(stepwise.keys(1), decisive_keys(tiny, rows, 1))
    assert stepwise.resting


def test_layers_come_in_ascending_order(tiny, facts):
    stepwise = StepwisePass(tiny, [fact_prompt(tiny.tokenizer, facts[0])])
    stepwise.keys(2)
    with pytest.raises(InputError, match="expected a layer above 2, got 2"):
        stepwise.keys(2)


def test_an_interrupted_pass_leaves_no_module_changed(tiny, facts, monkeypatch):
    stepwise = StepwisePass(tiny, [fact_prompt(tiny.tokenizer, fact) for fact in facts])
    stepwise.keys(1)

    def fail(*_):
        raise MemoryError

    handle = tiny.projection(2).register_forward_pre_hook(fail)
    with pytest.raises(MemoryError):
        stepwise.keys(3)
    handle.remove()
    assert not any("forward" in vars(module) for module in tiny.hf.modules())


def test_size_counts_what_rests(tiny, facts):
    """Block input, attention output and key of every padded token."""
    rows = [fact_prompt(tiny.tokenizer, fact) for fact in facts]
    stepwise = StepwisePass(tiny, rows)
    stepwise.keys(2)
    (rest,) = stepwise._rests.values()
    tensors = [value[0] if isinstance(value, tuple) else value for value in rest.outputs.values()]
    assert stepwise.size == sum(tensor.nbytes for tensor in [*tensors, rest.key])
