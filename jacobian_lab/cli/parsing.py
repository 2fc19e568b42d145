"""Options of a command from its dataclass, with a short help and a whole one."""

from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, make_dataclass
from typing import Annotated, Any, get_type_hints

import tyro
from tyro.conf import Suppress

HELP, HELP_ALL = {"-h", "--help"}, "--help-all"
RARE = "rare"
"""Key in a field's metadata: its option stands in the whole help alone."""
HIDDEN: Any = Suppress


@dataclass(frozen=True)
class Runnable:
    """A command, whose fields are its options."""

    @classmethod
    def modern(cls, words: Sequence[str]) -> tuple[list[str], list[str]]:
        """Replace old names of options; also say by what."""
        return list(words), []

    def completed(self, read: Callable[[Sequence[str]], Any]) -> Any:
        """Take what is given in a file, if anything is."""
        return self

    def run(self) -> None:
        """Do it."""
        raise NotImplementedError


def parse(command: Any, words: Sequence[str], program: str, description: str) -> Any:
    """Read options into a command, given as its class or with its defaults."""
    if HELP_ALL in words:
        words = ["--help"]
    elif HELP & set(words):
        short = shortened(command)
        if short is not command:
            command, description = short, f"{description}\n\n{HELP_ALL} shows the options that few need, too."
    kind, default = (command, {}) if isinstance(command, type) else (type(command), {"default": command})

    def read(first: Sequence[str]) -> Any:
        return tyro.cli(kind, args=[*first, *words], prog=program, description=description, **default)

    return read(()).completed(read)


def required(kind: type) -> bool:
    """Say whether a dataclass has a field without a default."""
    every: Any = kind
    return any(item.default is MISSING and item.default_factory is MISSING for item in fields(every))


def shortened(command: Any) -> Any:
    """Hide rare options of a dataclass, or of one with its values; the same if it has none."""
    values = command() if isinstance(command, type) and not required(command) else command
    kind = command if isinstance(command, type) else type(command)
    hints, hidden, inner = get_type_hints(kind, include_extras=True), {}, {}
    for field_of in fields(kind):
        name, value = field_of.name, getattr(values, field_of.name, None)
        if RARE in field_of.metadata:
            hidden[name] = HIDDEN[hints[name]]
        elif is_dataclass(value) and (short := shortened(value)) is not value:
            inner[name] = short
            marks = getattr(hints[name], "__metadata__", ())
            hidden[name] = Annotated[(type(short), *marks)] if marks else type(short)
    if not hidden:
        return command
    changed = [(name, hint, field(default=inner.get(name, getattr(values, name)))) for name, hint in hidden.items()]
    new = make_dataclass(kind.__name__, changed, bases=(kind,), frozen=True)
    return new if command is kind else new(**vars(values) | inner)
