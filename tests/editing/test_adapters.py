"""Adapters: thin factors of ΔW, which plain PEFT adds to the base model with the edited model's logits."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import jacobian_lab as jl
from jacobian_lab.catalogue import method
from jacobian_lab.editing.adapters import CONFIG, TOLERANCE, WEIGHTS, check_rank, low_rank
from jacobian_lab.editing.deltas import add_delta, load_delta, read_metadata, save_adapter, save_delta, summed
from jacobian_lab.editing.layers import restored
from jacobian_lab.errors import InputError
from jacobian_lab.model.loading import load_model

LAYERS = (1, 2, 3)
QUICK = {"layers": LAYERS, "ridge": 10.0, "corpus_tokens": 500, "progress": False}
ROUNDING = {"rtol": 1e-5, "atol": 1e-5}


def _editor(model, facts):
    anchor = jl.AnchorSettings(lr=0.1, steps=4)
    rules = jl.RuleSettings(alphaedit_threshold=1.0, alphaedit_relative=True)
    templates = (("{}",), ("Therefore. {}",))
    return jl.Editor(model, facts, anchor=anchor, rules=rules, templates=templates, **QUICK)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def edits(request, folders, facts, tmp_path_factory):
    """Two edits of one base model as adapters and as deltas, and the logits of the model with the first."""
    model, folder = load_model(folders[request.param], device="cpu"), tmp_path_factory.mktemp("edits")
    for name, part in (("first", facts[:2]), ("second", facts[2:])):
        with _editor(model, part).edit("memit+fe") as edit:
            edit.save(folder / name, lora=True)
            edit.save(folder / f"{name}.safetensors")
            if name == "first":
                logits = _logits(model.hf)
    return folders[request.param], model, folder, logits


def _logits(model):
    ids = torch.arange(3, 60).reshape(3, 19)
    with torch.no_grad():
        return model(ids).logits


def _base(folder):
    return AutoModelForCausalLM.from_pretrained(folder)


def test_peft_gives_the_edited_models_logits(edits):
    peft = pytest.importorskip("peft")
    base, _, folder, logits = edits
    plain = _base(base)
    before = _logits(plain)
    adapted = peft.PeftModel.from_pretrained(plain, folder / "first")
    torch.testing.assert_close(_logits(adapted), logits, **ROUNDING)
    assert (logits - before).abs().max() > 1e-3
    with adapted.disable_adapter():
        assert torch.equal(_logits(adapted), before)
    torch.testing.assert_close(_logits(adapted.merge_and_unload()), logits, **ROUNDING)


def test_two_adapters_stacked_are_two_edits(edits):
    peft = pytest.importorskip("peft")
    base, model, folder, _ = edits
    adapted = peft.PeftModel.from_pretrained(_base(base), folder / "first", adapter_name="first")
    adapted.load_adapter(folder / "second", adapter_name="second")
    adapted.base_model.set_adapter(["first", "second"])
    deltas = [load_delta(folder / f"{name}.safetensors", model) for name in ("first", "second")]
    with restored(model, LAYERS):
        add_delta(model, summed(deltas))
        expected = _logits(model.hf)
        one = _logits(adapted.base_model)
    torch.testing.assert_close(one, expected, **ROUNDING)


def test_an_adapter_is_read_and_applied_as_its_delta(edits):
    _, model, folder, logits = edits
    adapter, delta = load_delta(folder / "first", model), load_delta(folder / "first.safetensors", model)
    assert adapter.keys() == delta.keys()
    for layer, change in delta.items():
        miss = torch.linalg.matrix_norm(adapter[layer] - change) / torch.linalg.matrix_norm(change)
        assert miss < TOLERANCE
    with jl.apply(model, folder / "first"):
        torch.testing.assert_close(_logits(model.hf), logits, **ROUNDING)
    assert read_metadata(folder / "first")["model"] == model.fingerprint


def test_the_rank_is_the_number_of_facts(edits):
    _, model, folder, _ = edits
    config = json.loads((folder / "second" / CONFIG).read_text())
    assert config["r"] == config["lora_alpha"] == 3
    tensors = load_file(folder / "second" / WEIGHTS)
    assert {tuple(tensor.shape) for tensor in tensors.values()} == {(3, model.d_mlp), (model.d_model, 3)}
    assert {name for name, _ in model.hf.named_modules()} >= set(config["target_modules"])
    assert config["fan_in_fan_out"] == (model.family.blocks == "transformer.h")


def test_an_edit_in_memory_gets_a_card_without_metrics(edits, facts):
    _, model, folder, _ = edits
    card = (folder / "second" / "README.md").read_text()
    assert "It changes the MLP output projections of layers 1, 2, 3." in card
    assert "| λ | 10 |" in card
    assert "Not measured" in card
    assert all(f"| {fact.text} | {fact.target_true} | {fact.target_new} |" in card for fact in facts[2:])
    assert model.fingerprint in card


@pytest.fixture(scope="module")
def editor(tiny, facts):
    editor = _editor(tiny, facts[:4])
    _ = editor.setting
    return editor


@pytest.mark.parametrize("name", ["memit", "emmet+fe", "alphaedit+fe", "prune+fe", "lyaplock"])
@pytest.mark.parametrize("size", [None, 2])
def test_rules_stay_within_the_span_of_the_residuals(name, size, editor):
    """The factors stand beside an SVD of ΔW, which knows nothing of residuals; batches stack."""
    with editor.session.edited(name, editor.targets_of(method(name).scheme), size=size) as edit:
        for layer, delta in edit.deltas.items():
            factors = low_rank(delta, edit.residuals[layer])
            values = torch.linalg.svdvals(delta.double())
            assert factors.exact
            assert factors.rank == 4
            assert values[4:].norm() <= TOLERANCE * values.norm()
            miss = torch.linalg.matrix_norm(factors.left @ factors.right - delta) / values.norm()
            assert miss <= TOLERANCE


def test_what_leaves_the_span_is_cut_off_at_rounding():
    generator = torch.Generator().manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn(20, 20, dtype=torch.float64, generator=generator))
    right, _ = torch.linalg.qr(torch.randn(30, 20, dtype=torch.float64, generator=generator))
    values = torch.tensor([3.0, 1.0, 1e-3] + [1e-8] * 17, dtype=torch.float64)
    delta = (left * values) @ right.T
    factors = low_rank(delta, left[:, :2])
    assert not factors.exact
    assert factors.rank == 3
    closest = (left[:, :3] * values[:3]) @ right[:, :3].T  # Eckart–Young: nothing of rank 3 is closer
    torch.testing.assert_close(factors.left @ factors.right, closest, rtol=1e-9, atol=1e-9)


def test_an_adapter_that_saves_nothing_is_refused():
    check_rank(5, (10, 12), "W")
    with pytest.raises(InputError, match=r"a change of rank 5 at the most, .* got 6 for W: give save folder"):
        check_rank(6, (10, 12), "W")  # 6 · 22 numbers in place of 120


def test_ranks_that_differ_are_filled_up_with_zeros(folders, tmp_path):
    model = load_model(folders["gpt2"], device="cpu")
    generator = torch.Generator().manual_seed(0)
    deltas = {
        layer: torch.randn(32, rank, generator=generator) @ torch.randn(rank, 64, generator=generator)
        for layer, rank in ((1, 1), (2, 3))
    }
    save_adapter(tmp_path / "adapter", model, deltas, {})
    assert json.loads((tmp_path / "adapter" / CONFIG).read_text())["r"] == 3
    for layer, change in load_delta(tmp_path / "adapter", model).items():
        torch.testing.assert_close(change, deltas[layer], rtol=1e-5, atol=1e-5)


def test_an_adapter_that_does_not_fit_is_refused(edits, folders, tmp_path):
    _, model, folder, _ = edits
    other = load_model(folders["gpt_neox"], device="cpu")
    with pytest.raises(InputError, match="apply it to its own base model"):
        load_delta(folder / "first", other)
    tensors = load_file(folder / "first" / WEIGHTS)
    metadata = {**read_metadata(folder / "first")}
    name = min(tensors)
    broken = {
        "missing": ({key: tensor for key, tensor in tensors.items() if key != name}, "expected two factors"),
        "thin": (tensors | {name: tensors[name][:1].clone()}, "expected two factors"),
        "nan": (tensors | {name: tensors[name] * float("nan")}, "expected finite numbers"),
    }
    for kind, (changed, words) in broken.items():
        path = shutil.copytree(folder / "first", tmp_path / kind)
        save_file(changed, path / WEIGHTS, metadata=metadata)
        with pytest.raises(InputError, match=words):
            load_delta(path, model)
    save_file(tensors, tmp_path / "nan" / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(InputError, match="jacobian-lab edit saved"):
        load_delta(tmp_path / "nan", model)
    (tmp_path / "nan" / WEIGHTS).unlink()
    with pytest.raises(InputError, match="expected a whole delta"):
        load_delta(tmp_path / "nan", model)


def test_an_adapter_replaces_an_adapter_and_nothing_else(edits, tmp_path):
    _, model, folder, _ = edits
    delta = load_delta(folder / "first", model)
    save_adapter(tmp_path / "adapter", model, delta, {})
    (tmp_path / "adapter" / "README.md").write_text("its card")
    save_adapter(tmp_path / "adapter", model, delta, {})
    (tmp_path / "adapter" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"a folder with an adapter alone, .* which holds 'notes\.txt'"):
        save_adapter(tmp_path / "adapter", model, delta, {})
    with pytest.raises(InputError, match="got NaN in the change of"):
        save_adapter(tmp_path / "other", model, {1: delta[1] * float("nan")}, {})
    save_delta(tmp_path / "again.safetensors", model, delta, {})
