"""Controls of forward and coordinated replay: their targets, their descents, and what layers are given."""

from dataclasses import replace

import pytest
import torch
from helpers.reference import Plain, prompt
from helpers.small import CONTEXTS

from jacobian_lab.catalogue import CONTROLS, SCHEMES, TABLE_SCHEMES
from jacobian_lab.editing.anchors import best_anchors, optimize_anchors, random_starts
from jacobian_lab.editing.descent import Conditions, Descent
from jacobian_lab.editing.layers import Setting, edit_layers, restored
from jacobian_lab.editing.schemes import make_targets
from jacobian_lab.editing.settings import AnchorSettings
from jacobian_lab.errors import InputError
from jacobian_lab.maps.hooks import decisive_states
from jacobian_lab.model.rows import fact_rows

LAYERS = (1, 2, 4)
SETTINGS = AnchorSettings(lr=0.1, steps=5)


@pytest.fixture
def rows(tiny, facts):
    return fact_rows(tiny, facts, CONTEXTS)


@pytest.fixture
def targets(rows, tiny):
    states = random_states(rows, tiny)
    return make_targets(rows, LAYERS, {1: states[1], 4: states[4]}, None, {2: states[2]}, {"joint": states[3]})


def random_states(rows, model):
    bare = decisive_states(model, rows.bare, [1, 2, 4, 1]).unbind(1)
    generator = torch.Generator().manual_seed(0)
    noise = [0.3 * torch.randn(state.shape, generator=generator, dtype=torch.float64) for state in bare]
    return {n: state + change for n, state, change in zip((1, 2, 4, 3), bare, noise, strict=True)}


def edits(rows, name, targets, layers=LAYERS):
    """Each layer's edit with the states before it."""
    moments = {layer: torch.eye(rows.model.d_mlp, dtype=torch.float64) for layer in layers}
    with restored(rows.model, layers):
        steps, before = [], decisive_states(rows.model, rows.bare, LAYERS).double()
        for edit in edit_layers(Setting(rows, moments, 3.0), SCHEMES[name], targets):
            steps.append((edit, dict(zip(LAYERS, before.unbind(1), strict=True))))
            before = decisive_states(rows.model, rows.bare, LAYERS).double()
    return steps


def test_controls_are_measured_only_where_they_are_named():
    assert (*TABLE_SCHEMES, *CONTROLS) == tuple(SCHEMES)
    assert [SCHEMES["first-layer"].edited(LAYERS), SCHEMES["one-layer"].edited(LAYERS)] == [(1,), (4,)]
    assert SCHEMES["first-layer"].edited((4,)) == SCHEMES["independent"].edited((4,)) == (4,)


def test_the_first_layer_alone_is_forward_replays_first_edit(rows, targets):
    ((alone, _),) = edits(rows, "first-layer", targets)
    first, *_ = edits(rows, "forward-replay", targets)
    assert alone.layer == 1
    assert torch.equal(alone.update.delta, first[0].update.delta)


def test_independent_targets_at_every_layer_are_that_layers_own(rows, targets):
    anchors = random_states(rows, rows.model)
    steps = edits(rows, "independent-everywhere", targets)
    assert [edit.layer for edit, _ in steps] == [1, 2, 4]
    for edit, before in steps:
        torch.testing.assert_close(edit.assigned_residual, anchors[edit.layer] - before[edit.layer])


def test_at_two_layers_they_are_independents(rows, targets):
    ends = make_targets(rows, (1, 4), targets.optimised, None, {})
    pairs = [edits(rows, name, ends, (1, 4)) for name in ("independent-everywhere", "independent")]
    for (one, _), (other, _) in zip(*pairs, strict=True):
        assert torch.equal(one.update.delta, other.update.delta)


def test_a_divided_shift_is_the_share_of_each_layers_own_residual(rows, targets):
    """Each of the layers that are left gets an equal part of what is missing there; the last one gets all of it."""
    for left, (edit, before) in zip((3, 2, 1), edits(rows, "forward-replay-divided", targets), strict=True):
        residual = targets.of("replayed", edit.layer) - before[edit.layer]
        torch.testing.assert_close(edit.assigned_residual, residual / left)


def test_further_targets_are_of_their_own_schemes_alone(rows, targets):
    joint = targets.of("joint", 1)
    joint[1] = float("nan")
    assert targets.finite().all()
    assert targets.finite("joint").tolist() == [True, False, True, True, True]
    assert targets.select([1, 2]).finite("joint").tolist() == [False, True]
    with pytest.raises(InputError, match="got none: give make_targets its descent"):
        targets.of("restarted", 1)


def test_starts_of_no_size_are_the_anchor_to_the_last_bit(rows):
    anchors = optimize_anchors(rows, 1, SETTINGS)
    starts = [random_starts(rows, 0.0, 0, number) for number in range(2)]
    best = best_anchors(rows, 1, SETTINGS, starts)
    for name in ("states", "loss", "clamped"):
        assert torch.equal(getattr(best, name), getattr(anchors, name))
    assert torch.equal(best.passes, 2 * anchors.passes)


def test_the_best_start_is_the_one_of_the_least_loss(rows):
    settings, finished = replace(SETTINGS, clamp=0.1), []
    starts = [random_starts(rows, 0.2, 7, number) for number in range(3)]
    best = best_anchors(rows, 1, settings, starts, lambda count, _: finished.append(count))
    every = [optimize_anchors(rows, 1, settings, None, Conditions(starts=start[:, None])) for start in starts]
    losses = torch.stack([anchors.loss for anchors in every])
    assert len(set(losses.argmin(0).tolist())) > 1
    assert torch.equal(best.loss, losses.amin(0))
    for fact, place in enumerate(losses.argmin(0).tolist()):
        assert torch.equal(best.states[fact], every[place].states[fact])
    assert sum(finished) == len(rows)


def test_a_fact_that_fails_from_one_start_has_another(rows):
    starts = [random_starts(rows, 0.2, 7, number) for number in range(2)]
    starts[0][2] = float("nan")
    best = best_anchors(rows, 1, SETTINGS, starts)
    assert best.loss.isfinite().all()
    assert best.states.isfinite().all()


def test_starts_follow_the_fact_the_seed_and_their_number(rows):
    starts = random_starts(rows, 0.2, 7, 1)
    assert torch.equal(random_starts(rows.select([3, 1]), 0.2, 7, 1), starts[[3, 1]])
    for seed, number in ((8, 1), (7, 2)):
        assert not torch.allclose(random_starts(rows, 0.2, seed, number), starts)
    torch.testing.assert_close(starts.norm(dim=1), torch.full((5,), 0.2, dtype=torch.float64))


def test_the_loss_at_a_start_and_towards_an_aim(family_model, facts):
    """Against the untouched model with hooks; the gradient by finite differences."""
    model, pair = family_model, facts[1:3]
    rows, generator = fact_rows(model, pair, CONTEXTS), torch.Generator().manual_seed(1)
    starts = random_starts(rows, 0.3, 0, 0)
    aims = torch.randn(2, model.d_model, generator=generator, dtype=torch.float64)
    conditions = Conditions(starts=starts[:, None], aims=aims, aim_layer=4, aim_weight=0.7)
    descent = Descent(rows, (1,), SETTINGS, conditions=conditions)
    active = torch.arange(2)
    losses, moves = descent._losses(active), torch.stack([move.detach() for move in descent.moves])
    way = torch.randn(*moves.shape, generator=generator, dtype=torch.float64)
    slopes = (torch.stack(torch.autograd.grad(losses.sum(), descent.moves)) * way).sum((1, 2))

    def loss(at):
        descent.moves = list(at)
        return descent._losses(active)

    expected = (loss(moves + 1e-5 * way) - loss(moves - 1e-5 * way)) / 2e-5
    torch.testing.assert_close(slopes, expected, rtol=1e-6, atol=1e-8)
    plain = Plain.of(model)
    for index, fact in enumerate(pair):
        ids, position = prompt(model.tokenizer, fact)
        size = plain.states(ids, position, [1])[1][1].norm()
        writes, moved = plain.moving(ids, position, [1])
        length = size if writes is None else writes[1].norm()
        at = plain.loss(fact, CONTEXTS, lambda shifts: 0.5 * moved(1, shifts[1]).norm() / size**2)  # noqa: B023
        at({1: torch.zeros(model.d_model, dtype=torch.float64)})
        with torch.no_grad():
            shift = {1: starts[index] * length}
            state = plain.states(ids, position, [4], shifts=shift)[1][4]
            distance = (state - aims[index]).norm() ** 2 / aims[index].norm() ** 2
            torch.testing.assert_close(losses[index], at(shift) + 0.7 * distance, rtol=1e-9, atol=1e-9)


def test_a_joint_loss_of_no_weight_is_the_anchor_to_the_last_bit(rows):
    settings = replace(SETTINGS, lr=0.4, steps=12, stop_loss=6.3)
    aims = optimize_anchors(rows, 4, settings).states
    anchors, joint, drawn = (
        optimize_anchors(rows, 1, settings, None, Conditions(aims=aims, aim_layer=4, aim_weight=weight))
        if weight is not None
        else optimize_anchors(rows, 1, settings)
        for weight in (None, 0.0, 10.0)
    )
    assert len(set(anchors.passes.tolist())) > 1
    assert torch.equal(joint.states, anchors.states)
    far, near = (
        (make_targets(rows, LAYERS, {1: states, 4: aims}).of("replayed", 4) - aims).norm(dim=1)
        for states in (anchors.states, drawn.states)
    )
    moved = anchors.passes > 1
    assert (near[moved] < far[moved]).all()
