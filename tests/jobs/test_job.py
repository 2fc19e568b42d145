"""A job of parts that write made-up numbers, without a model: resumed, killed, grown, refused, made whole again."""

import json
import os
import shutil
import signal
from itertools import product
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from jacobian_lab.errors import InputError
from jacobian_lab.jobs import job as jobs
from jacobian_lab.jobs.job import COSTS, Job, Part, Preparation, each_cell, unfinished
from jacobian_lab.model.language_model import LanguageModel
from jacobian_lab.parallel.executor import SERIAL
from jacobian_lab.planning.shape import Shape
from jacobian_lab.planning.work import Stage, Work
from jacobian_lab.store import arrays
from jacobian_lab.store.run import GROWING, config_of, open_run
from jacobian_lab.store.schema import DIGEST, KINDS

KIND = "layer_count"  # three parts, each with other dimensions
VARIABLES = KINDS[KIND]
LABELS = {
    "fact": ["a", "b", "c"],
    "scheme": ["one-layer", "forward-replay"],
    "count": [1, 2],
    "anchor_layer": [1, 3],
    "d_model": [0, 1],
}
ANCHORS, SHIFTS, COUNTED = MARKS = ("anchor_passes", "coordinated_shift_passes", "counted")
SETTINGS = {"ridge": 2.0, "layers": [1, 3]}
MODEL = Mock(spec=LanguageModel, devices=(torch.device("cpu"),), cards=0, dtype=torch.float32)


def cells_of(mark, **labels):
    dims = VARIABLES[mark].dims
    return [dict(zip(dims, cell, strict=True)) for cell in product(*(labels.get(dim, LABELS[dim]) for dim in dims))]


def named(mark, cells):
    return [(mark, *cell.values()) for cell in cells]


EVERY_CELL = [cell for mark in MARKS for cell in named(mark, cells_of(mark))]


def numbers(name, cell):
    """Numbers of a cell, its own and always the same."""
    shape = [len(LABELS[dim]) for dim in VARIABLES[name].dims if dim not in cell]
    return np.random.default_rng(list(f"{name}{list(cell.values())}".encode())).uniform(size=shape)


class Parts:
    """Parts of a job, with the cells that are counted and computed; `end` is called in the middle of one cell."""

    def __init__(self, cells=None, end_at=None, end=None):
        self.counted, self.computed, self.end_at, self.end = [], [], end_at, end
        self.parts = [self.part(mark, left) for mark, left in (cells or {m: cells_of(m) for m in MARKS}).items()]

    def part(self, mark, cells):
        def work(_counts, left):
            self.counted += named(mark, left)
            return [Stage(mark, Work(moved=float(len(left))))]

        def compute(run, left):
            each_cell(run, mark, left, lambda **cell: self.values(mark, cell), mark, "cell", False)

        return Part(lambda done: unfinished(done, mark, cells), compute, work)

    def values(self, mark, cell):
        self.computed += named(mark, [cell])
        for name, variable in VARIABLES.items():
            if variable.mark == mark != name:
                yield name, numbers(name, cell), {}
                if self.computed[-1] == self.end_at:
                    self.end()


def job(out, parts, settings=SETTINGS, **more):
    return Job(KIND, MODEL, out, settings, lambda: {"model": "none"}, LABELS, parts.parts, **more)


def interrupt():
    raise KeyboardInterrupt


@pytest.fixture(scope="module", autouse=True)
def no_model():
    sizes = dict.fromkeys(("blocks", "d_model", "d_mlp", "vocabulary", "block", "weights", "cached", "inner"), 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Shape, "of", lambda _model: Shape(**sizes, windows=False))
        patch.setattr(arrays, "FACTS_PER_CHUNK", 1)
        patch.setattr(arrays, "CHUNK_BYTES", 1)
        yield


@pytest.fixture(scope="module")
def whole(no_model, tmp_path_factory):
    parts = Parts()
    folder = job(tmp_path_factory.mktemp("whole") / "run", parts).carry_out()
    assert parts.counted == parts.computed == EVERY_CELL  # each once, part after part
    return folder


def is_like(folder, whole):
    return open_run(folder).drop_attrs().identical(open_run(whole).drop_attrs())


def test_every_part_is_computed_and_recorded(whole):
    dataset = open_run(whole, KIND)
    for name, variable in VARIABLES.items():
        if variable.mark not in {"", name}:
            for cell in cells_of(variable.mark):
                np.testing.assert_array_equal(dataset[name].sel(cell), numbers(name, cell))
    config = config_of(dataset)
    assert (config["settings"], config["provenance"]) == (SETTINGS, {"model": "none"})
    costs = json.loads((whole / COSTS).read_text())
    assert [part["stages"] for part in costs["parts"]] == [[], *([mark] for mark in MARKS)]
    assert all(part["took_seconds"] >= 0 for part in costs["parts"])
    assert [stage["name"] for stage in costs["stages"]] == list(MARKS)


def test_a_finished_run_computes_nothing(whole):
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    parts = Parts()
    assert job(whole, parts, before=Preparation(lambda _: pytest.fail("prepared again"))).carry_out() == whole
    assert parts.counted == parts.computed == []
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before


@pytest.mark.parametrize("place", [0, 5, 6, 9, len(EVERY_CELL) - 1])
def test_an_interrupted_run_goes_on_after_the_last_cell(place, whole, tmp_path):
    executor = Mock(spec=SERIAL, load=SERIAL.load)
    with pytest.raises(KeyboardInterrupt):
        job(tmp_path / "run", Parts(end_at=EVERY_CELL[place], end=interrupt), executor=executor).carry_out()
    assert executor.release.called
    again = Parts()
    job(tmp_path / "run", again).carry_out()
    assert again.counted == again.computed == EVERY_CELL[place:]
    assert is_like(tmp_path / "run", whole)


@pytest.mark.parametrize("place", [0, 11])
def test_a_killed_run_goes_on(place, whole, tmp_path):
    """SIGKILL while a cell is written, in another process."""
    child = os.fork()
    if not child:
        job(
            tmp_path / "run", Parts(end_at=EVERY_CELL[place], end=lambda: os.kill(os.getpid(), signal.SIGKILL))
        ).carry_out()
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    again = Parts()
    job(tmp_path / "run", again).carry_out()
    assert again.computed == EVERY_CELL[place:]
    assert is_like(tmp_path / "run", whole)


@pytest.mark.parametrize(
    "name",
    ["anchor", ANCHORS, f"{ANCHORS}{DIGEST}", "coordinated_shift_loss", "count_kl", COUNTED, f"{COUNTED}{DIGEST}"],
)
def test_what_is_lost_is_computed_again_and_nothing_else(name, whole, tmp_path, capsys):
    folder = shutil.copytree(whole, tmp_path / "run")
    min((folder / "data.zarr" / name).glob("[0-9]*")).unlink()
    mark = VARIABLES[name].mark or name.removesuffix(DIGEST)
    first_fact = {"fact": ["a"]} if "fact" in VARIABLES[mark].dims else {}
    with pytest.raises(InputError, match=f"without {name} of "):
        open_run(folder)
    again = Parts()
    job(folder, again).carry_out()
    assert again.counted == again.computed == named(mark, cells_of(mark, **first_fact))
    assert f"is without {name} of " in capsys.readouterr().err
    assert is_like(folder, whole)


def test_a_run_grows_by_cells_parts_and_settings_that_may_join(whole, tmp_path):
    few = {ANCHORS: cells_of(ANCHORS), COUNTED: cells_of(COUNTED, scheme=["one-layer"])}
    folder = job(tmp_path / "run", Parts(few)).carry_out()
    assert list(open_run(folder)["scheme"].values) == LABELS["scheme"]
    more = Parts()
    job(folder, more, SETTINGS | {GROWING: {"wise": {"steps": 4}}}).carry_out()
    assert more.computed == named(SHIFTS, cells_of(SHIFTS)) + named(
        COUNTED, cells_of(COUNTED, scheme=["forward-replay"])
    )
    fewer = Parts(few)
    job(folder, fewer).carry_out()
    assert fewer.computed == []
    for name, variable in VARIABLES.items():
        if variable.mark:
            np.testing.assert_array_equal(open_run(folder)[name], open_run(whole)[name])


@pytest.mark.parametrize(
    ("settings", "name"), [({"ridge": 3.0}, "ridge"), ({"layers": [1]}, "layers"), ({"seed": 1}, "seed")]
)
def test_a_changed_setting_is_refused_by_name_before_any_work(settings, name, whole):
    parts = Parts({COUNTED: [*cells_of(COUNTED), {"scheme": "one-layer", "count": 3}]})
    with pytest.raises(InputError, match=f"another {name}: it has"):
        job(whole, parts, SETTINGS | settings, before=Preparation(lambda _: pytest.fail("prepared"))).carry_out()
    assert parts.counted == parts.computed == []


def test_the_default_folder_is_named_by_what_decides(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    few = {ANCHORS: cells_of(ANCHORS, fact=["a"])}
    first, same, other = (
        job(None, Parts(few), settings).carry_out()
        for settings in (SETTINGS, SETTINGS | {GROWING: {"wise": {"steps": 4}}}, SETTINGS | {"ridge": 3.0})
    )
    assert first == same != other
    assert str(first.parent) == "runs"


def test_preparation_that_fails_leaves_the_folder_free(tmp_path):
    def fail(_folder):
        raise InputError("expected this, got that: do so")

    parts = Parts()
    with pytest.raises(InputError, match="expected this"):
        job(tmp_path / "run", parts, before=Preparation(fail)).carry_out()
    assert parts.computed == []
    assert not list((tmp_path / "run").iterdir())
    prepared = []
    job(tmp_path / "run", parts, SETTINGS | {"ridge": 3.0}, before=Preparation(prepared.append)).carry_out()
    assert prepared == [tmp_path / "run"]


def test_what_memory_does_not_hold_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "memory_of", lambda _devices: (2**20, None))
    parts = Parts()
    with pytest.raises(InputError, match="expected"):
        job(tmp_path / "run", parts).carry_out()
    assert parts.counted == EVERY_CELL
    assert parts.computed == []
    assert not list((tmp_path / "run").iterdir())


def test_a_part_is_asked_again_when_its_turn_comes(whole, tmp_path):
    """An earlier one may have taken over some of it from another run."""
    parts = Parts()
    taking = Part(
        lambda done: unfinished(done, ANCHORS, cells_of(ANCHORS)), lambda run, _cells: run.copy_from(whole, ANCHORS)
    )
    made = job(tmp_path / "run", parts)
    Job(KIND, MODEL, made.out, SETTINGS, dict, LABELS, [taking, *parts.parts]).carry_out()
    assert parts.computed == [cell for cell in EVERY_CELL if cell[0] != ANCHORS]
    assert is_like(tmp_path / "run", whole)
