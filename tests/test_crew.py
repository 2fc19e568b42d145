"""Work divided by facts: two workers give what one process does, whatever becomes of them."""

import sys

import numpy as np
import pytest
from helpers.commands import options
from helpers.small import CONFIGS, make_folder

from jacobian_lab import cli
from jacobian_lab import crew as crew_module
from jacobian_lab.crew import ALONE, CrewSettings, Workers, hire
from jacobian_lab.errors import InputError
from jacobian_lab.jobs import setup
from jacobian_lab.jobs.config import EditTableConfig, SchemesConfig
from jacobian_lab.jobs.methods import run_edit_table
from jacobian_lab.jobs.schemes import run_schemes
from jacobian_lab.model.loading import load_model
from jacobian_lab.store.run import open_run

ray = pytest.importorskip("ray")
TWO = CrewSettings(workers=2)
METHODS = "memit", "alphaedit+cr"


@pytest.fixture(scope="module")
def crew(arguments):
    """Two workers, started once for all tests here."""
    yield hire(TWO, load_model(arguments["model"], "float64", "cpu"), (1, 2, 3), "float64", "cpu")
    ray.shutdown()


@pytest.fixture
def hired(crew, monkeypatch):
    monkeypatch.setattr(setup, "hire", lambda *_: crew)
    return crew


def same(folder, other):
    """Floats to rounding, everything else exactly."""
    ours, theirs = open_run(folder), open_run(other)
    assert set(ours) == set(theirs)
    for name in theirs:
        if theirs[name].dtype.kind == "f" and name != "lambda_error":
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-9, atol=1e-12, err_msg=name)
        else:
            np.testing.assert_array_equal(ours[name].isnull(), theirs[name].isnull(), err_msg=name)


def test_one_process_is_no_crew(tiny):
    assert hire(CrewSettings(), tiny, (1, 2), "float64", "cpu") is ALONE


def test_tables(arguments, hired, tmp_path):
    """Anchors, shifts, keys and the survey are the workers'."""
    run_schemes(SchemesConfig(**arguments, out=tmp_path / "one", crew=CrewSettings()), progress=False)
    run_schemes(SchemesConfig(**arguments, out=tmp_path / "two", crew=TWO), progress=False)
    same(tmp_path / "two", tmp_path / "one")


def test_edit_table_with_a_worker_killed_in_the_middle(arguments, hired, monkeypatch, tmp_path):
    """The edited weights go with the work, to the worker that takes the dead one's place too."""
    config = {**arguments, "methods": METHODS, "edits_per_batch": 3}
    with monkeypatch.context() as alone:
        alone.setattr(setup, "hire", lambda *_: ALONE)
        run_edit_table(EditTableConfig(**config, out=tmp_path / "one"), progress=False)
    original, killed = Workers.map, []

    def map_and_kill(self, *given):
        for number, found in enumerate(original(self, *given)):
            yield found
            if number == 0 and len(killed) < 3:
                killed.append(number)
                ray.kill(self._actors[len(killed) % 2], no_restart=False)

    monkeypatch.setattr(Workers, "map", map_and_kill)
    run_edit_table(EditTableConfig(**config, out=tmp_path / "two"), progress=False)
    assert len(killed) == 3
    same(tmp_path / "two", tmp_path / "one")


def test_what_a_worker_s_memory_does_not_hold_is_halved(crew):
    def work(piece):
        if len(piece) > 2:
            raise MemoryError
        return sum(piece)

    told = []
    found = dict(crew.map([(1, 2, 3, 4), (5, 6, 7)], work, lambda *sizes: told.append(sizes)))
    assert {tuple(piece): each for piece, each in found.items()} == {(1, 2): 3, (3, 4): 7, (5, 6): 11, (7,): 7}
    assert set(told) <= {(4, 2), (3, 1), (3, 2)}


def test_a_worker_s_own_error_comes_back_as_it_was(crew):
    def work(_piece):
        raise InputError("expected this, got that: do so")

    with pytest.raises(InputError, match="expected this"):
        list(crew.map([(1,)], work))


def test_a_piece_that_kills_every_worker_is_given_up(arguments, monkeypatch):
    monkeypatch.setattr(crew_module, "DEATHS", 0)
    model = load_model(arguments["model"], "float64", "cpu")

    def work(_piece):
        import os

        os._exit(1)

    with pytest.raises(InputError, match="expected workers that stay alive"):
        list(Workers(CrewSettings(), model, (1, 2), "float64", "cpu").map([(1, 2)], work))


def test_another_model_on_another_machine_is_refused(tmp_path):
    folder = make_folder(tmp_path / "model", CONFIGS["llama"])
    model = load_model(str(folder), "float64", "cpu")
    workers = hire(TWO, model, (1, 2), "float64", "cpu")
    make_folder(folder, CONFIGS["llama"], seed=1)
    with pytest.raises(InputError, match="expected the same model on every machine"):
        list(workers.map([(0,)], len))


def test_without_ray_it_is_said_in_one_line(arguments, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SystemExit) as caught:
        cli.main(["tables", *options({**arguments, "out": tmp_path / "run"}), "--workers", "2"])
    assert caught.value.code == 2
    assert "pip install 'jacobian_lab[ray]'" in capsys.readouterr().err
