"""−log P of answers, held against log-softmax in float64, and its derivative against finite differences."""

import pytest
import torch
from helpers.small import CONTEXTS

from jacobian_lab.maps.likelihood import answer_nll, surprisal
from jacobian_lab.maps.replay import freeze, replay_logits, replay_outputs
from jacobian_lab.model.rows import fact_rows

TOKENS = torch.tensor([0, 3, 6, 3])


def logits(dtype, scale=10.0):
    return (scale * torch.randn(4, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).to(dtype)


def plain(values):
    return -values.double().log_softmax(-1).gather(-1, TOKENS[:, None])[:, 0]


@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-14), (torch.float32, 1e-14)])
def test_surprisal_is_that_of_log_softmax(dtype, near):
    values = logits(dtype).requires_grad_()
    found, wanted = surprisal(values, TOKENS), plain(values)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, wanted, rtol=near, atol=near)
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    ours, theirs = (torch.autograd.grad(each @ weights, values)[0] for each in (found, wanted))
    assert ours.dtype == dtype
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=torch.finfo(dtype).eps)


def test_its_derivative_is_that_of_finite_differences():
    assert torch.autograd.gradcheck(
        lambda values: surprisal(values, TOKENS), logits(torch.float64, 1.0).requires_grad_()
    )


def test_logits_that_no_exponential_holds():
    values = torch.tensor([[3e38, 0.0, -3e38], [-3e38, -3e38, -3e38]])
    found = surprisal(values, torch.tensor([0, 1]))
    torch.testing.assert_close(found, torch.tensor([1.0, 3.0], dtype=torch.float64).log())


def test_answers_of_different_lengths(tiny, facts):
    rows = [row for contexts in fact_rows(tiny, facts, CONTEXTS).answered_contexts for row in contexts]
    assert len({len(row.answer) for row in rows}) > 1
    frozen = freeze(tiny, rows, [1])
    states = frozen.states(1)
    log_p = replay_logits(frozen, 1, states).log_softmax(-1)
    wanted = [
        -torch.stack([log_p[place, n, token] for n, token in enumerate(row.answer)]).mean()
        for place, row in enumerate(rows)
    ]
    found = answer_nll(frozen, replay_outputs(frozen, 1, states))
    torch.testing.assert_close(found, torch.stack(wanted), rtol=1e-12, atol=1e-12)
