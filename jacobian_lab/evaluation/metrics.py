"""Metrics of an edited model: Efficacy, Generalization and Specificity."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from jacobian_lab.errors import InputError
from jacobian_lab.evaluation.questions import COUNTERFACT, Question, neighborhood, questions
from jacobian_lab.facts.fact import Fact
from jacobian_lab.maps.hooks import batches, forward
from jacobian_lab.maps.likelihood import ROWS_IN_DOUBLE
from jacobian_lab.model.language_model import LanguageModel
from jacobian_lab.model.templates import write
from jacobian_lab.model.tokens import Prompt

TOP = (1, 5, 10)
ROWS_OF_LOGITS = 256
"""Most rows of logits held at once, in the model's dtype."""

Rows = Mapping[Question, Prompt]
Values = Mapping[Question, float]


@dataclass(frozen=True, eq=False)
class Answers:
    """Teacher-forced scores of answers.

    Attributes:
        nll: Mean −log P of each answer's tokens, ``[row]``, in float64.
        share: Fraction of each answer's tokens that are the argmax at their position, ``[row]``, in float64.
    """

    nll: Float[Tensor, " row"]
    share: Float[Tensor, " row"]


def hosts(rows: Sequence[Prompt]) -> list[Prompt]:
    """The row to run for each row.

    If rows share a prompt and one continues another, only the longest is run. By causality it holds the states of the
    others, and a router, which sees the prompt alone, treats them alike.

    Args:
        rows: The rows.

    Returns:
        For each row the one to run.
    """
    ordered = sorted({(row.ids[: row.prompt_length], row.ids) for row in rows})  # an extension follows what it extends
    longest = {key: key for key in ordered}
    for key, following in reversed(list(pairwise(ordered))):
        if following[0] == key[0] and following[1][: len(key[1])] == key[1]:
            longest[key] = longest[following]
    extended = []
    for row in rows:
        prompt, ids = longest[row.ids[: row.prompt_length], row.ids]
        answer = (*ids[len(prompt) :], 0) if len(ids) > len(prompt) else ()  # the last token of it is not run
        extended.append(Prompt(ids, len(ids) - 1, answer))
    return extended


@torch.no_grad()
def predicting_states(
    model: LanguageModel, rows: Sequence[Prompt], *, whole: bool = False
) -> list[Float[Tensor, "_ d_model"]]:
    """Final hidden states at the positions that predict each row's answer: the head's inputs.

    Args:
        model: The model.
        rows: The rows.
        whole: Have a router judge whole rows, for text that has no prompt.

    Returns:
        For each row one state per token of its answer; if it has no answer, the state of its last token.
    """
    hosted: dict[Prompt, dict[int, Prompt]] = {}
    for index, (row, host) in enumerate(zip(rows, hosts(rows), strict=True)):
        hosted.setdefault(host, {})[index] = row
    run = list(hosted)
    states: dict[int, Tensor] = {}
    for group in batches(run):
        batch = [run[i] for i in group]
        hidden = forward(model, [Prompt(row.ids, row.decisive) for row in batch] if whole else batch)
        assert hidden is not None
        for host, outputs in zip(batch, hidden, strict=True):
            for index, row in hosted[host].items():
                states[index] = outputs[len(row.ids) - max(1, len(row.answer)) : len(row.ids)].clone()
    return [states[index] for index in range(len(rows))]


@torch.no_grad()
def answers(model: LanguageModel, rows: Sequence[Prompt], states: Sequence[Float[Tensor, "_ d_model"]]) -> Answers:
    """NLL and argmax hits of the rows' answers.

    Args:
        model: The model; only its head is used.
        rows: Rows with answers.
        states: Their `predicting_states`.

    Returns:
        Both for each row.
    """
    lengths = [len(row.answer) for row in rows]
    tokens = torch.tensor([token for row in rows for token in row.answer], device=model.device)
    nll, hits = [], []
    for state, token in zip(torch.cat(list(states)).split(ROWS_OF_LOGITS), tokens.split(ROWS_OF_LOGITS), strict=True):
        logits = model.head(state)
        for part, answered in zip(logits.split(ROWS_IN_DOUBLE), token.split(ROWS_IN_DOUBLE), strict=True):
            nll.append(-part.double().log_softmax(-1).gather(-1, answered[:, None])[:, 0])
        hits.append((logits.argmax(-1) == token).double())
    means = [[part.mean() for part in torch.cat(values).split(lengths)] for values in (nll, hits)]
    return Answers(*(torch.stack(values).cpu() for values in means))


@torch.no_grad()
def specificity(
    model: LanguageModel, before: Float[Tensor, "prompt d_model"], after: Float[Tensor, "prompt d_model"]
) -> dict[str, Float[Tensor, " prompt"]]:
    """Change of next-token distributions: KL(p_before ‖ p_after) in nats, and the fraction of the top k that stayed.

    The head is not edited, so the unedited model's states determine its logits.

    Args:
        model: The model; only its head is used.
        before: Final states at the last token of each prompt, of the unedited model.
        after: The same of the edited one.

    Returns:
        ``kl``, ``top1``, ``top5``, ``top10``.
    """
    values: dict[str, list[Tensor]] = {"kl": [], **{f"top{k}": [] for k in TOP}}
    for old, new in zip(before.split(ROWS_OF_LOGITS), after.split(ROWS_OF_LOGITS), strict=True):
        p, q = model.head(old), model.head(new)
        values["kl"] += map(_divergence, p.split(ROWS_IN_DOUBLE), q.split(ROWS_IN_DOUBLE))
        for k in TOP:
            stayed = p.topk(k).indices[:, :, None] == q.topk(k).indices[:, None, :]
            values[f"top{k}"].append(stayed.any(-1).double().mean(-1))
    return {name: torch.cat(parts).cpu() for name, parts in values.items()}


def _divergence(p: Float[Tensor, "row vocab"], q: Float[Tensor, "row vocab"]) -> Float[Tensor, " row"]:
    """KL(p ‖ q) of logits, in float64."""
    log_p, log_q = p.double().log_softmax(-1), q.double().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def question_rows(model: LanguageModel, facts: Sequence[Fact], style: str) -> Rows:
    """Tokenize the questions about facts, each once.

    Args:
        model: The model.
        facts: The facts.
        style: The definition of Success.

    Returns:
        The row of every question.
    """
    distinct = dict.fromkeys(question for fact in facts for question in questions(fact, style))
    return {question: model.text_prompt(*question) for question in distinct}


def check_questions(model: LanguageModel, fact: Fact) -> Rows:
    """Refuse a fact if the metrics cannot be computed for it, by either definition of Success.

    Args:
        model: The model.
        fact: The fact.

    Returns:
        The row of every question.

    Raises:
        InputError: If one of its prompts is too long, or has no tokens, or if an answer has none.
    """
    rows: dict[Question, Prompt] = {}
    for question in dict.fromkeys(questions(fact, COUNTERFACT)):  # zsRE's questions are among them
        try:
            rows[question] = model.text_prompt(*question)
        except InputError as error:
            what, _, todo = str(error).rpartition(": ")
            raise InputError(f"{what} in what is asked of fact {fact.id!r}: {todo}") from error
        length = len(rows[question].ids)
        if length > model.max_tokens:
            raise InputError(
                f"expected prompts of at most {model.max_tokens} tokens, got one of {length} in fact {fact.id!r}: "
                "shorten it"
            )
    return rows


def neighborhood_states(
    model: LanguageModel, facts: Sequence[Fact], style: str, rows: Rows | None = None
) -> list[Float[Tensor, "_ d_model"]]:
    """Final states at the last token of every neighborhood prompt, to be computed before any edit.

    They come from the same batches as in `evaluate`. An unedited model therefore equals itself to the last bit, in
    every dtype.

    Args:
        model: The model.
        facts: The facts.
        style: The definition of Success.
        rows: The facts' `question_rows`; made by default.

    Returns:
        For each fact one state a prompt.
    """
    _, states = _question_states(model, facts, style, rows)
    empty = torch.empty(0, model.d_model, dtype=model.dtype, device=model.device)
    return [torch.cat([empty, *(states[Question(text)] for text, _ in neighborhood(f))]) for f in facts]


def evaluate(
    model: LanguageModel,
    facts: Sequence[Fact],
    before: Sequence[Float[Tensor, "_ d_model"]],
    style: str,
    groups: Sequence[str] = (),
    rows: Rows | None = None,
) -> list[dict[str, list[float]]]:
    """Compute all teacher-forced metrics of metrics.md, prompt by prompt.

    Args:
        model: The model, edited or not.
        facts: The facts.
        before: The unedited model's `neighborhood_states` for exactly these facts.
        style: The definition of Success.
        groups: Groups of further questions, in the order of their values.
        rows: The facts' `question_rows`; made by default.

    Returns:
        For each fact, a value for each prompt of ``efficacy_success``, ``efficacy_accuracy``,
        ``generalization_success``, ``generalization_accuracy``, ``kl``, ``top1``, ``top5``, ``top10`` and
        ``neighborhood_success``, ``nll_new`` and ``nll_true`` of the rewriting prompt, and for each group
        ``probe_accuracy``: the fraction of its questions that are answered, by any of their answers. If there is no
        answer to compare with, a value is NaN.
    """
    rows, states = _question_states(model, facts, style, rows)
    answered = [question for question in rows if question.answer]
    scores = answers(model, [rows[question] for question in answered], [states[question] for question in answered])
    nll = dict(zip(answered, scores.nll.tolist(), strict=True))
    share = dict(zip(answered, scores.share.tolist(), strict=True))
    metrics = []
    for fact, old in zip(facts, before, strict=True):
        values = _rewrite_metrics(fact, style, nll, share) | _neighborhood_success(fact, style, nll, share)
        if prompts := neighborhood(fact):
            now = torch.cat([states[Question(text)] for text, _ in prompts])
            values |= {name: moved.tolist() for name, moved in specificity(model, old, now).items()}
        values["probe_accuracy"] = [_probe_accuracy(fact, group, share) for group in groups]
        metrics.append(values)
    return metrics


def greedy_matches(model: LanguageModel, rows: Sequence[Prompt]) -> Bool[Tensor, " row"]:
    """Accuracy by real greedy decoding: True if the model writes the whole answer by itself.

    Args:
        model: The model, edited or not.
        rows: Prompts with answers.

    Returns:
        One verdict a row; teacher-forced Accuracy agrees with it, except for ties to rounding.
    """
    written = greedy_tokens(model, rows)
    matches = [ids[: len(row.answer)] == row.answer for row, ids in zip(rows, written, strict=True)]
    return torch.tensor(matches, dtype=torch.bool)


@torch.no_grad()
def greedy_tokens(
    model: LanguageModel, rows: Sequence[Prompt], tokens: int = 0, stop: Collection[int] = ()
) -> list[tuple[int, ...]]:
    """Write greedily after the prompts of rows.

    Args:
        model: The model, edited or not.
        rows: The rows; of their answers only the lengths matter.
        tokens: Tokens to write at the most; by default as many as the longest answer of rows of one length has.
        stop: Tokens that end a text.

    Returns:
        The tokens written for each row, without the one that ends it.
    """
    written: dict[int, tuple[int, ...]] = {}
    by_length: dict[int, list[int]] = {}
    for index, row in enumerate(rows):
        by_length.setdefault(row.decisive + 1, []).append(index)
    for length, group in by_length.items():  # of one length, so that nothing has to be padded
        for part in (group[i : i + ROWS_OF_LOGITS] for i in range(0, len(group), ROWS_OF_LOGITS)):
            ids = torch.tensor([rows[i].ids[:length] for i in part], device=model.device)
            longest = tokens or max(len(rows[i].answer) for i in part)
            settings = {"eos_token_id": sorted(stop)} if stop else {}
            outputs = write(model, ids, do_sample=False, max_new_tokens=longest, **settings)
            for index, output in zip(part, outputs[:, length:].tolist(), strict=True):
                written[index] = tuple(takewhile(lambda token: token not in stop, output))
    return [written[index] for index in range(len(rows))]


def accuracy(model: LanguageModel, rows: Sequence[Prompt]) -> Bool[Tensor, " row"]:
    """Accuracy of rows: True if every token of the answer is the argmax, teacher forced.

    Args:
        model: The model, edited or not.
        rows: Rows with answers, such as `FactRows.answered`.

    Returns:
        One verdict a row.
    """
    return answers(model, rows, predicting_states(model, rows)).share == 1


def _question_states(
    model: LanguageModel, facts: Sequence[Fact], style: str, rows: Rows | None
) -> tuple[Rows, dict[Question, Float[Tensor, "_ d_model"]]]:
    """Every question about the facts with its row, and the states that predict its answer."""
    rows = question_rows(model, facts, style) if rows is None else rows
    states = predicting_states(model, list(rows.values()))
    return rows, dict(zip(rows, states, strict=True))


def _likelier(nll: Values, text: str, first: str, second: str, join: str | None) -> float:
    """1 if the first answer is likelier than the second, else 0; NaN if either is missing."""
    if not first or not second:
        return math.nan
    return float(nll[Question(text, first, join)] < nll[Question(text, second, join)])


def _rewrite_metrics(fact: Fact, style: str, nll: Values, share: Values) -> dict[str, list[float]]:
    """Success and Accuracy on the rewriting prompt and its paraphrases, and NLLs of the former."""

    def success(text: str) -> float:
        if style == COUNTERFACT:
            return _likelier(nll, text, fact.target_new, fact.target_true, fact.join)
        return share[Question(text, fact.target_new, fact.join)]

    values: dict[str, list[float]] = {}
    for name, texts in (("efficacy", [fact.text]), ("generalization", fact.paraphrase_prompts)):
        values[f"{name}_success"] = [success(text) for text in texts]
        values[f"{name}_accuracy"] = [float(share[Question(t, fact.target_new, fact.join)] == 1) for t in texts]
    for name, answer in (("nll_new", fact.target_new), ("nll_true", fact.target_true)):
        values[name] = [nll.get(Question(fact.text, answer, fact.join), math.nan)]
    return values


def _neighborhood_success(fact: Fact, style: str, nll: Values, share: Values) -> dict[str, list[float]]:
    """Success of the neighborhood prompts' own answers."""

    def success(text: str, own: str) -> float:
        if style == COUNTERFACT:
            return _likelier(nll, text, own, fact.target_new, fact.join)
        return share.get(Question(text, own, fact.join), math.nan)

    return {"neighborhood_success": [success(text, own) for text, own in neighborhood(fact)]}


def _probe_accuracy(fact: Fact, group: str, share: Values) -> float:
    """Fraction of a group's questions that are answered, by any of their answers; NaN if the fact has none."""
    probes = [probe for probe in fact.probes if probe.group == group]
    hits = [any(share[Question(probe.prompt, answer, fact.join)] == 1 for answer in probe.answers) for probe in probes]
    return sum(hits) / len(hits) if hits else math.nan
