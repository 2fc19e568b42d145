"""The files of a run: its configuration, and its arrays with the labels of their dimensions."""

import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr
import zarr
from numcodecs import Zstd

from jacobian_lab.caching import content_key, write_text, written_whole
from jacobian_lab.errors import InputError
from jacobian_lab.store.schema import COORDINATES, DIGEST, KINDS, Variable

FORMAT = "jacobian_lab run 4"
CONFIG, STORE = "config.json", "data.zarr"
FACTS_PER_CHUNK, CHUNK_BYTES = 16, 2**16
"""Facts in a chunk at the least, and bytes that more of them may take: looking for a file that is not there takes as
long as reading a small one."""
COMPRESSOR = Zstd(level=1, checksum=True)  # zarr's own choice, Blosc, reads beyond the end of a torn chunk
UNREADABLE = (OSError, ValueError, KeyError, RuntimeError)
"""Exceptions of zarr and its codecs."""


class Places:
    """Indices of labels along their dimensions.

    Args:
        coordinates: The labels of each dimension.
    """

    def __init__(self, coordinates: Mapping[str, Sequence[Any]]) -> None:
        self._places = {dim: {label: n for n, label in enumerate(labels)} for dim, labels in coordinates.items()}

    def index(self, dims: Sequence[str], labels: Mapping[str, Any]) -> tuple[Any, ...]:
        """Index of part of an array."""
        return tuple(self._along(self._places[dim], labels.get(dim)) for dim in dims)

    def cells(self, dims: Sequence[str], labels: Mapping[str, Any]) -> tuple[np.ndarray, ...]:
        """The same for NumPy, with all dimensions kept."""
        indices = (self._along(self._places[dim], listed(labels.get(dim), self._places[dim])) for dim in dims)
        return np.ix_(*(np.asarray(index, dtype=int) for index in indices))

    @staticmethod
    def _along(places: Mapping[Any, int], labels: Any) -> Any:
        if labels is None:
            return slice(None)
        if unknown := [label for label in listed(labels, ()) if label not in places]:
            raise InputError(
                f"expected what a run of this version was made for, got {unknown[0]!r}: choose another folder"
            )
        return [places[label] for label in labels] if isinstance(labels, list | tuple) else places[labels]


def along_facts(variable: Variable, facts: slice) -> tuple[slice, ...]:
    """Index of an array at some of the facts."""
    return tuple(facts if dim == "fact" else slice(None) for dim in variable.dims)


def listed(labels: Any, every: Iterable[Any]) -> list[Any]:
    """List labels: one, several, or every one if none is given."""
    if labels is None:
        return list(every)
    return list(labels) if isinstance(labels, list | tuple) else [labels]


def exists(folder: Path) -> bool:
    """Tell if a folder holds a run."""
    return (folder / CONFIG).is_file() and (folder / STORE).is_dir()


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of a run."""
    try:
        config = json.loads((folder / CONFIG).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"expected the folder of a run, got {folder} ({error}): make one with jacobian-lab") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise InputError(f"expected a run of the format {FORMAT!r}, got another one in {folder}: choose another folder")
    return config


def write_config(
    folder: Path,
    kind: str,
    settings: Mapping[str, Any],
    provenance: Mapping[str, Any],
    coordinates: Mapping[str, Sequence[Any]],
) -> None:
    """Write the configuration of a run."""
    config = {
        "format": FORMAT,
        "kind": kind,
        "settings": settings,
        "provenance": provenance,
        "coordinates": {name: content_key(list(labels)) for name, labels in coordinates.items()},
    }
    write_text(folder / CONFIG, json.dumps(config, indent=1, ensure_ascii=False) + "\n")


def create_store(folder: Path, variables: Mapping[str, Variable], coordinates: Mapping[str, Sequence[Any]]) -> None:
    """Make all arrays at their full size, empty: an unwritten chunk takes no place, neither on disk nor in memory."""
    labelled = {name: (name, list(labels), {"long_name": COORDINATES[name]}) for name, labels in coordinates.items()}
    with written_whole(folder / STORE) as partial:
        encoding = {name: {"compressors": COMPRESSOR} for name in labelled}
        xr.Dataset(coords=labelled).to_zarr(partial, zarr_format=2, consolidated=False, encoding=encoding)
        group = zarr.open_group(partial, mode="r+", zarr_format=2, use_consolidated=False)
        for name, variable in variables.items():
            shape = tuple(len(coordinates[dim]) for dim in variable.dims)
            per_fact = math.prod(n for dim, n in zip(variable.dims, shape, strict=True) if dim != "fact")
            facts = max(FACTS_PER_CHUNK, CHUNK_BYTES // (np.dtype(variable.dtype).itemsize * max(1, per_fact)))
            group.create_array(
                name,
                shape=shape,
                chunks=tuple(
                    max(1, min(facts, n) if dim == "fact" else n) for dim, n in zip(variable.dims, shape, strict=True)
                ),
                dtype=variable.dtype,
                compressors=COMPRESSOR,
                # xarray takes a fill value for a missing number, so that integers have none; they begin as 0 anyway
                fill_value=np.nan if variable.dtype.startswith("f") else None,
                attributes={
                    "long_name": variable.long_name,
                    "units": variable.units,
                    "_ARRAY_DIMENSIONS": list(variable.dims),
                },
            )
        zarr.consolidate_metadata(partial, zarr_format=2)


@dataclass(frozen=True)
class Opened:
    """The store of a run.

    Attributes:
        arrays: The arrays as zarr has them, by name.
        labels: Labels of every dimension.
        variables: Their declarations.
    """

    arrays: Mapping[str, zarr.Array[Any]]
    labels: Mapping[str, list[Any]]
    variables: Mapping[str, Variable]


def open_arrays(folder: Path, mode: Literal["r", "r+"]) -> Opened:
    """Open the arrays of a run."""
    config = read_config(folder)
    with reading(folder):
        arrays = dict(zarr.open_group(folder / STORE, mode=mode, use_consolidated=True).arrays())
        labels = {name: np.asarray(arrays[name]).tolist() for name in config["coordinates"]}
    check_labels(folder, config, labels)
    return Opened(arrays, labels, arrays_of(folder, config["kind"], labels, set(arrays)))


def arrays_of(
    folder: Path, kind: str, labels: Mapping[str, Sequence[Any]], held: Collection[object]
) -> dict[str, Variable]:
    """The arrays that a run was made with: an older one has fewer than its kind has now."""
    names = labels.get("array", ())
    if unknown := [name for name in names if name not in KINDS[kind]]:
        raise InputError(
            f"expected the arrays that this version stores, got a run with {unknown[0]!r} in {folder}, made by another "
            "one: choose another folder"
        )
    variables = {name: variable for name, variable in KINDS[kind].items() if name.removesuffix(DIGEST) in names}
    if missing := [name for name in variables if name not in held]:
        raise InputError(_broken(folder, f"no {missing[0]!r}"))
    return variables


def unmeasured(variable: Variable, sizes: Mapping[Any, int]) -> xr.DataArray:
    """An array that an older run was not made with, as it would begin in a new one; it takes no memory."""
    begins = np.asarray(np.nan if variable.dtype.startswith("f") else 0, variable.dtype)
    values = np.broadcast_to(begins, [sizes.get(dim, 0) for dim in variable.dims])
    return xr.DataArray(values, dims=variable.dims, attrs={"long_name": variable.long_name, "units": variable.units})


def check_labels(folder: Path, config: Mapping[str, Any], labels: Mapping[str, Sequence[Any]]) -> None:
    """Check that the labels of a store's dimensions are those that it was made with."""
    for name, key in config["coordinates"].items():
        if content_key(labels.get(name)) != key:
            raise InputError(_broken(folder, f"other labels of {name} than it was made with"))


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Turn the exceptions of an unreadable store into one line."""
    try:
        yield
    except InputError:
        raise
    except UNREADABLE as error:
        raise InputError(_broken(folder, f"{type(error).__name__}: {error}")) from error


def _broken(folder: Path, fault: str) -> str:
    return (
        f"expected the arrays of a run in {folder / STORE}, got {fault}: remove the folder, or make the run elsewhere"
    )
