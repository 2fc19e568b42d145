"""Methods that train beside the others: the same prompts and metrics, everything put back, nothing computed twice."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.reference import hooks
from safetensors.torch import load_file

import jacobian_lab as jl
from jacobian_lab import cli
from jacobian_lab.errors import InputError
from jacobian_lab.jobs.config import EditConfig, EditTableConfig
from jacobian_lab.jobs.kinds import run_job
from jacobian_lab.report.results import Results
from jacobian_lab.store.run import open_run
from jacobian_lab.training import trainers
from jacobian_lab.training.rledit import RLEdit
from jacobian_lab.training.settings import RLEditConfig, TrainingConfig, WiseConfig
from jacobian_lab.training.wise import Wise
from jacobian_lab.training.wise_memory import ORIGINAL

pytestmark = pytest.mark.slow

TRAINING = TrainingConfig(
    WiseConfig(n_iter=4, edit_lr=0.5, shards=2, merged=2),
    RLEditConfig(blocks=(2, 3), rank=4, n_blocks=2, lr=1e-3, n_edits=4, num_seq=2),
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """What has been trained is not trained again, where no test says so."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def config(arguments, cache, tmp_path, monkeypatch):
    monkeypatch.setenv("JACOBIAN_LAB_CACHE", str(cache))
    return EditTableConfig(
        **arguments, methods=("wise", "rledit"), training=TRAINING, held_out_tokens=64, out=tmp_path / "run"
    )


def test_they_stand_beside_pairs(config, tmp_path, monkeypatch):
    """First alone, without a second moment or an anchor; then a pair is added to the same run."""
    monkeypatch.setenv("JACOBIAN_LAB_CACHE", str(tmp_path / "cache"))
    folder = run_job(config, progress=False)
    alone = open_run(folder)
    assert list(alone["edit"].values) == ["unedited", "wise", "rledit"]
    assert not (alone["anchor_passes"] > 0).any()
    assert not (folder.parent / "cache" / "second-moments").exists()
    both = open_run(run_job(replace(config, methods=("wise", "rledit", "memit")), progress=False))
    assert list(both["edit"].values) == ["unedited", "memit", "wise", "rledit"]
    assert np.isfinite(both["efficacy_accuracy"]).all()
    for name in ("wise", "rledit"):
        for variable in ("kl", "nll_new", "perplexity"):
            np.testing.assert_array_equal(both[variable].sel(edit=name), alone[variable].sel(edit=name))
    wise, rledit = (both.sel(edit=name) for name in ("wise", "rledit"))
    assert ((wise["training_steps"] > 0) & (wise["training_steps"] <= 4)).all()
    assert np.isfinite(wise["training_loss"]).all()
    assert np.isfinite(wise["threshold"])
    assert np.isfinite(rledit["training_loss"]).all()
    assert (
        both["aim_share"].sel(edit=["memit", "wise", "rledit"]).isnull().values.tolist() == [[False, True, True]] * 6
    )  # there were no anchors when the two were measured
    assert not (rledit["nll_new"] == both["nll_new"].sel(edit="unedited")).all()
    np.testing.assert_array_equal(np.isfinite(rledit["changed_norm"]), np.isin(both["block"], (2, 3)))


def test_what_is_not_far_enough_is_the_models_own(config):
    """D_KL is 0 to the bit where the memory does not serve, and only there."""
    dataset = open_run(run_job(replace(config, methods=("wise",)), progress=False)).sel(edit="wise")
    served = (dataset["distance_neighbor"] >= 1).values[~np.isnan(dataset["kl"])]
    disturbed = (dataset["kl"].values[~np.isnan(dataset["kl"])]) != 0
    np.testing.assert_array_equal(served, disturbed)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [1, 4])
def test_a_killed_training_goes_on(killed, config, monkeypatch, tmp_path):
    whole = open_run(run_job(replace(config, methods=("wise",), out=tmp_path / "whole"), progress=False))
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
        run_job(replace(config, methods=("wise",)), progress=False)
    monkeypatch.setattr(Wise, "_edit", lambda wise, place: (seen.append(place), edit(wise, place))[1])
    again = open_run(run_job(replace(config, methods=("wise",)), progress=False))
    assert seen == list(range(6))
    for variable in ("kl", "nll_new", "training_loss", "distance"):
        np.testing.assert_array_equal(again[variable], whole[variable])


def test_the_weights_are_back(config, monkeypatch):
    from jacobian_lab.jobs import comparison as job

    seen = []
    prepare = job.prepare
    monkeypatch.setattr(job, "prepare", lambda *given, **named: seen.append(prepare(*given, **named)) or seen[-1])
    run_job(config, progress=False)
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
        run_job(bad, progress=False)


def test_all_methods_are_held_against_the_anchors(config):
    both = open_run(run_job(replace(config, methods=("memit", "rledit")), progress=False))
    assert np.isfinite(both["aim_share"].sel(edit=["memit", "rledit"])).all()
    later = open_run(run_job(replace(config, methods=("rledit", "wise")), progress=False))
    assert np.isfinite(later["aim_share"].sel(edit="wise")).all()  # by the anchors that are there
    assert np.isnan(later["aim_share"].sel(edit="unedited")).all()


def test_other_facts_to_train_with_are_other_settings(config, tmp_path):
    run_job(replace(config, methods=("rledit",)), progress=False)
    with pytest.raises(InputError, match=r"another training\.rledit\.rows"):
        run_job(replace(config, methods=("rledit",), train_slice="20:40"), progress=False)


@pytest.mark.slow
def test_a_killed_training_of_a_network_goes_on(config, monkeypatch, tmp_path):
    config = replace(config, methods=("rledit",))
    whole = open_run(run_job(replace(config, out=tmp_path / "whole"), progress=False))
    monkeypatch.setenv("JACOBIAN_LAB_CACHE", str(tmp_path / "another"))
    monkeypatch.setattr(trainers, "SECONDS", 0.0)
    learn, seen = RLEdit._learn, []

    def dies(network, batches):
        if seen:
            raise KeyboardInterrupt
        seen.append(1)
        return learn(network, batches)

    monkeypatch.setattr(RLEdit, "_learn", dies)
    with pytest.raises(KeyboardInterrupt):
        run_job(config, progress=False)
    monkeypatch.setattr(RLEdit, "_learn", lambda network, batches: (seen.append(1), learn(network, batches))[1])
    again = open_run(run_job(config, progress=False))
    assert len(seen) == 2
    for variable in ("kl", "nll_new", "training_loss", "changed_norm"):
        np.testing.assert_array_equal(again[variable], whole[variable])


def test_the_seed_reaches_what_is_trained(config, tmp_path):
    config = replace(config, methods=("rledit", "wise"))
    first, other = (
        open_run(run_job(replace(config, seed=seed, out=tmp_path / str(seed)), progress=False)) for seed in (0, 1)
    )
    assert not np.array_equal(first["changed_norm"].sel(edit="rledit"), other["changed_norm"].sel(edit="rledit"))


def test_what_a_networks_dtype_does_not_take_is_told(config):
    """In bfloat16 a small change is mostly lost; the table of damages says so."""
    small = replace(TRAINING, rledit=replace(TRAINING.rledit, lr=1e-9))
    folder = run_job(replace(config, methods=("rledit",), training=small, dtype="bfloat16", ridge=None), progress=False)
    lost = open_run(folder)["changed_unstored"].sel(edit="rledit")
    assert float(lost.max()) > 0.9
    table = Results(folder).table("damage")
    assert float(table.loc["rledit", "of it not stored"]) == pytest.approx(float(lost.max()), rel=0.1)


def test_nothing_to_train_with_is_refused(config):
    with pytest.raises(InputError, match="expected facts beside those that are edited, got none"):
        run_job(replace(config, train_slice=config.slice), progress=False)


@pytest.fixture(scope="module")
def edited(arguments, tmp_path_factory):
    """Both methods, saved by the command edit."""
    root = tmp_path_factory.mktemp("saved")
    named = {name: value for name, value in arguments.items() if name != "dtype"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JACOBIAN_LAB_CACHE", str(root / "cache"))
        for name in ("wise", "rledit"):
            save = "delta" if name == "wise" else "both"
            config = EditConfig(**named, method=name, training=TRAINING, held_out_tokens=64, save=save, out=root / name)
            run_job(config, progress=False)
    return root, named["model"]


def apply(*options):
    cli.main(["apply", *map(str, options)])


def test_what_is_saved_is_what_was_trained(edited):
    root, model = edited
    base = jl.load_model(model, device="cpu")
    memory, kept = (
        jl.load_wise(root / "wise" / "delta-wise.safetensors", base),
        load_file(root / "wise" / "training-wise.safetensors"),
    )
    assert {"mask", "side", "done", "thresholds"} <= kept.keys()
    assert any(torch.equal(side.weight, kept["merged.0"]) for side in memory.sides)
    network = load_file(root / "rledit" / "training-rledit.safetensors")
    assert any(name.startswith("network.0.") for name in network)
    assert any(name.endswith(".adam.exp_avg") for name in network)


def test_a_hypernetworks_delta_on_its_base_is_the_edited_model(edited, tmp_path):
    root, model = edited
    apply("--delta", root / "rledit" / "delta-rledit.safetensors", "--model", model, "--out", tmp_path / "out")
    ours, theirs = (
        jl.load_model(path, device="cpu").hf for path in (tmp_path / "out", root / "rledit" / "model-rledit")
    )
    base = jl.load_model(model, device="cpu").hf
    changed = 0
    for (name, mine), (_, other), (_, before) in zip(
        ours.named_parameters(), theirs.named_parameters(), base.named_parameters(), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=0, atol=0, msg=name)
        changed += not torch.equal(mine, before)
    assert changed == 2  # one map at the entrance of two blocks


def test_a_memory_is_asked_and_told_which_matrix_served(edited, arguments, capsys):
    root, model = edited
    facts, base = jl.load_facts("builtin", arguments["slice"]), jl.load_model(model, device="cpu")
    memory = jl.load_wise(root / "wise" / "delta-wise.safetensors", base)
    prompts = [fact.text for fact in facts]
    capsys.readouterr()
    apply("--delta", root / "wise" / "delta-wise.safetensors", "--model", model, "--tokens", "3", "--prompt", *prompts)
    lines = capsys.readouterr().out.splitlines()
    found = memory.judge(base, [base.text_prompt(text) for text in prompts])
    routes, reached = memory.route(found.T).tolist(), memory.reach(found).tolist()
    for line, text, route, far in zip(lines, prompts, routes, reached, strict=True):
        assert line.startswith(f"{text} →")
        served = "the model's own matrix served" if route == ORIGINAL else "the memory served"
        assert f"({served}: distance over the threshold {far:.3g})" in line
    assert any(route != ORIGINAL for route in routes)


def test_an_edited_model_goes_on_as_the_saved_one_does(edited, arguments, capsys):
    root, model = edited
    text = jl.load_facts("builtin", arguments["slice"])[0].text
    capsys.readouterr()
    apply("--delta", root / "rledit" / "delta-rledit.safetensors", "--model", model, "--prompt", text, "--tokens", "4")
    said = capsys.readouterr().out.removeprefix(f"{text} →").removesuffix("\n")
    whole = jl.load_model(root / "rledit" / "model-rledit", device="cpu")
    ids = list(whole.text_prompt(text).ids)
    for _ in range(4):
        ids.append(int(whole.hf(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    assert said == whole.tokenizer.decode(ids[-4:], skip_special_tokens=True)


def test_what_a_memory_cannot_do_is_refused_with_one_line(edited, folders, tmp_path, capsys):
    root, model = edited
    memory, delta = root / "wise" / "delta-wise.safetensors", root / "rledit" / "delta-rledit.safetensors"
    cases = [
        (("--delta", memory, "--out", tmp_path / "out"), "got --out: no plain model asks which matrix is to serve"),
        (("--delta", memory), "expected --out, --prompt or both, got neither"),
        (("--delta", memory, delta, "--prompt", "a"), "expected deltas, or one memory, got 2 files"),
        (("--delta", memory, "--prompt", "a", "--model", folders["llama"]), "put it beside its own base model"),
        (("--delta", memory, "--prompt", "a", "--tokens", "0"), "got --tokens 0"),
        (("--delta", delta, "--prompt", ""), "expected a prompt with at least one token"),
    ]
    for given, words in cases:
        capsys.readouterr()
        named = given if "--model" in given else (*given, "--model", model)
        with pytest.raises(SystemExit) as caught:
            apply(*named)
        err = capsys.readouterr().err
        assert caught.value.code == 2
        assert words in err, (given, err)
        assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_editor_edits_by_training_and_puts_all_back(tiny, facts, tmp_path, monkeypatch):
    monkeypatch.setenv("JACOBIAN_LAB_CACHE", str(tmp_path / "cache"))
    editor = jl.Editor(tiny, facts[:3], layers=(1, 2, 3), training=TRAINING, templates=(("{}",),), progress=False)
    before, hooks_before = {name: weight.clone() for name, weight in tiny.hf.named_parameters()}, hooks(tiny)
    plain = None
    for name, words in (("wise", "side memory"), ("rledit", "blocks 2-3")):
        with editor.edit(name) as edit:
            frame, told = edit.evaluate(), edit.training
            path = edit.save(tmp_path / f"{name}.safetensors")
            assert words in repr(edit)
            assert edit._repr_html_()
            with pytest.raises(jl.InputError, match=f"expected a method with targets, got '{name}'"):
                _ = edit.measures
        assert path.is_file()
        assert list(frame.index) == [fact.id for fact in facts[:3]]
        assert all(torch.equal(weight, before[n]) for n, weight in tiny.hf.named_parameters())
        assert hooks(tiny) == hooks_before
        with pytest.raises(jl.InputError, match="itself again"):
            edit.evaluate()
        assert told
        plain = frame if plain is None else plain
    with pytest.raises(ZeroDivisionError), editor.edit("rledit"):
        raise ZeroDivisionError
    assert all(torch.equal(weight, before[n]) for n, weight in tiny.hf.named_parameters())
    memory = jl.load_wise(tmp_path / "wise.safetensors", tiny)
    with memory.serving(tiny):
        again = editor.evaluator
        rows = [values for _, found in again.answers() for values in found]
    assert [row["nll_new"][0] for row in rows] == plain["nll_new"].tolist()
