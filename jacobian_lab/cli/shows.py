"""Commands that show a run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from jacobian_lab.cli import say
from jacobian_lab.cli.parsing import Runnable
from jacobian_lab.progress import note


@dataclass(frozen=True)
class Show(Runnable):
    """Show a run.

    Attributes:
        folder: Folder of the run.
        names: Tables and figures; by default what the run holds is listed.
    """

    folder: Annotated[Positional[Path], arg(metavar="RUN")]
    names: Annotated[Positional[tuple[str, ...]], arg(metavar="[TABLE|FIGURE …]")] = ()

    def run(self) -> None:
        """Show it."""
        from jacobian_lab.report.showing import show

        say(show(self.folder, self.names))


@dataclass(frozen=True)
class Figure(Runnable):
    """Draw a figure of a run.

    Attributes:
        folder: Folder of the run.
        name: The figure.
        out: File to write; the run's folder of figures by default.
        fact: Id of a fact to draw by itself, where a figure can be (locate).
    """

    folder: Annotated[Positional[Path], arg(metavar="RUN")]
    name: Annotated[Positional[str], arg(metavar="NAME")]
    out: Path | None = None
    fact: str | None = None

    def run(self) -> None:
        """Draw it."""
        from jacobian_lab.report.showing import draw

        say(str(draw(self.folder, self.name, self.out, self.fact)))


@dataclass(frozen=True)
class Report(Runnable):
    """Write a run as a page.

    Attributes:
        folder: Folder of the run.
        against: Folder of a run to stand beside it.
        out: HTML file to write; report.html in the run's folder by default.
        facts: File of the facts, if it is not where the run had it.
    """

    folder: Annotated[Positional[Path], arg(metavar="RUN")]
    against: Annotated[Positional[Path | None], arg(metavar="[RUN]")] = None
    out: Path | None = None
    facts: str | None = None

    def run(self) -> None:
        """Write it."""
        from jacobian_lab.report.page.writing import write_report

        path, notes = write_report(self.folder, self.against, self.out, self.facts)
        for line in notes:
            note(line)
        say(str(path))
