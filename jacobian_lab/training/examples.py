"""Training examples: facts that are not edited and share no subject or prompt with those that are."""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from jacobian_lab.errors import InputError
from jacobian_lab.evaluation.questions import neighborhood
from jacobian_lab.facts.fact import Fact
from jacobian_lab.model.language_model import LanguageModel
from jacobian_lab.model.tokens import Prompt
from jacobian_lab.progress import note

T = TypeVar("T")


@dataclass(frozen=True)
class TrainingExample:
    """Rows that one training fact contributes.

    Attributes:
        edit: The rewriting prompt with the new answer.
        other: Another wording with the new answer.
        unrelated: An unrelated prompt with its own answer.
    """

    edit: Prompt
    other: Prompt
    unrelated: Prompt


def disjoint_facts(edited: Sequence[Fact], others: Sequence[Fact]) -> list[Fact]:
    """Facts that share neither subject (case-insensitive) nor any prompt with an edited fact."""
    subjects = {_folded(fact.subject) for fact in edited}
    prompts = {_folded(text) for fact in edited for text in _texts(fact)}
    return [
        fact
        for fact in others
        if _folded(fact.subject) not in subjects and not prompts & {_folded(text) for text in _texts(fact)}
    ]


def unrelated_rows(model: LanguageModel, count: int, others: Sequence[Fact]) -> list[Prompt]:
    """A row unrelated to each edit, from the last of the others backwards; they are repeated if they are too few."""
    rows = _made_of(
        reversed(others), lambda fact: [_row(model, fact.text, fact.target_true, fact.join)], count, "unrelated rows"
    )
    if not rows:
        raise InputError(
            f"expected facts beside those that are edited, got none of {len(others)} that the model takes: name some "
            "by ⟨train_facts⟩, of other subjects"
        )
    return [rows[place % len(rows)] for place in range(count)]


def training_examples(model: LanguageModel, others: Sequence[Fact], seed: int, count: int) -> list[TrainingExample]:
    """Training examples of a hypernetwork: a rewrite with a paraphrase and a neighborhood prompt, drawn by the seed."""

    def lesson(fact: Fact) -> list[TrainingExample]:
        beside = [(text, own) for text, own in neighborhood(fact) if own]
        if not (beside and fact.paraphrase_prompts):
            return []
        generator = random.Random(f"{seed} {fact.id!r}")
        other, (text, own) = generator.choice(fact.paraphrase_prompts), generator.choice(beside)
        return [
            TrainingExample(
                _row(model, fact.text, fact.target_new, fact.join),
                _row(model, other, fact.target_new, fact.join),
                _row(model, text, own, fact.join),
            )
        ]

    examples = _made_of(others, lesson, count, "training examples")
    if not examples:
        raise InputError(
            "expected facts to train on that have a paraphrase and a neighbourhood prompt with its answer, got none "
            f"among {len(others)}: name others by ⟨train_facts⟩"
        )
    if len(examples) < count:
        note(f"{len(examples)} facts to train with instead of {count}: there are no more")
    return examples


def _made_of(facts: Iterable[Fact], make: Callable[[Fact], list[T]], count: int, what: str) -> list[T]:
    """Make at most `count` items of facts; those that the model refuses are passed over with a note."""
    items, refused = list[T](), list[str]()
    for fact in facts:
        if len(items) >= count:
            break
        try:
            items += make(fact)
        except InputError as error:
            refused.append(f"{fact.id!r}: {error}")
    if refused:
        note(f"{len(refused)} facts are passed over for {what}, the first {refused[0]}")
    return items


def _row(model: LanguageModel, text: str, answer: str, join: str | None) -> Prompt:
    row = model.text_prompt(text, answer, join)
    if len(row.ids) > model.max_tokens:
        raise InputError(f"expected at most {model.max_tokens} tokens, got {len(row.ids)}: give a shorter prompt")
    return row


def _texts(fact: Fact) -> tuple[str, ...]:
    return (fact.text, *fact.paraphrase_prompts, *fact.neighborhood_prompts, *(probe.prompt for probe in fact.probes))


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())
