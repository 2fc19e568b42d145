"""One kind of progress bar, quiet in log files."""

import sys
from collections.abc import Sequence
from typing import NoReturn

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 10.0
"""How often a bar writes where nobody watches a terminal."""


def bar(total: int, what: str, unit: str, *, done: int = 0, show: bool = True) -> "tqdm[NoReturn]":
    """A progress bar on stderr."""
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
    """Say something on stderr in one line, beside the bars."""
    tqdm.write(f"jacobian-lab: {text}", file=sys.stderr)


def span(layers: Sequence[int]) -> str:
    """Layers in words: 3-7, or 4,6,8."""
    whole = len(layers) > 1 and list(layers) == list(range(layers[0], layers[-1] + 1))
    return f"{layers[0]}-{layers[-1]}" if whole else ",".join(map(str, layers))


def counted(number: int, what: str) -> str:
    """A number with what it counts."""
    return f"{number} {what}{'' if number == 1 else 's'}"
