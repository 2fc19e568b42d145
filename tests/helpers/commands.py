"""What tests of commands and scripts share."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def options(arguments: dict[str, object]) -> list[str]:
    """The same as a command line has them."""
    return [part for name, value in arguments.items() for part in ("--" + name.replace("_", "-"), str(value))]
