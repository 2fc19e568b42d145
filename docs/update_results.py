"""Copy what the pages of results include from finished runs, and fill in the numbers that prose quotes.

A page includes ``results/runs/<run>/<table>.md``. For each of these the file of the same name is taken from the
folder ``runs/<run>``, where the command that the page names has left it; ``run.md`` is made of the run's
configuration, ``figures.md`` of its figures. All small CSV files of the run are copied beside them. A run that is
not there is named, and its files stay as they are; a table that has no CSV file gets one of its own rounded cells.
Then every number that a page quotes (``quotes.py``) is filled in.

With ``--check`` nothing is copied: quoted numbers that are not their table's are named, and the status is 1. With
``--list`` every quoted number is listed with its file, row and column.
"""

import argparse
import json
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from quotes import PAGES, RUNS, UnknownSourceError, as_csv, filled, quotes

from jacobian_lab.report.captions import short_name
from jacobian_lab.report.results import Results

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
INCLUDED = re.compile(r'\{%\s*include-markdown\s+"results/runs/([^/"]+)/([^/"]+)"')
FRONT = ("reproduce", "residual_by_layer.png")
"""The run and figure that the home page and the README begin with."""
MADE = ("run.md", "figures.md")
"""Files that are no tables."""
SMALL = 1 << 16
"""Bytes of the largest CSV file that is copied."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Copy.

    Args:
        arguments: Those of the command line; those of the process by default.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="folder of the runs")
    parser.add_argument("--check", action="store_true", help="name quoted numbers that are not their table's")
    parser.add_argument(
        "--list", action="store_true", help="list the quoted numbers, each with its file, row and column"
    )
    parser.add_argument("only", nargs="*", metavar="RUN", help="a run's name, or name=folder; all of them by default")
    options = parser.parse_args(arguments)
    if options.check:
        sys.exit(1 if check() else 0)
    if options.list:
        for page in PAGES:
            for quote in quotes(page.read_text("utf-8")):
                say(f"{page.relative_to(ROOT)}:{quote.line}: {quote.quoted} ({quote.source})")
        return
    needed = included()
    folders = {name: folder for name, _, folder in (text.partition("=") for text in options.only)}
    for name in folders or needed:
        folder = Path(folders.get(name) or options.runs / name)
        if name not in needed:
            say(f"{name}: no page includes it")
        elif not folder.is_dir():
            say(f"{name}: no run in {folder}")
        else:
            copy(folder, DOCS / "results" / "runs" / name, needed[name])
            if name == FRONT[0] and (folder / "figures" / FRONT[1]).is_file():
                shutil.copyfile(folder / "figures" / FRONT[1], DOCS / "images" / FRONT[1])
    for table in sorted(RUNS.glob("*/*.md")):
        if table.name not in MADE and not table.with_suffix(".csv").is_file():
            table.with_suffix(".csv").write_text("\n".join(as_csv(table)) + "\n", "utf-8")
    for page in PAGES:
        text = page.read_text("utf-8")
        if (right := filled(text)) != text:
            page.write_text(right, "utf-8")
            say(f"{page.relative_to(ROOT)}: quoted numbers filled in")


def check() -> list[str]:
    """Compare the numbers that pages quote with their tables, and print a line for each that differs.

    Returns:
        The lines.
    """
    wrong = []
    for page in PAGES:
        place = page.relative_to(ROOT)
        try:
            differing = [quote for quote in quotes(page.read_text("utf-8")) if quote.quoted != quote.right]
        except UnknownSourceError as error:
            wrong.append(f"{place}: {error}")
            continue
        wrong += [
            f"{place}:{quote.line}: expected {quote.right} ({quote.source}), got {quote.quoted}: make results"
            for quote in differing
        ]
    for line in wrong:
        say(line)
    return wrong


def included() -> dict[str, list[str]]:
    """The files that pages include.

    Returns:
        Their names, by run.
    """
    files: dict[str, list[str]] = {}
    for page in sorted(DOCS.rglob("*.md")):
        for run, file in INCLUDED.findall(page.read_text("utf-8")):
            if file not in files.setdefault(run, []):
                files[run].append(file)
    return files


def copy(folder: Path, target: Path, files: Sequence[str]) -> None:
    """Copy one run's files, and its small CSV files.

    Args:
        folder: The run's folder.
        target: Where they go.
        files: Which.
    """
    target.mkdir(parents=True, exist_ok=True)
    for file in files:
        if file == "run.md":
            text = provenance(folder)
        elif file == "figures.md" and (folder / "figures").is_dir():
            text = "\n\n".join(figures(folder, target)) + "\n"
        elif (folder / file).is_file():
            text = (folder / file).read_text("utf-8")
        else:
            say(f"{target.name}: no {file} in {folder}")
            continue
        (target / file).write_text(text, "utf-8")
        say(f"{target.name}: {file}")
    for path in sorted(folder.glob("*.csv")):
        if path.stat().st_size <= SMALL:
            shutil.copyfile(path, target / path.name)


def provenance(folder: Path) -> str:
    """Describe the run that a page's numbers come from.

    Args:
        folder: The run's folder.

    Returns:
        One line.
    """
    config = json.loads((folder / "config.json").read_text("utf-8"))
    settings, info = config["settings"], config["provenance"]
    facts, versions = info["facts"], settings["versions"]
    source = f"{Path(facts['source']).name} {facts['slice'] or ''}".strip()
    ridges = settings.get("ridges") or [info[name] for name in ("ridge",) if name in info]
    solved = f"λ = {', '.join(f'{ridge:g}' for ridge in ridges)}, " if ridges else ""
    packages = ", ".join(f"{name} {versions[name]}" for name in ("jacobian_lab", "torch", "transformers"))
    commit = f", commit {info['commit']}" if "commit" in info else ""
    command = f" `{portable(info['command'])}`" if "command" in info else ""
    layers = ", ".join(map(str, settings["layers"]))
    return (
        f"*Run: {short_name(info['model'])}, {facts['count']} facts ({source}), layers {layers}, {solved}seed "
        f"{settings['seed']}, {settings['dtype']} on {settings['device']}; {packages}{commit}.*{command}\n"
    )


def portable(command: str) -> str:
    """A command without the folders of the machine that ran it.

    Args:
        command: As the run keeps it.

    Returns:
        Paths from ``runs`` on; of other absolute ones, the last part.
    """
    return re.sub(r"(?<=\s)/\S*?/(runs/\S+|[^/\s]+(?=\s|$))", r"\1", command)


def figures(folder: Path, target: Path) -> Iterator[str]:
    """Copy a run's figures.

    Args:
        folder: The run's folder.
        target: Where they go.

    Yields:
        Markdown for each, with its caption.
    """
    run = Results(folder)
    for path in sorted((folder / "figures").glob("*.png")):
        shutil.copyfile(path, target / path.name)
        title = run.figure_caption(path.stem) if path.stem in run.figures else path.stem
        yield f"![{path.stem}]({path.name})\n\n*{title}*"


def say(text: str) -> None:
    """Print a line.

    Args:
        text: The line.
    """
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
