"""Records of JSON and JSON Lines files, each with its place, so that a bad one can be named."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jacobian_lab.errors import InputError


class RecordError(Exception):
    """A fault of one record, without its place.

    Args:
        what: What was expected and what was got.
        todo: What to do about it.
    """

    def __init__(self, what: str, todo: str) -> None:
        super().__init__(f"{what}: {todo}")


@dataclass(frozen=True)
class Record:
    """One record of a file.

    Attributes:
        place: Where it stands: ``"record 4"`` of a list, counted from 0, or ``"line 5"`` of JSON Lines, from 1.
        content: What JSON makes of it; its text where it is not JSON.
        fault: Why it is not JSON; empty if it is.
    """

    place: str
    content: Any
    fault: str = ""


def read_records(path: Path) -> list[Record]:
    """Read a JSON list, JSON Lines, or one JSON object written over several lines."""
    records = _parse(_read_text(path), path)
    if not records:
        raise InputError(f"expected at least one fact, got none in {path}: give a file with records")
    return records


def parse_slice(text: str | None, length: int) -> tuple[int, int]:
    """Read ``"A:B"`` as the half-open range [A, B)."""
    if text is None:
        return 0, length
    first, colon, last = text.partition(":")
    try:
        start, stop = int(first or 0), int(last or length)
    except ValueError:
        start, stop, colon = 0, 0, ""
    if not colon:
        raise InputError(f"expected a slice A:B of two whole numbers, got {text!r}: try 0:32")
    if not 0 <= start < stop <= length:
        raise InputError(
            f"expected a slice A:B with 0 <= A < B <= {length} (the number of facts), "
            f"got {text!r}: choose one inside the file"
        )
    return start, stop


def _read_text(path: Path) -> str:
    if not os.path.isfile(path):  # noqa: PTH113  Path.is_file raises where the path cannot be looked at
        raise InputError(
            f"expected 'builtin' or a JSON file of facts, got {str(path)!r}, which is "
            f"{'a folder' if path.is_dir() else 'not there'}: check the path"
        )
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"expected facts in UTF-8, got byte {error.object[error.start]:#04x} at {error.start} in {path}: "
            "save the file as UTF-8"
        ) from error
    except OSError as error:
        raise InputError(
            f"expected a readable file of facts, got {path} ({error.strerror}): check its rights"
        ) from error


def _parse(text: str, path: Path) -> list[Record]:
    if not text.lstrip().startswith("["):
        lines = [_line(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        if not any(line.fault for line in lines):
            return lines
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError) as error:
        if text.lstrip().startswith("[") or not any(isinstance(line.content, dict) for line in lines):
            raise InputError(
                f"expected a JSON list or JSON Lines of facts, got {path}, which is neither ({error}): mend the file"
            ) from error
        return lines
    listed = whole if isinstance(whole, list) else [whole]
    return [Record(f"record {index}", content) for index, content in enumerate(listed)]


def _line(number: int, text: str) -> Record:
    place = f"line {number}"
    try:
        return Record(place, json.loads(text))
    except (ValueError, RecursionError) as error:
        return Record(place, text, str(error))
