"""Options of a command from its dataclass, with a short help and a whole one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, make_dataclass
from typing import Annotated, Any, get_type_hints

import tyro
from tyro.conf import Suppress

HELP, HELP_ALL = {"-h", "--help"}, "--help-all"
RARE = "rare"
"""Key in a field's metadata: its option stands in the whole help alone."""


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


def shortened(command: Any) -> Any:
    """Hide rare options of a dataclass, or of one with its values; the same if it has none."""
    kind = command if isinstance(command, type) else type(command)
    hints, changed = get_type_hints(kind, include_extras=True), {}
    for each in fields(kind):
        default = getattr(command, each.name, None)
        if RARE in each.metadata:
            changed[each.name] = Suppress[hints[each.name]], each
        elif is_dataclass(default) and (short := shortened(default)) is not default:
            marks = getattr(hints[each.name], "__metadata__", ())
            changed[each.name] = Annotated[(type(short), *marks)] if marks else type(short), field(default=short)
    if not changed:
        return command
    new = make_dataclass(
        kind.__name__,
        [
            (name, hint, field(default=value.default, default_factory=value.default_factory))
            for name, (hint, value) in changed.items()
        ],
        bases=(kind,),
        frozen=True,
    )
    return (
        new
        if command is kind
        else new(**vars(command) | {n: v.default for n, (_, v) in changed.items() if is_dataclass(v.default)})
    )
