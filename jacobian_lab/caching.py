"""Folders and files of computed things: keys made of their content, and writing whole or not at all."""

import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import platformdirs

from jacobian_lab.errors import InputError

PARTIAL = ".partial-jacobian_lab-"
"""Beginning of the name of a folder in which something is being written."""

_NAME = re.compile(rf"{re.escape(PARTIAL)}(?:.+-)?\d+-[a-z0-9_]{{8}}", re.DOTALL)
"""The whole of such a name: a process, behind its host in earlier versions, and what `tempfile` adds."""

STALE = 24 * 3600
"""Seconds after which such a folder is taken for left behind."""


def cache_folder(kind: str) -> Path:
    """Folder of one kind of cached thing, made if it is absent."""
    root = os.environ.get("JACOBIAN_LAB_CACHE") or platformdirs.user_cache_dir("jacobian_lab")
    folder = Path(root) / kind
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"expected a cache folder that can be written, got {folder} ({error.strerror}): "
            "set JACOBIAN_LAB_CACHE to another folder"
        ) from error
    return folder


def content_key(settings: Any) -> str:
    """Hash of anything that JSON can hold: the same settings always give the same key."""
    text = json.dumps(settings, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """Give a temporary path beside `target` that takes its name only when all went well.

    A reader, or a second process with the same key, sees the finished thing or nothing. What killed processes have
    left in the same folder a day ago or earlier is removed.
    """
    _sweep(target.parent)
    folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=f"{PARTIAL}{os.getpid()}-"))
    try:
        partial = folder / target.name
        yield partial
        try:
            partial.replace(target)
        except OSError:
            if not target.is_dir():  # another process was first with a folder: its content is the same
                raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file so that it is there whole or not at all."""
    try:
        with written_whole(path) as partial:
            partial.write_text(text, "utf-8")
    except OSError as error:
        raise InputError(
            f"expected a file that can be written, got {path} ({error.strerror or error}): "
            "change the folder's rights or make room, and give the command again"
        ) from error


def is_partial(name: str) -> bool:
    """Tell a name that `written_whole` gives to a folder in which something is being written."""
    return _NAME.fullmatch(name) is not None


def _sweep(folder: Path) -> None:
    """Remove what killed processes have left half written, a day after the last of it was."""
    for partial in (path for path in folder.glob(f"{PARTIAL}*") if is_partial(path.name)):
        with suppress(OSError):  # another process was first
            if time.time() - max(path.stat().st_mtime for path in (partial, *partial.rglob("*"))) > STALE:
                shutil.rmtree(partial, ignore_errors=True)
