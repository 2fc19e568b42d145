"""What of a run is finished: read once from a folder, new or not, and asked as often as one likes."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from jacobian_lab.store.arrays import Places, along_facts, exists, listed, open_arrays, reading
from jacobian_lab.store.digests import Check, ReadFacts, check, described, marks
from jacobian_lab.store.schema import Variable

LOOKS, PAUSE = 3, 0.2
"""How often it is looked whether something is lost, and seconds between: a writer may be at it."""


class Finished:
    """What of a run is finished and all there, part by part; a part is called by its mark.

    A part is compared with its digests when it is first asked about. `Run` keeps one, and `Run.seal` tells it what
    has been added; `Finished.of` reads one from a folder, where there need not be a run yet.

    Args:
        variables: The arrays of the kind of run; none where there is no run.
        labels: Labels of every dimension.
        read: Gives an array by its name, at some of the facts.
    """

    def __init__(self, variables: Mapping[str, Variable], labels: Mapping[str, Sequence[Any]], read: ReadFacts) -> None:
        self._variables, self._labels, self._read = variables, labels, read
        self._places = Places(labels)
        self._checks: dict[str, Check] = {}

    @classmethod
    def nothing(cls) -> "Finished":
        """What is finished where there is no run: nothing."""
        return cls({}, {}, lambda _name, _facts: np.zeros(0))

    @classmethod
    def of(cls, folder: Path | str) -> "Finished":
        """What is finished in a folder."""
        folder = Path(folder)
        if not exists(folder):
            return cls.nothing()
        opened = open_arrays(folder, "r")

        def read(name: str, facts: slice) -> np.ndarray:
            with reading(folder):
                return np.asarray(opened.arrays[name][along_facts(opened.variables[name], facts)])

        return cls(opened.variables, opened.labels, read)

    def cells(self, mark: str, **labels: Any) -> Bool[np.ndarray, "..."]:
        """Which cells of a part are finished and all there."""
        if not self._variables:
            return np.zeros([len(listed(chosen, [])) for chosen in labels.values()] or [1], dtype=bool)
        return self._check(mark).done[self._places.cells(self._variables[mark].dims, labels)]

    def all(self, mark: str, **labels: Any) -> bool:
        """Whether nothing of a part is left to do."""
        return bool(self._variables) and bool(self.cells(mark, **labels).all())

    def missing(self, mark: str, **labels: Any) -> float:
        """How much of a part is left to do."""
        cells = self.cells(mark, **labels)
        return float(1 - cells.mean()) if cells.size else 0.0

    def left(self, mark: str, **labels: Sequence[Any]) -> list[Any]:
        """Those of some labels whose part is not finished, or not all there."""
        (wanted,) = labels.values()
        return [label for label, done in zip(wanted, self.cells(mark, **labels), strict=True) if not done]

    def without(self, mark: str, **labels: Any) -> "Finished":
        """The same, but for some cells that are to be done again."""
        if not self._variables:
            return self
        found, check = Finished(self._variables, self._labels, self._read), self._check(mark)
        done = check.done.copy()
        done[self._places.cells(self._variables[mark].dims, labels)] = False
        found._checks = {**self._checks, mark: replace(check, done=done)}
        return found

    def lost(self, *parts: str) -> str:
        """What had been finished and is not all there any more."""
        if not self._variables:
            return ""
        checks = {mark: self._check(mark) for mark in parts or marks(self._variables)}
        return described(self._variables, self._labels, checks)

    def add(self, mark: str, **labels: Any) -> None:
        """Take note that cells have been sealed."""
        self._check(mark).done[self._places.cells(self._variables[mark].dims, labels)] = True

    def _check(self, mark: str) -> Check:
        if mark not in self._checks:
            self._checks[mark] = self._looked_at(mark)
        return self._checks[mark]

    def _looked_at(self, mark: str) -> Check:
        """What the digests say, once nobody can be between the writes of a digest and of its mark."""
        for _ in range(LOOKS - 1):
            verdict = check(self._variables, mark, self._labels, self._read)
            if not verdict.lost:
                return verdict
            time.sleep(PAUSE)
        return check(self._variables, mark, self._labels, self._read)
