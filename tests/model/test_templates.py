"""Contexts and answers are written by the model's probabilities alone."""

import copy
from dataclasses import replace

import pytest
import torch
from helpers.small import CONFIGS, make_folder, make_tokenizer

from jacobian_lab.model.corpus import Corpus, token_rows
from jacobian_lab.model.loading import load_model
from jacobian_lab.model.templates import LENGTH, OPENINGS, sample_templates, write

OWN = {
    "repetition_penalty": 1.3,
    "no_repeat_ngram_size": 1,
    "temperature": 0.01,
    "top_k": 1,
    "bad_words_ids": [[n] for n in range(40, 300)],
    "max_length": 3,
    "num_beams": 2,
}
"""What a model may bring along in its generation_config."""


@pytest.fixture
def with_own_settings(tiny, monkeypatch):
    own = copy.deepcopy(tiny.hf.generation_config)
    own.update(**OWN)

    def put():
        monkeypatch.setattr(tiny.hf, "generation_config", own)

    return put


def test_templates_do_not_depend_on_the_models_own_settings(tiny, with_own_settings):
    plain = sample_templates(tiny, seed=3)
    with_own_settings()
    assert sample_templates(tiny, seed=3) == plain
    assert tiny.hf.generation_config.repetition_penalty == OWN["repetition_penalty"]  # it is put back
    assert sample_templates(tiny, seed=4) != plain


def test_greedy_writing_is_the_argmax_of_the_logits(tiny, with_own_settings):
    ids = torch.arange(40, 52).view(2, 6)
    with_own_settings()
    written = write(tiny, ids, do_sample=False, max_new_tokens=4)
    expected = ids
    for _ in range(4):
        expected = torch.cat([expected, tiny.hf(expected).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(written, expected)


def test_a_context_has_ten_tokens_even_of_a_model_that_would_end_at_once(tmp_path, monkeypatch):
    model = load_model(make_folder(tmp_path / "m", CONFIGS["gpt2"], make_tokenizer(bos=True)), device="cpu")
    tokenizer, special = model.tokenizer, [0, 1, 2]
    model.hf.generation_config.eos_token_id = special
    with torch.no_grad():  # every special token is likelier than any other
        model.hf.transformer.ln_f.weight.zero_()
        model.hf.transformer.ln_f.bias.copy_(model.hf.transformer.wte.weight[special].sum(0))
        model.hf.transformer.wte.weight[special] *= 100
    decoded = []
    decode = tokenizer.decode
    monkeypatch.setattr(tokenizer, "decode", lambda ids, **k: decoded.append(ids.tolist()) or decode(ids, **k))
    ((bare,), contexts) = sample_templates(model)
    assert bare == "{}"
    assert len(contexts) == len(OPENINGS)
    for ids in decoded:
        assert len([token for token in ids if token not in special]) == LENGTH


def test_contexts_are_not_sampled_behind_an_eos_that_the_tokenizer_adds(tmp_path):
    with_eos, without = (
        load_model(make_folder(tmp_path / str(eos), CONFIGS["llama"], make_tokenizer(bos=True, eos=eos)), device="cpu")
        for eos in (True, False)
    )
    assert with_eos.tokenizer("I")["input_ids"][-1] == with_eos.tokenizer.eos_token_id
    assert sample_templates(with_eos, seed=3) == sample_templates(without, seed=3)


def test_a_corpus_has_no_eos_that_the_tokenizer_adds(tiny):
    text, with_eos, without = "The old books of Rome.", make_tokenizer(bos=True, eos=True), make_tokenizer(bos=True)
    corpus = Corpus("x", (text, text * 20), "")
    for length in (3, 64):
        rows, expected = (
            token_rows(replace(tiny, tokenizer=tokenizer), corpus, length, None) for tokenizer in (with_eos, without)
        )
        assert rows == expected
        assert with_eos.eos_token_id not in {token for row in rows for token in row.ids}
        assert len(rows[1].ids) == length
