"""A look before anything is edited: checks of the model, tokens of the facts, answers that it gives already."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from jacobian_lab.catalogue import SchemeName
from jacobian_lab.errors import InputError
from jacobian_lab.evaluation.metrics import check_questions
from jacobian_lab.facts.fact import KEEP, SKIP, Fact, FactFile, Repeat, listing, on_one_line
from jacobian_lab.facts.reading import read_facts
from jacobian_lab.jobs.config import EditingConfig
from jacobian_lab.jobs.diagnosing import diagnose, donated, symmetric_bounds
from jacobian_lab.jobs.experiment import prepare
from jacobian_lab.jobs.outlook import sentences
from jacobian_lab.jobs.present import pieces, present_answers
from jacobian_lab.jobs.setup import check_options, open_model
from jacobian_lab.maps.agreement import TOLERANCE, check_replay
from jacobian_lab.maps.stepwise import decisive_keys
from jacobian_lab.model.chat import chat_settings
from jacobian_lab.model.devices import check_places, parse_device
from jacobian_lab.model.edited import check_editable
from jacobian_lab.model.language_model import LanguageModel, Layers
from jacobian_lab.model.rows import check_fact, sorted_out
from jacobian_lab.model.sources import is_on_disk
from jacobian_lab.model.tokens import Prompt

NEAR = 0.9
"""Keys whose cosine is above this are nearly the same: what one fact is given, the other gets."""

SAME = 0.9999
NEAR_LISTED = 1000
KEYS_AT_ONCE = 1024

Report = dict[str, Any]


@dataclass(frozen=True)
class CheckConfig(EditingConfig):
    """Show what would be edited, before anything is edited.

    Attributes:
        json: Whether to print JSON, for programs, instead of text.
        out: Folder to write check.json into, and diagnosis.csv; none by default.
        diagnose: Say of each fact what speaks against its edit. This takes the second moment and the descents of its
            anchors, as an edit does, unless --anchors-from has them; what edits are made with counts for it alone.
        scheme: Target scheme of the edit that is diagnosed; its rule is MEMIT's.
        verdicts: Survey J for the diagnosis, too, which takes longest.
    """

    out: Path | None = None
    json: bool = False
    diagnose: bool = False
    scheme: SchemeName = "forward-replay"
    verdicts: bool = False


def inspect(config: CheckConfig) -> Report:
    """Look at a model and at facts."""
    check_options(config)
    check_places(parse_device(config.device), config.device)
    file = read_facts(config.facts, config.slice, on_bad_record=SKIP, on_repeat=KEEP)
    report: Report = {
        "model": {"name": config.model, "checks": [], "refused": None},
        "facts": [],
        "refused": [asdict(record) for record in file.refused],
        "duplicates": [_repeat(repeat) for repeat in file.duplicates],
        "conflicts": [_repeat(repeat) for repeat in file.conflicts],
        "unasked": [],
        "near": [],
        "same_last_token": [],
        "unknown_fields": dict(file.unknown),
        "unanswered": dict(file.unanswered),
    }
    try:
        model, layers = open_model(config)
    except InputError as error:
        if not is_on_disk(config.model):
            raise
        report["model"]["refused"] = str(error)
    else:
        _look(report, file, model, layers)
        if config.diagnose and report["facts"] and report["model"]["refused"] is None:
            report["diagnosis"] = _diagnosed(config, model, layers)
    return report | _judged(report)


def _diagnosed(config: CheckConfig, model: LanguageModel, layers: Layers) -> dict[str, Any]:
    """Diagnose the edit of the facts that can be used, each of them once."""
    once: Literal["first", "last"] = "last" if config.on_repeat == "last" else "first"
    usable = replace(config, on_bad_record="skip", on_repeat=once, diagnose=False)
    experiment = prepare(usable, progress=True, opened=(model, layers))
    try:
        bounds = symmetric_bounds(experiment) if config.verdicts else None
        records = diagnose(experiment, config.scheme, donated(experiment, config.scheme), bounds=bounds)
    finally:
        experiment.executor.release()
    facts = [record | {"sentences": list(sentences(record))} for record in records]
    return {"scheme": config.scheme, "ridge": experiment.session.ridge, "facts": facts}


def _look(report: Report, file: FactFile, model: LanguageModel, layers: Layers) -> None:
    """Add to a report what takes a model."""
    facts, refused = sorted_out(file.facts, partial(check_fact, model), file.places)
    evaluated, refused_questions = sorted_out(facts, partial(check_questions, model), file.places)
    rows = [model.fact_prompt(fact, answer=True) for fact in facts]
    report["refused"] += [asdict(record) for record in refused]
    report["unasked"] = [asdict(record) for record in refused_questions]
    report["model"] |= _described(model, layers) | _checked(model, layers, facts, len(refused))
    report["facts"] = [
        _tokenised(model, fact, row) | answer
        for fact, row, answer in zip(facts, rows, present_answers(model, rows), strict=True)
    ]
    report["near"] = near_keys(model, facts, layers) if model.family.projection else []
    report["same_last_token"] = list(_same_last_token(model, evaluated))


def _judged(report: Report) -> Report:
    """Counts of each kind, and the verdict."""
    failed = [check for check in report["model"]["checks"] if not check["passed"]]
    counts = {
        "facts": len(report["facts"]),
        **{name: len(report[name]) for name in ("refused", "unasked", "conflicts", "duplicates", "same_last_token")},
        "failed_checks": len(failed) or int(report["model"]["refused"] is not None),
    }
    wrong = ("refused", "unasked", "conflicts", "failed_checks")
    return {"counts": counts, "passed": not any(counts[name] for name in wrong)}


def _same_last_token(model: LanguageModel, facts: Sequence[Fact]) -> Iterator[dict[str, Any]]:
    """Facts whose new answer ends as the true one does, so that the token says nothing of the edit."""
    for fact in facts:
        if fact.target_true:
            answers = (fact.target_new, fact.target_true)
            new, true = (model.text_prompt(fact.text, answer, fact.join).answer[-1] for answer in answers)
            if new == true:
                yield {"id": fact.id, "token": pieces(model, [new])[0]}


def summary(report: Report) -> Iterator[str]:
    """A report in words."""
    model = report["model"]
    if model["refused"] is None:
        yield (
            f"{model['name']}: {model['family']}, {model['blocks']} blocks of width {model['d_model']}, keys of "
            f"{model['d_mlp']}, {model['dtype']} on {model['device']}; decisive layers "
            f"{', '.join(map(str, model['layers']))}; fingerprint {model['fingerprint'][:12]}"
        )
    else:
        yield f"{model['name']}: cannot be edited. {model['refused']}"
    for check in model["checks"]:
        yield f"  {'ok  ' if check['passed'] else 'FAIL'} {check['check']}: {check['detail']}"
    if report["facts"]:
        yield "\nFacts: pieces of the prompt, the decisive one in ⟦ ⟧, and of the answer; its rank and probability now"
    for fact in report["facts"]:
        pieces = [f"⟦{piece}⟧" if i == fact["decisive"] else piece for i, piece in enumerate(fact["tokens"])]
        state = (
            "known" if fact["known"] else f"rank {fact['rank']}, p = {fact['probability']:.2g}, says {fact['says']!r}"
        )
        yield on_one_line(f"  {fact['id']}: {'|'.join(pieces)} → {'|'.join(fact['answer_tokens'])}   ({state})")
    yield ""
    yield from map(on_one_line, _findings(report))
    yield from map(on_one_line, _outlook(report))
    yield ""
    yield _verdict(report)


def _outlook(report: Report) -> Iterator[str]:
    """List what speaks against the edit of each fact, if that has been diagnosed."""
    if "diagnosis" not in report:
        return
    diagnosis = report["diagnosis"]
    spoken = [fact for fact in diagnosis["facts"] if fact["sentences"]]
    edit = f"{diagnosis['scheme']} at λ = {diagnosis['ridge']:g}"
    yield f"Before an edit by {edit}, something speaks against {len(spoken)} of {len(diagnosis['facts'])} facts."
    for fact in spoken:
        yield f"  {fact['id']}: {'; '.join(fact['sentences'])}"


def near_keys(model: LanguageModel, facts: Sequence[Fact], layers: Layers) -> list[dict[str, Any]]:
    """Pairs of facts whose keys are nearly the same, at the first or at the last decisive layer."""
    if len(facts) < 2:
        return []
    rows = [model.fact_prompt(fact) for fact in facts]
    best: dict[tuple[int, int], float] = {}
    for layer in sorted({layers[0], layers[-1]}):
        keys = decisive_keys(model, rows, layer).float()
        for pair, cosine in _close(keys / torch.linalg.vector_norm(keys, dim=1, keepdim=True)):
            best[pair] = max(cosine, best.get(pair, 0.0))
    nearest = sorted(best.items(), key=lambda item: -item[1])[:NEAR_LISTED]
    return [
        {
            "ids": [facts[i].id for i in pair],
            "cosine": cosine,
            "same": cosine > SAME,
            "answers": [facts[i].target_new for i in pair],
        }
        for pair, cosine in nearest
    ]


def _close(directions: Float[Tensor, "fact d_mlp"]) -> Iterator[tuple[tuple[int, int], float]]:
    for start in range(0, len(directions), KEYS_AT_ONCE):
        cosines = (directions[start : start + KEYS_AT_ONCE] @ directions.T).triu(start + 1)
        for i, j in torch.nonzero(cosines > NEAR).tolist():
            yield (start + i, j), float(cosines[i, j])


def _described(model: LanguageModel, layers: Layers) -> dict[str, Any]:
    return {
        "family": model.hf.config.model_type,
        "known_as": model.known_as(),
        "fingerprint": model.fingerprint,
        "blocks": model.n_layers,
        "d_model": model.d_model,
        "d_mlp": model.d_mlp,
        "vocabulary": int(model.hf.get_input_embeddings().weight.shape[0]),
        "longest": model.max_tokens,
        "layers": list(layers),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "chat": chat_settings(model.chat).get("chat"),
    }


def _checked(model: LanguageModel, layers: Layers, facts: Sequence[Fact], refused: int) -> dict[str, Any]:
    """The model's own checks; those of loading have been passed."""
    checks = [
        _check("weights", True, f"finite, {sum(p.numel() for p in model.hf.parameters()) / 1e6:.0f} million"),
        _check("layers", True, f"{', '.join(map(str, layers))} of 0 to {model.n_layers - 1}"),
        _check("dtype", True, f"{model.dtype}".removeprefix("torch.") + f", on {model.device}"),
        _check("tokens", not refused, f"decisive token and answer found in {len(facts)} facts, not in {refused}"),
    ]
    why = None
    try:
        check_editable(model)
        checks.append(_check("edits", True, "MLPs with one output projection that adds to the residual stream"))
    except InputError as error:
        why = str(error)
        checks.append(_check("edits", False, why))
    if facts:
        try:
            error_of = check_replay(model, facts, layers)
            states, logits, tolerance = error_of.states, error_of.logits, TOLERANCE[model.dtype]
            detail = f"states to {states:.0e}, logits to {logits:.0e}; {tolerance:.0e} is asked for"
            checks.append(_check("replay", True, detail) | {"states": states, "logits": logits})
        except InputError as error:
            why = str(error)
            checks.append(_check("replay", False, why))
    return {"checks": checks, "refused": why}


def _check(name: str, passed: bool, detail: str) -> dict[str, Any]:
    return {"check": name, "passed": passed, "detail": detail}


def _tokenised(model: LanguageModel, fact: Fact, row: Prompt) -> dict[str, Any]:
    """A fact in tokens."""
    prompt = row.ids[: len(row.ids) - len(row.answer) + 1]
    return {
        "id": fact.id,
        "subject": fact.subject,
        "prompt": fact.text,
        "tokens": pieces(model, prompt),
        "token_ids": list(prompt),
        "decisive": row.decisive,
        "answer": fact.target_new,
        "answer_tokens": pieces(model, row.answer),
        "answer_ids": list(row.answer),
    }


def _repeat(repeat: Repeat) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(repeat).items()}


def _findings(report: Report) -> Iterator[str]:
    """Faults of the facts together, and what else is worth knowing."""
    answered = sum(fact["known"] for fact in report["facts"])
    yield f"{len(report['facts'])} facts can be edited; the model gives the new answer already for {answered}."
    for record in report["refused"]:
        yield f"  refused: {record['place']}: {record['reason']}"
    for record in report["unasked"]:
        yield f"  refused by commands that evaluate: {record['place']}: {record['reason']}"
    for name in ("conflicts", "duplicates"):
        for repeat in report[name]:
            answers = " / ".join(map(str, repeat["answers"]))
            prompt, places = repeat["prompt"].replace("{}", repeat["subject"]), ", ".join(repeat["places"])
            yield f"  {name[:-1]}: {prompt!r} → {answers} ({places})"
    if report["conflicts"] or report["duplicates"]:
        yield "  commands that edit refuse these; --on-repeat first or last edits each once"
    for pair in report["near"][:10]:
        same = "the same key" if pair["same"] else f"keys with cosine {pair['cosine']:.3f}"
        yield f"  near: {pair['ids'][0]} and {pair['ids'][1]} have {same} ({' / '.join(pair['answers'])})"
    if len(report["near"]) > 10:
        yield f"  … and {len(report['near']) - 10} more pairs of facts with nearly the same key (--json has all)"
    if report["same_last_token"]:
        named = listing([f"{fact['id']} ({fact['token']!r})" for fact in report["same_last_token"]])
        yield f"  new answers that end in the last token of the true one: {named}"
    for place, count in report["unanswered"].items():
        yield f"  not asked: {count} further questions of {place}, which have no answer"
    for name, count in report["unknown_fields"].items():
        yield f"  not used: the field {name!r} of {count} records"


def _verdict(report: Report) -> str:
    names = {
        "facts": "facts that can be edited",
        "refused": "records refused",
        "unasked": "not to be evaluated",
        "conflicts": "conflicts",
        "duplicates": "duplicates",
        "same_last_token": "with the true answer's last token",
        "failed_checks": "checks of the model that fail",
    }
    counted = ", ".join(f"{what} {report['counts'][name]}" for name, what in names.items())
    return f"{'passed' if report['passed'] else 'FAILED'}: {counted}"
