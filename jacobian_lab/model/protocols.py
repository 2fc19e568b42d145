"""Protocols: layers, λ and descents for a model, from the literature or from a search. Neither torch nor weights.

A search writes a file for each method. The shelf is a folder of such files in this package, one folder a model.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jacobian_lab.caching import write_text
from jacobian_lab.errors import InputError, first_line
from jacobian_lab.model.families import KNOWN, Defaults
from jacobian_lab.progress import note

FORMAT = "jacobian_lab protocol 1"
SHELF = Path(__file__).parent / "measured"
"""Settings that have been measured: a folder for each model, a file for each method."""


@dataclass(frozen=True)
class Protocol:
    """Settings that a search has chosen for a model and a method.

    Attributes:
        model: Name of the model.
        fingerprint: Its fingerprint.
        method: The method.
        layers: Decisive layers, ascending.
        ridge: λ.
        anchor_lr: Adam's learning rate.
        anchor_steps: Passes of a descent.
        criterion: The rule of the choice, in words.
        because: The reasons of the choice, in words.
        run: Name of the search's folder.
        facts: Digest of the facts that it was made with.
        version: Version of this package.
    """

    model: str
    fingerprint: str
    method: str
    layers: tuple[int, ...]
    ridge: float
    anchor_lr: float
    anchor_steps: int
    criterion: str
    because: str
    run: str
    facts: str
    version: str

    @property
    def defaults(self) -> Defaults:
        """The settings alone."""
        return Defaults(self.layers, self.ridge, self.anchor_lr, self.anchor_steps)

    def write(self, path: Path) -> None:
        """Write the file."""
        write_text(path, json.dumps({"format": FORMAT} | asdict(self), indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def read(cls, path: Path) -> "Protocol":
        """Read and check a file.

        Raises:
            InputError: If it is no such file.
        """
        try:
            content = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(
                f"expected a protocol in ⟨protocol⟩ {path}, got {first_line(error)}: give a file that jacobian-lab "
                "tune wrote"
            ) from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise InputError(f"expected the format {FORMAT!r} in ⟨protocol⟩ {path}, got another: give another file")
        for name in (*cls.__annotations__, *(key for key in content if key != "format")):
            if name not in content or name not in cls.__annotations__:
                names, fault = ", ".join(cls.__annotations__), "an unknown" if name in content else "no"
                raise InputError(f"expected {names} in ⟨protocol⟩ {path}, got {fault} {name!r:.60}: correct the file")
            if not _CHECKS.get(name, _is_text)(content[name]):
                raise InputError(
                    f"expected {_EXPECTED.get(name, 'a text')} as {name} in ⟨protocol⟩ {path}, got "
                    f"{content[name]!r:.60}: correct the file"
                )
        values: dict[str, Any] = {name: content[name] for name in cls.__annotations__}
        return cls(**values | {"layers": tuple(values["layers"])})


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_integer(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")


def _are_layers(value: Any) -> bool:
    numbers = isinstance(value, list) and all(_is_integer(layer, 0) for layer in value)
    return numbers and bool(value) and value == sorted(set(value))


_CHECKS: Mapping[str, Any] = {
    "layers": _are_layers,
    "ridge": _is_positive,
    "anchor_lr": _is_positive,
    "anchor_steps": lambda value: _is_integer(value, 2),
}
_EXPECTED = {
    "layers": "ascending layers",
    "ridge": "a number above zero",
    "anchor_lr": "a number above zero",
    "anchor_steps": "a whole number above 1",
}


def file_name(method: str) -> str:
    """Name the file of a method's protocol."""
    return f"protocol-{method}.json"


def shelf() -> dict[str, Path]:
    """List the measured settings: files by ``model/method``."""
    paths = sorted(SHELF.glob("*/protocol-*.json"))
    return {f"{path.parent.name}/{path.stem.removeprefix('protocol-')}": path for path in paths}


def literature(protocol: str | None) -> str:
    """Name the known model that a protocol is of; empty where it is a file, another model's, or none."""
    name = (protocol or "").lower().partition("/")[0]
    return name if name in KNOWN else ""


def measured_protocol(protocol: str | None) -> Protocol | None:
    """Read what a search has chosen; none where a protocol is the literature's.

    Raises:
        InputError: If there is no such protocol, or a file is none.
    """
    if protocol is None or protocol.lower() in KNOWN:
        return None
    path = shelf().get(protocol.lower(), Path(protocol))
    if path.suffix != ".json" and not path.is_file():
        names = ", ".join((*KNOWN, *shelf()))
        raise InputError(
            f"expected a protocol of {names}, or a file that jacobian-lab tune wrote, got {protocol!r}: choose one of "
            "them"
        )
    return Protocol.read(path)


def defaults_of(protocol: str) -> Defaults:
    """Look up the settings of a known model, of the shelf, or of a file."""
    measured = measured_protocol(protocol)
    return KNOWN[protocol.lower()].defaults if measured is None else measured.defaults


def note_other_model(protocol: str | None, name: str, fingerprint: str) -> None:
    """Say so where a protocol was measured on another model."""
    measured = measured_protocol(protocol)
    if measured is not None and measured.fingerprint != fingerprint:
        note(
            f"the protocol {protocol} was measured on {measured.model} ({measured.fingerprint[:12]}), not on {name} "
            f"({fingerprint[:12]})"
        )
