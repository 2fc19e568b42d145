"""Schemes with descents of their own, in runs: stored, resumed, planned, and taken from another run."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.commands import options
from helpers.work import forbid

from jacobian_lab import cli
from jacobian_lab.catalogue import CONTROLS, SCHEMES, TABLE_SCHEMES
from jacobian_lab.editing.settings import ReplaySettings
from jacobian_lab.errors import InputError
from jacobian_lab.jobs import schemes
from jacobian_lab.jobs.config import FrontierConfig, LayerCountConfig, SchemesConfig
from jacobian_lab.jobs.kinds import run_job
from jacobian_lab.jobs.tune_config import TuneConfig
from jacobian_lab.report.results import write_schemes
from jacobian_lab.session import descents as bench
from jacobian_lab.store.run import open_run
from jacobian_lab.store.schema import KINDS

pytestmark = pytest.mark.slow
OWN = ("inner_anchor", "restarted_anchor", "joint_anchor")
DESCENTS = ("optimize_anchors", "best_anchors", "coordinate_shifts")


@pytest.fixture(scope="module")
def quick(arguments):
    return {**arguments, "slice": "0:2", "corpus_length": 64, "replay": ReplaySettings(starts=2)}


@pytest.fixture(scope="module")
def finished(quick, tmp_path_factory):
    """A run of forward replay, which the controls have joined."""
    config = SchemesConfig(
        **quick, schemes=("forward-replay",), survey="none", out=tmp_path_factory.mktemp("r") / "run"
    )
    run_job(config, progress=False)
    return run_job(replace(config, schemes=CONTROLS), progress=False)


def test_controls_join_a_run_with_their_descents(finished, quick, monkeypatch):
    run = open_run(finished)
    assert set(run["scheme"].values) == {"forward-replay", *CONTROLS}
    assert np.isfinite(run["inner_anchor"].sel(layer=2)).all()
    assert run["inner_anchor"].sel(layer=[1, 3]).isnull().all()
    for name in OWN[1:]:
        assert np.isfinite(run[name]).all()
        assert (run[f"{name}_passes"] > 0).all()
    assert (run["restarted_anchor_passes"] == 8).all()
    for scheme in CONTROLS:
        layers = [1] if scheme == "first-layer" else [1, 2, 3]
        assert np.isfinite(run["residual_ratio"].sel(scheme=scheme, layer=layers)).all(), scheme
    write_schemes(finished)
    text = (finished / "descents.md").read_text()
    for label in ("anchors at layer 2", "best of restarted anchors", "joint anchors", "clamped share of updates"):
        assert label in text
    forbid(monkeypatch, *DESCENTS[:1])
    run_job(SchemesConfig(**quick, schemes=CONTROLS, survey="none", out=finished), progress=False)


def test_another_run_takes_their_descents(finished, quick, tmp_path, monkeypatch):
    calls = []
    for name in DESCENTS:
        original = getattr(bench, name)
        monkeypatch.setattr(bench, name, lambda *a, n=name, f=original, **k: calls.append(n) or f(*a, **k))
    config = FrontierConfig(
        **quick, schemes=CONTROLS, ridges=(10.0,), held_out_tokens=64, anchors_from=finished, out=tmp_path / "run"
    )
    run_job(config, progress=False)
    assert not calls
    run, donor = open_run(tmp_path / "run"), open_run(finished)
    for name in OWN:
        np.testing.assert_array_equal(run[name], donor[name])
    other = replace(config, replay=ReplaySettings(starts=3), schemes=CONTROLS[3:], out=tmp_path / "other")
    run_job(other, progress=False)
    assert calls == ["best_anchors", "optimize_anchors"]  # as is the joint one, whose settings it shares


def test_a_plan_counts_their_descents(quick, capsys):
    usual = {name: value for name, value in quick.items() if name != "replay"}
    words = [*options(usual), "--replay.starts", "3", "--survey", "none", "--schemes", *CONTROLS[1:], "--plan"]
    cli.main(["schemes", *words])
    text = capsys.readouterr().out
    for stage in ("inner anchors at layer 2", "restarted anchors at layer 1", "joint anchors at layer 1"):
        assert stage in text


def test_an_older_run_is_finished_and_takes_no_new_scheme(quick, tmp_path, monkeypatch):
    """It was made with fewer schemes and arrays."""
    older = {name: v for name, v in KINDS["tables"].items() if not name.startswith(OWN)}
    config = SchemesConfig(**quick, schemes=("one-layer",), survey="none", out=tmp_path / "run")
    with monkeypatch.context() as before:
        before.setitem(KINDS, "tables", older)
        before.setattr(schemes, "SCHEMES", {name: SCHEMES[name] for name in TABLE_SCHEMES})
        run_job(config, progress=False)
    with monkeypatch.context() as after:
        forbid(after, *DESCENTS[:1])
        run_job(config, progress=False)
    assert open_run(config.out)["scheme"].values.tolist() == ["one-layer"]
    with pytest.raises(InputError, match="expected what a run of this version was made for, got 'first-layer'"):
        run_job(replace(config, schemes=("first-layer",)), progress=False)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (LayerCountConfig(schemes=("forward-replay-joint",)), "got forward-replay-joint: leave it out of schemes"),
        (TuneConfig(methods=("memit@independent-everywhere",)), "got memit@independent-everywhere: leave it out of"),
    ],
)
def test_searches_and_counts_refuse_what_has_its_own_descents(config, words):
    with pytest.raises(InputError, match=words):
        run_job(config, progress=False)


def test_layer_count_has_anchors_everywhere(quick, tmp_path):
    config = LayerCountConfig(**quick, schemes=("independent-everywhere",), max_layers=3, out=tmp_path / "run")
    run = open_run(run_job(config, progress=False))
    assert np.isfinite(run["final_ratio"].sel(scheme="independent-everywhere")).all()
