"""Anchors against the plain way; batches, order, failures; the schemes' two answers."""

import dataclasses

import pytest
import torch
from helpers.reference import Plain, prompt
from helpers.small import CONTEXTS

from jacobian_lab.catalogue import SCHEMES
from jacobian_lab.editing import batches, descent
from jacobian_lab.editing.anchors import coordinate_shifts, optimize_anchors
from jacobian_lab.editing.batches import anchor_batches
from jacobian_lab.editing.schemes import replay_targets
from jacobian_lab.editing.settings import AnchorSettings
from jacobian_lab.facts.fact import Fact
from jacobian_lab.maps.hooks import decisive_states
from jacobian_lab.model.families import Defaults
from jacobian_lab.model.language_model import LanguageModel
from jacobian_lab.model.loading import load_model
from jacobian_lab.model.rows import fact_rows
from jacobian_lab.model.tokens import fact_prompt

SETTINGS = AnchorSettings(lr=0.1, steps=8)


def rows(model, facts):
    return fact_rows(model, facts, CONTEXTS)


def plain(model):
    return Plain.of(model)


def test_anchors_agree_with_one_fact_at_a_time(family_model, facts):
    anchors = optimize_anchors(fact_rows(family_model, facts, CONTEXTS), 2, SETTINGS)
    for index, fact in enumerate(facts):
        expected, loss, passes = plain(family_model).anchor(fact, 2, CONTEXTS, lr=0.1, steps=8)
        torch.testing.assert_close(anchors.states[index], expected, rtol=1e-8, atol=1e-8)
        assert float(anchors.loss[index]) == pytest.approx(loss, rel=1e-8)
        assert int(anchors.passes[index]) == passes


def test_the_first_loss_is_that_of_a_descent_of_one_pass(tiny, facts):
    whole, once = (optimize_anchors(rows(tiny, facts), 2, dataclasses.replace(SETTINGS, steps=n)) for n in (8, 1))
    torch.testing.assert_close(whole.first_loss, once.loss, rtol=0, atol=0)
    assert (whole.first_loss > whole.loss).any()
    shifts = coordinate_shifts(rows(tiny, facts), (2, 3), SETTINGS)
    torch.testing.assert_close(shifts.first_loss, once.loss, rtol=1e-9, atol=0)


def test_batching_and_order_change_nothing(tiny, facts):
    """Facts leave at different passes; per-fact quantities must follow their fact."""
    settings = dataclasses.replace(SETTINGS, lr=0.4, steps=20, stop_loss=6.3)
    together = optimize_anchors(rows(tiny, facts), 2, settings)
    assert len(set(together.passes.tolist())) > 2
    order = [3, 0, 4, 2, 1]
    shuffled = optimize_anchors(rows(tiny, facts).select(order), 2, settings)
    torch.testing.assert_close(shuffled.states, together.states[order], rtol=1e-9, atol=1e-9)
    for index, fact in enumerate(facts):
        alone = optimize_anchors(rows(tiny, [fact]), 2, settings)
        torch.testing.assert_close(alone.states[0], together.states[index], rtol=1e-9, atol=1e-9)
        assert alone.passes[0] == together.passes[index]


def test_a_descent_may_end_when_the_answer_has_been_the_likeliest(tiny):
    """After two such passes in all contexts, by the untouched model at what every pass had come to."""
    near, far = Fact("near", "Rome", "{}", "a"), Fact("far", "Ada Lovelace", "{} wrote about", "a")
    two, last = rows(tiny, [near, far]), 6
    settings = dataclasses.replace(SETTINGS, lr=2.0, steps=last, clamp=1e3)
    ended = optimize_anchors(two, 2, dataclasses.replace(settings, likeliest=2))
    start, passes = decisive_states(tiny, two.bare, [2])[:, 0], {0: [], 1: []}
    for number in range(1, last + 1):
        at = optimize_anchors(two, 2, dataclasses.replace(settings, steps=number)).states
        for fact, answered in enumerate(two.answered_contexts):
            shift = {2: at[fact] - start[fact]}
            logits = [plain(tiny).states(list(row.ids), row.decisive, [], shifts=shift)[0] for row in answered]
            if all(one[-1].argmax() == row.answer[0] for one, row in zip(logits, answered, strict=True)):
                passes[fact].append(number)
            if number == int(ended.passes[fact]):
                torch.testing.assert_close(ended.states[fact], at[fact], rtol=1e-9, atol=1e-9)
    assert ended.passes.tolist() == [passes[0][1], last]
    assert passes[0][1] < last
    assert len(passes[1]) < 2


def test_a_descent_in_another_dtype_leaves_the_model_and_the_start_alone(tiny, facts):
    settings = dataclasses.replace(SETTINGS, dtype="float32")
    own, other = (optimize_anchors(rows(tiny, facts), 2, option) for option in (SETTINGS, settings))
    assert tiny.dtype == torch.float64
    torch.testing.assert_close(other.states, own.states, rtol=1e-4, atol=1e-4)
    assert not torch.equal(other.states, own.states)
    still = optimize_anchors(rows(tiny, facts), 2, dataclasses.replace(settings, steps=1))
    start = decisive_states(tiny, rows(tiny, facts).bare, [2])[:, 0]
    assert torch.equal(still.states, start)  # the copy's rounding is no shift
    shifts = [coordinate_shifts(rows(tiny, facts), (1, 3), option).shifts for option in (SETTINGS, settings)]
    torch.testing.assert_close(shifts[1].double(), shifts[0], rtol=1e-3, atol=1e-4)


def test_the_clamp_holds(tiny, facts):
    settings = dataclasses.replace(SETTINGS, lr=5.0, clamp=0.2, stop_loss=0.0)
    anchors = optimize_anchors(rows(tiny, facts), 2, settings)
    starts = torch.stack([plain(tiny).states(*prompt(tiny.tokenizer, fact), [2])[1][2] for fact in facts])
    shift = (anchors.states - starts).norm(dim=1) / starts.norm(dim=1)
    torch.testing.assert_close(shift, torch.full_like(shift, 0.2), rtol=1e-9, atol=0)


def test_one_pass_makes_no_update(tiny, facts):
    anchors = optimize_anchors(rows(tiny, facts), 2, dataclasses.replace(SETTINGS, steps=1))
    _, states = plain(tiny).states(*prompt(tiny.tokenizer, facts[0]), [2])
    torch.testing.assert_close(anchors.states[0], states[2], rtol=1e-12, atol=1e-12)


def test_a_fact_whose_loss_is_not_finite_keeps_its_place(tiny, facts, monkeypatch):
    original = descent.freeze

    def poisoned(model, these, starts):
        frozen = original(model, these, starts)
        if len(these) > len(facts):  # the rewriting rows, not the KL rows
            frozen.tails[2][len(these) // len(facts)] = float("nan")  # the first row of fact 1
        return frozen

    expected = optimize_anchors(rows(tiny, facts), 2, SETTINGS)
    monkeypatch.setattr(descent, "freeze", poisoned)
    anchors = optimize_anchors(rows(tiny, facts), 2, SETTINGS)
    assert anchors.states[1].isnan().all()
    assert anchors.loss[1].isnan()
    assert int(anchors.passes[1]) == 1
    others = [0, 2, 3, 4]
    torch.testing.assert_close(anchors.states[others], expected.states[others], rtol=1e-9, atol=1e-9)


def test_progress_counts_every_fact_once(tiny, facts):
    calls = []
    optimize_anchors(rows(tiny, facts), 2, SETTINGS, lambda finished, loss: calls.append((finished, loss)))
    assert sum(finished for finished, _ in calls) == len(facts)
    assert len(calls) <= SETTINGS.steps


def test_replayed_targets_are_the_models_states(family_model, facts):
    several_rows = rows(family_model, facts)
    anchors = optimize_anchors(several_rows, 1, SETTINGS)
    replayed = replay_targets(several_rows, anchors.states, (1, 2, 4)).transpose(0, 1)
    for index, fact in enumerate(facts):
        ids, position = prompt(family_model.tokenizer, fact)
        with torch.no_grad():
            _, states = plain(family_model).states(ids, position, [2, 4], 1, value=anchors.states[index])
        torch.testing.assert_close(replayed[0, index], anchors.states[index])
        torch.testing.assert_close(replayed[1, index], states[2], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(replayed[2, index], states[4], rtol=1e-10, atol=1e-10)


def test_batches_hold_every_fact_once_and_tails_of_about_a_length(tiny, facts):
    many = [dataclasses.replace(f, id=i) for i, f in enumerate(facts * 3)]
    groups = anchor_batches(rows(tiny, many), 2)
    assert sorted(i for group in groups for i in group) == list(range(len(many)))
    assert max(map(len, groups)) == 2
    for group in anchor_batches(rows(tiny, many), 100):
        tails = [fact_prompt(tiny.tokenizer, many[i], answer=True).tail for i in group]
        assert max(tails) <= 1.25 * min(tails)


def test_a_batch_is_bounded_by_the_tokens_that_it_replays(tiny, facts, monkeypatch):
    several_rows = rows(tiny, [dataclasses.replace(f, id=i) for i, f in enumerate(facts * 6)])
    tokens = [len(several_rows.weights) * row.tail for row in several_rows.answered]
    monkeypatch.setattr(batches, "BATCH_TOKENS", 2 * max(tokens))
    groups = anchor_batches(several_rows, 100)
    assert sorted(i for group in groups for i in group) == list(range(len(several_rows)))
    assert max(len(group) * max(tokens[i] for i in group) for group in groups) <= 2 * max(tokens)
    assert max(map(len, groups)) > 1
    monkeypatch.setattr(batches, "BATCH_TOKENS", 1)
    assert [len(group) for group in anchor_batches(several_rows, 100)] == [1] * len(several_rows)


def test_a_copy_in_another_dtype_is_the_model_loaded_so(folders, facts):
    """Bit for bit, rotary angles included; brought up to date when the weights change, and made once."""
    for family in ("llama", "gptj", "gpt2"):
        model, loaded = (load_model(folders[family], dtype=dtype, device="cpu") for dtype in ("float32", "bfloat16"))
        copied = model.cast(torch.bfloat16)
        prompts = [model.fact_prompt(fact, answer=True) for fact in facts]
        assert torch.equal(*(decisive_states(option, prompts, [1, 3]) for option in (copied, loaded)))
        with torch.no_grad():
            model.weight(2).mul_(2)
        assert model.cast(torch.bfloat16).hf is copied.hf
        assert torch.equal(copied.weight(2), model.weight(2).bfloat16())
    assert model.cast(torch.float32) is model


def test_little_memory_makes_small_batches(tiny, facts, monkeypatch):
    several_rows = rows(tiny, [dataclasses.replace(f, id=i) for i, f in enumerate(facts * 6)])
    assert max(map(len, anchor_batches(several_rows, 100))) > 1
    assert max(map(len, anchor_batches(several_rows))) <= batches.BATCH_FACTS
    monkeypatch.setattr(batches, "free_memory", lambda devices: 1)
    assert [len(group) for group in anchor_batches(several_rows, 100)] == [1] * len(several_rows)


@pytest.mark.parametrize(
    ("name", "edited", "read", "divisors"),
    [
        ("backward-dividing", (4, 5, 8), (8, 8, 8), (3, 2, 1)),
        ("backward-full", (4, 5, 8), (8, 8, 8), (1, 1, 1)),
        ("one-layer", (8,), (8,), (1,)),
        ("independent", (4, 8), (4, 8), (1, 1)),
        ("forward-replay", (4, 5, 8), (4, 5, 8), (1, 1, 1)),
        ("coordinated-replay", (4, 5, 8), (4, 5, 8), (1, 1, 1)),
    ],
)
def test_the_schemes_answers(name, edited, read, divisors):
    scheme = SCHEMES[name]
    layers = scheme.edited((4, 5, 8))
    assert layers == edited
    assert tuple(scheme.read(layers, i) for i in range(len(layers))) == read
    assert tuple(scheme.divisor(i, len(layers)) for i in range(len(layers))) == divisors


def test_settings_are_the_models_own_by_default(tiny, facts, monkeypatch):
    """Learning rate and passes of the literature, for the descents at one layer and at several."""
    literature = Defaults((1, 2), None, 0.1, 3)
    monkeypatch.setattr(LanguageModel, "defaults", lambda _: literature)
    rows = fact_rows(tiny, facts[:2], CONTEXTS)
    settings = AnchorSettings(lr=0.1, steps=3)
    assert AnchorSettings.of(tiny) == settings
    assert torch.equal(optimize_anchors(rows, 1).states, optimize_anchors(rows, 1, settings).states)
    assert torch.equal(coordinate_shifts(rows, (1, 2)).shifts, coordinate_shifts(rows, (1, 2), settings).shifts)
