"""Batches of a sequence observed: against the untouched model, edited by hand, and beside a run that only edits."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.reference import Plain, prompt
from helpers.work import HOMES, forbid

from jacobian_lab.catalogue import SCHEMES
from jacobian_lab.editing.layers import edit_layers, restored
from jacobian_lab.editing.schemes import Targets
from jacobian_lab.errors import InputError
from jacobian_lab.jobs import observing
from jacobian_lab.jobs.experiment import prepare
from jacobian_lab.jobs.kinds import run_job
from jacobian_lab.jobs.sequence_config import SequenceConfig
from jacobian_lab.report.results import Results
from jacobian_lab.store.run import open_run
from jacobian_lab.store.sequences import EXAMINED, OBSERVED

CELL = {"edit": "memit", "targets": "unedited"}


@pytest.fixture(scope="module")
def config(arguments, tmp_path_factory):
    quick = {**arguments, "held_out_tokens": 64, "corpus_length": 64, "stop_perplexity": "never", "stop_norm": "never"}
    methods, out = ("memit", "memit+cr"), tmp_path_factory.mktemp("observed") / "run"
    return SequenceConfig(
        **quick, methods=methods, edits_per_batch=2, targets="both", old_keys="drop", observe=1, out=out
    )


@pytest.fixture(scope="module")
def folder(config):
    return run_job(config, progress=False)


def test_an_observed_batch_is_edited_as_any_other(config, folder, tmp_path):
    plain = open_run(run_job(replace(config, observe=0, out=tmp_path / "run"), progress=False))
    observed = open_run(folder)
    for name in set(plain.data_vars) - {*OBSERVED, *EXAMINED, "observed"}:
        np.testing.assert_array_equal(observed[name], plain[name], err_msg=str(name))
    assert not plain["residual_ratio"].notnull().any()
    assert observed["observed"].sel(edit="memit+cr").all()


def test_what_is_stored_is_what_the_untouched_model_shows(config, folder):
    """The second batch by dividing: residuals and J on the model that the first has edited."""
    stored = open_run(folder).sel(CELL)
    experiment = prepare(config)
    model, setting, layers = experiment.model, experiment.session.setting, experiment.layers
    first, second = [0, 1], [2, 3]
    anchors = torch.tensor(open_run(folder)["anchor"].sel(anchor_layer=layers[-1]).values)

    def states(layer):
        plain = Plain.of(model)
        own = [prompt(model.tokenizer, experiment.facts[place]) for place in second]
        with torch.no_grad():
            return torch.stack([plain.states(ids, position, [layer])[1][layer] for ids, position in own])

    def edited(batch):
        targets = Targets(layers, {layers[-1]: anchors[batch]}, {})
        yield from edit_layers(setting.select(batch), SCHEMES["backward-dividing"], targets)

    with restored(model, layers):
        list(edited(first))
        before, lowest = states(layers[-1]), states(layers[0])
        J = Plain.of(model).jacobian(experiment.facts[second[0]], layers[0], layers[-1])
        eigenvalues = torch.linalg.eigvalsh((J + J.T) / 2)
        walk = edited(second)
        next(walk)
        after, shift = states(layers[-1]), states(layers[0]) - lowest
        list(walk)
        left = (anchors[second] - states(layers[-1])).norm(dim=-1) / (anchors[second] - before).norm(dim=-1)
    at = {"fact": stored["fact"].values[second], "layer": layers[0]}
    np.testing.assert_allclose(stored["residual_ratio"].sel(at | {"layer": layers[-1]}), left, rtol=1e-7)
    np.testing.assert_allclose(stored["shift_norm"].sel(at), shift.norm(dim=-1), rtol=1e-7)
    np.testing.assert_allclose(stored["passive_shift_norm"].sel(at), (after - before).norm(dim=-1), rtol=1e-7)
    linear, residual = J @ shift[0], anchors[second[0]] - before[0]
    cosine = float(linear @ residual / linear.norm() / residual.norm())
    np.testing.assert_allclose(stored["linear_residual_cosine"].sel(at)[0], cosine, rtol=1e-7)
    np.testing.assert_allclose(stored["lambda_min"].sel(at)[0], eigenvalues[0], rtol=1e-7)
    np.testing.assert_allclose(stored["sigma_max"].sel(at)[0], torch.linalg.matrix_norm(J, 2), rtol=1e-7)
    assert np.isnan(stored["lambda_min"].sel(at)[1])  # one fact of a batch is examined


@pytest.mark.parametrize("place", ["measure", "surveyed_conditions"])
def test_an_interrupted_observation_is_made_again(place, config, folder, tmp_path, monkeypatch):
    config, calls, whole = replace(config, out=tmp_path / "run"), [], getattr(observing, place)

    def dying(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(observing, place, dying)
        with pytest.raises(KeyboardInterrupt):
            run_job(config, progress=False)
    run_job(config, progress=False)
    resumed, once = open_run(config.out), open_run(folder)
    for name in (*OBSERVED, *EXAMINED, "efficacy_accuracy", "update_norm"):
        np.testing.assert_array_equal(resumed[name], once[name], err_msg=name)
    forbid(monkeypatch, *HOMES)
    run_job(config, progress=False)


def test_tables_and_figures_hold_batches_against_the_first(folder):
    run = Results(folder)
    numbers = run.numbers("breakdown").set_index(["method", "targets", "quantity", "batch"])
    own = run.dataset.sel(edit="memit+cr", targets="current")
    left = own["residual_ratio"].isel(layer=-1)[2:4].mean()
    assert numbers.loc[("memit+cr", "current", "residual_left", 2), "mean"] == pytest.approx(float(left))
    leaks = (own["leakage_norm"] / own["passive_shift_norm"])[4:, :-1].mean()
    assert numbers.loc[("memit+cr", "current", "leakage", 3), "mean"] == pytest.approx(float(leaks))
    assert numbers.loc[("memit+cr", "current", "lambda_min", 1), "count"] == 1
    assert len(run.table("breakdown")) == 2 * 2 * 3
    assert "λ_min of S is" in run.figure_caption("breakdown")
    assert len(run.figure("breakdown").axes) == 4


def test_a_method_that_refits_is_not_observed(config):
    with pytest.raises(InputError, match="make targets once with observe, got blue-refit, which refits: leave it out"):
        run_job(replace(config, methods=("memit", "blue-refit")), progress=False)
