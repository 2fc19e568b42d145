"""The interface of executors, and the one that works in this process."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

from jacobian_lab.crew.settings import UNSHARED, Load
from jacobian_lab.memory import Tell, halving
from jacobian_lab.model.language_model import Layers

Result = TypeVar("Result")
Piece = Sequence[int]
"""Indices of the facts that are worked on together."""

SHOWN = 3
"""How many facts of a piece are named."""


def untold(_failed: int, _next: int) -> None:
    """Do nothing: a batch of one item cannot be split, so running out of memory on it is an error."""


def called(piece: Piece, labels: Sequence[Any] | None = None) -> str:
    """Facts in words."""
    names = [f"number {item}" if labels is None else repr(labels[item]) for item in piece[:SHOWN]]
    more = f" and {len(piece) - SHOWN} more" if len(piece) > SHOWN else ""
    return f"fact{'s' if len(piece) > 1 else ''} {', '.join(names)}{more}"


@runtime_checkable
class Crew(Protocol):
    """An executor of work that is divided by facts.

    Attributes:
        here: Whether this process does, so that work can tell how it goes.
        load: As `CrewSettings.load` has it.
        free: Bytes that were free where this process's model is before others held it too; none where nobody does.
    """

    here: bool
    load: Load
    free: int | None

    def of(self, layers: Layers) -> "Crew":
        """The crew of work in which other layers are edited."""

    def release(self) -> None:
        """Let whoever was hired go; they are hired anew when there is work again."""

    def map(
        self,
        pieces: Sequence[Piece],
        work: Callable[[Piece], Result],
        tell: Tell = untold,
        named: Callable[[Piece], str] = called,
    ) -> Iterator[tuple[Piece, Result]]:
        """Do some work on every piece, with the model as it is now."""


@dataclass(eq=False)
class Alone:
    """This process does the work.

    Attributes:
        load: As `CrewSettings.load` has it, where it is only planned who does.
        here: Whether this process does.
        free: Nobody else holds the model.
    """

    load: Load = UNSHARED
    here: bool = True
    free: int | None = None

    def of(self, layers: Layers) -> Crew:
        """The same: nothing is sent to this process."""
        return self

    def release(self) -> None:
        """Do nothing: there is nobody to let go."""

    def map(
        self,
        pieces: Sequence[Piece],
        work: Callable[[Piece], Result],
        tell: Tell = untold,
        named: Callable[[Piece], str] = called,
    ) -> Iterator[tuple[Piece, Result]]:
        """Work on the pieces in their order."""
        return halving(pieces, work, tell)


ALONE: Crew = Alone()
