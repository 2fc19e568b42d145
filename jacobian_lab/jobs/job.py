"""What every job is: a folder, and parts of a run, each computed where it is lacking and sealed when it is whole."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jacobian_lab.caching import content_key
from jacobian_lab.progress import bar
from jacobian_lab.store.finished import Finished
from jacobian_lab.store.run import GROWING, Run, check_folder

Labels = Mapping[str, Any]
"""For some dimensions of an array, a label or a list of labels."""


@dataclass(frozen=True)
class Part:
    """A part of a run.

    Attributes:
        wanted: The marks that it sets, and for which labels.
        compute: Computes what the run lacks of it.
        also: Whether a folder holds what belongs to the part beside its arrays.
    """

    wanted: Sequence[tuple[str, Labels]]
    compute: Callable[[Run], Any]
    also: Callable[[Path], bool] = lambda _: True

    def finished(self, folder: Path, done: Finished) -> bool:
        """Whether a folder has all of it.

        Args:
            folder: The run's folder; may be new.
            done: What is finished there.

        Returns:
            Whether there is nothing left to compute.
        """
        return all(done.all(mark, **labels) for mark, labels in self.wanted) and self.also(folder)


@dataclass(frozen=True)
class Job:
    """What is to be in a run.

    Attributes:
        kind: The kind of run.
        out: Its folder; by default one whose name follows from the settings.
        settings: Everything that decides a number, as JSON can hold it.
        provenance: Says what else is worth knowing, when the run is made.
        coordinates: Labels of each dimension.
        parts: The parts, each after those that it needs.
        before: Given the folder, work without which no part can be computed; it fails before the folder is claimed.
    """

    kind: str
    out: Path | None
    settings: Labels
    provenance: Callable[[], Labels]
    coordinates: Mapping[str, Sequence[Any]]
    parts: Sequence[Part]
    before: Callable[[Path], Any] = lambda _: None

    def carry_out(self) -> Path:
        """Compute what the run lacks; an interrupted one goes on, a finished one computes nothing.

        Returns:
            The run's folder.

        Raises:
            InputError: If the folder cannot be used.
        """
        deciding = {name: each for name, each in self.settings.items() if name != GROWING}
        folder = self.out or Path("runs") / content_key([self.kind, deciding])[:12]
        check_folder(folder, self.kind, self.settings)
        done = Finished.of(folder)
        left = [part for part in self.parts if not part.finished(folder, done)]
        if left:
            self.before(folder)
            with Run(folder, self.kind, self.settings, self.provenance(), self.coordinates) as run:
                for part in left:
                    part.compute(run)
        return folder


def cell_by_cell(
    run: Run,
    mark: str,
    cells: Sequence[Labels],
    compute: Callable[..., Iterable[tuple[str, Any, Labels]]],
    what: str,
    unit: str,
    progress: bool,
) -> None:
    """Compute and seal those cells of a part that a run lacks.

    Args:
        run: The run.
        mark: The part's mark.
        cells: The labels of each cell.
        compute: Given a cell's labels by name: variables with their values and further labels.
        what: What is being done, for the progress bar.
        unit: What is counted.
        progress: Whether to show the bar.
    """
    left = [cell for cell in cells if not run.done(mark, **cell).all()]
    with bar(len(left), what, unit, show=progress) as shown:
        for cell in left:
            for variable, values, further in compute(**cell):
                run.write(variable, values, **cell, **further)
            run.seal(mark, **cell)
            shown.update()
