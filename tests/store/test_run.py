"""A run's folder: created, resumed, refused."""

import json
import shutil
import warnings

import numpy as np
import pytest
import xarray as xr
import zarr
from filelock import SoftFileLock
from helpers.runs import EDITED, make_run

from jacobian_lab.errors import InputError
from jacobian_lab.store import run as runs
from jacobian_lab.store.completion import Completion
from jacobian_lab.store.run import Run, check_folder, config_of, open_run
from jacobian_lab.store.schema import KINDS

SETTINGS = {
    "model": "m",
    "anchor": {"lr": 0.5, "steps": 25, "stop_loss": 0.05},
    "ridge": 2.0,
    "seed": 3,
    "layers": [4, 5, 6, 7, 8],
}
COORDINATES = {
    "fact": ["a", "b", "c", "d"],
    "scheme": ["backward-dividing", "one-layer", "forward-replay"],
    "layer": [4, 5, 6, 7, 8],
    "anchor_layer": [4, 8],
    "study": ["theorem1", "step_size"],
    "step": [0.0, 1.0],
    "d_model": range(3),
}
VARIABLES = KINDS["tables"]


def create(folder, settings=SETTINGS):
    return Run(folder, "tables", settings, {"model": "my_model"}, COORDINATES)


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """Known numbers: fact i under every scheme at layer l has the ratio i + l."""
    folder = tmp_path_factory.mktemp("made") / "run"
    with create(folder) as run:
        run.write("anchor", np.ones((4, 2, 3)))
        run.commit("anchor_passes", 5)
        run.write("replayed_target", np.ones((4, 5, 3)))
        for scheme in ("backward-dividing", "forward-replay"):
            for name, variable in VARIABLES.items():
                if variable.dims == ("fact", "scheme", "layer"):
                    run.write(name, np.arange(4)[:, None] + np.arange(4, 9), scheme=scheme)
            run.write("update_norm", np.linspace(0.1, 0.5, 5), scheme=scheme)
            run.write("efficacy", [1, 0, 1, 1], scheme=scheme)
            run.commit("measured", scheme=scheme)
        run.write("efficacy_unedited", [0, 0, 0, 1])
        run.commit("replayed")
    return folder


@pytest.fixture
def finished(finished_run, tmp_path):
    """A copy of it, to be damaged."""
    return shutil.copytree(finished_run, tmp_path / "run")


def test_what_is_written_is_read(finished):
    dataset = open_run(str(finished))
    assert isinstance(dataset, xr.Dataset)
    assert list(dataset["scheme"].values) == ["backward-dividing", "forward-replay"]
    assert dataset["residual_ratio"].sel(fact="c", scheme="forward-replay", layer=7) == 9
    assert config_of(dataset)["settings"] == SETTINGS
    assert set(dataset) == {name for name in VARIABLES if not name.endswith("_digest")}
    for name in dataset:
        assert dataset[name].dims == VARIABLES[name].dims
        assert dataset[name].attrs["units"]
        assert dataset[name].attrs["long_name"]


def test_the_store_opens_with_xarray_alone(finished):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = xr.open_zarr(finished / "data.zarr")
    assert dataset["residual_ratio"].shape == (4, 3, 5)
    assert all(dataset[name].attrs["long_name"] for name in dataset.coords)


def test_parts_are_written_by_label_in_any_order(tmp_path):
    with create(tmp_path / "run") as run:
        run.write("anchor_loss", [7.0, 8.0], fact=["d", "b"], anchor_layer=8)
        run.write("residual_ratio", [[1.0, 2.0]] * 4, scheme="one-layer", layer=[8, 5])
        expected = np.full((4, 2), np.nan)
        expected[3, 1], expected[1, 1] = 7, 8
        np.testing.assert_array_equal(run.read("anchor_loss"), expected)
        np.testing.assert_array_equal(run.read("residual_ratio")[0, 1], [np.nan, 2, np.nan, np.nan, 1])
        assert run.read("anchor_passes").sum() == 0


def test_the_same_settings_resume(finished):
    with create(finished) as run:
        assert run.read("anchor_passes").all()


@pytest.mark.parametrize(
    ("change", "name"), [({"ridge": 3.0}, "ridge"), ({"anchor": {"lr": 0.1}}, "anchor.lr"), ({"more": 1}, "more")]
)
def test_other_settings_are_refused_by_name(finished, change, name):
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file() and p.name != runs.LOCK}
    with pytest.raises(InputError, match=f"another {name}: it has"):
        create(finished, SETTINGS | change)
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file() and p.name != runs.LOCK} == before


def test_marks_tell_what_is_stored(finished, tmp_path):
    assert Completion.of(finished).all("measured", scheme="forward-replay")
    assert Completion.of(finished).all("measured", scheme=["forward-replay", "backward-dividing"])
    assert not Completion.of(finished).all("measured", scheme=["forward-replay", "one-layer"])
    assert not Completion.of(finished).all("measured")
    assert Completion.of(finished).all("studied", study=[], scheme=["forward-replay"])
    assert not Completion.of(finished).all("studied", study=["theorem1"], scheme=["forward-replay"])
    assert not Completion.of(tmp_path / "nothing").all("measured")


def test_what_an_interrupted_study_left_is_not_shown(finished):
    with create(finished) as run:
        run.write("best_step", np.ones((4, 5)), scheme="forward-replay")
        assert open_run(finished)["best_step"].isnull().all()
        run.commit("studied", study="step_size", scheme="forward-replay")
    assert open_run(finished)["best_step"].sel(scheme="forward-replay").notnull().all()


def test_a_run_of_another_kind_is_refused(finished):
    with pytest.raises(InputError, match="a folder of jacobian-lab jacobians, got one of schemes"):
        check_folder(finished, "jacobian", SETTINGS)
    with pytest.raises(InputError, match="a run of jacobian-lab jacobians, got one of schemes"):
        open_run(finished, "jacobian")


def test_a_folder_with_something_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match=r"holds 'thesis.tex'"):
        create(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("content", ["{}", "not json", '{"format": "other"}', "[]"])
def test_a_foreign_configuration_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match="expected"):
        create(tmp_path)
    with pytest.raises(InputError, match="expected"):
        open_run(tmp_path)
    assert (tmp_path / "config.json").read_text() == content


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(InputError, match="output folder that can be made"):
        create(tmp_path / "run")


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(runs.os, "access", lambda *_: False)
    with pytest.raises(InputError, match="output folder that can be written"):
        create(tmp_path / "run")


def test_a_run_that_another_process_writes_is_refused(tmp_path):
    with create(tmp_path / "run"), pytest.raises(InputError, match="another process holds"):
        create(tmp_path / "run")
    with create(tmp_path / "run"):
        pass


def test_a_marker_of_another_host_where_nothing_can_be_locked_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "FileLock", SoftFileLock)
    (tmp_path / runs.LOCK).write_text("1\nanother-host\n")
    with pytest.raises(InputError, match=r"another process holds: wait for it, or remove \.lock in it if that is gone"):
        create(tmp_path)
    (tmp_path / runs.LOCK).unlink()
    with create(tmp_path) as run:
        assert not run.done("measured").any()


def test_a_run_killed_while_it_was_created_is_taken_up(tmp_path):
    folder = tmp_path / "run"
    with create(folder):
        pass
    shutil.rmtree(folder / "data.zarr")
    with create(folder) as run:
        assert run.read("anchor_passes").shape == (4, 2)


@pytest.mark.parametrize("damage", ["absent", "empty", "truncated"])
def test_a_broken_store_is_refused(finished, damage):
    store = finished / "data.zarr"
    if damage == "absent":
        shutil.rmtree(store)
    elif damage == "empty":
        shutil.rmtree(store)
        store.mkdir()
    else:
        (store / ".zmetadata").write_text("{")
        (store / "cosine" / ".zarray").write_text("{")
    with pytest.raises(InputError, match="arrays of a run"):
        open_run(finished)


def test_a_run_that_has_lost_an_array_is_refused(finished):
    shutil.rmtree(finished / "data.zarr" / "cosine")
    zarr.consolidate_metadata(finished / "data.zarr", zarr_format=2)
    with pytest.raises(InputError, match=r"expected the arrays of a run in .*, got no 'cosine'"):
        open_run(finished)


def test_a_run_of_a_version_with_fewer_arrays_is_read_as_if_they_were_not_measured_and_not_written(
    tmp_path, monkeypatch
):
    older = {name: variable for name, variable in KINDS["tables"].items() if name != "cosine"}
    with monkeypatch.context() as before:
        before.setitem(KINDS, "tables", older)
        make_run(tmp_path / "run", "tables")
        opened = open_run(tmp_path / "run")
    now = open_run(tmp_path / "run")
    assert set(now) == {*opened, "cosine"}
    assert now["cosine"].isnull().all()
    assert now["cosine"].dims == now["effort"].dims
    assert set(open_run(tmp_path / "run", part="surveyed")) == {
        n for n, variable in older.items() if variable.mark == "surveyed"
    }
    assert Completion.of(tmp_path / "run").all("measured")
    with pytest.raises(InputError, match="expected a run of this version, got other arrays"):
        make_run(tmp_path / "run", "tables")


def test_a_run_from_when_there_were_fewer_methods_is_found_finished_and_takes_no_newer_ones(tmp_path):
    make_run(tmp_path / "run", "edit_table")
    settings = config_of(open_run(tmp_path / "run"))["settings"]
    more = {**EDITED, "edit": ["a newer one", *EDITED["edit"]]}
    with Run(tmp_path / "run", "edit_table", settings, {}, more) as run:
        assert run.done("measured", edit="memit").all()
        values = run.read("perplexity", edit="memit")
        run.write("perplexity", values + 1, edit="memit")
        run.commit("measured", edit="memit")
        with pytest.raises(InputError, match="expected what a run of this version was made for, got 'a newer one'"):
            run.done("measured", edit="a newer one")
    assert float(open_run(tmp_path / "run")["perplexity"].sel(edit="memit")) == values + 1
    fewer = {**EDITED, "edit": ["memit"]}
    with pytest.raises(InputError, match="expected a run of this version, got other edits"):
        Run(tmp_path / "run", "edit_table", settings, {}, fewer)


def test_settings_of_methods_that_train_may_join(tmp_path):
    def training(**methods):
        return SETTINGS | {"training": {name: {"settings": settings} for name, settings in methods.items()}}

    for settings in (SETTINGS, training(wise="a"), training(rledit="b"), SETTINGS):
        create(tmp_path / "run", settings).__exit__(None, None, None)
    held = json.loads((tmp_path / "run" / "config.json").read_text())["settings"]["training"]
    assert held == {"wise": {"settings": "a"}, "rledit": {"settings": "b"}}
    with pytest.raises(InputError, match=r"another training\.wise\.settings"):
        create(tmp_path / "run", training(wise="c"))


def test_a_run_of_another_version_with_arrays_that_are_not_known_is_refused(tmp_path, monkeypatch):
    make_run(tmp_path / "run", "tables")
    monkeypatch.setitem(KINDS, "tables", {n: variable for n, variable in KINDS["tables"].items() if n != "cosine"})
    with pytest.raises(InputError, match=r"got a run with 'cosine' in .*, made by another one"):
        open_run(tmp_path / "run")


def test_config_is_json_that_anyone_reads(finished):
    config = json.loads((finished / "config.json").read_text())
    assert set(config) == {"format", "kind", "settings", "provenance", "coordinates"}
