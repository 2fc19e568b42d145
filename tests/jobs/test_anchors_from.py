"""Anchors and shifts of another run, taken over where the same settings made them."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

import jacobian_lab as jl
from jacobian_lab.editing.settings import CoordinationSettings
from jacobian_lab.errors import InputError
from jacobian_lab.facts.fact import describe
from jacobian_lab.jobs.config import (
    AnchorConfig,
    DampingConfig,
    EditTableConfig,
    JacobianConfig,
    LayerCountConfig,
    SchemesConfig,
)
from jacobian_lab.jobs.kinds import run_job
from jacobian_lab.jobs.recording import Recorded
from jacobian_lab.session import descents as bench
from jacobian_lab.store.run import config_of, open_run
from jacobian_lab.store.schema import KINDS

pytestmark = pytest.mark.slow

SCHEMES = ("forward-replay", "coordinated-replay")
QUICK = {"held_out_tokens": 64, "corpus_length": 64, "greedy": False, "methods": ("memit+fe", "memit+cr")}


@pytest.fixture(scope="module")
def donor(arguments, tmp_path_factory):
    config = SchemesConfig(
        **{**arguments, "corpus_length": 64},
        schemes=SCHEMES,
        survey="none",
        out=tmp_path_factory.mktemp("runs") / "run",
    )
    return run_job(config, progress=False)


@pytest.fixture
def descents(monkeypatch):
    """Which descents are made."""
    made = []
    for name in ("optimize_anchors", "coordinate_shifts"):
        original = getattr(bench, name)
        monkeypatch.setattr(bench, name, lambda *a, n=name, f=original, **k: made.append(n) or f(*a, **k))
    return made


def same(folder, donor, *names):
    ours, theirs = open_run(folder), open_run(donor)
    for name in names:
        np.testing.assert_array_equal(ours[name], theirs[name])
    return ours


def test_they_are_taken_over_to_the_bit(arguments, donor, tmp_path, descents):
    config = EditTableConfig(**arguments, **QUICK, anchors_from=donor, out=tmp_path / "run")
    run_job(config, progress=False)
    assert not descents
    found = same(tmp_path / "run", donor, "anchor", "anchor_loss", "anchor_passes", "coordinated_shift")
    assert config_of(found)["provenance"]["anchors_from"] == str(donor)
    run_job(replace(config, anchors_from=None, out=tmp_path / "alone"), progress=False)
    assert set(descents) == {"optimize_anchors", "coordinate_shifts"}
    same(tmp_path / "alone", tmp_path / "run", "kl", "efficacy_accuracy", "nll_new", "coordinated_shift_passes")


def test_a_run_that_has_taken_all_needs_no_donor(arguments, donor, tmp_path):
    """It goes on, and it is finished, without; what is not there yet is refused before any work."""
    copy = tmp_path / "donor"
    shutil.copytree(donor, copy)
    config = SchemesConfig(**{**arguments, "corpus_length": 64}, schemes=SCHEMES[:1], survey="none", anchors_from=copy)
    taken = replace(config, out=tmp_path / "run")
    run_job(taken, progress=False)
    shutil.rmtree(copy)
    run_job(taken, progress=False)
    (tmp_path / "run" / "data.zarr" / "residual_ratio" / "0.0.0").unlink()
    run_job(taken, progress=False)
    assert np.isfinite(open_run(tmp_path / "run")["residual_ratio"]).any()
    with pytest.raises(InputError, match=r"expected the folder of a run, got .*, or give another anchors_from"):
        run_job(replace(taken, schemes=SCHEMES), progress=False)
    with pytest.raises(InputError, match=r"expected the folder of a run, got .*, or give another anchors_from"):
        run_job(replace(config, out=tmp_path / "new"), progress=False)
    assert not (tmp_path / "new").exists()


def test_a_run_of_more_facts_takes_those_that_it_shares(arguments, donor, tmp_path, monkeypatch):
    """Only the others are optimised, in batches of their own; what the donor has lost, as it was there."""
    optimised = []
    for name in ("optimize_anchors", "coordinate_shifts"):
        original = getattr(bench, name)
        monkeypatch.setattr(
            bench,
            name,
            lambda rows, *a, f=original, **k: optimised.extend(each.id for each in rows.facts) or f(rows, *a, **k),
        )
    folder = tmp_path / "donor"
    shutil.copytree(donor, folder)
    (folder / "data.zarr" / "anchor" / "0.0.0").unlink()
    config = EditTableConfig(**{**arguments, "slice": "0:9"}, **QUICK, anchors_from=donor, out=tmp_path / "run")
    run_job(config, progress=False)
    assert sorted(optimised) == sorted(3 * [fact.id for fact in jl.load_facts("builtin", "6:9")])
    taken, there = open_run(tmp_path / "run"), open_run(donor)
    for name in ("anchor", "anchor_passes", "coordinated_shift"):
        np.testing.assert_array_equal(taken[name][:6], there[name])
        assert np.isfinite(taken[name]).all()
    run_job(replace(config, anchors_from=folder, out=tmp_path / "again"), progress=False)
    for name in ("anchor", "coordinated_shift"):
        np.testing.assert_array_equal(open_run(tmp_path / "again")[name], taken[name])


def test_shifts_that_other_settings_decide_are_made_anew(arguments, donor, tmp_path, descents):
    other = CoordinationSettings(weighting="front")
    config = EditTableConfig(**arguments, **QUICK, coordination=other, anchors_from=donor, out=tmp_path / "run")
    run_job(config, progress=False)
    assert set(descents) == {"coordinate_shifts"}
    assert not np.array_equal(
        same(tmp_path / "run", donor, "anchor")["coordinated_shift"], open_run(donor)["coordinated_shift"]
    )


def test_a_run_at_other_layers_takes_the_anchors_that_it_shares(arguments, donor, tmp_path, monkeypatch):
    original, layers = bench.optimize_anchors, []
    monkeypatch.setattr(bench, "optimize_anchors", lambda *a, **k: layers.append(a[1]) or original(*a, **k))
    config = LayerCountConfig(
        **arguments, schemes=("forward-replay",), max_layers=2, anchors_from=donor, out=tmp_path / "run"
    )
    run_job(config, progress=False)
    assert set(layers) == {2}
    np.testing.assert_array_equal(
        open_run(tmp_path / "run")["anchor"].sel(anchor_layer=3), open_run(donor)["anchor"].sel(anchor_layer=3)
    )


def test_what_cannot_be_taken_over_is_refused_by_name(arguments, donor, tmp_path):
    told = [*describe(jl.load_facts("builtin", "0:3"))]
    told[1]["target_new"] = "Rome"
    elsewhere = tmp_path / "elsewhere.json"
    elsewhere.write_text(json.dumps(told))
    for other, expected in (
        ({"anchor": AnchorConfig(lr=0.2, steps=4)}, "another anchor.lr: .* or another anchors_from"),
        ({"facts": str(elsewhere), "slice": None}, "another facts"),
        ({"anchors_from": tmp_path / "none"}, "folder of a run, got .*none .*, or give another anchors_from"),
    ):
        given = {**arguments, "anchors_from": donor, **other}
        with pytest.raises(InputError, match=expected):
            run_job(SchemesConfig(**given, out=tmp_path / "run"), progress=False)
    assert not (tmp_path / "run").exists()
    given = {name: value for name, value in arguments.items() if name in {"model", "layers", "device", "dtype"}}
    surveyed = run_job(JacobianConfig(**given, slice="0:1", out=tmp_path / "jacobian"), progress=False)
    with pytest.raises(InputError, match="expected a run with anchors, got one of jacobians"):
        run_job(SchemesConfig(**{**arguments, "slice": "0:1"}, anchors_from=surveyed, out=tmp_path / "run"))


def test_a_run_of_more_facts_gives_those_of_fewer(arguments, donor, descents, tmp_path):
    for part in ("0:5", "2:4"):
        descents.clear()
        config = EditTableConfig(**{**arguments, "slice": part}, **QUICK, anchors_from=donor, out=tmp_path / part)
        run = open_run(run_job(config, progress=False))
        assert not descents
        np.testing.assert_array_equal(run["anchor"], open_run(donor)["anchor"].sel(fact=run["fact"]))


def test_anchors_of_another_machine_are_taken_and_told(arguments, donor, descents, tmp_path, capsys):
    folder = tmp_path / "card"
    shutil.copytree(donor, folder)
    config = json.loads((folder / "config.json").read_text())
    config["settings"] |= {"device": "cuda", "versions": config["settings"]["versions"] | {"torch": "9.9"}}
    (folder / "config.json").write_text(json.dumps(config))
    descents.clear()
    run_job(EditTableConfig(**arguments, **QUICK, anchors_from=folder, out=tmp_path / "run"), progress=False)
    assert not descents
    assert "were made on cuda with torch 9.9: they round otherwise" in capsys.readouterr().err


def test_a_donor_without_shifts_gives_its_anchors(arguments, tmp_path, descents, capsys):
    given = {**arguments, "slice": "0:2"}
    donor = run_job(DampingConfig(**given, dampings=(0.1,), out=tmp_path / "donor"), progress=False)
    descents.clear()
    config = SchemesConfig(**given, schemes=SCHEMES, survey="none", anchors_from=donor, out=tmp_path / "run")
    run_job(config, progress=False)
    assert descents == ["coordinate_shifts"]
    assert f"4 anchors are those of {donor}" in capsys.readouterr().err


def test_a_donor_from_before_there_was_coordination_gives_its_anchors(arguments, tmp_path, descents):
    given = {**arguments, "slice": "0:2"}
    donor = run_job(DampingConfig(**given, dampings=(0.1,), out=tmp_path / "donor"), progress=False)
    config = json.loads((donor / "config.json").read_text())
    del config["settings"]["coordination"]
    (donor / "config.json").write_text(json.dumps(config))
    descents.clear()
    run_job(
        SchemesConfig(**given, schemes=SCHEMES, survey="none", anchors_from=donor, out=tmp_path / "run"), progress=False
    )
    assert descents == ["coordinate_shifts"]


def test_what_a_donor_has_lost_is_optimised(arguments, donor, tmp_path, descents):
    """A batch that lacks some is optimised as a whole; a run is no donor of its own."""
    folder = tmp_path / "donor"
    shutil.copytree(donor, folder)
    (folder / "data.zarr" / "anchor" / "0.0.0").unlink()
    config = SchemesConfig(**arguments, corpus_length=64, schemes=SCHEMES, survey="none")
    run_job(replace(config, anchors_from=folder, out=tmp_path / "run"), progress=False)
    assert set(descents) == {"optimize_anchors"}
    same(tmp_path / "run", donor, "anchor", "coordinated_shift", "residual_ratio")
    run_job(replace(config, anchors_from=folder, out=folder), progress=False)
    same(folder, donor, "anchor", "residual_ratio")


def test_from_python_a_path_may_be_a_string(arguments, donor, tmp_path, descents):
    given = {**arguments, "corpus_length": 64, "schemes": SCHEMES, "survey": "none"}
    made = jl.run_schemes(**given, anchors_from=str(donor), out=str(tmp_path / "run"), progress=False)
    assert not descents
    assert made.config["provenance"]["anchors_from"] == str(donor)


def test_facts_that_are_split_otherwise_are_noticed(arguments, donor, tmp_path):
    """As by another version of tokenizers, under which the sample text of the fingerprint is split the same way."""
    config = EditTableConfig(**arguments, **QUICK, anchors_from=donor, out=tmp_path / "run")
    settings = json.loads((donor / "config.json").read_text())
    other = shutil.copytree(donor, tmp_path / "donor")
    settings["provenance"]["splits"] = "0" * 24
    (other / "config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match=r"split into the same tokens as in .* take transformers 5"):
        run_job(replace(config, anchors_from=other), progress=False)
    del settings["provenance"]["splits"]  # as in a run of an earlier version
    (other / "config.json").write_text(json.dumps(settings))
    run_job(replace(config, anchors_from=other), progress=False)


def test_a_donor_from_before_the_clamp_was_counted_gives_the_rest(arguments, tmp_path, descents, monkeypatch):
    """Arrays that joined a part later are unknown in what is taken, and known in what is not."""
    older = {kind: {n: v for n, v in arrays.items() if not n.endswith("_clamped")} for kind, arrays in KINDS.items()}
    config = SchemesConfig(**{**arguments, "slice": "0:2"}, schemes=SCHEMES, survey="none", out=tmp_path / "donor")
    with monkeypatch.context() as before:
        before.setattr(Recorded, "put", put_before)
        for kind, arrays in older.items():
            before.setitem(KINDS, kind, arrays)
        run_job(config, progress=False)
    descents.clear()
    run_job(config, progress=False)  # finished, as it was
    assert not descents
    run_job(replace(config, slice="0:3", anchors_from=config.out, out=tmp_path / "run"), progress=False)
    run = same_facts(tmp_path / "run", tmp_path / "donor", "anchor", "coordinated_shift", "anchor_loss")
    for name in ("anchor_clamped", "coordinated_shift_clamped"):
        assert run[name][:2].isnull().all()
        assert run[name][2:].notnull().all()


def put_before(self, name, where, facts, optimized):
    """`Recorded.put` as it was before the clamp was counted."""
    labels = self._where(facts, where)
    self._run.write(name, optimized[0].double(), **self._within(name, labels))
    self._run.write(f"{name}_loss", optimized[1], **self._within(f"{name}_loss", labels))
    self._run.commit(f"{name}_passes", optimized[2], **self._within(f"{name}_passes", labels))


def same_facts(folder, donor, *names):
    ours, theirs = open_run(folder), open_run(donor)
    for name in names:
        np.testing.assert_array_equal(ours[name].sel(fact=theirs["fact"]), theirs[name])
    return ours


def test_settings_of_a_descent_decide_a_run_where_they_are_not_the_usual(arguments, tmp_path, descents):
    """A run knows none of the later settings at their defaults, and is refused with others."""
    config = SchemesConfig(**{**arguments, "slice": "0:2"}, schemes=SCHEMES, survey="none", out=tmp_path / "run")
    settings = config_of(open_run(run_job(config, progress=False)))["settings"]
    assert settings["coordination"] == {"weighting": "equal", "budget": "shared", "decay": "norm", "price": 1.0}
    assert set(settings["anchor"]) == {"lr", "steps", "weight_decay", "kl_factor", "clamp", "stop_loss"}
    other = CoordinationSettings(weighting=(1.0, 0.5, 0.0), rate="full", end="anchor")
    with pytest.raises(InputError, match=r"got another coordination\.end: it has None, this command 'anchor'"):
        run_job(replace(config, coordination=other), progress=False)
    with pytest.raises(InputError, match="expected 3 weights, one for each of the layers 1, 2, 3"):
        run_job(replace(config, coordination=CoordinationSettings((1.0,)), out=tmp_path / "new"), progress=False)
    descents.clear()
    folder = run_job(replace(config, coordination=other, out=tmp_path / "other"), progress=False)
    held = open_run(folder)
    assert config_of(held)["settings"]["coordination"]["weighting"] == [1.0, 0.5, 0.0]
    reached = held["coordinated_shift_loss"] <= held["anchor_loss"].sel(anchor_layer=1)
    assert (reached | (held["coordinated_shift_passes"] == settings["anchor"]["steps"])).all()
    descents.clear()
    run_job(replace(config, coordination=other, out=folder), progress=False)
    assert not descents


def test_anchors_that_ask_for_measured_shares_depend_on_the_corpus(arguments, tmp_path, descents, capsys):
    """They are stored as others are; a run with other second moments, or another seed, makes its own."""
    asking = AnchorConfig(lr=0.1, steps=4, delivered="random")
    config = SchemesConfig(**{**arguments, "slice": "0:2", "anchor": asking}, schemes=SCHEMES[:1], survey="none")
    donor = run_job(replace(config, out=tmp_path / "donor"), progress=False)
    assert config_of(open_run(donor))["settings"]["anchor"]["delivered"] == "random"
    for name, changes, made in (("same", {}, 0), ("seed", {"seed": 1}, 2), ("corpus", {"corpus_length": 64}, 2)):
        descents.clear()
        run_job(replace(config, anchors_from=donor, out=tmp_path / name, **changes), progress=False)
        assert len(descents) == made, name
    assert "anchors are optimised anew" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"got another anchor\.delivered"):
        run_job(replace(config, anchor=arguments["anchor"], anchors_from=donor, out=tmp_path / "no"), progress=False)
