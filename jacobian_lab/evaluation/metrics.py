"""Does an edited model answer as it was edited to, in other words too, and is the rest left alone?"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from jacobian_lab.errors import InputError
from jacobian_lab.evaluation.questions import COUNTERFACT, Question, neighborhood, questions
from jacobian_lab.facts.fact import Fact
from jacobian_lab.maps.hooks import batches, forward
from jacobian_lab.model.language_model import LanguageModel
from jacobian_lab.model.templates import write
from jacobian_lab.model.tokens import Prompt

TOP = (1, 5, 10)
ROWS_OF_LOGITS = 256
"""Rows of logits that are held at once, as the model gives them."""

ROWS_IN_DOUBLE = 16
"""Rows of them that are held in float64 at once."""


@dataclass(frozen=True, eq=False)
class Answers:
    """How a model takes some answers, teacher forced.

    Attributes:
        nll: Mean −log P of each answer's tokens, ``[row]``, in float64.
        share: Share of each answer's tokens that are the argmax at their position, ``[row]``, in float64.
    """

    nll: Float[Tensor, " row"]
    share: Float[Tensor, " row"]


def hosts(rows: Sequence[Prompt]) -> list[Prompt]:
    """The row that is run for each row.

    Of rows with the same prompt that go on alike only the longest is run: by causality it holds the states of the
    others, whatever a router makes of the prompt.

    Args:
        rows: The rows.

    Returns:
        For each the one that is run.
    """
    ordered = sorted({(row.ids[: row.asked], row.ids) for row in rows})  # an extension follows what it extends
    longest = {each: each for each in ordered}
    for each, following in reversed(list(pairwise(ordered))):
        if following[0] == each[0] and following[1][: len(each[1])] == each[1]:
            longest[each] = longest[following]
    found = []
    for row in rows:
        prompt, ids = longest[row.ids[: row.asked], row.ids]
        answer = (*ids[len(prompt) :], 0) if len(ids) > len(prompt) else ()  # the last token of it is not run
        found.append(Prompt(ids, len(ids) - 1, answer))
    return found


@torch.no_grad()
def predicting_states(
    model: LanguageModel, rows: Sequence[Prompt], *, whole: bool = False
) -> list[Float[Tensor, "_ d_model"]]:
    """What the head makes logits of: final hidden states at the positions that predict each row's answer.

    Args:
        model: The model.
        rows: The rows.
        whole: Whether a router is to judge each row whole, where there is no prompt.

    Returns:
        For each row one state for each token of its answer, or that of its last token if it has none.
    """
    wanted: dict[Prompt, dict[int, Prompt]] = {}
    for place, (row, host) in enumerate(zip(rows, hosts(rows), strict=True)):
        wanted.setdefault(host, {})[place] = row
    run = list(wanted)
    found: dict[int, Tensor] = {}
    for group in batches(run):
        chosen = [run[i] for i in group]
        hidden = forward(model, [Prompt(row.ids, row.decisive) for row in chosen] if whole else chosen)
        assert hidden is not None
        for index, states in zip(group, hidden, strict=True):
            for place, row in wanted[run[index]].items():
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
        logits = model.head(state)
        for some, answered in zip(logits.split(ROWS_IN_DOUBLE), token.split(ROWS_IN_DOUBLE), strict=True):
            nll.append(-some.double().log_softmax(-1).gather(-1, answered[:, None])[:, 0])
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
        p, q = model.head(old), model.head(new)
        found["kl"] += map(_divergence, p.split(ROWS_IN_DOUBLE), q.split(ROWS_IN_DOUBLE))
        for k in TOP:
            stayed = p.topk(k).indices[:, :, None] == q.topk(k).indices[:, None, :]
            found[f"top{k}"].append(stayed.any(-1).double().mean(-1))
    return {name: torch.cat(parts).cpu() for name, parts in found.items()}


def _divergence(p: Float[Tensor, "row vocab"], q: Float[Tensor, "row vocab"]) -> Float[Tensor, " row"]:
    """KL(p ‖ q) of logits, in float64."""
    log_p, log_q = p.double().log_softmax(-1), q.double().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def check_questions(model: LanguageModel, fact: Fact) -> None:
    """Refuse a fact that the metrics cannot be taken of, by either definition of Success.

    Args:
        model: The model.
        fact: The fact.

    Raises:
        InputError: If one of its prompts is too long, or the tokenizer makes nothing of it or of its answer.
    """
    for question in questions(fact, COUNTERFACT):  # which asks what zsRE's does, and more
        try:
            length = len(model.text_prompt(*question).ids)
        except InputError as error:
            what, _, todo = str(error).rpartition(": ")
            raise InputError(f"{what} in what is asked of fact {fact.id!r}: {todo}") from error
        if length > model.max_tokens:
            raise InputError(
                f"expected prompts of at most {model.max_tokens} tokens, got one of {length} in fact {fact.id!r}: "
                "shorten it"
            )


def neighborhood_states(model: LanguageModel, facts: Sequence[Fact], style: str) -> list[Float[Tensor, "_ d_model"]]:
    """Final states at the last token of every neighbourhood prompt; take them before anything is edited.

    They are taken in the same rows, side by side with the same others, as `evaluate` takes them for these
    facts: a model that has not been edited then equals itself to the last bit, whatever its dtype.

    Args:
        model: The model.
        facts: The facts.
        style: Whose definition of Success.

    Returns:
        For each fact one state a prompt.
    """
    asked = _asked(model, facts, style)
    empty = torch.empty(0, model.d_model, dtype=model.dtype, device=model.device)
    return [torch.cat([empty, *(asked[Question(text)][1] for text, _ in neighborhood(f))]) for f in facts]


def evaluate(
    model: LanguageModel,
    facts: Sequence[Fact],
    before: Sequence[Float[Tensor, "_ d_model"]],
    style: str,
    groups: Sequence[str] = (),
) -> list[dict[str, list[float]]]:
    """All teacher-forced metrics of metrics.md, prompt by prompt.

    Args:
        model: The model, edited or not.
        facts: The facts.
        before: What `neighborhood_states` gave for the same facts together on the unedited model.
        style: Whose definition of Success.
        groups: Groups of further questions, in the order that their values are wanted in.

    Returns:
        For each fact, a value for each prompt of ``efficacy_success``, ``efficacy_accuracy``,
        ``generalization_success``, ``generalization_accuracy``, ``kl``, ``top1``, ``top5``, ``top10`` and
        ``neighborhood_success``, ``nll_new`` and ``nll_true`` of the rewriting prompt, and for each group
        ``probe_accuracy``: the share of its questions that are answered, by any of their answers. NaN where there
        is no answer to compare with.
    """
    asked = _asked(model, facts, style)
    answered = [question for question in asked if question.answer]
    taken = answers(model, *map(list, zip(*(asked[question] for question in answered), strict=True)))
    nll = dict(zip(answered, taken.nll.tolist(), strict=True))
    share = dict(zip(answered, taken.share.tolist(), strict=True))
    found = []
    for fact, old in zip(facts, before, strict=True):
        values = _told(fact, style, nll, share) | _around(fact, style, nll, share)
        if around := neighborhood(fact):
            now = torch.cat([asked[Question(text)][1] for text, _ in around])
            values |= {name: moved.tolist() for name, moved in specificity(model, old, now).items()}
        values["probe_accuracy"] = [_probed(fact, group, share) for group in groups]
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
            written = write(model, ids, do_sample=False, max_new_tokens=longest)
            for index, tokens in zip(part, written[:, length:].tolist(), strict=True):
                answer = rows[index].answer
                matches[index] = tuple(tokens[: len(answer)]) == answer
    return matches


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
        taken = answers(model, chosen, predicting_states(model, chosen, whole=True))
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
    rows = [model.text_prompt(fact.text, fact.target_new, fact.join) for fact in facts]
    return answers(model, rows, predicting_states(model, rows)).share == 1


def _asked(
    model: LanguageModel, facts: Sequence[Fact], style: str
) -> dict[Question, tuple[Prompt, Float[Tensor, "_ d_model"]]]:
    """Every question of the facts with its row, and the states that predict its answer."""
    rows = {question: model.text_prompt(*question) for fact in facts for question in questions(fact, style)}
    states = predicting_states(model, list(rows.values()))
    return {question: (row, state) for (question, row), state in zip(rows.items(), states, strict=True)}


Values = Mapping[Question, float]


def _below(nll: Values, text: str, first: str, second: str, join: str | None) -> float:
    """Whether one answer is likelier than another; NaN where either is missing."""
    if not first or not second:
        return math.nan
    return float(nll[Question(text, first, join)] < nll[Question(text, second, join)])


def _told(fact: Fact, style: str, nll: Values, share: Values) -> dict[str, list[float]]:
    """Success and Accuracy on the rewriting prompt and its paraphrases, and NLLs of the former."""

    def success(text: str) -> float:
        if style == COUNTERFACT:
            return _below(nll, text, fact.target_new, fact.target_true, fact.join)
        return share[Question(text, fact.target_new, fact.join)]

    values: dict[str, list[float]] = {}
    for name, texts in (("efficacy", [fact.text]), ("generalization", fact.paraphrase_prompts)):
        values[f"{name}_success"] = [success(text) for text in texts]
        values[f"{name}_accuracy"] = [float(share[Question(t, fact.target_new, fact.join)] == 1) for t in texts]
    for name, answer in (("nll_new", fact.target_new), ("nll_true", fact.target_true)):
        values[name] = [nll.get(Question(fact.text, answer, fact.join), math.nan)]
    return values


def _around(fact: Fact, style: str, nll: Values, share: Values) -> dict[str, list[float]]:
    """Success of the neighbourhood prompts' own answers."""

    def success(text: str, own: str) -> float:
        if style == COUNTERFACT:
            return _below(nll, text, own, fact.target_new, fact.join)
        return share.get(Question(text, own, fact.join), math.nan)

    return {"neighborhood_success": [success(text, own) for text, own in neighborhood(fact)]}


def _probed(fact: Fact, group: str, share: Values) -> float:
    """Share of a group's questions that are answered, by any of their answers; NaN where the fact has none."""
    asked = [probe for probe in fact.probes if probe.group == group]
    hits = [any(share[Question(probe.prompt, answer, fact.join)] == 1 for answer in probe.answers) for probe in asked]
    return sum(hits) / len(hits) if hits else math.nan
