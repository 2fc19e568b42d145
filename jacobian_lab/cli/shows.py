"""Commands that show a run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from jacobian_lab.cli import say
from jacobian_lab.cli.parsing import Runnable


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
