"""A run that has lost a part: reports say so, and the same command makes that part again, and no other, to the bit."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from helpers.commands import options
from helpers.work import forbid

from jacobian_lab import cli
from jacobian_lab.catalogue import method
from jacobian_lab.editing.anchors import CoordinationSettings, coordinate_shifts
from jacobian_lab.errors import InputError
from jacobian_lab.jobs import jacobians as surveys
from jacobian_lab.jobs import methods as methods_job
from jacobian_lab.jobs.config import (
    DampingConfig,
    EditTableConfig,
    FrontierConfig,
    JacobianConfig,
    LayerCountConfig,
    SchemesConfig,
)
from jacobian_lab.jobs.experiment import prepare
from jacobian_lab.jobs.kinds import run_job
from jacobian_lab.report.results import Results, write_account, write_comparison, write_reports
from jacobian_lab.session import descents as bench
from jacobian_lab.session import session
from jacobian_lab.store import arrays
from jacobian_lab.store.run import open_run

CAPTIONS = {
    "edit_table": ("edit_table", "efficacy_success"),
    "frontier": ("frontier", "efficacy_success"),
    "layer_count": ("layer_count", "final_ratio"),
    "damping": ("damping", "residual_ratio"),
    "theorem2": ("theorem2", "lambda_min"),
}


def lose(finished, folder, chunk):
    """A copy of a run without one of its files."""
    shutil.copytree(finished, folder)
    (folder / "data.zarr" / chunk).unlink()
    return folder


@pytest.fixture(scope="module")
def studied(arguments, studied_run, tmp_path_factory):
    def command(folder):
        config = SchemesConfig(**arguments, schemes=("backward-dividing", "forward-replay"), out=folder)
        return run_job(replace(config, studies=("theorem1",)), progress=False)

    return command, shutil.copytree(studied_run, tmp_path_factory.mktemp("runs") / "studied")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("chunk", "words", "there"),
    [
        ("residual_ratio/0.0.0", "residual_ratio of scheme", ("optimize_anchors", "survey_one")),
        ("anchor/0.0.0", "anchor of fact", ("observed_edits", "survey_one")),
        ("anchor_passes_digest/0.0.0", "anchor_passes_digest of fact", ("observed_edits", "survey_one")),
        ("replayed_target/0.0.0", "replayed_target of fact", ("observed_edits", "optimize_anchors", "survey_one")),
        ("measured/0", "measured of scheme", ("optimize_anchors", "survey_one")),
        ("eigenvector_angle/0.0.0", "eigenvector_angle of study theorem1", ("optimize_anchors", "survey_one")),
        ("lambda_min/0.0", "lambda_min of fact", ("optimize_anchors", "observed_edits")),
    ],
)
def test_tables(studied, tmp_path, monkeypatch, capsys, chunk, words, there):
    command, finished = studied
    before = open_run(finished)
    folder = lose(finished, tmp_path / "run", chunk)
    for report in (write_reports, lambda folder: write_account(folder, "theorem1")):
        with pytest.raises(InputError, match=f"without {words}"):
            report(folder)
    forbid(monkeypatch, *(name for name in there if name != "survey_one"))
    if "survey_one" in there:
        monkeypatch.setattr(surveys, "dense_jacobians", lambda *_a, **_k: pytest.fail("computed again"))
    command(folder)
    assert words in capsys.readouterr().err
    assert open_run(folder).identical(before)
    forbid(monkeypatch, "second_moments")
    command(folder)
    assert not capsys.readouterr().err


@pytest.mark.slow
def test_a_batch_that_has_lost_some_of_its_anchors_is_optimised_as_a_whole(arguments, tmp_path, monkeypatch):
    for name in ("FACTS_PER_CHUNK", "CHUNK_BYTES"):
        monkeypatch.setattr(arrays, name, 1)
    config = SchemesConfig(**arguments, schemes=("one-layer",), survey="none", out=tmp_path / "finished")
    finished = run_job(config, progress=False)
    folder = lose(finished, tmp_path / "run", "anchor/0.0.0")
    sizes, original = [], bench.optimize_anchors

    def noted(rows, *values):
        sizes.append(len(rows))
        return original(rows, *values)

    monkeypatch.setattr(bench, "optimize_anchors", noted)
    run_job(replace(config, out=folder), progress=False)
    assert sizes == [2, 2]  # one batch for each of the two anchor layers
    assert open_run(folder).identical(open_run(finished))


@pytest.mark.slow
def test_shifts(arguments, tmp_path, monkeypatch):
    """Lost ones are made again, and no anchor; batch by batch they are those of all facts at once, eases among them."""
    eased = CoordinationSettings(weighting="eased", decay="price")
    config = SchemesConfig(**arguments, schemes=("coordinated-replay",), survey="none", coordination=eased)
    finished = run_job(replace(config, out=tmp_path / "finished"), progress=False)
    folder = lose(finished, tmp_path / "run", "coordinated_shift/0.0.0")
    forbid(monkeypatch, "optimize_anchors", "observed_edits")
    run_job(replace(config, out=folder), progress=False)
    assert open_run(folder).identical(open_run(finished))
    experiment = prepare(config)
    eases = experiment.session.setting.eases(experiment.layers)
    whole = coordinate_shifts(experiment.rows, experiment.layers, experiment.session.anchor, eased, eases)
    np.testing.assert_allclose(open_run(finished)["coordinated_shift"].values, whole.shifts, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_layer_count(arguments, tmp_path, monkeypatch):
    def command(folder):
        values = {**arguments, "schemes": ("backward-full",), "max_layers": 2}
        return run_job(LayerCountConfig(**values, out=folder), progress=False)

    finished = command(tmp_path / "finished")
    folder = lose(finished, tmp_path / "run", "final_ratio/0.0.0")
    forbid(monkeypatch, "optimize_anchors")
    assert open_run(command(folder)).identical(open_run(finished))
    monkeypatch.undo()
    folder = lose(finished, tmp_path / "other", "anchor/0.0.0")
    forbid(monkeypatch, "measured_edit")
    assert open_run(command(folder)).identical(open_run(finished))


@pytest.mark.slow
def test_damping_and_frontier(arguments, tmp_path, monkeypatch):
    def damping(folder):
        return run_job(DampingConfig(**arguments, dampings=(0.1,), out=folder), progress=False)

    def frontier(folder):
        values = {**arguments, "schemes": ("one-layer",), "ridges": (3.0, 30.0), "held_out_tokens": 100}
        return run_job(FrontierConfig(**values, out=folder), progress=False)

    for command, chunk, words in (
        (damping, "residual_ratio/0.0.0", "residual_ratio of row"),
        (frontier, "kl/0.0.0.0", "kl of edit"),
    ):
        finished = command(tmp_path / f"{command.__name__}-finished")
        folder = lose(finished, tmp_path / command.__name__, chunk)
        with pytest.raises(InputError, match=f"without {words}"):
            open_run(folder)
        forbid(monkeypatch, "optimize_anchors")
        assert open_run(command(folder)).identical(open_run(finished))
        monkeypatch.undo()


@pytest.mark.slow
def test_jacobian(arguments, tmp_path):
    values = {name: value for name, value in arguments.items() if name in {"model", "layers", "device", "dtype"}}

    def command(folder):
        return run_job(JacobianConfig(**values, slice="0:2", out=folder), progress=False)

    finished = command(tmp_path / "finished")
    folder = lose(finished, tmp_path / "run", "singular_value/0.0.0")
    with pytest.raises(InputError, match="without singular_value of fact"):
        write_account(folder, "jacobian")
    assert open_run(command(folder)).identical(open_run(finished))


@pytest.fixture(scope="module")
def edited(arguments, tmp_path_factory):
    def command(folder):
        values = {**arguments, "greedy": False, "held_out_tokens": 100, "methods": ("memit", "blue-refit")}
        return run_job(EditTableConfig(**values, out=folder), progress=False)

    return command, command(tmp_path_factory.mktemp("runs") / "edited")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("chunk", "words", "methods"),
    [
        ("refit_anchor/0.0.0", "refit_anchor of fact", {"blue-refit"}),
        ("kl/0.0.0", "kl of edit unedited, memit, blue-refit", {"memit", "blue-refit"}),
        ("neighbor_edited/0.0", "neighbor_edited of fact", set()),
    ],
)
def test_edit_table(edited, tmp_path, monkeypatch, chunk, words, methods):
    command, finished = edited
    before = open_run(finished)
    folder = lose(finished, tmp_path / "run", chunk)
    with pytest.raises(InputError, match=f"without {words}"):
        write_comparison(folder)
    edits = []
    monkeypatch.setattr(session, "edit_with", _noted(session.edit_with, edits))
    assert open_run(command(folder)).identical(before)
    assert {name for name in ("memit", "blue-refit") if method(name) in edits} == methods


def _noted(work, edits):
    def noted(method, *values, **named):
        edits.append(method)
        return work(method, *values, **named)

    return noted


@pytest.mark.slow
def test_refitting_reads_the_anchors_of_its_batch_alone(arguments, tmp_path, monkeypatch):
    read, original = [], methods_job.Run.read

    def noted(run, name, **labels):
        if (
            name == "refit_anchor"
            and set(labels) == {"fact", "anchor_layer"}
            and isinstance(labels["anchor_layer"], int)
        ):
            read.append(len(labels["fact"]))
        return original(run, name, **labels)

    monkeypatch.setattr(methods_job.Run, "read", noted)
    values = {**arguments, "greedy": False, "held_out_tokens": 100, "methods": ("blue-refit",), "edits_per_batch": 2}
    run_job(EditTableConfig(**values, out=tmp_path / "run"), progress=False)
    assert read == [2, 2, 2]


@pytest.mark.slow
def test_captions_count_the_facts_in_each_cell_and_say_how_they_were_measured(edited, studied):
    text = write_comparison(edited[1])
    for part in text.split("\n\n"):
        if part.startswith(("Table", "All methods")):
            assert "accuracy: every token of the answer the argmax, teacher forced" in part
            assert "success: the new answer before the true one" in part
            assert ", 6 facts, of builtin" in part
    assert "6 facts, mean [95 %" in write_reports(studied[1])


@pytest.mark.slow
@pytest.mark.parametrize("kind", CAPTIONS)
def test_captions_say_where_a_cell_has_fewer_facts(kind, arguments, tmp_path):
    """A fact whose numbers are missing in one cell: there the table counts one less."""
    values = {**arguments, "slice": "0:4", "held_out_tokens": 100}
    (table, variable), folder = CAPTIONS[kind], tmp_path / "run"
    if kind == "edit_table":
        run_job(EditTableConfig(**values, greedy=False, methods=("memit", "onelayer"), out=folder), progress=False)
    elif kind == "frontier":
        run_job(FrontierConfig(**values, schemes=("one-layer",), ridges=(3.0, 30.0), out=folder), progress=False)
    else:
        del values["held_out_tokens"]
        if kind == "layer_count":
            run_job(LayerCountConfig(**values, schemes=("backward-full",), max_layers=2, out=folder), progress=False)
        elif kind == "damping":
            run_job(DampingConfig(**values, dampings=(0.1,), out=folder), progress=False)
        else:
            run_job(
                SchemesConfig(**values, schemes=("backward-full",), studies=("theorem1",), out=folder), progress=False
            )
    whole, results = (Results(folder, "tables" if kind == "theorem2" else kind) for _ in range(2))
    assert "4 facts" in whole._make(table).note
    values = results.dataset[variable].transpose(..., "fact").load()
    values[(*np.argwhere(np.isfinite(values.values[..., 0]))[-1], 0)] = np.nan
    results.dataset[variable] = values
    assert "3 to 4 of 4 facts in a cell" in results._make(table).note


@pytest.mark.slow
def test_the_command_line_ends_with_one_line_where_a_part_of_another_command_is_lost(
    studied, arguments, tmp_path, capsys
):
    folder = lose(studied[1], tmp_path / "run", "eigenvector_angle/0.0.0")
    command = ["tables", *options(arguments), "--schemes", "forward-replay", "--out", str(folder)]
    with pytest.raises(SystemExit) as caught:
        cli.main(command)
    assert caught.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "without eigenvector_angle of study theorem1, scheme backward-dividing, forward-replay" in last
    assert last.endswith("give its command again")
