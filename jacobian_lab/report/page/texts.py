"""Texts of a run's facts: read again from where the run had them, and held against its fingerprint of them."""

from collections.abc import Iterator, Sequence
from typing import Any

from jacobian_lab.caching import content_key
from jacobian_lab.catalogue import ROLES, SUBJECT_END
from jacobian_lab.errors import InputError
from jacobian_lab.facts.fact import FIRST, LAST, SKIP, Fact, describe
from jacobian_lab.facts.reading import KEEP, read_facts
from jacobian_lab.report.results import Results


def fact_texts(run: Results, source: str | None = None) -> tuple[list[Fact], str]:
    """Read the facts of a run, in its order; none, and why, if they cannot be had as it had them.

    Args:
        run: The run.
        source: Their file, if that is not where the run says.
    """
    texts, reason = _texts_from(run, str(run.config["provenance"].get("facts", {}).get("source", "")))
    return (texts, reason) if texts or source is None else _texts_from(run, source)


def _texts_from(run: Results, source: str) -> tuple[list[Fact], str]:
    provenance = run.config["provenance"]
    repeats = provenance.get("options", {}).get("on_repeat")
    repeats = repeats if repeats in {FIRST, LAST} else KEEP
    try:
        file = read_facts(source, provenance.get("facts", {}).get("slice"), on_bad_record=SKIP, on_repeat=repeats)
    except InputError as error:
        return [], f"The facts' texts could not be read ({error})."
    by_label = {str(fact.id): fact for fact in file.facts}
    labels = list(map(str, run.dataset["fact"].values))
    if not by_label.keys() >= set(labels):
        return [], f"The facts of {source} are others than this run's, so their texts are left out."
    ordered = [by_label[label] for label in labels]
    if content_key(describe(ordered)) != run.config["settings"].get("facts"):
        return [], f"The facts of {source} have changed since this run, so their texts are left out."
    return ordered, ""


def decisive_tokens(run: Results) -> list[str]:
    """Text of each fact's decisive token, as far as the run holds it; empty otherwise."""
    provenance = run.config["provenance"]
    if "decisive" not in provenance and "role" in run.dataset:
        roles, end = run.dataset["role"].values, 1 + ROLES.index(SUBJECT_END)
        return [_at(texts, roles[place] == end) for place, texts in enumerate(provenance["tokens"])]
    return list(provenance.get("decisive", [""] * run.facts))


def _at(texts: Sequence[str], mask: Sequence[bool]) -> str:
    return next((text for text, here in zip(texts, mask, strict=False) if here), "")


def fact_rows(run: Results, facts: Sequence[Fact]) -> Iterator[dict[str, Any]]:
    """Texts of each fact as the page has them; the id alone where there are none.

    A span is a pair of places in the prompt: of the subject, and of the decisive token at its end.
    """
    if not facts:
        yield from ({"id": str(label)} for label in run.dataset["fact"].values)
        return
    for fact, token in zip(facts, decisive_tokens(run), strict=True):
        start = len(fact.prompt.partition("{}")[0])
        end = start + len(fact.subject)
        held = token.strip()
        row = {
            "id": str(fact.id),
            "prompt": fact.text,
            "subject": [start, end],
            "new": fact.target_new,
            "true": fact.target_true,
            "paraphrases": list(fact.paraphrase_prompts),
            "neighborhood": list(fact.neighborhood_prompts),
        }
        if held and fact.subject.endswith(held):
            row["decisive"] = [end - len(held), end]
        yield row
