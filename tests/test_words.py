"""Plain words: a summary says what something does or is, and a name says what it holds."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.commands import ROOT

# fmt: off
OPENINGS = {
    "What", "How", "Whether", "Where", "Which", "Who", "Whom", "Whose", "Of", "As", "For", "Those", "That",
    "When", "In", "By", "To", "If", "Than", "With", "From",
}
"""A summary that begins with one of these is half a sentence: an imperative verb or a noun says what there is."""

NAMES = {
    "found", "each", "told", "kept", "given", "chosen", "asked", "some", "taken", "seen", "shown", "wanted",
    "known", "ours", "theirs", "those", "made",
}
# fmt: on
"""They say that a value came from somewhere, and not what it is."""

FOLDERS = ("jacobian_lab", "analyses", "figures", "benchmarks", "docs")


def offences(source: str) -> Iterator[tuple[int, str]]:
    """Lines of a module where a summary or a name is one of these, and the words."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Module() | ast.ClassDef() | ast.FunctionDef():
                summary = (ast.get_docstring(node) or "").partition("\n")[0]
                if summary and summary.split()[0].strip("`,") in OPENINGS:
                    yield getattr(node, "lineno", 1), summary
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                pass
            case ast.arg(arg=name) | ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                pass
            case _:
                continue
        if name.strip("_") in NAMES:
            yield node.lineno, name


@pytest.mark.parametrize("folder", FOLDERS)
def test_summaries_and_names_are_plain(folder):
    paths: list[Path] = sorted((ROOT / folder).rglob("*.py"))
    lines = [
        f"{path.relative_to(ROOT)}:{line}: {words}" for path in paths for line, words in offences(path.read_text())
    ]
    assert not lines, "\n".join(["expected a verb or a noun first, and names of what they hold, got", *sorted(lines)])


def test_half_sentences_and_empty_names_are_noticed():
    source = (
        '"""What it is."""\ndef f(asked):\n    """Of some."""\n    found, self.kept = asked\n    return found.each\n'
    )
    assert sorted(offences(source)) == [(1, "What it is."), (2, "Of some."), (2, "asked"), (4, "found"), (4, "kept")]
    assert not list(offences('"""Residuals of each fact."""\nfor fact in known(facts):\n    fact.made\n'))
