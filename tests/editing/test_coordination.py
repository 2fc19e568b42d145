"""Shifts at several layers at once: the descent, its gradient, the targets, and the edits made of them."""

from dataclasses import replace

import pytest
import torch
from helpers.reference import Plain, prompt
from helpers.small import CONTEXTS

from jacobian_lab.catalogue import SCHEMES
from jacobian_lab.editing.anchors import coordinate_shifts, optimize_anchors
from jacobian_lab.editing.descent import Conditions, Descent
from jacobian_lab.editing.layers import Setting, eases, restored
from jacobian_lab.editing.measures import measure, observed_edits
from jacobian_lab.editing.schemes import make_targets, replay_targets
from jacobian_lab.editing.settings import AnchorSettings, CoordinationSettings, random_shares
from jacobian_lab.errors import InputError
from jacobian_lab.model.rows import fact_rows

LAYERS = (1, 2, 4)
SETTINGS = AnchorSettings(lr=0.1, steps=8)


@pytest.fixture
def rows(tiny, facts):
    return fact_rows(tiny, facts, CONTEXTS)


def plain(model):
    return Plain.of(model)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.slow
def test_shifts_agree_with_one_fact_at_a_time(family_model, facts):
    """Facts whose answers all shifts reach: where a sliding window hides the subject, Adam steps by rounding."""
    near = facts[1:4]
    coordinated = coordinate_shifts(fact_rows(family_model, near, CONTEXTS), LAYERS, SETTINGS)
    for index, fact in enumerate(near):
        expected, loss, passes = plain(family_model).shifts(fact, LAYERS, CONTEXTS, lr=0.1, steps=8)
        torch.testing.assert_close(coordinated.shifts[index], expected, rtol=1e-8, atol=1e-8)
        assert float(coordinated.loss[index]) == pytest.approx(loss, rel=1e-8)
        assert int(coordinated.passes[index]) == passes


@pytest.mark.parametrize("decay", ["norm", "price"])
def test_the_gradient_through_several_shifts(decay, family_model, facts):
    """Against finite differences of the loss, and against the untouched model with hooks."""
    rows, ease = fact_rows(family_model, facts[1:3], CONTEXTS), 1 + random(2, 3).abs()
    settings = CoordinationSettings(decay=decay, price=0.7)
    descent = Descent(rows, LAYERS, SETTINGS, settings, Conditions(ease))
    active = torch.arange(2)
    descent._losses(active)  # the divergence is taken against the model without shifts
    start = 0.3 * random(2, 3, family_model.d_model, seed=1)

    def loss(moves):
        descent.moves = list(moves)
        return descent._losses(active)

    moves = start.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(moves).sum(), moves)
    way = random(*start.shape, seed=2)
    slopes = (loss(start + 1e-5 * way) - loss(start - 1e-5 * way)) / 2e-5
    torch.testing.assert_close((gradient * way).sum((1, 2)), slopes, rtol=1e-6, atol=1e-8)
    reference, factor = plain(family_model), getattr(family_model.hf.config, "residual_multiplier", 1.0)
    for index, fact in enumerate(facts[1:3]):
        sizes = reference.states(*prompt(family_model.tokenizer, fact), LAYERS)[1]
        writes, moved = reference.moving(*prompt(family_model.tokenizer, fact), LAYERS)
        units = torch.stack([
            writes[layer].square().mean().sqrt() if writes else torch.ones((), dtype=torch.float64) for layer in LAYERS
        ])

        def weighed(shifts, index=index, sizes=sizes, units=units, moved=moved):
            if decay == "price":
                written = [s / (factor * unit) for s, unit in zip(shifts.values(), units, strict=True)]
                squares = [s.square().sum() for s in written]
                return 0.7 * sum(square / ease[index, place] for place, square in enumerate(squares))
            return 0.5 * sum(moved(layer, s).norm() / sizes[layer].norm() ** 2 for layer, s in shifts.items())

        at = reference.loss(fact, CONTEXTS, weighed)
        nothing = torch.zeros_like(start[index])
        at(dict(zip(LAYERS, nothing, strict=True)))
        per_move = units[:, None] / 3**0.5
        shifts = (start[index] * per_move).requires_grad_()
        value = at(dict(zip(LAYERS, shifts, strict=True)))
        (expected,) = torch.autograd.grad(value, shifts)
        torch.testing.assert_close(loss(start)[index], value, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(gradient[index], expected * per_move, rtol=1e-8, atol=1e-10)


def test_targets_are_the_states_of_the_model_with_the_shifts(family_model, facts):
    rows, shifts = fact_rows(family_model, facts, CONTEXTS), 0.3 * random(len(facts), 3, family_model.d_model)
    anchors = {layer: random(len(facts), family_model.d_model) for layer in (1, 4)}
    targets = make_targets(rows, LAYERS, anchors, shifts)
    for index, fact in enumerate(facts):
        with torch.no_grad():
            added = dict(zip(LAYERS, shifts[index], strict=True))
            _, states = plain(family_model).states(*prompt(family_model.tokenizer, fact), LAYERS, shifts=added)
        for layer in LAYERS:
            got = targets.of("coordinated", layer)[index]
            torch.testing.assert_close(got, states[layer], rtol=1e-10, atol=1e-10)


def test_effort_at_the_first_layer_alone_is_forward_replay_to_the_last_bit(rows):
    anchors = optimize_anchors(rows, 1, SETTINGS)
    coordinated = coordinate_shifts(rows, LAYERS, SETTINGS, CoordinationSettings(weighting=(2.0, 0.0, 0.0)))
    assert (coordinated.shifts[:, 1:] == 0).all()
    assert torch.equal(coordinated.loss, anchors.loss)
    assert torch.equal(coordinated.clamped, anchors.clamped)
    ends = {1: anchors.states, 4: anchors.states}
    targets = make_targets(rows, LAYERS, ends, coordinated.shifts)
    for layer in LAYERS:
        assert torch.equal(targets.of("coordinated", layer), targets.of("replayed", layer))


def test_facts_batches_and_order_change_nothing(tiny, facts, rows):
    settings = replace(SETTINGS, lr=0.4, steps=20, stop_loss=6.3)
    together = coordinate_shifts(rows, LAYERS, settings)
    assert len(set(together.passes.tolist())) > 1
    order = [3, 0, 4, 2, 1]
    shuffled = coordinate_shifts(rows.select(order), LAYERS, settings)
    torch.testing.assert_close(shuffled.shifts, together.shifts[order], rtol=1e-9, atol=1e-9)
    alone = coordinate_shifts(rows.select([2]), LAYERS, settings)
    torch.testing.assert_close(alone.shifts[0], together.shifts[2], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("budget", ["shared", "each"])
def test_the_budget_holds(budget, tiny, facts, rows):
    settings = replace(SETTINGS, lr=5.0, clamp=0.2, stop_loss=0.0)
    coordinated = coordinate_shifts(rows, LAYERS, settings, CoordinationSettings(budget=budget))
    states = [plain(tiny).states(*prompt(tiny.tokenizer, fact), LAYERS)[1] for fact in facts]
    sizes = torch.stack([torch.stack([state[layer].norm() for layer in LAYERS]) for state in states])
    spent = coordinated.shifts.norm(dim=-1) / sizes
    assert spent.min() > 0
    assert ((spent.sum(1) > 0.21) == (budget == "each")).all()
    spent = spent.sum(1) if budget == "shared" else spent.amax(1)
    torch.testing.assert_close(spent, torch.full_like(spent, 0.2), rtol=1e-9, atol=0)


def test_how_the_effort_is_weighted():
    ease = torch.tensor([[4.0, 1.0, 1.0, 4.0], [1.0, 1.0, 1.0, 1.0]])
    equal, front, eased = (CoordinationSettings(weighting=name).shares(ease) for name in ("equal", "front", "eased"))
    torch.testing.assert_close(equal, torch.full_like(ease, 0.5))
    torch.testing.assert_close(front, torch.tensor([4.0, 3.0, 2.0, 1.0]).expand(2, 4) / 30**0.5)
    torch.testing.assert_close(
        eased, torch.tensor([[2.0, 1, 1, 2], [1.0, 1, 1, 1]]) / torch.tensor([[10.0], [4.0]]).sqrt()
    )


def test_weights_are_one_for_each_layer(rows):
    ease = torch.ones(2, 3, dtype=torch.float64)
    listed = CoordinationSettings(weighting=(3.0, 0.0, 4.0)).shares(ease)
    torch.testing.assert_close(listed, torch.tensor([0.6, 0.0, 0.8], dtype=torch.float64).expand(2, 3))
    equal = CoordinationSettings(weighting=(7.0,) * 3).shares(ease)
    torch.testing.assert_close(equal, CoordinationSettings().shares(ease))
    for wrong in ((1.0, 1.0), (1.0,) * 4, (1.0, -0.1, 1.0), (0.0,) * 3, (1.0, float("nan"), 1.0), ()):
        with pytest.raises(InputError, match="expected 3 weights, one for each of the layers 1, 2, 4, none negative"):
            coordinate_shifts(rows, LAYERS, SETTINGS, CoordinationSettings(weighting=wrong))


def test_random_weights_are_those_of_a_draw_for_all_facts():
    ease = torch.ones(2, 3, dtype=torch.float64)
    shares = [CoordinationSettings(weighting="random", draw=draw).shares(ease) for draw in (0, 0, 1)]
    assert torch.equal(shares[0], shares[1])
    assert torch.equal(shares[0][0], shares[0][1])
    assert not torch.allclose(shares[0], shares[2])
    torch.testing.assert_close(shares[2].square().sum(1), torch.ones(2, dtype=torch.float64))


def test_random_shares_are_uniform_on_the_simplex():
    """Moments of Dirichlet's distribution: mean 1/m, variance (m − 1)/(m²(m + 1)), covariance −1/(m²(m + 1))."""
    draws = torch.stack([random_shares(4, draw) for draw in range(4000)])
    torch.testing.assert_close(draws.sum(1), torch.ones(4000, dtype=torch.float64))
    expected = torch.full((4, 4), -1 / 80, dtype=torch.float64).fill_diagonal_(3 / 80)
    torch.testing.assert_close(draws.mean(0), torch.full((4,), 0.25, dtype=torch.float64), rtol=0, atol=0.01)
    torch.testing.assert_close(draws.T.cov(), expected, rtol=0, atol=0.003)


@pytest.mark.parametrize(("rate", "first"), [("root", 0.1 / 3**0.5), ("full", 0.1), ("divided", 0.1 / 3)])
def test_the_first_step_of_adam_is_the_rate(rate, first, rows):
    """Adam's first step is the learning rate along each component's sign."""
    settings = replace(SETTINGS, steps=2, clamp=1e9)
    stepped = coordinate_shifts(rows, LAYERS, settings, CoordinationSettings(rate=rate)).shifts
    torch.testing.assert_close(stepped.abs().median(), torch.tensor(first, dtype=torch.float64), rtol=1e-4, atol=0)


def test_a_descent_ends_at_the_loss_of_the_facts_own_anchor(rows):
    """At the first pass whose loss is no larger; without a limit, or with one that is never reached, as before."""
    settings, trace = replace(SETTINGS, lr=0.4, steps=12), []

    class Traced(Descent):
        def _losses(self, active):
            losses = super()._losses(active)
            trace.append(losses.detach())
            return losses

    whole = Traced(rows, LAYERS, settings)
    whole.run(None)
    losses = torch.stack(trace)  # no fact leaves
    limits = losses.sort(0).values[[1, 3, 5, 7, 9], range(5)] + 1e-9
    limits[1:3] = torch.tensor([float("nan"), -1.0])
    ended = coordinate_shifts(rows, LAYERS, settings, conditions=Conditions(limits=limits))
    passes = [int((losses[:, f] <= limits[f]).int().argmax()) + 1 if f not in {1, 2} else 12 for f in range(5)]
    assert ended.passes.tolist() == passes
    assert len(set(passes)) > 2
    assert (ended.loss[[0, 3, 4]] <= limits[[0, 3, 4]]).all()
    torch.testing.assert_close(ended.shifts[1:3], whole.shifts[1:3], rtol=1e-9, atol=1e-9)


def test_the_end_of_ones_own_anchor_is_its_last_pass(rows):
    settings = replace(SETTINGS, lr=0.4, steps=12, stop_loss=6.3)
    anchors = optimize_anchors(rows, 1, settings)
    alone = CoordinationSettings(weighting=(1.0, 0.0, 0.0))
    ended = coordinate_shifts(rows, LAYERS, settings, alone, conditions=Conditions(limits=anchors.loss))
    early = ended.passes < anchors.passes  # where the loss had been lower before the last pass
    assert (ended.loss[early] <= anchors.loss[early]).all()
    assert torch.equal(ended.loss[~early], anchors.loss[~early])
    assert not early.all()


@pytest.mark.parametrize("budget", ["shared", "each"])
def test_the_clamp_counts_the_updates_that_it_scaled_back(budget, tiny, facts, rows):
    """An update is scaled back where the shifts behind it spend the whole clamp."""
    settings, coordination = replace(SETTINGS, lr=0.05, clamp=0.1, stop_loss=0.0), CoordinationSettings(budget=budget)
    states = [plain(tiny).states(*prompt(tiny.tokenizer, fact), LAYERS)[1] for fact in facts]
    sizes = torch.stack([torch.stack([state[layer].norm() for layer in LAYERS]) for state in states])
    full = torch.zeros(len(facts))
    for steps in range(2, 9):
        spent = (
            coordinate_shifts(rows, LAYERS, replace(settings, steps=steps), coordination).shifts.norm(dim=-1) / sizes
        )
        most = spent.sum(1) if budget == "shared" else spent.amax(1)
        full += most > 0.1 * (1 - 1e-9)
    clamped = coordinate_shifts(rows, LAYERS, settings, coordination).clamped
    torch.testing.assert_close(clamped, full.double() / 7)
    assert 0 < float(clamped.mean()) < 1
    free = coordinate_shifts(rows, LAYERS, replace(settings, clamp=1e9), coordination)
    assert (free.clamped == 0).all()
    assert (coordinate_shifts(rows, LAYERS, replace(settings, steps=1), coordination).clamped == 0).all()


def test_shares_by_transfer_carry_most_for_their_price():
    """At the power 1: Σ τ_l δ_l is stationary at a fixed price Σ δ_l²/e_l, by Lagrange δ_l ∝ τ_l e_l."""
    ease, transfers = 1 + 9 * random(6, 4).abs(), 0.2 + random(6, 4, seed=1).abs()
    weights = CoordinationSettings(weighting="transfer").shares(ease, transfers).requires_grad_()
    carried = (transfers * weights).sum(1) / (weights**2 / ease).sum(1).sqrt()
    (slope,) = torch.autograd.grad(carried.sum(), weights)
    torch.testing.assert_close(slope, torch.zeros_like(slope), rtol=0, atol=1e-12)
    others = CoordinationSettings(weighting="eased").shares(ease)
    assert (carried > (transfers * others).sum(1) / (others**2 / ease).sum(1).sqrt()).all()
    signed = CoordinationSettings(weighting="transfer").shares(ease, -transfers)
    assert signed.isfinite().all()  # nothing carries: by price alone
    with pytest.raises(InputError, match="expected transfers for the weighting"):
        CoordinationSettings(weighting="transfer").shares(ease)


def test_ends_of_the_shares_by_transfer_are_equal_shares_and_forward_replay_to_the_last_bit(rows):
    ease = torch.tensor([[5.0, 4.0, 3.0]], dtype=torch.float64).expand(5, 3)
    conditions = Conditions(transfers=torch.tensor([[0.9, 0.8, 0.95]], dtype=torch.float64).expand(5, 3))

    def shifts(power):
        weighting = CoordinationSettings(weighting="transfer", power=power)
        return coordinate_shifts(rows, LAYERS, SETTINGS, weighting, ease, conditions=conditions)

    assert torch.equal(shifts(0.0).shifts, coordinate_shifts(rows, LAYERS, SETTINGS).shifts)
    all_at_best, anchors = shifts(1e6), optimize_anchors(rows, 1, SETTINGS)
    assert (all_at_best.shifts[:, 1:] == 0).all()
    assert torch.equal(all_at_best.loss, anchors.loss)
    between = shifts(1.0).shifts
    assert not torch.allclose(between, shifts(0.0).shifts)


def test_ease_is_the_least_disturbance_of_a_shift():
    """min tr(ΔW C ΔWᵀ) with ΔW k = δ, by its Lagrange conditions, is ‖δ‖² / (kᵀC⁻¹k)."""
    C = random(6, 9)
    C, keys, delta = C @ C.T, random(2, 6, seed=1), random(3, seed=2)
    for key, ease in zip(keys, eases(keys, torch.linalg.cholesky(C)), strict=True):
        system = torch.zeros(7, 7, dtype=torch.float64)  # of each row w of ΔW: 2 C w + μ k = 0, kᵀ w = δ_i
        system[:6, :6], system[:6, 6], system[6, :6] = 2 * C, key, key
        right = torch.zeros(7, 3, dtype=torch.float64)
        right[6] = delta
        change = torch.linalg.solve(system, right)[:6].T
        torch.testing.assert_close(torch.trace(change @ C @ change.T), delta @ delta / ease)


def test_a_singular_second_moment_says_nothing_of_the_disturbance(tiny, rows):
    keys = random(2, tiny.d_mlp)
    assert Setting(rows, {1: torch.zeros(tiny.d_mlp, tiny.d_mlp, dtype=torch.float64)}, 1.0).ease(1, keys).isnan().all()


def test_a_solve_that_realises_everything_meets_every_target(tiny, rows):
    shifts = coordinate_shifts(rows, LAYERS, SETTINGS).shifts
    anchors = {layer: optimize_anchors(rows, layer, SETTINGS).states for layer in (1, 4)}
    bare = fact_rows(tiny, rows.facts, (("{}",),))
    setting = Setting(bare, {layer: torch.eye(tiny.d_mlp, dtype=torch.float64) for layer in LAYERS}, 1e-9)
    targets, scheme = make_targets(rows, LAYERS, anchors, shifts), SCHEMES["coordinated-replay"]
    with restored(tiny, LAYERS):
        edits = list(observed_edits(setting, scheme, targets))
    for edit in edits:
        torch.testing.assert_close(edit.after, targets.of("coordinated", edit.layer), rtol=1e-5, atol=1e-5)
    measured = measure(edits, targets, scheme)
    assert float(measured["residual_ratio"][:, -1].max()) < 1e-4
    torch.testing.assert_close(measured["carried"].sum(1), torch.ones(len(rows), dtype=torch.float64))
    torch.testing.assert_close(measured["effort"].sum(1), torch.ones(len(rows), dtype=torch.float64))


def test_a_fact_without_shifts_takes_no_part_in_its_own_scheme_alone(rows, tiny):
    shifts = coordinate_shifts(rows, LAYERS, SETTINGS).shifts
    shifts[1] = float("nan")
    anchors = {layer: optimize_anchors(rows, layer, SETTINGS).states for layer in (1, 4)}
    targets = make_targets(rows, LAYERS, anchors, shifts)
    assert targets.finite().all()
    assert targets.finite("coordinated").tolist() == [True, False, True, True, True]
    assert replay_targets(rows, anchors[1], LAYERS).isfinite().all()
