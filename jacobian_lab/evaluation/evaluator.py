"""Evaluator of edited models: the same questions for each, made once, and the unedited model's answers."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from jacobian_lab.evaluation.metrics import (
    Rows,
    check_questions,
    evaluate,
    greedy_matches,
    neighborhood_states,
    question_rows,
)
from jacobian_lab.evaluation.questions import Question, probe_groups, questions, style_of
from jacobian_lab.facts.fact import Fact
from jacobian_lab.model.language_model import LanguageModel
from jacobian_lab.model.tokens import Prompt
from jacobian_lab.parallel.executor import SERIAL, Executor, called

Result = TypeVar("Result")

FACTS_AT_ONCE = 32
"""Facts in a chunk: the final states of one chunk are held at once."""


@dataclass(frozen=True, eq=False)
class Evaluator:
    """All metrics of metrics.md, for a model before and after an edit.

    Attributes:
        model: The model.
        facts: The facts.
        style: The definition of Success: ``"counterfact"`` or ``"zsre"``.
        greedy: Check Accuracy by real greedy decoding too.
    """

    model: LanguageModel
    facts: Sequence[Fact]
    style: str
    greedy: bool = True

    @classmethod
    def of(
        cls, model: LanguageModel, facts: Sequence[Fact], style: str | None = None, *, greedy: bool = False
    ) -> "Evaluator":
        """Make an evaluator after checking every question.

        Args:
            model: The model.
            facts: The facts.
            style: The definition of Success; by default the one that suits the facts.
            greedy: Check Accuracy by real greedy decoding too.

        Returns:
            The evaluator.

        Raises:
            InputError: If the metrics cannot be computed for a fact, naming the first.
        """
        rows: dict[Question, Prompt] = {}
        for fact in facts:
            rows |= check_questions(model, fact)
        evaluator = cls(model, facts, style or style_of(facts), greedy)
        vars(evaluator)["question_rows"] = rows
        return evaluator

    @cached_property
    def groups(self) -> list[str]:
        """Groups of the facts' further questions."""
        return probe_groups(self.facts)

    @cached_property
    def question_rows(self) -> Rows:
        """Token rows of all questions, made once and used for every model."""
        return question_rows(self.model, self.facts, self.style)

    @cached_property
    def before(self) -> list[Float[Tensor, "_ d_model"]]:
        """Final states at the neighborhood prompts, by fact, on the host; to be computed before any edit."""
        return self._before(SERIAL)

    def remember(self, executor: Executor) -> None:
        """Compute `before` with the executor that evaluates later: rounding depends on the number of threads.

        Args:
            executor: The executor.
        """
        vars(self)["before"] = self._before(executor)

    def _before(self, executor: Executor) -> list[Float[Tensor, "_ d_model"]]:
        states = dict(self._mapped(executor, _states))
        return [state for number in sorted(states) for state in states[number]]

    def _mapped(
        self, executor: Executor, work: Callable[..., Result], first: int | None = None
    ) -> Iterator[tuple[int, Result]]:
        """Run work on every chunk, or each of some first facts; chunks are never split: only then KL is exact."""
        parts, _ = self._parts(), self.question_rows  # which go along, for no worker to make anew
        numbers = [[n] for n, part in enumerate(parts) if first is None or part.start < first]
        for (number,), result in executor.map(numbers, partial(work, self, parts), named=partial(_named, self, parts)):
            yield number, result

    def rows(self) -> list[list[Prompt]]:
        """Rows of the questions.

        Returns:
            For each chunk of the facts its rows, each once.
        """
        return [list(dict.fromkeys(self._rows_of(self.facts[part]).values())) for part in self._parts()]

    def _rows_of(self, facts: Sequence[Fact]) -> Rows:
        return {question: self.question_rows[question] for fact in facts for question in questions(fact, self.style)}

    def decoded(self) -> list[Prompt]:
        """Rows whose answers are decoded greedily.

        Returns:
            The rows; empty without `greedy`.
        """
        return self._answered(self.facts) if self.greedy else []

    def answers(
        self, executor: Executor = SERIAL, first: int | None = None
    ) -> Iterator[tuple[slice, list[dict[str, list[float]]]]]:
        """Evaluate the model as it is, chunk after chunk of the facts.

        Args:
            executor: The executor.
            first: Number of facts from the beginning to stop after, once their chunks are whole; all by default.

        Yields:
            A chunk, and the metrics of each of its facts: those of `evaluate`, with ``efficacy_greedy`` and
            ``generalization_greedy``.
        """
        parts, _ = self._parts(), self.before
        for number, metrics in self._mapped(executor, _answers, first):
            yield parts[number], metrics

    def means(self, executor: Executor = SERIAL) -> dict[str, Float[Tensor, " fact"]]:
        """Evaluate the model as it is: Accuracy on paraphrases, and D_KL.

        Args:
            executor: The executor.

        Returns:
            ``generalization_accuracy`` and ``kl``, a mean over the prompts of each fact; NaN if it has none.
        """
        metrics = [dict[str, list[float]]()] * len(self.facts)
        for part, values in self.answers(executor):
            metrics[part] = values
        names = ("generalization_accuracy", "kl")
        return {
            n: torch.stack([torch.tensor(v.get(n, []), dtype=torch.float64).mean() for v in metrics]) for n in names
        }

    def answers_of(self, part: slice) -> list[dict[str, list[float]]]:
        """Evaluate the model as it is on one chunk of the facts.

        Args:
            part: The chunk.

        Returns:
            The metrics of each of its facts, as `answers` yields them.
        """
        facts = self.facts[part]
        before = [states.to(self.model.device) for states in self.before[part]]
        metrics = evaluate(self.model, facts, before, self.style, self.groups, self._rows_of(facts))
        if self.greedy:
            for values, extra in zip(metrics, self._decoded(facts), strict=True):
                values |= extra
        return metrics

    def _decoded(self, facts: Sequence[Fact]) -> list[dict[str, list[float]]]:
        """Accuracy by greedy decoding, prompt by prompt."""
        texts = [(fact.text, *fact.paraphrase_prompts) for fact in facts]
        rows = self._answered(facts)
        verdicts = greedy_matches(self.model, rows).double().split([len(prompts) for prompts in texts])
        return [{"efficacy_greedy": v[:1].tolist(), "generalization_greedy": v[1:].tolist()} for v in verdicts]

    def _answered(self, facts: Sequence[Fact]) -> list[Prompt]:
        """Rows of every wording of facts, with the new answer."""
        return [
            self.question_rows[Question(text, fact.target_new, fact.join)]
            for fact in facts
            for text in (fact.text, *fact.paraphrase_prompts)
        ]

    def _parts(self) -> list[slice]:
        return [slice(start, start + FACTS_AT_ONCE) for start in range(0, len(self.facts), FACTS_AT_ONCE)]


def _answers(evaluator: Evaluator, parts: Sequence[slice], piece: Sequence[int]) -> list[dict[str, list[float]]]:
    """Evaluate one chunk."""
    return evaluator.answers_of(parts[piece[0]])


def _named(evaluator: Evaluator, parts: Sequence[slice], piece: Sequence[int]) -> str:
    """Name the facts of one chunk."""
    ids = [fact.id for fact in evaluator.facts[parts[piece[0]]]]
    return called(range(len(ids)), ids)


def _states(evaluator: Evaluator, parts: Sequence[slice], piece: Sequence[int]) -> list[Float[Tensor, "_ d_model"]]:
    """Final states at the neighborhood prompts of one chunk, on the host."""
    facts = evaluator.facts[parts[piece[0]]]
    rows = evaluator._rows_of(facts)
    return [states.cpu() for states in neighborhood_states(evaluator.model, facts, evaluator.style, rows)]
