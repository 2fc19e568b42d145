"""Descents that ask for what an edit will deliver: their shares, their loss, and the whole shift as one end."""

from dataclasses import replace

import pytest
import torch
from helpers.reference import Plain, prompt
from helpers.small import CONTEXTS

from jacobian_lab.editing.anchors import coordinate_shifts, optimize_anchors
from jacobian_lab.editing.delivery import delivered_shares
from jacobian_lab.editing.descent import Conditions, Descent
from jacobian_lab.editing.settings import AnchorSettings
from jacobian_lab.errors import InputError
from jacobian_lab.model.rows import fact_rows

LAYERS = (1, 2, 4)
SETTINGS = AnchorSettings(lr=0.1, steps=6)


@pytest.fixture
def rows(tiny, facts):
    return fact_rows(tiny, facts, CONTEXTS)


def shares(rows, settings, layers=3, seed=0, transfers=None):
    return delivered_shares(rows, layers, settings, seed, transfers)


@pytest.mark.parametrize("delivered", ["random", "margin"])
def test_whole_shifts_are_the_usual_descent_to_the_last_bit(delivered, rows):
    settings = replace(SETTINGS, lr=0.4, steps=12, stop_loss=6.3)
    whole = replace(settings, delivered=delivered, delivered_share=1.0)
    for usual, at_share in (
        (optimize_anchors(rows, 2, settings), optimize_anchors(rows, 2, whole, None, asking(rows, whole, 1))),
        (
            coordinate_shifts(rows, LAYERS, settings),
            coordinate_shifts(rows, LAYERS, whole, conditions=asking(rows, whole, 3)),
        ),
    ):
        assert len(set(usual.passes.tolist())) > 1
        for name in ("loss", "passes", "clamped"):
            assert torch.equal(getattr(at_share, name), getattr(usual, name))
        name = "states" if hasattr(usual, "states") else "shifts"
        assert torch.equal(getattr(at_share, name), getattr(usual, name))
    assert shares(rows, settings) is None


def asking(rows, settings, layers):
    return Conditions(delivered=shares(rows, settings, layers))


def test_a_margin_is_the_usual_descent_in_other_units(rows):
    """Without decay and clamp the loss is one of s δ alone, and Adam's step of δ is s times as long in s δ."""
    free = replace(SETTINGS, weight_decay=0.0, clamp=1e9, steps=12, stop_loss=6.3)
    margin = replace(free, delivered="margin")
    at_share = coordinate_shifts(rows, LAYERS, margin, conditions=asking(rows, margin, 3))
    usual = coordinate_shifts(rows, LAYERS, replace(free, lr=0.8 * free.lr))
    torch.testing.assert_close(0.8 * at_share.shifts, usual.shifts, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(at_share.loss, usual.loss, rtol=1e-5, atol=1e-6)
    assert torch.equal(at_share.passes, usual.passes)
    assert (at_share.loss[at_share.passes < 12] < 6.3).all()  # at four fifths of the shifts


def test_random_shares_lie_between_the_least_and_one(rows):
    settings = replace(SETTINGS, steps=400, delivered="random")
    transfers = torch.tensor([[0.9, 0.6, 1.1]], dtype=torch.float64).expand(5, 3)
    drawn = shares(rows, settings, transfers=transfers)
    assert drawn.shape == (5, 400, 3)
    low, high = drawn.amin((0, 1)), drawn.amax((0, 1))
    torch.testing.assert_close(low, torch.tensor([0.9, 0.6, 1.0], dtype=torch.float64), rtol=0, atol=0.01)
    torch.testing.assert_close(high, torch.tensor([1.0, 1.0, 1.1], dtype=torch.float64), rtol=0, atol=0.01)
    torch.testing.assert_close(drawn.mean((0, 1)), (1 + transfers[0]) / 2, rtol=0, atol=0.01)
    constant = shares(rows, replace(settings, delivered_share=0.5))
    torch.testing.assert_close(constant.mean(), torch.tensor(0.75, dtype=torch.float64), rtol=0, atol=0.01)
    assert 0.5 <= float(constant.min()) < float(constant.max()) <= 1
    with pytest.raises(InputError, match="expected measured transfers for random shares"):
        shares(rows, settings)


def test_random_shares_follow_the_fact_the_seed_and_the_pass(rows):
    settings = replace(SETTINGS, delivered="random", delivered_share=0.5)
    drawn = shares(rows, settings)
    assert torch.equal(shares(rows.select([3, 1]), settings), drawn[[3, 1]])
    assert not torch.allclose(shares(rows, settings, seed=1), drawn)
    assert len({round(value, 12) for value in drawn.flatten().tolist()}) == drawn.numel()


def test_batches_and_order_change_nothing(rows):
    settings = replace(SETTINGS, lr=0.4, steps=12, stop_loss=6.3, delivered="random", delivered_share=0.5)
    conditions = asking(rows, settings, 3)
    together = coordinate_shifts(rows, LAYERS, settings, conditions=conditions)
    assert len(set(together.passes.tolist())) > 1
    order = [3, 0, 2]
    shuffled = coordinate_shifts(rows.select(order), LAYERS, settings, conditions=conditions.select(order))
    torch.testing.assert_close(shuffled.shifts, together.shifts[order], rtol=1e-9, atol=1e-9)


def test_the_loss_is_taken_at_the_shares_of_the_pass(tiny, facts, rows):
    """Against the untouched model with hooks, with the decay at whole shifts; the gradient by finite differences."""
    settings = replace(SETTINGS, delivered="random", delivered_share=0.5)
    drawn, pair = shares(rows, settings), rows.select([1, 2])
    descent = Descent(pair, LAYERS, settings, None, Conditions(delivered=drawn[[1, 2]]))
    active, generator = torch.arange(2), torch.Generator().manual_seed(0)
    start = 0.3 * torch.randn(2, 3, tiny.d_model, generator=generator, dtype=torch.float64)
    way = torch.randn(*start.shape, generator=generator, dtype=torch.float64)
    descent.number = 3

    def loss(moves):
        descent.moves = list(moves)
        return descent._losses(active)

    moves = start.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(moves).sum(), moves)
    slopes = (loss(start + 1e-5 * way) - loss(start - 1e-5 * way)) / 2e-5
    torch.testing.assert_close((gradient * way).sum((1, 2)), slopes, rtol=1e-6, atol=1e-8)
    for index, fact in enumerate(facts[1:3]):
        states = Plain.of(tiny).states(*prompt(tiny.tokenizer, fact), LAYERS)[1]
        whole = start[index] / 3**0.5
        decay = 0.5 * sum(whole[place].norm() / states[layer].norm() ** 2 for place, layer in enumerate(LAYERS))
        at = Plain.of(tiny).loss(fact, CONTEXTS, lambda _: 0.0)
        at({layer: torch.zeros(tiny.d_model, dtype=torch.float64) for layer in LAYERS})
        arriving = whole * drawn[index + 1, 2][:, None]
        with torch.no_grad():
            expected = at(dict(zip(LAYERS, arriving, strict=True))) + decay
        torch.testing.assert_close(loss(start)[index], expected, rtol=1e-10, atol=1e-10)
