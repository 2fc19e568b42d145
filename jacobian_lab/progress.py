"""One kind of progress bar, quiet in log files."""

import sys
from typing import NoReturn

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 10.0
"""How often a bar writes where nobody watches a terminal."""


def bar(total: int, what: str, unit: str, *, done: int = 0, show: bool = True) -> "tqdm[NoReturn]":
    """A progress bar on stderr.

    Args:
        total: How many units there are.
        what: What is being done.
        unit: What is counted.
        done: How many of them were done before.
        show: Whether to show anything.

    Returns:
        The bar; a context manager with ``update``.
    """
    interval = 0.1 if sys.stderr.isatty() else SECONDS_BETWEEN_LINES
    return tqdm(
        total=total,
        initial=done,
        desc=what,
        unit=unit,
        disable=not show,
        mininterval=interval,
        dynamic_ncols=True,
    )


def note(text: str) -> None:
    """Say something on stderr in one line, beside the bars.

    Args:
        text: What to say.
    """
    tqdm.write(f"jacobian-lab: {text}", file=sys.stderr)


def counted(number: int, what: str) -> str:
    """A number with what it counts.

    Args:
        number: The number.
        what: One of them.

    Returns:
        Such as ``"1 edit"`` and ``"3 edits"``.
    """
    return f"{number} {what}{'' if number == 1 else 's'}"
