"""Timing of work."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


def timed(work: Callable[[], Result]) -> tuple[float, Result]:
    """Seconds that some work took, and what it returned.

    Args:
        work: The work.

    Returns:
        Both.
    """
    _wait()
    begin = time.perf_counter()
    result = work()
    _wait()
    return time.perf_counter() - begin, result


def medians(works: Sequence[Callable[[], Any]], repeats: int) -> list[float]:
    """Median times of some works, done in turns.

    Args:
        works: The works.
        repeats: How often to do each.

    Returns:
        Seconds of each.
    """
    turns = [[timed(work)[0] for work in works] for _ in range(repeats)]
    return [statistics.median(seconds) for seconds in zip(*turns, strict=True)]


def _wait() -> None:
    """Until the card is done with what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
