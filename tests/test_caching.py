"""Files and folders are there whole or not at all, and what killed processes leave behind is swept."""

import os

import pytest

import jacobian_lab
from jacobian_lab import caching
from jacobian_lab.caching import PARTIAL, is_partial, write_text, written_whole
from jacobian_lab.errors import InputError


def partials(folder):
    return sorted(path.name for path in folder.iterdir() if path.name.startswith(PARTIAL))


NAMES = ["77-abcd_123", "elsewhere.4026531836-1-abcd_123", "a-host-with-dashes.-77-00000000"]
"""A name of this version, and names of earlier ones."""


@pytest.mark.parametrize("name", NAMES)
def test_what_killed_processes_left_is_swept_after_a_day(tmp_path, name):
    partial = tmp_path / f"{PARTIAL}{name}"
    partial.mkdir()
    (partial / "weights").write_text("half")
    os.utime(partial, (1, 1))
    write_text(tmp_path / "table.md", "whole")
    assert partial.is_dir()  # its content is young: somebody is writing
    os.utime(partial / "weights", (1, 1))
    os.utime(partial, (1, 1))
    write_text(tmp_path / "table.md", "whole")
    assert not partial.exists()


def test_a_partial_folder_has_such_a_name(tmp_path):
    with written_whole(tmp_path / "table.md") as partial:
        partial.write_text("half")
        (name,) = partials(tmp_path)
    assert is_partial(name)
    assert not is_partial("table.md")


@pytest.mark.parametrize(
    "name",
    [
        ".partial-notes",
        ".partial-elsewhere.4026531836-1-abcdefgh",
        f"{PARTIAL}notes",
        f"{PARTIAL}notebook",
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
    assert [path.name for path in tmp_path.iterdir()] == ["table.md"]


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
