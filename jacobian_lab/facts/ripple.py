"""Where subject and object stand in an edit of RippleEdits, which gives a sentence and no names.

The sentence ends in a verb and the object: "The name of the mother of Mira Vale is Ana.". The subject ends at the
verb; where it begins is told by other questions about it, which name it too, or else by the relation's words.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jacobian_lab.facts.records import RecordError

CRITERIA = {
    "Relation_Specificity": "Relation_Specificity",
    "Relation_Specifity": "Relation_Specificity",
    "Logical_Generalization": "Logical_Generalization",
    "Subject_Aliasing": "Subject_Aliasing",
    "Compositionality_I": "Compositionality_I",
    "Compositionality_II": "Compositionality_II",
    "Forgetfulness": "Forgetfulness",
}
"""Fields of a record that hold tests, by the criterion that they test; one is also published misspelt."""

ORIGINAL = ("original_fact", "previous_fact")
"""Names of the fact before the edit, in the order that they are looked for."""

WORDS = {
    "AWARD_RECEIVED": "award",
    "CAPITAL": "capital city",
    "CAPITAL_OF": "country",
    "FOLLOWED_BY": "",
    "FOLLOWS": "",
    "MEMBER_OF_SPORTS_TEAM": "sports team",
    "NATIVE_LANGUAGE": "mother tongue",
    "SEX_OR_GENDER": "gender",
}
"""How a sentence names its relation where that is not the relation's name in small letters."""

_VERB = re.compile(r" (?:is followed by|follows|(?:is (?:[\w-]+ ){1,2}(?:with|of) |plays in |won |has )?(?:is|are)) ")
_BEFORE = re.compile(r"^|\b(?:of|by|in|which|award|children) ")


@dataclass(frozen=True)
class _Reading:
    """One way to take a sentence apart."""

    before: str
    subject: str
    verb: str
    target: str


def read_edit(edit: Mapping[str, Any], queries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The fact that an edit's sentence states.

    Args:
        edit: The edit, with its prompt, ids, relation, and the original fact if there was one.
        queries: All questions of the record.

    Returns:
        The fields subject, prompt, target_new and target_true.

    Raises:
        RecordError: If the sentence does not tell in one way only.
    """
    sentence = _sentence(edit)
    original = next((_sentence(edit[name]) for name in ORIGINAL if isinstance(edit.get(name), Mapping)), None)
    readings = _readings(sentence)
    if original is not None:
        shared = [reading for reading in readings if original.startswith(_stem(reading) + " ")]
        longest = max((len(_stem(reading)) for reading in shared), default=0)
        readings = [reading for reading in shared if len(_stem(reading)) == longest]
    found = _by_subject(readings, _others(edit, queries), str(edit.get("relation") or ""))
    if len(found) != 1:
        raise RecordError(
            f"expected an edit that shows where its subject and its object stand, got {len(found)} ways to read "
            f"{sentence!r:.80}",
            "write it with subject, prompt and target_new",
        )
    return {
        "subject": found[0].subject,
        "prompt": f"{found[0].before}{{}} {found[0].verb}",
        "target_new": found[0].target,
        "target_true": "" if original is None else original[len(_stem(found[0])) :].strip(),
    }


def _sentence(fact: Mapping[str, Any]) -> str:
    prompt = fact.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        raise RecordError(f"expected a sentence as the edit's prompt, got {prompt!r:.60}", "add it")
    return prompt.strip().removesuffix(".")


def _stem(reading: _Reading) -> str:
    return f"{reading.before}{reading.subject} {reading.verb}"


def _readings(sentence: str) -> list[_Reading]:
    """Every place where the subject may begin, with every verb that may follow it."""
    return [
        _Reading(sentence[: start.end()], subject, verb.group().strip(), sentence[verb.end() :])
        for verb in _VERB.finditer(sentence)
        for start in _BEFORE.finditer(sentence)
        if (subject := sentence[start.end() : verb.start()])
    ]


def _others(edit: Mapping[str, Any], queries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Questions on the edit's subject that ask for something else, and so share nothing but its name."""
    return [
        query["prompt"]
        for query in queries
        if query.get("subject_id") == edit.get("subject_id") is not None
        and query.get("relation") != edit.get("relation")
        and query.get("query_type", "regular") == "regular"
        and isinstance(query.get("prompt"), str)
    ]


def _by_subject(readings: list[_Reading], others: list[str], relation: str) -> list[_Reading]:
    """For each verb the reading with the longest subject that the other questions name too."""
    if others:
        readings = [r for r in readings if all(_names(other, r.subject) for other in others)]
    else:
        words = re.escape(WORDS.get(relation, relation.lower().replace("_", " ")))
        head = re.compile(rf"\b{words}s? (?:(?:of|by|in|which) )?$" if words else "^$")
        readings = [r for r in readings if head.search(r.before)]
    longest: dict[str, _Reading] = {}
    for reading in readings:
        longest.setdefault(reading.target, reading)
    return list(longest.values())


def _names(question: str, subject: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(subject)}(?!\w)", question) is not None
