"""The engine by itself: descents in batches, kept by a recorder; and an editor that is one."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from helpers.small import CONTEXTS

import jacobian_lab as jl
from jacobian_lab.catalogue import CONTROLS
from jacobian_lab.editing.anchors import coordinate_shifts, optimize_anchors
from jacobian_lab.editing.delivery import delivered_shares
from jacobian_lab.editing.descent import Conditions
from jacobian_lab.editing.schemes import make_targets
from jacobian_lab.editing.settings import AnchorSettings, CoordinationSettings, ReplaySettings
from jacobian_lab.model.rows import fact_rows
from jacobian_lab.model.templates import sample_templates
from jacobian_lab.session import descents
from jacobian_lab.session.descents import ANCHOR, InMemory
from jacobian_lab.session.session import Session

SETTINGS = AnchorSettings(lr=0.1, steps=4)


def unit_moments(model, layers):
    return {layer: torch.eye(model.d_mlp, dtype=torch.float64) for layer in layers}


@pytest.fixture(scope="module")
def session(tiny, facts):
    layers = (1, 2, 3)
    take = partial(unit_moments, tiny, layers)
    rows = fact_rows(tiny, facts, CONTEXTS)
    return Session(rows, layers, SETTINGS, take, fixed_ridge=10.0, batch_size=2, progress=False)


@pytest.fixture
def sizes(monkeypatch):
    """Sizes of the batches in which anchors are optimized."""
    counted, original = [], descents.optimize_anchors

    def counting(rows, *rest):
        counted.append(len(rows))
        return original(rows, *rest)

    monkeypatch.setattr(descents, "optimize_anchors", counting)
    return counted


def test_anchors_in_batches_are_those_of_all_facts_at_once(session, sizes):
    states = session.anchors(InMemory(), (1,))[1]
    assert max(sizes) == 2
    assert sum(sizes) == len(session.rows)
    torch.testing.assert_close(states, optimize_anchors(session.rows, 1, SETTINGS).states, rtol=1e-9, atol=1e-11)


def test_what_is_recorded_is_not_optimized_again(session, sizes):
    recorder = InMemory()
    session.anchors(recorder, (1,), facts=[0, 3])
    assert recorder.missing(ANCHOR, {"anchor_layer": 1}, range(5)) == [1, 2, 4]
    before = sum(sizes)
    first = session.anchors(recorder, (1,))[1]
    assert sum(sizes) > before
    before = len(sizes)
    assert torch.equal(session.anchors(recorder, (1,))[1], first)
    assert len(sizes) == before
    session.anchors(recorder, (3,))
    assert len(sizes) > before  # another layer's are others


def test_targets_are_those_of_the_functions(session):
    targets = session.targets(InMemory(), ("forward-replay", "coordinated-replay"))
    rows, layers = session.rows, session.layers
    anchors = {layer: optimize_anchors(rows, layer, SETTINGS).states for layer in (1, 3)}
    expected = make_targets(rows, layers, anchors, coordinate_shifts(rows, layers, SETTINGS).shifts)
    for kind, at in (("optimised", (1, 3)), ("replayed", layers), ("coordinated", layers)):
        for layer in at:
            torch.testing.assert_close(targets.of(kind, layer), expected.of(kind, layer), rtol=1e-9, atol=1e-10)
    assert not session.targets(InMemory(), ("forward-replay",)).coordinated


def test_an_edit_is_undone_and_may_have_another_setting(session):
    recorder, model = InMemory(), session.model
    targets = session.targets(recorder, ())
    before = {layer: model.weight(layer).clone() for layer in session.layers}
    with session.edited("memit+fe", targets) as edit:
        assert set(edit.deltas) == set(session.layers)
        assert any(not torch.equal(model.weight(layer), before[layer]) for layer in session.layers)
    assert all(torch.equal(model.weight(layer), before[layer]) for layer in session.layers)
    stronger = replace(session.setting, ridge=1.0)
    with session.edited("memit+fe", targets, setting=stronger) as other:
        assert all(other.values["update_norm"][i] > edit.values["update_norm"][i] for i in range(3))


@pytest.mark.parametrize("size", [2, None])
def test_an_editor_takes_facts_in_batches_and_halves_what_does_not_fit(size, tiny, facts, monkeypatch, capsys):
    """With 16 facts a batch by default, as jobs do it; the numbers are the same."""
    given = {"layers": (1, 2, 3), "ridge": 10.0, "anchor": SETTINGS, "templates": CONTEXTS, "progress": False}
    whole, counted, original = jl.Editor(tiny, facts, **given).anchors(1), [], descents.optimize_anchors

    def cramped(rows, *rest):
        counted.append(len(rows))
        if len(rows) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(rows, *rest)

    monkeypatch.setattr(descents, "optimize_anchors", cramped)
    parts = jl.Editor(tiny, facts, **given, batch_size=size).anchors(1)
    assert counted[0] == 2  # tails of about one length go together
    assert counted[-1] == 1
    assert "facts side by side: going on with" in capsys.readouterr().err
    torch.testing.assert_close(parts, whole, rtol=1e-9, atol=1e-11)


def test_shifts_end_where_the_facts_own_anchors_did(tiny, facts):
    """Limits are the anchors' losses at the first layer, by fact; anchors from elsewhere have none."""
    layers, rows = (1, 2, 3), fact_rows(tiny, facts, CONTEXTS)
    ends = CoordinationSettings(end="anchor")
    settings = AnchorSettings(lr=0.4, steps=8)
    own = Session(rows, layers, settings, partial(unit_moments, tiny, layers), ends, fixed_ridge=10.0, progress=False)
    anchors = optimize_anchors(rows, 1, settings)
    expected = coordinate_shifts(rows, layers, settings, ends, conditions=Conditions(limits=anchors.loss))
    recorder = InMemory()
    torch.testing.assert_close(own.shifts(recorder), expected.shifts, rtol=1e-9, atol=1e-11)
    assert not torch.allclose(expected.shifts, coordinate_shifts(rows, layers, settings).shifts)
    torch.testing.assert_close(recorder.get("anchor_loss", {"anchor_layer": 1}, range(5)), anchors.loss)
    donated = jl.Editor(tiny, facts, layers=layers, anchors={1: anchors.states, 3: anchors.states}, **editing(settings))
    usual = coordinate_shifts(donated.rows, layers, settings).shifts
    torch.testing.assert_close(donated.session.shifts(donated._recorder), usual, rtol=1e-9, atol=1e-11)


def editing(settings):
    ends = CoordinationSettings(end="anchor")
    return {"anchor": settings, "coordination": ends, "templates": CONTEXTS, "ridge": 10.0, "progress": False}


def test_shares_by_transfer_are_measured_at_contexts_of_the_next_seed(tiny, facts):
    layers, rows = (1, 2, 3), fact_rows(tiny, facts, CONTEXTS)
    settings = CoordinationSettings(weighting="transfer", power=2.0)
    take = partial(unit_moments, tiny, layers)
    own = Session(rows, layers, SETTINGS, take, settings, fixed_ridge=10.0, seed=4, progress=False)
    others = fact_rows(tiny, facts, (sample_templates(tiny, 5)[1],))
    transfers = own.setting.transfers(layers, others)
    assert ((transfers > 0) & (transfers < 1.5)).all()
    torch.testing.assert_close(own.transfers(layers), transfers)
    conditions, eases = Conditions(transfers=transfers), own.setting.eases(layers)
    expected = coordinate_shifts(rows, layers, SETTINGS, settings, eases, conditions=conditions).shifts
    torch.testing.assert_close(own.shifts(InMemory()), expected, rtol=1e-9, atol=1e-11)


def test_every_descent_asks_for_what_is_measured(tiny, facts):
    """Random shares begin at each layer's own transfer, for anchors of any kind and for shifts."""
    layers, rows, recorder = (1, 2, 3), fact_rows(tiny, facts, CONTEXTS), InMemory()
    settings, take = replace(SETTINGS, delivered="random"), partial(unit_moments, tiny, layers)
    restarts = ReplaySettings(starts=1, size=0.0, joint=0.0)
    own = Session(rows, layers, settings, take, replay=restarts, fixed_ridge=10.0, seed=4, progress=False)
    transfers = own.transfers(layers)

    def asking(places):
        shares = delivered_shares(rows, len(places), settings, 4, transfers[:, list(places)])
        return Conditions(delivered=shares)

    targets = own.targets(recorder, ("coordinated-replay", "independent-everywhere", *CONTROLS[3:]))
    for place, layer in enumerate(layers):
        states = optimize_anchors(rows, layer, settings, None, asking([place])).states
        torch.testing.assert_close(targets.of("separate", layer), states, rtol=1e-9, atol=1e-11)
        assert not torch.allclose(states, optimize_anchors(rows, layer, SETTINGS).states)
    for kind in ("restarted", "joint"):
        torch.testing.assert_close(targets.of(kind, 1), targets.of("separate", 1))
    shifts = coordinate_shifts(rows, layers, settings, conditions=asking([0, 1, 2])).shifts
    torch.testing.assert_close(own.shifts(recorder), shifts, rtol=1e-9, atol=1e-11)
