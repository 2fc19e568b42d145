"""Tokens: the decisive position, the answer's span, and the traps of both."""

from collections import Counter
from dataclasses import replace

import pytest
from helpers.small import CONTEXTS, make_tokenizer
from transformers import PreTrainedTokenizerBase

from jacobian_lab.errors import InputError
from jacobian_lab.facts.fact import Fact
from jacobian_lab.model.rows import checked_rows, fact_rows
from jacobian_lab.model.tokens import fact_prompt, kl_prompt, pad, text_prompt


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def test_decisive_token_is_the_last_of_the_subject(tokenizer, facts):
    for fact in facts:
        row = fact_prompt(tokenizer, fact)
        upto = tokenizer.decode(row.ids[: row.decisive + 1])
        assert upto.endswith(fact.subject[-1])
        assert fact.subject in upto


def test_a_subject_that_occurs_twice_is_taken_at_its_place(tokenizer, facts):
    twice = facts[-1]
    row = fact_prompt(tokenizer, twice)
    assert tokenizer.decode(row.ids[: row.decisive + 1]) == "Paris is where Paris"


def test_a_subject_whose_last_token_merges_with_what_follows(tokenizer):
    """The token that covers the subject's last character, even if it covers more."""
    fact = Fact(0, "the Eiffel Towe", "We saw {}r in", "Paris")
    row = fact_prompt(tokenizer, fact)
    ids = tokenizer("We saw the Eiffel Tower in")["input_ids"]
    assert list(row.ids) == ids
    assert "Tower" in tokenizer.decode(row.ids[: row.decisive + 1])


def test_a_character_of_several_tokens_ends_at_its_last(tokenizer):
    row = fact_prompt(tokenizer, Fact(0, "Tōkyō 日", "{} is", "x"))
    assert tokenizer.decode(row.ids[: row.decisive + 1]) == "Tōkyō 日"


def test_the_answer_is_concatenated_not_tokenised_again(tokenizer):
    fact = Fact(0, "Ada", "{} wrote the", "unbelievable poems of Paris")
    row, bare = fact_prompt(tokenizer, fact, answer=True), fact_prompt(tokenizer, fact)
    answer = tuple(tokenizer(" " + fact.target_new)["input_ids"])
    assert len(answer) > 2
    assert row.ids == bare.ids + answer[:-1]
    assert row.answer == answer
    assert row.ids[len(row.ids) - len(answer) + 1 :] == answer[:-1]


def test_braces_in_a_subject_are_text(tokenizer):
    row = fact_prompt(tokenizer, Fact(0, "the {} sign", "We saw {} in", "Paris"), "Look. {}")
    assert tokenizer.decode(row.ids) == "Look. We saw the {} sign in"


def test_one_bos_and_no_eos(facts):
    tokenizer = make_tokenizer(bos=True, eos=True)
    row = fact_prompt(tokenizer, facts[0], answer=True)
    assert row.ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.eos_token_id not in row.ids
    assert not {tokenizer.bos_token_id, tokenizer.eos_token_id} & set(row.answer)


def test_two_bos_are_refused():
    tokenizer = make_tokenizer(bos=True)
    for template in ("<bos>Look. {}", "Look. <bos>{}"):
        with pytest.raises(InputError, match="one BOS at most, got 2"):
            fact_prompt(tokenizer, Fact(0, "Ada", "{} wrote", "x"), template)


def test_a_subject_that_the_tokenizer_drops_is_refused(tokenizer):
    from tokenizers.normalizers import Replace

    dropping = make_tokenizer()
    dropping.backend_tokenizer.normalizer = Replace("Ada", "")
    with pytest.raises(InputError, match="appear among the tokens"):
        fact_prompt(dropping, Fact(0, "Ada", "{} wrote", "x"))


def test_an_answer_without_tokens_is_refused():
    from tokenizers.normalizers import Replace

    dropping = make_tokenizer()
    dropping.backend_tokenizer.normalizer = Replace(" Rome", "")
    with pytest.raises(InputError, match="at least one token"):
        text_prompt(dropping, "It is", "Rome")


def test_cut_and_tail(tokenizer, facts):
    row = fact_prompt(tokenizer, facts[1], answer=True)
    assert row.cut().ids == row.ids[: row.decisive + 1]
    assert row.tail == len(row.ids) - row.decisive
    kl = kl_prompt(tokenizer, facts[1])
    assert tokenizer.decode(kl.ids) == "the Eiffel Tower is a"


def test_padding_is_on_the_right_whatever_the_tokenizer_says(facts):
    left = make_tokenizer("left")
    rows = [fact_prompt(left, fact) for fact in facts]
    ids = pad(rows)
    for row, line in zip(rows, ids, strict=True):
        assert tuple(line[: len(row.ids)].tolist()) == row.ids
        assert not line[len(row.ids) :].any()


def test_each_text_of_a_fact_is_tokenised_once(tiny, facts, monkeypatch):
    """Checking and making rows is one pass; a fact that is too long leaves the others as they are."""
    texts, call = Counter(), PreTrainedTokenizerBase.__call__

    def counting(self, text, **keywords):
        texts[text] += 1
        return call(self, text, **keywords)

    monkeypatch.setattr(PreTrainedTokenizerBase, "__call__", counting)
    long = replace(facts[0], id="long", prompt="word " * 300 + "{} is")
    rows, refused = checked_rows(tiny, [long, *facts], CONTEXTS, {fact.id: fact.prompt for fact in (long, *facts)})
    assert set(texts.values()) == {1}
    assert [fact.id for fact in refused] == ["long"]
    plain = fact_rows(tiny, facts, CONTEXTS)
    assert rows.facts == tuple(facts)
    for name in ("weights", "bare", "answered", "contexts", "answered_contexts", "kl"):
        assert getattr(rows, name) == getattr(plain, name)
