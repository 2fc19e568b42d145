"""Generation against plain greedy decoding with the whole model, and measures of texts by hand."""

import math
from dataclasses import replace

import pytest
import torch

from jacobian_lab.evaluation.generation import (
    MEASURES,
    first_sentence,
    generate,
    ngram_entropy,
    repetition,
    stop_tokens,
    text_values,
)
from jacobian_lab.evaluation.metrics import accuracy, greedy_tokens
from jacobian_lab.facts.fact import Fact

FACTS = (
    Fact("a", "Rome", "{} is the capital of", "France"),
    Fact("b", "Ada Lovelace", "{} wrote about", "poetry"),
    Fact("c", "Paris", "{} is the capital of", "Italy"),
)


@torch.no_grad()
def decoded(model, row, tokens, stop=()):
    """Greedy continuation by the whole model, token by token, without a cache."""
    ids = list(row.ids[: row.prompt_length])
    for _ in range(tokens):
        token = int(model.hf(torch.tensor([ids])).logits[0, -1].argmax())
        if token in stop:
            break
        ids.append(token)
    return tuple(ids[row.prompt_length :])


def test_text_is_the_models_own_and_ends_where_it_ends(family_model):
    rows = [family_model.text_prompt(fact.text, fact.target_new) for fact in FACTS]
    whole = greedy_tokens(family_model, rows, 8)
    assert whole == [decoded(family_model, row, 8) for row in rows]
    stop = {whole[0][3]}
    ended = greedy_tokens(family_model, rows, 8, stop)
    assert ended == [decoded(family_model, row, 8, stop) for row in rows]
    assert len(ended[0]) <= 3


def test_values_of_facts_agree_with_accuracy(tiny):
    generated = generate(tiny, FACTS, tokens=6)
    rows = [tiny.text_prompt(fact.text, fact.target_new) for fact in FACTS]
    assert [one.values["forced_match"] for one in generated] == accuracy(tiny, rows).double().tolist()
    assert all(one.values["greedy_match"] == one.values["forced_match"] for one in generated)
    assert all(list(one.values) == list(MEASURES) for one in generated)
    stop = stop_tokens(tiny)
    texts = [decoded(tiny, row, max(6, *(len(row.answer) for row in rows)), stop) for row in rows]
    assert [one.text for one in generated] == [tiny.tokenizer.decode(ids, skip_special_tokens=True) for ids in texts]


def test_an_answer_that_the_model_writes_matches(tiny):
    places = [Fact(place, place, "{} is the capital of", "x") for place in ("Rome", "Paris", "Oslo", "Lima", "Bern")]
    rows = [tiny.text_prompt(fact.text) for fact in places]
    written = [decoded(tiny, row, 2) for row in rows]
    answered = [
        replace(fact, target_new=tiny.tokenizer.decode(ids), join="") for fact, ids in zip(places, written, strict=True)
    ]
    own = [
        f for f, ids in zip(answered, written, strict=True) if tiny.text_prompt(f.text, f.target_new, "").answer == ids
    ]
    assert own
    assert all(one.values["greedy_match"] == one.values["forced_match"] == 1 for one in generate(tiny, own, tokens=5))


def test_answers_in_a_text():
    text = " The United Kingdom. It is in Europe, and the\nUnited States are not."
    assert first_sentence(text) == "The United Kingdom."
    assert text_values(text, "United Kingdom")["exact_match"] == 1
    assert text_values(text, "the united kingdom")["f1"] == 1
    values = text_values(text, "United States")
    assert (values["exact_match"], values["f1"], values["contains_answer"]) == (0, 0.5, 1)
    assert text_values(text, "Kingdom of Spain")["f1"] == pytest.approx(2 / 5)
    assert text_values(text, "States United")["contains_answer"] == 0
    assert text_values("", "Rome") == pytest.approx(
        {"exact_match": 0, "f1": 0, "contains_answer": 0, "ngram_entropy": math.nan, "repetition": math.nan},
        nan_ok=True,
    )


def test_entropy_is_that_of_memits_code():
    words = ["a", "b", "a", "b", "a", "c"]
    pairs = [2 / 5, 2 / 5, 1 / 5]  # ab, ba, ac
    triples = [2 / 4, 1 / 4, 1 / 4]  # aba, bab, bac
    bits = [-sum(p * math.log2(p) for p in shares) for shares in (pairs, triples)]
    assert ngram_entropy(words) == pytest.approx((2 / 3 * bits[0] + 4 / 3 * bits[1]) / 2)
    assert ngram_entropy(["go"] * 9) == 0
    assert math.isnan(ngram_entropy(["a", "b"]))


def test_repetition_counts_what_stood_before():
    assert repetition(["one", "two", "three", "four", "five"]) == 0
    assert repetition(["go"] * 8) == pytest.approx(4 / 5)
    assert math.isnan(repetition(["go"] * 3))
