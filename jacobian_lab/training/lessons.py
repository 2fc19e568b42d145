"""What methods that train are taught with: facts that are neither edited nor share a subject with one that is."""

import random
from collections.abc import Sequence

from jacobian_lab.errors import InputError
from jacobian_lab.evaluation.questions import neighborhood
from jacobian_lab.facts.fact import Fact
from jacobian_lab.model.language_model import LanguageModel
from jacobian_lab.model.tokens import Prompt
from jacobian_lab.training.rledit import Lesson


def strangers(edited: Sequence[Fact], others: Sequence[Fact]) -> list[Fact]:
    """Facts that have nothing to do with those that are edited, as far as can be told.

    Args:
        edited: The facts that are edited.
        others: The facts to choose among.

    Returns:
        Those of the others whose subject is none of the edited ones', in whatever case, and of which no prompt, of
        whatever kind, is one that an edited fact is evaluated on.
    """
    subjects = {_folded(fact.subject) for fact in edited}
    asked = {_folded(text) for fact in edited for text in _texts(fact)}
    return [
        fact
        for fact in others
        if _folded(fact.subject) not in subjects and not asked & {_folded(text) for text in _texts(fact)}
    ]


def unrelated_rows(model: LanguageModel, count: int, others: Sequence[Fact]) -> list[Prompt]:
    """For each edit a row that it has nothing to do with, from the last of the others backwards; over again if need be.

    Args:
        model: The model.
        count: How many edits.
        others: Facts that are strangers to all of them.

    Returns:
        Their prompts with their own answers, where they have one.

    Raises:
        InputError: If there are no others.
    """
    if not others:
        raise InputError(
            "expected facts beside those that are edited, got none: name some by ⟨train_facts⟩, of other subjects"
        )
    chosen = [others[-1 - place % len(others)] for place in range(count)]
    return [model.text_prompt(fact.text, fact.target_true, fact.join) for fact in chosen]


def lessons(model: LanguageModel, others: Sequence[Fact], seed: int) -> list[Lesson]:
    """What a hypernetwork is trained with: the rewrite, one of its other wordings, and one prompt beside it, by seed.

    Args:
        model: The model.
        others: Facts that are strangers to all that is edited; those without another wording, or without a
            neighbourhood prompt that has an answer, teach nothing.
        seed: Which wording and which prompt a fact is given depends on it, and on the fact's id alone.

    Returns:
        The lessons, in the order of the facts.

    Raises:
        InputError: If no fact has both.
    """
    found = list[Lesson]()
    for fact in others:
        beside = [(text, own) for text, own in neighborhood(fact) if own]
        if not (beside and fact.paraphrase_prompts):
            continue
        chosen = random.Random(f"{seed} {fact.id!r}")
        other, (text, own) = chosen.choice(fact.paraphrase_prompts), chosen.choice(beside)
        found.append(
            Lesson(
                model.text_prompt(fact.text, fact.target_new, fact.join),
                model.text_prompt(other, fact.target_new, fact.join),
                model.text_prompt(text, own),
            )
        )
    if not found:
        raise InputError(
            "expected facts to train on that have a paraphrase and a neighbourhood prompt with its answer, got none "
            f"among {len(others)}: name others by ⟨train_facts⟩"
        )
    return found


def _texts(fact: Fact) -> tuple[str, ...]:
    return (fact.text, *fact.paraphrase_prompts, *fact.neighborhood_prompts, *(probe.prompt for probe in fact.probes))


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())
