"""What tests of commands and scripts share."""

import os
from dataclasses import is_dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}

UNPREFIXED = {"rules", "training"}
"""Settings whose fields are options without their name."""


def options(arguments: dict[str, object], prefix: str = "") -> list[str]:
    """The same as a command line has them; what is absent is left out."""
    found: list[str] = []
    for name, value in arguments.items():
        option = "--" + (prefix + name).replace("_", "-")
        if is_dataclass(value):
            found += options(vars(value), "" if name in UNPREFIXED else f"{name}.")
        elif isinstance(value, bool):
            found.append(option if value else option.replace("--", "--no-", 1))
        elif value is not None:
            found += [option, str(value)]
    return found


def holding(config, **values):
    """A configuration with fields that its types would not take."""
    for name, value in values.items():
        *path, last = name.split("__")
        inner = config
        for step in path:
            inner = getattr(inner, step)
        object.__setattr__(inner, last, value)
    return config
