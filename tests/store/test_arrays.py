"""Nothing that a run has lost is presented as whole: readers are told, writers do it again."""

import os
import re
import shutil
import tracemalloc
import uuid

import numpy as np
import pytest
import zarr

from jacobian_lab.caching import PARTIAL
from jacobian_lab.errors import InputError
from jacobian_lab.report.results import write_reports
from jacobian_lab.store import arrays, digests
from jacobian_lab.store import completion as finished_module
from jacobian_lab.store.arrays import create_store
from jacobian_lab.store.completion import Completion
from jacobian_lab.store.digests import digested_arrays
from jacobian_lab.store.run import Run, open_run
from jacobian_lab.store.schema import KINDS

FACTS = [f"fact {n}" for n in range(20)]  # two chunks
SETTINGS = {"seed": 3, "dtype": "float32", "layers": [4, 5], "anchor": {"lr": 0.5, "steps": 25, "stop_loss": 0.05}}
COORDINATES = {
    "fact": FACTS,
    "scheme": ["backward-dividing", "one-layer", "forward-replay"],
    "layer": [4, 5],
    "anchor_layer": [4, 5],
    "study": ["theorem1", "step_size"],
    "step": [0.0, 1.0],
    "d_model": range(3),
}
DONE = ["backward-dividing", "forward-replay"]


def create(folder, coordinates=COORDINATES):
    return Run(folder, "tables", SETTINGS, {"model": "my_model"}, coordinates)


def values(run, name):
    """Numbers that are the same at every call, in the shape of one scheme's or of the whole array."""
    shape = [len(run.coordinates[dim]) for dim in run.variables[name].dims if dim != "scheme"]
    return np.random.default_rng(len(name)).normal(size=shape)


def fill(run, mark, **labels):
    """Write and commit a part."""
    for name, variable in run.variables.items():
        if variable.mark == mark != name and variable.study in {"", labels.get("study")}:
            run.write(name, values(run, name), **{k: v for k, v in labels.items() if k in variable.dims})
    run.commit(mark, **labels)


@pytest.fixture(scope="module", autouse=True)
def small_chunks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrays, "CHUNK_BYTES", 1)
        yield


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """Every part but one scheme and one study."""
    folder = tmp_path_factory.mktemp("made") / "run"
    with create(folder) as run:
        for mark in ("anchor_passes", "replayed", "surveyed"):
            fill(run, mark)
        for scheme in DONE:
            fill(run, "measured", scheme=scheme)
            fill(run, "studied", scheme=scheme, study="theorem1")
    return folder


@pytest.fixture
def finished(finished_run, tmp_path):
    """A copy of it, to be damaged."""
    return shutil.copytree(finished_run, tmp_path / "run")


def left(finished, mark, **labels):
    """Labels whose cells are not finished."""
    ((_, every),) = labels.items()
    return [label for label, done in zip(every, finished.cells(mark, **labels), strict=True) if not done]


def lose(folder, chunk):
    path = folder / "data.zarr" / chunk
    assert path.is_file()
    path.unlink()


LOSSES = [
    ("residual_ratio/0.0.0", "measured", r"residual_ratio of scheme backward-dividing, forward-replay"),
    ("efficacy/1.0", "measured", r"efficacy of scheme backward-dividing, forward-replay"),
    ("update_norm/0.0", "measured", r"update_norm of scheme backward-dividing, forward-replay"),
    ("measured/0", "measured", r"measured of scheme backward-dividing, forward-replay"),
    ("measured_digest/0.0", "measured", r"measured_digest of scheme backward-dividing, forward-replay"),
    ("anchor/1.0.0", "anchor_passes", r"anchor of fact fact 16, fact 17, fact 18 and 1 more, anchor_layer 4, 5"),
    ("anchor_loss/0.0", "anchor_passes", r"anchor_loss of fact fact 0, fact 1, fact 2 and 13 more, anchor_layer 4, 5"),
    ("anchor_passes/1.0", "anchor_passes", r"anchor_passes of fact fact 16, fact 17, fact 18 and 1 more"),
    ("anchor_passes_digest/1.0.0", "anchor_passes", r"anchor_passes_digest of fact fact 16"),
    ("replayed_target/0.0.0", "replayed", r"replayed_target of fact fact 0, fact 1, fact 2 and 13 more"),
    ("efficacy_unedited/1", "replayed", r"efficacy_unedited of fact fact 16"),
    ("lambda_min/1.0", "surveyed", r"lambda_min of fact fact 16, fact 17, fact 18 and 1 more"),
    ("decision/1.0", "surveyed", r"decision of fact fact 16"),
    ("eigenvector_angle/0.0.0", "studied", r"eigenvector_angle of study theorem1, scheme backward-dividing, forward"),
    ("studied/0.0", "studied", r"studied of study theorem1, scheme backward-dividing, forward-replay"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("chunk", "mark", "words"), LOSSES)
def test_a_lost_chunk_is_named_and_its_part_alone_is_done_again(finished, capsys, chunk, mark, words):
    before = open_run(finished)
    lose(finished, chunk)
    for read in (open_run, write_reports):
        with pytest.raises(InputError, match=f"got .*run without {words}.*: give its command again$") as caught:
            read(finished)
        assert "\n" not in str(caught.value)
    assert Completion.of(finished).lost(mark)
    with create(finished) as run:
        (line,) = capsys.readouterr().err.splitlines()
        assert re.search(f"without {words}", line)
        for part in ("anchor_passes", "replayed", "surveyed"):
            assert run.done(part).all() == (part != mark)
        for part, labels in (("measured", {}), ("studied", {"study": "theorem1"})):
            done = run.done(part, scheme=DONE, **labels)
            assert done.all() == (part != mark)
            for scheme, there in zip(DONE, done.ravel(), strict=True):
                if not there:
                    fill(run, part, scheme=scheme, **labels)
        if mark not in {"measured", "studied"}:
            fill(run, mark)
    assert open_run(finished).identical(before)
    assert not Completion.of(finished).lost(mark)


def test_a_lost_chunk_leaves_the_facts_of_the_others_done(finished):
    lose(finished, "anchor/1.0.0")
    with create(finished) as run:
        assert run.done("anchor_passes").all(1).tolist() == [True] * 16 + [False] * 4
    assert not Completion.of(finished).all("anchor_passes")
    assert left(Completion.of(finished), "surveyed", fact=FACTS) == []
    assert Completion.of(finished).all("measured", scheme=DONE)


def test_what_is_finished_is_read_once_and_asked_often(finished, tmp_path):
    lose(finished, "anchor/1.0.0")
    done = Completion.of(str(finished))
    shutil.rmtree(finished / "data.zarr" / "cosine")  # after it was opened, before it is asked
    assert left(done, "surveyed", fact=FACTS[14:18]) == []
    assert done.all("replayed")
    assert done.lost("replayed", "surveyed") == ""
    assert done.cells("anchor_passes", fact=["fact 15", "fact 16"]).tolist() == [[True, True], [False, False]]
    assert done.lost("anchor_passes").startswith("anchor of fact fact 16")
    assert done.lost("measured").startswith("cosine of scheme backward-dividing, forward-replay")
    lose(finished, "lambda_min/0.0")
    assert done.all("surveyed")  # as it was when it was asked first
    assert not Completion.of(finished).all("surveyed")
    nothing = Completion.of(tmp_path / "nothing")
    assert left(nothing, "measured", scheme=DONE) == DONE
    assert nothing.cells("studied", study="theorem1", scheme=DONE).tolist() == [[False, False]]
    assert not nothing.all("replayed")
    assert nothing.lost() == ""


def test_what_is_sealed_is_finished_at_once(tmp_path):
    with create(tmp_path / "run") as run:
        assert left(run.finished, "measured", scheme=DONE) == DONE
        fill(run, "measured", scheme=DONE[0])
        assert left(run.finished, "measured", scheme=DONE) == DONE[1:]
        assert left(Completion.of(tmp_path / "run"), "measured", scheme=DONE) == DONE[1:]


def test_an_empty_store_takes_no_memory_and_no_place(tmp_path):
    facts, width = 2_000, 4_096  # 1.3 GB of spectra, were they there
    labels = {
        "fact": range(facts),
        "layer": range(5),
        "rank": range(width),
        "array": digested_arrays(KINDS["jacobian"]),
    }
    tracemalloc.start()
    create_store(tmp_path, KINDS["jacobian"], labels)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**24
    assert not [path for path in (tmp_path / "data.zarr" / "singular_value").iterdir() if path.name[0] != "."]
    arrays = zarr.open_group(tmp_path / "data.zarr", mode="r")
    assert np.isnan(arrays["singular_value"][7, 2]).all()
    assert (arrays["surveyed"][:] == 0).all()


def test_one_part_can_be_read_where_another_is_lost(finished):
    anchors = open_run(finished)["anchor"]
    lose(finished, "cosine/0.0.0")
    assert open_run(finished, part="anchor_passes")["anchor"].identical(anchors)
    with pytest.raises(InputError, match="without cosine of scheme"):
        open_run(finished, part="measured")


def test_a_value_that_has_changed_is_noticed(finished):
    with create(finished) as run:
        run.write("residual_ratio", [[7.0]], fact=["fact 3"], scheme="forward-replay", layer=[5])
    with pytest.raises(InputError, match="without residual_ratio of scheme forward-replay: give"):
        open_run(finished)
    assert left(Completion.of(finished), "measured", scheme=DONE) == ["forward-replay"]


def test_what_is_not_finished_is_not_lost(tmp_path, capsys):
    with create(tmp_path / "run") as run:
        run.write("residual_ratio", values(run, "residual_ratio"), scheme="one-layer")
        run.write("anchor", values(run, "anchor")[:3], fact=FACTS[:3])
    assert open_run(tmp_path / "run").sizes["scheme"] == 0
    with create(tmp_path / "run") as run:
        assert not run.done("measured").any()
    assert not capsys.readouterr().err
    assert left(Completion.of(tmp_path / "run"), "measured", scheme=DONE) == DONE
    assert left(Completion.of(tmp_path / "nothing"), "measured", scheme=DONE) == DONE
    assert not Completion.of(tmp_path / "nothing").lost("measured")


@pytest.mark.parametrize("kind", KINDS)
def test_every_array_of_every_kind_belongs_to_a_part(kind):
    for name, variable in KINDS[kind].items():
        assert variable.mark in KINDS[kind] or name.endswith("_digest")


@pytest.mark.parametrize("dim", ["fact", "scheme", "layer", "anchor_layer", "study", "step", "array"])
def test_lost_labels_are_told_in_one_line(finished, dim):
    lose(finished, f"{dim}/0")
    for use in (open_run, create, lambda folder: Completion.of(folder).all("measured")):
        with pytest.raises(InputError, match=f"the arrays of a run in .*, got other labels of {dim} than it was"):
            use(finished)


@pytest.mark.parametrize("damage", ["no metadata", "half a chunk", "another byte", "half of the metadata"])
def test_lost_metadata_and_torn_chunks_are_told_in_one_line(finished, damage):
    store = finished / "data.zarr"
    if damage == "no metadata":
        (store / ".zmetadata").unlink()
    elif damage in {"half a chunk", "another byte"}:
        torn = store / "residual_ratio" / "0.0.0"
        half, rest = np.array_split(np.frombuffer(torn.read_bytes(), np.uint8), 2)
        torn.write_bytes(half.tobytes() if damage == "half a chunk" else half.tobytes() + (rest ^ 1).tobytes())
    else:
        (store / ".zmetadata").write_text("{")
    for use in (open_run, create, lambda folder: Completion.of(folder).all("measured")):
        with pytest.raises(InputError, match=r"expected the arrays of a run in .*, got \w+: .*: remove") as caught:
            use(finished)
        assert "\n" not in str(caught.value)


def test_a_reader_between_a_digest_and_its_mark_looks_again(finished, monkeypatch):
    mark = zarr.open_array(finished / "data.zarr" / "measured", mode="r+")
    values = mark[...]
    mark[...] = 0 * values
    monkeypatch.setattr(finished_module.time, "sleep", lambda _: None)
    with pytest.raises(InputError, match="without measured"):
        open_run(finished)
    monkeypatch.setattr(finished_module.time, "sleep", lambda _: mark.set_basic_selection(..., values))
    assert (open_run(finished)["measured"] == 1).any()


def test_a_run_with_labels_of_another_version_is_refused(finished):
    more = {**COORDINATES, "scheme": ["a new one", *COORDINATES["scheme"]]}
    with pytest.raises(InputError, match=r"a run of this version, got other schemes in .*: choose another folder"):
        create(finished, more)


def test_what_a_killed_run_left_half_written_is_swept(finished, tmp_path):
    torn = finished / "data.zarr" / "cosine" / f"0.0.{uuid.uuid4().hex}.partial"
    torn.write_bytes(b"half")
    notes = [finished / "data.zarr" / "cosine" / "notes.partial", finished / ".partial-notes" / "thesis.txt"]
    for path in notes:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
        os.utime(path, (1, 1))
        os.utime(path.parent, (1, 1))
    with create(finished):
        assert not torn.exists()
    assert all(path.read_text() == "mine" for path in notes)
    new = tmp_path / "new"
    (new / f"{PARTIAL}here.1-1-abcdefgh").mkdir(parents=True)  # killed while the configuration was written
    with create(new) as run:
        assert not run.done("measured").any()
    (tmp_path / "full" / ".partial-notes").mkdir(parents=True)
    with pytest.raises(InputError, match=r"which holds '\.partial-notes'"):
        create(tmp_path / "full")


def test_a_table_that_was_deleted_is_written_again(finished):
    write_reports(finished)
    text = (finished / "table2.md").read_text()
    (finished / "table2.md").unlink()
    write_reports(finished)
    assert (finished / "table2.md").read_text() == text


def test_tables_into_a_folder_that_cannot_be_written_end_in_one_line(finished, monkeypatch):
    from jacobian_lab import caching

    def full(*_a, **_k):
        raise OSError(28, "No space left on device")

    write_reports(finished)
    text = (finished / "table2.md").read_text()
    monkeypatch.setattr(caching.tempfile, "mkdtemp", full)
    with pytest.raises(InputError, match=r"got .*measurements\.csv \(No space left on device\): change"):
        write_reports(finished)
    assert (finished / "table2.md").read_text() == text
    shutil.rmtree(finished)


def test_what_is_not_finished_is_not_read(tmp_path, monkeypatch):
    """A part of many facts is compared with its digests at finished ones alone."""
    monkeypatch.setattr(digests, "FACTS_AT_ONCE", 4)
    with create(tmp_path / "run") as run:
        run.write("anchor", values(run, "anchor")[5:7, :1], fact=FACTS[5:7], anchor_layer=[4])
        run.commit("anchor_passes", fact=FACTS[5:7], anchor_layer=[4])
    slices, original = [], arrays.along_facts
    monkeypatch.setattr(finished_module, "along_facts", lambda v, facts: slices.append(facts) or original(v, facts))
    completion = Completion.of(tmp_path / "run")
    assert completion.cells("anchor_passes", anchor_layer=4).sum() == 2
    assert set(map(repr, slices)) == {repr(slice(None)), repr(slice(4, 8))}
    del slices[:]
    assert not completion.cells("surveyed").any()
    assert len(slices) == 2  # the mark and its digests
    (tmp_path / "run" / "data.zarr" / "anchor" / "0.0.0").unlink()
    assert Completion.of(tmp_path / "run").lost().startswith("anchor of fact fact 5, fact 6")


def test_wide_arrays_are_read_when_they_are_asked_for(finished_run, monkeypatch):
    dataset = open_run(finished_run)
    assert not dataset["anchor"].variable._in_memory
    assert dataset["residual_ratio"].variable._in_memory
    np.testing.assert_array_equal(dataset["anchor"].values, zarr.open(finished_run / "data.zarr")["anchor"][:])
