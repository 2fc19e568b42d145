"""A run's folder: created, resumed, refused; and the tables made of it."""

import json
import shutil
import warnings

import numpy as np
import pytest
import xarray as xr
import zarr
from filelock import SoftFileLock
from matplotlib.figure import Figure
from scipy import stats

from jacobian_lab.errors import InputError
from jacobian_lab.report import figures, residuals
from jacobian_lab.report.writing import facts_in_cells
from jacobian_lab.store import run as runs
from jacobian_lab.store.run import Run, check_folder, marked, open_run
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
    "study": ["theorem1", "step-size"],
    "step": [0.0, 1.0],
    "d_model": range(3),
}
VARIABLES = KINDS["tables"]


def create(folder, settings=SETTINGS):
    return Run(folder, "tables", settings, {"model": "my_model"}, COORDINATES)


@pytest.fixture
def finished(tmp_path):
    """Known numbers: fact i under every scheme at layer l has the ratio i + l."""
    with create(tmp_path / "run") as run:
        run.write("anchor", np.ones((4, 2, 3)))
        run.seal("anchor_passes", 5)
        run.write("replayed_target", np.ones((4, 5, 3)))
        for scheme in ("backward-dividing", "forward-replay"):
            for name, variable in VARIABLES.items():
                if variable.dims == ("fact", "scheme", "layer"):
                    run.write(name, np.arange(4)[:, None] + np.arange(4, 9), scheme=scheme)
            run.write("update_norm", np.linspace(0.1, 0.5, 5), scheme=scheme)
            run.write("efficacy", [1, 0, 1, 1], scheme=scheme)
            run.seal("measured", scheme=scheme)
        run.write("efficacy_unedited", [0, 0, 0, 1])
        run.seal("replayed")
    return tmp_path / "run"


def test_what_is_written_is_read(finished):
    dataset = open_run(finished)
    assert isinstance(dataset, xr.Dataset)
    assert list(dataset["scheme"].values) == ["backward-dividing", "forward-replay"]
    assert dataset["residual_ratio"].sel(fact="c", scheme="forward-replay", layer=7) == 9
    assert dataset.attrs["config"]["settings"] == SETTINGS
    for name, variable in VARIABLES.items():
        assert dataset[name].dims == variable.dims
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
    assert marked(finished, "measured", scheme="forward-replay")
    assert marked(finished, "measured", scheme=["forward-replay", "backward-dividing"])
    assert not marked(finished, "measured", scheme=["forward-replay", "one-layer"])
    assert not marked(finished, "measured")
    assert marked(finished, "studied", study=[], scheme=["forward-replay"])
    assert not marked(finished, "studied", study=["theorem1"], scheme=["forward-replay"])
    assert not marked(tmp_path / "nothing", "measured")


def test_a_run_of_another_kind_is_refused(finished):
    with pytest.raises(InputError, match="a folder of jacobian-lab jacobian, got one of tables"):
        check_folder(finished, "jacobian", SETTINGS)
    with pytest.raises(InputError, match="a run of jacobian-lab jacobian, got one of tables"):
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


def test_table_values_are_means_medians_and_the_papers(finished):
    long = residuals.table(open_run(finished), "table2")
    assert set(long["scheme"]) == {"backward-dividing"}
    row = long[long["layer"] == 6].iloc[0]
    assert (row["mean"], row["median"], row["count"], row["paper"]) == (7.5, 7.5, 4, 0.83)
    expected = stats.bootstrap(
        (np.array([6.0, 7, 8, 9]),), np.mean, n_resamples=9999, batch=1000, method="percentile", rng=3
    ).confidence_interval
    assert (row["low"], row["high"]) == (expected.low, expected.high)


def test_bootstrap_interval_is_that_of_the_normal_for_many_facts():
    values = np.random.default_rng(0).normal(5, 2, 2000)
    summary = residuals.summarise(values)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert summary["low"] == pytest.approx(values.mean() - half, abs=0.01)
    assert summary["high"] == pytest.approx(values.mean() + half, abs=0.01)


def test_summaries_leave_out_what_is_not_finite():
    assert residuals.summarise([1.0, np.nan, 3.0])["mean"] == 2
    assert np.isnan(residuals.summarise([np.nan])["mean"])
    single = residuals.summarise([4.0])
    assert single["mean"] == 4
    assert np.isnan(single["low"])


def test_reports_are_written_in_three_formats(finished):
    text = residuals.write_reports(finished)
    assert "paper (Llama-3-8B)" in text
    assert "unedited" in text
    for name in ("table1", "table2", "table5", "efficacy"):
        for ending in ("md", "tex", "csv"):
            assert (finished / f"{name}.{ending}").stat().st_size > 50
    lines = (finished / "measurements.csv").read_text().splitlines()
    assert lines[0].startswith("fact,scheme,layer,residual_ratio,cosine,")
    assert len(lines) == 1 + 4 * 2 * 5
    assert lines[1].startswith("a,backward-dividing,4,4.0,4.0")
    tex = (finished / "table2.tex").read_text()
    assert r"95 \%" in tex
    assert tex.isascii()
    assert r"my\_model" in tex


def test_a_failed_fact_is_listed(finished):
    with create(finished) as run:
        run.write("anchor", np.full((1, 3), np.nan), fact=["c"], anchor_layer=8)
        run.seal("anchor_passes", 5, fact="c", anchor_layer=8)
    assert residuals.failed_facts(open_run(finished)) == ["c"]
    assert "left out of every mean: c." in residuals.write_reports(finished)


def test_the_papers_row_needs_the_papers_number_of_layers(tmp_path):
    coordinates = COORDINATES | {"layer": [2, 3], "anchor_layer": [2, 3]}
    with Run(tmp_path / "run", "tables", SETTINGS, {}, coordinates) as run:
        run.write("residual_ratio", np.ones((4, 2)), scheme="backward-dividing")
        run.write("update_norm", [0.1, 0.1], scheme="backward-dividing")
        run.seal("measured", scheme="backward-dividing")
    assert residuals.table(open_run(tmp_path / "run"), "table2")["paper"].isna().all()


def test_facts_answered_without_an_update_are_listed(finished):
    with create(finished) as run:
        run.seal("anchor_passes", [1], fact=["b"], anchor_layer=8)
    assert residuals.answered_facts(open_run(finished)) == ["b"]
    assert "answers already, left out of ratios: b." in residuals.write_reports(finished)


def test_anchors_that_did_not_take_are_counted_by_layer(finished):
    assert residuals.unmet_anchors(open_run(finished)) == ""
    with create(finished) as run:
        run.write("anchor_loss", [[0.01, 0.3], [0.049, 0.05], [np.nan, 0.02], [np.nan, np.nan]])
        run.seal("anchor_passes", [[25, 25], [9, 25], [1, 9], [0, 0]])
    line = "Anchors whose loss did not come below 0.05 nat in 25 passes: 2 of 3 at layer 8."
    assert residuals.unmet_anchors(open_run(finished)) == line
    assert line in residuals.write_reports(finished)


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


def test_a_run_without_arrays_of_this_version_is_refused(finished):
    shutil.rmtree(finished / "data.zarr" / "cosine")
    zarr.consolidate_metadata(finished / "data.zarr", zarr_format=2)
    with pytest.raises(InputError, match=r"got a run without 'cosine' in .*, made by an older one"):
        open_run(finished)


def test_config_is_json_that_anyone_reads(finished):
    config = json.loads((finished / "config.json").read_text())
    assert set(config) == {"format", "kind", "settings", "provenance", "coordinates"}


def test_captions_say_how_many_facts_are_in_the_cells(finished):
    assert " my_model, 4 facts, mean [95 %" in residuals.write_reports(finished)
    with create(finished) as run:
        run.write("residual_ratio", [[np.nan]], fact=["c"], scheme="backward-dividing", layer=[5])
        run.seal("measured", scheme="backward-dividing")
    parts = {part.split(".")[0]: part for part in residuals.write_reports(finished).split("\n\n") if ". " in part}
    assert "my_model, 3 to 4 of 4 facts in a cell, mean [95 %" in parts["Table 2"]
    assert "my_model, 4 facts, mean" in parts["Table 1"]
    assert "argmax at every token, teacher forced" in (finished / "efficacy.md").read_text()


@pytest.mark.parametrize(
    ("counts", "told"),
    [
        ([32, 32], "32 facts"),
        ([31, 31], "31 of 32 facts in each cell"),
        ([29, 32, 31], "29 to 32 of 32 facts in a cell"),
        ([0, 32], "0 to 32 of 32 facts in a cell"),
    ],
)
def test_facts_in_cells_are_told_in_words(counts, told):
    assert facts_in_cells(32, counts) == told


def test_intervals_of_figures_are_resampled_with_the_runs_seed(finished, monkeypatch):
    seeds = []

    def noted(values, seed=0):
        seeds.append(seed)
        return residuals.summarise(values, seed)

    monkeypatch.setattr(figures, "summarise", noted)
    figures.theorem1(Figure(), open_run(finished))
    assert set(seeds) == {SETTINGS["seed"]}
