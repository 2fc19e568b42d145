"""Rates of this machine, and of cards that need not be here."""

import copy
from dataclasses import astuple, replace

import pytest
import torch
from helpers.small import CONFIGS, make_folder

from jacobian_lab.errors import InputError
from jacobian_lab.model.loading import load_model, sketch_model
from jacobian_lab.planning.rates import CARDS, MEMORY, measured, smallest_card
from jacobian_lab.planning.shape import two_blocks
from jacobian_lab.planning.work import Work, total


def test_work_adds_up_and_multiplies():
    block, solve = Work(passes=2, tokens=30), Work(cholesky=8)
    assert total([block, block, solve]) == Work(passes=4, tokens=60, cholesky=8)
    assert block * 3 == Work(passes=6, tokens=90)
    prices = replace(Work(), passes=0.5, tokens=0.1, cholesky=2.0)
    assert (block + solve).at(prices) == pytest.approx(1 + 3 + 16)
    assert Work().at(prices) == 0


def test_rates_of_this_machine_and_of_a_card(family_model):
    ours, card = measured(family_model, family_model.devices), CARDS["h200"].of(family_model)
    for rates in (ours, card):
        assert min(astuple(replace(rates.seconds, passes=1, back_passes=1))) > 0
        assert min(rates.seconds.passes, rates.seconds.back_passes) >= 0
    assert card.seconds.tokens < card.seconds.back_tokens
    assert (ours.card, card.card) == (False, True)


def test_the_smallest_card_that_does():
    assert list(MEMORY.values()) == sorted(MEMORY.values())
    assert smallest_card(2**30).startswith("16 GB")
    assert smallest_card(60 * 2**30).startswith("80 GB")
    assert smallest_card(2**40) == "more than one card"


def test_a_model_of_one_block_and_one_whose_padding_is_far_up(tmp_path):
    for name, changes in (("one", {"num_hidden_layers": 1}), ("padded", {"pad_token_id": 500})):
        config = copy.deepcopy(CONFIGS["llama"])
        for field, value in changes.items():
            setattr(config, field, value)
        model = load_model(make_folder(tmp_path / name, config), dtype="float64", device="cpu")
        assert measured(model, model.devices).seconds.tokens > 0
        assert two_blocks(model, torch.device("cpu")).n_layers == 2


def test_measuring_leaves_the_random_state_as_it_was(family_model):
    before = torch.random.get_rng_state()
    measured(family_model, family_model.devices)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("boasted", [10**6, 10**9])
def test_what_is_measured_has_few_positions(boasted, folders):
    sketch = sketch_model(folders["gpt2"])
    sketch.hf.config.max_position_embeddings = boasted
    assert two_blocks(sketch, torch.device("cpu")).max_tokens == 2048


def test_a_sketch_has_no_numbers(folders):
    assert sketch_model(folders["gpt2"]).fingerprint == "no weights"
    assert load_model(folders["gpt2"], device="cpu").fingerprint != "no weights"
    with pytest.raises(InputError, match="expected a dtype"):
        sketch_model(folders["gpt2"], dtype="int4")
