"""The driver of a trial, on two batches of two facts along two λ."""

import json
import runpy
import sys

import numpy as np
import pandas as pd
import pytest
from helpers.commands import ROOT
from helpers.work import forbid
from matplotlib.figure import Figure

from jacobian_lab.report.endpoint import compared
from jacobian_lab.report.figures.trial import frontiers
from jacobian_lab.store.run import open_run
from jacobian_lab.tries import bounds_around

SCRIPT = str(ROOT / "benchmarks" / "trial.py")


@pytest.fixture(scope="module")
def driver():
    return runpy.run_path(SCRIPT, run_name="trial")


def planned(arguments):
    shared = {name: value for name, value in arguments.items() if name not in {"model", "slice", "anchor"}}
    options = {name: str(value) if name in {"templates", "corpus"} else value for name, value in shared.items()}
    return {
        "batches": [{"model": arguments["model"], "facts": "builtin", "slices": ["0:2", "2:4"], "options": options}],
        "schemes": ["one-layer", "forward-replay"],
        "ridges": [10, 100],
        "descents": {"forward-replay": {"anchor": {"lr": 0.1, "steps": 2}}},
        "options": {"held_out_tokens": 64, "corpus_length": 64, "anchor": {"lr": 0.1, "steps": 3}},
    }


def run(driver, monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", [SCRIPT, *map(str, words)])
    driver["main"]()


@pytest.mark.slow
def test_a_trial_goes_on_batch_by_batch_to_its_endpoint(driver, arguments, tmp_path, monkeypatch, capsys):
    (tmp_path / "plan.json").write_text(json.dumps(planned(arguments)))
    given = ["--plan", tmp_path / "plan.json", "--out", tmp_path / "trial"]
    run(driver, monkeypatch, *given, "--most", 0)
    assert capsys.readouterr().out == "No point has been measured.\n"
    run(driver, monkeypatch, *given, "--most", 1)
    assert "1 of 4 that are left: gpt2-builtin-0-2-0\n" in capsys.readouterr().err
    assert len(pd.read_csv(tmp_path / "trial" / "trial.csv")) == 2
    run(driver, monkeypatch, *given)
    out, err = capsys.readouterr()
    assert "3 of 3 that are left: gpt2-builtin-2-4-0-forward-replay\n" in err
    points = pd.read_csv(tmp_path / "trial" / "trial.csv")
    names = ["model", "data", "batch", "seed", "scheme", "ridge"]
    names += ["efficacy", "generalization", "kl", "top10", "perplexity", "seconds"]
    assert points.columns.tolist() == names
    assert len(points) == 2 * 2 * 2
    stored = open_run(tmp_path / "trial" / "gpt2-builtin-2-4-0-forward-replay").sel(edit="memit+fe", ridge=100)
    point = points.set_index(["batch", "scheme", "ridge"]).loc[("2:4", "forward-replay", 100.0)]
    assert point["kl"] == pytest.approx(float(stored["kl"].mean()))
    assert point["generalization"] == pytest.approx(100 * float(stored["generalization_accuracy"].mean()))
    assert point["perplexity"] == pytest.approx(float(stored["perplexity"]))
    assert (points["seconds"] > 0).all()
    ends = pd.read_csv(tmp_path / "trial" / "endpoint.csv", keep_default_na=False)
    row = ends.set_index(["endpoint", "scheme", "against"]).loc[("efficacy", "forward-replay", "one-layer")]
    own = compared(points, "efficacy", bounds_around(0.1)).set_index(["scheme", "against"])
    assert float(row["mean"]) == pytest.approx(own.loc[("forward-replay", "one-layer"), "mean"])
    assert int(row["batches"]) == 2
    assert "forward-replay − one-layer" in out
    assert (tmp_path / "trial" / "endpoint.md").read_text() == out
    assert (tmp_path / "trial" / "trial.png").read_bytes().startswith(b"\x89PNG")
    forbid(monkeypatch, "optimize_anchors", "edit_with", "second_moments")
    run(driver, monkeypatch, *given)
    assert "left" not in capsys.readouterr().err
    changed = planned(arguments) | {"ridges": [10]}
    (tmp_path / "plan.json").write_text(json.dumps(changed))
    assert not any(map(driver["finished"], trials_of(driver, tmp_path / "plan.json", tmp_path / "trial")))


def trials_of(driver, plan, out):
    return list(driver["trials"](driver["read_plan"](plan), out, ROOT, ROOT))


def test_the_figure_has_a_thin_line_a_batch_and_the_means_of_a_scheme():
    table = [(data, batch, scheme, ridge) for data in "ab" for batch in "123" for scheme in "xy" for ridge in (1, 10)]
    points = pd.DataFrame(table, columns=["data", "batch", "scheme", "ridge"]).assign(model="m", seed=0)
    points["kl"], points["generalization"] = 1 / points["ridge"], points["batch"].astype(float) * points["ridge"]
    figure = Figure()
    frontiers(figure, points)
    assert len(figure.axes) == 2
    for ax in figure.axes:
        assert len(ax.lines) == 2 * (3 + 1)
        assert [text.get_text() for text in ax.texts] == ["1", "10"] * 2
    means = next(line for line in figure.axes[0].lines if line.get_label() == "x")
    assert means.get_xydata() == pytest.approx(np.array([[1, 2], [0.1, 20]]))


def test_the_default_plan_takes_the_last_thousand_facts_smollm2_first(driver, tmp_path):
    trials = trials_of(driver, None, tmp_path)
    assert trials[0].folder == tmp_path / "smollm2-135m-counterfact_2000-1000-1032-0"
    assert trials[1].config["facts"] == str(ROOT / "zsre_2000.json")
    slices = {trial.labels["batch"] for trial in trials}
    assert min(int(part.split(":")[0]) for part in slices) == 1000
    assert max(int(part.split(":")[1]) for part in slices) <= 2000
    own = [trial.labels for trial in trials if trial.labels["model"] == "smollm2-135m"]
    assert own == [trial.labels for trial in trials[: len(own)]]
    assert [trial["seed"] for trial in own if trial["batch"] == "1000:1032"] == [0, 0, 1, 2, 1, 2]
    assert len({trial.folder for trial in trials}) == len(trials)
    assert all(len(trial.config["schemes"]) == 3 for trial in trials)


def test_variants_of_a_scheme_have_labels_of_their_own_and_settings_are_laid_over_one_another(driver, tmp_path):
    plan = {
        "batches": [{"slices": ["1000:1002"]}],
        "schemes": ["forward-replay", "random 0", "coordinated-replay"],
        "options": {"anchor": {"steps": 100, "lr": 0.5}},
        "descents": {
            "random 0": {"scheme": "coordinated-replay", "coordination": {"weighting": "random", "draw": 0}},
            "coordinated-replay": {"anchor": {"lr": 0.2}},
        },
    }
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    shared, drawn, own = trials_of(driver, tmp_path / "plan.json", tmp_path)
    assert [trial.config["schemes"] for trial in (shared, drawn, own)] == [
        ("forward-replay",),
        ("coordinated-replay",),
        ("coordinated-replay",),
    ]
    assert [trial.labels.get("scheme") for trial in (shared, drawn, own)] == [None, "random 0", "coordinated-replay"]
    assert own.config["anchor"] == {"steps": 100, "lr": 0.2}
    assert shared.config["anchor"] == drawn.config["anchor"] == {"steps": 100, "lr": 0.5}
    assert "scheme" not in drawn.config
    assert len({trial.folder for trial in (shared, drawn, own)}) == 3


def test_a_plan_with_another_word_is_refused(driver, tmp_path):
    (tmp_path / "plan.yaml").write_text("lambdas: [1, 2]\n")
    with pytest.raises(SystemExit, match="in a plan, got 'lambdas'"):
        driver["read_plan"](tmp_path / "plan.yaml")
    trial = driver["Trial"](tmp_path, {}, {"layer": "1-3"})
    with pytest.raises(SystemExit, match="in a plan, got 'layer': see jacobian-lab frontier"):
        driver["config_of"](trial)
    trial = driver["Trial"](tmp_path, {}, {"layers": "1-3", "anchor": {"lr": 0.25}})
    assert driver["config_of"](trial).anchor.lr == 0.25
    (tmp_path / "plan.yaml").write_text("kl_bound: 0.2\n")
    assert driver["read_plan"](tmp_path / "plan.yaml").kl_bound == 0.2
    assert len(driver["read_plan"](tmp_path / "plan.yaml").batches) > 10


def test_seconds_of_an_interrupted_run_are_added_up(driver, tmp_path, monkeypatch):
    trial = driver["Trial"](tmp_path, {}, {"slice": "0:1"})
    spaces = driver["carry_out"].__globals__

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setitem(spaces, "exists", lambda _: True)
    monkeypatch.setitem(spaces, "config_of", lambda _: None)
    clock = iter([0.0, 5.0, 10.0, 17.0])
    monkeypatch.setattr(spaces["time"], "perf_counter", lambda: next(clock))
    monkeypatch.setattr(spaces["jl"], "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        driver["carry_out"](trial)
    assert not driver["finished"](trial)
    monkeypatch.setattr(spaces["jl"], "run", lambda *_, **__: None)
    driver["carry_out"](trial)
    assert driver["finished"](trial)
    assert driver["record_of"](trial)["seconds"] == 12.0
