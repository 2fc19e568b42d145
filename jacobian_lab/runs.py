"""A run: a folder with its configuration and its stored arrays, that can be left and resumed.

``config.json`` holds everything that decides a number; ``data.zarr`` opens as one
`xarray.Dataset`. A folder made with other settings is refused by name.
"""

import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import xarray as xr
import zarr
from filelock import FileLock, Timeout

from jacobian_lab.caching import written_whole
from jacobian_lab.errors import InputError
from jacobian_lab.variables import COORDINATES, KINDS, Variable

FORMAT = "jacobian_lab run 2"
CONFIG, STORE, LOCK = "config.json", "data.zarr", ".lock"
FACTS_PER_CHUNK = 16


class Run:
    """A folder of results, open for writing; use as a context manager.

    Args:
        folder: The folder; made if absent.
        kind: One of `KINDS`.
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
        kind: str,
        settings: Mapping[str, Any],
        provenance: Mapping[str, Any],
        coordinates: Mapping[str, Sequence[Any]],
    ) -> None:
        self.folder, self.variables = folder, KINDS[kind]
        self.coordinates = {name: list(labels) for name, labels in coordinates.items()}
        check_folder(folder, kind, settings)
        self._lock = FileLock(folder / LOCK)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise InputError(
                f"expected a run that nobody else is writing, got {folder}, which another process holds: wait for it"
            ) from None
        if not (folder / CONFIG).is_file():
            config = {"format": FORMAT, "kind": kind, "settings": settings, "provenance": provenance}
            _write_text(folder / CONFIG, json.dumps(config, indent=1, ensure_ascii=False) + "\n")
        if not (folder / STORE).is_dir():
            _create_store(folder / STORE, self.variables, self.coordinates)
        try:
            self._arrays: Any = zarr.open_group(folder / STORE, mode="r+")
        except (OSError, ValueError) as error:
            raise InputError(_broken(folder, error)) from error
        _check_arrays(folder, self.variables, set(self._arrays.array_keys()))

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
            name: One of the run's variables.

        Returns:
            The whole array.
        """
        return np.asarray(self._arrays[name][:])

    def write(self, name: str, values: Any, **labels: Any) -> None:
        """Write part of an array.

        Args:
            name: One of the run's variables.
            values: What to write, with one dimension for each list of labels and each dimension without.
            **labels: For some dimensions, a label or a list of labels.
        """
        variable, index = self.variables[name], list[Any]()
        for dim in variable.dims:
            chosen = labels.get(dim)
            places = self.coordinates[dim]
            if chosen is None:
                index.append(slice(None))
            elif isinstance(chosen, list | tuple):
                index.append([places.index(label) for label in chosen])
            else:
                index.append(places.index(chosen))
        self._arrays[name].oindex[tuple(index)] = np.asarray(values, dtype=variable.dtype)


def open_run(folder: Path, kind: str | None = None) -> xr.Dataset:
    """Open the results of a run for reading.

    Args:
        folder: The run's folder.
        kind: The kind that it must be of, if that matters.

    Returns:
        Its dataset, with the schemes or methods that have been measured; the configuration is in
        ``attrs["config"]``.

    Raises:
        InputError: If there is no run, or not of this kind.
    """
    config = read_config(folder)
    if kind is not None and config["kind"] != kind:
        raise InputError(
            f"expected a run of jacobian-lab {kind}, got one of {config['kind']} in {folder}: give another"
        )
    try:
        dataset = xr.open_zarr(folder / STORE).load()
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(_broken(folder, error)) from error
    _check_arrays(folder, KINDS[config["kind"]], set(dataset))
    dataset.attrs["config"] = config
    for name, variable in KINDS[config["kind"]].items():
        if variable.study:
            dataset[name] = dataset[name].where(dataset["studied"].sel(study=variable.study, drop=True) == 1)
    if "measured" in dataset:
        (measured,) = dataset["measured"].dims
        dataset = dataset.isel({measured: np.flatnonzero(dataset["measured"].values == 1)})
    return dataset


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of a run.

    Args:
        folder: The run's folder.

    Returns:
        What ``config.json`` holds: ``format``, ``kind``, ``settings``, ``provenance``.

    Raises:
        InputError: If there is no run.
    """
    try:
        config = json.loads((folder / CONFIG).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"expected the folder of a run, got {folder} ({error}): make one with jacobian-lab") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise InputError(f"expected a run of the format {FORMAT!r}, got another one in {folder}: choose another folder")
    return config


def marked(folder: Path, name: str, **labels: Any) -> bool:
    """Whether all of some marks have been set, which says that what they stand for is stored.

    Args:
        folder: The run's folder; may be new.
        name: An array of integers.
        **labels: For some dimensions, a label or a list of labels.

    Returns:
        Whether none of them is zero; false if there is no run.

    Raises:
        InputError: If the store cannot be read.
    """
    if not (folder / CONFIG).is_file() or not (folder / STORE).is_dir():
        return False
    try:
        with xr.open_zarr(folder / STORE) as dataset:
            return bool((dataset[name].sel(labels) != 0).all())
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(_broken(folder, error)) from error


def check_folder(folder: Path, kind: str, settings: Mapping[str, Any]) -> None:
    """Check that a folder is new, empty, or of a run with the same settings; make it if it is absent.

    Args:
        folder: The folder.
        kind: The kind of run.
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
        config = read_config(folder)
        if config["kind"] != kind:
            raise InputError(
                f"expected a folder of jacobian-lab {kind}, got one of {config['kind']} in {folder}: give another --out"
            )
        _check_same(config["settings"], settings, folder)
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


def _create_store(path: Path, variables: Mapping[str, Variable], coordinates: Mapping[str, Sequence[Any]]) -> None:
    """All arrays at their full size, empty."""
    labelled = {name: (name, list(labels), {"long_name": COORDINATES[name]}) for name, labels in coordinates.items()}
    dataset = xr.Dataset(coords=labelled)
    encoding = {}
    for name, variable in variables.items():
        shape = tuple(len(coordinates[dim]) for dim in variable.dims)
        empty = np.full(shape, np.nan if variable.dtype.startswith("f") else 0, dtype=variable.dtype)
        dataset[name] = xr.Variable(variable.dims, empty, {"long_name": variable.long_name, "units": variable.units})
        chunks = tuple(
            max(1, min(FACTS_PER_CHUNK, n) if dim == "fact" else n) for dim, n in zip(variable.dims, shape, strict=True)
        )
        encoding[name] = {"chunks": chunks}
    with written_whole(path) as partial:
        dataset.to_zarr(partial, zarr_format=2, consolidated=True, encoding=encoding)


def _check_arrays(folder: Path, variables: Iterable[str], held: Collection[object]) -> None:
    if missing := [name for name in variables if name not in held]:
        raise InputError(
            f"expected the arrays that this version stores, got a run without {missing[0]!r} in {folder}, made by an "
            "older one: choose another folder"
        )


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
