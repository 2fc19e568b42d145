"""Fact records: the built-in set, CounterFact, zsRE, one's own JSON."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import resources
from itertools import count, zip_longest
from pathlib import Path
from typing import Any

from jacobian_lab.errors import InputError

BUILTIN = "builtin"
"""Name of the set of facts that the package ships."""

NEIGHBOURS = 8
"""Neighbourhood prompts that a built-in fact is given, where there are as many."""


@dataclass(frozen=True)
class Fact:
    """One fact to be edited: ``prompt(subject)`` is to be continued by ``target_new``.

    Attributes:
        id: The record's own identifier.
        subject: The subject, as it stands in the prompts.
        prompt: The rewriting prompt, with one ``{}`` where the subject goes; no space at its end.
        target_new: The answer that the edit is to bring about, without the space before it.
        target_true: The answer before the edit; empty where the data set gives none.
        paraphrase_prompts: Other wordings of the prompt, written out.
        neighborhood_prompts: Prompts about other subjects, which must not change.
        neighborhood_answers: Their answers, one a prompt; empty where they are `target_true`.
    """

    id: int | str
    subject: str
    prompt: str
    target_new: str
    target_true: str = ""
    paraphrase_prompts: tuple[str, ...] = ()
    neighborhood_prompts: tuple[str, ...] = ()
    neighborhood_answers: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The bare prompt: the rewriting prompt with the subject in its place."""
        return self.prompt.replace("{}", self.subject)


def load_facts(source: str | Path = BUILTIN, slice: str | None = None) -> tuple[Fact, ...]:
    """Read facts.

    Files are JSON (a list) or JSON Lines, of records in any of these layouts: CounterFact as
    published (nested ``requested_rewrite``), the flat one, zsRE as published (``src``, ``alt``),
    or one's own with at least ``subject``, ``prompt`` and ``target_new``.

    Args:
        source: ``"builtin"`` or a file.
        slice: Which records, as ``"A:B"``; all of them by default.

    Returns:
        The facts, in the order of the file.

    Raises:
        InputError: If the file or one of its records cannot be used, or the slice is outside it.
    """
    if str(source) == BUILTIN:
        facts = _builtin()
    else:
        records = _read_records(Path(source))
        facts = [_fact(record, index, source) for index, record in enumerate(records)]
    _check_unique(facts, source)
    start, stop = parse_slice(slice, len(facts))
    return tuple(facts[start:stop])


def parse_slice(text: str | None, length: int) -> tuple[int, int]:
    """Read ``"A:B"`` as the half-open range [A, B).

    Args:
        text: The slice; either end may be left out; `None` takes everything.
        length: How many records there are.

    Returns:
        The two ends.

    Raises:
        InputError: If it is not of this form, is empty, or reaches outside the records.
    """
    if text is None:
        return 0, length
    first, colon, last = text.partition(":")
    try:
        start, stop = int(first or 0), int(last or length)
    except ValueError:
        start, stop, colon = 0, 0, ""
    if not colon:
        raise InputError(f"expected a slice A:B of two whole numbers, got {text!r}: try 0:32")
    if not 0 <= start < stop <= length:
        raise InputError(
            f"expected a slice A:B with 0 <= A < B <= {length} (the number of facts), "
            f"got {text!r}: choose one inside the file"
        )
    return start, stop


def describe(facts: Iterable[Fact]) -> list[dict[str, Any]]:
    """Records of facts as JSON can hold them, all that decides a number.

    Args:
        facts: The facts.

    Returns:
        One dictionary a fact.
    """
    return [{key: list(v) if isinstance(v, tuple) else v for key, v in asdict(fact).items()} for fact in facts]


def _builtin() -> list[Fact]:
    """The compact table of relations expanded, relations and their answers taking turns."""
    table = json.loads(resources.files("jacobian_lab").joinpath("data/builtin.json").read_text("utf-8"))
    facts = _in_turns(_in_turns(_of_relation(name, relation)) for name, relation in table["relations"].items())
    prompts: dict[str, list[tuple[str, str]]] = {}
    for fact in facts:
        prompts.setdefault(fact.target_true, []).append((fact.subject, fact.text))
    return [_with_neighbours(fact, prompts[fact.target_true]) for fact in facts]


def _of_relation(name: str, relation: Mapping[str, Any]) -> list[list[Fact]]:
    """Facts of one relation by their true answer; counterfactuals are the relation's other answers in turn."""
    answers = list(relation["answers"])
    numbers = count()
    return [
        [
            Fact(
                id=f"{name}/{subject}",
                subject=subject,
                prompt=relation["prompt"],
                target_new=answers[(place + 1 + next(numbers) % (len(answers) - 1)) % len(answers)],
                target_true=answer,
                paraphrase_prompts=tuple(text.replace("{}", subject) for text in relation["paraphrases"]),
            )
            for subject in subjects
        ]
        for place, (answer, subjects) in enumerate(relation["answers"].items())
    ]


def _in_turns(groups: Iterable[list[Fact]]) -> list[Fact]:
    """One of each group after the other, so that a short slice already meets them all."""
    return [fact for turn in zip_longest(*groups) for fact in turn if fact is not None]


def _with_neighbours(fact: Fact, prompts: Sequence[tuple[str, str]]) -> Fact:
    """Give a fact the prompts of others with the same true answer, beginning behind its own place."""
    start = [text for _, text in prompts].index(fact.text)
    others = [text for subject, text in (*prompts[start:], *prompts[:start]) if subject != fact.subject]
    return replace(fact, neighborhood_prompts=tuple(others[:NEIGHBOURS]))


def _read_records(path: Path) -> list[Any]:
    """The records of a JSON or JSON Lines file."""
    if not os.path.isfile(path):  # noqa: PTH113  Path.is_file raises where the path cannot be looked at
        raise InputError(
            f"expected 'builtin' or a JSON file of facts, got {str(path)!r}, which is "
            f"{'a folder' if path.is_dir() else 'not there'}: check the path"
        )
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"expected facts in UTF-8, got byte {error.object[error.start]:#04x} at {error.start} in {path}: "
            "save the file as UTF-8"
        ) from error
    except OSError as error:
        raise InputError(
            f"expected a readable file of facts, got {path} ({error.strerror}): check its rights"
        ) from error
    records = _parse(text, path)
    if not records:
        raise InputError(f"expected at least one fact, got none in {path}: give a file with records")
    return records


def _parse(text: str, path: Path) -> list[Any]:
    try:
        if not text.lstrip().startswith("["):
            return [json.loads(line) for line in text.split("\n") if line.strip()]
        return list(json.loads(text))
    except (ValueError, RecursionError) as first:
        try:  # one record written over several lines
            return [json.loads(text)]
        except (ValueError, RecursionError):
            raise InputError(
                f"expected a JSON list or JSON Lines of facts, got {path}, which is neither ({first}): mend the file"
            ) from first


def _fact(record: Any, index: int, source: str | Path) -> Fact:
    """One record, of any layout, checked."""
    where = f"record {index} of {source}"
    if not isinstance(record, Mapping):
        raise InputError(
            f"expected an object with subject, prompt and target_new, got {record!r:.60} as {where}: mend it"
        )
    fields = dict(_flat(record, where))
    fact_id = record.get("id", record.get("case_id", index))
    named = _encodable(fact_id) if isinstance(fact_id, str) else isinstance(fact_id, int) and abs(fact_id) < 2**63
    if isinstance(fact_id, bool) or not named:
        raise InputError(f"expected a whole number or a string as id, got {fact_id!r:.60} in {where}: mend it")
    return Fact(id=fact_id, **_checked(fields, where))


def _flat(record: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """The fields of a record, whichever layout it has."""
    if "requested_rewrite" in record:
        rewrite = record["requested_rewrite"]
        if not isinstance(rewrite, Mapping):
            raise InputError(f"expected an object as requested_rewrite, got {rewrite!r:.60} in {where}: mend it")
        targets = {key: _inner_text(rewrite.get(key)) for key in ("target_new", "target_true") if key in rewrite}
        return {**record, **rewrite, **targets}
    if "src" in record and "prompt" not in record:
        answers = record.get("answers", [record.get("alt")])
        if not isinstance(answers, list) or not answers:
            raise InputError(f"expected a list of answers, got {answers!r:.60} in {where}: mend it")
        return {
            "subject": record.get("subject"),
            "prompt": _with_place(record["src"], record.get("subject"), where),
            "target_new": answers[0],
            "paraphrase_prompts": [record["rephrase"]] if "rephrase" in record else [],
            "neighborhood_prompts": [record["loc"]] if "loc" in record else [],
            "neighborhood_prompts_answers": [record["loc_ans"]] if "loc_ans" in record else [],
        }
    return record


def _inner_text(target: Any) -> Any:
    return target.get("str") if isinstance(target, Mapping) else target


def _with_place(text: Any, subject: Any, where: str) -> Any:
    """Put ``{}`` where the subject stands in a prompt that is written out."""
    if isinstance(text, str) and isinstance(subject, str) and subject.strip():
        if subject.strip() not in text:
            raise InputError(
                f"expected the subject in the prompt, got {subject!r}, which does not appear in {text!r} "
                f"({where}): mend the subject or the prompt"
            )
        return text.replace(subject.strip(), "{}", 1)
    return text


def _checked(fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields of `Fact` but its id, with types, emptiness and the place of the subject checked."""
    texts = {}
    for name in ("subject", "prompt", "target_new", "target_true"):
        value = fields.get(name, "" if name == "target_true" else None)
        if not isinstance(value, str):
            state = "nothing" if name not in fields else f"{value!r:.60}"
            raise InputError(f"expected text in the field {name!r}, got {state} in {where}: add it")
        texts[name] = value.strip() if name != "prompt" else value.rstrip()
        if not _encodable(value):
            raise InputError(f"expected text in the field {name!r}, got a lone surrogate in {where}: mend it")
        if not texts[name] and name != "target_true":
            raise InputError(f"expected a {name} that is not empty, got {value!r} in {where}: fill it in")
    places = texts["prompt"].count("{}")
    if places != 1:
        stands = "stands in it written out" if texts["subject"] in texts["prompt"] else "does not appear in it either"
        hint = f"; the subject {texts['subject']!r} {stands}" if places == 0 else ""
        raise InputError(
            f"expected one {{}} in the prompt where the subject goes, got {places} in {texts['prompt']!r} "
            f"({where}{hint}): put {{}} in place of the subject"
        )
    lists = {
        "paraphrase_prompts": _texts(fields, "paraphrase_prompts", where),
        "neighborhood_prompts": _texts(fields, "neighborhood_prompts", where),
        "neighborhood_answers": _texts(fields, "neighborhood_prompts_answers", where),
    }
    return {**texts, **lists}


def _texts(fields: Mapping[str, Any], name: str, where: str) -> tuple[str, ...]:
    value = fields.get(name) or ()
    if not isinstance(value, list | tuple) or not all(isinstance(v, str) and _encodable(v) for v in value):
        raise InputError(f"expected a list of texts in the field {name!r}, got {value!r:.60} in {where}: mend it")
    return tuple(v.rstrip() for v in value)


def _encodable(text: str) -> bool:
    """JSON can hold halves of characters that UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_unique(facts: Sequence[Fact], source: str | Path) -> None:
    seen: set[str] = set()
    for fact in facts:
        if str(fact.id) in seen:
            raise InputError(f"expected every fact to have its own id, got {fact.id!r} twice in {source}: rename one")
        seen.add(str(fact.id))
