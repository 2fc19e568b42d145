"""Runs at the edges: groups of questions with any name, few facts, no paraphrases, ids with any sign, older runs."""

import warnings
from functools import partial

import numpy as np
import pandas as pd
import pytest
from helpers.runs import COORDINATES, make_run

from jacobian_lab.report.registry import FIGURES, TABLES
from jacobian_lab.report.results import Results, write_account, write_comparison, write_reports
from jacobian_lab.store.schema import KINDS

pytestmark = pytest.mark.slow

GROUPS = ["distance", "kl", "top1", "D_KL", "Top-1", "method", "fact", "probe_accuracy", "a | b"]
EDITED = ("edit_table", "frontier")


def shape(kind, name, **lengths):
    return [len(lengths.get(dim, COORDINATES[kind].get(dim))) for dim in KINDS[kind][name].dims]


def make_all(run):
    """Every table and figure of a run, each with its files; the names of the captions' tables."""
    for name in run.tables:
        assert len(run.table(name)), name
    for name in run.figures:
        assert all(ax.lines or ax.collections or ax.patches for ax in run.figure(name).axes), name
    return run.write(*run.tables)


@pytest.mark.parametrize("kind", EDITED)
def test_groups_of_further_questions_may_be_called_like_variables_and_columns(kind, tmp_path):
    values = np.ones(shape(kind, "probe_accuracy", probe=GROUPS))
    run = Results(make_run(tmp_path / kind, kind, coordinates={"probe": GROUPS}, probe_accuracy=values))
    make_all(run)
    name = "edit_table" if kind == "edit_table" else "frontier"
    for group in GROUPS:
        columns = [column for column in run.table(name) if column == f"further: {group} ↑"]
        assert len(columns) == 1
        csv = pd.read_csv(run.folder / f"{'metrics' if kind == 'edit_table' else name}.csv")
        assert run.table(name)[columns[0]].str.startswith("100.0").sum() == len(csv)
        assert (csv[f"further: {group}"] == 100).all()
    if kind == "edit_table":
        assert (pd.read_csv(run.folder / "records.csv")["further: kl"] == 1).all()


@pytest.mark.parametrize("half", [[0, 1, 2, 3, 4, 5], [1, 3, 5]])
def test_without_paraphrases_in_both_halves_an_own_ridge_is_chosen_by_efficacy(half, tmp_path):
    """The second of three λ edits everything and disturbs least; the first comes first."""
    lengths = {"ridge": [10.0, 100.0, 1000.0]}
    written = {name: np.zeros(shape("frontier", name, **lengths)) for name in ("efficacy_accuracy", "kl")}
    written["efficacy_accuracy"][:, :, 1] = 1
    written["kl"] += np.array([0.5, 0.1, 0.3])[:, None]
    written["generalization_accuracy"] = np.ones(shape("frontier", "generalization_accuracy", **lengths))
    written["generalization_accuracy"][half] = np.nan
    run = Results(make_run(tmp_path / "run", "frontier", coordinates=lengths, **written))
    assert set(run.numbers("own_ridges")[["ridge_even", "ridge_odd"]].dropna().to_numpy().ravel()) == {100.0}
    assert "largest efficacy accuracy (of equals the least D_KL)" in run.caption("own_ridges")
    assert "generalisation accuracy (of" not in run.caption("own_ridges")


OWN = ("inner_anchor", "restarted_anchor", "joint_anchor")
ADDED = {
    "tables": [
        ["effort", "price", "carried", "carried_linear", "summed_cosine", "summed_ratio"],
        ["coordinated_shift", "coordinated_shift_loss", "coordinated_shift_passes"],
        ["anchor_clamped", "coordinated_shift_clamped"],
        [f"{name}{part}" for name in OWN for part in ("", "_loss", "_passes", "_clamped")],
    ],
    "layer_count": [
        ["coordinated_shift", "coordinated_shift_loss", "coordinated_shift_passes"],
        ["count_generalization", "count_kl"],
        ["anchor_clamped", "coordinated_shift_clamped"],
    ],
    "edit_table": [
        ["coordinated_shift", "coordinated_shift_loss", "coordinated_shift_passes"],
        ["training_steps", "training_loss", "distance", "distance_paraphrase", "distance_neighbor", "threshold"],
        ["changed_norm", "changed_rank", "changed_unstored"],
        ["aim_cosine", "aim_share"],
        ["anchor_clamped", "coordinated_shift_clamped", "refit_anchor_clamped"],
        [f"{name}{part}" for name in OWN for part in ("", "_loss", "_passes", "_clamped")],
    ],
}
"""What has joined the runs of format 4 since it began, in the order in which it came."""
OLDER = [(kind, first) for kind, added in ADDED.items() for first in range(len(added))]


@pytest.mark.parametrize(("kind", "first"), OLDER)
def test_an_older_run_goes_through_every_table_and_figure(kind, first, tmp_path, monkeypatch):
    newer = {name for names in ADDED[kind][first:] for name in names}
    newer |= {f"{name}_digest" for name in newer}
    old = {name: variable for name, variable in KINDS[kind].items() if name not in newer}
    with monkeypatch.context() as before:
        before.setitem(KINDS, kind, old)
        before.setitem(COORDINATES, kind, {d: v for d, v in COORDINATES[kind].items() if d in dims_of(old)})
        make_run(tmp_path / "run", kind)
    run = Results(tmp_path / "run", kind)
    make_all(run)
    for name, entry in [*TABLES.items(), *FIGURES.items()]:
        assert kind not in entry.kinds or name in {*run.tables, *run.figures} or entry.lacks(run.dataset), name
    WRITES[kind](tmp_path / "run")
    assert repr(run)


def dims_of(variables):
    return {dim for variable in variables.values() for dim in variable.dims}


WRITES = {
    "tables": write_reports,
    "layer_count": partial(write_account, name="layer_count"),
    "edit_table": write_comparison,
}
"""What a command writes of a run of each of these kinds."""


LIKE_FORMULAS = ["=1+1", "+a", "-b", "@c", "new\nline", "& % _ # $ { } \\ ~ ^ | \t"]


def test_ids_of_any_kind_leave_every_file_whole(tmp_path):
    failed = np.full(shape("edit_table", "anchor"), np.nan)
    run = make_run(tmp_path / "run", "edit_table", coordinates={"fact": LIKE_FORMULAS}, anchor=failed)
    assert "not edited, counted as they are: =1+1" in write_comparison(run)
    ids = pd.read_csv(run / "records.csv", dtype=str)["fact"]
    assert list(dict.fromkeys(ids)) == [f"'{name}" for name in LIKE_FORMULAS[:4]] + LIKE_FORMULAS[4:]


def test_few_facts_have_means_of_those_with_a_value_and_no_warning(tmp_path):
    """One of three facts has paraphrases; all values of a metric are equal."""
    facts = {"fact": ["a", "b", "c"]}
    values = {name: np.ones(shape("edit_table", name, **facts)) for name in ("efficacy_success", "kl")}
    values["generalization_success"] = np.full(shape("edit_table", "generalization_success", **facts), 0.25)
    values["generalization_success"][1:] = np.nan
    values["top1"] = np.full(shape("edit_table", "top1", **facts), 0.5)
    values["top1"][0] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = Results(make_run(tmp_path / "run", "edit_table", coordinates=facts, **values))
        make_all(run)
        write_comparison(run.folder)
    row = run.table("edit_table").loc["memit"]
    assert row["generalisation success ↑"] == "25.0"
    assert row["efficacy success ↑"] == "100.0 [100.0, 100.0]"
    assert row["Top-1 ↑"] == "50.0 [50.0, 50.0]"
    counts = run.numbers("edit_table").set_index(["method", "metric"])["count"]["memit"]
    assert counts[["generalization_success", "top1", "kl"]].tolist() == [1, 2, 3]
    assert "1 to 3 of 3 facts in a cell" in run.caption("edit_table")
