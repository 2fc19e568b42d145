"""Render the notebooks as pages of the documentation, with their outputs.

``python docs/tutorials.py`` (``make tutorials``) runs every notebook and writes ``docs/tutorials/<name>.md`` with the
images beside it; notebooks themselves are kept without outputs. A page ends with a digest of its notebook's cells, so
that the tests see a page that is older than its notebook. Building the documentation runs no notebook.
"""

import argparse
import base64
import hashlib
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
NOTEBOOKS = DOCS.parent / "notebooks"
PAGES = DOCS / "tutorials"

DIGEST = re.compile(r"<!-- cells ([0-9a-f]{64}) -->")
STYLE = re.compile(r"<style.*?</style>", re.DOTALL)
ATTRIBUTES = re.compile(r"<(table|thead|tbody|tr|th|td)\b[^>]*>")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
TEMPORARY = re.compile(r"/tmp/\w+")

Cell = Mapping[str, Any]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run notebooks and write their pages.

    Args:
        arguments: Those of the command line; those of the process by default.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("only", nargs="*", metavar="NOTEBOOK", help="beginnings of names; all notebooks by default")
    options = parser.parse_args(arguments)
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        if not options.only or path.stem.startswith(tuple(options.only)):
            write(path.stem, executed(path))
            sys.stdout.write(f"{path.stem}\n")


def executed(path: Path) -> list[Cell]:
    """Run a notebook.

    Args:
        path: The notebook.

    Returns:
        Its cells, with outputs.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=3600, resources={"metadata": {"path": str(path.parent)}}).execute()
    cells: list[Cell] = notebook.cells
    return cells


def write(name: str, cells: Sequence[Cell]) -> None:
    """Write a page and its images.

    Args:
        name: Name of the notebook.
        cells: Its cells, with outputs.
    """
    PAGES.mkdir(exist_ok=True)
    for old in PAGES.glob(f"{name}-*.png"):
        old.unlink()
    images: list[bytes] = []
    blocks: list[str] = []
    title = name
    for cell in cells:
        title = HEADING.findall(cell["source"])[-1] if is_heading(cell) else title
        blocks += rendered(cell, images, f"{name}-{{}}.png", title)
    for number, image in enumerate(images, 1):
        (PAGES / f"{name}-{number}.png").write_bytes(image)
    note = (
        f"*This page is `notebooks/{name}.ipynb` as it ran on the embedded model "
        f"(`python docs/tutorials.py {name[:2]}`).*"
    )
    text = "\n\n".join([blocks[0], note, *blocks[1:], f"<!-- cells {digest(cells)} -->"])
    (PAGES / f"{name}.md").write_text(text + "\n", "utf-8")


def is_heading(cell: Cell) -> bool:
    """Tell whether a cell has a heading.

    Args:
        cell: The cell.

    Returns:
        True if so.
    """
    return cell["cell_type"] == "markdown" and HEADING.search(cell["source"]) is not None


def rendered(cell: Cell, images: list[bytes], file: str, title: str) -> Iterator[str]:
    """Render a cell as Markdown.

    Args:
        cell: The cell.
        images: Images of the notebook so far; those of the cell are added.
        file: Name of an image's file, with a place for its number.
        title: Heading that the cell stands under.

    Yields:
        Blocks of Markdown.
    """
    if cell["cell_type"] == "markdown":
        yield cell["source"].strip()
        return
    yield fenced("python", cell["source"])
    if printed := "".join(output["text"] for output in cell["outputs"] if output.get("name") == "stdout"):
        yield fenced("text", printed)
    for output in cell["outputs"]:
        data = output.get("data", {})
        if "image/png" in data:
            images.append(base64.b64decode(data["image/png"]))
            yield f"![{title}]({file.format(len(images))})"
        elif 'class="dataframe"' in data.get("text/html", ""):
            yield table(data["text/html"])
        elif "text/plain" in data:
            yield fenced("text", data["text/plain"])


def fenced(language: str, text: str) -> str:
    """A block of code, without the names of temporary folders.

    Args:
        language: Its language.
        text: The code.

    Returns:
        Markdown.
    """
    return f"```{language}\n{TEMPORARY.sub('/tmp/…', text.strip())}\n```"


def table(html: str) -> str:
    """A data frame as a plain table.

    Args:
        html: What pandas gives.

    Returns:
        HTML in one line, without styles.
    """
    inner = re.search(r"<table.*</table>", STYLE.sub("", html), re.DOTALL)
    plain = ATTRIBUTES.sub(r"<\1>", inner[0] if inner else "")
    return TEMPORARY.sub("/tmp/…", "".join(line.strip() for line in plain.splitlines()))


def digest(cells: Sequence[Cell]) -> str:
    """Digest of what cells say, outputs left out.

    Args:
        cells: The cells.

    Returns:
        SHA-256.
    """
    sources = [[cell["cell_type"], "".join(cell["source"])] for cell in cells]
    return hashlib.sha256(json.dumps(sources).encode()).hexdigest()


def stale() -> list[str]:
    """Find pages that are not of the notebooks as they are.

    Returns:
        Names of the notebooks.
    """
    names = []
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        page = PAGES / f"{path.stem}.md"
        match = DIGEST.search(page.read_text("utf-8")) if page.is_file() else None
        if match is None or match[1] != digest(json.loads(path.read_text("utf-8"))["cells"]):
            names.append(path.stem)
    return names


if __name__ == "__main__":
    main()
