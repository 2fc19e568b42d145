"""The facts that the package ships: a compact table of relations, expanded into records of our own layout."""

import json
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from itertools import count, zip_longest
from typing import Any

NEIGHBOURS = 8
"""Neighbourhood prompts that a built-in fact is given, where there are as many."""


FOLLOWING = 2
"""Questions about what follows from a new answer, at the most."""

REASONING_GROUP = "reasoning"
"""Group of these questions."""


def builtin_records() -> list[dict[str, Any]]:
    """The built-in facts, relations and their answers taking turns."""
    relations = _relations("builtin")
    records = _in_turns(_in_turns(_of_relation(name, relation)) for name, relation in relations.items())
    prompts: dict[str, list[tuple[str, str]]] = {}
    for record in records:
        prompts.setdefault(record["target_true"], []).append((record["subject"], _text(record)))
    return [record | {"neighborhood_prompts": _neighbours(record, prompts)} for record in records]


def reasoning_records() -> list[dict[str, Any]]:
    """Built-in facts from whose new answers something follows, with questions about that."""
    relations = reasoning_questions()
    records = [record | {"probes": _following(record, relations)} for record in builtin_records()]
    return [record for record in records if record["probes"]]


def reasoning_questions() -> dict[str, list[dict[str, Any]]]:
    """Questions by relation: what is asked about a subject, and of its new answer itself as the second hop."""
    return _relations("reasoning")


def _relations(name: str) -> dict[str, Any]:
    table = json.loads(resources.files("jacobian_lab.facts").joinpath(f"data/{name}.json").read_text("utf-8"))
    relations: dict[str, Any] = table["relations"]
    return relations


def _following(record: Mapping[str, Any], relations: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Questions about what follows from a record's new answer and not from its true one."""
    new, true = record["target_new"], record["target_true"]
    candidates = relations.get(record["id"].partition("/")[0], ())
    questions = [
        {
            "group": REASONING_GROUP,
            "prompt": question["prompt"].replace("{}", record["subject"]),
            "answers": answers[new],
        }
        for question in candidates
        for answers in [question["answers"]]
        if new in question["answered"] and not set(answers[new]) & set(answers[true])
    ]
    return questions[:FOLLOWING]


def _of_relation(name: str, relation: Mapping[str, Any]) -> list[list[dict[str, Any]]]:
    """Records of one relation by their true answer; counterfactuals are the relation's other answers in turn."""
    answers = list(relation["answers"])
    numbers = count()
    return [
        [
            {
                "id": f"{name}/{subject}",
                "subject": subject,
                "prompt": relation["prompt"],
                "target_new": answers[(place + 1 + next(numbers) % (len(answers) - 1)) % len(answers)],
                "target_true": answer,
                "paraphrase_prompts": [text.replace("{}", subject) for text in relation["paraphrases"]],
            }
            for subject in subjects
        ]
        for place, (answer, subjects) in enumerate(relation["answers"].items())
    ]


def _in_turns(groups: Iterable[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """One of each group after the other, so that a short slice already meets them all."""
    return [record for turn in zip_longest(*groups) for record in turn if record is not None]


def _neighbours(record: Mapping[str, Any], prompts: Mapping[str, Sequence[tuple[str, str]]]) -> list[str]:
    """Prompts of others with the same true answer, beginning behind the record's own place."""
    same = prompts[record["target_true"]]
    start = [text for _, text in same].index(_text(record))
    others = [text for subject, text in (*same[start:], *same[:start]) if subject != record["subject"]]
    return others[:NEIGHBOURS]


def _text(record: Mapping[str, Any]) -> str:
    return str(record["prompt"].replace("{}", record["subject"]))
