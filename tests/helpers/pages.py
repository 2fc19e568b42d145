"""Runs with facts of their own, for pages: among them texts that a page must not take for its own."""

import json
from pathlib import Path

from helpers.runs import FACTS, make_run
from jacobian_lab.caching import content_key
from jacobian_lab.facts.fact import Fact, describe
from jacobian_lab.facts.reading import load_facts

HOSTILE = '</script><script>document.title="broken"</script><img src=x onerror=alert(1)> \u2028 & "quoted"'
SUBJECTS = ["Ada", HOSTILE, "Zoë", "<b>Bold</b>", "O'Neil", "Émile Zola"]


def written_facts(path: Path, subjects=SUBJECTS) -> tuple[Fact, ...]:
    """Write a file of facts, one for each label of a run's."""
    records = [
        {
            "id": label,
            "subject": subject,
            "prompt": "The home of {} is",
            "target_new": f"Rome {place}",
            "target_true": "<i>Paris</i>" if place == 1 else "Paris",
            "paraphrase_prompts": [f"{subject} lives in"],
            "neighborhood_prompts": ["Bob lives in"],
        }
        for place, (label, subject) in enumerate(zip(FACTS, subjects, strict=True))
    ]
    path.write_text(json.dumps(records), "utf-8")
    return load_facts(path)


def run_with_facts(root: Path, name: str, kind: str, provenance=None, **written) -> Path:
    """A finished run whose facts are in a file."""
    root.mkdir(parents=True, exist_ok=True)
    path = root / "facts.json"
    facts = written_facts(path)
    source = {"facts": {"source": str(path), "slice": None, "count": len(facts)}}
    settings = {"facts": content_key(describe(facts)), "model": "0123abcd", "versions": {"torch": "2.13.0"}}
    return make_run(root / name, kind, settings, source | (provenance or {}), **written)
