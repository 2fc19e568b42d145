"""The driver of predictors: synthetic runs whose truth is known, and small runs whose facts it diagnoses itself."""

import runpy
import sys

import numpy as np
import pandas as pd
import pytest
from helpers.commands import ROOT
from helpers.runs import make_run
from helpers.work import forbid

from jacobian_lab.jobs.config import EditTableConfig, FrontierConfig
from jacobian_lab.jobs.diagnosing import diagnose, donated, features_of
from jacobian_lab.jobs.experiment import prepare
from jacobian_lab.jobs.kinds import run_job
from jacobian_lab.store.run import open_run

SCRIPT = str(ROOT / "benchmarks" / "predictors.py")
FACTS = [f"fact {n}" for n in range(30)]


@pytest.fixture(scope="module")
def driver():
    return runpy.run_path(SCRIPT, run_name="predictors")


def run(driver, monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", [SCRIPT, *map(str, words)])
    driver["main"]()


def synthetic(folder, model, seed):
    """A frontier in which one number decides what becomes of a fact at λ = 100; at λ = 10 nothing does."""
    rng = np.random.default_rng(seed)
    decides, edits = rng.normal(size=len(FACTS)), ["memit+fe"]
    success, kl = rng.integers(0, 2, (len(FACTS), 1, 2)).astype(float), rng.uniform(size=(len(FACTS), 1, 2, 3))
    success[:, 0, 1], kl[:, 0, 1] = decides > -0.3, np.exp(-decides)[:, None]
    labels = {"fact": FACTS, "edit": edits, "ridge": [10.0, 100.0]}
    make_run(
        folder,
        "frontier",
        {"facts": f"{model} {seed}"},
        {"model": f"models/{model}.gguf", "ridge": 80.0, "options": {}},
        labels,
        efficacy_accuracy=success,
        generalization_accuracy=np.repeat(success[..., None], 2, axis=-1),
        kl=kl,
    )
    return decides


def test_what_decides_synthetic_runs_stands_first_and_noise_does_not_predict(driver, tmp_path, monkeypatch, capsys):
    decides = {}
    for place, (model, batch) in enumerate([(model, batch) for model in "mn" for batch in range(3)]):
        folder = tmp_path / f"{model}-{batch}"
        decides[folder] = synthetic(folder, model, place)

    def diagnosis_of(folder, _run, edits, *_args, **_options):
        noise = np.random.default_rng(sum(map(ord, folder.name))).normal(size=len(FACTS))
        numbers = {"fact": FACTS, "decides": decides[folder], "noise": noise}
        return pd.concat([pd.DataFrame(numbers).assign(scheme=scheme, ridge=ridge) for _, scheme, ridge, _ in edits])

    monkeypatch.setitem(driver["main"].__globals__, "diagnosis_of", diagnosis_of)
    run(driver, monkeypatch, *decides, "--out", tmp_path / "out")
    printed = capsys.readouterr().out
    assert (tmp_path / "out" / "predictors.md").read_text() == printed
    assert "180 outcomes in 6 batches" in printed
    table = pd.read_csv(tmp_path / "out" / "predictors.csv")
    for outcome in ("efficacy", "generalization", "kl"):
        rows = table[table["outcome"] == outcome]
        assert set(rows["model"]) == {"m", "n", "every model"}
        assert set(rows["fitted_on"]) == {"its own other batches", "other models"}
        first = rows[rows["predictor"] == "decides"]
        assert (first["value"] > (0.9 if outcome == "kl" else 0.98)).all()
        assert first["predicts"].all()
        noise = rows[rows["predictor"] == "noise"]
        assert not noise["predicts"].any()
        assert (noise["value"] < 0.65).all()
        assert rows["value"].is_monotonic_decreasing
    facts = pd.read_csv(tmp_path / "out" / "facts.csv")
    assert len(facts) == 6 * len(FACTS)
    assert (facts["ridge"] == 100).all()  # the nearest to the runs' own
    assert set(facts["method"]) == {"memit+fe"}
    run(driver, monkeypatch, *decides, "--out", tmp_path / "out", "--ridges", 10, 100)
    table = pd.read_csv(tmp_path / "out" / "predictors.csv")
    assert set(table["method"]) == {"memit+fe, λ = 10", "memit+fe, λ = 100"}
    at_ten = table[(table["method"] == "memit+fe, λ = 10") & (table["predictor"] == "decides")]
    assert not at_ten["predicts"].any()


@pytest.fixture(scope="module")
def small_runs(arguments, tables_run, once):
    """Two batches along λ, and all six facts with four methods."""
    shared = {**arguments, "anchors_from": tables_run, "held_out_tokens": 64, "corpus_length": 64}

    def make(root):
        for name, part in (("first", "0:3"), ("second", "3:6")):
            own = {**shared, "slice": part, "ridges": (1.0, 10.0), "schemes": ("forward-replay",)}
            run_job(FrontierConfig(**own, out=root / name), progress=False)
        methods = ("memit", "memit+fe", "rect@jacobian-pullback", "blue-refit")
        run_job(EditTableConfig(**shared, methods=methods, greedy=False, out=root / "methods"), progress=False)

    return once("runs-of-predictors", make)


@pytest.mark.slow
def test_small_runs_are_diagnosed_once_with_their_own_anchors(
    driver, arguments, small_runs, tables_run, tmp_path, monkeypatch, capsys
):
    forbid(monkeypatch, "optimize_anchors")
    words = [small_runs / name for name in ("first", "second", "methods")] + [tables_run, "--out", tmp_path]
    run(driver, monkeypatch, *words)
    printed = capsys.readouterr().out
    assert "| outcome" in printed
    facts = pd.read_csv(tmp_path / "facts.csv", dtype={"fact": str})
    assert facts.groupby("run").size().tolist() == [3, 2 * 6, 3]  # with two methods: the others are left out
    stored = open_run(small_runs / "first").sel(edit="memit+fe", ridge=10.0)
    own = facts[facts["run"] == str(small_runs / "first")]
    assert own["fact"].tolist() == [str(fact) for fact in stored["fact"].values]
    np.testing.assert_allclose(own["kl"], stored["kl"].mean("neighbor"))
    np.testing.assert_allclose(own["efficacy"], stored["efficacy_accuracy"])
    config = FrontierConfig(**{**arguments, "slice": "0:3", "anchors_from": tables_run, "corpus_length": 64})
    experiment = prepare(config)
    recorder = donated(experiment, "forward-replay")
    for record, row in zip(diagnose(experiment, "forward-replay", recorder), own.to_dict("records"), strict=True):
        for name, value in features_of(record).items():
            assert row[name] == pytest.approx(value, rel=1e-9, nan_ok=True), name
    whole = facts[facts["run"] == str(small_runs / "methods")]
    lambda_min = open_run(tables_run)["lambda_min"].sel(layer=1).values
    np.testing.assert_allclose(whole["lambda_min, first layer"][:6], lambda_min)  # of the run of schemes
    assert whole["key_cosine, first layer"][:3].to_numpy() == pytest.approx(
        whole["key_cosine, first layer"][6:9].to_numpy()
    )
    assert set(pd.read_csv(tmp_path / "predictors.csv")["method"]) <= {"memit", "memit+fe"}
    monkeypatch.setitem(driver["main"].__globals__, "prepare", lambda *_a, **_k: pytest.fail("diagnosed anew"))
    run(driver, monkeypatch, *words)
    assert capsys.readouterr().out == printed


def test_runs_without_such_edits_are_refused(driver, tmp_path, monkeypatch):
    folder = make_run(tmp_path / "run", "tables")
    with pytest.raises(SystemExit, match="expected runs of jacobian-lab methods or frontier"):
        run(driver, monkeypatch, folder, "--out", tmp_path / "out")
