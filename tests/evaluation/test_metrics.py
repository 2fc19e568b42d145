"""Metrics against hand-computed cases, the untouched model one row at a time, and real greedy decoding."""

import dataclasses
import math

import pytest
import torch
from helpers.asked import efficacy
from helpers.small import CONFIGS, make_folder, make_tokenizer
from torch.utils._python_dispatch import TorchDispatchMode

from jacobian_lab.errors import InputError
from jacobian_lab.evaluation import metrics, text
from jacobian_lab.evaluation.metrics import (
    answers,
    check_questions,
    evaluate,
    greedy_matches,
    neighborhood_states,
    specificity,
)
from jacobian_lab.evaluation.questions import STYLES, neighborhood, probe_groups, style_of
from jacobian_lab.evaluation.text import perplexity, state_norms
from jacobian_lab.facts.fact import Fact, Probe
from jacobian_lab.facts.reading import load_facts
from jacobian_lab.model.language_model import LanguageModel
from jacobian_lab.model.loading import load_model
from jacobian_lab.model.tokens import Prompt, fact_prompt, text_prompt

LOG2, LOG4, LOG8 = math.log(2), math.log(4), math.log(8)

RECORDS = (
    Fact(
        "many",
        "Ada Lovelace",
        "{} wrote about",
        "poetry and engines",
        "engines",
        ("In her notes Ada Lovelace wrote about", "What did Ada Lovelace write about? About"),
        ("Charles Babbage wrote about", "Mary Somerville wrote about", "Rome"),
    ),
    Fact("prefix", "Rome", "{} is the capital of", "New Zealand", "New", ("They say Rome is the capital of",), ("A",)),
    Fact("none", "the Eiffel Tower", "You can find {} in the city of", "London", "Paris"),
)


class Written(LanguageModel):
    """A model whose final states are its logits, so that they can be written down."""

    def head(self, hidden):
        return hidden


@pytest.fixture(scope="module")
def written(tiny):
    return Written(**vars(tiny))


def logits(*probabilities):
    return torch.tensor(probabilities, dtype=torch.float64).log()


def test_answers_by_hand(written):
    rows = [Prompt((1, 2, 0), 1, (0, 2)), Prompt((1, 2), 1, (1,)), Prompt((1, 2, 0), 1, (0, 1))]
    first, second = logits([0.5, 0.25, 0.25]), logits([0.25, 0.125, 0.625])
    found = answers(written, rows, [torch.cat([first, second]), first, torch.cat([first, second])])
    expected = [(LOG2 - math.log(0.625)) / 2, LOG4, (LOG2 + LOG8) / 2]
    torch.testing.assert_close(found.nll, torch.tensor(expected, dtype=torch.float64))
    assert found.share.tolist() == [1.0, 0.0, 0.5]


class Largest(TorchDispatchMode):
    """The most rows of logits that are in float64 at once."""

    def __init__(self, words):
        super().__init__()
        self.words, self.rows = words, 0

    def __torch_dispatch__(self, function, types, given=(), named=None):
        made = function(*given, **(named or {}))
        if isinstance(made, torch.Tensor) and made.dtype == torch.float64 and made.shape[-1:] == (self.words,):
            self.rows = max(self.rows, made.numel() // self.words)
        return made


def test_few_logits_are_in_double_at_once_and_the_numbers_are_the_same(folders, monkeypatch):
    model = load_model(folders["llama"], dtype="float32", device="cpu")
    before, after = torch.randn(2, 100, model.d_model, generator=torch.Generator().manual_seed(0))
    rows = [Prompt((1, 2), 1, (n % 7, n % 5)) for n in range(50)]
    with Largest(model.hf.config.vocab_size) as largest:
        moved, taken = specificity(model, before, after), answers(model, rows, [before])
    assert 0 < largest.rows <= metrics.ROWS_IN_DOUBLE
    monkeypatch.setattr(metrics, "ROWS_IN_DOUBLE", 10**6)
    whole = specificity(model, before, after)
    assert all(torch.equal(moved[name], whole[name]) for name in whole)
    assert torch.equal(taken.nll, answers(model, rows, [before]).nll)


def test_specificity_by_hand(written):
    p = torch.tensor([[0.5, 0.25, 0.125, *[0.125 / 9] * 9]], dtype=torch.float64)
    q = p[:, [1, 0, *range(11, 1, -1)]]  # the two likeliest change places, and of the rest the order
    found = specificity(written, p.log(), q.log())
    expected = sum(a * math.log(a / b) for a, b in zip(p[0].tolist(), q[0].tolist(), strict=True))
    assert found["kl"].item() == pytest.approx(expected)
    assert found["top1"].item() == 0.0
    # ties are broken by place, for both alike, and the least likely of twelve fall out
    for k in (5, 10):
        before, after = (set(v.log().topk(k).indices[0].tolist()) for v in (p, q))
        assert found[f"top{k}"].item() == len(before & after) / k
    same = specificity(written, p.log(), p.log())
    assert [same[name].item() for name in ("kl", "top1", "top5", "top10")] == [0.0, 1.0, 1.0, 1.0]


def alone(model, text, answer):
    """NLL and hits of one answer, teacher forced through the untouched model."""
    ids = list(text_prompt(model.tokenizer, text).ids)
    target = model.tokenizer(" " + answer, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        rows = model.hf(torch.tensor([ids + target])).logits[0, len(ids) - 1 : -1].double()
    nll = [-row.log_softmax(-1)[token].item() for row, token in zip(rows, target, strict=True)]
    return sum(nll) / len(nll), [int(row.argmax()) == token for row, token in zip(rows, target, strict=True)]


def next_token(model, text):
    with torch.no_grad():
        return model.hf(torch.tensor([text_prompt(model.tokenizer, text).ids])).logits[0, -1].double().log_softmax(-1)


@pytest.mark.parametrize("style", STYLES)
def test_evaluation_against_one_row_at_a_time(family_model, style):
    """Before and after a change of weights; multi-token targets, a prefix, one and no neighbourhood prompt."""
    model = family_model
    before = neighborhood_states(model, RECORDS, style)
    assert [len(states) for states in before] == [3, 1, 0]
    old = {text: next_token(model, text) for fact in RECORDS for text, _ in neighborhood(fact)}
    original = model.weight(2).clone()
    model.weight(2).add_(0.3 * torch.randn(original.shape, generator=torch.Generator().manual_seed(1)).double())
    try:
        found = evaluate(model, RECORDS, before, style)
        for fact, values in zip(RECORDS, found, strict=True):
            for name, texts in (("efficacy", [fact.text]), ("generalization", fact.paraphrase_prompts)):
                for place, text in enumerate(texts):
                    nll, hits = alone(model, text, fact.target_new)
                    other, _ = alone(model, text, fact.target_true)
                    success = float(nll < other) if style == "counterfact" else sum(hits) / len(hits)
                    assert values[f"{name}_success"][place] == success
                    assert values[f"{name}_accuracy"][place] == float(all(hits))
            assert values["nll_new"][0] == pytest.approx(alone(model, fact.text, fact.target_new)[0], rel=1e-9)
            around = neighborhood(fact)
            assert len(values["neighborhood_success"]) == len(around)
            for place, (text, own) in enumerate(around):
                p, q = old[text], next_token(model, text)
                assert values["kl"][place] == pytest.approx((p.exp() * (p - q)).sum().item(), rel=1e-6, abs=1e-9)
                for k in (1, 5, 10):
                    kept = set(p.topk(k).indices.tolist()) & set(q.topk(k).indices.tolist())
                    assert values[f"top{k}"][place] == pytest.approx(len(kept) / k)
                nll, hits = alone(model, text, own)
                expected = float(nll < alone(model, text, fact.target_new)[0])
                expected = expected if style == "counterfact" else sum(hits) / len(hits)
                assert values["neighborhood_success"][place] == expected
    finally:
        model.weight(2).copy_(original)
    assert max(max(values.get("kl", [0.0])) for values in found) > 1e-4
    unmoved = evaluate(model, RECORDS, before, style)
    assert max(abs(kl) for values in unmoved for kl in values.get("kl", [0.0])) < 1e-12
    assert all(value == 1 for values in unmoved for value in values.get("top10", []))


def test_a_tie_is_no_success(tiny):
    """Two answers that the head cannot tell apart."""
    tokenizer, head = tiny.tokenizer, tiny.hf.get_output_embeddings()
    (new,), (true,) = (tokenizer(" " + text, add_special_tokens=False)["input_ids"] for text in ("A", "I"))
    fact = dataclasses.replace(RECORDS[2], target_new="A", target_true="I", neighborhood_prompts=("Rome is",))
    before, original = neighborhood_states(tiny, [fact], "counterfact"), head.weight[new].clone()
    with torch.no_grad():
        head.weight[new] = head.weight[true]
        values = evaluate(tiny, [fact], before, "counterfact")[0]
        head.weight[new] = original
    assert values["nll_new"] == values["nll_true"]
    assert values["efficacy_success"] == [0.0]
    assert values["neighborhood_success"] == [0.0]


def test_the_padding_side_changes_nothing(tmp_path):
    found = []
    for side in ("left", "right"):
        model = load_model(make_folder(tmp_path / side, CONFIGS["gpt2"], make_tokenizer(side)), device="cpu")
        found.append(evaluate(model, RECORDS, neighborhood_states(model, RECORDS, "counterfact"), "counterfact"))
        assert model.tokenizer.padding_side == side
    assert found[0] == found[1]


def test_the_rewriting_prompt_is_the_one_that_is_edited(family_model, facts):
    tokenizer = family_model.tokenizer
    for fact in (*facts, *RECORDS):
        edited = fact_prompt(tokenizer, fact, answer=True)
        asked = text_prompt(tokenizer, fact.text, fact.target_new)
        assert (asked.ids, asked.answer) == (edited.ids, edited.answer)
        assert asked.decisive == len(fact_prompt(tokenizer, fact).ids) - 1


def test_styles_follow_the_data():
    assert style_of(RECORDS) == "counterfact"
    assert style_of([*RECORDS, dataclasses.replace(RECORDS[0], target_true="")]) == "zsre"
    own = dataclasses.replace(RECORDS[0], neighborhood_answers=("engines", "science"))
    assert [answer for _, answer in neighborhood(own)] == ["engines", "science", ""]


def test_a_neighbourhood_prompt_without_an_answer_has_no_success(tiny):
    fact = dataclasses.replace(RECORDS[0], neighborhood_answers=("engines",))
    values = evaluate(tiny, [fact], neighborhood_states(tiny, [fact], "counterfact"), "counterfact")[0]
    assert [math.isnan(value) for value in values["neighborhood_success"]] == [False, True, True]
    assert all(math.isfinite(value) for value in values["kl"])


def test_questions_that_are_too_long_are_refused(tiny):
    long = dataclasses.replace(RECORDS[0], paraphrase_prompts=("Rome " * 400,))
    with pytest.raises(InputError, match=r"at most 256 tokens, got one of .* in fact 'many': shorten it"):
        check_questions(tiny, long)
    blank = dataclasses.replace(RECORDS[0], neighborhood_prompts=("",))
    with pytest.raises(InputError, match=r"got '' in what is asked of fact 'many': give another"):
        check_questions(dataclasses.replace(tiny, tokenizer=make_tokenizer()), blank)


def test_greedy_decoding_is_accuracy(family_model):
    """On the model's own continuations, which it writes, on their beginnings, and on other answers."""
    tokenizer, model = family_model.tokenizer, family_model
    rows = []
    for fact in RECORDS:
        prompt = text_prompt(tokenizer, fact.text)
        with torch.no_grad():
            own = list(prompt.ids)
            for _ in range(5):
                own.append(int(model.hf(torch.tensor([own])).logits[0, -1].argmax()))
        written = tuple(own[len(prompt.ids) :])
        for answer in (written, written[:2], written[:1], (*written[:2], (written[2] + 1) % 500, written[3])):
            rows.append(Prompt(prompt.ids + answer[:-1], prompt.decisive, answer))
    forced = answers(model, rows, metrics.predicting_states(model, rows)).share == 1
    assert forced.tolist() == greedy_matches(model, rows).tolist() == [True, True, True, False] * len(RECORDS)


CODE = ("area(r, *,\n    unit='m')", " ".join(["word"] * 60), "a & 5 % of\tb_c\n\n    return")


def test_code_and_answers_of_many_lines_are_looked_for_whole(tiny, monkeypatch):
    """Of a model that writes them, and that does not write them on one line."""
    rows = [tiny.text_prompt("Ada wrote", answer) for answer in CODE]
    assert [tiny.tokenizer.decode(row.answer) for row in rows] == [f" {answer}" for answer in CODE]
    assert len(rows[1].answer) >= 60
    joined = [tiny.text_prompt("Ada wrote", " ".join(answer.split())) for answer in CODE]
    longest = max(len(row.answer) for row in (*rows, *joined))
    texts = torch.tensor([
        row.ids[: row.prompt_length] + row.answer + (0,) * (longest - len(row.answer)) for row in rows
    ])
    monkeypatch.setattr(metrics, "write", lambda model, ids, max_new_tokens, **how: texts[: len(ids)])
    assert greedy_matches(tiny, rows).tolist() == [True, True, True]
    assert greedy_matches(tiny, joined).tolist() == [False, True, False]


@pytest.mark.slow
def test_greedy_decoding_is_accuracy_on_the_real_model(real, shared):
    """24 prompts of CounterFact, each asked for the answer in the data and for what the model itself writes."""
    facts = load_facts(shared / "data" / "counterfact_2000.json", "200:224")
    own = []
    for fact in facts:
        ids = torch.tensor([text_prompt(real.tokenizer, fact.text).ids])
        written = real.hf.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False)
        text = real.tokenizer.decode(written[0, ids.shape[1] :]).strip()
        own.append(dataclasses.replace(fact, target_new=text or "x"))
    for chosen in (own, facts):
        rows = [text_prompt(real.tokenizer, fact.text, fact.target_new) for fact in chosen]
        assert greedy_matches(real, rows).tolist() == efficacy(real, chosen).tolist()
    assert efficacy(real, own).double().mean() > 0.5  # some texts are not tokenised as they were written


def test_norms_of_states_are_those_of_the_untouched_model(tiny):
    """One row at a time; transformers' last hidden state is behind the final norm, so that it is left out."""
    rows = [
        text_prompt(tiny.tokenizer, text)
        for text in ("The tower stands in the old city.", "Rome", "Line 3 tells of rivers.")
    ]
    norms = []
    with torch.no_grad():
        for row in rows:
            hidden = tiny.hf(torch.tensor([row.ids]), output_hidden_states=True).hidden_states
            norms.append(torch.stack([states[0].norm(dim=-1) for states in hidden[1:-1]]))
    expected = torch.cat(norms, dim=1).mean(1)
    torch.testing.assert_close(state_norms(tiny, rows)[:-1], expected, rtol=1e-9, atol=1e-12)


def test_perplexity_against_one_row_at_a_time(family_model):
    rows = [text_prompt(family_model.tokenizer, text) for text in ("The old books of Rome", "A river", "towers")]
    total, count = 0.0, 0
    for row in rows:
        with torch.no_grad():
            log_p = family_model.hf(torch.tensor([row.ids])).logits[0].double().log_softmax(-1)
        total -= sum(log_p[i, token].item() for i, token in enumerate(row.ids[1:]))
        count += len(row.ids) - 1
    assert perplexity(family_model, rows) == pytest.approx(math.exp(total / count), rel=1e-9)


def test_a_perplexity_beyond_all_numbers_is_infinite(tiny, monkeypatch):
    worst = metrics.Answers(torch.full((1,), 1e4, dtype=torch.float64), torch.zeros(1))
    monkeypatch.setattr(text, "answers", lambda *_: worst)
    assert perplexity(tiny, [Prompt((3, 4, 5), 2)]) == math.inf


PARTS = (RECORDS, RECORDS[:1], RECORDS[1:])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj"])
def test_an_unedited_model_equals_itself_whatever_the_dtype_and_the_batch(family, dtype, folders):
    model = load_model(folders[family], dtype=dtype, device="cpu")
    for part in PARTS:
        unmoved(model, part)


@pytest.mark.real
@pytest.mark.slow
def test_the_embedded_model_in_bfloat16_equals_itself():
    unmoved(load_model(dtype="bfloat16", device="cpu"), load_facts("builtin", "0:3"))


def unmoved(model, facts):
    """In every column, by either definition."""
    for style in STYLES:
        for values in evaluate(model, facts, neighborhood_states(model, facts, style), style):
            for name in ("kl", "top1", "top5", "top10"):
                assert all(value == (name != "kl") for value in values.get(name, []))


@torch.no_grad()
def told(model, text):
    """What the model writes first after a text, where that is one piece of running text."""
    token = int(model.hf(torch.tensor([model.text_prompt(text).ids])).logits[0, -1].argmax())
    word = model.tokenizer.decode([token])
    return word if word.strip() == word and model.text_prompt(text, word, "").answer == (token,) else None


def test_further_questions_count_as_answered_by_any_of_their_answers(tiny):
    said = {fact.text: told(tiny, fact.text) for fact in load_facts("builtin", "0:60")}
    (text, word), (other, another), *_ = [(text, word) for text, word in said.items() if word]
    probes = (
        Probe("hops", text, ("no such answer", word)),
        Probe("hops", other, ("no such answer",)),
        Probe("more", other, (another,)),
    )
    facts = [dataclasses.replace(RECORDS[0], join="", probes=probes), RECORDS[1]]
    assert probe_groups(facts) == ["hops", "more"]
    before = neighborhood_states(tiny, facts, "counterfact")
    found = evaluate(tiny, facts, before, "counterfact", ["more", "hops"])
    assert found[0]["probe_accuracy"] == [1.0, 0.5]
    assert all(math.isnan(value) for value in found[1]["probe_accuracy"])
