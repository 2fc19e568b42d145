"""What tests of commands and scripts share."""

import os
from dataclasses import is_dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def options(arguments: dict[str, object]) -> list[str]:
    """The same as a command line has them."""
    flat = {
        f"{name}.{inner}" if is_dataclass(value) else name: given
        for name, value in arguments.items()
        for inner, given in (vars(value) if is_dataclass(value) else {"": value}).items()
        if given is not None
    }
    return [part for name, value in flat.items() for part in ("--" + name.replace("_", "-"), str(value))]
