"""One fact's Jacobian as an object, against reverse mode through the untouched model and the forms it is made of."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.linalg
import torch
from helpers.exact import load_exact
from helpers.matrices import random
from helpers.reference import Plain

from jacobian_lab.errors import InputError
from jacobian_lab.maps import jacobians, operator
from jacobian_lab.maps.conditions import eigenspaces
from jacobian_lab.maps.definiteness import definiteness
from jacobian_lab.maps.jacobians import dense_jacobians
from jacobian_lab.maps.operator import Jacobian
from jacobian_lab.maps.replay import freeze
from jacobian_lab.maps.spectra import numerical_range
from jacobian_lab.model.loading import load_model

CLOSE = {"rtol": 1e-10, "atol": 1e-11}
FLOAT32 = float(np.finfo(np.float32).eps)


@pytest.fixture(name="J")
def jacobian(tiny, facts):
    return Jacobian(tiny, facts[1], 1, 4)


def test_the_matrix_is_that_of_the_untouched_model(family_model, facts):
    plain = Plain(family_model.hf, family_model.tokenizer, family_model.blocks)
    J = Jacobian(family_model, facts[1], 1, 4)
    np.testing.assert_allclose(J.dense(), plain.jacobian(facts[1], 1, 4), **CLOSE)
    assert (J.shape, J.dtype) == (J.dense().shape, J.dense().dtype)


@pytest.mark.parametrize("site", ["residual", "mlp"])
@pytest.mark.parametrize("shape", [(32,), (32, 1), (32, 5)])
def test_products_are_those_of_the_matrix_in_the_kind_they_came(site, shape, family_model, facts):
    J, v = Jacobian(family_model, facts[2], 1, 4, site=site), random(*shape)
    for mine, matrix in ((J, J.dense()), (J.T, J.dense().T), (J.T.T, J.dense())):
        np.testing.assert_allclose(mine.dense(), matrix, rtol=0, atol=0)
        product, tensor = mine @ v, mine @ torch.from_numpy(v)
        assert isinstance(product, np.ndarray)
        assert isinstance(tensor, torch.Tensor)
        for result in (product, tensor.numpy(), mine.to_scipy() @ v):
            np.testing.assert_allclose(result, matrix @ v, **CLOSE)


def test_columns_are_taken_in_chunks(J, monkeypatch):
    monkeypatch.setattr(jacobians, "COLUMNS", 2)
    np.testing.assert_allclose(J @ np.eye(32), J.dense(), **CLOSE)
    np.testing.assert_allclose(J.T @ np.eye(32), J.dense().T, **CLOSE)


KINDS = {
    "none": lambda unit: unit[:, :0],
    "Fortran order": np.asfortranarray,
    "integers": lambda unit: unit.astype(int),
    "long doubles": lambda unit: unit.astype(np.longdouble),
    "another byte order": lambda unit: unit.astype(">f4"),
    "backwards": lambda unit: unit[:, ::-1],
    "one backwards": lambda unit: unit[3, ::-1],
    "with gaps": lambda unit: unit[:, ::7],
    "a tensor with gaps": lambda unit: torch.from_numpy(unit).float()[:, ::7],
    "a tensor of integers": lambda unit: torch.from_numpy(unit.astype(int)),
    "no columns of a tensor": lambda unit: torch.from_numpy(unit)[:, :0],
}


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_vectors_of_any_type_and_layout(kind, dtype, folders, facts, monkeypatch):
    """Across a block of columns, too."""
    monkeypatch.setattr(jacobians, "COLUMNS", 20)
    llama = folders["llama"]
    model = load_exact(llama) if dtype == "float64" else load_model(llama, dtype=dtype, device="cpu")
    J = Jacobian(model, facts[1], 1, 4)
    vectors, tolerance = KINDS[kind](np.eye(32)), 10 * float(torch.finfo(J.model.dtype).eps) * np.abs(J.dense()).max()
    products = [(J @ vectors, J.dense()), (J.T @ vectors, J.dense().T)]
    if isinstance(vectors, np.ndarray):
        products += [(J.to_scipy() @ vectors, J.dense()), (J.T.to_scipy() @ vectors, J.dense().T)]
    for product, matrix in products:
        assert product.shape == vectors.shape
        expected = matrix @ np.asarray(vectors, float)
        np.testing.assert_allclose(torch.as_tensor(product).double(), expected, rtol=0, atol=tolerance)


def test_what_is_not_real_is_refused(J):
    for vectors in (np.eye(32) * 1j, np.eye(32).astype(object), torch.eye(32) * 1j):
        for mine in (J, J.T):
            with pytest.raises(InputError, match="expected real numbers, got"):
                mine @ vectors


def noisy(_module, _inputs, output):
    return output + 1e-3 * torch.randn_like(output)


@pytest.mark.parametrize("site", ["residual", "mlp"])
@pytest.mark.parametrize("layer", [0, 2, 4])
def test_a_model_that_answers_differently_is_refused(layer, site, tiny, facts):
    """Noise below l, between and at L."""
    handle = tiny.mlp(layer).register_forward_hook(noisy)
    try:
        with pytest.raises(
            InputError, match=r"expected the same states of .* difference of .*: take away what is rand"
        ):
            Jacobian(tiny, facts[1], 1, 4, site=site)
    finally:
        handle.remove()
    Jacobian(tiny, facts[1], 1, 4, site=site)


def test_dropout_is_refused_in_training_mode(folders, facts):
    model = load_model(folders["gpt2"], device="cpu")
    model.hf.train()
    with pytest.raises(InputError, match=r"when it is asked twice, got .*: call model.hf.eval\(\)"):
        Jacobian(model, facts[1], 1, 4)
    model.hf.eval()
    Jacobian(model, facts[1], 1, 4)


def test_at_another_state(tiny, facts, J):
    state = J.state + torch.from_numpy(random(32))
    frozen = freeze(tiny, [tiny.fact_prompt(facts[1]).cut()], [1], 4)
    expected = dense_jacobians(frozen, [1], 4, state[None])[0, 0].numpy()
    assert np.linalg.norm(expected - J.dense()) > 0.01 * np.linalg.norm(expected)
    for value in (state, state.numpy()):
        there, v = Jacobian(tiny, facts[1], 1, 4, state=value), random(32, seed=1)
        by_factors = np.linalg.multi_dot([*there.factors()[::-1], v])
        for result in (there @ v, there.dense() @ v, there.to_scipy() @ v, by_factors):
            np.testing.assert_allclose(result, expected @ v, **CLOSE)
        np.testing.assert_allclose(there.T @ v, expected.T @ v, **CLOSE)


def test_factors_are_the_blocks_between(J):
    assert len(J.factors()) == 3
    np.testing.assert_allclose(np.linalg.multi_dot(J.factors()[::-1]), J.dense(), **CLOSE)


def test_shares_of_what_the_matrix_does(J):
    """Its symmetric part against its antisymmetric one, and its departure from normality by its Schur form."""
    matrix = J.dense()
    S, A = (matrix + matrix.T) / 2, (matrix - matrix.T) / 2
    assert J.positive_share() == (np.linalg.eigvalsh(S) > 0).mean()
    assert J.rotation() == pytest.approx(np.linalg.norm(A) / np.linalg.norm(S), rel=1e-12)
    upper = scipy.linalg.schur(matrix, output="complex")[0]
    assert J.henrici() == pytest.approx(np.linalg.norm(np.triu(upper, 1)) / np.linalg.norm(upper), rel=1e-9)


def test_spectra_are_those_of_the_matrix(J):
    np.testing.assert_array_equal(J.numerical_range(8), numerical_range(J.dense(), 8))
    np.testing.assert_array_equal(J.eigenspaces().values, eigenspaces(J.dense()).values)


def test_the_verdict_needs_no_matrix_where_it_is_wide(J, tiny, facts, monkeypatch):
    dense = J.definiteness()
    assert dense.error == definiteness(J.dense(), FLOAT32).error  # as exact as transformers' norms are
    np.testing.assert_array_equal(dense.eigenvalues, definiteness(J.dense()).eigenvalues)
    monkeypatch.setattr(operator, "WIDEST_DENSE", 31)
    monkeypatch.setattr(operator, "dense_jacobians", None)
    verdict = Jacobian(tiny, facts[1], 1, 4).definiteness()
    assert verdict.decision == dense.decision == "indefinite"
    np.testing.assert_allclose([verdict.smallest, verdict.largest], [dense.smallest, dense.largest], rtol=1e-4)


def test_matrix_and_verdict_are_computed_once(J, monkeypatch):
    matrix, verdict = J.dense(), J.definiteness()
    monkeypatch.setattr(operator, "dense_jacobians", None)
    assert J.dense() is matrix
    assert J.definiteness() is verdict
    with pytest.raises(ValueError, match="read-only"):
        matrix[0, 0] = 1


def test_it_says_what_it_is_and_computes_nothing_for_it(tiny, facts, monkeypatch):
    J = Jacobian(tiny, replace(facts[1], id="a<b", prompt="{} & <i>"), 1, 4, site="mlp")
    with monkeypatch.context() as patched:
        for name in ("dense_jacobians", "linear_operator", "jvp", "vjp"):
            patched.setattr(operator, name, None)
        line, page = repr(J), J._repr_html_()
    assert line == "Jacobian(fact a<b, layers 1 → 4, mlp, 32 × 32, float64)"
    assert repr(J.T) == line + ".T"
    for part in ("a&lt;b: the Eiffel Tower &amp; &lt;i&gt;", "1 → 4", "mlp", "32 × 32", "float64", "definiteness()"):
        assert part in page
    verdict = J.definiteness()
    assert repr(J) == line[:-1] + f", {verdict.decision})"
    for part in (verdict.decision, f"{verdict.smallest:.3g}", f"{verdict.largest:.3g}"):
        assert part in J._repr_html_()


@pytest.mark.parametrize(("layer", "last"), [(4, 4), (4, 1), (-1, 4), (1, 6)])
def test_layers_are_two_of_the_model_in_order(layer, last, tiny, facts):
    with pytest.raises(InputError, match=rf"layer < last, both from 0 to 5, got layer={layer} and last={last}"):
        Jacobian(tiny, facts[1], layer, last)


def test_what_has_no_jacobian_is_refused(tiny, facts, J):
    with pytest.raises(InputError, match=r"expected a state \[32\], got the shape \(1, 32\)"):
        Jacobian(tiny, facts[1], 1, 4, state=np.zeros((1, 32)))
    with pytest.raises(InputError, match="expected a site of residual or mlp, got 'stream'"):
        Jacobian(tiny, facts[1], 1, 4, site="stream")
    with pytest.raises(InputError, match="at most 256 tokens"):
        Jacobian(tiny, replace(facts[1], prompt="well, " * 300 + "{}"), 1, 4)
    for value in (np.zeros(31), np.zeros((5, 32)), np.zeros((32, 2, 2)), np.zeros(())):
        for mine in (J, J.T):
            with pytest.raises(InputError, match=r"vector \[32\] or columns \[32, k\], got the shape"):
                mine @ value
    with pytest.raises(InputError, match="the site residual for factors, got mlp"):
        Jacobian(tiny, facts[1], 1, 4, site="mlp").factors()


def test_the_real_model_in_float32(real, facts):
    J, v = Jacobian(real, facts[1], 4, 6), random(576)
    assert (J @ v).dtype == J.dense().dtype == J.dtype == np.float32
    for result, expected in ((J @ v, J.dense() @ v), (J.T @ v, J.dense().T @ v)):
        assert np.linalg.norm(result - expected) < 1e-4 * np.linalg.norm(expected)


def test_conditions_are_those_of_the_dense_matrix(J):
    directions = np.random.default_rng(1).standard_normal((5, J.shape[0]))
    conditions, images = J.conditions(directions), directions @ J.dense().T
    squares = (directions**2).sum(1)
    np.testing.assert_allclose(conditions["rayleigh"], (directions * images).sum(1) / squares, rtol=1e-10)
    np.testing.assert_allclose(conditions["gain"], np.sqrt((images**2).sum(1) / squares), rtol=1e-10)
    np.testing.assert_allclose(conditions["cosine"] * conditions["gain"], conditions["rayleigh"], rtol=1e-10)
    np.testing.assert_allclose(conditions["cosine"] ** 2 + conditions["eigen_residual"] ** 2, 1, rtol=1e-10)
    if len(J.eigenspaces().lines):
        along = J.conditions(J.eigenspaces().lines)
        np.testing.assert_allclose(along["eigenvector_angle"], 0, atol=1e-6)
        np.testing.assert_allclose(along["eigen_residual"], 0, atol=1e-8)
