"""A search over layers, λ, learning rate and passes: the same tries for every method, resumed, and used by others."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from helpers.commands import options
from helpers.work import HOMES, forbid

from jacobian_lab import cli
from jacobian_lab.errors import InputError
from jacobian_lab.jobs import comparison as comparisons
from jacobian_lab.jobs.config import AnchorConfig, EditTableConfig
from jacobian_lab.jobs.kinds import run_job
from jacobian_lab.jobs.tune_config import TuneConfig
from jacobian_lab.jobs.tuning import spread_windows
from jacobian_lab.report.paper import METRICS
from jacobian_lab.store.run import open_run
from jacobian_lab.tries import DESCENT, RIDGE, WINDOW, score

QUICK = {"slice": "0:3", "held_out_tokens": 64, "corpus_length": 64, "layers": None, "ridge": None}
METHODS, WINDOWS, RIDGES = ("memit", "memit+cr"), ("0-1", "1-3"), (1.0, 10.0)
SEARCH = {"methods": METHODS, "windows": WINDOWS, "ridges": RIDGES, "lrs": (0.2, 0.1), "passes": (4,), "finalists": 1}
TRIED = ("efficacy_accuracy", "generalization_accuracy", "kl", "top10", "perplexity", "update_norm", "ridge", "reached")


@pytest.fixture(scope="module")
def quick(arguments):
    return {**arguments, **QUICK}


@pytest.fixture(scope="module")
def finished(quick, once):
    return once("tuned", lambda folder: run_job(TuneConfig(**quick, **SEARCH, out=folder), progress=False))


@pytest.fixture(scope="module")
def frame(quick, finished):
    given = options({**quick, "out": finished, "passes": 4, "finalists": 1})
    for name in ("methods", "windows", "ridges", "lrs"):
        given += [f"--{name}", *map(str, SEARCH[name])]
    cli.main(["tune", *given])
    return pd.read_csv(finished / "tune.csv")


def test_every_method_gets_the_same_tries_of_each_kind(frame):
    counts = frame.groupby(["method", "stage"]).size().unstack()
    assert counts.loc[list(METHODS), [WINDOW, RIDGE, DESCENT]].to_numpy().tolist() == [[2, 2, 2]] * 2
    assert frame.groupby("method")["chosen"].sum().tolist() == [1, 1]
    assert set(frame.loc[frame["stage"] != DESCENT, "lr"]) == {0.2}
    assert set(frame.loc[frame["stage"] == DESCENT, "lr"]) == {0.1}
    assert frame.loc[frame["stage"] != WINDOW, "ridge"].isin(RIDGES).all()


def test_shifts_are_made_where_a_method_needs_them(finished, frame):
    run = open_run(finished)
    shifted, tried = run["coordinated_shift_passes"].min("fact") > 0, run["measured"].sel(edit="memit+cr").max("point")
    assert shifted.isel(variant=0).all()
    np.testing.assert_array_equal(shifted.isel(variant=1), tried.isel(variant=1) == 1)


def test_the_finalist_has_the_best_score_and_the_choice_is_the_criterions(frame):
    for method in METHODS:
        own = frame[frame["method"] == method]
        windows, tries = own[own["stage"] == WINDOW], own[own["stage"] != WINDOW]
        for _, row in windows.iterrows():
            assert row["score"] == pytest.approx(score(row["reached"] / 100, row["residual_ratio"], row["disturbance"]))
        assert set(tries["layers"]) == {windows.loc[windows["score"].idxmax(), "layers"]}
        bound = float(f"{frame.loc[frame['stage'] == RIDGE, 'kl'].median():.1e}")
        allowed = tries[tries["kl"] <= bound]
        best = (
            allowed.sort_values(["generalization", "kl"], ascending=[False, True]).index[0]
            if len(allowed)
            else tries["kl"].idxmin()
        )
        assert own.loc[best, "chosen"]


@pytest.mark.slow
def test_a_protocol_gives_another_command_the_same_edit(quick, finished, frame, tmp_path):
    """Layers, λ, learning rate and passes: every number of the try that was chosen, from a methods run."""
    given = {**quick, "anchor": AnchorConfig(), "greedy": False}
    for method in METHODS:
        path = finished / f"protocol-{method}.json"
        protocol, row = json.loads(path.read_text()), frame[(frame["method"] == method) & frame["chosen"]].iloc[0]
        assert (protocol["ridge"], protocol["anchor_lr"], protocol["anchor_steps"]) == (row["ridge"], row["lr"], 4)
        config = EditTableConfig(**given, methods=(method,), protocol=str(path), out=tmp_path / method)
        alone = open_run(run_job(config, progress=False)).sel(edit=method)
        assert alone["layer"].values.tolist() == protocol["layers"]
        place = {"window": row["layers"], "variant": f"lr {row['lr']:g}, 4 passes", "point": row["ridge"]}
        chosen = open_run(finished).sel(edit=method, **place)
        for name in METRICS:
            np.testing.assert_array_equal(alone[name], chosen[name], err_msg=name)
        np.testing.assert_array_equal(alone["update_norm"], chosen["update_norm"].sel(layer=protocol["layers"]))


def test_explicit_options_go_before_a_protocol(quick, finished, frame, tmp_path):
    given = {**quick, "anchor": AnchorConfig(steps=2), "ridge": 77.0, "layers": "2-3", "greedy": False}
    config = EditTableConfig(
        **given, methods=("memit",), protocol=str(finished / "protocol-memit.json"), out=tmp_path / "run"
    )
    folder = run_job(config, progress=False)
    settings = json.loads((folder / "config.json").read_text())["settings"]
    assert (settings["layers"], settings["ridge"], settings["anchor"]["steps"]) == ([2, 3], 77.0, 2)
    assert settings["anchor"]["lr"] == frame.loc[(frame["method"] == "memit") & frame["chosen"], "lr"].item()


def test_a_finished_search_computes_nothing(quick, finished, frame, monkeypatch):
    forbid(monkeypatch, *HOMES)
    run_job(TuneConfig(**quick, **SEARCH, out=finished), progress=False)


@pytest.mark.slow
def test_an_interrupted_search_goes_on_and_loses_nothing(quick, finished, frame, tmp_path, monkeypatch):
    """It ends in an observed edit, then in a try of the finalists, then in one of the other descents."""
    config, calls = TuneConfig(**quick, **SEARCH, out=tmp_path / "run"), []
    measured, edit_with = comparisons.Comparison.measure, HOMES["edit_with"].edit_with

    def ends(at, original):
        def call(*given, **more):
            calls.append(at)
            if len(calls) == at:
                raise KeyboardInterrupt
            return original(*given, **more)

        return call

    for home, name, original, at in (
        (HOMES["edit_with"], "edit_with", edit_with, 3),
        (comparisons.Comparison, "measure", measured, 2),
        (comparisons.Comparison, "measure", measured, 6),
    ):
        calls.clear()
        with monkeypatch.context() as patch:
            patch.setattr(home, name, ends(at, original))
            with pytest.raises(KeyboardInterrupt):
                run_job(config, progress=False)
    calls.clear()
    monkeypatch.setattr(comparisons.Comparison, "measure", ends(None, measured))
    run_job(config, progress=False)
    assert len(calls) == 8 - 1 - 5  # all tries less those of the second call and the third
    whole, again = open_run(finished), open_run(tmp_path / "run")
    for name in (*TRIED, "realised", "residual_ratio", "suited_ridge", "disturbance", "anchor", "coordinated_shift"):
        np.testing.assert_array_equal(again[name], whole[name], err_msg=name)
    for method in METHODS:
        texts = [json.loads((run / f"protocol-{method}.json").read_text()) for run in (finished, tmp_path / "run")]
        assert texts[0] == texts[1] | {"run": texts[0]["run"]}


@pytest.mark.slow
def test_by_default_ridges_are_around_what_suits_each_window(quick, tmp_path):
    config = TuneConfig(**quick, **{**SEARCH, "methods": ("alphaedit@one-layer", "memit@one-layer"), "ridges": None})
    config = replace(config, lrs=(0.2,), finalists=2, rules=replace(config.rules, alphaedit_relative=True))
    run = open_run(run_job(replace(config, out=tmp_path / "run"), progress=False))
    suited = run["suited_ridge"].sel(edit="memit@one-layer")
    assert len(set(suited.values.tolist())) == 2
    ridges = run["ridge"].sel(edit="memit@one-layer").isel(variant=0)
    np.testing.assert_allclose(ridges / suited, np.tile([0.3, 1, 3, 10, 30], (2, 1)), rtol=0.01)
    assert run["measured"].sel(edit="alphaedit@one-layer").sum("point").values.ravel().tolist() == [1, 1]  # it has no λ
    changes = run["update_norm"].sel(edit="memit@one-layer").isel(variant=0).max("layer").values
    assert (np.diff(changes, axis=1) < 0).all()  # the larger λ, the smaller the change


@pytest.mark.slow
def test_the_frontier_may_choose(quick, tmp_path):
    config = TuneConfig(**quick, **SEARCH, criterion="frontier", kl_bound=0.5, out=tmp_path / "run")
    folder = run_job(replace(config, methods=("memit",)), progress=False)
    protocol = json.loads((folder / "protocol-memit.json").read_text())
    assert protocol["criterion"].startswith("layers and descents by the best generalisation accuracy averaged over")
    assert "bounds of D_KL, 0.05 to 5;" in protocol["criterion"]


def test_windows_are_spread_over_two_thirds_of_a_model():
    assert spread_windows(30, 5) == [tuple(range(first, first + 5)) for first in (0, 4, 8, 11, 15)]
    assert spread_windows(6, 5) == [(0, 1, 2, 3, 4)]
    assert spread_windows(6, 2, 3) == [(0, 1), (1, 2), (2, 3)]


def test_a_search_is_planned_with_every_stage(quick, tmp_path, capsys):
    given = options({**quick, "out": tmp_path / "run", "passes": 4, "finalists": 1})
    for name in ("methods", "windows", "ridges", "lrs"):
        given += [f"--{name}", *map(str, SEARCH[name])]
    cli.main(["tune", *given, "--plan-json"])
    plan = json.loads(capsys.readouterr().out)
    names = [stage["name"] for stage in plan["stages"]]
    assert sum(name == "anchors at layer 1" for name in names) == 2  # once for both windows, once with other descents
    assert sum(name.endswith("observed") for name in names) == 2
    assert sum("evaluated, at layers" in name for name in names) == 2
    assert sum(name.startswith("coordinated shifts") for name in names) == 3
    assert all(stage["seconds"] > 0 for stage in plan["stages"])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"methods": ("wise",)}, "pairs of a rule and a target scheme, got wise"),
        ({"methods": ("blue-refit",)}, "got blue-refit"),
        ({"layers": "1-2"}, "expected windows as 3-7 5-9, got layers"),
        ({"windows": ("1-9",)}, "expected layers from 0 to"),
        ({"windows": None, "width": 99}, "got width 99"),
        ({"windows": ("a",)}, "expected layers as 4-8"),
        ({"lrs": ()}, "expected at least one"),
        ({"kl_bound": -1.0}, "not negative"),
    ],
)
def test_what_cannot_be_searched_is_refused(changes, words, quick, tmp_path):
    with pytest.raises(InputError, match=words):
        run_job(TuneConfig(**{**quick, **SEARCH, **changes}, out=tmp_path / "run"), progress=False)
    assert not (tmp_path / "run").exists()


def test_without_neighborhood_prompts_nothing_bounds_a_choice(quick, tmp_path):
    path = tmp_path / "facts.json"
    path.write_text(
        json.dumps([{"subject": "Rome", "prompt": "{} lies in", "target_new": "Spain", "target_true": "Italy"}])
    )
    with pytest.raises(InputError, match="expected facts with neighbourhood prompts"):
        run_job(TuneConfig(**{**quick, **SEARCH, "facts": str(path), "slice": None}), progress=False)
