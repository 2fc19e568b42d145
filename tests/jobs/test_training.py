"""Methods that train beside the others: the same prompts and metrics, everything put back, nothing computed twice."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from jacobian_lab.errors import InputError
from jacobian_lab.jobs.config import EditConfig, EditTableConfig
from jacobian_lab.jobs.methods import run_edit, run_edit_table
from jacobian_lab.store.run import open_run
from jacobian_lab.training import trainers
from jacobian_lab.training.settings import RLEditConfig, TrainingConfig, WiseConfig
from jacobian_lab.training.wise import Wise

TRAINING = TrainingConfig(
    WiseConfig(steps=4, lr=0.5, shards=2, merged=2),
    RLEditConfig(blocks=(2, 3), rank=4, depth=2, rate=1e-3, facts_at_once=4, batches=2),
)


@pytest.fixture
def config(arguments, tmp_path, monkeypatch):
    monkeypatch.setenv("JACOBIAN_LAB_CACHE", str(tmp_path / "cache"))
    return EditTableConfig(
        **arguments, methods=("wise", "rledit"), training=TRAINING, held_out_tokens=64, out=tmp_path / "run"
    )


def test_they_stand_beside_pairs(config):
    """First alone, without a second moment or an anchor; then a pair is added to the same run."""
    folder = run_edit_table(config, progress=False)
    alone = open_run(folder)
    assert list(alone["edit"].values) == ["unedited", "wise", "rledit"]
    assert not (alone["anchor_passes"] > 0).any()
    assert not (folder.parent / "cache" / "moments").exists()
    both = open_run(run_edit_table(replace(config, methods=("wise", "rledit", "memit")), progress=False))
    assert list(both["edit"].values) == ["unedited", "memit", "wise", "rledit"]
    assert np.isfinite(both["efficacy_accuracy"]).all()
    for name in ("wise", "rledit"):
        for variable in ("kl", "nll_new", "perplexity"):
            np.testing.assert_array_equal(both[variable].sel(edit=name), alone[variable].sel(edit=name))
    wise, rledit = (both.sel(edit=name) for name in ("wise", "rledit"))
    assert ((wise["training_steps"] > 0) & (wise["training_steps"] <= 4)).all()
    assert np.isfinite(wise["training_loss"]).all()
    assert np.isfinite(wise["threshold"])
    assert not (rledit["nll_new"] == both["nll_new"].sel(edit="unedited")).all()
    np.testing.assert_array_equal(np.isfinite(rledit["changed_norm"]), np.isin(both["block"], (2, 3)))


def test_what_is_not_far_enough_is_the_models_own(config):
    """D_KL is 0 to the bit where the memory does not serve, and only there."""
    dataset = open_run(run_edit_table(replace(config, methods=("wise",)), progress=False)).sel(edit="wise")
    served = (dataset["distance_neighbor"] >= dataset["threshold"]).values[~np.isnan(dataset["kl"])]
    disturbed = (dataset["kl"].values[~np.isnan(dataset["kl"])]) != 0
    np.testing.assert_array_equal(served, disturbed)


@pytest.mark.parametrize("killed", [1, 4])
def test_a_killed_training_goes_on(killed, config, monkeypatch, tmp_path):
    whole = open_run(run_edit_table(replace(config, methods=("wise",), out=tmp_path / "whole"), progress=False))
    monkeypatch.setenv("JACOBIAN_LAB_CACHE", str(tmp_path / "another"))
    monkeypatch.setattr(trainers, "SECONDS", 0.0)
    edit, seen = Wise._edit, []

    def dies(wise, place):
        if len(seen) == killed:
            raise KeyboardInterrupt
        seen.append(place)
        return edit(wise, place)

    monkeypatch.setattr(Wise, "_edit", dies)
    with pytest.raises(KeyboardInterrupt):
        run_edit_table(replace(config, methods=("wise",)), progress=False)
    monkeypatch.setattr(Wise, "_edit", lambda wise, place: (seen.append(place), edit(wise, place))[1])
    again = open_run(run_edit_table(replace(config, methods=("wise",)), progress=False))
    assert seen == list(range(6))
    for variable in ("kl", "nll_new", "training_loss", "distance"):
        np.testing.assert_array_equal(again[variable], whole[variable])


def test_the_weights_are_back(config, monkeypatch):
    from jacobian_lab.jobs import methods as job

    seen = []
    prepare = job.prepare
    monkeypatch.setattr(job, "prepare", lambda *given, **named: seen.append(prepare(*given, **named)) or seen[-1])
    run_edit_table(config, progress=False)
    (experiment,) = seen
    fresh = prepare(config).model
    for (name, ours), (_, theirs) in zip(
        experiment.model.hf.named_parameters(), fresh.hf.named_parameters(), strict=True
    ):
        assert torch.equal(ours, theirs), name
    assert not any(module._forward_hooks for module in experiment.model.hf.modules())


def test_no_folder_holds_a_router(config):
    named = {name: getattr(config, name) for name in ("model", "slice", "layers", "templates", "corpus", "ridge")}
    bad = EditConfig(**named, device="cpu", dtype="float64", method="wise", save="folder", training=TRAINING)
    with pytest.raises(InputError, match="expected save delta for wise, got folder"):
        run_edit(bad, progress=False)


def test_nothing_to_train_with_is_refused(config):
    with pytest.raises(InputError, match="expected facts beside those that are edited, got none"):
        run_edit_table(replace(config, train_slice=config.slice), progress=False)
