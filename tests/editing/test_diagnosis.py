"""Quantities before an edit, against dense matrices, the untouched model's Jacobian, and edits that are made."""

import numpy as np
import pytest
import torch
from helpers.reference import Plain, prompt
from helpers.small import CONTEXTS

from jacobian_lab.catalogue import SCHEMES
from jacobian_lab.editing import diagnosis
from jacobian_lab.editing.anchors import coordinate_shifts, optimize_anchors
from jacobian_lab.editing.diagnosis import diagnosed_layers, nearest_keys, solved_shares
from jacobian_lab.editing.layers import Setting, averaged_keys, restored
from jacobian_lab.editing.measures import measure, observed_edits
from jacobian_lab.editing.schemes import make_targets
from jacobian_lab.editing.settings import AnchorSettings
from jacobian_lab.errors import InputError
from jacobian_lab.model.rows import fact_rows

LAYERS, RIDGE = (1, 3, 4), 3.0
SETTINGS = AnchorSettings(lr=0.1, steps=3)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moment(width, seed):
    root = random(width, 2 * width, seed=seed)
    return root @ root.T


def prepared(model, facts):
    """A setting, and targets of forward and of coordinated replay."""
    rows = fact_rows(model, facts, CONTEXTS)
    anchors = {layer: optimize_anchors(rows, layer, SETTINGS).states for layer in (LAYERS[0], LAYERS[-1])}
    shifts = coordinate_shifts(rows, LAYERS, SETTINGS).shifts
    moments = {layer: moment(model.d_mlp, layer) for layer in LAYERS}
    return Setting(rows, moments, RIDGE), make_targets(rows, LAYERS, anchors, shifts)


@pytest.fixture(scope="module", params=["llama", "olmo2"])
def edit(request, load_exact, facts):
    return prepared(load_exact(request.param), facts[:4])


@pytest.mark.parametrize("at_once", [1024, 2])
def test_the_nearest_keys_are_those_of_the_whole_matrix_of_cosines(monkeypatch, at_once):
    monkeypatch.setattr(diagnosis, "KEYS_AT_ONCE", at_once)
    keys = random(5, 7)
    whole = np.array([
        [np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b) for b in keys.numpy()] for a in keys.numpy()
    ])
    np.fill_diagonal(whole, -np.inf)
    order = np.argsort(-whole, axis=1)[:, :3]
    near = nearest_keys(keys)
    assert near.facts.tolist() == order.tolist()
    np.testing.assert_allclose(near.cosines, np.take_along_axis(whole, order, 1))
    np.testing.assert_allclose(near.largest, whole.max(1))
    assert nearest_keys(keys[:2]).facts.tolist() == [[1], [0]]
    assert nearest_keys(keys[:1]).largest.isnan().all()


def test_shares_of_a_joint_solve_are_those_of_the_dense_matrix():
    keys, second_moment = random(4, 7), moment(7, 1)
    factor = torch.linalg.cholesky(second_moment)
    expected = keys @ torch.linalg.inv(RIDGE * second_moment + keys.T @ keys) @ keys.T
    torch.testing.assert_close(solved_shares(torch.linalg.solve(factor, keys.T).T, RIDGE), expected)
    with pytest.raises(InputError, match="positive definite λI"):
        solved_shares(keys[[0, 0]], 0.0)


@pytest.mark.parametrize("scheme", ["forward-replay", "backward-dividing", "coordinated-replay", "independent"])
def test_quantities_of_keys_and_of_j_are_those_of_plain_matrices(edit, scheme):
    setting, targets = edit
    model, rows, scheme = setting.model, setting.rows, SCHEMES[scheme]
    plain, edited = Plain.of(model), scheme.edited(LAYERS)
    layers = list(diagnosed_layers(setting, scheme, targets))
    assert [own.layer for own in layers] == list(edited)
    for index, own in enumerate(layers):
        inverse = torch.linalg.inv(setting.moments[own.layer])
        keys = torch.cat([averaged_keys(rows.select([fact]), own.layer) for fact in range(len(rows))])
        gram, products = keys @ keys.T, keys @ inverse @ keys.T
        for name, matrix in (("key_cosine", gram), ("key_cosine_whitened", products)):
            cosines = matrix / torch.outer(matrix.diagonal(), matrix.diagonal()).sqrt()
            torch.testing.assert_close(own.values[name], cosines.fill_diagonal_(-1).max(1).values)
        ease = products.diagonal()
        torch.testing.assert_close(own.values["ease"], ease)
        for fact, key in enumerate(keys):
            alone = key @ torch.linalg.inv(RIDGE * setting.moments[own.layer] + torch.outer(key, key)) @ key
            torch.testing.assert_close(own.values["alone"][fact], alone)
            ids, place = prompt(model.tokenizer, rows.facts[fact])
            with torch.no_grad():
                states = plain.seen(ids, place, LAYERS)
            site = scheme.read(edited, index)
            delta = (targets.of(scheme.kind, site)[fact] - states[site]) / scheme.divisor(index, len(edited))
            left = targets.of(scheme.kind, LAYERS[-1])[fact] - states[LAYERS[-1]]
            J = torch.eye(model.d_model).double()
            if own.layer < LAYERS[-1]:
                J = plain.jacobian(rows.facts[fact], own.layer, LAYERS[-1]).detach()
            S = torch.linalg.eigvalsh((J + J.T) / 2)
            torch.testing.assert_close(own.values["rayleigh"][fact], delta @ J @ delta / (delta @ delta))
            assert S[0] - 1e-9 <= own.values["rayleigh"][fact] <= S[-1] + 1e-9
            angle = torch.cosine_similarity(J @ delta, left, dim=0)
            torch.testing.assert_close(own.values["residual_cosine"][fact], angle, rtol=1e-5, atol=1e-7)


def test_shares_are_those_of_edits_that_are_made(edit):
    """At the first layer, edited together and each fact alone: the writes' changes over those that are asked for."""
    setting, targets = edit
    scheme, layer = SCHEMES["forward-replay"], LAYERS[0]
    own = next(diagnosed_layers(setting, scheme, targets)).values

    def first(setting, targets):
        with restored(setting.model, LAYERS):
            edits = list(observed_edits(setting, scheme, targets))
        return edits[0], measure(edits, targets, scheme)

    joint, measured = first(setting, targets)
    changes = joint.keys @ joint.update.delta.T
    aims = joint.solved_residual.T
    torch.testing.assert_close(own["realised"], (changes * aims).sum(1) / (aims**2).sum(1))
    torch.testing.assert_close(own["out_of_reach"], measured["out_of_reach"][:, 0])
    assert (own["out_of_reach"] > 0).all() == bool(setting.model.family.output_norm)
    matrix = RIDGE * setting.moments[layer] + joint.keys.T @ joint.keys
    hat = joint.keys @ torch.linalg.inv(matrix) @ joint.keys.T
    torch.testing.assert_close(own["together"], hat.diagonal())
    others = (hat - torch.diag(hat.diagonal())) @ aims
    torch.testing.assert_close(own["crosstalk"], others.norm(dim=1) / aims.norm(dim=1))
    for fact in range(len(setting.rows)):
        single, _ = first(setting.select([fact]), targets.select([fact]))
        (change,), (aim,) = single.keys @ single.update.delta.T, single.solved_residual.T
        torch.testing.assert_close(own["alone"][fact], change @ aim / (aim @ aim))


def test_a_fact_without_a_finite_target_takes_no_part(edit):
    setting, targets = edit
    states = {layer: values.clone() for layer, values in targets.replayed.items()}
    for values in states.values():
        values[1] = torch.nan
    lacking = make_targets(setting.rows, LAYERS, {n: states.get(n, s) for n, s in targets.optimised.items()})
    scheme, rest = SCHEMES["forward-replay"], [0, 2, 3]
    whole = list(diagnosed_layers(setting, scheme, lacking))
    part = list(diagnosed_layers(setting.select(rest), scheme, targets.select(rest)))
    for every, usable in zip(whole, part, strict=True):
        for name in ("together", "realised", "crosstalk", "out_of_reach", "residual_cosine", "rayleigh", "alone"):
            torch.testing.assert_close(every.values[name][rest], usable.values[name])
        assert every.values["realised"][1].isnan()
        assert every.values["ease"].isfinite().all()
