"""Ray listens to nobody else, and a cluster that is not there is told of in a line."""

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.commands import ENVIRONMENT, options

from jacobian_lab import cli
from jacobian_lab.errors import InputError
from jacobian_lab.parallel.cluster import check_workers
from jacobian_lab.parallel.settings import ExecutorConfig

ray = pytest.importorskip("ray")

LISTENING = "0A"

HOLDER = """
import os
import sys
import ray
from jacobian_lab.parallel.cluster import start
from jacobian_lab.parallel.settings import ExecutorConfig
start(ExecutorConfig(workers=2), 1)
ray.get([ray.remote(lambda: 2).remote() for _ in range(2)])
print("ready", ray.get_runtime_context().gcs_address, os.environ["RAY_AUTH_MODE"], flush=True)
sys.stdin.read()
"""


def descendants(process):
    """Ids of a process and of all that it started."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = {process}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def sockets(processes):
    """Inodes of their sockets."""
    for process in processes:
        for path in Path(f"/proc/{process}/fd").glob("*"):
            try:
                target = str(path.readlink())
            except OSError:
                continue
            if target.startswith("socket:["):
                yield target.removeprefix("socket:[").removesuffix("]")


def listened_at(processes):
    """Addresses at which processes take connections, in hexadecimal, the last four bytes first."""
    ours = set(sockets(processes))
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            _, local, _, state, _, _, _, _, _, inode, *_ = line.split()
            if state == LISTENING and inode in ours:
                yield local.split(":")[0]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/net/tcp").is_file(), reason="needs /proc")
def test_ray_on_this_host_listens_to_this_host_alone():
    environment = {name: value for name, value in ENVIRONMENT.items() if name != "RAY_AUTH_MODE"}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    )
    try:
        lines = iter(process.stdout.readline, "")  # Ray's own too, where it is slow
        _, address, authentication = next(line for line in lines if line.startswith("ready")).split()
        addresses = list(listened_at(descendants(process.pid)))
    finally:
        process.communicate()
    assert address.startswith("127.0.0.1:")
    assert authentication == "token"
    assert len(addresses) >= 4  # GCS, raylet, this process, workers
    assert {address[-8:] for address in addresses} == {"0100007F"}


@pytest.fixture
def nobody():
    """A port of this host where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.mark.slow
def test_a_cluster_that_is_not_there_is_told_of_at_once(arguments, nobody, monkeypatch, tmp_path, capfd):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray._private.services, "find_gcs_addresses", set)  # others' clusters may be here
    monkeypatch.setattr(ray._private.services, "find_bootstrap_address", lambda _: None)
    for address, got in (("auto", "on this host or in RAY_ADDRESS, got none"), (f"127.0.0.1:{nobody}", "refused")):
        begin = time.monotonic()
        with pytest.raises(SystemExit) as caught:
            cli.main(["tables", *options({**arguments, "out": tmp_path / "run"}), "--ray", address])
        said = capfd.readouterr().err
        assert caught.value.code == 2
        assert time.monotonic() - begin < 10
        assert said.count("\n") == 1
        assert "expected a Ray cluster" in said
        assert got in said
        assert "start one with `ray start --head`, or leave --ray out" in said


@pytest.mark.parametrize("address", ["here", "local", "127.0.0.1", "host:port", "127.0.0.1:99999999", "ray://:1", ""])
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(InputError, match=r"expected (auto or HOST:PORT|a Ray cluster at)"):
        check_workers(ExecutorConfig(ray=address))


def test_a_host_that_does_not_answer_is_no_file(capsys):
    def command():
        raise ConnectionError("nobody is there")

    with pytest.raises(SystemExit):
        cli.guarded(command)
    assert capsys.readouterr().err == "jacobian-lab: expected hosts that answer, got nobody is there: mend that\n"
