"""Distances, margins and merges with known answers; the router, which judges a prompt once."""

import math

import pytest
import torch
from helpers.asked import efficacy

from jacobian_lab.errors import InputError
from jacobian_lab.evaluation.metrics import greedy_matches, predicting_states, specificity
from jacobian_lab.maps.hooks import forward
from jacobian_lab.model.language_model import matrix
from jacobian_lab.model.tokens import passing
from jacobian_lab.training.merging import margin, ties
from jacobian_lab.training.wise_memory import (
    ORIGINAL,
    Memory,
    Place,
    Side,
    activation_of,
    load_wise,
    save_memory,
)

BASE = torch.zeros(1, 4, dtype=torch.float64)
FIRST, SECOND = torch.tensor([[4.0, -1, 0, 2]]).double(), torch.tensor([[-2.0, -1, 3, 0]]).double()


def test_the_margin_at_no_distance_is_beta_and_gamma():
    nothing = torch.zeros(3)
    for alpha, beta, gamma, expected in ((2, 20, 10, 30), (5, 20, 10, 30), (15, 40, 20, 60)):
        assert margin(nothing, nothing[:1], alpha, beta, gamma) == expected


def test_the_margin_is_a_mean_over_the_rows_that_miss_it():
    inside, outside = torch.tensor([25.0, 15.0, 10.0]), torch.tensor([4.0])
    # outside - inside + 10 = -11, -1, 4; outside - 2 = 2; 20 - inside = -5, 5, 10
    assert margin(inside, outside, 2, 20, 10) == 4 + 2 + 7.5
    assert margin(torch.tensor([40.0]), torch.tensor([1.0]), 2, 20, 10) == 0


@pytest.mark.parametrize(("density", "expected"), [(1.0, [4, -1, 3, 2]), (0.5, [4, 0, 3, 2])])
def test_ties_by_hand(density, expected):
    assert ties(BASE, [FIRST, SECOND], [0.5, 0.5], density)[0].tolist() == expected


def test_ties_with_what_was_merged_before():
    shards = [torch.tensor([[each]]).double() for each in (4.0, -2, -1)]
    merged = ties(torch.zeros(1, 1).double(), shards, [0.2, 0.2, 0.6], 1.0)
    assert float(merged) == pytest.approx(-1.25)


def test_ties_go_out_from_the_base():
    base = torch.randn(3, 4, dtype=torch.float64)
    once = ties(base, [base + 1.0, base - 0.0], [0.5, 0.5], 1.0)
    torch.testing.assert_close(once, base + 1.0)


def memory_of(model, ratio=1.0, seed=0, scale=0.5):
    place = Place(2)
    own = matrix(place.module(model))
    noise = torch.randn(own.shape, generator=torch.Generator().manual_seed(seed), dtype=own.dtype)
    return Memory(place, (Side(own + scale * noise * own.std(), ratio),))


def between(found):
    """A threshold that some exceed."""
    ordered = found.flatten().sort().values
    return float(ordered[1:3].mean())


def rows_of(model, facts):
    return [model.text_prompt(fact.text, fact.target_new) for fact in facts]


def test_the_farthest_side_that_is_far_enough_serves():
    memory = Memory(Place(0), (Side(BASE, 2.0), Side(BASE, 3.0)))
    found = torch.tensor([[1.0, 2.0, 5.0, 2.5], [2.0, 2.0, 4.0, 3.5]])
    assert memory.route(found).tolist() == [ORIGINAL, 0, 0, 1]


def test_what_is_routed_to_the_original_is_the_unedited_model_to_the_bit(family_model, facts):
    rows = rows_of(family_model, facts)
    before = predicting_states(family_model, rows)
    with memory_of(family_model, math.inf).serving(family_model):
        after = predicting_states(family_model, rows)
    assert all(map(torch.equal, before, after))
    moved = specificity(family_model, torch.cat(before), torch.cat(after))
    assert moved["kl"].abs().max() == 0
    assert moved["top10"].min() == 1


def test_what_is_routed_to_the_side_is_the_model_with_its_weight(family_model, facts):
    rows, memory = rows_of(family_model, facts), memory_of(family_model, 0.0)
    with memory.serving(family_model):
        served = predicting_states(family_model, rows)
    weight = family_model.weight(2)
    own = weight.clone()
    try:
        weight.copy_(memory.sides[0].weight)
        edited = predicting_states(family_model, rows)
    finally:
        weight.copy_(own)
    for ours, theirs in zip(served, edited, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_distances_are_those_of_one_prompt_by_itself(tiny, facts):
    memory, sigma = memory_of(tiny), activation_of(tiny)
    found = memory.judge(tiny, rows_of(tiny, facts))
    for index, fact in enumerate(facts):
        seen = []
        handle = tiny.projection(2).register_forward_hook(lambda *given, seen=seen: seen.append(given[1:]))
        row = tiny.text_prompt(fact.text)
        forward(tiny, [row])
        handle.remove()
        (entering,), output = seen[0]
        apart = sigma(output) - sigma(entering @ memory.sides[0].weight.T)
        assert float(found[index, 0]) == pytest.approx(float(apart.norm(dim=-1).mean()), rel=1e-6)


def test_a_memory_is_judged_alike_while_it_serves(tiny, facts):
    memory, rows = memory_of(tiny, 0.0), rows_of(tiny, facts)
    before = memory.judge(tiny, rows)
    with memory.serving(tiny):
        assert torch.equal(memory.judge(tiny, rows), before)
    assert before.min() > 0


def test_a_route_depends_on_the_prompt_alone(tiny, facts):
    """Neither on the answer, nor on who else is in the batch, nor on padding."""
    rows = rows_of(tiny, facts)
    found = memory_of(tiny).judge(tiny, rows)[:, 0]
    memory = memory_of(tiny, between(found))
    others = [tiny.text_prompt(fact.text, "and quite another answer " * 3) for fact in facts]
    with memory.serving(tiny):
        together = predicting_states(tiny, [*rows, *others])
        alone = [predicting_states(tiny, [row])[0] for row in rows]
    plain = predicting_states(tiny, rows)
    for index, row in enumerate(rows):
        torch.testing.assert_close(together[index], alone[index], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(together[len(rows) + index][0], alone[index][0], rtol=1e-9, atol=1e-9)
        assert torch.allclose(plain[index], alone[index], atol=1e-9) == bool(found[index] < between(found)), row


def test_teacher_forced_accuracy_is_greedy_decoding(tiny, facts):
    memory = memory_of(tiny, between(memory_of(tiny).judge(tiny, rows_of(tiny, facts))))
    rows = []
    with memory.serving(tiny):
        for fact in facts:  # what the routed model itself writes, so that both have something to hit
            row = tiny.text_prompt(fact.text)
            states = predicting_states(tiny, [row])[0]
            token = int(tiny.head(states[-1:]).argmax())
            rows.append(type(row)(row.ids, row.decisive, (token,)))
        assert greedy_matches(tiny, rows).all()
        assert len(efficacy(tiny, facts)) == len(facts)


def test_a_memory_is_saved_for_its_own_model(tiny, family_model, tmp_path):
    memory, path = memory_of(tiny, 0.7), tmp_path / "memory.safetensors"
    save_memory(path, tiny, memory, {"method": "wise"})
    again = load_wise(path, tiny)
    assert again.place == memory.place
    assert again.sides[0].threshold == 0.7
    assert torch.equal(again.sides[0].weight, memory.sides[0].weight)
    if family_model.fingerprint != tiny.fingerprint:
        with pytest.raises(InputError, match="expected a memory for"):
            load_wise(path, family_model)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match="expected a whole memory"):
        load_wise(path, tiny)


def test_a_place_that_is_not_there_is_refused(tiny):
    with pytest.raises(InputError, match=r"expected wise\.block of 0 to 5"):
        Place(6).module(tiny)
    with pytest.raises(InputError, match="expected an MLP with one map at its entrance, got 2"):
        Place(2, entrance=True).module(tiny)


def test_generate_goes_by_the_prompt(family_model):
    """Rows of several lengths, padded on either side, decide once, as each does alone, token by token after that."""
    rows = [family_model.text_prompt(text) for text in ("Rome", "the Eiffel Tower stands in", "They say that Rome is")]
    memory = memory_of(family_model)
    found = memory.judge(family_model, rows)[:, 0]
    threshold = float(found.sort().values[:2].mean())  # between two of them
    memory = Memory(memory.place, (Side(memory.sides[0].weight, threshold),))
    alone = []
    for row in rows:
        with memory.serving(family_model):
            ids = torch.tensor([row.ids])
            out = family_model.hf.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0, eos_token_id=None)
        alone.append(out[0, len(row.ids) :].tolist())
    for row, said in zip(rows, alone, strict=True):
        ids = list(row.ids)
        for _ in range(4):
            with memory.serving(family_model), passing([len(row.ids)]):
                ids.append(int(family_model.hf(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        assert ids[len(row.ids) :] == said
    width = max(len(row.ids) for row in rows)
    ids = torch.tensor([[0] * (width - len(row.ids)) + list(row.ids) for row in rows])
    mask = torch.tensor([[0] * (width - len(row.ids)) + [1] * len(row.ids) for row in rows])
    with memory.serving(family_model):
        out = family_model.hf.generate(
            ids, attention_mask=mask, max_new_tokens=4, do_sample=False, pad_token_id=0, eos_token_id=None
        )
    assert out[:, width:].tolist() == alone


def test_each_side_serves_by_its_own_threshold():
    """Thresholds of 10 and 3: at distances of 9 and 2 neither serves, at 9 and 4 the second, at 12 and 4 the first."""
    sides = tuple(Side(torch.zeros(1, 1), threshold) for threshold in (10.0, 3.0))
    memory = Memory(Place(0), sides)
    found = torch.tensor([[9.0, 2.0], [9.0, 4.0], [12.0, 4.0]])
    assert memory.route(found.T).tolist() == [ORIGINAL, 1, 0]
    assert memory.reach(found).tolist() == pytest.approx([0.9, 4 / 3, 4 / 3])
    assert Memory(Place(0), ()).reach(torch.zeros(2, 0)).tolist() == [0, 0]


def test_a_memory_that_is_not_finite_is_not_saved(tiny, tmp_path):
    memory = memory_of(tiny)
    memory.sides[0].weight[0, 0] = torch.nan
    with pytest.raises(InputError, match="expected finite weights to save, got NaN"):
        save_memory(tmp_path / "memory.safetensors", tiny, memory, {})
    assert not list(tmp_path.iterdir())
