"""Hooks: what is captured is what the model computes, and no hook is left behind."""

import torch
from helpers.reference import Plain, hooks, prompt

from jacobian_lab.maps.hooks import batches, capture, decisive_states, forward
from jacobian_lab.maps.stepwise import decisive_keys
from jacobian_lab.model.tokens import Prompt, fact_prompt


@torch.no_grad()
def test_captured_states_and_keys_are_the_models(family_model, facts):
    rows = [fact_prompt(family_model.tokenizer, fact) for fact in facts]
    layers = (0, 3, 5)
    states = decisive_states(family_model, rows, layers)
    plain = Plain(family_model.hf, family_model.tokenizer, family_model.blocks)
    keys = {layer: decisive_keys(family_model, rows, layer) for layer in layers}
    for index, fact in enumerate(facts):
        ids, position = prompt(family_model.tokenizer, fact)
        _, own = plain.states(ids, position, layers)
        for place, layer in enumerate(layers):
            torch.testing.assert_close(states[index, place], own[layer], rtol=1e-10, atol=1e-10)
            record = []
            handle = family_model.projection(layer).register_forward_pre_hook(lambda _m, i, s=record: s.append(i[0]))
            family_model.hf(torch.tensor([ids]))
            handle.remove()
            torch.testing.assert_close(keys[layer][index], record[0][0, position], rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_captured_tensors_are_copies_and_hooks_go(tiny, facts):
    rows, before = [fact_prompt(tiny.tokenizer, facts[0])], hooks(tiny)
    with capture(tiny, hidden=[1], keys=[1]) as record:
        assert hooks(tiny) != before
        expected = forward(tiny, rows)
        record.hidden[1].zero_()
        record.keys[1].zero_()
    assert torch.equal(forward(tiny, rows), expected)
    assert hooks(tiny) == before


def test_batches_hold_every_row_once_and_keep_to_the_limit():
    rows = [Prompt(tuple(range(n)), 0) for n in (5, 1, 9, 3, 3, 30)]
    groups = batches(rows, tokens=12)
    assert sorted(index for group in groups for index in group) == list(range(6))
    for group in groups:
        assert len(group) == 1 or len(group) * max(len(rows[i].ids) for i in group) <= 12
