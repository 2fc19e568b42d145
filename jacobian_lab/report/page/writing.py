"""A page written: its dictionary put into a template, with styles, script and data inside, small enough to be sent."""

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from jacobian_lab.caching import write_text
from jacobian_lab.errors import InputError
from jacobian_lab.report.page.building import page_of
from jacobian_lab.report.results import Results

LIMIT = 5_000_000
"""Bytes of a page at the most."""
FILE = "report.html"
"""Its name in the folder of a run."""

_UNSAFE = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&\u2028\u2029"}
"""Signs of JSON that could end the element that it stands in, or a line of a script."""


def write_report(
    folder: Path, against: Path | None = None, out: Path | None = None, facts: str | None = None
) -> tuple[Path, list[str]]:
    """Write the page of a run, or of two side by side.

    Args:
        folder: The run's folder.
        against: Another run's, to stand beside it.
        out: File to write; by default `FILE` in the folder.
        facts: The facts' file, if that is not where the runs say.

    Returns:
        The file's path, and what the page had to leave out.
    """
    target = folder / FILE if out is None else out
    if target.is_dir() or target.suffix != ".html":
        raise InputError(f"expected a file that ends in .html, got {target}: give another name as ⟨out⟩")
    runs = [Results(path) for path in (folder, against) if path is not None]
    page = page_of(runs, facts)
    html = fitted(page)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, html)
    return target, page["notes"]


def fitted(page: dict[str, Any], limit: int = LIMIT) -> str:
    """Render a page, without what it can spare if it would be larger than `limit` bytes; its notes say what that is."""
    html = render(page)
    for what, spare in SPARED.items():
        if len(html.encode()) < limit:
            break
        spare(page)
        page["notes"].append(f"Left out, so that the page stays below {limit / 1e6:g} MB: {what}.")
        html = render(page)
    return html


def _without_fact_field(name: str) -> Callable[[dict[str, Any]], None]:
    def spare(page: dict[str, Any]) -> None:
        for fact in page["data"]["facts"]:
            fact.pop(name, None)

    return spare


def _without_part(name: str) -> Callable[[dict[str, Any]], None]:
    def spare(page: dict[str, Any]) -> None:
        for run in page["data"]["runs"]:
            run[name] = None

    return spare


def _without_figures(page: dict[str, Any]) -> None:
    page["figures"] = []


SPARED: Mapping[str, Callable[[dict[str, Any]], None]] = {
    "the facts’ neighbourhood prompts": _without_fact_field("neighborhood"),
    "the facts’ heat maps (jacobian-lab figure RUN locate --fact ID draws one)": _without_part("traces"),
    "the facts’ paraphrases": _without_fact_field("paraphrases"),
    "the figures (jacobian-lab figure RUN NAME draws one)": _without_figures,
    "the facts’ residuals by layer": _without_part("lines"),
    "the facts’ verdicts by layer": _without_part("verdicts"),
}
"""What a page that would be too large does without, in this order."""


def render(page: Mapping[str, Any]) -> str:
    """Put a page's dictionary into the template: every text of it is escaped there."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    sources = {name: (files(__package__) / f"page.{name}").read_text("utf-8") for name in ("html", "css", "js")}
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return template.from_string(sources["html"]).render(
        page,
        style=Markup(sources["css"]),
        script=Markup(sources["js"]),
        script_hash=base64.b64encode(hashlib.sha256(sources["js"].encode()).digest()).decode(),
        json=Markup(as_json(page["data"])),
        markup=Markup,
    )


def as_json(data: Any) -> str:
    """JSON that can stand inside an element of a page, whatever its texts are."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).translate(_UNSAFE)
