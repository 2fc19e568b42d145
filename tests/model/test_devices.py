"""A model over several devices gives the numbers of the same model on one."""

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from accelerate import dispatch_model
from helpers.away import AWAY, two_devices
from helpers.small import CONTEXTS
from transformers import AutoModelForCausalLM

from jacobian_lab.catalogue import METHODS, SCHEMES
from jacobian_lab.editing.anchors import AnchorSettings, coordinate_shifts, optimize_anchors
from jacobian_lab.editing.layers import Setting, restored
from jacobian_lab.editing.measures import observed_edits
from jacobian_lab.editing.methods import edit_with
from jacobian_lab.editing.rules import RuleSettings
from jacobian_lab.editing.schemes import make_targets
from jacobian_lab.editing.second_moments import sums_of_keys
from jacobian_lab.errors import InputError
from jacobian_lab.evaluation.evaluator import Evaluator
from jacobian_lab.maps.jacobians import dense_jacobians, jvp, linear_operator, vjp
from jacobian_lab.maps.replay import MLP, RESIDUAL, freeze
from jacobian_lab.model import loading
from jacobian_lab.model.devices import divide, parse_device, shares
from jacobian_lab.model.loading import load_model
from jacobian_lab.model.rows import fact_rows

pytestmark = pytest.mark.slow

LAYERS = (1, 2, 3)
HOME = torch.device("cpu")


@pytest.fixture
def divided(family_model):
    """A copy of a model, its upper blocks away."""
    hf = copy.deepcopy(family_model.hf)
    with two_devices():
        divide(hf, family_model.family, (HOME, AWAY))
        yield replace(family_model, hf=hf)


def test_what_a_device_means():
    assert parse_device("cpu") == (HOME,)
    assert parse_device("cuda:1") == (torch.device("cuda:1"),)
    assert parse_device("cuda:1-3") == tuple(torch.device("cuda", index) for index in (1, 2, 3))
    for wrong in ("cuda:3-1", "cuda:", "cuda:1-", "gpu", "cpu:0", "cuda:1,2", "lazy"):
        with pytest.raises(InputError, match="cuda:M-N"):
            parse_device(wrong)


def test_cards_hold_about_as_much(family_model):
    places = tuple(torch.device("meta", index) for index in range(3))
    device_map = shares(family_model.hf, family_model.family, places)
    held = {place: {} for place in places}
    for name, place in device_map.items():
        held[place] |= {id(weight): weight.numel() for weight in family_model.hf.get_submodule(name).parameters()}
    weights = {place: sum(sizes.values()) for place, sizes in held.items()}
    block = sum(weight.numel() for weight in family_model.blocks[0].parameters())
    beside = sum(weight.numel() for weight in family_model.hf.parameters()) - block * family_model.n_layers
    assert max(weights.values()) <= max(beside, sum(weights.values()) / 3) + block
    of_blocks = [device_map[f"{family_model.family.blocks}.{index}"].index for index in range(family_model.n_layers)]
    assert of_blocks == sorted(of_blocks)
    assert of_blocks[-1] == 2
    assert {key for sizes in held.values() for key in sizes} == {id(weight) for weight in family_model.hf.parameters()}


def test_blocks_are_away_and_all_else_is_at_home(divided):
    assert divided.device == HOME
    assert divided.devices == [HOME, AWAY]
    assert divided.hf.get_output_embeddings().weight.device == HOME
    assert divided.weight(divided.n_layers - 1).device == AWAY


def test_what_transformers_has_divided_is_divided_anew(family_model):
    """Its hooks leave a block's output where the block is."""
    hf, at_home = copy.deepcopy(family_model.hf), shares(family_model.hf, family_model.family, (HOME, HOME))
    dispatch_model(hf, {name: str(place) for name, place in at_home.items()}, force_hooks=True)
    with two_devices():
        divide(hf, family_model.family, (HOME, AWAY))
        blocks = replace(family_model, hf=hf).blocks
        assert all(block._hf_hook.io_same_device for block in blocks)
        beside = [part for block in blocks for part in block.modules() if part is not block]
        assert not any(hasattr(part, "_hf_hook") for part in [*beside, hf, hf.get_output_embeddings()])


def numbers(model, facts):
    """Numbers that the analysis takes from a model, before, in and after an edit."""
    rows = fact_rows(model, facts[:2], CONTEXTS)
    settings = AnchorSettings(lr=0.1, steps=2)
    results = {f"anchors {layer}": optimize_anchors(rows, layer, settings).states for layer in (1, 3)}
    results["shifts"] = coordinate_shifts(rows, LAYERS, settings).shifts
    frozen = freeze(model, rows.bare, [1])
    for site in (RESIDUAL, MLP):
        results[f"J {site}"] = dense_jacobians(frozen, [1, 2], 3, site=site)
        results[f"jvp {site}"] = jvp(frozen, 1, 3, results["anchors 1"], site=site)
        results[f"vjp {site}"] = vjp(frozen, 1, 3, results["anchors 1"], site=site)
    results["operator"] = torch.from_numpy(linear_operator(frozen, 0, 1, 3) @ results["anchors 1"][0].numpy())
    moments = sums_of_keys(model, rows.answered, LAYERS)
    results |= {f"C {layer}": moment for layer, moment in moments.items()}
    moments = {layer: moment + torch.eye(len(moment), dtype=moment.dtype) for layer, moment in moments.items()}
    setting = Setting(rows, moments, 1.0)
    anchors = {layer: results[f"anchors {layer}"] for layer in (1, 3)}
    targets = make_targets(rows, LAYERS, anchors, results["shifts"])
    evaluation = Evaluator.of(model, facts[:2], greedy=True)
    for name in ("prune+fe", "rect+cr"):
        with restored(model, LAYERS):
            edit = edit_with(METHODS[name], setting, targets, RuleSettings())
            results |= {f"{name} {layer}": delta for layer, delta in edit.deltas.items()}
            results[f"{name} kl"] = evaluation.means()["kl"]
    with restored(model, LAYERS):
        for edit in observed_edits(setting, SCHEMES["jacobian-pullback"], targets):
            results[f"observed {edit.layer}"] = edit.update.delta
    results["as before"] = evaluation.means()["kl"]
    return results


@pytest.mark.parametrize("family_model", ["gpt2", "gptj", "llama"], indirect=True)
def test_the_numbers_are_the_same(divided, family_model, facts):
    """But for rounding: the host has an attention kernel of its own."""
    over_two = numbers(divided, facts)
    on_one = numbers(family_model, facts)
    assert set(over_two) == set(on_one)
    for name in on_one:
        assert over_two[name].device == HOME, name
        near = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-12, equal_nan=True)
        near(over_two[name], on_one[name], msg=lambda text, name=name: f"{name}: {text}")


def test_an_anchor_s_copy_in_another_dtype_is_divided_too(divided, facts):
    cast = divided.cast(torch.float32)
    assert cast.devices == [HOME, AWAY]
    rows = fact_rows(cast, facts[:2], CONTEXTS)
    assert optimize_anchors(rows, 1, AnchorSettings(steps=2)).states.isfinite().all()


def test_weights_are_read_into_their_places(folders, monkeypatch):
    """Two names of this host: weights go by the map, as if each were a card."""
    one, keywords = load_model(folders["llama"], "float32", "cpu"), {}
    monkeypatch.setattr(loading, "parse_device", lambda _: (HOME, HOME))
    read = AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *a, **k: keywords.update(k) or read(*a, **k))
    two = load_model(folders["llama"], "float32", "cpu")
    assert set(keywords["device_map"]) == set(shares(one.hf, one.family, (HOME, HOME)))
    assert two.fingerprint == one.fingerprint
    assert two.blocks[-1]._hf_hook.execution_device == HOME
    assert not hasattr(one.blocks[-1], "_hf_hook")
