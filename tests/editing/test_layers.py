"""Edits against closed forms, and the loop against the plain way."""

import dataclasses
from functools import partial

import pytest
import torch
from helpers.asked import efficacy
from helpers.reference import Plain, prompt
from helpers.small import CONTEXTS

from jacobian_lab.catalogue import SCHEMES, TABLE_SCHEMES
from jacobian_lab.editing import measures
from jacobian_lab.editing.anchors import AnchorSettings, coordinate_shifts, optimize_anchors
from jacobian_lab.editing.layers import Setting, restored
from jacobian_lab.editing.measures import measure, observed_edits
from jacobian_lab.editing.rules import memit
from jacobian_lab.editing.schemes import Targets, make_targets
from jacobian_lab.errors import InputError
from jacobian_lab.maps.hooks import decisive_states
from jacobian_lab.maps.replay import freeze
from jacobian_lab.model.loading import load_model
from jacobian_lab.model.rows import fact_rows
from jacobian_lab.model.tokens import fact_prompt

LAYERS = (1, 2, 4)


@pytest.fixture(scope="module")
def edit_inputs(tiny, facts):
    """Targets, and a setting with well-conditioned second moments, for the small model."""
    rows, settings = fact_rows(tiny, facts, CONTEXTS), AnchorSettings(lr=0.1, steps=5)
    anchors = {layer: optimize_anchors(rows, layer, settings) for layer in (1, 4)}
    shifts = coordinate_shifts(rows, LAYERS, settings).shifts
    generator = torch.Generator().manual_seed(0)
    moments = {}
    for layer in LAYERS:
        keys = torch.randn(tiny.d_mlp, 300, generator=generator, dtype=torch.float64)
        moments[layer] = keys @ keys.T / 300
    targets = make_targets(rows, LAYERS, {layer: anchor.states for layer, anchor in anchors.items()}, shifts)
    return targets, Setting(rows, moments, 2.0)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_weights_come_back_bit_for_bit(family_model):
    before = {layer: family_model.weight(layer).clone() for layer in LAYERS}

    def spoil():
        with restored(family_model, LAYERS):
            for layer in LAYERS:
                family_model.weight(layer).add_(0.1)
                assert not torch.equal(family_model.weight(layer), before[layer])
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        spoil()
    assert all(torch.equal(family_model.weight(layer), before[layer]) for layer in LAYERS)


def test_weight_is_the_map_from_key_to_output(family_model):
    """Stored transposed or not."""
    module = family_model.projection(2)
    key = random(3, family_model.d_mlp)
    bias = module.bias if getattr(module, "bias", None) is not None else 0.0
    torch.testing.assert_close(module(key), key @ family_model.weight(2).T + bias)


@pytest.mark.parametrize("name", [*TABLE_SCHEMES, "forward-replay-divided"])
def test_the_loop_against_the_plain_way(name, tiny, facts, edit_inputs, monkeypatch):
    """Keys, hidden states, residuals and shifts, recomputed one fact at a time with other hooks."""
    monkeypatch.setattr(measures, "FACTS_AT_ONCE", 2)
    targets, setting = edit_inputs
    scheme = SCHEMES[name]
    with restored(tiny, LAYERS):
        edits = list(observed_edits(setting, scheme, targets))
        measured = measure(edits, targets, scheme)
    plain = Plain(tiny.hf, tiny.tokenizer, tiny.blocks)
    with restored(tiny, LAYERS):
        expected = plain.edit(
            facts,
            name,
            [edit.layer for edit in edits],
            tiny,
            partial(targets.of, scheme.kind),
            setting.moments,
            2.0,
            CONTEXTS,
            setting.damping if scheme.pulls_back else None,
            split=True,
        )
    for quantity, values in expected.items():
        torch.testing.assert_close(measured[quantity], values, rtol=1e-7, atol=1e-9, msg=quantity)


def test_an_edit_of_one_fact_moves_its_state_by_what_is_assigned(family_model, facts):
    """At λ → 0, whatever stands between the MLP's output and the stream."""
    rows = fact_rows(family_model, facts[1:2])
    frozen = freeze(family_model, rows.bare, [2])
    states = {2: frozen.shifted(2, 0.3 * frozen.states(2))}
    setting = Setting(rows, {2: torch.eye(family_model.d_mlp, dtype=torch.float64)}, 1e-12)
    targets, scheme = make_targets(rows, (2,), states, None), SCHEMES["forward-replay"]
    with restored(family_model, (2,)):
        (edit,) = observed_edits(setting, scheme, targets)
    measured = measure([edit], targets, scheme)
    assert abs(float(measured["unrealised"] - measured["out_of_reach"])) < 1e-9
    if not family_model.family.output_norm:  # one fact without contexts: its own key, and C = I
        written = edit.update.delta @ edit.keys[0]
        torch.testing.assert_close(measured["price"][0, 0], written.square().sum() / edit.keys[0].square().sum())
    assert (float(measured["out_of_reach"]) > 0) == bool(family_model.family.output_norm)


def test_residuals_against_both_targets(tiny, facts, edit_inputs):
    targets, setting = edit_inputs
    for name, own in (("backward-full", "optimised"), ("forward-replay", "replayed")):
        with restored(tiny, LAYERS):
            edits = list(observed_edits(setting, SCHEMES[name], targets))
        measured = measure(edits, targets, SCHEMES[name])
        after = torch.stack([edit.last_after for edit in edits], dim=1)
        torch.testing.assert_close(measured["residual_ratio"], measured[f"residual_ratio_against_{own}"])
        for kind in ("optimised", "replayed"):
            target = targets.of(kind, LAYERS[-1])[:, None]
            expected = (target - after).norm(dim=-1) / (target - edits[0].last_before[:, None]).norm(dim=-1)
            torch.testing.assert_close(measured[f"residual_ratio_against_{kind}"], expected)


@pytest.mark.parametrize("layer", [1, 4])
def test_a_fact_without_an_anchor_keeps_its_place_and_moves_nothing(layer, tiny, facts, edit_inputs):
    targets, setting = edit_inputs
    broken = {place: states.clone() for place, states in targets.optimised.items()}
    broken[layer][1] = float("nan")
    with_nan = Targets(LAYERS, broken, targets.replayed)
    keep = [0, 2, 3, 4]
    without = Targets(
        LAYERS,
        {layer: states[keep] for layer, states in targets.optimised.items()},
        {layer: states[keep] for layer, states in targets.replayed.items()},
    )
    scheme, results = SCHEMES["backward-full"], []
    for part, these in ((setting, with_nan), (setting.select(keep), without)):
        with restored(tiny, LAYERS):
            results.append(measure(list(observed_edits(part, scheme, these)), these, scheme))
    for name, values in results[0].items():
        if values.dim() == 2:  # by fact and layer
            assert values[1].isnan().all(), name
            torch.testing.assert_close(values[keep], results[1][name], rtol=1e-9, atol=1e-12)
        else:
            torch.testing.assert_close(values, results[1][name], rtol=1e-9, atol=1e-12)


def test_a_residual_that_is_zero_from_the_beginning_has_no_ratio(tiny, facts, edit_inputs):
    targets, setting = edit_inputs
    states = decisive_states(tiny, [fact_prompt(tiny.tokenizer, fact) for fact in facts], [4])[:, 0]
    optimised = {1: targets.optimised[1], 4: targets.optimised[4].clone()}
    optimised[4][2] = states[2] * (1 + 1e-9)
    nothing_to_do = Targets(LAYERS, optimised, targets.replayed)
    scheme = SCHEMES["backward-full"]
    with restored(tiny, LAYERS):
        edits = list(observed_edits(setting, scheme, nothing_to_do))
    ratios = measure(edits, nothing_to_do, scheme)["residual_ratio"]
    assert ratios[2].isnan().all()
    assert ratios[[0, 1, 3, 4]].isfinite().all()


def test_what_a_bfloat16_weight_does_not_take_is_reported(folders, facts, edit_inputs):
    """Against float64, where everything is taken."""
    model = load_model(folders["llama"], dtype="bfloat16", device="cpu")
    rows = fact_rows(model, facts, CONTEXTS)
    anchors = {n: optimize_anchors(rows, n, AnchorSettings(lr=0.1, steps=3)).states for n in (1, 4)}
    assert anchors[1].dtype == torch.float32
    targets, scheme = make_targets(rows, LAYERS, anchors), SCHEMES["forward-replay"]
    before = model.weight(1).clone()
    with restored(model, LAYERS):
        edits = list(observed_edits(dataclasses.replace(edit_inputs[1], rows=rows), scheme, targets))
        stored = (model.weight(1).double() - before.double()).norm() / before.double().norm()
    measured = measure(edits, targets, scheme)
    assert 1e-4 < measured["unstored"][0] < 1
    assert float(stored) == pytest.approx(float(measured["update_norm"][0]), abs=float(measured["unstored"][0]))
    assert torch.equal(model.weight(1), before)
    exact = load_model(folders["llama"], dtype="float64", device="cpu")
    with restored(exact, LAYERS):
        doubled = dataclasses.replace(edit_inputs[1], rows=fact_rows(exact, facts, CONTEXTS))
        assert max(edit.unstored for edit in observed_edits(doubled, scheme, edit_inputs[0])) < 1e-12


def test_an_edit_that_the_models_dtype_does_not_hold_is_refused(folders, facts, edit_inputs):
    targets, setting = edit_inputs
    for dtype in ("float32", "bfloat16"):
        model = load_model(folders["llama"], dtype=dtype, device="cpu")
        before = model.weight(1).clone()

        def huge(problem):
            update = memit(problem)
            return dataclasses.replace(update, delta=update.delta * 1e45)

        words = f"edit that {dtype} holds, got NaN or infinity in the weight of layer 1: lower anchor.clamp"
        wide = dataclasses.replace(setting, rows=fact_rows(model, facts, CONTEXTS))
        with pytest.raises(InputError, match=words), restored(model, LAYERS):
            list(observed_edits(wide, SCHEMES["backward-full"], targets, huge))
        assert torch.equal(model.weight(1), before)


def test_no_usable_fact_is_refused(tiny, facts, edit_inputs):
    targets, setting = edit_inputs
    empty = Targets(
        LAYERS,
        {k: torch.full_like(v, float("nan")) for k, v in targets.optimised.items()},
        targets.replayed,
    )
    with (
        pytest.raises(InputError, match="at least one fact with a finite anchor"),
        restored(tiny, LAYERS),
    ):
        list(observed_edits(setting, SCHEMES["one-layer"], empty))


def test_efficacy_is_greedy_decoding_of_the_whole_answer(family_model, facts):
    """Teacher forcing and real greedy decoding agree: on the model's own continuations, and on others."""

    checked = []
    for fact in facts:
        ids, _ = prompt(family_model.tokenizer, fact)
        greedy = family_model.hf.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False, pad_token_id=0)
        continuation = greedy[0, len(ids) :].tolist()
        written = family_model.tokenizer.decode(continuation, skip_special_tokens=True).strip()
        own = dataclasses.replace(fact, target_new=written or "x")
        for candidate in (own, fact):
            answer = list(fact_prompt(family_model.tokenizer, candidate, answer=True).answer)
            checked.append((candidate, continuation[: len(answer)] == answer))
    verdicts = efficacy(family_model, [fact for fact, _ in checked])
    assert verdicts.tolist() == [greedy for _, greedy in checked]
