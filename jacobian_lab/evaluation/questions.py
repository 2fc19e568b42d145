"""What an edited model is asked of a fact: prompts as they stand, and the answers that are looked for."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import NamedTuple

from jacobian_lab.errors import InputError
from jacobian_lab.facts.fact import Fact

COUNTERFACT, ZSRE = "counterfact", "zsre"
STYLES = (COUNTERFACT, ZSRE)
"""Whose definition of Success: the new answer before the true one, or the share of its tokens."""


class Question(NamedTuple):
    """What a model is asked.

    Attributes:
        text: A prompt as it stands.
        answer: An answer that is looked for after it; empty: the next-token distribution.
        join: What the record says of how they are joined.
    """

    text: str
    answer: str = ""
    join: str | None = None


def style_of(facts: Sequence[Fact], wanted: str = "auto") -> str:
    """Which definition of Success is used.

    Args:
        facts: The facts.
        wanted: One of `STYLES`, or ``"auto"``: CounterFact's where every fact has a true answer to compare with, else
            zsRE's.

    Returns:
        One of `STYLES`.

    Raises:
        InputError: If CounterFact's is wanted of facts without a true answer.
    """
    comparable = all(fact.target_true for fact in facts)
    if wanted == "auto":
        return COUNTERFACT if comparable else ZSRE
    if wanted == COUNTERFACT and not comparable:
        raise InputError("expected a target_true in every fact for ⟨success⟩ counterfact, got some without: use zsre")
    return wanted


def neighborhood(fact: Fact) -> list[tuple[str, str]]:
    """Prompts that an edit must leave alone, with their own answers.

    Args:
        fact: The fact.

    Returns:
        Prompts with answers; an answer is empty where the data give none.
    """
    own = fact.neighborhood_answers or (fact.target_true,) * len(fact.neighborhood_prompts)
    return list(zip_longest(fact.neighborhood_prompts, own[: len(fact.neighborhood_prompts)], fillvalue=""))


def probe_groups(facts: Iterable[Fact]) -> list[str]:
    """Groups of the further questions that facts hold.

    Args:
        facts: The facts.

    Returns:
        Their names, in the order that they are met in.
    """
    return list(dict.fromkeys(probe.group for fact in facts for probe in fact.probes))


def questions(fact: Fact, style: str) -> Iterator[Question]:
    """Every prompt that is asked of a fact with every answer that is looked for; an empty one: the distribution.

    Args:
        fact: The fact.
        style: Whose definition of Success.

    Yields:
        The questions; one may come more than once.
    """
    answers_here = [fact.target_new, *([fact.target_true] if fact.target_true else [])]
    for text in (fact.text, *fact.paraphrase_prompts):
        yield from (Question(text, answer, fact.join) for answer in answers_here)
    for text, own in neighborhood(fact):
        yield Question(text)
        others = {own, *([fact.target_new] if style == COUNTERFACT else [])} - {""}
        yield from (Question(text, answer, fact.join) for answer in sorted(others))
    for probe in fact.probes:
        yield from (Question(probe.prompt, answer, fact.join) for answer in probe.answers)
