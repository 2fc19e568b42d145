"""How long work takes."""

import time
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


def timed(work: Callable[[], Result]) -> tuple[float, Result]:
    """Seconds that some work took, and what it returned.

    Args:
        work: The work.

    Returns:
        Both.
    """
    begin = time.perf_counter()
    result = work()
    return time.perf_counter() - begin, result
