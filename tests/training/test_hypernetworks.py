"""The hypernetwork: its beginning, its least squares, its gradient by hand against autograd and finite differences."""

import pytest
import torch

from jacobian_lab.training.hypernetworks import Hypernetwork, Normalizer, Solve, pull_back

INPUTS, OUTPUTS = 6, 4


def network_of(**changes):
    given = {"rank": 5, "blocks": 3, "rate": 1e-2, "seed": 0, "dtype": torch.float64} | changes
    return Hypernetwork(2, INPUTS, OUTPUTS, **given)


def disturbed(network):
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return network


def problem(tokens, seed=1):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return normal(tokens, INPUTS), normal(tokens, INPUTS + OUTPUTS), normal(INPUTS, OUTPUTS)


def test_at_first_it_is_the_identity_on_what_it_is_given():
    keys, standard, _ = problem(3)
    asked = network_of()(1, keys, standard)
    imagined, gradients = standard.split([INPUTS, OUTPUTS], dim=1)
    torch.testing.assert_close(asked, -1e-2 * (keys * imagined).sum(1, keepdim=True) * gradients)


def test_one_token_is_answered_in_closed_form():
    keys, standard, _ = problem(1)
    asked = network_of()(0, keys, standard)
    change = Solve(keys, torch.tensor(1.0).double()).change(asked)
    torch.testing.assert_close(change, keys.T @ asked / (keys.norm() ** 2 + 1))


@pytest.mark.parametrize("tokens", [2, 6, 9])
def test_both_forms_of_the_solve_agree_with_the_dense_one(tokens):
    keys, standard, gradient = problem(tokens)
    asked = network_of()(0, keys, standard).detach()
    solve = Solve(keys, torch.tensor(0.3).double())
    dense = torch.linalg.inv(keys.T @ keys + 0.3 * torch.eye(INPUTS).double())
    torch.testing.assert_close(solve.change(asked), dense @ keys.T @ asked)
    torch.testing.assert_close(solve.pull(gradient), keys @ dense @ gradient)
    assert torch.linalg.matrix_rank(solve.change(asked)) <= min(tokens, INPUTS, OUTPUTS)
    assert Solve(keys, torch.tensor(1e12).double()).change(asked).norm() < 1e-9


@pytest.mark.parametrize("tokens", [3, 8])
@pytest.mark.parametrize("penalty", [0.0, 0.7])
def test_the_gradient_by_hand_is_autograds_and_that_of_finite_differences(tokens, penalty):
    """L = ⟨G, Δ⟩ + penalty ‖Δ‖², through the solve; of every parameter."""
    keys, standard, gradient = problem(tokens)
    network = disturbed(network_of())

    def loss():
        asked, ridge = network(1, keys, standard), network.log_ridge[1].exp()
        change = torch.linalg.solve(keys.T @ keys + ridge * torch.eye(INPUTS).double(), keys.T @ asked)
        return (gradient * change).sum() + penalty * (change**2).sum()

    expected = dict(
        zip(dict(network.named_parameters()), torch.autograd.grad(loss(), list(network.parameters())), strict=True)
    )
    pull_back(network, 1, keys, standard, gradient, penalty)
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-9, atol=1e-11, msg=name)
        place = torch.argmax(parameter.grad.abs().flatten())
        with torch.no_grad():
            value, step, found = parameter.view(-1)[place].clone(), 1e-6, []
            for sign in (1, -1):
                parameter.view(-1)[place] = value + sign * step
                found.append(loss())
            parameter.view(-1)[place] = value
        difference = (found[0] - found[1]) / (2 * step)
        assert float(parameter.grad.flatten()[place]) == pytest.approx(float(difference), rel=1e-5), name


def test_gradients_of_parts_add_up():
    keys, standard, gradient = problem(4)
    once, twice = disturbed(network_of()), disturbed(network_of())
    pull_back(once, 0, keys, standard, gradient)
    for part in (0.25 * gradient, 0.75 * gradient):
        pull_back(twice, 0, keys, standard, part)
    for ours, theirs in zip(once.parameters(), twice.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_the_first_step_of_adam_moves_what_has_a_gradient_by_the_rate():
    keys, standard, gradient = problem(4)
    network = network_of(rate=1e-6)
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    pull_back(network, 0, keys, standard, 1e6 * gradient)
    torch.optim.Adam(network.parameters(), lr=1e-5).step()
    after = {name: parameter.detach() for name, parameter in network.named_parameters()}
    assert torch.equal(after["down"], before["down"])  # up is zero at first, so that nothing comes back to it
    assert min(abs(float(after["rate"][0]) - each) for each in (1.1e-5, -9e-6)) < 1e-11
    assert after["rate"][1] == before["rate"][1]
    moved = (after["up"] - before["up"]).abs()
    assert moved[moved > 0].numpy() == pytest.approx(1e-5, rel=1e-2)


@pytest.mark.parametrize("parts", [[7], [1, 6], [3, 1, 3], [1] * 7])
def test_the_normaliser_is_the_plain_one_in_any_parts(parts):
    rows = 3.0 + 2.0 * problem(7)[1]
    normalizer = Normalizer(rows.shape[1], torch.float64, torch.device("cpu"))
    for part in rows.split(parts):
        normalizer.see(part)
    expected = (rows - rows.mean(0)) / (rows.std(0) + 1.2e-7)
    torch.testing.assert_close(normalizer(rows), expected)
    again = Normalizer(rows.shape[1], torch.float64, torch.device("cpu"))
    again.restore(normalizer.state())
    assert torch.equal(again(rows), normalizer(rows))


def test_one_row_is_left_as_it_is():
    normalizer = Normalizer(3, torch.float64, torch.device("cpu"))
    row = torch.ones(1, 3, dtype=torch.float64)
    normalizer.see(row)
    assert torch.equal(normalizer(row), row)
    normalizer.see(row[:0])
    assert normalizer.count == 1
