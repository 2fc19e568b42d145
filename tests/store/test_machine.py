"""A run against a dictionary: whatever is written, killed, lost, moved or copied, no wrong number is ever read.

The dictionary holds what every array should hold, and with what each cell of a part was sealed: a cell is done as long
as the arrays hold just that.
"""

import json
import shutil
from contextlib import suppress
from itertools import product

import numpy as np
import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from jacobian_lab.errors import InputError
from jacobian_lab.store import arrays, completion
from jacobian_lab.store.run import Run, open_run
from jacobian_lab.store.schema import DIGEST, KINDS

KIND = "damping"  # the fewest arrays: anchors by fact, and rows that are measured over all facts
LABELS = {"fact": ["a", "b", "c"], "anchor_layer": [1, 3], "row": ["p", "q"], "layer": [1, 3], "d_model": [0, 1]}
SETTINGS = {"ridge": 2.0, "layers": [1, 3]}
VARIABLES = KINDS[KIND]
ARRAYS = {mark: [name for name in VARIABLES if VARIABLES[name].mark == mark] for mark in ("anchor_passes", "measured")}
"""Arrays of each part, by its mark."""
CELLS = [(mark, cell) for mark in ARRAYS for cell in product(*(LABELS[dim] for dim in VARIABLES[mark].dims))]
WRITES = max(map(len, ARRAYS.values())) + 1
"""Writes that a cell takes at the most: its arrays and their digests."""


def labels_of(mark, cell):
    return dict(zip(VARIABLES[mark].dims, cell, strict=True))


def place(name, labels):
    return tuple(LABELS[dim].index(labels[dim]) if dim in labels else slice(None) for dim in VARIABLES[name].dims)


def unwritten(name):
    """An array as it begins."""
    variable = VARIABLES[name]
    fill = np.nan if variable.dtype.startswith("f") else 0
    return np.full([len(LABELS[dim]) for dim in variable.dims], fill, variable.dtype)


class RunMachine(RuleBasedStateMachine):
    """A run's folder, the `arrays` that it should hold, and the cells that are `sealed`, each with its values."""

    def __init__(self, root):
        super().__init__()
        self.root, self.folders, self.measurements = root, 0, 0

    @initialize()
    def begin(self):
        self.folder, self.methods = shutil.copytree(self.root / "new", self.another_folder()), {}
        self.arrays, self.sealed = {name: unwritten(name) for names in ARRAYS.values() for name in names}, {}

    def another_folder(self):
        self.folders += 1
        return self.root / f"{id(self)}-{self.folders}"

    def opened(self, **changes):
        return Run(self.folder, KIND, SETTINGS | changes, {}, LABELS)

    def values(self, mark, cell):
        return {name: self.arrays[name][place(name, labels_of(mark, cell))].copy() for name in ARRAYS[mark]}

    def is_done(self, mark, cell):
        values, sealed = self.values(mark, cell), self.sealed.get((mark, cell))
        return sealed is not None and all(
            np.array_equal(values[name], sealed[name], equal_nan=values[name].dtype.kind == "f") for name in values
        )

    def is_finished(self, mark, cell):
        """Whether a mark or a digest says so."""
        return (mark, cell) in self.sealed or bool(self.values(mark, cell)[mark])

    @rule(place_of=st.sampled_from(CELLS), writes=st.integers(0, 2 * WRITES))
    def measure(self, place_of, writes):
        """As jobs measure a cell that is not done; killed after so many writes, where it takes more."""
        (mark, cell), left = place_of, iter(range(writes))
        if self.is_done(mark, cell):
            return
        self.measurements += 1
        labels, passes = labels_of(mark, cell), self.measurements % 3 + 1 if mark == "anchor_passes" else 1

        with self.opened() as run, suppress(KeyboardInterrupt):
            write = run.write

            def killed_in_time(name, values, **where):
                if next(left, None) is None:
                    raise KeyboardInterrupt
                write(name, values, **where)
                if name == f"{mark}{DIGEST}":
                    self.sealed[mark, cell] = {**self.values(mark, cell), mark: np.int32(passes)}
                else:
                    self.arrays[name][place(name, labels)] = passes if name == mark else values

            run.write = killed_in_time
            for name, before in self.values(mark, cell).items():
                if name != mark:
                    values = self.measurements + np.arange(before.size).reshape(before.shape) / 8
                    run.write(name, np.where(values % 1 == 0.125, np.nan, values), **labels)
            run.commit(mark, passes, **labels)

    @rule(number=st.integers(0, 99), torn=st.booleans())
    def lose_a_chunk(self, number, torn):
        """Whoever reads a torn chunk of something finished is told in one line; then it is taken away."""
        names = [name for mark in ARRAYS for name in (*ARRAYS[mark], f"{mark}{DIGEST}")]
        chunks = [chunk for name in names for chunk in sorted((self.folder / "data.zarr" / name).glob("[0-9]*"))]
        if not chunks:
            return
        chunk = chunks[number % len(chunks)]
        name = chunk.parent.name
        mark = VARIABLES[name].mark or name.removesuffix(DIGEST)
        if torn and any(self.is_finished(*one) for one in CELLS if one[0] == mark):
            content = chunk.read_bytes()
            chunk.write_bytes(content[: number * len(content) // 100])
            for use in (lambda: open_run(self.folder), self.opened):
                with pytest.raises(InputError, match="expected the arrays of a run in"):
                    use()
        chunk.unlink()
        within = {}
        if "fact" in VARIABLES[mark if name.endswith(DIGEST) else name].dims:
            within["fact"] = LABELS["fact"][int(chunk.name.split(".")[0])]
        if name.endswith(DIGEST):
            gone = [one for one in self.sealed if one[0] == mark and within.items() <= labels_of(*one).items()]
            self.sealed = {one: values for one, values in self.sealed.items() if one not in gone}
        else:
            self.arrays[name][place(name, within)] = unwritten(name)[place(name, within)]

    @rule()
    def rename(self):
        self.folder = self.folder.rename(self.another_folder())

    @rule()
    def go_on_with_a_copy(self):
        self.folder = shutil.copytree(self.folder, self.another_folder())

    @rule()
    def go_on_with_another_run_that_takes_over(self):
        """All anchors that are there and whole, and nothing else."""
        donor, mark = self.folder, "anchor_passes"
        whole = {one: self.values(*one) for one in CELLS if one[0] == mark and self.is_done(*one)}
        self.begin()
        with self.opened() as run:
            assert run.copy_from(donor, mark) == len(whole)
        for one, values in whole.items():
            for name in values:
                self.arrays[name][place(name, labels_of(*one))] = values[name]
        self.sealed = whole

    @rule(method=st.sampled_from(["wise", "rledit"]), steps=st.integers(1, 2))
    def add_a_method(self, method, steps):
        if self.methods.setdefault(method, steps) == steps:
            self.opened(training={method: {"steps": steps}}).__exit__(None, None, None)
        else:
            with pytest.raises(InputError, match=rf"another training\.{method}\.steps"):
                self.opened(training={method: {"steps": steps}})
        held = json.loads((self.folder / "config.json").read_text())["settings"]
        assert held == {**SETTINGS, "training": {name: {"steps": steps} for name, steps in self.methods.items()}}

    @rule()
    def change_a_setting(self):
        with pytest.raises(InputError, match=r"another ridge: it has 2\.0, this command 3\.0"):
            self.opened(ridge=3.0)

    @invariant()
    def what_is_read_is_what_was_measured(self):
        lost = any(self.is_finished(*one) and not self.is_done(*one) for one in CELLS)
        with self.opened() as run:
            assert bool(run.finished.lost()) == lost
            for mark, cell in CELLS:
                labels = labels_of(mark, cell)
                assert run.done(mark, **labels).item() == self.is_done(mark, cell), (mark, cell)
                for name, values in self.values(mark, cell).items() if self.is_done(mark, cell) else ():
                    np.testing.assert_array_equal(run.read(name, **labels), values)
        if lost:
            with pytest.raises(InputError, match=r"without .*: give its command again"):
                open_run(self.folder)
            return
        dataset, measured = open_run(self.folder), self.arrays["measured"] == 1
        for name, values in self.arrays.items():
            rows = (
                np.compress(measured, values, VARIABLES[name].dims.index("row"))
                if "row" in dataset[name].dims
                else values
            )
            np.testing.assert_array_equal(dataset[name], rows, err_msg=name)


@pytest.mark.parametrize("times", [1, pytest.param(6, marks=pytest.mark.slow)])
def test_a_run_is_a_dictionary_that_knows_what_it_has_lost(times, tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "FACTS_PER_CHUNK", 1)
    monkeypatch.setattr(arrays, "CHUNK_BYTES", 1)
    monkeypatch.setattr(completion, "PAUSE", 0)
    Run(tmp_path / "new", KIND, SETTINGS, {}, LABELS).__exit__(None, None, None)
    examples = times * max(3, settings().max_examples // 10)
    # ten steps are read as they are: to shrink them takes minutes
    how = settings(max_examples=examples, stateful_step_count=10, deadline=None, phases=[Phase.generate])
    run_state_machine_as_test(lambda: RunMachine(tmp_path), settings=how)
