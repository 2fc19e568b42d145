"""Pages of the documentation agree with what they speak of: notebooks, messages, commands, names."""

import re
import shlex
from pathlib import Path

import messages
import pytest
import tutorials
from quotes import PAGES

import jacobian_lab as jl
from jacobian_lab.cli import catalog, parsing

ROOT = Path(__file__).resolve().parents[1]
COMMAND = re.compile(r"^[ ]{0,12}(?:srun |[A-Z_]+=\S+ )*jacobian-lab (?P<words>.*)$", re.MULTILINE)
UNREADABLE = ("…", "COMMAND", "RUN", "--config", "--version")
"""What a line has that shows a form, or reads a file that is not here."""


def commands() -> dict[str, str]:
    """Command lines that stand in blocks of code, each with its page."""
    pages = {}
    for page in PAGES:
        text = page.read_text("utf-8").replace("\\\n", " ")
        for match in COMMAND.finditer(text):
            words = match["words"].split("  #")[0].split(" # ")[0].strip()
            if not any(mark in words for mark in UNREADABLE):
                pages[words] = str(page.relative_to(ROOT))
    return pages


def test_tutorials_are_of_the_notebooks_as_they_are():
    assert tutorials.stale() == []


def test_a_changed_notebook_is_seen(tmp_path, monkeypatch):
    cells = [{"cell_type": "code", "source": "1 + 1", "outputs": []}]
    (tmp_path / "01_sum.ipynb").write_text('{"cells": [{"cell_type": "code", "source": ["1 + 1"], "outputs": []}]}')
    monkeypatch.setattr(tutorials, "NOTEBOOKS", tmp_path)
    monkeypatch.setattr(tutorials, "PAGES", tmp_path)
    assert tutorials.stale() == ["01_sum"]
    tutorials.write("01_sum", [{"cell_type": "markdown", "source": "# Sum"}, *cells])
    assert tutorials.stale() == ["01_sum"]
    tutorials.write("01_sum", cells)
    assert tutorials.stale() == []


def test_outputs_of_cells_become_markdown(tmp_path, monkeypatch):
    frame = '<div><style scoped>th {}</style><table border="1" class="dataframe">\n<tr><th>a</th></tr>\n</table></div>'
    outputs = [
        {"output_type": "stream", "name": "stderr", "text": "a warning"},
        {"output_type": "stream", "name": "stdout", "text": "in /tmp/tmpab12/run\n"},
        {"output_type": "display_data", "data": {"image/png": "iVBORw0KGgo=", "text/plain": "<Figure>"}},
        {"output_type": "execute_result", "data": {"text/html": frame, "text/plain": "a"}},
        {"output_type": "execute_result", "data": {"text/html": "<b>run</b>", "text/plain": "Run"}},
    ]
    monkeypatch.setattr(tutorials, "PAGES", tmp_path)
    tutorials.write("02_shown", [{"cell_type": "code", "source": "show()", "outputs": outputs}])
    text = (tmp_path / "02_shown.md").read_text("utf-8")
    assert (tmp_path / "02_shown-1.png").read_bytes().startswith(b"\x89PNG")
    for part in (
        "```text\nin /tmp/…/run\n```",
        "(02_shown-1.png)",
        "<table><tr><th>a</th></tr></table>",
        "```text\nRun",
    ):
        assert part in text
    assert "warning" not in text


def test_messages_are_listed_and_those_quoted_are_the_codes_own():
    assert messages.unlisted() == set()
    assert messages.unknown() == set()


def test_a_message_that_is_gone_is_seen(tmp_path, monkeypatch):
    page = tmp_path / "errors.md"
    page.write_text("**`expected the moon, got cheese`**\n\n    <!-- messages: facts -->\n", "utf-8")
    monkeypatch.setattr(messages, "PAGE", page)
    assert messages.unknown() == {"expected the moon, got cheese"}
    assert "model.hub" in messages.unlisted()
    assert "facts.records" not in messages.unlisted()
    lines = messages.on_page_markdown(page.read_text("utf-8")).splitlines()[2:]
    assert "    - `expected a slice A:B of two whole numbers, got …`<br>→ try 0:32" in lines
    assert all(line.startswith("    - `expected ") for line in lines)


@pytest.mark.parametrize("words", commands())
def test_commands_of_pages_can_be_parsed(words, capsys):
    name, *options = shlex.split(words.split(" | ")[0].split(" > ")[0])
    name = catalog.OLD[name].new.split()[0] if name in catalog.OLD else name
    if "--help" in options:
        assert name in catalog.COMMANDS
        return
    command = catalog.COMMANDS[name].load()
    modern = getattr(command, "modern", None)
    parsing.parse(command, modern(options)[0] if modern else options, "test", "Test.")


def test_every_public_name_is_in_the_api_by_task():
    text = (ROOT / "docs" / "api.md").read_text("utf-8")
    assert [name for name in jl.__all__ if f"`jl.{name}" not in text and f"jl.{name}(" not in text] == []
