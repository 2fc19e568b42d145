"""Work divided by facts: two workers give what one process does, whatever becomes of them."""

import os
import signal
import threading
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from helpers.small import CONFIGS, make_folder

from jacobian_lab.editing import layers
from jacobian_lab.errors import InputError
from jacobian_lab.evaluation import evaluator
from jacobian_lab.jobs.config import EditTableConfig, LayerCountConfig, SchemesConfig
from jacobian_lab.jobs.experiment import prepare
from jacobian_lab.jobs.kinds import run_job
from jacobian_lab.model.loading import load_model
from jacobian_lab.parallel import ray_workers as workers_module
from jacobian_lab.parallel.executor import SERIAL, called
from jacobian_lab.parallel.ray_workers import RayExecutor, device_of, start_executor
from jacobian_lab.parallel.settings import ExecutorConfig, Load
from jacobian_lab.session import descents as bench_module
from jacobian_lab.store.run import open_run
from jacobian_lab.training.settings import TrainingConfig, WiseConfig

ray = pytest.importorskip("ray")
TWO = ExecutorConfig(workers=2, worker_cpus=1)
METHODS = "memit", "alphaedit+cr"


@pytest.fixture(scope="module")
def executor(arguments):
    """Two workers, started once for all tests that only divide work, on a machine with room for two more."""
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield start_executor(TWO, load_model(arguments["model"], "float64", "cpu"), (1, 2, 3), "float64")
    ray.shutdown()


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(layers, "KEYS_AT_ONCE", 2)
    monkeypatch.setattr(evaluator, "FACTS_AT_ONCE", 2)


def same(folder, other):
    """Floats to rounding, everything else exactly."""
    ours, theirs = open_run(folder), open_run(other)
    assert set(ours) == set(theirs)
    for name in theirs:
        if theirs[name].dtype.kind == "f" and name != "lambda_error":
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-9, atol=1e-12, err_msg=name)
        elif theirs[name].dtype.kind != "f" and not name.endswith("_digest"):
            np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def test_one_process_needs_no_executor_beside_it(tiny):
    assert start_executor(ExecutorConfig(), tiny, (1, 2), "float64") is SERIAL


def test_a_worker_divides_its_model_over_the_cards_that_it_is_given(tiny):
    assert [device_of(gpus) for gpus in (0, 0.5, 1, 4)] == ["cpu", "cuda", "cuda", "cuda:0-3"]
    with pytest.raises(InputError, match=r"a whole number, got 1\.5"):
        start_executor(replace(TWO, worker_gpus=1.5), tiny, (1, 2), "float64")


def test_what_a_plan_is_told_of_who_works():
    """A worker's cards may be others than this process's, and on one card several may share."""
    assert ExecutorConfig().load(0) == ExecutorConfig().load(4) == Load()
    assert TWO.load(0) == Load(beside=2)
    assert ExecutorConfig(workers=8).load(1) == Load(1, 8.0, 1)
    assert ExecutorConfig(workers=8, worker_gpus=1).load(8) == Load(1, 8.0, 1)
    assert ExecutorConfig(workers=2, worker_gpus=4).load(8) == Load(1, 2.0, 4)
    assert ExecutorConfig(workers=4, worker_gpus=0.5).load(1) == Load(2, 2.0, 1)


def by_one_and_by_two(run, config, folder):
    run(replace(config, out=folder / "one"), progress=False)
    run(replace(config, out=folder / "two", executor=TWO), progress=False)
    same(folder / "two", folder / "one")


@pytest.mark.slow
def test_tables(arguments, tables_run, tmp_path):
    """Anchors, shifts, keys and the survey are the workers'."""
    same(run_job(SchemesConfig(**arguments, executor=TWO, out=tmp_path / "two"), progress=False), tables_run)


@pytest.mark.slow
def test_layer_count(arguments, small_pieces, tmp_path):
    """Other layers are edited than the configuration names; the weights of all of them go with the work."""
    config = LayerCountConfig(**{**arguments, "slice": "0:4", "layers": "2-3"}, schemes=("backward-full",))
    by_one_and_by_two(run_job, config, tmp_path)


@pytest.mark.slow
def test_edit_table_with_workers_killed_in_the_middle(arguments, small_pieces, monkeypatch, tmp_path):
    """The edited weights go with the work, to the worker that takes the dead one's place too."""
    original, killed = RayExecutor.map, []

    def map_and_kill(self, *given, **named):
        for number, found in enumerate(original(self, *given, **named)):
            yield found
            edited = self._sent is not None
            if number == 0 and killed.count(edited) < 2:
                killed.append(edited)
                ray.kill(self._actors[len(killed) % 2], no_restart=False)

    monkeypatch.setattr(RayExecutor, "map", map_and_kill)
    by_one_and_by_two(run_job, EditTableConfig(**arguments, methods=METHODS, edits_per_batch=3), tmp_path)
    assert sorted(killed) == [False, False, True, True]


@pytest.mark.slow
def test_in_half_precision_the_unedited_model_is_itself(arguments, small_pieces, request, tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)  # another number than the workers have
    request.addfinalizer(lambda: torch.set_num_threads(threads))
    config = {**arguments, "dtype": "bfloat16", "out": tmp_path / "run"}
    folder = run_job(EditTableConfig(**config, methods=("memit",), executor=TWO), progress=False)
    unedited = open_run(folder).sel(edit="unedited")
    assert (unedited["kl"].dropna("fact", how="all").fillna(0) == 0).all()
    assert (unedited["top1"].fillna(1) == 1).all()
    assert not ray.is_initialized()  # they have been let go


@pytest.mark.slow
def test_what_a_worker_s_memory_does_not_hold_is_halved(executor):
    def work(piece):
        if len(piece) > 2:
            raise MemoryError
        return sum(piece)

    told = []
    found = dict(executor.map([(1, 2, 3, 4), (5, 6, 7)], work, lambda *sizes: told.append(sizes)))
    assert {tuple(piece): each for piece, each in found.items()} == {(1, 2): 3, (3, 4): 7, (5, 6): 11, (7,): 7}
    assert set(told) <= {(4, 2), (3, 1), (3, 2)}


@pytest.mark.slow
def test_a_worker_s_own_error_comes_back_as_it_was(executor):
    def work(_piece):
        raise InputError("expected this, got that: do so")

    with pytest.raises(InputError, match="expected this"):
        list(executor.map([(1,)], work))


def die(*facts):
    """Work that one of these facts lets its worker die of."""

    def work(piece):
        if set(facts) & set(piece):
            os.kill(os.getpid(), signal.SIGKILL)
        return sum(piece)

    return work


@pytest.mark.slow
def test_a_fact_that_kills_every_worker_is_named(executor, arguments, monkeypatch):
    monkeypatch.setattr(workers_module, "DEATHS", 0)
    alone = RayExecutor(
        ExecutorConfig(workers=1, worker_cpus=1), load_model(arguments["model"], "float64", "cpu"), (1, 2), "float64"
    )
    told, found = [], []
    labels = ["Ada", "the tower", "Gabriel", "Rome"]
    with pytest.raises(InputError, match=r"expected workers that stay alive, got 1 that died of fact 'Gabriel'"):
        found.extend(alone.map([(1, 2)], die(2), lambda *sizes: told.append(sizes), partial(called, labels=labels)))
    assert told == [(2, 1)]
    assert found == [((1,), 1)]
    for actor in alone._actors:
        ray.kill(actor)


@pytest.mark.slow
def test_a_worker_that_says_nothing_is_told_of(executor, monkeypatch, capsys):
    """Stopped, it is waited for, and told of ever more rarely; killed, its work is another's."""
    stopped = min(pid for _, pid in executor.map([(n,) for n in range(8)], lambda _piece: os.getpid()))
    monkeypatch.setattr(workers_module, "SILENCE", 2.0)
    os.kill(stopped, signal.SIGSTOP)
    threading.Timer(8, os.kill, (stopped, signal.SIGKILL)).start()
    found = dict(executor.map([(n,) for n in range(4)], sum))
    assert found == {(n,): n for n in range(4)}
    told = [line for line in capsys.readouterr().err.splitlines() if "kill -9" in line]
    assert 1 <= len(told) <= 6
    assert "jacobian-lab: a worker has been at fact number " in told[0]


def test_facts_in_words():
    assert called([4]) == "fact number 4"
    assert called(range(2, 9), "abcdefghi") == "facts 'c', 'd', 'e' and 4 more"


@pytest.mark.slow
def test_another_model_on_another_machine_is_refused(executor, tmp_path):
    folder = make_folder(tmp_path / "model", CONFIGS["llama"])
    model = load_model(str(folder), "float64", "cpu")
    workers = start_executor(TWO, model, (1, 2), "float64")
    make_folder(folder, CONFIGS["llama"], seed=1)
    with pytest.raises(InputError, match="expected the same model on every machine"):
        list(workers.map([(0,)], len))


@pytest.mark.slow
def test_workers_for_whom_there_is_no_room_are_refused(executor, monkeypatch):
    list(executor.map([(0,)], len))
    monkeypatch.setattr(workers_module._check_room, "__defaults__", (0.5,))
    many = replace(executor, settings=ExecutorConfig(workers=8, worker_cpus=1))
    with pytest.raises(InputError, match=r"expected 8 free CPUs for 8 workers, got .: choose fewer workers"):
        list(many.map([(0,)], len))


@pytest.mark.slow
def test_edited_weights_are_fetched_once(executor):
    before = executor.model.weight(2).clone()

    def look(_piece):
        model = next(iter(workers_module._RESIDENT.values()))
        return float(model.weight(2)[0, 0]), model.weight(2)._version, os.getpid()

    with torch.no_grad():
        executor.model.weight(2)[0, 0] = 7.0
    edited = [found for _, found in executor.map([(n,) for n in range(8)], look)]
    executor.model.weight(2).copy_(before)
    loaded = [found for _, found in executor.map([(n,) for n in range(8)], look)]
    assert {value for value, _, _ in edited} == {7.0}
    assert {value for value, _, _ in loaded} == {float(before[0, 0])}
    for found in (edited, loaded):
        assert len({(version, pid) for _, version, pid in found}) == len({pid for _, _, pid in found})


@pytest.mark.slow
def test_a_memory_is_asked_by_the_process_that_has_it(arguments, tmp_path):
    """WISE changes no weight that would be sent."""
    small = TrainingConfig(wise=WiseConfig(n_iter=5, shards=1, merged=1, edit_lr=1.0))
    config = EditTableConfig(**{**arguments, "slice": "0:3"}, methods=("wise",), training=small)
    by_one_and_by_two(run_job, config, tmp_path)
    found = open_run(tmp_path / "two")
    assert (found["kl"].sel(edit="wise") > 0).any()


@pytest.mark.slow
@pytest.mark.parametrize("descents", [None, "float32"])
def test_batches_are_as_large_as_the_workers_have_room_for(descents, arguments, monkeypatch):
    """Of what was free before they were hired, less their models, and copies, each has its part; and so a plan says."""
    anchor = replace(arguments["anchor"], dtype=descents)
    ours, free = SchemesConfig(**{**arguments, "anchor": anchor, "executor": TWO}), 2**24
    monkeypatch.setattr(workers_module, "free_memory", lambda _devices: free)
    bench = prepare(ours).session
    model = bench.model
    weights = sum(weight.numel() for weight in model.hf.parameters())
    each = weights * (8 + (4 if descents else 0))
    assert bench._batching._room() == (0, (free - 2 * each) // 2)
    alone = prepare(replace(ours, executor=ExecutorConfig())).session
    monkeypatch.setattr(bench_module, "free_memory", lambda _devices: free)
    assert alone._batching._room()[1] == free - (4 * weights if descents else 0)
