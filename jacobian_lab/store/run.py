"""A run: a folder with its configuration and its stored arrays, that can be left and resumed.

``config.json`` holds everything that decides a number; ``data.zarr`` opens as one
`xarray.Dataset`. A folder made with other settings is refused, and the setting named. Completion parts are sealed with
digests: if something of them is missing, a reader refuses the run, and a writer computes it again.
"""

import itertools
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import xarray as xr
from filelock import FileLock, SoftFileLock, Timeout

from jacobian_lab.caching import is_partial, write_text
from jacobian_lab.errors import InputError
from jacobian_lab.progress import note
from jacobian_lab.store.arrays import (
    CONFIG,
    STORE,
    Places,
    along_facts,
    arrays_of,
    check_labels,
    create_store,
    listed,
    open_arrays,
    read_config,
    reading,
    unmeasured,
    write_config,
)
from jacobian_lab.store.commands import command_of
from jacobian_lab.store.completion import Completion
from jacobian_lab.store.digests import digested_arrays, part_digests
from jacobian_lab.store.schema import DIGEST, KINDS

LOCK = ".lock"
GROWING = "training"
"""The settings that others may join while a run grows: by method, what its training was decided by."""
LISTS = {"edit"}
"""Dimensions whose labels are all that there are: a run that was made when there were fewer keeps those that it has."""
WIDE = {"d_model", "rank"}
"""Dimensions of arrays that are too large to be read whole when a run is opened."""

_TORN = re.compile(r".*\.[0-9a-f]{32}\.partial", re.DOTALL)
"""The name under which zarr writes a chunk before it takes its own; a killed process leaves it."""


class Run:
    """A folder of results, open for writing; use as a context manager.

    Args:
        folder: The folder; made if absent.
        kind: One of `KINDS`.
        settings: Everything that decides a number, as JSON can hold it.
        provenance: What else is worth knowing; not compared on resuming.
        coordinates: Labels of each dimension.

    Attributes:
        finished: Its finished and complete parts.

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
        self.coordinates = {name: np.asarray(labels).tolist() for name, labels in coordinates.items()}
        self.coordinates["array"] = digested_arrays(self.variables)
        check_folder(folder, kind, settings)
        self._lock = FileLock(folder / LOCK)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            # without flock there is only a marker, which outlives its host
            gone = f", or remove {LOCK} in it if that is gone" if isinstance(self._lock, SoftFileLock) else ""
            raise InputError(
                f"expected a run that nobody else is writing, got {folder}, which another process holds: wait for it"
                f"{gone}"
            ) from None
        try:
            self._open(kind, settings, provenance)
        except BaseException:
            self._lock.release()
            raise

    def _open(self, kind: str, settings: Mapping[str, Any], provenance: Mapping[str, Any]) -> None:
        """Make what is not there yet, and hold what is against this version."""
        folder = self.folder
        if not (folder / CONFIG).is_file():
            write_config(folder, kind, settings, provenance, self.coordinates)
        elif new := settings.get(GROWING):
            _join(folder, new)
        if not (folder / STORE).is_dir():
            create_store(folder, self.variables, self.coordinates)
        opened = open_arrays(folder, "r+")
        self._arrays, labels = opened.arrays, opened.labels
        self._places = Places(labels)
        for name in LISTS & self.coordinates.keys():
            if set(labels.get(name, ())) <= set(self.coordinates[name]):
                self.coordinates[name] = labels[name]
        if changed := [name for name, every in self.coordinates.items() if labels.get(name) != every]:
            raise InputError(
                f"expected a run of this version, got other {changed[0]}s in {folder}: choose another folder"
            )
        for left in (folder / STORE).rglob("*.partial"):
            if _TORN.fullmatch(left.name):
                left.unlink()
        self.finished = Completion(self.variables, labels, self._read_facts, folder)
        if lost := self.finished.lost():
            note(f"{folder} is without {lost}, which was finished: what of it belongs to this command is done again")

    def __enter__(self) -> "Run":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lock.release()

    def read(self, name: str, **labels: Any) -> np.ndarray:
        """A stored array, or part of it, as it is now.

        Args:
            name: One of the run's variables.
            **labels: For some dimensions, a label or a list of labels.

        Returns:
            The values, with one dimension for each list of labels and each dimension without.
        """
        return np.asarray(self._arrays[name].oindex[self._places.index(self.variables[name].dims, labels)])

    def write(self, name: str, values: Any, **labels: Any) -> None:
        """Write part of an array.

        Args:
            name: One of the run's variables.
            values: What to write, with one dimension for each list of labels and each dimension without.
            **labels: For some dimensions, a label or a list of labels.
        """
        self._arrays[name].oindex[self._places.index(self.variables[name].dims, labels)] = np.asarray(
            values, self.variables[name].dtype
        )

    def commit(self, mark: str, values: Any = 1, **labels: Any) -> None:
        """Set the marks of a part that has been written, and its digests.

        Args:
            mark: The part's mark.
            values: What to set it to, not 0.
            **labels: For some of its dimensions, a label or a list of labels.
        """
        dims = self.variables[mark].dims
        cells = {dim: listed(labels.get(dim), self.coordinates[dim]) for dim in dims}
        shape = [len(every) for every in cells.values()]
        marks = np.full(math.prod(shape), np.ravel(values), self.variables[mark].dtype).reshape(shape)

        def read(name: str) -> np.ndarray:
            return marks if name == mark else self.read(name, **cells)

        self.write(f"{mark}{DIGEST}", part_digests(self.variables, mark, cells, read), **cells)
        self.write(mark, marks, **cells)  # last: it says that all is there
        self.finished.add(mark, **cells)

    def done(self, mark: str, **labels: Any) -> np.ndarray:
        """`Completion.cells` of this run.

        Args:
            mark: The part's mark.
            **labels: For some of its dimensions, a label or a list of labels.

        Returns:
            True and False, in the mark's dimensions.
        """
        return self.finished.cells(mark, **labels)

    def copy_from(self, donor: Path, mark: str) -> int:
        """Copy the finished cells of a part that this run lacks from another one.

        Args:
            donor: Its folder. It may be of another kind; nothing is taken unless that has the part in the same
                dimensions.
            mark: The part's mark, whose first dimension is the facts.

        Returns:
            The number of copied cells.

        Raises:
            InputError: If the other run cannot be read.
        """
        opened, dims = open_arrays(donor, "r"), self.variables[mark].dims
        variables, labels = opened.variables, opened.labels
        if mark not in variables or variables[mark].dims != dims:
            return 0
        finished, places, count = Completion.of(donor), Places(labels), 0

        def read(name: str, **cells: Any) -> np.ndarray:
            return np.asarray(opened.arrays[name].oindex[places.index(variables[name].dims, cells)])

        names = [name for name, v in self.variables.items() if v.mark == mark != name and name in variables]
        facts, *along = ([label for label in self.coordinates[dim] if label in labels[dim]] for dim in dims)
        for cell in itertools.product(*along):
            where = dict(zip(dims[1:], cell, strict=True))
            lacking = finished.cells(mark, fact=facts, **where) & ~self.done(mark, fact=facts, **where)
            if ids := [fact for fact, lacks in zip(facts, lacking.ravel(), strict=True) if lacks]:
                with reading(donor):
                    for name in names:
                        self.write(name, read(name, fact=ids, **where), fact=ids, **where)
                    self.commit(mark, read(mark, fact=ids, **where), fact=ids, **where)
                count += len(ids)
        return count

    def _read_facts(self, name: str, facts: slice) -> np.ndarray:
        with reading(self.folder):
            return np.asarray(self._arrays[name][along_facts(self.variables[name], facts)])


def open_run(folder: Path | str, kind: str | None = None, part: str | None = None) -> xr.Dataset:
    """Open the results of a run for reading.

    Args:
        folder: The run's folder.
        kind: The kind that it must be of, if that matters.
        part: The mark of the only part that is wanted; all of them by default.

    Returns:
        Its dataset, with the schemes or methods that have been measured; ``attrs["config"]`` is its configuration as
        JSON text, which `config_of` reads. Arrays with one of the dimensions `WIDE` are read on access. An array that
        an older run was not made with has the values of nothing measured.

    Raises:
        InputError: If there is no run, or not of this kind, or something that it had finished is missing.
    """
    folder = Path(folder)
    config = read_config(folder)
    if kind is not None and config["kind"] != kind:
        raise InputError(
            f"expected a run of jacobian-lab {command_of(kind)}, got one of {command_of(config['kind'])} in {folder}: "
            "give another"
        )
    with reading(folder):
        dataset = xr.open_zarr(folder / STORE, consolidated=True, chunks=None)
        labels = {str(name): every.values.tolist() for name, every in dataset.coords.items()}
        check_labels(folder, config, labels)
        variables = arrays_of(folder, config["kind"], labels, set(dataset))
        finished = Completion(
            variables, labels, lambda name, facts: dataset[name][along_facts(variables[name], facts)].values
        )
        lost = finished.lost(*([part] if part else []))
        declared = {name: variable for name, variable in KINDS[config["kind"]].items() if part in {None, variable.mark}}
        loaded = dataset[[name for name in declared if name in variables and not name.endswith(DIGEST)]]
        loaded = loaded.assign(loaded[[name for name in loaded if not WIDE & set(loaded[name].dims)]].load())
    if lost:
        raise InputError(f"expected all that a run had finished, got {folder} without {lost}: give its command again")
    newer = [name for name in declared if name not in variables and not name.endswith(DIGEST)]
    loaded = loaded.assign({name: unmeasured(declared[name], dataset.sizes) for name in newer})
    loaded.attrs["config"] = json.dumps(config, ensure_ascii=False)  # a netCDF file takes text
    for name, variable in declared.items():
        if variable.study:
            loaded[name] = loaded[name].where(loaded["studied"].sel(study=variable.study, drop=True) == 1)
    if "measured" in loaded:
        done = loaded["measured"] == 1
        dim, *others = done.dims
        loaded = loaded.isel({dim: np.flatnonzero(done.any(others).values)})
    return loaded


def config_of(dataset: xr.Dataset) -> dict[str, Any]:
    """Configuration of an opened run."""
    return dict(json.loads(dataset.attrs["config"]))


def check_folder(folder: Path, kind: str, settings: Mapping[str, Any]) -> None:
    """Check that a folder is new, empty, or of a run with the same settings; make it if it is absent."""
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
                f"expected a folder of jacobian-lab {command_of(kind)}, got one of {command_of(config['kind'])} in "
                f"{folder}: give another ⟨out⟩"
            )
        check_same(config["settings"], settings, folder)
    elif foreign := {name for name in held - {LOCK} if not is_partial(name)}:
        raise InputError(
            f"expected a new or empty output folder, or one of a run, got {folder}, which holds "
            f"{min(foreign)!r}: choose another"
        )


def _join(folder: Path, new: Mapping[str, Any]) -> None:
    """Add the settings of new methods to the configuration of a run."""
    config = read_config(folder)
    held = config["settings"].get(GROWING, {})
    if new.keys() - held.keys():
        config["settings"][GROWING] = {**held, **new}
        write_text(folder / CONFIG, json.dumps(config, indent=1, ensure_ascii=False) + "\n")


def check_same(old: Any, new: Any, folder: Path, field: str = "out") -> None:
    """Check that the settings of a run are those of a command."""
    before, now = _flat(old), _flat(json.loads(json.dumps(new)))
    for name in sorted(before.keys() | now.keys()):
        if name.startswith(f"{GROWING}.") and not (name in before and name in now):
            continue
        if before.get(name) != now.get(name):
            raise InputError(
                f"expected the settings that {folder} was made with, got another {name}: it has "
                f"{before.get(name)!r:.80}, this command {now.get(name)!r:.80}: give the same, or another ⟨{field}⟩"
            )


def _flat(settings: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(settings, dict):
        return {name: settings}
    pairs = ((f"{name}.{key}" if name else key, value) for key, value in settings.items())
    return {inner: value for key, child in pairs for inner, value in _flat(child, key).items()}
