"""Training settings read from a file, every value checked against the type and range of its field."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import yaml
from annotated_types import Gt

from jacobian_lab.errors import InputError
from jacobian_lab.training.settings import RENAMED, TrainingConfig

T = TypeVar("T")

NOT_OURS: Mapping[str, str] = {
    "wise.act_margin": "its three numbers are wise.alpha, wise.beta and wise.gamma, with wise.absolute true",
    "wise.inner_params": "give wise.block and wise.entrance",
    "wise.merge_freq": "give wise.merged, shards in a merge",
    "wise.save_freq": "give wise.shards, the number of facts over save_freq",
    "rledit.edit_modules": "give rledit.blocks and rledit.projections",
    **{
        f"{method}.{old}": f"it is {method}.{new} now"
        for method, names in RENAMED.items()
        for old, new in names.items()
    },
}
"""Settings that go by another name here, and what to give instead."""

_READERS: Mapping[str, Callable[[str], Any]] = {".json": json.loads, ".yaml": yaml.safe_load, ".yml": yaml.safe_load}


def read_training(path: Path | str) -> TrainingConfig:
    """Read the settings of the methods that train, ``{"wise": {"edit_lr": 0.1}, "rledit": {}}``, from JSON or YAML."""
    path = Path(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(
            f"expected a file of training settings that ends in {', '.join(_READERS)}, got {path}: rename it"
        )
    try:
        content = reader(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"expected a readable file of training settings, got {path} ({error.strerror})") from error
    except (ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"expected JSON or YAML in {path}, got another text ({reason:.120}): correct it") from error
    try:
        return read_fields(TrainingConfig, content)
    except InputError as error:
        what, _, todo = str(error).rpartition(": ")
        raise InputError(f"{what} in {path}: {todo}") from error


def read_fields(kind: type[T], content: Any, prefix: str = "") -> T:
    """Make a dataclass of a mapping from its fields' names to values; fields that are not there keep their defaults."""
    if not isinstance(content, dict):
        raise InputError(f"expected names with values, got {content!r:.60} as {prefix[:-1] or 'all'}: give a mapping")
    every: Any = kind
    hints = get_type_hints(kind, include_extras=True)
    names = [field.name for field in fields(every)]
    for name in content:
        if name not in names:
            todo = NOT_OURS.get(f"{prefix}{name}", "leave it out")
            raise InputError(f"expected one of {', '.join(names)}, got {prefix}{name}: {todo}")
    return kind(**{name: _read(hints[name], value, f"{prefix}{name}") for name, value in content.items()})


def _read(hint: Any, value: Any, name: str) -> Any:
    """One value, as the type of its field; numbers that YAML takes for text, such as 1e-5, become numbers."""
    if isinstance(hint, type) and is_dataclass(hint):
        return read_fields(hint, value, f"{name}.")
    if NoneType in get_args(hint):
        (hint,) = (kind for kind in get_args(hint) if kind is not NoneType)
        if value is None:
            return None
    if get_origin(hint) is tuple and isinstance(value, list) and value:
        return tuple(_read(get_args(hint)[0], item, name) for item in value)
    kind, *limits = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    number = _number(value) if kind is float else value
    if get_origin(kind) is Literal:
        fits = value in get_args(kind)
    else:
        fits = type(number) is kind and all(_within(number, limit) for limit in limits)
    if not fits:
        raise InputError(f"expected {_described(kind, limits)}, got {name} {value!r:.60}: give another")
    return number


def _number(value: Any) -> Any:
    """A finite float, where the value can be one and is none of true and false."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return value
    return number if math.isfinite(number) and not isinstance(value, bool) else value


def _within(number: Any, limit: Any) -> bool:
    return number > limit.gt if isinstance(limit, Gt) else number <= limit.le


def _described(kind: Any, limits: Sequence[Any]) -> str:
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(get_args(kind))
    if get_origin(kind) is tuple:
        return "a list of whole numbers"
    bounds = [f"above {limit.gt}" if isinstance(limit, Gt) else f"of at most {limit.le}" for limit in limits]
    return " ".join([{bool: "true or false", int: "a whole number", float: "a finite number"}[kind], *bounds])
