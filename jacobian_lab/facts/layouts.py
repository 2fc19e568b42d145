"""Layouts that facts are published in, read into the fields of our own.

A layout is recognised by looking at a record. What it holds beyond efficacy, paraphrases and neighbourhood
becomes ``probes``: further questions in groups, each with its acceptable answers. Questions that come without
any answer are left out of them, as nothing could be compared, and counted as ``unanswered``.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from jacobian_lab.errors import InputError
from jacobian_lab.facts.records import RecordError

Fields = Mapping[str, Any]

OWN = (
    "id",
    "case_id",
    "subject",
    "prompt",
    "target_new",
    "target_true",
    "join",
    "paraphrase_prompts",
    "neighborhood_prompts",
    "neighborhood_prompts_answers",
    "probes",
)
"""Fields of our own layout; every other one is read into these."""

OTHER_NAMES = {
    "subject": ("concept",),
    "prompt": ("text",),
    "target_new": ("target", "answer", "labels"),
    "paraphrase_prompts": ("rephrase_prompt", "rephrase_prompts", "rephrase"),
}
"""What KnowEdit, EasyEdit and QAEdit call the same."""

QUESTION = ("prompt", "question", "loc", "New Question")
ANSWER = ("ground_truth", "answer", "loc_ans", "New Answer")
"""Names of a question and of its answers inside ``portability`` and ``locality``."""

UNANSWERED = "unanswered"
"""Where a layout says how many further questions it left out."""

_REWRITE = ("subject", "prompt", "target_new", "target_true", "join")
_ASKED = frozenset({*QUESTION, *ANSWER, "Recalled Relation"})
INNER = {
    "requested_rewrite": frozenset({*_REWRITE, "relation_id", "question"}),
    "portability": _ASKED,
    "locality": _ASKED,
    "probes": frozenset({"group", "prompt", "answers"}),
}
"""Fields of the objects inside a field, however deep they lie in it."""


@dataclass(frozen=True)
class Layout:
    """A layout of records.

    Attributes:
        name: Its name.
        matches: Whether a record has it.
        read: A record's facts, in our own fields; one of ``id`` and ``case_id`` holds for all of them.
        fields: Fields that are used, and those that are published but say nothing of an edit.
    """

    name: str
    matches: Callable[[Fields], bool]
    read: Callable[[Fields], list[dict[str, Any]]]
    fields: frozenset[str]

    def unknown(self, record: Fields) -> list[str]:
        """Fields of a record that nothing uses."""
        held = self.fields.intersection(INNER, record)
        inner = (f"{field}.{name}" for field in sorted(held) for name in _strange(record[field], field))
        return list(dict.fromkeys([*(name for name in record if name not in self.fields), *inner]))


def layout_of(record: Fields) -> Layout:
    """The layout that a record has."""
    return next(layout for layout in LAYOUTS if layout.matches(record))


def meant(name: str) -> str | None:
    """The field that an unknown one may be meant for."""
    field, _, own = name.rpartition(".")
    names = INNER.get(field, _NAMES)
    return None if own in names else next(iter(get_close_matches(own, sorted(names))), None)


def present(fields: Fields) -> dict[str, Any]:
    """Fields that have a value: null is as if they were absent."""
    return {name: value for name, value in fields.items() if value is not None}


def _strange(value: Any, field: str) -> Iterator[str]:
    """Names that are not `INNER`'s, in every object that has one which is."""
    if isinstance(value, Mapping) and INNER[field].intersection(value):
        yield from (name for name in value if name not in INNER[field])
    elif isinstance(value, Mapping | list):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _strange(inner, field)


def _counterfact(record: Fields) -> list[dict[str, Any]]:
    rewrite = record["requested_rewrite"]
    return [_own(record) | _rewrite(rewrite)]


def _mquake(record: Fields) -> list[dict[str, Any]]:
    """One fact a rewrite; the case's questions go with the first."""
    rewrites = record["requested_rewrite"]
    if not rewrites:
        raise RecordError("expected at least one rewrite, got an empty list as requested_rewrite", "add one")
    facts = [_own(record, "join") | _rewrite(rewrite) for rewrite in rewrites]
    answers = _answers([record.get("new_answer"), record.get("new_answer_alias")])
    probes = [_probe("multi-hop", question, answers) for question in record.get("questions") or ()]
    for hop in _objects(record, "new_single_hops"):
        probes.append(_probe("single-hop", hop.get("question"), _answers([hop.get("answer"), hop.get("answer_alias")])))
    facts[0] |= _answered(probes)
    return facts


def _rewrite(rewrite: Any) -> dict[str, Any]:
    if not isinstance(rewrite, Mapping):
        raise RecordError(f"expected an object as requested_rewrite, got {rewrite!r:.60}", "mend it")
    return _own(rewrite, *_REWRITE)


def _zsre(record: Fields) -> list[dict[str, Any]]:
    """The official loader ends a neighbourhood prompt with the question mark that the file lacks."""
    answers = record.get("answers", [record.get("alt")])
    if not isinstance(answers, list) or not answers:
        raise RecordError(f"expected a list of answers, got {answers!r:.60}", "mend it")
    probes, around = _probes("portability", record.get("portability")), list(_questions(_short(record)))
    new, true = answers[0], ""
    if probes:  # they follow from alt, which EasyEdit edits to where it asks them
        if "alt" not in record:
            raise RecordError("expected alt, which the portability questions follow from, got nothing", "add it")
        new, true = record["alt"], _other(answers, record["alt"])
    fields = _own(record, "subject", "join") | {
        "prompt": record["src"],
        "target_new": new,
        "target_true": true,
        "paraphrase_prompts": _listed(record.get("rephrase")),
        "neighborhood_prompts": [_with_mark(question["prompt"]) for question in around],
        "neighborhood_prompts_answers": _own_answers(around),
    }
    return [fields | _answered(probes)]


def _with_mark(text: Any) -> Any:
    if not isinstance(text, str) or text.rstrip().endswith("?"):
        return text
    return text.rstrip() + "?"


def _ripple(_record: Fields) -> list[dict[str, Any]]:
    raise InputError(
        "expected facts that name their subject, got records of RippleEdits, whose edits are sentences without one: "
        "take the same facts from KnowEdit, or give each record subject, prompt and target_new"
    )


def _flat(record: Fields) -> list[dict[str, Any]]:
    """Our own layout, and those of KnowEdit, EasyEdit and QAEdit, which differ in names and in what they add."""
    fields = _own(record)
    for name, others in OTHER_NAMES.items():
        value = next((record[other] for other in others if other in record), None)
        if value is not None and name not in fields:
            fields[name] = _listed(value) if name == "paraphrase_prompts" else _first(value)
    fields.setdefault("target_true", _other(record.get("ground_truth"), fields.get("target_new")))
    _add_neighbours(fields, record)
    further = _answered([*_probes("portability", record.get("portability")), *_pair("portability", record)])
    own = fields.get("probes", [])
    return [fields | further | {"probes": [*own, *further["probes"]] if isinstance(own, list) else own}]


def _other(answers: Any, new: Any) -> str:
    """The first answer that is not the new one."""
    return next((text for text in _answers(answers) if text not in _answers(new)), "")


def _add_neighbours(fields: dict[str, Any], record: Fields) -> None:
    """Put what an edit must not change behind the neighbourhood prompts that there are."""
    around = [*_questions(record.get("locality")), *_pair("locality", record), *_questions(_short(record))]
    if not around:
        return
    own = _listed(fields.get("neighborhood_prompts"))
    answers = _listed(fields.get("neighborhood_prompts_answers")) or [fields["target_true"]] * len(own)
    fields["neighborhood_prompts"] = [*own, *(probe["prompt"] for probe in around)]
    fields["neighborhood_prompts_answers"] = [*answers, *_own_answers(around)]


def _own_answers(questions: Iterable[Fields]) -> list[str]:
    """Answers of neighbourhood prompts, one each; empty where there is none, which D_KL and Top-k do not need."""
    return [question["answers"][0] if question["answers"] else "" for question in questions]


def _pair(what: str, record: Fields) -> list[dict[str, Any]]:
    """Questions of the fields ``<what>_prompt`` and ``<what>_ground_truth``."""
    names = f"{what}_prompt", f"{what}_ground_truth"
    if names[0] not in record:
        return []
    return list(_questions({"prompt": record[names[0]], "ground_truth": record.get(names[1])}, what))


def _short(record: Fields) -> dict[str, Any]:
    return {name: record.get(name) for name in ("loc", "loc_ans")} if "loc" in record else {}


def _answered(probes: list[dict[str, Any]]) -> dict[str, Any]:
    """Further questions that can be compared, and how many cannot."""
    answered = [probe for probe in probes if probe["answers"]]
    return {"probes": answered, UNANSWERED: len(probes) - len(answered)}


def _probes(what: str, value: Any) -> list[dict[str, Any]]:
    """Questions in groups, the groups named after what they are and their own name."""
    probes = list(_questions(value))
    return [probe | {"group": f"{what}: {probe['group']}" if probe["group"] else what} for probe in probes]


def _questions(value: Any, group: str = "") -> Iterator[dict[str, Any]]:
    """Questions with their answers, however they are nested: in lists, under names, as parallel lists."""
    if isinstance(value, list):
        for inner in value:
            yield from _questions(inner, group)
    elif isinstance(value, Mapping):
        name = next((name for name in QUESTION if name in value), None)
        if name is None:
            for key, inner in value.items():
                yield from _questions(inner, str(key))
            return
        answers = next((value[key] for key in ANSWER if key in value), None)
        yield from _paired(group, _listed(value[name]), answers)
    elif value:
        raise RecordError(f"expected questions with their answers, got {value!r:.60}", "mend them")


def _paired(group: str, prompts: list[Any], answers: Any) -> Iterator[dict[str, Any]]:
    """One question with all the answers, or as many answers as questions."""
    groups = [answers] if len(prompts) == 1 else _listed(answers) or [None] * len(prompts)
    if len(groups) != len(prompts):
        raise RecordError(f"expected as many answers as questions, got {len(groups)} for {len(prompts)}", "mend them")
    probes = (_probe(group, prompt, _answers(answer)) for prompt, answer in zip(prompts, groups, strict=True))
    yield from (probe for probe in probes if probe["prompt"])


def _probe(group: str, prompt: Any, answers: list[str]) -> dict[str, Any]:
    return {"group": group, "prompt": prompt, "answers": answers}


def _answers(value: Any) -> list[str]:
    """Acceptable answers, however they are nested, each once."""
    if isinstance(value, Mapping):
        value = [value.get("value"), value.get("aliases")]
    if isinstance(value, list):
        return list(dict.fromkeys(text for inner in value for text in _answers(inner)))
    if isinstance(value, bool) or not isinstance(value, str | int | float | None):
        raise RecordError(f"expected answers as texts, got {value!r:.60}", "mend them")
    return [str(value).strip()] if value is not None and str(value).strip() else []


def _objects(record: Fields, name: str) -> Iterator[Fields]:
    """The objects of a list, which may be absent."""
    value = record.get(name) or []
    if not isinstance(value, list) or not all(isinstance(inner, Mapping) for inner in value):
        raise RecordError(f"expected a list of objects as {name}, got {value!r:.60}", "mend it")
    yield from value


def _own(record: Fields, *names: str) -> dict[str, Any]:
    """Take our own fields from a record, the target without its number in Wikidata."""
    fields: dict[str, Any] = {name: record.get(name) for name in names or OWN}
    for name in ("target_new", "target_true"):
        if isinstance(fields.get(name), Mapping):
            fields[name] = fields[name].get("str")
    return present(fields)


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list) and value else value


_NAMES = frozenset(OWN).union({"ground_truth", "portability", "locality"}, *OTHER_NAMES.values())
_PAIRS = {"portability_prompt", "portability_ground_truth", "locality_prompt", "locality_ground_truth"}
_SILENT = {"cond", "pred", "alt", "source", "relation", "relation_id", "pararel_idx", "question"}
_COUNTERFACT = {"requested_rewrite", "pararel_idx", "attribute_prompts", "generation_prompts"}
_HOPS = {"questions", "answer", "answer_alias", "new_answer", "new_answer_alias", "single_hops", "new_single_hops"}

LAYOUTS = (
    Layout(
        "MQuAKE",
        lambda record: isinstance(record.get("requested_rewrite"), list),
        _mquake,
        frozenset({"id", "case_id", "join", "requested_rewrite", "orig", *_HOPS}),
    ),
    Layout("CounterFact", lambda record: "requested_rewrite" in record, _counterfact, frozenset(OWN) | _COUNTERFACT),
    Layout(
        "RippleEdits",
        lambda record: isinstance(record.get("edit"), Mapping) and "subject" not in record,
        _ripple,
        frozenset(),
    ),
    Layout(
        "zsRE",
        lambda record: "src" in record and "prompt" not in record,
        _zsre,
        frozenset({"id", "case_id", "join", "subject", "src", "answers", "rephrase", "loc", "loc_ans", "portability"})
        | _SILENT,
    ),
    Layout(
        "flat",
        lambda record: True,
        _flat,
        _NAMES | _PAIRS | _SILENT | {"loc", "loc_ans", "attribute_prompts", "generation_prompts"},
    ),
)
"""Every layout, the most particular first; KnowEdit, EasyEdit and QAEdit are flat ones, as ours is."""
