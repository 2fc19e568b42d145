"""Does an edited model answer as it was edited to, in other words too, and is the rest left alone?"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, zip_longest

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import GenerationConfig

from jacobian_lab.activations import batches, forward
from jacobian_lab.errors import InputError
from jacobian_lab.facts import Fact
from jacobian_lab.language_model import LanguageModel
from jacobian_lab.tokens import Prompt, text_prompt

COUNTERFACT, ZSRE = "counterfact", "zsre"
STYLES = (COUNTERFACT, ZSRE)
"""Whose definition of Success: the new answer before the true one, or the share of its tokens."""

Question = tuple[str, str]
"""A prompt as it stands, and an answer that is looked for after it; empty: the next-token distribution."""

TOP = (1, 5, 10)
ROWS_OF_LOGITS = 256
"""Logits that are held at once."""


@dataclass(frozen=True, eq=False)
class Answers:
    """How a model takes some answers, teacher forced.

    Attributes:
        nll: Mean −log P of each answer's tokens, ``[row]``, in float64.
        share: Share of each answer's tokens that are the argmax at their position, ``[row]``, in float64.
    """

    nll: Float[Tensor, " row"]
    share: Float[Tensor, " row"]


@torch.no_grad()
def predicting_states(model: LanguageModel, rows: Sequence[Prompt]) -> list[Float[Tensor, "_ d_model"]]:
    """What the head makes logits of: final hidden states at the positions that predict each row's answer.

    Of rows that begin alike only the longest is run: by causality it holds the states of the others.

    Args:
        model: The model.
        rows: The rows.

    Returns:
        For each row one state for each token of its answer, or that of its last token if it has none.
    """
    ordered = sorted({row.ids for row in rows})  # an extension follows what it extends
    host = {ids: ids for ids in ordered}
    for ids, following in reversed(list(pairwise(ordered))):
        if following[: len(ids)] == ids:
            host[ids] = host[following]
    wanted: dict[tuple[int, ...], dict[int, Prompt]] = {}
    for place, row in enumerate(rows):
        wanted.setdefault(host[row.ids], {})[place] = row
    hosts = [Prompt(ids, len(ids) - 1) for ids in wanted]
    found: dict[int, Tensor] = {}
    for group in batches(hosts):
        hidden = forward(model, [hosts[i] for i in group])
        assert hidden is not None
        for index, states in zip(group, hidden, strict=True):
            for place, row in wanted[hosts[index].ids].items():
                found[place] = states[len(row.ids) - max(1, len(row.answer)) : len(row.ids)].clone()
    return [found[place] for place in range(len(rows))]


@torch.no_grad()
def answers(model: LanguageModel, rows: Sequence[Prompt], states: Sequence[Float[Tensor, "_ d_model"]]) -> Answers:
    """NLL and argmax hits of the rows' answers.

    Args:
        model: The model; only its head is used.
        rows: Rows with answers.
        states: What `predicting_states` gave for them.

    Returns:
        Both for each row.
    """
    lengths = [len(row.answer) for row in rows]
    tokens = torch.tensor([token for row in rows for token in row.answer], device=model.device)
    nll, hits = [], []
    for state, token in zip(torch.cat(list(states)).split(ROWS_OF_LOGITS), tokens.split(ROWS_OF_LOGITS), strict=True):
        logits = model.head(state, upcast=True)
        nll.append(-logits.double().log_softmax(-1).gather(-1, token[:, None])[:, 0])
        hits.append((logits.argmax(-1) == token).double())
    means = [[part.mean() for part in torch.cat(values).split(lengths)] for values in (nll, hits)]
    return Answers(*(torch.stack(values).cpu() for values in means))


@torch.no_grad()
def specificity(
    model: LanguageModel, before: Float[Tensor, "prompt d_model"], after: Float[Tensor, "prompt d_model"]
) -> dict[str, Float[Tensor, " prompt"]]:
    """How far next-token distributions moved: KL(p_before ‖ p_after) in nats, and shares of the top k that stayed.

    The head is not edited, so that the unedited model's states say all that its logits did.

    Args:
        model: The model; only its head is used.
        before: Final states at the last token of each prompt, of the unedited model.
        after: The same of the edited one.

    Returns:
        ``kl``, ``top1``, ``top5``, ``top10``.
    """
    found: dict[str, list[Tensor]] = {"kl": [], **{f"top{k}": [] for k in TOP}}
    for old, new in zip(before.split(ROWS_OF_LOGITS), after.split(ROWS_OF_LOGITS), strict=True):
        p, q = model.head(old, upcast=True), model.head(new, upcast=True)
        log_p, log_q = p.double().log_softmax(-1), q.double().log_softmax(-1)
        found["kl"].append((log_p.exp() * (log_p - log_q)).sum(-1))
        for k in TOP:
            stayed = p.topk(k).indices[:, :, None] == q.topk(k).indices[:, None, :]
            found[f"top{k}"].append(stayed.any(-1).double().mean(-1))
    return {name: torch.cat(parts).cpu() for name, parts in found.items()}


def style_of(facts: Sequence[Fact]) -> str:
    """Which definition of Success the facts allow.

    Args:
        facts: The facts.

    Returns:
        CounterFact's where every fact has a true answer to compare with, else zsRE's.
    """
    return COUNTERFACT if all(fact.target_true for fact in facts) else ZSRE


def paraphrases(fact: Fact, style: str) -> tuple[str, ...]:
    """Other wordings of a fact's prompt.

    Args:
        fact: The fact.
        style: With zsRE's the first alone.

    Returns:
        The prompts.
    """
    return fact.paraphrase_prompts if style == COUNTERFACT else fact.paraphrase_prompts[:1]


def neighborhood(fact: Fact, style: str) -> list[Question]:
    """Prompts that an edit must leave alone, with their own answers.

    Args:
        fact: The fact.
        style: With zsRE's the first alone.

    Returns:
        Prompts with answers; an answer is empty where the data give none.
    """
    own = fact.neighborhood_answers or (fact.target_true,) * len(fact.neighborhood_prompts)
    pairs = list(zip_longest(fact.neighborhood_prompts, own[: len(fact.neighborhood_prompts)], fillvalue=""))
    return pairs if style == COUNTERFACT else pairs[:1]


def check_questions(model: LanguageModel, facts: Sequence[Fact], style: str) -> None:
    """Refuse facts that the metrics cannot be taken of, before anything is computed.

    Args:
        model: The model.
        facts: The facts.
        style: Whose definition of Success.

    Raises:
        InputError: Naming the first such fact.
    """
    for fact in facts:
        for text, answer in _questions(fact, style):
            length = len(text_prompt(model.tokenizer, text, answer).ids)
            if length > model.max_tokens:
                raise InputError(
                    f"expected prompts of at most {model.max_tokens} tokens, got one of {length} in fact {fact.id!r}: "
                    "shorten it"
                )


def neighborhood_states(model: LanguageModel, facts: Sequence[Fact], style: str) -> list[Float[Tensor, "_ d_model"]]:
    """Final states at the last token of every neighbourhood prompt; take them before anything is edited.

    Args:
        model: The model.
        facts: The facts.
        style: Whose definition of Success.

    Returns:
        For each fact one state a prompt.
    """
    texts = [[text for text, _ in neighborhood(fact, style)] for fact in facts]
    rows = [text_prompt(model.tokenizer, text) for each in texts for text in each]
    empty = torch.empty(0, model.d_model, dtype=model.dtype, device=model.device)
    return list(torch.cat([empty, *predicting_states(model, rows)]).split([len(each) for each in texts]))


def evaluate(
    model: LanguageModel, facts: Sequence[Fact], before: Sequence[Float[Tensor, "_ d_model"]], style: str
) -> list[dict[str, list[float]]]:
    """All teacher-forced metrics of metrics.md, prompt by prompt.

    Args:
        model: The model, edited or not.
        facts: The facts.
        before: What `neighborhood_states` gave for them on the unedited model.
        style: Whose definition of Success.

    Returns:
        For each fact, a value for each prompt of ``efficacy_success``, ``efficacy_accuracy``,
        ``generalization_success``, ``generalization_accuracy``, ``kl``, ``top1``, ``top5``, ``top10`` and
        ``neighborhood_success``, and ``nll_new`` and ``nll_true`` of the rewriting prompt. NaN where there is no
        answer to compare with.
    """
    rows = {question: text_prompt(model.tokenizer, *question) for fact in facts for question in _questions(fact, style)}
    states = dict(zip(rows, predicting_states(model, list(rows.values())), strict=True))
    answered = [question for question in rows if question[1]]
    taken = answers(model, [rows[q] for q in answered], [states[q] for q in answered])
    nll = dict(zip(answered, taken.nll.tolist(), strict=True))
    share = dict(zip(answered, taken.share.tolist(), strict=True))

    def below(first: Question, second: Question) -> float:
        return float(nll[first] < nll[second]) if first[1] and second[1] else math.nan

    def success(text: str, fact: Fact) -> float:
        own = (text, fact.target_new)
        return below(own, (text, fact.target_true)) if style == COUNTERFACT else share[own]

    found = []
    for fact, old in zip(facts, before, strict=True):
        others, around = paraphrases(fact, style), neighborhood(fact, style)
        values = {f"{name}_success": [success(text, fact) for text in texts] for name, texts in _told(fact, others)}
        values |= {
            f"{name}_accuracy": [float(share[text, fact.target_new] == 1) for text in texts]
            for name, texts in _told(fact, others)
        }
        values["neighborhood_success"] = [
            below(own, (own[0], fact.target_new)) if style == COUNTERFACT else share.get(own, math.nan)
            for own in around
        ]
        if around:
            now = torch.cat([states[text, ""] for text, _ in around])
            values |= {name: moved.tolist() for name, moved in specificity(model, old, now).items()}
        values["nll_new"] = [nll[fact.text, fact.target_new]]
        values["nll_true"] = [nll.get((fact.text, fact.target_true), math.nan)]
        found.append(values)
    return found


@torch.no_grad()
def greedy_matches(model: LanguageModel, rows: Sequence[Prompt]) -> Bool[Tensor, " row"]:
    """Accuracy by real greedy decoding: does the model, left to itself, write the whole answer?

    Args:
        model: The model, edited or not.
        rows: Prompts with answers.

    Returns:
        One verdict a row; teacher-forced Accuracy must agree with it, but for ties to rounding.
    """
    matches = torch.zeros(len(rows), dtype=torch.bool)
    by_length: dict[int, list[int]] = {}
    for index, row in enumerate(rows):
        by_length.setdefault(row.decisive + 1, []).append(index)
    for length, group in by_length.items():  # of one length, so that nothing has to be padded
        for part in (group[i : i + ROWS_OF_LOGITS] for i in range(0, len(group), ROWS_OF_LOGITS)):
            ids = torch.tensor([rows[i].ids[:length] for i in part], device=model.device)
            longest = max(len(rows[i].answer) for i in part)
            written = _written(model, ids, longest)
            for index, tokens in zip(part, written[:, length:].tolist(), strict=True):
                answer = rows[index].answer
                matches[index] = tuple(tokens[: len(answer)]) == answer
    return matches


def _written(model: LanguageModel, ids: Int[Tensor, "row token"], longest: int) -> Int[Tensor, "row written"]:
    """Greedy decoding alone: without the penalties and word lists that a model may bring along."""
    own, model.hf.generation_config = model.hf.generation_config, GenerationConfig()
    plain = GenerationConfig(do_sample=False, max_new_tokens=longest, pad_token_id=0)
    try:
        written: Tensor = model.hf.generate(ids, attention_mask=torch.ones_like(ids), generation_config=plain)
    finally:
        model.hf.generation_config = own
    return written


@torch.no_grad()
def perplexity(model: LanguageModel, rows: Sequence[Prompt]) -> float:
    """Of a text that no edit speaks of, as a sign of damage.

    Args:
        model: The model, edited or not.
        rows: Its token rows.

    Returns:
        exp of the mean −log P over every token but the first of each row.
    """
    told = [Prompt(row.ids[:-1], 0, row.ids[1:]) for row in rows if len(row.ids) > 1]
    total = count = 0.0
    for group in batches(told):
        chosen = [told[i] for i in group]
        taken = answers(model, chosen, predicting_states(model, chosen))
        lengths = torch.tensor([len(row.answer) for row in chosen])
        total, count = total + float((taken.nll * lengths).sum()), count + float(lengths.sum())
    return math.exp(total / count)


def efficacy(model: LanguageModel, facts: Sequence[Fact]) -> Bool[Tensor, " fact"]:
    """Accuracy on the rewriting prompt: every token of ``target_new`` is the argmax, teacher forced.

    Args:
        model: The model, edited or not.
        facts: The facts.

    Returns:
        One verdict a fact (metrics.md, Efficacy Accuracy).
    """
    rows = [text_prompt(model.tokenizer, fact.text, fact.target_new) for fact in facts]
    return answers(model, rows, predicting_states(model, rows)).share == 1


def _told(fact: Fact, others: Sequence[str]) -> tuple[tuple[str, Sequence[str]], ...]:
    return ("efficacy", [fact.text]), ("generalization", others)


def _questions(fact: Fact, style: str) -> Iterator[Question]:
    """Every prompt that is asked of a fact with every answer that is looked for; an empty one: the distribution."""
    answers_here = [fact.target_new, *([fact.target_true] if fact.target_true else [])]
    for text in (fact.text, *paraphrases(fact, style)):
        yield from ((text, answer) for answer in answers_here)
    for text, own in neighborhood(fact, style):
        yield from ((text, answer) for answer in {own, "", *([fact.target_new] if style == COUNTERFACT else [])})
