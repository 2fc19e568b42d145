"""Causal tracing against a plain loop over the untouched model, and its draws, roles and windows."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from helpers.causal import PlainTrace
from helpers.exact import _compute_in_float64
from helpers.small import EVERY, LACKING, ROTARY, make_folder
from transformers import AutoModelForCausalLM, AutoTokenizer, Olmo2Config

from jacobian_lab.catalogue import ROLES, TraceSite
from jacobian_lab.errors import InputError
from jacobian_lab.facts.fact import Fact
from jacobian_lab.facts.reading import load_facts
from jacobian_lab.maps import restorations, tracing_check
from jacobian_lab.maps.restorations import TracedPrompt, TraceSettings, traced_prompt
from jacobian_lab.maps.tracing import draw_noise, embedding_deviation, trace, trace_prompt
from jacobian_lab.maps.tracing_check import check_tracing
from jacobian_lab.model.families import FAMILIES
from jacobian_lab.model.language_model import LanguageModel
from jacobian_lab.model.loading import load_model

ALL = get_args(TraceSite)
FACT = Fact("tower", "Eiffel Tower", "See the {} in", "London", "Paris")


def plain_effects(model, settings, fact=FACT, **joining):
    """Every cell by the plain loop."""
    prompt, settings = traced_prompt(model, fact), settings.of(model.n_layers)
    noise = draw_noise(model, fact, prompt, settings, embedding_deviation(model))
    with torch.no_grad():
        plain = PlainTrace(model.hf, prompt.ids, prompt.subject, prompt.answer, noise, joining)
        effects = [
            [
                [plain.effect(site, layer, place, settings.window) for site in settings.sites]
                for layer in settings.layers
            ]
            for place in prompt.places
        ]
    return plain, np.array(effects)


@pytest.mark.parametrize(
    "family",
    [name if name in {"llama", "gpt2", "olmo2"} else pytest.param(name, marks=pytest.mark.slow) for name in EVERY],
)
def test_every_cell_is_that_of_a_plain_loop(family, load_exact):
    if family in LACKING:
        pytest.skip(f"this version of transformers has no {family}")
    family_model = load_exact(family)
    some = None if family_model.hf.config.model_type == "llama" else (0, 3, 5)
    settings = TraceSettings(layers=some, sites=ALL, samples=2, window=3)
    (traced,) = trace(family_model, [FACT], settings)
    plain, effects = plain_effects(family_model, settings)
    assert traced.effect.shape == effects.shape
    assert np.abs(traced.effect - effects).max() < 1e-12
    assert traced.clean == pytest.approx(plain.clean, abs=1e-12)
    assert traced.corrupted == pytest.approx(np.mean(plain.corrupted), abs=1e-12)
    assert (np.abs(effects).max(axis=(0, 1)) > 1e-7).all()  # every site does something
    by_site = effects.reshape(-1, len(ALL)).round(12)
    assert np.unique(by_site, axis=1).shape == by_site.shape  # and something else
    assert traced.effect[-1, -1, 0] == pytest.approx(traced.clean - traced.corrupted)  # the last state is all there is


def test_what_joins_the_stream_behind_a_norm_is_restored(tmp_path):
    """Restoring the MLP's output restores what its norm makes of it."""
    folder = make_folder(tmp_path / "olmo2", Olmo2Config(**ROTARY, pad_token_id=None))
    hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval().requires_grad_(False)
    _compute_in_float64(hf)
    family = replace(FAMILIES["llama"], output_norm="post_feedforward_layernorm")
    model = LanguageModel(hf, AutoTokenizer.from_pretrained(folder), family, "olmo2", "")
    assert model.output_norm(0) is hf.model.layers[0].post_feedforward_layernorm
    settings = TraceSettings(layers=(0, 3), sites=ALL, samples=2)
    (traced,) = trace(model, [FACT], settings)
    joining = {"mlp": "post_feedforward_layernorm", "attention": "post_attention_layernorm"}
    _, effects = plain_effects(model, settings, **joining)
    assert np.abs(traced.effect - effects).max() < 1e-12
    assert (np.abs(effects).max(axis=(0, 1)) > 1e-7).all()


@pytest.mark.slow
def test_the_embedded_model_gives_what_a_plain_loop_gives():
    """In float64: in float32 the passes themselves differ by 1e-6."""
    model, (fact,) = load_model(dtype="float64", device="cpu"), load_facts("builtin", "0:1")
    settings = TraceSettings(layers=(8,), sites=("residual", "mlp", "attention-severed"), samples=1)
    (traced,) = trace(model, [fact], settings)
    _, effects = plain_effects(model, settings, fact)
    assert np.abs(traced.effect - effects).max() < 1e-10
    assert np.abs(effects).max() > 0.1
    assert traced.recalled


def test_passes_of_any_size_give_the_same(tiny, monkeypatch):
    settings = TraceSettings(samples=2)
    (whole,) = trace(tiny, [FACT], settings)
    monkeypatch.setattr(restorations, "TOKENS_PER_BATCH", 1)
    (split,) = trace(tiny, [FACT], settings)
    np.testing.assert_allclose(split.effect, whole.effect, rtol=0, atol=1e-14)


def test_a_fact_has_the_same_noise_beside_any_others_and_another_with_another_seed(tiny):
    other = replace(FACT, id="other", subject="Rome")
    settings = TraceSettings(layers=(2,), sites=("mlp",), samples=2)
    (alone,), (_, beside) = trace(tiny, [FACT], settings), trace(tiny, [other, FACT], settings)
    assert np.array_equal(alone.effect, beside.effect)
    (seeded,) = trace(tiny, [FACT], settings, seed=1)
    assert not np.allclose(alone.effect, seeded.effect)
    prompt, settings = traced_prompt(tiny, FACT), settings.of(tiny.n_layers)
    own, another = (draw_noise(tiny, fact, prompt, settings, 1.0) for fact in (FACT, other))
    assert not torch.allclose(own, another)
    assert (beside.fact, beside.sites, beside.layers) == ("tower", ("mlp",), (2,))


def test_noise_is_three_standard_deviations_of_the_embedding(tiny):
    deviation = embedding_deviation(tiny)
    assert deviation == pytest.approx(float(tiny.hf.get_input_embeddings().weight.std(correction=0)), rel=1e-9)
    settings = TraceSettings(samples=2000).of(tiny.n_layers)
    noise = draw_noise(tiny, FACT, traced_prompt(tiny, FACT), settings, deviation)
    assert float(noise.std()) == pytest.approx(3 * deviation, rel=0.01)


def roles(length, subject):
    prompt = TracedPrompt(tuple(range(length)), subject, 0)
    return [prompt.role(place) for place in prompt.places]


def test_a_token_has_one_role():
    first, middle, end, first_further, further, last = ROLES
    assert roles(8, range(1, 4)) == [first, middle, end, first_further, further, further, last]
    assert roles(4, range(1, 2)) == [end, first_further, last]
    assert roles(3, range(2)) == [first, end, last]
    assert roles(3, range(1, 3)) == [first, end]  # the subject ends the prompt


@pytest.mark.parametrize(
    ("subject", "prompt"), [("Eiffel Tower", "{} stands in"), ("Paris", "In {}"), ("Ada Lovelace", "{}")]
)
def test_the_subject_is_that_of_the_text(subject, prompt, tiny):
    traced = traced_prompt(tiny, Fact("a", subject, prompt, "x", "Paris"))
    assert tiny.tokenizer.decode(traced.ids[traced.subject.start : traced.subject.stop]).strip() == subject
    assert tiny.tokenizer.decode([traced.answer]).strip() == "Paris"[: len(tiny.tokenizer.decode([traced.answer])) - 1]


def test_windows_are_those_of_rome(tiny):
    def windows(**settings):
        cells = TraceSettings(sites=("mlp",), **settings).restorations(tiny.n_layers)
        return {cell.layer: (cell.window.start, cell.window.stop) for cell in cells}

    assert windows(window=4) == {0: (0, 2), 1: (0, 3), 2: (0, 4), 3: (1, 5), 4: (2, 6), 5: (3, 6)}
    assert windows(window=3)[2] == (1, 4)
    assert windows() == windows(window=2)  # a third of six blocks
    assert TraceSettings().of(48).window == 10
    with pytest.raises(InputError, match="window of at most 6 layers, got window 7"):
        windows(window=7)


def test_a_fact_without_a_true_answer_is_refused(tiny):
    with pytest.raises(InputError, match=r"expected a true answer.* in fact 'a'"):
        trace(tiny, [Fact("a", "Rome", "{} is", "old")])


def test_a_fact_that_is_not_recalled_can_be_left_out(tiny):
    (traced,) = trace(tiny, [FACT], samples=1, recalled_only=True)
    assert not traced.recalled
    assert np.isnan(traced.effect).all()
    assert traced.clean > 0


def test_a_trace_is_checked_against_the_model_and_refused(tiny, monkeypatch):
    prompt, settings = traced_prompt(tiny, FACT), TraceSettings(sites=ALL, samples=3)
    assert check_tracing(tiny, FACT, prompt, settings, 0.15) < 1e-12

    def wrong(*arguments):
        traced = trace_prompt(*arguments)
        return replace(traced, effect=traced.effect + 1e-4 * traced.corrupted)

    monkeypatch.setattr(tracing_check, "trace_prompt", wrong)
    with pytest.raises(InputError, match=r"expected causal tracing to agree .* please report it"):
        check_tracing(tiny, FACT, prompt, settings, 0.15)
