"""Too little memory: told apart from faults, batches halved, and one line at the end."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from jacobian_lab import cli, memory
from jacobian_lab.jobs.config import SchemesConfig
from jacobian_lab.jobs.kinds import run_job
from jacobian_lab.memory import BatchQueue, available_memory, halving, out_of_memory
from jacobian_lab.session import descents as bench
from jacobian_lab.store.run import open_run

ALLOCATOR = "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"
SHORT = [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), MemoryError(), RuntimeError(ALLOCATOR)]
CPU = torch.device("cpu")


def test_what_torch_says_of_its_own_is_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**58)
    assert out_of_memory(caught.value)


@pytest.mark.parametrize("error", SHORT)
def test_lack_of_memory_ends_a_command_in_one_line(error, capsys):
    assert out_of_memory(error)

    def command():
        raise error

    with pytest.raises(SystemExit) as caught:
        cli.guarded(command)
    message = capsys.readouterr().err
    assert caught.value.code == 2
    assert message.count("\n") == 1
    assert message.startswith("jacobian-lab: expected memory")
    assert "--anchors-per-batch" in message


def test_other_faults_are_not_hidden():
    assert not out_of_memory(RuntimeError("shapes do not match"))

    def command():
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        cli.guarded(command)


def test_batches_are_halved_until_they_fit_and_stay_so():
    halvings, tried = [], []

    def work(batch):
        tried.append(len(batch))
        if len(batch) > 2:
            raise MemoryError
        return sum(batch)

    batches = [list(range(8)), list(range(8, 13)), [13]]
    parts = list(halving(batches, work, lambda failed, size: halvings.append((failed, size))))
    assert [index for part, _ in parts for index in part] == list(range(14))
    assert all(result == sum(part) for part, result in parts)
    assert halvings == [(8, 4), (4, 2)]
    assert tried == [8, 4, 2, 2, 2, 2, 2, 2, 1, 1]


def test_batches_of_several_workers_come_back_in_halves():
    """A batch taken before a smaller one failed is halved without a word, and one that is put back comes next."""
    sizes = []
    queue = BatchQueue([range(5), range(5, 10), range(10, 12)], lambda *halved: sizes.append(halved))
    first, second = queue.take(), queue.take()
    queue.halve(first)
    queue.halve(second)
    third = queue.take()
    assert sizes == [(5, 3)]
    assert [*third, *queue.take()] == [5, 6, 7, 8, 9]
    queue.put_back(third)
    assert queue.take() == third
    assert [list(queue.take()) for _ in range(3)] == [[0, 1, 2], [3, 4], [10, 11]]
    assert not queue


def test_one_item_that_does_not_fit_and_other_faults_reach_the_caller():
    def short(_):
        raise MemoryError

    def faulty(_):
        raise RuntimeError("shapes do not match")

    with pytest.raises(MemoryError):
        list(halving([[1, 2]], short, lambda *_: None))
    with pytest.raises(RuntimeError, match="shapes"):
        list(halving([[1, 2]], faulty, lambda *_: None))


def test_memory_is_what_is_free_within_the_group(tmp_path, monkeypatch):
    assert 2**20 < available_memory() < 2**50
    monkeypatch.setattr(memory, "_GROUP", tmp_path)
    assert available_memory() > 2**20  # there is no group
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=700 * 1024))
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory() == 700 * 1024
    (tmp_path / "memory.max").write_text(f"{300 * 1024}\n")
    (tmp_path / "memory.current").write_text(f"{250 * 1024}\n")
    (tmp_path / "memory.stat").write_text(f"anon 1\ninactive_file {30 * 1024}\n")
    assert available_memory() == 80 * 1024  # what the group holds and would not give back is taken
    (tmp_path / "memory.current").write_text(f"{900 * 1024}\n")
    assert available_memory() == 0
    (tmp_path / "memory.current").unlink()
    monkeypatch.setattr(memory, "_held", lambda: 100 * 1024)
    assert available_memory() == 200 * 1024
    assert memory.memory_of([CPU]) == (300 * 1024, None)


def test_the_peak_is_this_process_s_own():
    block = b"x" * 2**28
    assert memory.peak_memory([CPU]) > len(block)
    code = "import types, jacobian_lab.memory as m; print(m.peak_memory([types.SimpleNamespace(type='cpu')]))"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert 2**20 < int(child.stdout) < 2**27  # without torch


def test_the_first_version_of_groups_has_limits_too(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_GROUP", tmp_path)
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=700 * 1024))
    monkeypatch.setattr(memory, "_held", lambda: 100 * 1024)
    group = tmp_path / "memory"
    group.mkdir()
    (group / "memory.limit_in_bytes").write_text("9223372036854771712\n")  # none
    (group / "memory.usage_in_bytes").write_text(f"{250 * 1024}\n")
    (group / "memory.stat").write_text(f"inactive_file 0\ntotal_inactive_file {30 * 1024}\n")
    assert available_memory() == 700 * 1024
    (group / "memory.limit_in_bytes").write_text(f"{300 * 1024}\n")
    assert available_memory() == 80 * 1024
    assert memory.memory_of([CPU]) == (180 * 1024, None)


@pytest.mark.slow
def test_anchors_that_do_not_fit_together_are_made_in_halves(arguments, tmp_path, monkeypatch, capsys):
    """The numbers are the same, one line says so, and the bar ends where it should."""
    config = {**arguments, "anchors_per_batch": 6, "schemes": ("backward-dividing",), "survey": "none"}
    whole = open_run(run_job(SchemesConfig(**config, out=tmp_path / "whole"), progress=False))
    original, sizes, bars = bench.optimize_anchors, [], []

    def cramped(rows, *rest):
        sizes.append(len(rows))
        progress = rest[2]
        if len(rows) > 1:
            progress(1, 0.5)  # some are done already when it fails
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(rows, *rest)

    real_bar = bench.bar
    monkeypatch.setattr(bench, "optimize_anchors", cramped)
    monkeypatch.setattr(bench, "bar", lambda *a, **k: bars.append(real_bar(*a, **k)) or bars[-1])
    parts = open_run(run_job(SchemesConfig(**config, out=tmp_path / "parts"), progress=True))
    assert max(sizes) > 1
    lines = [line for line in capsys.readouterr().err.splitlines() if "out of memory" in line]
    assert lines
    assert all("facts side by side: going on with" in line for line in lines)
    anchors = next(bar for bar in bars if bar.desc.startswith("anchors"))
    assert anchors.n == anchors.total
    for name in ("anchor", "anchor_loss", "anchor_passes", "residual_ratio"):
        np.testing.assert_allclose(whole[name].values, parts[name].values, rtol=1e-7, atol=1e-9)
