"""What is written is there whole or not at all, and what killed processes leave behind is swept."""

import os
import signal
import subprocess
import sys
import time

import pytest

import jacobian_lab
from jacobian_lab import caching
from jacobian_lab.caching import PARTIAL, STALE, write_text, written_whole
from jacobian_lab.errors import InputError

HOLDER = """
import sys, time
from pathlib import Path
from jacobian_lab.caching import written_whole
with written_whole(Path(sys.argv[1])) as partial:
    partial.write_text("half")
    print("begun", flush=True)
    time.sleep(100)
"""


def begun(target):
    """A process that is half through with writing `target`."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(target)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "begun\n"
    return process


def partials(folder):
    return sorted(path.name for path in folder.iterdir() if path.name.startswith(PARTIAL))


@pytest.mark.job
def test_what_a_killed_process_left_is_swept_and_what_a_living_one_writes_is_not(tmp_path):
    living, killed = begun(tmp_path / "living"), begun(tmp_path / "killed")
    try:
        assert len(partials(tmp_path)) == 2
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        write_text(tmp_path / "table.md", "whole")
        (left,) = partials(tmp_path)
        assert f"-{living.pid}-" in left
        old = time.time() - 2 * STALE
        for path in ((tmp_path / left), *(tmp_path / left).iterdir()):
            os.utime(path, (old, old))
        write_text(tmp_path / "table.md", "again")
        assert partials(tmp_path) == [left]  # however old: its process lives
    finally:
        living.kill()
        living.wait()
    assert not (tmp_path / "killed").exists()


@pytest.mark.parametrize("name", ["elsewhere.4026531836-1-abcd_123", "a-host-with-dashes.-77-00000000"])
def test_what_nobody_here_can_tell_of_is_swept_after_a_day(tmp_path, name):
    left = tmp_path / f"{PARTIAL}{name}"
    left.mkdir()
    (left / "weights").write_text("half")
    os.utime(left, (1, 1))
    write_text(tmp_path / "table.md", "whole")
    assert left.is_dir()  # its content is young: somebody is writing
    os.utime(left / "weights", (1, 1))
    os.utime(left, (1, 1))
    write_text(tmp_path / "table.md", "whole")
    assert not left.exists()


@pytest.mark.parametrize(
    "name",
    [
        ".partial-notes",
        ".partial-elsewhere.4026531836-1-abcdefgh",
        f"{PARTIAL}notes",
        f"{PARTIAL}elsewhere.1-1-abcdefghi",
        f"{PARTIAL}elsewhere.1-one-abcdefgh",
        f"{PARTIAL}elsewhere.1-1-abcdefgh.old",
        f"my{PARTIAL}elsewhere.1-1-abcdefgh",
    ],
)
def test_what_is_called_almost_so_is_somebody_else_s(tmp_path, name):
    thesis = tmp_path / name / "thesis.txt"
    thesis.parent.mkdir()
    thesis.write_text("years of work")
    for path in (thesis, thesis.parent):
        os.utime(path, (1, 1))
    write_text(tmp_path / "table.md", "whole")
    assert thesis.read_text() == "years of work"


def test_a_text_is_replaced_whole_or_stays(tmp_path):
    path = tmp_path / "table.md"
    write_text(path, "first")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "second \ud800")
    assert path.read_text() == "first"
    write_text(path, "third")
    assert path.read_text() == "third"
    assert [each.name for each in tmp_path.iterdir()] == ["table.md"]


def test_a_text_that_cannot_be_written_is_told_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=r"expected a file that can be written, got .*table\.md .*: change"):
        write_text(tmp_path / "file" / "table.md", "text")

    def read_only(*_a, **_k):
        raise PermissionError(13, "Permission denied")

    write_text(tmp_path / "table.md", "first")
    monkeypatch.setattr(caching.Path, "replace", read_only)
    with pytest.raises(InputError, match=r"table\.md \(Permission denied\)"):
        write_text(tmp_path / "table.md", "second")  # that there is an older file does not hide it
    assert (tmp_path / "table.md").read_text() == "first"


def test_of_two_that_make_the_same_folder_the_second_keeps_the_first_ones(tmp_path):
    with written_whole(tmp_path / "model") as slow:
        slow.mkdir()
        with written_whole(tmp_path / "model") as fast:
            fast.mkdir()
            (fast / "weights").write_text("whole")
    assert (tmp_path / "model" / "weights").read_text() == "whole"
    assert not partials(tmp_path)


def test_the_version_is_the_packages():
    from importlib.metadata import version

    assert jacobian_lab.__version__ == version("jacobian_lab")
