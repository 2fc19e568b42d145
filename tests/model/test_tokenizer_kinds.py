"""Tokenizers of every kind: answers are tokenised as running text has them, and the decisive token is found."""

import unicodedata
from dataclasses import replace

import pytest
from helpers.kinds import KINDS, tokenizer_of
from tokenizers import Regex, normalizers
from transformers import AutoTokenizer

from jacobian_lab.errors import InputError
from jacobian_lab.facts.fact import Fact
from jacobian_lab.facts.reading import load_facts
from jacobian_lab.model.corpus import Corpus, token_rows
from jacobian_lab.model.joint import joint
from jacobian_lab.model.rows import check_fact
from jacobian_lab.model.tokens import fact_prompt, text_prompt

WITHOUT_UNKNOWN = [kind for kind in KINDS if kind != "unigram"]
PLAIN = (
    Fact("first", "Ada Lovelace", "{} wrote about", "poetry"),
    Fact("middle", "the Eiffel Tower", "You can find {} in the city of", "Paris"),
    Fact("last", "the old tower", "In the city of Rome, we saw {}", "and nothing else"),
    Fact("twice", "Paris", "Paris is where {} is, said", "nobody at all"),
    Fact("opened", "The gate", "{} is painted with the word (", "south"),
    Fact("joined", "The gate", "{} is old, it is", "n't it", join=""),
)
FOREIGN = (
    Fact("chinese", "白桦湖", "{}位于", "罗马"),
    Fact("accents", "Gabriel García Márquez", "The author is {}", "Fëdor"),
    Fact("emoji", "the 👩‍🚀 club", "We saw {} in", "Zoë's house"),
    Fact("quoted", "Mira Vale", '{} is painted with the word "', "South"),
    Fact("number", "Mira Vale", "{} was born in", "1413"),
    Fact("line", "Mira Vale", "Question: where was {} born?\n", "Rome"),
)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """Read tokenizers from their files, as users do."""
    root = tmp_path_factory.mktemp("kinds")
    for kind in KINDS:
        tokenizer_of(kind).save_pretrained(root / kind)
    return {kind: AutoTokenizer.from_pretrained(root / kind) for kind in KINDS}


def running_text(tokenizer, text: str) -> tuple[int, ...]:
    """Ids that the tokenizer itself makes of a text."""
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    return tuple(backend.encode(text).ids)


def spelled(tokenizer, ids) -> str:
    return unicodedata.normalize("NFC", tokenizer.decode(ids, skip_special_tokens=True)).strip()


@pytest.mark.parametrize("kind", KINDS)
def test_prompt_and_answer_are_running_text(kind, tokenizers):
    tokenizer = tokenizers[kind]
    for fact in PLAIN if kind == "unigram" else PLAIN + FOREIGN:
        row = fact_prompt(tokenizer, fact, answer=True)
        text = fact.text + joint(fact.text, fact.join) + fact.target_new
        assert row.ids + row.answer[-1:] == running_text(tokenizer, text), fact
        assert spelled(tokenizer, row.answer) == fact.target_new, fact
        assert "  " not in tokenizer.decode(row.ids + row.answer[-1:])
        as_text = text_prompt(tokenizer, fact.text, fact.target_new, fact.join)
        assert (as_text.ids, as_text.answer) == (row.ids, row.answer)


@pytest.mark.parametrize("kind", KINDS)
def test_a_piece_over_the_join_belongs_to_the_answer(kind, tokenizers):
    tokenizer, fact = tokenizers[kind], Fact(0, "The wall", "{} is of lime", "stone", join="")
    row = fact_prompt(tokenizer, fact, answer=True)
    assert row.ids + row.answer[-1:] == running_text(tokenizer, "The wall is of limestone")
    assert spelled(tokenizer, row.answer) == "estone"  # "es" is a piece
    assert spelled(tokenizer, row.ids[: len(row.ids) - len(row.answer) + 1]) == "The wall is of lim"


@pytest.mark.parametrize("kind", WITHOUT_UNKNOWN)
def test_an_answer_begins_with_its_word_and_not_with_a_space_piece(kind, tokenizers):
    tokenizer = tokenizers[kind]
    for fact in load_facts("builtin", "0:40"):
        first = tokenizer.convert_ids_to_tokens(fact_prompt(tokenizer, fact, answer=True).answer[0])
        if first in {"▁", "Ġ"}:  # only where running text has it: a word that no piece begins with a space for
            assert f"{first}{fact.target_new[0]}" not in tokenizer.get_vocab()


def test_the_answer_of_a_prepending_tokenizer_is_one_piece(tokenizers):
    """Llama 2's way: by itself " Paris" would be a lone space piece and the word."""
    for kind in ("llama2", "prepend-no-bos", "metaspace"):
        answer = fact_prompt(tokenizers[kind], PLAIN[1], answer=True).answer
        assert tokenizers[kind].convert_ids_to_tokens(answer) == ["▁Par", "is"]
    alone = tokenizers["prepend-no-bos"](" Paris", add_special_tokens=False)["input_ids"]
    assert tokenizers["prepend-no-bos"].convert_ids_to_tokens(alone)[0] == "▁"


@pytest.mark.parametrize("kind", WITHOUT_UNKNOWN)
def test_the_decisive_token_ends_the_subject(kind, tokenizers):
    tokenizer = tokenizers[kind]
    for fact in PLAIN + FOREIGN:
        row = fact_prompt(tokenizer, fact, "Look there. {}")
        subject = unicodedata.normalize("NFC", fact.subject)
        assert subject in spelled(tokenizer, row.ids[: row.decisive + 1]), fact
        assert spelled(tokenizer, row.ids[: row.decisive]).count(subject) < fact.text.count(fact.subject), fact


@pytest.mark.parametrize("kind", KINDS)
def test_bos_is_there_once_or_not_at_all(kind, tokenizers):
    tokenizer = tokenizers[kind]
    row = fact_prompt(tokenizer, PLAIN[0], answer=True)
    assert row.ids.count(tokenizer.bos_token_id) == (kind in {"llama2", "llama3", "metaspace"})
    assert tokenizer.bos_token_id not in row.answer


@pytest.mark.parametrize("kind", WITHOUT_UNKNOWN)
def test_a_space_at_the_prompts_end_is_the_answers(kind, tokenizers):
    spaced, plain = (text_prompt(tokenizers[kind], text, "Paris") for text in ("It is in ", "It is in"))
    assert spaced == plain


def test_decomposed_characters_are_found_under_a_composing_tokenizer(tokenizers):
    fact = Fact(0, "Ame\u0301lie", "The film {} is", "old")
    row = fact_prompt(tokenizers["qwen"], fact)
    assert spelled(tokenizers["qwen"], row.ids[: row.decisive + 1]) == "The film Am\u00e9lie"


def test_what_a_tokenizer_cannot_write_is_refused(tokenizers):
    with pytest.raises(InputError, match="makes nothing of it or one piece with the prompt"):
        fact_prompt(tokenizers["unigram"], Fact(0, "白桦湖", "{}位于", "罗马"), answer=True)
    with pytest.raises(InputError, match="unknown pieces in 'x罗马'"):
        fact_prompt(tokenizers["unigram"], Fact(0, "The lake", "{} lies in", "x罗马"), answer=True)


def test_special_tokens_in_subjects_and_answers_are_refused(tokenizers):
    with pytest.raises(InputError, match="the special token '</s>' in 'Ada</s>'"):
        fact_prompt(tokenizers["llama2"], Fact(0, "Ada</s>", "{} wrote", "x"))
    with pytest.raises(InputError, match="the special token '</s>' in 'x</s>'"):
        fact_prompt(tokenizers["llama2"], Fact(0, "Ada", "{} wrote", "x</s>"), answer=True)


def test_an_answer_that_merges_with_the_subject_is_refused(tokenizers):
    fact = Fact(0, "Par", "We were in {}", "is", join="")
    with pytest.raises(InputError, match="joins it with the answer"):
        fact_prompt(tokenizers["gpt2"], fact, answer=True)


def test_padding_and_truncation_of_the_file_do_not_reach_a_corpus(tokenizers, tiny):
    tokenizer = tokenizers["padding-truncation"]
    model = replace(tiny, tokenizer=tokenizer)
    text = "The old books of the city of Rome are there"
    (row,) = token_rows(model, Corpus("x", (text,), ""), 256, None)
    assert row.ids == running_text(tokenizer, text)
    (row,) = token_rows(model, Corpus("x", (text,), ""), 3, None)
    assert len(row.ids) == 3


@pytest.mark.parametrize(
    ("text", "join"),
    [
        ("It is in", " "),
        ("It is in ", ""),
        ("Where is it?", " "),
        ("Answer:\n", ""),
        ('is painted with the word "', ""),
        ('"', ""),
        ('He said "yes"', " "),
        ("the dogs'", " "),
        ("called ('", ""),
        ("he lives (", ""),
        ("sie sagt „", ""),
        ("dit «", ""),
        ("[1]", " "),
        ("白桦湖位于", ""),
        ("白桦湖在哪里?", ""),
        ("白桦湖，", ""),
        ("ここは", ""),
        ("เมืองหลวงคือ", ""),
        ("그는", " "),
        ("The city of 東京 lies in", " "),
        ("1999", " "),
    ],
)
def test_what_stands_between_a_prompt_and_its_answer(text, join):
    assert joint(text) == join


def test_a_record_says_how_its_answer_is_joined():
    assert joint("It is", "") == ""
    assert joint("白桦湖位于", " ") == " "
    assert joint("It is ", " ") == ""  # never a doubled space


def test_on_the_embedded_model_the_ids_are_what_they_were(real, shared):
    for name in ("counterfact_2000.json", "zsre_2000.json"):
        for fact in load_facts(shared / "data" / name):
            bare, row = (fact_prompt(real.tokenizer, fact, answer=answer) for answer in (False, True))
            ids = tuple(real.tokenizer(" " + fact.target_new, add_special_tokens=False)["input_ids"])
            assert (row.ids, row.answer) == (bare.ids + ids[:-1], ids)
            assert row.decisive == bare.decisive


def test_a_tokenizer_that_makes_spaces_of_line_ends_is_refused_an_answer_of_many_lines(tokenizers, tiny):
    tokenizer = AutoTokenizer.from_pretrained(tokenizers["gpt2"].name_or_path)
    model = replace(tiny, tokenizer=tokenizer)
    lines = Fact("lines", "Ada", "{} wrote", "area(r, *,\n    unit='m')")
    check_fact(model, lines)
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(Regex(r"\s+"), " ")
    with pytest.raises(InputError, match=r"a tokenizer that writes the 1 line ends of .*, got 0 of them"):
        check_fact(model, lines)
