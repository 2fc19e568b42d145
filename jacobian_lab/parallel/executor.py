"""The interface of executors, and the one that works in this process."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

from jacobian_lab.memory import Tell, halving
from jacobian_lab.model.language_model import Layers
from jacobian_lab.parallel.settings import UNSHARED, Load

Result = TypeVar("Result")
Batch = Sequence[int]
"""Indices of the facts that are worked on together."""

SHOWN = 3
"""How many facts of a piece are named."""


def no_notice(_failed: int, _next: int) -> None:
    """Do nothing: a batch of one item cannot be split, so running out of memory on it is an error."""


def called(piece: Batch, labels: Sequence[Any] | None = None) -> str:
    """Facts in words."""
    names = [f"number {item}" if labels is None else repr(labels[item]) for item in piece[:SHOWN]]
    more = f" and {len(piece) - SHOWN} more" if len(piece) > SHOWN else ""
    return f"fact{'s' if len(piece) > 1 else ''} {', '.join(names)}{more}"


@runtime_checkable
class Executor(Protocol):
    """An executor of work that is divided by facts.

    Attributes:
        here: Whether this process does, so that work can tell how it goes.
        load: As `ExecutorConfig.load` has it.
        free: Bytes that were free where this process's model is before others held it too; none where nobody does.
    """

    here: bool
    load: Load
    free: int | None

    def of(self, layers: Layers) -> "Executor":
        """The executor of work in which other layers are edited."""

    def release(self) -> None:
        """Let whoever was hired go; they are hired anew when there is work again."""

    def map(
        self,
        pieces: Sequence[Batch],
        work: Callable[[Batch], Result],
        tell: Tell = no_notice,
        named: Callable[[Batch], str] = called,
    ) -> Iterator[tuple[Batch, Result]]:
        """Do some work on every piece, with the model as it is now."""


@dataclass(eq=False)
class SerialExecutor:
    """This process does the work.

    Attributes:
        load: As `ExecutorConfig.load` has it, where it is only planned who does.
        here: Whether this process does.
        free: Nobody else holds the model.
    """

    load: Load = UNSHARED
    here: bool = True
    free: int | None = None

    def of(self, layers: Layers) -> Executor:
        """The same: nothing is sent to this process."""
        return self

    def release(self) -> None:
        """Do nothing: there is nobody to let go."""

    def map(
        self,
        pieces: Sequence[Batch],
        work: Callable[[Batch], Result],
        tell: Tell = no_notice,
        named: Callable[[Batch], str] = called,
    ) -> Iterator[tuple[Batch, Result]]:
        """Work on the pieces in their order."""
        return halving(pieces, work, tell)


SERIAL: Executor = SerialExecutor()
