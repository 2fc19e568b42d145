"""Facts as a model reads them: their token rows, made once, and which of them a model takes."""

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from jacobian_lab.errors import InputError
from jacobian_lab.facts.fact import Fact, Refused
from jacobian_lab.model.language_model import LanguageModel
from jacobian_lab.model.templates import Templates, template_weights
from jacobian_lab.model.tokens import BARE, Prompt, check_bos


@dataclass(frozen=True, eq=False)
class FactRows:
    """Facts as a model reads them; what belongs to a fact stands at its place everywhere.

    Attributes:
        model: The model.
        weights: Each context's share in the average of the keys; they add up to one (methods.md §3).
        facts: The facts.
        bare: Their prompts in no context, up to the decisive token.
        answered: Their prompts in no context, with the answer.
        contexts: Their prompts in every context, up to the decisive token.
        answered_contexts: The same with the answer.
        kl: The rows of the KL term.
    """

    model: LanguageModel
    weights: tuple[float, ...]
    facts: tuple[Fact, ...]
    bare: tuple[Prompt, ...]
    answered: tuple[Prompt, ...]
    contexts: tuple[tuple[Prompt, ...], ...]
    answered_contexts: tuple[tuple[Prompt, ...], ...]
    kl: tuple[Prompt, ...]

    def __len__(self) -> int:
        return len(self.facts)

    def select(self, facts: Sequence[int]) -> "FactRows":
        """Some of the facts."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        by_fact = {name: value for name, value in named.items() if name not in {"model", "weights"}}
        return FactRows(self.model, self.weights, **{n: tuple(v[i] for i in facts) for n, v in by_fact.items()})


def fact_rows(model: LanguageModel, facts: Sequence[Fact], templates: Templates = ((BARE,),)) -> FactRows:
    """Make the token rows of facts.

    Args:
        model: The model.
        facts: The facts.
        templates: The context templates; none but the bare prompt by default.

    Returns:
        The rows.

    Raises:
        InputError: If one cannot be edited or is longer than the model takes, naming the first such fact.

    Examples:
        >>> import jacobian_lab as jl
        >>> rows = jl.fact_rows(jl.load_model(), jl.load_facts("builtin", "0:2"))
        >>> [len(row.ids) for row in rows.bare]
        [4, 7]
    """
    texts, weights = zip(*template_weights(templates), strict=True)
    return _gathered(model, weights, [_rows_of(model, fact, texts) for fact in facts])


def checked_rows(
    model: LanguageModel, facts: Sequence[Fact], templates: Templates, places: Mapping[Any, str]
) -> tuple[FactRows, tuple[Refused, ...]]:
    """Make the token rows of the facts that a model takes, in every context, and tell the others."""
    texts, weights = zip(*template_weights(templates), strict=True)
    rows, refused = [], []
    for fact in facts:
        try:
            rows.append(_rows_of(model, fact, texts))
        except InputError as error:
            refused.append(Refused(places[fact.id], fact.id, str(error)))
    return _gathered(model, weights, rows), tuple(refused)


_OfFact = tuple[Fact, Prompt, Prompt, tuple[Prompt, ...], tuple[Prompt, ...], Prompt]
"""One fact's share of `FactRows`."""


def _rows_of(model: LanguageModel, fact: Fact, texts: Sequence[str]) -> _OfFact:
    """Tokenise a fact in its contexts, each text once, and refuse a fact that cannot be edited."""
    bare, answered = model.fact_prompts(fact)
    _check_row(model, fact, answered)
    pairs = {text: (bare, answered) if text == BARE else model.fact_prompts(fact, text) for text in texts}
    contexts, answered_contexts = zip(*(pairs[text] for text in texts), strict=True)
    for row in answered_contexts:
        _check_length(model, fact, row)
    cut = tuple(row.cut() for row in contexts)
    return fact, bare.cut(), answered, cut, answered_contexts, model.kl_prompt(fact).cut()


def _gathered(model: LanguageModel, weights: tuple[float, ...], rows: Sequence[_OfFact]) -> FactRows:
    by_field: Any = zip(*rows, strict=True) if rows else ((),) * len(fields(FactRows)[2:])
    return FactRows(model, weights, *by_field)


def check_fact(model: LanguageModel, fact: Fact) -> None:
    """Refuse a fact that cannot be edited."""
    _check_row(model, fact, model.fact_prompt(fact, answer=True))


def _check_row(model: LanguageModel, fact: Fact, row: Prompt) -> None:
    check_tokens(model, fact, row)
    _check_lines(model, fact, row)
    _check_length(model, fact, row)


def sorted_out(
    facts: Sequence[Fact], check: Callable[[Fact], Any], places: Mapping[Any, str]
) -> tuple[tuple[Fact, ...], tuple[Refused, ...]]:
    """Tell facts that pass a check from those that do not."""
    passing, refused = [], []
    for fact in facts:
        try:
            check(fact)
        except InputError as error:
            refused.append(Refused(places[fact.id], fact.id, str(error)))
        else:
            passing.append(fact)
    return tuple(passing), tuple(refused)


def _check_length(model: LanguageModel, fact: Fact, row: Prompt) -> None:
    if len(row.ids) > model.max_tokens:
        raise InputError(
            f"expected prompts of at most {model.max_tokens} tokens, got one of {len(row.ids)} in fact {fact.id!r}: "
            "shorten it"
        )


def _check_lines(model: LanguageModel, fact: Fact, row: Prompt) -> None:
    """The answer's line ends are among its tokens; some tokenizers make a space of them."""
    lines, written = fact.target_new.count("\n"), model.tokenizer.decode(row.answer).count("\n")
    if written != lines:
        raise InputError(
            f"expected a tokenizer that writes the {lines} line ends of {fact.target_new!r:.60}, got {written} of "
            f"them by that of {model.name!r}: give an answer of one line"
        )


def check_tokens(model: LanguageModel, fact: Fact, row: Prompt) -> None:
    """The subject is complete with the decisive token, not before it, and there is one BOS at most."""
    tokenizer = model.tokenizer
    subject = _plain(fact.subject)
    with_it, without = (
        _plain(tokenizer.decode(row.ids[:end], skip_special_tokens=True)) for end in (row.decisive + 1, row.decisive)
    )
    if with_it.count(subject) <= without.count(subject):
        raise InputError(
            f"expected the decisive token to end the subject {fact.subject!r}, got {with_it!r} up to it: "
            f"the tokenizer of {model.name!r} is not supported"
        )
    check_bos(tokenizer, row.ids, fact.text)


def _plain(text: str) -> str:
    """Without spaces, and composed: what tokenizers may change."""
    return unicodedata.normalize("NFC", "".join(text.split()))
