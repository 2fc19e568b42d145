"""Digests of each array for each finished part of a run, and their check."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt64

from jacobian_lab.store.schema import DIGEST, Variable

Variables = Mapping[str, Variable]
Labels = Mapping[str, Sequence[Any]]
Read = Callable[[str], np.ndarray]
"""Gives a stored array by its name."""
ReadFacts = Callable[[str, slice], np.ndarray]
"""Gives a stored array by its name, at some of the facts where it has any."""

FACTS_AT_ONCE = 256
"""Facts whose digests are taken at once; a multiple of the facts in a chunk."""

SHOWN = 3
"""Number of lost things that are named."""


@dataclass(frozen=True)
class Check:
    """Result of comparing a part with its digests.

    Attributes:
        done: Cells that are finished and complete; a cell is a place in the mark.
        lost: Completion cells that are no longer complete, by the name of the array.
    """

    done: Bool[np.ndarray, "*cells"]
    lost: Mapping[str, Bool[np.ndarray, "*cells"]]


def marks(variables: Variables) -> list[str]:
    """The marks of a kind of run."""
    return [name for name, variable in variables.items() if variable.mark == name]


def digested_arrays(variables: Variables) -> list[str]:
    """The arrays that have digests: labels of the dimension ``array``."""
    return [name for name, variable in variables.items() if variable.mark]


def part_digests(variables: Variables, mark: str, labels: Labels, read: Read) -> UInt64[np.ndarray, "*cells array"]:
    """Digests of the arrays of a part, cell by cell."""
    names, dims = digested_arrays(variables), variables[mark].dims
    digests = np.zeros((*(len(labels[dim]) for dim in dims), len(names)), dtype=np.uint64)
    for place, name in enumerate(names):
        variable = variables[name]
        if variable.mark != mark:
            continue
        if not variable.study:
            digests[..., place] = _cell_digests(read(name), variable.dims, dims)
        elif variable.study in labels["study"]:
            study = labels["study"].index(variable.study)
            digests[study, ..., place] = _cell_digests(read(name), variable.dims, dims[1:])
    return digests


def _cell_digests(values: np.ndarray, dims: Sequence[str], over: Sequence[str]) -> UInt64[np.ndarray, "*cells"]:
    """Digests of an array at each place along some of its dimensions."""
    front = np.moveaxis(values, [dims.index(dim) for dim in over], range(len(over)))
    if front.dtype.kind == "f":
        front = np.where(np.isnan(front), np.nan, front)  # there are many NaN, and a store keeps only one
    rows = np.ascontiguousarray(front).reshape(*front.shape[: len(over)], -1)
    digests = np.empty(rows.shape[:-1], dtype=np.uint64)
    for cell in np.ndindex(digests.shape):
        digests[cell] = int.from_bytes(hashlib.sha256(rows[cell].tobytes()).digest()[:8], "little")
    return digests


def check(variables: Variables, mark: str, coordinates: Labels, read: ReadFacts) -> Check:
    """Compare a part with its digests, reading its finished cells alone."""
    values, stored = (read(name, slice(None)) for name in (mark, f"{mark}{DIGEST}"))
    finished = (values != 0) | (stored != 0).any(-1)
    wrong = np.zeros(stored.shape, dtype=bool)
    for at, facts in _finished(finished, variables[mark].dims):
        labels = {dim: every[facts] if dim == "fact" else every for dim, every in coordinates.items()}
        now = part_digests(variables, mark, labels, lambda name: read(name, facts))  # noqa: B023 - called at once
        wrong[at] = finished[at][..., None] & (now != stored[at])
    undigested = finished & (stored == 0).all(-1)
    lost = {f"{mark}{DIGEST}": undigested} if undigested.any() else {}
    for place, name in enumerate(digested_arrays(variables)):
        if (here := wrong[..., place] & ~undigested).any():
            lost[name] = here
    return Check(finished & ~wrong.any(-1), lost)


def _finished(finished: Bool[np.ndarray, "*cells"], dims: Sequence[str]) -> Iterator[tuple[tuple[slice, ...], slice]]:
    """Blocks with a finished cell: their places in the mark, all of them or those of some facts, and these facts."""
    if "fact" not in dims:
        if finished.any():
            yield (), slice(None)
        return
    axis = dims.index("fact")
    for start in range(0, finished.shape[axis], FACTS_AT_ONCE):
        facts = slice(start, start + FACTS_AT_ONCE)
        at = (*[slice(None)] * axis, facts)
        if finished[at].any():
            yield at, facts


def described(variables: Variables, coordinates: Labels, checks: Mapping[str, Check]) -> str:
    """Describe lost cells in words."""
    parts = []
    for mark, verdict in checks.items():
        if verdict.lost:
            cells = np.logical_or.reduce(list(verdict.lost.values()))
            where = [
                f"{dim} {_first(coordinates[dim][i] for i in np.unique(places))}"
                for dim, places in zip(variables[mark].dims, cells.nonzero(), strict=True)
            ]
            parts.append(f"{_first(verdict.lost)} of {', '.join(where)}")
    return "; ".join(parts)


def _first(names: Iterable[Any]) -> str:
    texts = list(map(str, names))
    more = f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
    return ", ".join(texts[:SHOWN]) + more
