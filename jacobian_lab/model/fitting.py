"""Which facts a model takes: complete subjects, one BOS, rows that are not too long."""

import unicodedata
from collections.abc import Sequence

from jacobian_lab.errors import InputError
from jacobian_lab.facts.fact import Fact, Refused
from jacobian_lab.model.language_model import LanguageModel
from jacobian_lab.model.templates import Templates
from jacobian_lab.model.tokens import Prompt, check_bos


def check_lengths(model: LanguageModel, facts: Sequence[Fact], templates: Templates) -> None:
    """Refuse facts whose rows are longer than the model takes.

    Args:
        model: The model.
        facts: The facts.
        templates: The context templates.

    Raises:
        InputError: Naming the first such fact.
    """
    for fact in facts:
        for template in (template for group in templates for template in group):
            _check_length(model, fact, model.fact_prompt(fact, template, answer=True))


def editable(model: LanguageModel, facts: Sequence[Fact]) -> tuple[tuple[Fact, ...], tuple[Refused, ...]]:
    """Tell facts whose prompt the model takes from those whose it does not.

    Args:
        model: The model.
        facts: The facts.

    Returns:
        Those that can be edited, and the others with the reasons: a subject or an answer that the tokenizer drops,
        joins or takes for something else, or a row that is too long.
    """
    taken, refused = [], []
    for fact in facts:
        try:
            row = model.fact_prompt(fact, answer=True)
            check_tokens(model, fact, row)
            _check_length(model, fact, row)
        except InputError as error:
            refused.append(Refused(f"fact {fact.id!r}", fact.id, str(error)))
        else:
            taken.append(fact)
    return tuple(taken), tuple(refused)


def _check_length(model: LanguageModel, fact: Fact, row: Prompt) -> None:
    if len(row.ids) > model.max_tokens:
        raise InputError(
            f"expected prompts of at most {model.max_tokens} tokens, got one of {len(row.ids)} in fact {fact.id!r}: "
            "shorten it"
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
