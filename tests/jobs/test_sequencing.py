"""Edits one after another: as one batch, killed and resumed, ended where they break, their tables."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.commands import options
from helpers.work import HOMES, forbid

from jacobian_lab import cli
from jacobian_lab.catalogue import SCHEMES
from jacobian_lab.editing.anchors import optimize_anchors
from jacobian_lab.editing.layers import edit_layers, restored
from jacobian_lab.editing.methods import BatchEdits
from jacobian_lab.editing.problems import Update
from jacobian_lab.editing.rules import RuleSettings
from jacobian_lab.editing.schemes import Targets
from jacobian_lab.errors import InputError
from jacobian_lab.jobs import sequencing
from jacobian_lab.jobs.config import EditTableConfig
from jacobian_lab.jobs.experiment import prepare
from jacobian_lab.jobs.kinds import run_job
from jacobian_lab.jobs.sequence_config import SequenceConfig
from jacobian_lab.report.results import Results
from jacobian_lab.session import descents, session
from jacobian_lab.store.run import Run, open_run
from jacobian_lab.store.schema import KINDS
from jacobian_lab.store.sequences import FAILED, MEASURED, NORM, PERPLEXITY

RULES = RuleSettings(alphaedit_threshold=1.0, alphaedit_relative=True, prune_scope="total", prune_kind="linear")
QUICK = {"rules": RULES, "held_out_tokens": 64, "corpus_length": 64}
METHODS = ("memit", "memit+cr", "alphaedit+fe", "blue-refit", "nas")
SEQUENCE = ("memit+cr", "blue-refit", "prune")


@pytest.fixture(scope="module")
def quick(arguments):
    return {**arguments, **QUICK}


@pytest.fixture(scope="module")
def finished(quick, once):
    """Three batches of two facts, targets both ways."""
    never = {"stop_perplexity": "never", "stop_norm": "never"}
    config = SequenceConfig(**quick, **never, methods=SEQUENCE, edits_per_batch=2, targets="both")
    return once("sequence", lambda folder: run_job(replace(config, out=folder), progress=False)), config


def same(one, other, names=None):
    for name in names or one.data_vars:
        np.testing.assert_array_equal(one[name], other[name], err_msg=str(name))


@pytest.mark.parametrize("targets", ["current", "unedited"])
def test_one_batch_is_an_edit_table_to_the_last_bit(targets, quick, once, tmp_path, monkeypatch):
    def make(folder):
        run_job(EditTableConfig(**quick, methods=METHODS, greedy=False, out=folder), progress=False)

    table = open_run(once("edits-of-one-batch", make))
    config = SequenceConfig(**quick, methods=METHODS, edits_per_batch=None, targets=targets, out=tmp_path / "run")
    several = []

    def watched(*arguments, **keywords):
        several.append(keywords["several"])
        return BatchEdits(*arguments, **keywords)

    monkeypatch.setattr(session, "BatchEdits", watched)
    sequence = open_run(run_job(config, progress=False))
    assert several == [False] * len(METHODS)  # of one batch every matrix is factored as a whole
    at = sequence.sel(targets=targets, look=6).sel(edit=list(METHODS))
    unedited = sequence.sel(targets="unedited", look=0, edit="unedited")
    compared = 0
    for name, variable in KINDS["edit_table"].items():
        if "edit" in variable.dims and name in sequence and name != "measured":
            np.testing.assert_array_equal(at[name], table[name].sel(edit=list(METHODS)), err_msg=name)
            np.testing.assert_array_equal(unedited[name], table[name].sel(edit="unedited"), err_msg=name)
            compared += 1
    assert compared > 15
    same(sequence, table, ["anchor", "anchor_loss", "coordinated_shift"])
    assert np.isfinite(at["efficacy_accuracy"]).all()
    assert np.isfinite(at["state_norm"]).all()


PLACES = {
    "a descent on an edited model": (descents, "optimize_anchors", 6),
    "shifts on an edited model": (descents, "coordinate_shifts", 3),
    "a look": (sequencing, "state_norms", 4),
    "an edit": (BatchEdits, "edit", 5),
    "before a mark": (Run, "commit", 14),
    "before a late mark": (Run, "commit", 8),
}


def test_a_sequence_killed_again_and_again_ends_with_the_same_numbers(finished, tmp_path, monkeypatch):
    """Killed on its way at every place in turn, and no look is made twice."""
    folder, config = finished
    config, looks = replace(config, out=tmp_path / "run"), []
    original = sequencing.EditSequence._look
    monkeypatch.setattr(
        sequencing.EditSequence,
        "_look",
        lambda self, run, look, cell: (original(self, run, look, cell), looks.append(cell)),
    )
    for home, name, last in PLACES.values():
        calls, whole = [], getattr(home, name)

        def dying(*arguments, calls=calls, whole=whole, last=last, **keywords):
            calls.append(1)
            if len(calls) == last:
                raise KeyboardInterrupt
            return whole(*arguments, **keywords)

        with monkeypatch.context() as patch:
            patch.setattr(home, name, dying)
            with pytest.raises(KeyboardInterrupt):
                run_job(config, progress=False)
    run_job(config, progress=False)
    resumed, whole = open_run(config.out), open_run(folder)
    same(resumed, whole)
    cells = [tuple(cell.values()) for cell in looks]
    assert len(cells) == len(set(cells)) == 1 + len(SEQUENCE) * 2 * 3


def test_a_finished_sequence_computes_nothing(finished, monkeypatch):
    folder, config = finished
    forbid(monkeypatch, *HOMES)
    run_job(replace(config, out=folder), progress=False)


def test_a_batch_has_the_anchors_of_the_model_that_the_ones_before_have_left(finished, quick):
    """By hand: the first batch with anchors of the unedited model, then anchors at L, of the edited one."""
    stored = open_run(finished[0])
    experiment = prepare(SequenceConfig(**quick))
    rows, setting, layers = experiment.rows, experiment.session.setting, experiment.layers
    model, first, second = experiment.model, [0, 1], [2, 3]
    unedited = {layer: torch.tensor(stored["anchor"].sel(anchor_layer=layer).values) for layer in (1, 3)}

    def dense(problem):
        left = problem.ridge * problem.second_moment + problem.keys @ problem.keys.T
        return Update(torch.linalg.solve(left, problem.keys @ problem.residuals.T).T, 1.0)

    with restored(model, layers):
        targets = Targets(layers, {layer: states[first] for layer, states in unedited.items()}, {})
        list(edit_layers(setting.select(first), SCHEMES["backward-dividing"], targets, dense))
        anchors = optimize_anchors(rows.select(second), 3, experiment.session.anchor)
    own = stored.sel(edit="prune", anchor_layer=3)
    np.testing.assert_allclose(own["current_anchor"][second], anchors.states, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(own["current_anchor_loss"][second], anchors.loss, rtol=1e-8)
    np.testing.assert_allclose(own["current_anchor_first_loss"][second], anchors.first_loss, rtol=1e-8)
    assert abs(own["current_anchor"][second] - unedited[3][second].numpy()).max() > 1e-4
    assert stored["current_anchor_passes"].sel(edit="prune", anchor_layer=1).sum() == 0
    assert (own["current_anchor_passes"][first] == 0).all()


def test_a_look_sees_what_a_shorter_sequence_ends_with(finished, quick, tmp_path):
    """PRUNE on the total among them, which shrinks what is saved and leaves what goes on."""
    config = replace(finished[1], slice="0:4", out=tmp_path / "run")
    shorter, longer = open_run(run_job(config, progress=False)), open_run(finished[0])
    edits = list(SEQUENCE)
    for name in ("efficacy_accuracy", "nll_new", "kl", "update_norm", "condition_number", "perplexity", "state_norm"):
        one, other = (run[name].sel(look=4, edit=edits) for run in (shorter, longer))
        if "fact" in one.dims:
            assert other[4:].isnull().all()
            other = other[:4]
        np.testing.assert_allclose(one, other, rtol=1e-7, atol=1e-10, err_msg=name)


@pytest.mark.parametrize(
    ("bound", "reason"), [({"stop_perplexity": 1 + 1e-9}, PERPLEXITY), ({"stop_norm": 1e-9}, NORM), ({}, FAILED)]
)
def test_edits_end_where_they_break(bound, reason, quick, tmp_path, monkeypatch, capsys):
    config = SequenceConfig(**quick, methods=("memit",), edits_per_batch=2, **bound, out=tmp_path / "run")
    config = replace(config, targets="unedited", slice="0:6")
    edit = BatchEdits.edit

    def failing(self, batch, *arguments):
        if reason == FAILED and batch.start:
            raise InputError("expected a matrix, got a hole")
        edit(self, batch, *arguments)

    monkeypatch.setattr(BatchEdits, "edit", failing)
    folder = run_job(config, progress=False)
    dataset = open_run(folder)
    assert dataset["measured"].sel(edit="memit", targets="unedited").values.tolist() == [0, MEASURED, reason, reason]
    assert "ends before 4 facts by" in capsys.readouterr().err
    run = Results(folder)
    assert "memit, unedited targets: ended before 4 facts by" in run.caption("sequence")
    assert list(run.numbers("sequence")["edited"]) == [0, 2]
    forbid(monkeypatch, *HOMES)
    run_job(config, progress=False)


def test_tables_say_what_the_arrays_do(finished, tmp_path, capsys, quick, monkeypatch):
    folder, _ = finished
    monkeypatch.chdir(tmp_path)
    given = {name: value for name, value in quick.items() if name != "rules"}
    rules = ["--prune-scope", "total", "--prune-kind", "linear", "--alphaedit-threshold", "1.0", "--alphaedit-relative"]
    words = ["--methods", *SEQUENCE, "--edits-per-batch", "2", "--targets", "both"]
    words += ["--stop-perplexity", "never", "--stop-norm", "never"]
    cli.main(["sequence", *options({**given, "out": folder}), *rules, *words])
    assert "Edits one after another" in capsys.readouterr().out
    rows = pd.read_csv(folder / "sequence.csv")
    columns = "method,targets,edited,efficacy_accuracy,efficacy_accuracy_last,generalization_accuracy,kl,perplexity"
    assert {*columns.split(","), "update_norm"} <= set(rows.columns)
    assert len(rows) == 1 + len(SEQUENCE) * 2 * 3
    dataset = open_run(folder)
    for row in rows[rows["method"] != "unedited"].to_dict("records"):
        at = dataset.sel(edit=row["method"], targets=row["targets"], look=row["edited"])
        answered = 100 * at["efficacy_accuracy"].values
        assert row["efficacy_accuracy"] == pytest.approx(answered[: row["edited"]].mean())
        assert row["efficacy_accuracy_last"] == pytest.approx(answered[row["edited"] - 2 : row["edited"]].mean())
        assert row["kl"] == pytest.approx(np.nanmean(at["kl"].values))
        assert row["perplexity"] == pytest.approx(float(at["perplexity"]))
        assert row["update_norm"] == pytest.approx(float(at["update_norm"].max()))
        assert row["facts"] == row["edited"]
    loss = dataset["current_coordinated_shift_loss"].sel(edit="memit+cr").values[2:4].mean()
    own = rows[(rows["method"] == "memit+cr") & (rows["targets"] == "current")].set_index("edited")
    assert own.loc[4, "last_loss"] == pytest.approx(loss)
    assert own.loc[2, "first_loss"] == pytest.approx(float(dataset["coordinated_shift_first_loss"][:2].mean()))
    forgotten = pd.read_csv(folder / "forgetting.csv")
    assert len(forgotten) == len(SEQUENCE) * 2 * 6
    for row in forgotten.to_dict("records"):
        at = dataset["efficacy_accuracy"].sel(edit=row["method"], targets=row["targets"], look=row["look"]).values
        assert row["efficacy"] == pytest.approx(100 * at[2 * row["batch"] - 2 : 2 * row["batch"]].mean())
        assert row["age"] == row["look"] // 2 - row["batch"]
    for name in ("sequence", "forgetting", "norm_growth"):
        assert Results(folder).figure(name).axes


def test_looks_may_be_rarer_and_old_keys_dropped(quick, tmp_path):
    config = SequenceConfig(**quick, methods=("memit",), edits_per_batch=2, targets="unedited")
    drops = replace(config, look_every=2, old_keys="drop", out=tmp_path / "drop")
    dropped = open_run(run_job(drops, progress=False))
    assert dropped["look"].values.tolist() == [0, 4, 6]
    with pytest.raises(InputError, match=r"another sequence\.old_keys"):
        run_job(replace(drops, old_keys="keep"), progress=False)
    keeps = open_run(run_job(replace(config, out=tmp_path / "keep"), progress=False))
    norms = [float(run["update_norm"].sel(edit="memit", targets="unedited", look=6).max()) for run in (dropped, keeps)]
    assert abs(norms[0] - norms[1]) > 1e-6


def test_a_method_that_trains_is_refused(quick):
    with pytest.raises(InputError, match="a rule with a scheme, got wise"):
        run_job(SequenceConfig(**quick, methods=("memit", "wise")), progress=False)
