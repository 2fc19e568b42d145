"""Fact records: the built-in set, every published layout, one's own JSON."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jacobian_lab.builtin import builtin_records
from jacobian_lab.errors import InputError
from jacobian_lab.fields import checked, checked_id
from jacobian_lab.layouts import layout_of, meant
from jacobian_lab.records import Record, RecordError, parse_slice, read_records

BUILTIN = "builtin"
"""Name of the set of facts that the package ships."""

REFUSE, SKIP, FIRST, LAST, KEEP = "refuse", "skip", "first", "last", "keep"
ON_BAD_RECORD = (REFUSE, SKIP)
"""What is done about a record that cannot be used."""
ON_REPEAT = (REFUSE, FIRST, LAST)
"""What is done about a subject and prompt that come more than once."""

LISTED = 20
"""Records that a line names at the most."""


@dataclass(frozen=True)
class Probe:
    """A further question that a layout holds, beyond efficacy, paraphrases and neighbourhood.

    Attributes:
        group: What it belongs to, such as ``"multi-hop"`` or ``"portability: Reasoning"``.
        prompt: The question.
        answers: Acceptable answers.
    """

    group: str
    prompt: str
    answers: tuple[str, ...]


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
        join: How an answer is joined to a prompt, ``""`` or ``" "``; `None` where the prompt tells.
        probes: What else the layout asks.
    """

    id: int | str
    subject: str
    prompt: str
    target_new: str
    target_true: str = ""
    paraphrase_prompts: tuple[str, ...] = ()
    neighborhood_prompts: tuple[str, ...] = ()
    neighborhood_answers: tuple[str, ...] = ()
    join: str | None = None
    probes: tuple[Probe, ...] = ()

    @property
    def text(self) -> str:
        """The bare prompt: the rewriting prompt with the subject in its place."""
        return self.prompt.replace("{}", self.subject)


@dataclass(frozen=True)
class Refused:
    """A record that cannot be used.

    Attributes:
        place: Where it stands, as ``"record 4"`` or ``"line 5"``.
        id: Its own identifier, if it has one.
        reason: What was expected and got, and what to do.
    """

    place: str
    id: int | str | None
    reason: str


@dataclass(frozen=True)
class Repeat:
    """A subject and prompt that come more than once.

    Attributes:
        subject: The subject.
        prompt: The prompt, with ``{}``.
        places: Where it comes.
        ids: The facts' identifiers, in the same order.
        answers: Their new answers, in the same order: all alike in a duplicate, several in a conflict.
    """

    subject: str
    prompt: str
    places: tuple[str, ...]
    ids: tuple[int | str, ...]
    answers: tuple[str, ...]


@dataclass(frozen=True)
class FactFile:
    """What was found in a file of facts.

    Attributes:
        facts: The facts.
        refused: Records that cannot be used.
        duplicates: Subjects and prompts that come more than once with one answer.
        conflicts: Those that come with several answers.
        unknown: How many records have a field that nothing uses, by its name.
        on_repeat: Which of the facts that are repeated stand in `facts`.
    """

    facts: tuple[Fact, ...]
    refused: tuple[Refused, ...] = ()
    duplicates: tuple[Repeat, ...] = ()
    conflicts: tuple[Repeat, ...] = ()
    unknown: Mapping[str, int] = field(default_factory=dict)
    on_repeat: str = REFUSE

    def notes(self) -> list[str]:
        """Lines on what a user should hear of before the facts are used.

        Returns:
            One line on unknown fields, one on skipped records and one on repeats, where there are any.
        """
        fields = [_unknown(name, count) for name, count in self.unknown.items()]
        left_out = self.left_out()
        skipped, repeats = left_out.get("skipped", []), left_out.get("repeats", [])
        how = "all kept" if self.on_repeat == KEEP else f"edited once, as the {self.on_repeat} says"
        lines = {
            "fields that nothing uses": fields,
            f"records skipped: {len(skipped)}": skipped,
            f"facts that come more than once, {how}: {len(repeats)}": repeats,
        }
        return [f"{what} ({_listing(named)})" for what, named in lines.items() if named]

    def left_out(self) -> dict[str, list[str]]:
        """What a run's record says of records that it did not use.

        Returns:
            ``skipped``, the bad records, and ``repeats``, what was edited once; neither where there is none.
        """
        skipped = [f"{record.place}: {record.reason}" for record in self.refused]
        repeats = [_repeated(repeat) for repeat in (*self.conflicts, *self.duplicates)]
        return {name: named for name, named in (("skipped", skipped), ("repeats", repeats)) if named}


def load_facts(
    source: str | Path = BUILTIN, slice: str | None = None, *, on_bad_record: str = REFUSE, on_repeat: str = REFUSE
) -> tuple[Fact, ...]:
    """Read facts; `read_facts` says how.

    Args:
        source: ``"builtin"`` or a file.
        slice: Which of the facts, as ``"A:B"``; all of them by default.
        on_bad_record: ``"refuse"`` or ``"skip"``.
        on_repeat: ``"refuse"``, ``"first"`` or ``"last"``.

    Returns:
        The facts, in the order of the file.

    Raises:
        InputError: If the file or one of its records cannot be used, or the slice is outside it.
    """
    return read_facts(source, slice, on_bad_record=on_bad_record, on_repeat=on_repeat).facts


def read_facts(
    source: str | Path = BUILTIN, slice: str | None = None, *, on_bad_record: str = REFUSE, on_repeat: str = REFUSE
) -> FactFile:
    """Read facts, and report what else was found.

    Files are JSON (a list) or JSON Lines, of records in any of `jacobian_lab.layouts.LAYOUTS`, or one's own with
    at least ``subject``, ``prompt`` and ``target_new``.

    The slice is by place in the file. A record that cannot be used keeps its place, so that 0:100 names the same
    records whether or not one of them is skipped, and one outside the slice is in nobody's way. Facts that are
    repeated are looked for inside the slice. Of those that are edited once, the one that stays takes over the
    probes of the others with the same answer.

    Args:
        source: ``"builtin"`` or a file.
        slice: Which of the facts, as ``"A:B"``; all of them by default.
        on_bad_record: ``"refuse"``: none may be bad; ``"skip"``: go on without them.
        on_repeat: ``"refuse"``: no subject and prompt may come twice; ``"first"`` or ``"last"``: each is edited
            once, with that record's answer; ``"keep"``: all stay, to be looked at and not edited.

    Returns:
        What was found.

    Raises:
        InputError: If the file or one of its records cannot be used, or the slice is outside it.
    """
    check_choices(on_bad_record, on_repeat, also=(KEEP,))
    found, unknown = _read(source)
    start, stop = parse_slice(slice, len(found))
    refused = tuple(item for _, item in found[start:stop] if isinstance(item, Refused))
    placed = [(place, item) for place, item in found[start:stop] if isinstance(item, Fact)]
    if refused and (on_bad_record == REFUSE or not (placed or on_repeat == KEEP)):
        raise InputError(refusal(refused, source, bool(placed)))
    groups: dict[tuple[str, str], list[tuple[str, Fact]]] = {}
    for place, fact in placed:
        groups.setdefault((fact.subject, fact.prompt), []).append((place, fact))
    repeats = [_repeat(group) for group in groups.values() if len(group) > 1]
    facts = [fact for _, fact in placed]
    if on_repeat in {FIRST, LAST}:
        facts = _once(facts, groups, on_repeat)
    _check_unique(facts, source)
    if repeats and on_repeat == REFUSE:
        raise InputError(_repeat_refusal(repeats, source))
    duplicates = tuple(repeat for repeat in repeats if len(set(repeat.answers)) == 1)
    conflicts = tuple(repeat for repeat in repeats if len(set(repeat.answers)) > 1)
    return FactFile(tuple(facts), refused, duplicates, conflicts, unknown, on_repeat)


def refusal(refused: Sequence[Refused], source: str | Path, others: bool) -> str:
    """What to say of bad records; only one of them has the line for itself.

    Args:
        refused: The records.
        source: The file.
        others: Whether there are good ones, so that one can go on without these.

    Returns:
        One line.
    """
    way_out = ", or go on without by --on-bad-record skip" if others else ""
    if len(refused) == 1:
        what, _, todo = refused[0].reason.rpartition(": ")
        return f"{what} in {refused[0].place} of {source}: {todo}{way_out}"
    named = _listing([f"{record.place}: {record.reason}" for record in refused])
    return f"expected facts, got {len(refused)} records that cannot be used in {source} ({named}): mend them{way_out}"


def check_choices(on_bad_record: str, on_repeat: str, also: Sequence[str] = ()) -> None:
    """Refuse what is not in `ON_BAD_RECORD` and `ON_REPEAT`.

    Args:
        on_bad_record: What is to be done about bad records.
        on_repeat: What is to be done about repeats.
        also: Further choices for repeats.

    Raises:
        InputError: If one of them is unknown.
    """
    named = {"on-bad-record": (on_bad_record, ON_BAD_RECORD), "on-repeat": (on_repeat, (*ON_REPEAT, *also))}
    for option, (chosen, choices) in named.items():
        if chosen not in choices:
            raise InputError(f"expected --{option} of {', '.join(choices)}, got {chosen!r}: choose one of them")


def describe(facts: Iterable[Fact]) -> list[dict[str, Any]]:
    """Records of facts as JSON can hold them, all that decides a number.

    Args:
        facts: The facts.

    Returns:
        One dictionary a fact, without ``join`` and ``probes`` where it has none.
    """
    return [
        {name: _plain(value) for name, value in vars(fact).items() if (name, value) not in _ABSENT} for fact in facts
    ]


_ABSENT = (("join", None), ("probes", ()))


def _plain(value: Any) -> Any:
    if isinstance(value, Probe):
        return {name: _plain(inner) for name, inner in vars(value).items()}
    return [_plain(inner) for inner in value] if isinstance(value, tuple) else value


def _read(source: str | Path) -> tuple[list[tuple[str, Fact | Refused]], dict[str, int]]:
    """Every fact or refused record with its place, and how often there are fields that nothing uses."""
    if str(source) == BUILTIN:
        records = [Record(f"record {index}", content) for index, content in enumerate(builtin_records())]
    else:
        records = read_records(Path(source))
    found: list[tuple[str, Fact | Refused]] = []
    unknown: Counter[str] = Counter()
    for index, record in enumerate(records):
        try:
            layout = layout_of(_object(record))
            found += [(record.place, fact) for fact in _facts(layout.read(record.content), record, index)]
            unknown.update(layout.unknown(record.content))
        except RecordError as error:
            found.append((record.place, Refused(record.place, _own_id(record.content), str(error))))
    return found, dict(unknown)


def _own_id(content: Any) -> int | str | None:
    given = content.get("id", content.get("case_id")) if isinstance(content, Mapping) else None
    return given if isinstance(given, int | str) else None


def _object(record: Record) -> Mapping[str, Any]:
    if record.fault or not isinstance(record.content, Mapping):
        got = f"what is not JSON ({record.fault})" if record.fault else f"{record.content!r:.60}"
        raise RecordError(f"expected an object with subject, prompt and target_new, got {got}", "mend it")
    return record.content


def _facts(readings: Sequence[Mapping[str, Any]], record: Record, index: int) -> list[Fact]:
    """The facts of one record; they are numbered where it has several."""
    name = checked_id(record.content, index)
    names = [name] if len(readings) == 1 else [f"{name}/{number}" for number in range(len(readings))]
    return [_fact(fields, own) for fields, own in zip(readings, names, strict=True)]


def _fact(fields: Mapping[str, Any], name: int | str) -> Fact:
    values = checked(fields)
    return Fact(name, **values | {"probes": tuple(Probe(**probe) for probe in values["probes"])})


def _repeat(group: Sequence[tuple[str, Fact]]) -> Repeat:
    places, facts = zip(*group, strict=True)
    answers = tuple(fact.target_new for fact in facts)
    return Repeat(facts[0].subject, facts[0].prompt, places, tuple(fact.id for fact in facts), answers)


def _once(
    facts: Sequence[Fact], groups: Mapping[tuple[str, str], Sequence[tuple[str, Fact]]], which: str
) -> list[Fact]:
    """Of facts with the same subject and prompt the first or last, with the probes of those that agree with it."""
    chosen: dict[int, Fact] = {}
    for group in groups.values():
        same = [fact for _, fact in group]
        kept = same[0] if which == FIRST else same[-1]
        probes = dict.fromkeys(p for fact in same if fact.target_new == kept.target_new for p in fact.probes)
        chosen[id(kept)] = replace(kept, probes=tuple(probes)) if len(same) > 1 else kept
    return [chosen[id(fact)] for fact in facts if id(fact) in chosen]


def _check_unique(facts: Sequence[Fact], source: str | Path) -> None:
    seen: set[str] = set()
    for fact in facts:
        if str(fact.id) in seen:
            raise InputError(f"expected every fact to have its own id, got {fact.id!r} twice in {source}: rename one")
        seen.add(str(fact.id))


def _repeat_refusal(repeats: Sequence[Repeat], source: str | Path) -> str:
    named = _listing([_repeated(repeat) for repeat in repeats])
    return (
        f"expected every subject and prompt once, got {len(repeats)} more than once in {source} ({named}): "
        "mend them, or edit each once by --on-repeat first or --on-repeat last"
    )


def _repeated(repeat: Repeat) -> str:
    answers = " / ".join(repeat.answers[:LISTED])
    return f"{repeat.prompt.replace('{}', repeat.subject)!r:.90} -> {answers} in {_listing(repeat.places, ', ')}"


def _unknown(name: str, count: int) -> str:
    other = meant(name)
    hint = f", did you mean {other}?" if other else ""
    return f"{name!r:.60} in {count} record{'s' if count > 1 else ''}{hint}"


def _listing(named: Sequence[str], between: str = "; ") -> str:
    more = f"{between}and {len(named) - LISTED} more" if len(named) > LISTED else ""
    return between.join(named[:LISTED]) + more
