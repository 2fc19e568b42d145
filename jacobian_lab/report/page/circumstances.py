"""The question that a run answers: command, model, facts, settings, versions and cost, as rows of words."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from jacobian_lab.progress import span
from jacobian_lab.report.results import Results
from jacobian_lab.store.commands import command_of

BYTES = 2**30
"""Bytes of a GiB."""
ELSEWHERE = {"model", "facts", "layers", "versions", "dtype", "device"}
"""Settings that stand among the first rows or under versions."""


def question(run: Results) -> dict[str, dict[str, str]]:
    """Rows of words by group: the question, the settings, versions and machine."""
    settings, provenance = run.config["settings"], run.config["provenance"]
    return {
        "Run": dict(_first(run, settings, provenance)),
        "Settings": dict(_settings(settings, provenance)),
        "Versions and machine": dict(_machine(run, settings, provenance)),
    }


def _first(run: Results, settings: Mapping[str, Any], provenance: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    facts = provenance.get("facts", {})
    part = f", {facts['slice']}" if facts.get("slice") else ""
    yield "folder", str(run.folder)
    yield "kind", command_of(run.kind)
    yield "command", provenance.get("command", "none on record: started from Python, or by an earlier version")
    yield "model", str(provenance["model"])
    yield "model’s fingerprint", str(settings.get("model", "none on record"))
    yield "facts", f"{run.facts} of {facts.get('source', 'Python')}{part}"
    yield "facts’ fingerprint", str(settings.get("facts", "none on record"))
    for name, lines in facts.items():
        if isinstance(lines, list):
            yield f"facts, {name}", "; ".join(map(str, lines))
    yield "layers", span(settings["layers"])
    if "ridge" in provenance:
        yield "λ", f"{provenance['ridge']:g}"
    yield "precision, device", ", ".join(str(settings[name]) for name in ("dtype", "device") if name in settings)


def _settings(settings: Mapping[str, Any], provenance: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in settings.items():
        if name not in ELSEWHERE:
            yield from _flat(name, value)
    for name in ("protocol", "corpus", "templates", "anchors_from", "deviation"):
        if provenance.get(name):
            yield f"{name}, by name" if name in settings else name, _text(provenance[name])


def _machine(run: Results, settings: Mapping[str, Any], provenance: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "format", str(run.config.get("format", ""))
    yield from settings.get("versions", {}).items()
    for name in ("python", "platform", "commit"):
        if name in provenance:
            yield name, str(provenance[name])
    for name, value in _costs(run).items():
        yield name, value


def _costs(run: Results) -> dict[str, str]:
    """Time and memory of the last command that computed; none in a run of an earlier version."""
    try:
        costs = json.loads((run.folder / "costs.json").read_text("utf-8"))
        return {
            "time": f"{costs['took_seconds'] / 60:.1f} min on {costs['machine']}",
            "largest memory": f"{costs['peak_bytes'] / BYTES:.2f} GiB",
        }
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _flat(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for inner, content in value.items():
            yield from _flat(f"{name}.{inner}", content)
    else:
        yield name, _text(value)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
