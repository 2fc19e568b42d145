"""Questions about a fact: complete prompts, and the answers that are looked for."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import NamedTuple

from jacobian_lab.errors import InputError
from jacobian_lab.facts.fact import Fact

COUNTERFACT, ZSRE = "counterfact", "zsre"
STYLES = (COUNTERFACT, ZSRE)
"""Definitions of Success: CounterFact's ranks the new answer before the true one, zsRE's counts its tokens."""


class Question(NamedTuple):
    """Prompt with an answer.

    Attributes:
        text: The complete prompt.
        answer: The answer that is looked for; if empty, the question is the next-token distribution.
        join: Text between the two, where the record gives one.
    """

    text: str
    answer: str = ""
    join: str | None = None


def style_of(facts: Sequence[Fact], style: str = "auto") -> str:
    """Choose a definition of Success.

    Args:
        facts: The facts.
        style: One of `STYLES`, or ``"auto"``: if every fact has a true answer to compare with, CounterFact's, else
            zsRE's.

    Returns:
        One of `STYLES`.

    Raises:
        InputError: If ``"counterfact"`` is named and a fact has no true answer.
    """
    comparable = all(fact.target_true for fact in facts)
    if style == "auto":
        return COUNTERFACT if comparable else ZSRE
    if style == COUNTERFACT and not comparable:
        raise InputError("expected a target_true in every fact for ⟨success⟩ counterfact, got some without: use zsre")
    return style


def neighborhood(fact: Fact) -> list[tuple[str, str]]:
    """Neighborhood prompts, which an edit must leave alone, with their own answers.

    Args:
        fact: The fact.

    Returns:
        Prompts with answers; if the data give no answer, it is empty.
    """
    own = fact.neighborhood_answers or (fact.target_true,) * len(fact.neighborhood_prompts)
    return list(zip_longest(fact.neighborhood_prompts, own[: len(fact.neighborhood_prompts)], fillvalue=""))


def probe_groups(facts: Iterable[Fact]) -> list[str]:
    """Groups of the facts' further questions (`Fact.probes`).

    Args:
        facts: The facts.

    Returns:
        Their names, in order of appearance.
    """
    return list(dict.fromkeys(probe.group for fact in facts for probe in fact.probes))


def questions(fact: Fact, style: str) -> Iterator[Question]:
    """Every question about a fact: each prompt with each answer that is looked for.

    Args:
        fact: The fact.
        style: The definition of Success, one of `STYLES`.

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
