"""Agreement with numbers measured elsewhere, and with the plain way on other facts, on the real model."""

from functools import partial

import pytest
import torch
from helpers.asked import efficacy
from helpers.reference import Plain
from safetensors.torch import load_file

from jacobian_lab.catalogue import SCHEMES
from jacobian_lab.editing.anchors import AnchorSettings, optimize_anchors
from jacobian_lab.editing.layers import Setting, restored
from jacobian_lab.editing.measures import measure, observed_edits
from jacobian_lab.editing.schemes import make_targets
from jacobian_lab.editing.second_moments import second_moments
from jacobian_lab.facts.reading import load_facts
from jacobian_lab.model.corpus import load_corpus
from jacobian_lab.model.loading import load_model
from jacobian_lab.model.rows import fact_rows

LAYERS = (4, 5, 6, 7, 8)


@pytest.fixture(scope="module")
def moments(real, shared):
    """Second moments as the golden numbers have them: float32 activations, 256 tokens a line."""
    results = second_moments(real, load_corpus(str(shared / "data" / "wikitext2_600.txt")), LAYERS, 256)
    assert results.tokens == 90571
    return results.matrices


def of_golden_facts(shared, numbers):
    facts = load_facts(shared / "data" / "counterfact_2000.json", "100:104")
    assert [fact.id for fact in facts] == numbers["fact_ids"]
    return facts


def assert_near(states, expected, name, tolerance):
    error = (states.double() - expected).norm(dim=1) / expected.norm(dim=1)
    assert error.max() < tolerance, (name, error)


@pytest.mark.slow
def test_golden_anchors_of_one_fact(real, shared, golden):
    """Facts are optimised side by side, and none the less each by itself."""
    rows = fact_rows(real, of_golden_facts(shared, golden["numbers"])[1:2], golden["templates"])
    anchors = {layer: optimize_anchors(rows, layer, AnchorSettings(lr=0.5, steps=25)).states for layer in (4, 8)}
    expected = load_file(golden["tensors"])
    replayed = make_targets(rows, LAYERS, anchors).replayed
    names = {"anchor_first": anchors[4], "anchor_last": anchors[8], "replayed_8": replayed[8]}
    for name, states in names.items():
        assert_near(states, expected[name][1:2], name, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance", "limit"), [("float64", 1e-6, 1e-6), ("float32", 1e-4, 1e-3)])
def test_golden_numbers(dtype, tolerance, limit, shared, golden, moments):
    model = load_model(dtype=dtype, device="cpu")
    expected, numbers = load_file(golden["tensors"]), golden["numbers"]
    facts = of_golden_facts(shared, numbers)
    settings = AnchorSettings(lr=0.5, steps=25)
    rows = fact_rows(model, facts, golden["templates"])
    anchors = {layer: optimize_anchors(rows, layer, settings) for layer in (4, 8)}
    targets = make_targets(rows, LAYERS, {layer: results.states for layer, results in anchors.items()})
    setting = Setting(rows, moments, 15000.0)
    found = {"anchor_first": anchors[4].states, "anchor_last": anchors[8].states}
    found |= {f"replayed_{layer}": targets.replayed[layer] for layer in LAYERS[1:]}
    for name, states in found.items():
        assert_near(states, expected[name], name, tolerance)

    for name, reference in numbers["schemes"].items():
        scheme = SCHEMES[name]
        with restored(model, LAYERS):
            edits = list(observed_edits(setting, scheme, targets))
            correct = efficacy(model, facts).double().mean()
        layers = [str(edit.layer) for edit in edits]
        assert layers == list(reference["residual_ratio"])
        measured = measure(edits, targets, scheme)
        for quantity in ("residual_ratio", "cosine", "unrealised"):
            golden_values = torch.tensor([reference[quantity][layer] for layer in layers]).T
            assert (measured[quantity] - golden_values).abs().max() < limit, (name, quantity)
        assert float(correct) == reference["all_tokens_correct"]


@pytest.mark.slow
@pytest.mark.parametrize(("file", "slice"), [("counterfact_2000.json", "731:733"), ("zsre_2000.json", "40:42")])
def test_other_facts_agree_with_one_at_a_time_through_the_whole_model(file, slice, real, shared, golden, moments):
    """Anchors at both ends, few passes, then the edits, on facts that were never looked at."""
    facts, templates = load_facts(shared / "data" / file, slice), golden["templates"]
    settings, plain = AnchorSettings(lr=0.5, steps=3), Plain(real.hf, real.tokenizer, real.blocks)
    rows = fact_rows(real, facts, templates)
    anchors = {layer: optimize_anchors(rows, layer, settings) for layer in (4, 8)}
    for layer, results in anchors.items():
        for index, fact in enumerate(facts):
            expected, _, passes = plain.anchor(fact, layer, templates, lr=0.5, steps=3)
            error = (results.states[index] - expected).norm() / expected.norm()
            assert error < 1e-4, (fact.id, layer, error)
            assert int(results.passes[index]) == passes
    targets = make_targets(rows, LAYERS, {layer: results.states for layer, results in anchors.items()})
    for name in ("backward-dividing", "forward-replay"):
        scheme = SCHEMES[name]
        with restored(real, LAYERS):
            edits = list(observed_edits(Setting(rows, moments, 15000.0), scheme, targets))
        with restored(real, LAYERS):
            expected = plain.edit(
                facts, name, LAYERS, real, partial(targets.of, scheme.kind), moments, 15000.0, templates
            )
        measured = measure(edits, targets, scheme)
        for quantity in ("residual_ratio", "cosine", "unrealised"):
            assert (measured[quantity] - expected[quantity]).abs().max() < 1e-3, (name, quantity)
