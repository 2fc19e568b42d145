"""Nearest reachable writes: the least-squares problem on a sphere, the norm's derivative, and edits behind a norm."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import exact
from helpers.small import CONTEXTS, ROTARY, make_folder
from scipy.optimize import minimize
from transformers import Olmo2Config

import jacobian_lab as jl
from jacobian_lab.catalogue import SCHEMES, TABLE_SCHEMES
from jacobian_lab.editing.anchors import coordinate_shifts, optimize_anchors
from jacobian_lab.editing.deltas import add_delta, load_delta
from jacobian_lab.editing.descent import largest_scales
from jacobian_lab.editing.layers import Setting, restored
from jacobian_lab.editing.measures import measure, observed_edits
from jacobian_lab.editing.reachable import gains, nearest_on_ellipsoid, reachable_changes
from jacobian_lab.editing.schemes import Targets, make_targets
from jacobian_lab.editing.settings import AnchorSettings
from jacobian_lab.facts.reading import load_facts
from jacobian_lab.maps.hooks import decisive_states
from jacobian_lab.maps.writes import joined, normed_writes, rms, shifted_states
from jacobian_lab.model.loading import load_model
from jacobian_lab.model.rows import fact_rows

BARE = (("{}",),)
LAYERS = (1, 2, 4)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A norm whose ε is nothing beside the smallest write, so that its image is the ellipsoid itself."""
    config = Olmo2Config(**ROTARY, rms_norm_eps=1e-20)
    return exact.load_exact(make_folder(tmp_path_factory.mktemp("olmo2") / "model", config))


def distance(g, x, t):
    return torch.linalg.vector_norm(g * x - t, dim=-1)


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_the_point_on_the_sphere_is_the_best_that_a_general_solver_finds(scale):
    g, targets, radii = 1 + 0.4 * random(6), scale * random(3, 6, seed=1), torch.tensor([1.0, 2.0, 0.5]).double()
    x = nearest_on_ellipsoid(g, targets, radii, random(3, 6, seed=2))
    torch.testing.assert_close(torch.linalg.vector_norm(x, dim=1), radii, rtol=1e-12, atol=0)
    for fact, radius in enumerate(radii.tolist()):
        t = targets[fact].numpy()

        def loss(y, t=t):
            return float(((g.numpy() * y - t) ** 2).sum()) / max(1.0, scale) ** 2

        starts = random(12, 6, seed=3).numpy()
        limits = {"type": "eq", "fun": lambda y, radius=radius: (y**2).sum() - radius**2}
        fits = [minimize(loss, start, method="SLSQP", constraints=[limits], tol=1e-12) for start in starts]
        best = min(fit.fun for fit in fits if fit.success)
        assert loss(x[fact].numpy()) <= best * (1 + 1e-7) + 1e-12


@pytest.mark.parametrize("others", [0.0, 0.2])
def test_the_hard_case_fills_the_missing_length_where_gains_are_least(others):
    """t is zero where g is least, twice, and too short elsewhere; nothing on the sphere is nearer."""
    g, target = torch.tensor([2.0, 1.0, 1.0, 3.0]).double(), torch.tensor([[others, 0.0, 0.0, others]]).double()
    start = torch.tensor([[1.0, 3.0, -4.0, 1.0]]).double()
    x = nearest_on_ellipsoid(g, target, torch.ones(1).double(), start)
    torch.testing.assert_close(torch.linalg.vector_norm(x), torch.tensor(1.0).double())
    torch.testing.assert_close(x[0, 1] / x[0, 2], start[0, 1] / start[0, 2])
    torch.testing.assert_close(x[0, [0, 3]], torch.tensor([2 * others / 3, 3 * others / 8]).double())
    points = torch.nn.functional.normalize(random(20_000, 4), dim=1)
    assert distance(g, x, target) <= distance(g, points, target).min()
    along_first = nearest_on_ellipsoid(g, target, torch.ones(1).double(), torch.zeros(1, 4).double())
    torch.testing.assert_close(distance(g, along_first, target), distance(g, x, target))


def test_a_nearly_hard_case_and_targets_that_are_not_finite():
    g, target = (
        torch.tensor([2.0, 1.0, 3.0]).double(),
        torch.tensor([[0.2, 1e-13, 0.2], [torch.nan, 1.0, 1.0]]).double(),
    )
    x = nearest_on_ellipsoid(g, target, torch.ones(2).double(), torch.ones(2, 3).double())
    torch.testing.assert_close(x[0, [0, 2]], torch.tensor([0.4 / 3, 0.6 / 8]).double())
    assert x[0, 1] > 0.9
    assert x[1].isnan().all()


def test_every_ordinary_target_is_solved_to_rounding():
    """Stationary: g(g x − t) + μ x = 0 with one μ above −min g², over many scales."""
    g = 1 + 0.9 * torch.tensor(np.random.default_rng(0).uniform(-1, 1, 40))
    targets = random(60, 40) * torch.logspace(-3, 3, 60).double()[:, None]
    x = nearest_on_ellipsoid(g, targets, torch.full((60,), 40**0.5).double(), random(60, 40))
    pull = g * (targets - g * x)
    multipliers = (pull * x).sum(1) / (x**2).sum(1)
    assert (multipliers > -(g.square().min()) * (1 + 1e-9)).all()
    error = torch.linalg.vector_norm(pull - multipliers[:, None] * x, dim=1) / torch.linalg.vector_norm(
        g * targets, dim=1
    )
    assert error.max() < 1e-9


def test_the_norm_is_read_from_its_module_and_has_the_derivative_of_the_formula(model, facts):
    """∂N/∂u = diag(g)/rms · (I − u uᵀ/(d rms²)), against central differences."""
    g, u = gains(model, 2), random(model.d_model, seed=4)
    torch.testing.assert_close(g, model.output_norm(2).weight.double(), rtol=1e-12, atol=0)
    d, size = len(u), rms(u)
    formula = torch.diag(g) @ (torch.eye(d).double() - torch.outer(u, u) / (d * size**2)) / size
    step = 1e-5 * torch.eye(d).double()
    differences = (joined(model, 2, u + step) - joined(model, 2, u - step)).T / 2e-5
    torch.testing.assert_close(differences, formula, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(formula @ u, torch.zeros_like(u), rtol=0, atol=1e-12)


def test_a_state_that_a_shift_gives_is_reached_exactly_whatever_its_scale(model, facts):
    rows = fact_rows(model, facts, BARE)
    writes = normed_writes(model, rows.bare, [2])[:, 0]
    shifts = 0.7 * rms(writes)[:, None] * random(*writes.shape)
    residuals = joined(model, 2, writes + shifts) - joined(model, 2, writes)
    changes, out = reachable_changes(model, 2, writes, residuals)
    assert out.max() < 1e-12
    torch.testing.assert_close(joined(model, 2, writes + changes), joined(model, 2, writes + shifts))
    assert (torch.linalg.vector_norm(changes, dim=1) <= torch.linalg.vector_norm(shifts, dim=1) * (1 + 1e-9)).all()


def test_nothing_is_out_of_reach_without_a_norm(tiny):
    residuals = random(3, tiny.d_model)
    changes, out = reachable_changes(tiny, 2, None, residuals)
    assert torch.equal(changes, residuals)
    assert not out.any()


@pytest.mark.parametrize("facts_at_once", [1, 3])
def test_an_anchor_is_realised_to_rounding_as_lambda_goes_to_zero(facts_at_once, model, facts):
    """One context, so that the averaged key is the bare prompt's; untouched transformers tells the state."""
    rows = fact_rows(model, facts[:facts_at_once], BARE)
    anchors = optimize_anchors(rows, 2, AnchorSettings(lr=0.1, steps=6)).states
    C = torch.eye(model.d_mlp, dtype=torch.float64)
    targets = Targets((2,), {2: anchors}, {2: anchors})
    with restored(model, (2,)):
        (edit,) = observed_edits(Setting(rows, {2: C}, 1e-10), SCHEMES["one-layer"], targets)
        states = decisive_states(model, rows.bare, [2])[:, 0]
    assert edit.out_of_reach.max() < 1e-12
    moved = torch.linalg.vector_norm(anchors - edit.before, dim=1)
    assert (torch.linalg.vector_norm(states - anchors, dim=1) < 1e-7 * moved).all()
    values = measure([edit], targets, SCHEMES["one-layer"])
    assert values["unrealised"].max() < 1e-7
    write = normed_writes(model, rows.bare, [2])[:, 0]
    changed = write + rms(write)[:, None] * edit.write_shift
    price = ((changed - write) ** 2).sum(1) / rms(write) ** 2 / (edit.keys**2).sum(1)
    torch.testing.assert_close(values["price"][:, 0], price)


@pytest.mark.parametrize("family", ["gemma3_text", "glm4"])
def test_an_anchor_is_realised_in_other_families(family, load_exact, facts):
    """Gains of one more than a weight, another name of the norm; their ε is of the order of a thousandth of u²."""
    exact_model = load_exact(family)
    rows = fact_rows(exact_model, facts[:1], BARE)
    assert_realised(exact_model, rows, AnchorSettings(lr=0.1, steps=4), 1e-3)


@pytest.mark.real
@pytest.mark.slow
def test_an_anchor_of_the_real_gemma_is_realised():
    path = Path(os.environ.get("JACOBIAN_LAB_REAL_MODELS", "")) / "gemma-3-270m-q4_k_m.gguf"
    if not path.is_file():
        pytest.skip(f"no {path.name}: set JACOBIAN_LAB_REAL_MODELS to the folder that holds it")
    gemma = load_model(path, device="cpu")
    rows = fact_rows(gemma, load_facts("builtin", "0:1"), BARE)
    assert_realised(gemma, rows, replace(AnchorSettings.of(gemma), steps=8), 1e-3, layer=3)


def assert_realised(of_model, rows, settings, tolerance, layer=2):
    """A single edit at λ → 0 gives each fact the state that its descent has seen."""
    anchors = optimize_anchors(rows, layer, settings).states
    C = torch.eye(of_model.d_mlp, dtype=torch.float64)
    targets = Targets((layer,), {layer: anchors}, {layer: anchors})
    with restored(of_model, (layer,)):
        (edit,) = observed_edits(Setting(rows, {layer: C}, 1e-10), SCHEMES["one-layer"], targets)
    values = measure([edit], targets, SCHEMES["one-layer"])
    assert edit.out_of_reach.max() < tolerance
    assert values["unrealised"].max() < tolerance
    assert values["shift_norm"].min() > 0.01 * torch.linalg.vector_norm(edit.before, dim=1).min()


def test_the_naive_edit_asks_u_for_a_change_of_the_stream(model, facts):
    """A family without its norm: the same anchors, and residuals that the norm swallows."""
    naive = replace(model, family=replace(model.family, output_norm=""))
    rows = fact_rows(model, facts[:2], BARE)
    anchors = optimize_anchors(rows, 2, AnchorSettings(lr=0.1, steps=6)).states
    targets, C = Targets((2,), {2: anchors}, {2: anchors}), torch.eye(model.d_mlp, dtype=torch.float64)
    left = {}
    for way in (model, naive):
        with restored(way, (2,)):
            setting = Setting(replace(rows, model=way), {2: C}, 1e-10)
            edits = list(observed_edits(setting, SCHEMES["one-layer"], targets))
        left[way.family.output_norm] = measure(edits, targets, SCHEMES["one-layer"])["unrealised"]
    assert left["post_feedforward_layernorm"].max() < 1e-7
    assert left[""].min() > 0.1


def test_all_schemes_edit_and_only_what_is_asked_of_the_stream_is_out_of_reach(model, facts):
    rows, settings = fact_rows(model, facts[:3], CONTEXTS), AnchorSettings(lr=0.1, steps=4)
    anchors = {layer: optimize_anchors(rows, layer, settings).states for layer in (1, 4)}
    shifts = coordinate_shifts(rows, LAYERS, settings).shifts
    targets = make_targets(rows, LAYERS, anchors, shifts)
    torch.testing.assert_close(targets.coordinated[1], shifted_states(model, rows.bare, 1, shifts[:, 0]))
    setting = Setting(rows, {layer: torch.eye(model.d_mlp, dtype=torch.float64) for layer in LAYERS}, 1e-6)
    first_is_a_shift = {"one-layer", "independent", "forward-replay", "coordinated-replay", "first-layer"}
    for name in (*TABLE_SCHEMES, "first-layer", "forward-replay-divided"):
        scheme = SCHEMES[name]
        with restored(model, LAYERS):
            edits = list(observed_edits(setting, scheme, targets))
        values = measure(edits, targets, scheme)
        assert (values["out_of_reach"] >= 0).all()
        assert (values["out_of_reach"][:, 0].max() < 1e-10) == (name in first_is_a_shift), name


@pytest.mark.parametrize("budget", [0.05, 0.3, 5.0])
def test_the_clamp_spends_its_limit_and_no_more(budget):
    def spent(scales):
        return 1 - torch.exp(-3 * scales * torch.tensor([1.0, 2.0]).double())

    limit = torch.tensor(budget).double()
    scales = largest_scales(spent, limit, torch.ones(2).double())
    torch.testing.assert_close(spent(scales), torch.minimum(limit, spent(torch.ones(2).double())), rtol=1e-4, atol=0)
    assert (spent(scales) <= limit * (1 + 1e-5)).all()


def test_the_clamp_is_one_division_where_the_stream_moves_by_the_shift():
    sizes, limit = torch.tensor([0.3, 1.0, 7.0]), torch.tensor(0.75)
    scales = largest_scales(lambda scales: scales * sizes, limit, torch.ones(3))
    assert torch.equal(scales, torch.where(sizes > limit, limit / sizes, 1.0))


def test_the_clamp_of_an_anchor_is_in_units_of_the_stream(model, facts):
    rows = fact_rows(model, facts, CONTEXTS)
    start = decisive_states(model, rows.bare, [2])[:, 0]
    anchors = optimize_anchors(rows, 2, AnchorSettings(lr=1.0, steps=8, clamp=0.1, stop_loss=0.0)).states
    share = torch.linalg.vector_norm(anchors - start, dim=1) / torch.linalg.vector_norm(start, dim=1)
    assert (share <= 0.1 * (1 + 1e-5)).all()
    assert share.max() > 0.0999


def test_a_descent_in_float32_of_a_model_in_bfloat16(folders, facts):
    """N is taken in float32, so that small shifts are not lost in the model's own rounding."""
    loaded = load_model(folders["olmo2"], dtype="bfloat16", device="cpu")
    rows = fact_rows(loaded, facts[:2], CONTEXTS)
    anchors = optimize_anchors(rows, 2, AnchorSettings(lr=1e-3, steps=2)).states
    assert anchors.dtype == torch.float32
    start = decisive_states(loaded, rows.bare, [2])[:, 0].float()
    moved = torch.linalg.vector_norm(anchors - start, dim=1) / torch.linalg.vector_norm(start, dim=1)
    assert (moved > 0).all()
    assert (moved < 0.01).all()


def test_the_editor_saves_an_edit_that_the_model_takes_again(folders, facts, corpus_file, tmp_path):
    loaded = load_model(folders["olmo2"], dtype="float64", device="cpu")
    settings = {"layers": (1, 2, 3), "templates": CONTEXTS, "corpus": str(corpus_file), "ridge": 1.0}
    editor = jl.Editor(loaded, facts[:2], anchor=AnchorSettings(lr=0.1, steps=3), progress=False, **settings)
    before = decisive_states(loaded, editor.rows.bare, [3])
    with editor.edit("memit+fe") as edit:
        edit.save(tmp_path / "delta.safetensors")
        edited = decisive_states(loaded, editor.rows.bare, [3])
    assert torch.linalg.vector_norm(edited - before) > 0.01 * torch.linalg.vector_norm(before)
    with restored(loaded, (1, 2, 3)):
        add_delta(loaded, load_delta(tmp_path / "delta.safetensors", loaded))
        torch.testing.assert_close(decisive_states(loaded, editor.rows.bare, [3]), edited)
