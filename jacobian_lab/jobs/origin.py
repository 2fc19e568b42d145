"""Origin of a run: the command that made it, and the commit of the code."""

import shlex
import subprocess
import sys
from pathlib import Path

PROGRAM = "jacobian-lab"
SECONDS = 10
"""Longest wait for git."""


def origin() -> dict[str, str]:
    """Command and commit, as far as they are known."""
    program, *arguments = sys.argv
    path = Path(program)
    source = {}
    if path.stem == PROGRAM:
        source["command"] = shlex.join([PROGRAM, *arguments])
    elif path.suffix == ".py" and path.is_file():
        source["command"] = shlex.join(["python", f"{path.resolve().parent.name}/{path.name}", *arguments])
    if (commit := _commit()) is not None:
        source["commit"] = commit
    return source


def _commit() -> str | None:
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / ".git").exists():
        return None
    describe = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        description = subprocess.run(describe, capture_output=True, text=True, check=True, timeout=SECONDS)
    except (OSError, subprocess.SubprocessError):
        return None
    return description.stdout.strip()
