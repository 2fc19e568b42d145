"""Check of configurations against the choices and ranges in their types."""

import math
import types
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Gt, Le, Lt

from jacobian_lab.errors import InputError


def check(config: Any, prefix: str = "") -> None:
    """Hold what is set against its type: its choices and its range, that floats are finite and lists not empty."""
    hints = get_type_hints(type(config), include_extras=True)
    for item in fields(config):
        value, name = getattr(config, item.name), prefix + item.name
        if is_dataclass(value):
            omitted = hasattr(hints[item.name], "__metadata__")  # options without the field's name
            check(value, prefix if omitted else f"{name}.")
        elif value is not None and value != item.default:
            _check(value, hints[item.name], name)


def _check(value: Any, hint: Any, name: str) -> None:
    """One value against what its field takes."""
    kinds = [kind for kind in _alternatives(hint) if kind is not type(None)]
    if isinstance(value, tuple):
        (kind,) = (kind for kind in kinds if get_origin(kind) is not Literal)
        (inner, _) = get_args(get_args(kind)[0] if get_origin(kind) is Annotated else kind)
        if not value:
            raise InputError(f"expected at least one{_choices(_alternatives(inner))}, got ⟨{name}⟩ without: name one")
        for item in value:
            _check(item, inner, name)
        return
    choices = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    ranges = [kind for kind in kinds if get_origin(kind) is not Literal]
    if value in choices:
        return
    if not ranges or (isinstance(value, str) and choices):
        raise InputError(f"expected{_choices(kinds)}, got ⟨{name}⟩ {value!r}: choose one of them")
    _check_range(value, ranges[0], name)


def _check_range(value: Any, kind: Any, name: str) -> None:
    if isinstance(value, float) and not (math.isfinite(value) and value >= 0):
        raise InputError(f"expected a number that is not negative, got ⟨{name}⟩ {value}: give another")
    for bound in getattr(kind, "__metadata__", ()):
        if isinstance(bound, Gt) and not value > bound.gt:
            least = "above zero" if bound.gt == 0 else f"above {bound.gt}"
            raise InputError(f"expected a number {least}, got ⟨{name}⟩ {value}: give another")
        if isinstance(bound, Lt) and not value < bound.lt:
            raise InputError(f"expected a number below {bound.lt}, got ⟨{name}⟩ {value}: give another")
        if isinstance(bound, Le) and not value <= bound.le:
            raise InputError(f"expected a number of at most {bound.le}, got ⟨{name}⟩ {value}: give another")


def _alternatives(hint: Any) -> list[Any]:
    return list(get_args(hint)) if get_origin(hint) in {Union, types.UnionType} else [hint]


def _choices(kinds: list[Any]) -> str:
    choices = [str(choice) for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    return f" of {', '.join(choices)}" if choices else ""
