"""Where computed things are kept, under keys made of their content."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import platformdirs

from jacobian_lab.errors import InputError


def cache_folder(kind: str) -> Path:
    """Folder of one kind of cached thing, made if it is absent.

    Args:
        kind: Name of the kind, such as ``"models"``.

    Returns:
        ``$JACOBIAN_LAB_CACHE/kind``, or the user's cache folder of this platform.

    Raises:
        InputError: If the folder cannot be made.
    """
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
    """Hash of anything that JSON can hold: the same settings always give the same key.

    Args:
        settings: Nested dictionaries, lists, strings and numbers.

    Returns:
        24 hexadecimal digits of SHA-256 over the canonical JSON.
    """
    text = json.dumps(settings, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content.

    Args:
        path: The file.

    Returns:
        64 hexadecimal digits.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """Give a temporary path beside `target` that takes its name only when all went well.

    A reader, or a second process with the same key, sees the finished thing or nothing.

    Args:
        target: The file or folder to be made.

    Yields:
        A path that does not exist yet, to be written as a file or made as a folder.

    Raises:
        OSError: If the finished thing cannot be given its name.
    """
    folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=".partial-"))
    try:
        partial = folder / target.name
        yield partial
        try:
            partial.replace(target)
        except OSError:
            if not target.exists():  # another process was first: its content is the same
                raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
