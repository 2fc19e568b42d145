"""The frontier along λ, and the λ that suits a model."""

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from helpers.commands import options

from jacobian_lab import cli
from jacobian_lab.catalogue import SCHEMES
from jacobian_lab.editing.layers import Setting, averaged_keys, restored
from jacobian_lab.editing.measures import measure, observed_edits
from jacobian_lab.editing.rules import RuleSettings
from jacobian_lab.editing.schemes import Targets
from jacobian_lab.editing.solving import REALISED, suited_ridge
from jacobian_lab.errors import InputError
from jacobian_lab.jobs import experiment as experiments
from jacobian_lab.jobs.config import EditTableConfig, FrontierConfig
from jacobian_lab.jobs.kinds import run_job
from jacobian_lab.jobs.sweeps import frontier_job
from jacobian_lab.model.rows import fact_rows
from jacobian_lab.report.paper import METRICS
from jacobian_lab.report.results import Results, write_account
from jacobian_lab.report.tables.frontier import cross_validated, no_halves
from jacobian_lab.session import session
from jacobian_lab.store.run import open_run

QUICK = {"slice": "0:3", "held_out_tokens": 64, "corpus_length": 64}
CHOSEN = {
    "schemes": ("backward-dividing", "forward-replay", "coordinated-replay"),
    "ridges": (1.0, 10.0, 100.0),
}
NAMES = ["memit", "memit+fe", "memit+cr"]


@pytest.fixture(scope="module")
def quick(arguments):
    return {**arguments, **QUICK}


@pytest.fixture(scope="module")
def finished(quick, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "frontier"
    return run_job(FrontierConfig(**quick, **CHOSEN, out=folder), progress=False)


@pytest.mark.slow
def test_every_point_is_an_edit_tables_at_its_ridge(quick, finished, tmp_path):
    dataset = open_run(finished)
    config = EditTableConfig(**{**quick, "ridge": 100.0}, methods=tuple(NAMES), greedy=False, out=tmp_path / "run")
    alone = open_run(run_job(config, progress=False)).sel(edit=NAMES)
    point = dataset.sel(ridge=100.0, edit=NAMES)
    for name in (*METRICS, "update_norm", "perplexity", "condition_number"):
        np.testing.assert_array_equal(point[name], alone[name], err_msg=name)
    assert dataset["coordinated_shift"].equals(alone["coordinated_shift"])
    changes = dataset["update_norm"].sel(edit="memit+fe").max("layer").values
    assert (np.diff(changes) < 0).all()  # the larger λ, the smaller the change


def test_the_frontiers_command(quick, finished, capsys):
    chosen = options({**quick, "out": finished})
    chosen += ["--schemes", *CHOSEN["schemes"], "--ridges", *map(str, CHOSEN["ridges"])]
    cli.main(["frontier", *chosen])
    printed = capsys.readouterr().out
    frame = pd.read_csv(finished / "frontier.csv")
    assert list(frame.columns) == ["method", "ridge", *METRICS]
    assert frame[["method", "ridge"]].values.tolist() == [[n, r] for n in NAMES for r in CHOSEN["ridges"]]
    values = open_run(finished)["kl"].sel(edit="memit+cr", ridge=10.0)
    expected = float(values.mean())  # over all prompts
    assert float(frame.set_index(["method", "ridge"]).loc[("memit+cr", 10.0), "kl"]) == pytest.approx(expected)
    assert "| memit+cr, λ = 10 " in printed
    assert (finished / "frontier.tex").read_text().isascii()


def test_a_folder_of_another_kind_is_refused_before_lambda_is_sought(quick, monkeypatch, tmp_path):
    def sought(_):
        raise AssertionError

    config = EditTableConfig(**quick, methods=("memit",), greedy=False, out=tmp_path / "run")
    run_job(config, progress=False)
    monkeypatch.setattr(session, "suited_ridge", sought)
    with pytest.raises(InputError, match="expected a folder of jacobian-lab frontier"):
        run_job(FrontierConfig(**{**quick, "ridge": None}, out=tmp_path / "run"), progress=False)


def test_no_fact_chooses_the_ridge_that_it_is_reported_at(finished):
    """Each half of the facts is reported at the λ that is best on the other."""
    results, dataset = Results(finished, "frontier"), open_run(finished)
    rng, places = np.random.default_rng(0), np.arange(dataset.sizes["fact"])
    for name in ("generalization_accuracy", "kl"):  # so that the halves choose differently, and ties are broken
        values = dataset[name].values
        dataset[name].values[:] = np.where(np.isnan(values), np.nan, rng.integers(0, 2, values.shape))
    table = cross_validated(dataset)
    assert set(results.tables) >= {"frontier", "own_ridges"}
    found = table.numbers[table.numbers["against"].isna()].set_index(["method", "metric"])
    ridges, expected = set(), {}
    for name in NAMES:
        chosen = {}
        for half in (0, 1):
            some = dataset.sel(edit=name).isel(fact=places % 2 == half)
            points = [some.sel(ridge=ridge) for ridge in CHOSEN["ridges"]]
            scores = [(float(by_fact(p["generalization_accuracy"])), -float(p["kl"].mean())) for p in points]
            chosen[1 - half] = CHOSEN["ridges"][scores.index(max(scores))]
        row = found.loc[(name, "kl")]
        assert (row["ridge_even"], row["ridge_odd"]) == (chosen[0], chosen[1])
        ridges.add((chosen[0], chosen[1]))
        each = [dataset["kl"].sel(edit=name, ridge=chosen[place % 2]).isel(fact=place).values for place in places]
        expected[name] = np.nanmean(np.concatenate(each))
        assert row["mean"] == pytest.approx(expected[name])
        told = f"{name}, λ = {chosen[0]:g} and {chosen[1]:g}"
        assert told in table.frame.index
    assert len(ridges) > 1
    assert "memit+cr − memit+fe" in table.frame.index
    one = dataset.isel(ridge=[0])
    assert no_halves(one) == no_halves(dataset.isel(fact=[0])) == "two facts and two values of λ"


def test_facts_that_were_not_asked_about_choose_no_ridge(finished):
    """As --evaluation-facts leaves them: without values."""
    dataset = open_run(finished).load()
    asked = xr.DataArray([False, True, True], dims="fact")
    records = [name for name in dataset if {"edit", "ridge", "fact"} <= set(dataset[name].dims)]
    sampled = dataset.assign({name: dataset[name].where(asked) for name in records})
    ours, theirs = cross_validated(sampled).numbers, cross_validated(dataset.isel(fact=[1, 2])).numbers
    pd.testing.assert_frame_equal(ours, theirs)
    assert no_halves(sampled.assign({n: sampled[n].where(dataset["fact"] == dataset["fact"][1]) for n in records}))


def by_fact(values):
    return values.mean([dim for dim in values.dims if dim != "fact"]).mean()


def test_a_suited_ridge_realises_the_share_that_it_says(tiny, facts):
    """One fact at a time, through the whole model."""
    rows, layers = fact_rows(tiny, facts, (("{}",),)), (1, 3)
    moments, generator = {}, torch.Generator().manual_seed(0)
    for layer in layers:
        noise = torch.randn(tiny.d_mlp, 3 * tiny.d_mlp, generator=generator, dtype=torch.float64)
        keys = torch.cat([noise, averaged_keys(rows, layer).T], dim=1)
        moments[layer] = keys @ keys.T / keys.shape[1]
    setting = Setting(rows, moments, 0.0)
    setting = replace(setting, ridge=suited_ridge(setting.eases(layers)))
    goal, realised = torch.randn(1, tiny.d_model, generator=generator, dtype=torch.float64), []
    for fact in range(len(facts)):
        for layer in layers:
            targets = Targets((layer,), {layer: goal}, {layer: goal})
            with restored(tiny, layers):
                edits = list(observed_edits(setting.select([fact]), SCHEMES["one-layer"], targets))
            realised.append(float(measure(edits, targets, SCHEMES["one-layer"])["realised"]))
    assert np.median(realised) == pytest.approx(REALISED, abs=0.05)
    assert min(realised) < REALISED < max(realised)
    with pytest.raises(InputError, match="positive definite C to choose λ by"):
        suited_ridge(torch.tensor([[math.nan]]))


def test_the_ridge_that_was_chosen_is_told(quick, tmp_path, monkeypatch):
    given = {**quick, "layers": "1-2", "methods": ("memit",), "greedy": False}
    del given["ridge"]
    run_job(EditTableConfig(**given, out=tmp_path / "run"), progress=False)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["settings"]["ridge"] == f"realises {REALISED:g}"
    assert config["provenance"]["ridge"] > 0
    monkeypatch.setattr(experiments, "second_moments", lambda *_a, **_k: pytest.fail("computed again"))
    run_job(EditTableConfig(**given, out=tmp_path / "run"), progress=False)
    monkeypatch.undo()
    given = {**given, "ridge": config["provenance"]["ridge"], "out": tmp_path / "same"}
    named = open_run(run_job(EditTableConfig(**given), progress=False))
    for name in METRICS:
        np.testing.assert_array_equal(named[name], open_run(tmp_path / "run")[name])


def test_the_frontier_is_three_decades_around_the_models_own(quick, finished):
    made = open_run(
        run_job(FrontierConfig(**quick, schemes=("one-layer",), out=finished.parent / "own"), progress=False)
    )
    ridges = made["ridge"].values
    assert len(ridges) == 7
    assert ridges[3] == quick["ridge"]
    assert ridges[-1] / ridges[0] == pytest.approx(1000, rel=0.05)
    along, own = write_account(finished.parent / "own", "frontier").split("Each method at its own λ")
    assert (along.count("| onelayer, λ"), own.count("| onelayer, λ")) == (7, 1)


ALPHAEDIT = {"schemes": ("backward-dividing", "forward-replay"), "ridges": (0.1, 10.0), "thresholds": (0.5, 2.0)}
LABELS = ["alphaedit[0.5]", "alphaedit[2]", "alphaedit[0.5]+fe", "alphaedit[2]+fe"]


@pytest.fixture(scope="module")
def along_l2(quick, once):
    rules = RuleSettings(alphaedit_relative=True)
    config = FrontierConfig(**quick, **ALPHAEDIT, rule="alphaedit", rules=rules)
    return once("frontier-l2", lambda folder: run_job(replace(config, out=folder), progress=False))


@pytest.mark.slow
def test_every_point_along_l2_is_an_edit_tables_with_these_settings(quick, along_l2, tmp_path):
    dataset = open_run(along_l2)
    assert set(dataset["edit"].values) == set(LABELS)
    rules = RuleSettings(alphaedit_relative=True, alphaedit_threshold=2.0, alphaedit_l2=0.1)
    methods = ("alphaedit", "alphaedit+fe")
    config = EditTableConfig(**quick, methods=methods, greedy=False, rules=rules, out=tmp_path / "run")
    alone = open_run(run_job(config, progress=False)).sel(edit=list(methods))
    point = dataset.sel(ridge=0.1, edit=["alphaedit[2]", "alphaedit[2]+fe"])
    for name in (*METRICS, "update_norm", "perplexity", "null_space_rank"):
        np.testing.assert_array_equal(point[name], alone[name], err_msg=name)
    changes = dataset["update_norm"].sel(edit="alphaedit[2]+fe").max("layer").values
    assert changes[0] > changes[1]  # the larger L2, the smaller the change
    ranks = [dataset["null_space_rank"].sel(edit=label, ridge=10.0).max() for label in LABELS[:2]]
    assert ranks[0] < ranks[1]  # the larger the threshold, the larger the null space


def test_tables_and_the_figure_name_l2_and_the_thresholds(along_l2):
    printed, run = write_account(along_l2, "frontier"), Results(along_l2)
    assert "| alphaedit[0.5]+fe, L2 = 10 " in printed
    assert "| alphaedit[2]+fe − alphaedit[2] " in printed
    assert "AlphaEdit goes along its L2. In the columns" in run.caption("frontier")
    assert "λ = " not in printed.replace("λ = 10.", "")
    bars = {c.get_label(): c.lines[0] for c in run.figure("frontier").axes[0].containers}
    assert set(bars) == set(LABELS)
    assert bars["alphaedit[0.5]"].get_linestyle() != bars["alphaedit[2]"].get_linestyle()
    assert bars["alphaedit[0.5]"].get_color() == bars["alphaedit[2]"].get_color()


def test_alphaedit_is_taken_three_decades_around_its_own_l2(quick):
    job = frontier_job(FrontierConfig(**quick, rule="alphaedit", rules=RuleSettings(alphaedit_relative=True)))
    assert job.coordinates["ridge"] == [0.32, 1.0, 3.2, 10.0, 32.0, 100.0, 320.0]
    assert "thresholds" not in job.settings


def test_other_rules_have_no_threshold(quick):
    with pytest.raises(InputError, match="expected thresholds with rule alphaedit, got them with memit"):
        frontier_job(FrontierConfig(**quick, thresholds=(0.1,)))


def test_emmet_goes_along_its_ridge(quick, tmp_path):
    """One batch of EMMET is MEMIT's at λ·ε."""
    given = {**quick, "schemes": ("forward-replay",)}
    runs = [
        open_run(run_job(FrontierConfig(**given, rule=rule, ridges=ridges, out=tmp_path / rule), progress=False))
        for rule, ridges in (("emmet", (30.0, 300.0)), ("memit", (3.0, 30.0)))
    ]
    emmet, memit = (run["kl"].squeeze("edit", drop=True).drop_vars("ridge") for run in runs)
    np.testing.assert_allclose(emmet, memit, rtol=1e-6)
