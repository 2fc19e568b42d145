"""Diagnoses of facts: records against what runs store, sentences against thresholds, and the command."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from helpers.commands import options
from helpers.work import forbid

from jacobian_lab import cli
from jacobian_lab.catalogue import SCHEMES
from jacobian_lab.jobs.config import SchemesConfig
from jacobian_lab.jobs.diagnosing import (
    OF_FACT,
    OF_LAYER,
    diagnose,
    donated,
    features_of,
    symmetric_bounds,
    table_of,
)
from jacobian_lab.jobs.experiment import prepare
from jacobian_lab.jobs.kinds import run_job
from jacobian_lab.jobs.outlook import LIKELY, SIGNS, UNMEASURED, Sign, sentences
from jacobian_lab.model.tokens import BARE
from jacobian_lab.store.run import open_run

CONTROLS = ("independent-everywhere", "forward-replay-joint")


@pytest.fixture(scope="module")
def experiment(arguments, tables_run):
    return prepare(SchemesConfig(**arguments, anchors_from=tables_run))


@pytest.fixture(scope="module")
def controls_run(arguments, once):
    config = SchemesConfig(**arguments, schemes=CONTROLS, verdicts=False)
    return once("controls", lambda folder: run_job(replace(config, out=folder), progress=False))


@pytest.mark.parametrize("scheme", ["forward-replay", "backward-dividing", "independent", "coordinated-replay"])
def test_descents_of_another_run_are_diagnosed_and_none_is_made(experiment, tables_run, scheme, monkeypatch):
    forbid(monkeypatch, "optimize_anchors", "coordinate_shifts")
    records, stored = diagnose(experiment, scheme, donated(experiment, scheme)), open_run(tables_run)
    names = {"forward-replay": [1], "backward-dividing": [3], "independent": [1, 3]}
    if scheme in names:
        at = {"anchor_layer": names[scheme]}
        losses, passes = (stored[f"anchor_{name}"].sel(at).max("anchor_layer") for name in ("loss", "passes"))
    else:
        losses, passes = stored["coordinated_shift_loss"], stored["coordinated_shift_passes"]
    np.testing.assert_allclose([record["loss"] for record in records], losses)
    assert [record["passes"] for record in records] == passes.values.tolist() == [4] * 6
    assert not any(record["reached"] for record in records)
    assert [layer["layer"] for layer in records[0]["layers"]] == list(SCHEMES[scheme].edited((1, 2, 3)))


@pytest.mark.slow
@pytest.mark.parametrize("scheme", CONTROLS)
def test_controls_have_descents_of_their_own(arguments, controls_run, scheme, monkeypatch):
    forbid(monkeypatch, "optimize_anchors")
    experiment, stored = prepare(SchemesConfig(**arguments, anchors_from=controls_run)), open_run(controls_run)
    records = diagnose(experiment, scheme, donated(experiment, scheme))
    losses = stored["joint_anchor_loss"]
    if scheme == "independent-everywhere":
        ends, inner = stored["anchor_loss"].max("anchor_layer"), stored["inner_anchor_loss"].sel(layer=2)
        losses = np.maximum(ends, inner)
    np.testing.assert_allclose([record["loss"] for record in records], losses)


def test_without_another_run_the_same_descents_are_made(arguments, experiment):
    own = prepare(SchemesConfig(**arguments))
    for record, other in zip(
        diagnose(own, "forward-replay"),
        diagnose(experiment, "forward-replay", donated(experiment, "forward-replay")),
        strict=True,
    ):
        assert record["id"] == other["id"]
        np.testing.assert_allclose(
            list(features_of(record).values()), list(features_of(other).values()), rtol=1e-8, atol=1e-10
        )


def test_bounds_of_s_are_those_of_a_survey(experiment, tables_run):
    stored, bounds = open_run(tables_run), symmetric_bounds(experiment)
    for name in ("lambda_min", "lambda_max"):
        np.testing.assert_allclose(bounds[name][:, :2], stored[name].sel(layer=[1, 2]), rtol=1e-8)
        assert np.isnan(bounds[name][:, 2]).all()
    records = diagnose(experiment, "forward-replay", donated(experiment, "forward-replay"), bounds=bounds)
    first = records[2]["layers"][0]
    low, high = (float(stored[name].sel(layer=1)[2]) for name in ("lambda_min", "lambda_max"))
    assert first["range_position"] == pytest.approx((first["rayleigh"] - low) / (high - low))
    assert records[0]["layers"][2]["lambda_min"] is None


def test_lambda_changes_the_shares_alone(experiment):
    recorder = donated(experiment, "forward-replay")
    weak, strong = (diagnose(experiment, "forward-replay", recorder, ridge=ridge) for ridge in (1.0, 1e4))
    for low, high in zip(weak, strong, strict=True):
        assert low["layers"][0]["together"] > high["layers"][0]["together"]
        ease = low["layers"][0]["ease"]
        assert high["layers"][0]["alone"] == pytest.approx(ease / (1e4 + ease))
        assert {name: low["layers"][0][name] for name in ("ease", "key_cosine", "residual_cosine")} == {
            name: high["layers"][0][name] for name in ("ease", "key_cosine", "residual_cosine")
        }


def test_features_and_table_are_those_of_the_records(experiment):
    records = diagnose(experiment, "forward-replay", donated(experiment, "forward-replay"))
    frame = table_of(records)
    assert frame.columns.tolist() == ["fact", "layer", *OF_FACT, *OF_LAYER]
    assert len(frame) == 6 * 3
    row = frame[(frame["fact"] == records[1]["id"]) & (frame["layer"] == 2)].iloc[0]
    assert row["ease"] == records[1]["layers"][1]["ease"]
    features = features_of(records[1])
    eases = [layer["ease"] for layer in records[1]["layers"]]
    assert [features[f"ease, {place}"] for place in ("first layer", "last layer", "mean")] == pytest.approx([
        eases[0],
        eases[-1],
        np.mean(eases),
    ])
    assert features["rank"] == records[1]["rank"]
    assert np.isnan(features["lambda_min, mean"])
    (fact,) = [fact for fact in experiment.facts if fact.id == records[1]["id"]]
    ids = experiment.model.tokenizer(fact.prompt.replace(BARE, fact.subject))["input_ids"]
    assert records[1]["prompt_tokens"] == len(ids)
    assert records[1]["decisive"] < len(ids)


def record(**values):
    layer = {"layer": 4, "ease": 5.0, "key_cosine": 0.2, "out_of_reach": 0.0, "nearest": []}
    return {"id": "a", "loss": 0.01, "passes": 9, "reached": True, "rank": 7, "layers": [layer, {**layer, **values}]}


def test_a_sentence_says_the_number_the_layer_and_the_facts():
    near = [{"id": 3, "cosine": 0.97}, {"id": 8, "cosine": 0.95}, {"id": 9, "cosine": 0.1}]
    assert list(sentences(record(layer=8, key_cosine=0.97, nearest=near))) == [
        "its key at layer 8 is nearly that of 2 other facts (cosine 0.97 with 3, 8)"
    ]
    assert list(sentences(record(layer=8, out_of_reach=0.62))) == ["0.62 of its residual is out of reach at layer 8"]
    late = record() | {"loss": 1.2, "passes": 25, "reached": False}
    assert list(sentences(late)) == ["its descent's loss is still 1.2 after 25 passes"]
    assert list(sentences(record())) == []
    (line,) = sentences(record() | {"loss": None, "reached": False})
    assert "takes no part in the solve" in line


def test_likely_to_fail_is_said_where_a_run_supports_it_alone():
    sign = Sign("out_of_reach", "above", 0.5, "{value:.2f}", source="runs/x", supported=True)
    assert list(sentences(record(out_of_reach=0.62), [sign])) == [f"{LIKELY}0.62"]
    assert list(sentences(record(out_of_reach=0.62), [replace(sign, supported=False)])) == ["0.62"]
    assert list(sentences(record(out_of_reach=0.62), [replace(sign, threshold=None)])) == []
    assert list(sentences(record(out_of_reach=None), [sign])) == []
    assert list(sentences(record(ease=0.1), [Sign("ease", "below", 1.0, "{value}")])) == ["0.1"]


def test_the_table_of_signs_names_every_number_once_and_claims_nothing_unmeasured():
    every = {*OF_LAYER, *OF_FACT} - {"loss", "passes"}  # of which "reached" speaks
    assert sorted(sign.name for sign in SIGNS) == sorted(every)
    assert all(sign.source != UNMEASURED for sign in SIGNS if sign.supported)
    assert all(sign.text for sign in SIGNS if sign.threshold is not None)


def words(arguments, *further):
    return ["check", "--diagnose", *options(arguments), *map(str, further)]


def test_the_command_writes_what_json_and_text_say(arguments, tables_run, tmp_path, capsys, monkeypatch):
    forbid(monkeypatch, "optimize_anchors")
    further = ("--anchors-from", tables_run, "--out", tmp_path / "out")
    cli.main(words(arguments, *further, "--json"))
    report = json.loads(capsys.readouterr().out)
    diagnosis = report["diagnosis"]
    assert report["passed"]
    assert (diagnosis["scheme"], diagnosis["ridge"]) == ("forward-replay", 10.0)
    assert [fact["id"] for fact in diagnosis["facts"]] == [fact["id"] for fact in report["facts"]]
    assert [fact["rank"] for fact in diagnosis["facts"]] == [fact["rank"] for fact in report["facts"]]
    assert [fact["decisive"] for fact in diagnosis["facts"]] == [fact["decisive"] for fact in report["facts"]]
    table = pd.read_csv(tmp_path / "out" / "diagnosis.csv")
    assert len(table) == 6 * 3
    assert table["ease"][0] == pytest.approx(diagnosis["facts"][0]["layers"][0]["ease"])
    assert json.loads((tmp_path / "out" / "check.json").read_text())["diagnosis"] == diagnosis
    cli.main(words(arguments, *further))
    lines = capsys.readouterr().out.splitlines()
    assert "Before an edit by forward-replay at λ = 10, something speaks against 6 of 6 facts." in lines
    first = diagnosis["facts"][0]
    assert f"  {first['id']}: {'; '.join(first['sentences'])}" in lines


@pytest.mark.parametrize("family", ["gpt2", "olmo2"])
def test_each_usable_fact_is_diagnosed_once_whatever_else_a_file_holds(arguments, folders, family, tmp_path, capsys):
    good = {"id": "a", "subject": "Ada", "prompt": "{} was born in", "target_new": "Rome", "target_true": "Oslo"}
    other = {**good, "id": "b", "subject": "Mira Vale"}
    records = [good, {**good, "id": "again", "target_new": "Bath"}, other, {**other, "id": "c", "target_new": ""}]
    (tmp_path / "facts.json").write_text(json.dumps(records))
    own = {**arguments, "facts": tmp_path / "facts.json", "model": folders[family], "slice": None}
    with pytest.raises(SystemExit) as ended:
        cli.main(words(own, "--json", "--scheme", "backward-dividing", "--on-repeat", "last", "--verdicts"))
    assert ended.value.code == 1
    report = json.loads(capsys.readouterr().out)
    assert [fact["id"] for fact in report["facts"]] == ["a", "again", "b"]
    assert [fact["id"] for fact in report["diagnosis"]["facts"]] == ["again", "b"]
    first, *_, last = report["diagnosis"]["facts"][0]["layers"]
    assert first["lambda_min"] <= first["rayleigh"]
    assert 0 <= first["range_position"] <= 1
    assert last["rayleigh"] == pytest.approx(1)
    assert (first["out_of_reach"] > 0) == (family == "olmo2")


def test_nothing_is_diagnosed_that_cannot_be_edited_or_was_not_asked_for(arguments, folders, capsys, monkeypatch):
    forbid(monkeypatch, "optimize_anchors", "second_moments")
    cli.main(["check", "--json", *options(arguments)])
    assert "diagnosis" not in json.loads(capsys.readouterr().out)
    if "mixtral" in folders:
        with pytest.raises(SystemExit):
            cli.main(words({**arguments, "model": folders["mixtral"]}, "--json"))
        assert "diagnosis" not in json.loads(capsys.readouterr().out)
