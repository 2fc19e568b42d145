"""Options of jobs from files, and under their old names."""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import tyro
import yaml

from jacobian_lab.cli.catalog import PROGRAM
from jacobian_lab.errors import InputError
from jacobian_lab.jobs.config import RENAMED
from jacobian_lab.jobs.options import Option, options_in
from jacobian_lab.store.arrays import CONFIG
from jacobian_lab.training.settings import RENAMED as RENAMED_TRAINING

_FIELDS = RENAMED | {f"{m}.{old}": f"{m}.{new}" for m, names in RENAMED_TRAINING.items() for old, new in names.items()}
_PAIRS = {old.replace("_", "-"): new.replace("_", "-") for old, new in _FIELDS.items()}
OLD = {f"--{prefix}{old}": f"--{prefix}{new}" for old, new in _PAIRS.items() for prefix in ("", "no-")}
"""Old names of options, but for those of plans, and their new ones."""
PLANS = {"--json": "--plan-json", "--card": "--plan-card"}
TRAINING = tuple(f"--{prefix}{method}." for method in RENAMED_TRAINING for prefix in ("", "no-"))


def modern(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Replace old names of options; also say by what."""
    renamed, lines = [], []
    for word in words:
        name, *value = word.split("=", 1)
        new = (OLD | PLANS).get(name, name)
        if new != name and not name.startswith(TRAINING):
            lines.append(f"{name} is now called {new}")
        renamed.append("=".join([new, *value]))
    if any(word.startswith(TRAINING) for word in words):
        lines.append("--wise.… and --rledit.… are now given in a file: --training FILE")
    return renamed, lines


def words_of(path: Path, command: type) -> list[str]:
    """Read a file of options as the command line would have them."""
    names = _names(command)
    words: list[str] = []
    for name, value in _flat(_content(path)):
        option = names.get(name)
        if option is None:
            raise InputError(
                f"expected options of this command in {path}, got {name!r}: leave it out, or see {PROGRAM} COMMAND "
                "--help-all"
            )
        words += _checked(command, option, value, path)
    return words


def _names(command: type) -> dict[str, Option]:
    """Options of a command by every name that a file may have for them."""
    options = list(options_in(command))
    names = {o.path.removeprefix("config."): o for o in options} | {o.name: o for o in options}
    return names | {old: names[new] for old, new in RENAMED.items() if new in names}


def _content(path: Path) -> Mapping[str, Any]:
    file = path / CONFIG if path.is_dir() else path
    try:
        text = file.read_text(encoding="utf-8")
        content = json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:120].rstrip()
        raise InputError(f"expected YAML or JSON in ⟨config⟩ {file}, got {reason}: give another") from error
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise InputError(f"expected options with values in ⟨config⟩ {file}, got {content!r:.60}: give a mapping")
    if not {"settings", "provenance"} <= content.keys():
        return content
    origin = content["provenance"]
    if "options" not in origin:
        command = f" ({origin['command']})" if "command" in origin else ""
        raise InputError(
            f"expected a run that keeps its options, got one of an older version in {file}{command}: give the options"
        )
    return dict(origin["options"])


def _flat(content: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        name = prefix + str(key).removeprefix("--").replace("-", "_")
        if isinstance(value, dict):
            yield from _flat(value, f"{name}.")
        else:
            yield name, value


def _checked(command: type, option: Option, value: Any, path: Path) -> list[str]:
    """Words of one option, which the command takes."""
    name = option.name.replace("_", "-")
    if value is None:
        return []
    if isinstance(value, bool):
        words = [f"--{name}" if value else f"--no-{name}"]
    elif isinstance(value, list) and not option.repeated:
        words = [f"--{name}", *map(str, value)]
    else:
        words = [f"--{name}={item}" for item in (value if isinstance(value, list) else [value])]
    try:
        with redirect_stderr(io.StringIO()):
            tyro.cli(command, args=words)
    except SystemExit:
        raise InputError(
            f"expected another value of --{name} in {path}, got {value!r:.60}: see {PROGRAM} COMMAND --help-all"
        ) from None
    return words
