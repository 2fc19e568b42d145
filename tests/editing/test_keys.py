"""Keys that are carried from layer to layer, and factors of C that are made once."""

from dataclasses import replace

import pytest
import torch
from helpers.reference import Plain
from helpers.small import CONTEXTS

from jacobian_lab.catalogue import SCHEMES
from jacobian_lab.editing import layers as layers_module
from jacobian_lab.editing import solving
from jacobian_lab.editing.layers import KeyWalk, Setting, averaged_keys, restored
from jacobian_lab.editing.measures import observed_edits
from jacobian_lab.editing.rules import RULES
from jacobian_lab.editing.schemes import Targets
from jacobian_lab.model.rows import fact_rows

LAYERS = (1, 2, 4)


@pytest.fixture
def setting(family_model, facts):
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(len(LAYERS), family_model.d_mlp, 300, generator=generator, dtype=torch.float64)
    moments = dict(zip(LAYERS, keys @ keys.mT / 300, strict=True))
    return Setting(fact_rows(family_model, facts, CONTEXTS), moments, 2.0)


def targets_of(setting):
    generator = torch.Generator().manual_seed(1)
    shape = len(setting.facts), setting.model.d_model
    states = {layer: torch.randn(shape, generator=generator, dtype=torch.float64) for layer in LAYERS}
    return Targets(LAYERS, states, states)


def edits(setting, rule="memit"):
    with restored(setting.model, LAYERS):
        return list(observed_edits(setting, SCHEMES["forward-replay"], targets_of(setting), RULES[rule]))


def test_keys_of_an_edit_are_those_of_the_edited_model(setting, facts):
    """One fact at a time through the whole model, after the real edits of the layers below."""
    model, plain = setting.model, Plain(setting.model.hf, setting.model.tokenizer, setting.model.blocks)
    with restored(model, LAYERS):
        for edit in observed_edits(setting, SCHEMES["forward-replay"], targets_of(setting)):
            edited = model.weight(edit.layer).clone()
            with torch.no_grad():
                model.weight(edit.layer).copy_(edited - edit.update.delta)  # a layer's keys do not depend on it
                expected = torch.stack([plain.key(fact, model.projection(edit.layer), CONTEXTS) for fact in facts])
                model.weight(edit.layer).copy_(edited)
            torch.testing.assert_close(edit.keys, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("room", [0.0, 1.0, None])
def test_pieces_that_are_carried_and_those_that_run_anew_are_the_same(room, setting, monkeypatch):
    """None, all, and the first alone where there is no more room."""
    monkeypatch.setattr(layers_module, "KEYS_AT_ONCE", 2)
    whole = KeyWalk(setting.rows, LAYERS)
    whole.keys(1)
    size = next(iter(whole._passes.values())).size
    monkeypatch.setattr(layers_module, "free_memory", lambda _: 10 * size if room is None else room * 2**40)
    monkeypatch.setattr(layers_module, "CARRIED_SHARE", 0.1 if room is None else 1.0)
    walk, resting = KeyWalk(setting.rows, LAYERS), []
    for layer in LAYERS:
        torch.testing.assert_close(walk.keys(layer), averaged_keys(setting.rows, layer), rtol=0, atol=0)
        resting.append(sum(stepwise.resting for stepwise in walk._passes.values()))
    assert resting == {0.0: [0, 0, 0], 1.0: [3, 3, 0], None: [1, 1, 0]}[room]


def test_a_piece_that_memory_does_not_hold_is_halved_and_run_anew(setting, monkeypatch):
    walk = KeyWalk(setting.rows, LAYERS)
    walk.keys(1)
    contexts, sizes = layers_module._contexts, []

    class Failing:
        def __init__(self, rows):
            self.whole, self.size, self.resting = contexts(rows), 0, False
            sizes.append(len(rows))

        def keys(self, layer, *, carry):
            return self.whole.keys(layer, carry=carry)

    def fail(layer, *, carry):
        raise MemoryError

    monkeypatch.setattr(layers_module, "_contexts", Failing)
    next(iter(walk._passes.values())).keys = fail
    expected = averaged_keys(setting.rows, 2)
    sizes.clear()
    torch.testing.assert_close(walk.keys(2), expected, rtol=1e-12, atol=1e-12)
    assert sizes == [3, 2]
    assert walk._room == 0


def test_a_second_moment_is_factored_once(setting, monkeypatch):
    """Methods, values of λ and μ, and selections of facts share the factors."""
    factored, names = solving.factored, []

    def counting(matrix, name, hint):
        names.append(name)
        return factored(matrix, name, hint)

    monkeypatch.setattr(solving, "factored", counting)
    setting.eases(LAYERS)
    for other in (setting, replace(setting, ridge=5.0), replace(setting, damping=0.1), setting.select([0, 2])):
        for edit, layer in zip(edits(replace(other, moments=dict(setting.moments))), LAYERS, strict=True):
            torch.testing.assert_close(edit.ease, other.ease(layer, edit.keys), rtol=0, atol=0)
    assert names == [f"C at layer {layer}" for layer in LAYERS]
