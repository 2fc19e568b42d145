"""A run: a folder with its configuration and its stored arrays, that can be left and resumed.

``config.json`` holds everything that decides a number; ``data.zarr`` opens as one
`xarray.Dataset`. A folder made with other settings is refused by name.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import xarray as xr
import zarr
from filelock import FileLock, Timeout

from jacobian_lab.caching import written_whole
from jacobian_lab.errors import InputError

FORMAT = "jacobian_lab run 1"
CONFIG, STORE, LOCK = "config.json", "data.zarr", ".lock"
FACTS_PER_CHUNK = 16


@dataclass(frozen=True)
class Variable:
    """What a stored array is.

    Attributes:
        dims: Its dimensions.
        long_name: What it is, in words.
        units: Its units; "1" for ratios.
        dtype: Its NumPy dtype. Floats begin as NaN, integers as 0.
    """

    dims: tuple[str, ...]
    long_name: str
    units: str = "1"
    dtype: str = "f8"


_EACH = ("fact", "scheme", "layer")
VARIABLES: dict[str, Variable] = {
    "anchor": Variable(("fact", "anchor_layer", "d_model"), "anchor: optimised hidden state", "activation"),
    "anchor_loss": Variable(("fact", "anchor_layer"), "loss at the anchor's last pass", "nat"),
    "anchor_passes": Variable(("fact", "anchor_layer"), "passes made; 0: not yet optimised", "1", "i4"),
    "replayed_target": Variable(("fact", "layer", "d_model"), "first anchor replayed to the layer", "activation"),
    "residual_ratio": Variable(_EACH, "remaining residual at the last layer over the initial one, own target"),
    "cosine": Variable(_EACH, "cosine of the layer's shift and the passive shift at the last layer"),
    "unrealised": Variable(_EACH, "share of the layer's undivided target residual left unrealised"),
    "realised": Variable(_EACH, "shift along the residual given to the layer, over its norm"),
    "residual_norm": Variable(_EACH, "remaining residual at the last layer, own target", "activation"),
    "residual_ratio_against_optimised": Variable(_EACH, "remaining residual ratio against the optimised target"),
    "residual_ratio_against_replayed": Variable(_EACH, "remaining residual ratio against the replayed target"),
    "residual_norm_against_optimised": Variable(_EACH, "remaining residual, optimised target", "activation"),
    "residual_norm_against_replayed": Variable(_EACH, "remaining residual, replayed target", "activation"),
    "shift_norm": Variable(_EACH, "norm of the layer's shift", "activation"),
    "passive_shift_norm": Variable(_EACH, "norm of the passive shift at the last layer", "activation"),
    "efficacy": Variable(("fact", "scheme"), "every target token is the argmax after the edit"),
    "efficacy_unedited": Variable(("fact",), "every target token is the argmax before any edit"),
    "update_norm": Variable(("scheme", "layer"), "norm of the weight's change over the weight's norm"),
    "condition_number": Variable(("scheme", "layer"), "condition number of the solve, 1-norm estimate"),
    "unstored": Variable(("scheme", "layer"), "share of the weight's change that its dtype did not take"),
    "measured": Variable(("scheme",), "whether the scheme has been measured", "1", "i4"),
}


COORDINATES = {
    "fact": "the record's own id",
    "scheme": "target scheme",
    "layer": "decisive layer",
    "anchor_layer": "layer that the anchor is optimised at",
}
"""Dimensions with labels, and what these are."""


class Run:
    """A folder of results, open for writing; use as a context manager.

    Args:
        folder: The folder; made if absent.
        settings: Everything that decides a number, as JSON can hold it.
        provenance: What else is worth knowing; not compared on resuming.
        coordinates: Labels of each dimension.

    Raises:
        InputError: If the folder cannot be written, holds something else, or was made with other
            settings, which the message names.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        provenance: Mapping[str, Any],
        coordinates: Mapping[str, Sequence[Any]],
    ) -> None:
        self.folder, self.coordinates = (
            folder,
            {name: list(labels) for name, labels in coordinates.items()},
        )
        check_folder(folder, settings)
        self._lock = FileLock(folder / LOCK)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise InputError(
                f"expected a run that nobody else is writing, got {folder}, which another process holds: wait for it"
            ) from None
        if not (folder / CONFIG).is_file():
            config = {"format": FORMAT, "settings": settings, "provenance": provenance}
            _write_text(folder / CONFIG, json.dumps(config, indent=1, ensure_ascii=False) + "\n")
        if not (folder / STORE).is_dir():
            _create_store(folder / STORE, self.coordinates)
        try:
            self._arrays = zarr.open_group(folder / STORE, mode="r+")
        except (OSError, ValueError) as error:
            raise InputError(_broken(folder, error)) from error

    def __enter__(self) -> "Run":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lock.release()

    def read(self, name: str) -> np.ndarray:
        """A stored array as it is now.

        Args:
            name: One of `VARIABLES`.

        Returns:
            The whole array.
        """
        return np.asarray(self._array(name)[:])

    def write(self, name: str, values: Any, **labels: Any) -> None:
        """Write part of an array.

        Args:
            name: One of `VARIABLES`.
            values: What to write, with one dimension for each list of labels and each dimension without.
            **labels: For some dimensions, a label or a list of labels.
        """
        array = self._array(name)
        index: list[Any] = []
        for dim in VARIABLES[name].dims:
            chosen = labels.get(dim)
            places = self.coordinates[dim]
            if chosen is None:
                index.append(slice(None))
            elif isinstance(chosen, list | tuple):
                index.append([places.index(label) for label in chosen])
            else:
                index.append(places.index(chosen))
        array.oindex[tuple(index)] = np.asarray(values, dtype=VARIABLES[name].dtype)

    def _array(self, name: str) -> Any:
        return self._arrays[name]


def open_run(folder: Path) -> xr.Dataset:
    """Open the results of a run for reading.

    Args:
        folder: The run's folder.

    Returns:
        Its dataset, with the schemes that have been measured; the configuration is in ``attrs["config"]``.

    Raises:
        InputError: If there is no run.
    """
    config = read_config(folder)
    try:
        dataset = xr.open_zarr(folder / STORE).load()
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(_broken(folder, error)) from error
    dataset.attrs["config"] = config
    return dataset.isel(scheme=np.flatnonzero(dataset["measured"].values == 1))


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of a run.

    Args:
        folder: The run's folder.

    Returns:
        What ``config.json`` holds: ``format``, ``settings``, ``provenance``.

    Raises:
        InputError: If there is no run.
    """
    try:
        config = json.loads((folder / CONFIG).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"expected the folder of a run, got {folder} ({error}): make one with jacobian-lab tables"
        ) from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise InputError(f"expected a run of the format {FORMAT!r}, got another one in {folder}: choose another folder")
    return config


def measured_schemes(folder: Path) -> set[str]:
    """Schemes that a run has measured.

    Args:
        folder: The run's folder; may be new.

    Returns:
        Their names.
    """
    if not (folder / CONFIG).is_file() or not (folder / STORE).is_dir():
        return set()
    return set(open_run(folder)["scheme"].values.tolist())


def check_folder(folder: Path, settings: Mapping[str, Any]) -> None:
    """Check that a folder is new, empty, or of a run with the same settings; make it if it is absent.

    Args:
        folder: The folder.
        settings: Everything that decides a number.

    Raises:
        InputError: If it cannot be written, holds something else, or was made with other settings.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"expected an output folder that can be made, got {folder} ({error.strerror}): choose another"
        ) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(
            f"expected an output folder that can be written, got {folder}: choose another or change its rights"
        )
    held = {path.name for path in folder.iterdir()}
    if CONFIG in held:
        _check_same(read_config(folder)["settings"], settings, folder)
    elif foreign := held - {LOCK, f".{CONFIG}.partial"}:
        raise InputError(
            f"expected a new or empty output folder, or one of a run, got {folder}, which holds "
            f"{min(foreign)!r}: choose another"
        )


def _check_same(old: Any, new: Any, folder: Path) -> None:
    before, now = _flat(old), _flat(json.loads(json.dumps(new)))
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            raise InputError(
                f"expected the settings that {folder} was made with, got another {name}: it has "
                f"{before.get(name)!r:.80}, this command {now.get(name)!r:.80}: give the same, or another --out"
            )


def _flat(settings: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(settings, dict):
        return {name: settings}
    pairs = ((f"{name}.{key}" if name else key, value) for key, value in settings.items())
    return {inner: value for key, child in pairs for inner, value in _flat(child, key).items()}


def _create_store(path: Path, coordinates: Mapping[str, Sequence[Any]]) -> None:
    """All arrays at their full size, empty."""
    labelled = {name: (name, list(coordinates[name]), {"long_name": text}) for name, text in COORDINATES.items()}
    dataset = xr.Dataset(coords=labelled)
    encoding = {}
    for name, variable in VARIABLES.items():
        shape = tuple(len(coordinates[dim]) for dim in variable.dims)
        empty = np.full(shape, np.nan if variable.dtype.startswith("f") else 0, dtype=variable.dtype)
        dataset[name] = xr.Variable(variable.dims, empty, {"long_name": variable.long_name, "units": variable.units})
        chunks = tuple(
            max(1, min(FACTS_PER_CHUNK, n) if dim == "fact" else n) for dim, n in zip(variable.dims, shape, strict=True)
        )
        encoding[name] = {"chunks": chunks}
    with written_whole(path) as partial:
        dataset.to_zarr(partial, zarr_format=2, consolidated=True, encoding=encoding)


def _broken(folder: Path, error: Exception) -> str:
    """What to say of a store that zarr cannot read."""
    return (
        f"expected the arrays of a run in {folder / STORE}, got {type(error).__name__}: {error}: "
        "remove the folder, or make the run again elsewhere"
    )


def _write_text(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, "utf-8")
    partial.replace(path)
