"""Options of a configuration by name, as the command line, a file of options and a run's ``config.json`` have them."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

from tyro.conf import UseAppendAction

ELSEWHERE = {"out"}
"""Options that say where a run is, not what it is."""


class Option(NamedTuple):
    """An option of a dataclass.

    Attributes:
        path: Path through the fields, as ``rules.rect_kept``.
        name: Name, as ``rect_kept``.
        repeated: A list is given value by value.
    """

    path: str
    name: str
    repeated: bool


def options_in(kind: type, path: str = "", prefix: str = "") -> Iterator[Option]:
    """Options of a dataclass, those of the dataclasses that it holds among them."""
    hints = get_type_hints(kind, include_extras=True)
    every: Any = kind
    for item in fields(every):
        hint = hints[item.name]
        inner, *marks = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        if is_dataclass(inner) and isinstance(inner, type):
            yield from options_in(inner, f"{path}{item.name}.", prefix if marks else f"{prefix}{item.name}.")
        else:
            names = [mark.name for mark in marks if getattr(mark, "name", None)]
            name = prefix + (names[0] if names else item.name)
            yield Option(path + item.name, name, UseAppendAction in marks)


def options_of(config: Any) -> dict[str, Any]:
    """Options by which a configuration differs from the default one, as JSON can hold them."""
    default = type(config)()
    options = [option for option in options_in(type(config)) if option.name not in ELSEWHERE]
    values = {option.name: (_value(config, option.path), _value(default, option.path)) for option in options}
    return {name: _plain(value) for name, (value, usual) in values.items() if value != usual}


def _value(config: Any, path: str) -> Any:
    for name in path.split("."):
        config = getattr(config, name)
    return config


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
