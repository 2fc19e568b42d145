"""One examination for every model: what is asked of it, and what the unedited model answered."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from jacobian_lab.evaluation.metrics import check_questions, evaluate, greedy_matches, neighborhood_states
from jacobian_lab.evaluation.questions import probe_groups, style_of
from jacobian_lab.facts.fact import Fact
from jacobian_lab.model.language_model import LanguageModel

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
        """Final states at the neighbourhood prompts, by fact; to be asked for before anything is edited."""
        return [
            state for part in self._parts() for state in neighborhood_states(self.model, self.facts[part], self.style)
        ]

    def answers(self) -> Iterator[tuple[slice, list[dict[str, list[float]]]]]:
        """Evaluate the model as it is, a part of the facts at a time.

        Yields:
            Which facts, and what `evaluate` says of each of them; ``efficacy_greedy`` and ``generalization_greedy``
            beside it.
        """
        for part in self._parts():
            facts = self.facts[part]
            found = evaluate(self.model, facts, self.before[part], self.style, self.groups)
            if self.greedy:
                for values, extra in zip(found, self._decoded(facts), strict=True):
                    values |= extra
            yield part, found

    def means(self) -> dict[str, Float[Tensor, " fact"]]:
        """Evaluate the model as it is: Accuracy on paraphrases, and D_KL.

        Returns:
            ``generalization_accuracy`` and ``kl``, a mean over the prompts of each fact; NaN where it has none.
        """
        found = [values for _, part in self.answers() for values in part]
        names = ("generalization_accuracy", "kl")
        return {n: torch.stack([torch.tensor(v.get(n, []), dtype=torch.float64).mean() for v in found]) for n in names}

    def _decoded(self, facts: Sequence[Fact]) -> list[dict[str, list[float]]]:
        """Accuracy by greedy decoding, prompt by prompt."""
        texts = [(fact.text, *fact.paraphrase_prompts) for fact in facts]
        rows = [
            self.model.text_prompt(text, fact.target_new, fact.join)
            for fact, each in zip(facts, texts, strict=True)
            for text in each
        ]
        verdicts = greedy_matches(self.model, rows).double().split([len(each) for each in texts])
        return [{"efficacy_greedy": v[:1].tolist(), "generalization_greedy": v[1:].tolist()} for v in verdicts]

    def _parts(self) -> list[slice]:
        return [slice(start, start + FACTS_AT_ONCE) for start in range(0, len(self.facts), FACTS_AT_ONCE)]
