"""One examination for every model: what is asked of it, and what the unedited model answered."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from jaxtyping import Float
from torch import Tensor

from jacobian_lab.crew.crew import ALONE, Crew, called
from jacobian_lab.evaluation.metrics import check_questions, evaluate, greedy_matches, neighborhood_states
from jacobian_lab.evaluation.questions import probe_groups, questions, style_of
from jacobian_lab.facts.fact import Fact
from jacobian_lab.model.language_model import LanguageModel
from jacobian_lab.model.tokens import Prompt

FACTS_AT_ONCE = 32
"""Facts whose final states are held at once while a model is evaluated."""


@dataclass(frozen=True, eq=False)
class Examination:
    """All metrics of metrics.md, for a model before and after an edit.

    Attributes:
        model: The model.
        facts: The facts.
        style: Whose definition of Success: ``"counterfact"`` or ``"zsre"``.
        greedy: Whether Accuracy is checked by real greedy decoding.
    """

    model: LanguageModel
    facts: Sequence[Fact]
    style: str
    greedy: bool = True

    @classmethod
    def of(
        cls, model: LanguageModel, facts: Sequence[Fact], style: str | None = None, *, greedy: bool = False
    ) -> "Examination":
        """Once it is clear that every question can be asked.

        Args:
            model: The model.
            facts: The facts.
            style: Whose definition of Success; by default the one that the facts allow.
            greedy: Whether Accuracy is checked by real greedy decoding.

        Returns:
            The examination.

        Raises:
            InputError: Naming the first fact of which the metrics cannot be taken.
        """
        for fact in facts:
            check_questions(model, fact)
        return cls(model, facts, style or style_of(facts), greedy)

    @cached_property
    def groups(self) -> list[str]:
        """The groups of further questions."""
        return probe_groups(self.facts)

    @cached_property
    def before(self) -> list[Float[Tensor, "_ d_model"]]:
        """Final states at the neighbourhood prompts, by fact, on the host; asked for before anything is edited."""
        return self._before(ALONE)

    def remember(self, crew: Crew) -> None:
        """Have `before` taken by those who take what is after: rounding follows the number of threads.

        Args:
            crew: Who does it.
        """
        vars(self)["before"] = self._before(crew)

    def _before(self, crew: Crew) -> list[Float[Tensor, "_ d_model"]]:
        found, parts = dict[int, list[Tensor]](), self._parts()
        work, named = partial(_states, self, parts), partial(_named, self, parts)
        for (number,), states in crew.map([[n] for n in range(len(parts))], work, named=named):
            found[number] = states
        return [state for number in sorted(found) for state in found[number]]

    def rows(self) -> list[list[Prompt]]:
        """The rows that are asked.

        Returns:
            Those of the facts that are asked about together, each once.
        """
        asked = ([each for fact in self.facts[part] for each in questions(fact, self.style)] for part in self._parts())
        return [list(dict.fromkeys(self.model.text_prompt(*each) for each in some)) for some in asked]

    def decoded(self) -> list[Prompt]:
        """The rows whose answers are decoded greedily.

        Returns:
            The rows; none where that is not asked for.
        """
        return self._answered(self.facts) if self.greedy else []

    def answers(self, crew: Crew = ALONE) -> Iterator[tuple[slice, list[dict[str, list[float]]]]]:
        """Evaluate the model as it is, a part of the facts at a time.

        Args:
            crew: Who does it.

        Yields:
            Which facts, and what `evaluate` says of each of them; ``efficacy_greedy`` and ``generalization_greedy``
            beside it.
        """
        parts, _ = self._parts(), self.before
        work, named = partial(_answers, self, parts), partial(_named, self, parts)
        for (number,), found in crew.map([[n] for n in range(len(parts))], work, named=named):
            yield parts[number], found

    def means(self, crew: Crew = ALONE) -> dict[str, Float[Tensor, " fact"]]:
        """Evaluate the model as it is: Accuracy on paraphrases, and D_KL.

        Args:
            crew: Who does it.

        Returns:
            ``generalization_accuracy`` and ``kl``, a mean over the prompts of each fact; NaN where it has none.
        """
        found = [dict[str, list[float]]()] * len(self.facts)
        for part, values in self.answers(crew):
            found[part] = values
        names = ("generalization_accuracy", "kl")
        return {n: torch.stack([torch.tensor(v.get(n, []), dtype=torch.float64).mean() for v in found]) for n in names}

    def answers_of(self, part: slice) -> list[dict[str, list[float]]]:
        """Evaluate the model as it is on one part of the facts.

        Args:
            part: Which part.

        Returns:
            As `answers` has it.
        """
        facts = self.facts[part]
        before = [states.to(self.model.device) for states in self.before[part]]
        found = evaluate(self.model, facts, before, self.style, self.groups)
        if self.greedy:
            for values, extra in zip(found, self._decoded(facts), strict=True):
                values |= extra
        return found

    def _decoded(self, facts: Sequence[Fact]) -> list[dict[str, list[float]]]:
        """Accuracy by greedy decoding, prompt by prompt."""
        texts = [(fact.text, *fact.paraphrase_prompts) for fact in facts]
        rows = self._answered(facts)
        verdicts = greedy_matches(self.model, rows).double().split([len(each) for each in texts])
        return [{"efficacy_greedy": v[:1].tolist(), "generalization_greedy": v[1:].tolist()} for v in verdicts]

    def _answered(self, facts: Sequence[Fact]) -> list[Prompt]:
        """Every wording of facts, with the new answer."""
        return [
            self.model.text_prompt(text, fact.target_new, fact.join)
            for fact in facts
            for text in (fact.text, *fact.paraphrase_prompts)
        ]

    def _parts(self) -> list[slice]:
        return [slice(start, start + FACTS_AT_ONCE) for start in range(0, len(self.facts), FACTS_AT_ONCE)]


def _answers(examination: Examination, parts: Sequence[slice], piece: Sequence[int]) -> list[dict[str, list[float]]]:
    """Of the one part that a piece names: parts are not divided, lest a model be held against itself in other rows."""
    return examination.answers_of(parts[piece[0]])


def _named(examination: Examination, parts: Sequence[slice], piece: Sequence[int]) -> str:
    """The facts of the one part that a piece names, in words."""
    ids = [fact.id for fact in examination.facts[parts[piece[0]]]]
    return called(range(len(ids)), ids)


def _states(examination: Examination, parts: Sequence[slice], piece: Sequence[int]) -> list[Float[Tensor, "_ d_model"]]:
    """Of the one part that a piece names, on the host."""
    facts = examination.facts[parts[piece[0]]]
    return [each.cpu() for each in neighborhood_states(examination.model, facts, examination.style)]
