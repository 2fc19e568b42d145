"""Facts, and contents of a file of facts."""

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jacobian_lab.facts.layouts import meant

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


@dataclass(frozen=True, repr=False)
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

    Examples:
        >>> import jacobian_lab as jl
        >>> jl.Fact("ada", "Ada Lovelace", "{} wrote about", "poetry", "engines")
        Fact 'ada': 'Ada Lovelace wrote about' -> 'poetry' (now 'engines')
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

    def __repr__(self) -> str:
        true = f" (now {self.target_true!r})" if self.target_true else ""
        counts = {
            "paraphrases": self.paraphrase_prompts,
            "neighbourhood prompts": self.neighborhood_prompts,
            "further questions": self.probes,
        }
        held = ", ".join(f"{len(prompts)} {what}" for what, prompts in counts.items() if prompts)
        return f"Fact {self.id!r}: {self.text!r} -> {self.target_new!r}{true}{'; ' + held if held else ''}"

    def _repr_html_(self) -> str:
        text = html.escape(self.prompt).replace("{}", f"<b>{html.escape(self.subject)}</b>")
        return f"<p>{text} → <b>{html.escape(self.target_new)}</b></p><p>{html.escape(repr(self))}</p>"

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
    """Contents of a file of facts: the facts, and records that are not used.

    Attributes:
        facts: The facts.
        refused: Records that cannot be used.
        duplicates: Subjects and prompts that come more than once with one answer.
        conflicts: Those that come with several answers.
        unknown: How many records have a field that nothing uses, by its name.
        on_repeat: Which of the facts that are repeated stand in `facts`.
        places: Where the facts stand in their file, by id.
        unanswered: How many further questions were left out as they have no answer, by place.
    """

    facts: tuple[Fact, ...]
    refused: tuple[Refused, ...] = ()
    duplicates: tuple[Repeat, ...] = ()
    conflicts: tuple[Repeat, ...] = ()
    unknown: Mapping[str, int] = field(default_factory=dict)
    on_repeat: str = REFUSE
    places: Mapping[Any, str] = field(default_factory=dict)
    unanswered: Mapping[str, int] = field(default_factory=dict)

    def notes(self) -> list[str]:
        """Lines on what a user should hear of before the facts are used."""
        fields = [_unknown(name, count) for name, count in self.unknown.items()]
        left_out = self.left_out()
        skipped, repeats, unanswered = (left_out.get(name, []) for name in ("skipped", "repeats", "unanswered"))
        how = "all kept" if self.on_repeat == KEEP else f"edited once, as the {self.on_repeat} says"
        lines = {
            "fields that nothing uses": fields,
            f"records skipped: {len(skipped)}": skipped,
            f"facts that come more than once, {how}: {len(repeats)}": repeats,
            f"further questions without an answer, not asked: {sum(self.unanswered.values())}": unanswered,
        }
        return [f"{what} ({listing(named)})" for what, named in lines.items() if named]

    def left_out(self) -> dict[str, list[str]]:
        """Describe the records that are not used, for a run."""
        named = {
            "skipped": [f"{record.place}: {record.reason}" for record in self.refused],
            "repeats": [repeated(repeat) for repeat in (*self.conflicts, *self.duplicates)],
            "unanswered": [f"{place}: {count}" for place, count in self.unanswered.items()],
        }
        return {name: lines for name, lines in named.items() if lines}


def describe(facts: Iterable[Fact]) -> list[dict[str, Any]]:
    """Records of facts as JSON can hold them, all that decides a number."""
    return [
        {name: _plain(value) for name, value in vars(fact).items() if (name, value) not in _ABSENT} for fact in facts
    ]


_ABSENT = (("join", None), ("probes", ()))


def _plain(value: Any) -> Any:
    if isinstance(value, Probe):
        return {name: _plain(inner) for name, inner in vars(value).items()}
    return [_plain(inner) for inner in value] if isinstance(value, tuple) else value


def repeated(repeat: Repeat) -> str:
    """Describe a subject and prompt that come more than once."""
    answers = " / ".join(repeat.answers[:LISTED])
    return f"{repeat.prompt.replace('{}', repeat.subject)!r:.90} -> {answers} in {listing(repeat.places, ', ')}"


def _unknown(name: str, count: int) -> str:
    other = meant(name)
    hint = f", did you mean {other}?" if other else ""
    return f"{name!r:.60} in {count} record{'s' if count > 1 else ''}{hint}"


def listing(named: Sequence[str], between: str = "; ") -> str:
    """List names, as many as a line takes."""
    more = f"{between}and {len(named) - LISTED} more" if len(named) > LISTED else ""
    return between.join(named[:LISTED]) + more


def on_one_line(text: str) -> str:
    """A text where a line or a column of its own is all the room there is."""
    return text.translate(_SIGNS)


_SIGNS = str.maketrans({"\n": "⏎", "\r": "␍", "\t": "⇥"})
