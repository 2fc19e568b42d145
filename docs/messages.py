"""The messages that users meet, read off the code when the pages are built.

``errors.md`` has marks such as ``<!-- messages: facts model.tokens -->``; each is replaced by the messages of these
modules and packages. A module goes to the mark that has the longest beginning of its name, so that none is in two
lists; ``unlisted`` names those that no mark has.
"""

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

PACKAGE = Path(__file__).resolve().parent.parent / "jacobian_lab"
PAGE = Path(__file__).resolve().parent / "errors.md"

MARK = re.compile(r"^(?P<indent> *)<!-- messages: (?P<modules>[\w. ]+) -->$", re.MULTILINE)
FIELD = re.compile(r"⟨([^⟩]*)⟩")
QUOTED = re.compile(r"`(expected [^`]*)`")
GAP = "…"
"""What stands for a value."""


class Message(NamedTuple):
    """A message of the package.

    Attributes:
        text: What was expected, and what was got.
        remedy: What to do; empty if the code composes it elsewhere.
    """

    text: str
    remedy: str


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Hook of MkDocs: put the messages of modules in the place of their mark.

    Args:
        markdown: A page.

    Returns:
        The page with lists of messages.
    """
    marked = _marked(markdown)

    def lines(match: re.Match[str]) -> str:
        return "\n".join(match["indent"] + _item(message) for message in listed(match["modules"].split(), marked))

    return MARK.sub(lines, markdown)


def listed(names: list[str], marked: set[str]) -> list[Message]:
    """Messages of modules, each once, by the alphabet.

    Args:
        names: Modules and packages of one mark.
        marked: Those of all marks of the page.

    Returns:
        The messages.
    """
    return sorted({text for module, texts in messages().items() if _place(module, marked) in names for text in texts})


def unlisted() -> set[str]:
    """Find modules whose messages no mark of the page has.

    Returns:
        Their names within the package.
    """
    marked = _marked(PAGE.read_text("utf-8"))
    return {module for module, texts in messages().items() if texts and not _place(module, marked)}


def unknown() -> set[str]:
    """Find messages that the page quotes and the package does not have.

    Returns:
        The messages.
    """
    texts = {_in_words(message.text) for modules in messages().values() for message in modules}
    return {quote for quote in QUOTED.findall(PAGE.read_text("utf-8")) if quote not in texts}


def _marked(markdown: str) -> set[str]:
    return {name for match in MARK.finditer(markdown) for name in match["modules"].split()}


def _place(module: str, marked: set[str]) -> str:
    """The longest beginning of a module's name that a mark has; none is empty."""
    parts = module.split(".")
    beginnings = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((name for name in beginnings if name in marked), "")


@cache
def messages() -> dict[str, tuple[Message, ...]]:
    """Messages by module.

    Returns:
        Modules by their name within the package.
    """
    paths = sorted(PACKAGE.rglob("*.py"))
    return {_name(path): tuple(_read(ast.parse(path.read_text("utf-8")))) for path in paths}


def _name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def _read(tree: ast.Module) -> Iterator[Message]:
    """Texts of the form "expected …, got …: …"; a call may give what to do as a second text."""
    nodes = list(ast.walk(tree))
    formatted = [node for node in nodes if isinstance(node, ast.JoinedStr)]
    parts = {part for text in formatted for part in ast.walk(text) if part is not text}
    pairs = [call.args for call in nodes if isinstance(call, ast.Call) and len(call.args) == 2]
    remedies: dict[ast.AST, str] = {first: _text(second) for first, second in pairs}
    for node in nodes:
        text = "" if node in parts else " ".join(_text(node).split())
        if match := re.match(r"(expected .*?, got.*?)(?:: (.*))?$", text):
            yield Message(match[1], match[2] or remedies.get(node, ""))


def _text(node: ast.AST) -> str:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else GAP
    if isinstance(node, ast.JoinedStr):
        return re.sub(f"{GAP}+", GAP, "".join(_text(part) for part in node.values))
    return GAP


def _in_words(text: str) -> str:
    """A text with the options of the command line for the fields that it names."""
    return FIELD.sub(lambda match: "--" + match[1].replace("_", "-"), text)


def _item(message: Message) -> str:
    remedy = "" if message.remedy in {"", GAP} else f"<br>→ {_in_words(message.remedy)}"
    return f"- `{_in_words(message.text)}`{remedy}"


if __name__ == "__main__":
    sys.exit("\n".join(sorted(unlisted() | unknown())) or 0)
