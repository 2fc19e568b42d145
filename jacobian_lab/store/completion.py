"""Completion of a run, part by part, as its digests confirm it."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from jacobian_lab.store.arrays import Places, along_facts, exists, listed, open_arrays, reading
from jacobian_lab.store.digests import Check, ReadFacts, check, described, marks
from jacobian_lab.store.schema import Variable

LOOKS, PAUSE = 3, 0.2
"""Checks before something counts as lost, and seconds between them: a writer may be at work."""


class Completion:
    """Finished and complete cells of a run, part by part; a part is called by its mark.

    A part is compared with its digests on its first use. `Run` holds one, to which `Run.commit` adds cells;
    `Completion.of` reads one from a folder, where there need not be a run yet.

    Args:
        variables: The arrays of the kind of run; none where there is no run.
        labels: Labels of every dimension.
        read: Gives an array by its name, at some of the facts.
        folder: Its folder, where there is one.
    """

    def __init__(
        self,
        variables: Mapping[str, Variable],
        labels: Mapping[str, Sequence[Any]],
        read: ReadFacts,
        folder: Path | None = None,
    ) -> None:
        self._variables, self._labels, self._read, self.folder = variables, labels, read, folder
        self._places = Places(labels)
        self._checks: dict[str, Check] = {}

    @classmethod
    def nothing(cls) -> "Completion":
        """Make one without a finished cell, for a folder without a run."""
        return cls({}, {}, lambda _name, _facts: np.zeros(0))

    @classmethod
    def of(cls, folder: Path | str) -> "Completion":
        """Read one from a folder."""
        folder = Path(folder)
        if not exists(folder):
            return cls.nothing()
        opened = open_arrays(folder, "r")

        def read(name: str, facts: slice) -> np.ndarray:
            with reading(folder):
                return np.asarray(opened.arrays[name][along_facts(opened.variables[name], facts)])

        return cls(opened.variables, opened.labels, read, folder)

    def has(self, mark: str, **labels: Any) -> bool:
        """Tell whether there is such a part, with these labels, one for each of its dimensions but the facts."""
        dims = {*self._variables[mark].dims} if mark in self._variables else set()
        return dims == {"fact", *labels} and all(label in self._labels[dim] for dim, label in labels.items())

    def cells(self, mark: str, **labels: Any) -> Bool[np.ndarray, "..."]:
        """Mask of the cells of a part that are finished and complete."""
        if mark not in self._variables:
            return np.zeros([len(listed(label, [])) for label in labels.values()] or [1], dtype=bool)
        return self._check(mark).done[self._places.cells(self._variables[mark].dims, labels)]

    def all(self, mark: str, **labels: Any) -> bool:
        """Tell if nothing of a part is left to do."""
        return mark in self._variables and bool(self.cells(mark, **labels).all())

    def lost(self, *parts: str) -> str:
        """Describe what had been finished and is no longer complete; empty if nothing."""
        if not self._variables:
            return ""
        checks = {mark: self._check(mark) for mark in parts or marks(self._variables)}
        return described(self._variables, self._labels, checks)

    def add(self, mark: str, **labels: Any) -> None:
        """Add cells that have been sealed."""
        self._check(mark).done[self._places.cells(self._variables[mark].dims, labels)] = True

    def _check(self, mark: str) -> Check:
        if mark not in self._checks:
            self._checks[mark] = self._looked_at(mark)
        return self._checks[mark]

    def _looked_at(self, mark: str) -> Check:
        """Check a part again until no writer can be between a digest and its mark."""
        for _ in range(LOOKS - 1):
            verdict = check(self._variables, mark, self._labels, self._read)
            if not verdict.lost:
                return verdict
            time.sleep(PAUSE)
        return check(self._variables, mark, self._labels, self._read)
