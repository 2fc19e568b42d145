"""The fields of one record in our own layout, checked one by one."""

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from jacobian_lab.facts.records import RecordError

SPACE = " "
JOINS = ("", SPACE)
"""What may stand between a prompt and its answer."""

NO_SUBJECT = "add the words of the prompt that name what the fact is about"


def checked_id(record: Mapping[str, Any], otherwise: int) -> int | str:
    """A record's own identifier."""
    name = record.get("id", record.get("case_id", otherwise))
    if isinstance(name, str) and (fault := _fault(name)):
        raise RecordError(f"expected an id that can be written, got {fault} in {name!r:.60}", "take it out")
    if isinstance(name, bool) or not (isinstance(name, str) or (isinstance(name, int) and abs(name) < 2**63)):
        raise RecordError(f"expected a whole number or a string as id, got {name!r:.60}", "mend it")
    return name


def checked(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Check the fields of a fact but its id: types, emptiness and the subject's place.

    Spaces at the end of a prompt are taken off, and the answer is then joined by one; whatever else stands
    there, such as a line's end, belongs to the prompt. Answers are stripped, whatever they answer.
    """
    texts = {name: _text(fields, name) for name in ("subject", "prompt", "target_new")}
    texts["target_true"] = _text(fields, "target_true", needed=False)
    join = fields.get("join")
    if join is not None and join not in JOINS:
        raise RecordError(f"expected '' or ' ' as join, got {join!r:.60}", "give one of them, or leave it out")
    if join is None and fields["prompt"].endswith(SPACE):
        join = SPACE
    prompts = {name: _texts(fields, name, name) for name in ("paraphrase_prompts", "neighborhood_prompts")}
    answers = _answers(fields, "neighborhood_prompts_answers", "neighborhood_prompts_answers")
    if answers and len(answers) != len(prompts["neighborhood_prompts"]):
        raise RecordError(
            f"expected an answer for each of {len(prompts['neighborhood_prompts'])} neighborhood_prompts, "
            f"got {len(answers)} neighborhood_prompts_answers",
            "give as many",
        )
    prompt = _with_place(texts["prompt"], texts["subject"])
    return {
        **texts,
        **prompts,
        "prompt": prompt,
        "neighborhood_answers": answers,
        "join": join,
        "probes": _probes(fields.get("probes")),
    }


def _text(fields: Mapping[str, Any], name: str, *, needed: bool = True) -> str:
    value = fields.get(name, None if needed else "")
    if not isinstance(value, str):
        state = "nothing" if name not in fields else f"{value!r:.60}"
        raise RecordError(
            f"expected text in the field {name!r}, got {state}", NO_SUBJECT if name == "subject" else "add it"
        )
    if fault := _fault(value):
        raise RecordError(f"expected text in the field {name!r}, got {fault}", "take it out")
    if needed and not value.strip():
        raise RecordError(f"expected a {name} that is not empty, got {value!r:.60}", "fill it in")
    return value.rstrip(SPACE) if name == "prompt" else value.strip()


def _with_place(prompt: str, subject: str) -> str:
    """The prompt with ``{}`` where the subject goes, which may stand there written out."""
    places = prompt.count("{}")
    if places == 0 and subject in prompt:
        return _replaced(prompt, subject)
    if places == 1:
        return prompt
    hint = ""
    if places == 0:
        at = prompt.casefold().find(subject.casefold())
        written = prompt[at : at + len(subject)]
        stands = "does not appear in it either" if at < 0 else f"stands in it as {written!r}"
        hint = f" (the subject {subject!r:.60} {stands})"
    raise RecordError(
        f"expected one {{}} in the prompt where the subject goes, got {places} in {prompt!r:.90}{hint}",
        "put {} in place of the subject",
    )


def _replaced(prompt: str, subject: str) -> str:
    """The prompt with ``{}`` at the first place where the subject stands most by itself."""
    places = [match.start() for match in re.finditer(f"(?={re.escape(subject)})", prompt)]
    neighbors = {at: max(_continues(prompt, at), _continues(prompt, at + len(subject))) for at in places}
    at = min(places, key=neighbors.__getitem__)
    if neighbors[at] == _WORD:
        raise RecordError(
            f"expected the subject {subject!r:.60} as words of its own, got it only inside another word of "
            f"{prompt!r:.90}",
            "mend it, or put {} in place of the subject",
        )
    return prompt[:at] + "{}" + prompt[at + len(subject) :]


_APART, _UNSPACED, _WORD = range(3)
"""What goes on over a place in a text: nothing, letters of a script that may write words together, or a word."""

_SPELLED = {"Lu", "Ll", "Lt", "Nd"}
"""Categories of what words of alphabets with capitals are spelled with, and digits. Scripts without capitals write
no spaces, or join particles to a name."""


def _continues(text: str, at: int) -> int:
    """Tell what goes on over a place, an accent that is written by itself going with its letter."""
    before = next((letter for letter in reversed(text[:at]) if not _accent(letter)), "")
    after = text[at : at + 1]
    if not (before.isalnum() and (after.isalnum() or _accent(after))):
        return _APART
    spelled = all(unicodedata.category(letter) in _SPELLED for letter in (before, after) if not _accent(letter))
    return _WORD if spelled else _UNSPACED


def _accent(letter: str) -> bool:
    return letter != "" and unicodedata.category(letter).startswith("M")


def _texts(fields: Mapping[str, Any], name: str, called: str) -> tuple[str, ...]:
    value = fields.get(name) or ()
    if not isinstance(value, list | tuple) or not all(isinstance(v, str) and not _fault(v) for v in value):
        raise RecordError(f"expected a list of texts in the field {called!r}, got {value!r:.60}", "mend it")
    return tuple(v.rstrip(SPACE) for v in value)


def _answers(fields: Mapping[str, Any], name: str, called: str) -> tuple[str, ...]:
    return tuple(answer.strip() for answer in _texts(fields, name, called))


def _probes(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list | None):
        raise RecordError(f"expected a list of objects in the field 'probes', got {value!r:.60}", "mend it")
    return [_probe(probe) for probe in value or ()]


def _probe(value: Any) -> dict[str, Any]:
    """A further question."""
    if not isinstance(value, Mapping) or not isinstance(value.get("group"), str):
        raise RecordError(f"expected probes with group, prompt and answers, got {value!r:.60}", "mend it")
    answers = _answers(value, "answers", "answers of a probe")
    if not answers or not all(answers):
        raise RecordError(f"expected answers for a probe, got {value.get('answers')!r:.60}", "add them")
    return {"group": _text(value, "group"), "prompt": _text(value, "prompt"), "answers": answers}


def _fault(text: str) -> str:
    """Name what cannot be written of a text: UTF-8 has no halves of characters, and labels end at a NUL."""
    if "\0" in text:
        return "a NUL"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "a lone surrogate"
    return ""
