"""Reading facts: the built-in set, every published layout, one's own JSON."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jacobian_lab.errors import InputError
from jacobian_lab.facts.builtin import builtin_records, reasoning_records
from jacobian_lab.facts.fact import (
    FIRST,
    KEEP,
    LAST,
    ON_BAD_RECORD,
    ON_REPEAT,
    REFUSE,
    Fact,
    FactFile,
    Probe,
    Refused,
    Repeat,
    describe,
    listing,
    repeated,
)
from jacobian_lab.facts.fields import checked, checked_id
from jacobian_lab.facts.layouts import UNANSWERED, layout_of, present
from jacobian_lab.facts.records import Record, RecordError, parse_slice, read_records

BUILTIN = "builtin"
"""Name of the set of facts that the package ships."""

BUILTIN_SETS = {BUILTIN: builtin_records, f"{BUILTIN}-reasoning": reasoning_records}
"""Every set that the package ships, by name; the second are facts of the first with questions that follow."""

GIVEN = "what was given"
"""What facts that come from no file are said to be in."""


def load_facts(
    source: str | Path = BUILTIN, slice: str | None = None, *, on_bad_record: str = REFUSE, on_repeat: str = REFUSE
) -> tuple[Fact, ...]:
    """Read facts; `read_facts` says how.

    Args:
        source: ``"builtin"``, ``"builtin-reasoning"`` or a file.
        slice: Which of the facts, as ``"A:B"``; all of them by default.
        on_bad_record: ``"refuse"`` or ``"skip"``.
        on_repeat: ``"refuse"``, ``"first"`` or ``"last"``.

    Returns:
        The facts, in the order of the file.

    Raises:
        InputError: If the file or one of its records cannot be used, or the slice is outside it.

    Examples:
        >>> import jacobian_lab as jl
        >>> facts = jl.load_facts("builtin", "0:2")
        >>> [fact.text for fact in facts]
        ['The capital of France is the city of', 'You can find the Eiffel Tower in the city of']
    """
    return read_facts(source, slice, on_bad_record=on_bad_record, on_repeat=on_repeat).facts


def read_facts(
    source: str | Path = BUILTIN, slice: str | None = None, *, on_bad_record: str = REFUSE, on_repeat: str = REFUSE
) -> FactFile:
    """Read facts, and report what else was found.

    Files are JSON (a list) or JSON Lines, of records in any of `jacobian_lab.facts.layouts.LAYOUTS`, or one's own with
    at least ``subject``, ``prompt`` and ``target_new``.

    The slice is by place in the file. A record that cannot be used keeps its place, so that 0:100 names the same
    records whether or not one of them is skipped, and one outside the slice is in nobody's way. Facts that are
    repeated are looked for inside the slice. Of those that are edited once, the one that stays takes over the
    probes of the others with the same answer.
    """
    check_choices(on_bad_record, on_repeat, also=(KEEP,))
    items, unknown, unanswered = _read(source)
    start, stop = parse_slice(slice, len(items))
    refused = tuple(item for _, item in items[start:stop] if isinstance(item, Refused))
    placed = [(place, item) for place, item in items[start:stop] if isinstance(item, Fact)]
    if refused and (on_bad_record == REFUSE or not (placed or on_repeat == KEEP)):
        raise InputError(refusal(refused, source, bool(placed)))
    groups = _grouped(placed)
    repeats = _repeats(groups)
    facts = [fact for _, fact in placed]
    if on_repeat in {FIRST, LAST}:
        facts = _once(facts, groups, on_repeat)
    _check_unique(facts, source)
    if repeats and on_repeat == REFUSE:
        raise InputError(_repeat_refusal(repeats, source))
    duplicates = tuple(repeat for repeat in repeats if len(set(repeat.answers)) == 1)
    conflicts = tuple(repeat for repeat in repeats if len(set(repeat.answers)) > 1)
    places = {fact.id: place for place, fact in placed}
    lacking = {place: unanswered[place] for place, _ in items[start:stop] if place in unanswered}
    return FactFile(tuple(facts), refused, duplicates, conflicts, unknown, on_repeat, places, lacking)


def check_facts(facts: Sequence[Fact]) -> None:
    """Refuse facts of one's own making that no file would give."""
    for fact, fields in zip(facts, describe(facts), strict=True):
        try:
            checked_id(fields, 0)
            read = _fact(fields | {"neighborhood_prompts_answers": fact.neighborhood_answers}, fact.id)
        except RecordError as error:
            what, _, todo = str(error).rpartition(": ")
            raise InputError(f"{what} in fact {fact.id!r}: {todo}") from error
        for name, value in vars(fact).items():
            expected = getattr(read, name)
            if value != expected:
                raise InputError(
                    f"expected {expected!r:.90} as {name} of fact {fact.id!r}, got {value!r:.90}: write it so"
                )
    _check_unique(facts, GIVEN)
    if repeats := _repeats(_grouped([(f"fact {place}", fact) for place, fact in enumerate(facts)])):
        raise InputError(_repeat_refusal(repeats, GIVEN))


def _grouped(placed: Sequence[tuple[str, Fact]]) -> dict[tuple[str, str], list[tuple[str, Fact]]]:
    """Facts with their places, by subject and prompt."""
    groups: dict[tuple[str, str], list[tuple[str, Fact]]] = {}
    for place, fact in placed:
        groups.setdefault((fact.subject, fact.prompt), []).append((place, fact))
    return groups


def _repeats(groups: Mapping[tuple[str, str], Sequence[tuple[str, Fact]]]) -> list[Repeat]:
    return [_repeat(group) for group in groups.values() if len(group) > 1]


def refusal(refused: Sequence[Refused], source: str | Path, others: bool) -> str:
    """Word the refusal of bad records; only one of them has the line for itself."""
    way_out = ", or go on without by ⟨on_bad_record⟩ skip" if others else ""
    if len(refused) == 1:
        what, _, todo = refused[0].reason.rpartition(": ")
        return f"{what} in {refused[0].place} of {source}: {todo}{way_out}"
    named = listing([f"{record.place}: {record.reason}" for record in refused])
    return f"expected facts, got {len(refused)} records that cannot be used in {source} ({named}): mend them{way_out}"


def check_choices(on_bad_record: str, on_repeat: str, also: Sequence[str] = ()) -> None:
    """Refuse what is not in `ON_BAD_RECORD` and `ON_REPEAT`."""
    named = {"on_bad_record": (on_bad_record, ON_BAD_RECORD), "on_repeat": (on_repeat, (*ON_REPEAT, *also))}
    for option, (value, choices) in named.items():
        if value not in choices:
            raise InputError(f"expected ⟨{option}⟩ of {', '.join(choices)}, got {value!r}: choose one of them")


def _read(source: str | Path) -> tuple[list[tuple[str, Fact | Refused]], dict[str, int], dict[str, int]]:
    """Every fact or refused record with its place, how often fields are of no use, and questions left out by place."""
    if str(source) in BUILTIN_SETS:
        contents = BUILTIN_SETS[str(source)]()
        records = [Record(f"record {index}", content) for index, content in enumerate(contents)]
    else:
        records = read_records(Path(source))
    items: list[tuple[str, Fact | Refused]] = []
    unknown, unanswered = Counter[str](), Counter[str]()
    for index, record in enumerate(records):
        try:
            content = present(_object(record))
            layout = layout_of(content)
            readings = layout.read(content)
            items += [(record.place, fact) for fact in _facts(readings, content, index)]
            unknown.update(layout.unknown(content))
            unanswered[record.place] += sum(reading.get(UNANSWERED, 0) for reading in readings)
        except RecordError as error:
            items.append((record.place, Refused(record.place, _own_id(record.content), str(error))))
    return items, dict(unknown), dict(+unanswered)


def _own_id(content: Any) -> int | str | None:
    name = content.get("id", content.get("case_id")) if isinstance(content, Mapping) else None
    return name if isinstance(name, int | str) else None


def _object(record: Record) -> Mapping[str, Any]:
    if record.fault or not isinstance(record.content, Mapping):
        got = f"what is not JSON ({record.fault})" if record.fault else f"{record.content!r:.60}"
        raise RecordError(f"expected an object with subject, prompt and target_new, got {got}", "mend it")
    return record.content


def _facts(readings: Sequence[Mapping[str, Any]], content: Mapping[str, Any], index: int) -> list[Fact]:
    """The facts of one record; they are numbered where it has several."""
    name = checked_id(content, index)
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
    """Keep the first or last fact of each subject and prompt, with the probes of those that agree with it."""
    by_identity: dict[int, Fact] = {}
    for group in groups.values():
        same = [fact for _, fact in group]
        representative = same[0] if which == FIRST else same[-1]
        probes = dict.fromkeys(p for fact in same if fact.target_new == representative.target_new for p in fact.probes)
        by_identity[id(representative)] = (
            replace(representative, probes=tuple(probes)) if len(same) > 1 else representative
        )
    return [by_identity[id(fact)] for fact in facts if id(fact) in by_identity]


def _check_unique(facts: Sequence[Fact], source: str | Path) -> None:
    names: set[str] = set()
    for fact in facts:
        if str(fact.id) in names:
            raise InputError(f"expected every fact to have its own id, got {fact.id!r} twice in {source}: rename one")
        names.add(str(fact.id))


def _repeat_refusal(repeats: Sequence[Repeat], source: str | Path) -> str:
    named = listing([repeated(repeat) for repeat in repeats])
    return (
        f"expected every subject and prompt once, got {len(repeats)} more than once in {source} ({named}): "
        "mend them, or edit each once by ⟨on_repeat⟩ first or ⟨on_repeat⟩ last"
    )
