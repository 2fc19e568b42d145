"""Share of a shift that a solve gives to keys of other contexts, against the change that it makes."""

import pytest
import torch

from jacobian_lab.editing.solving import factored
from jacobian_lab.editing.transfer import transferred

FACTS, CONTEXTS, WIDTH, RIDGE = 3, 4, 7, 2.5


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def second_moment():
    root = random(WIDTH, 3 * WIDTH)
    return root @ root.T


def test_the_share_is_that_of_the_least_change(second_moment):
    """ΔW k' over ΔW k, with ΔW by the normal equations of min λ tr(ΔW C ΔWᵀ) + ‖ΔW k − δ‖²."""
    own, others, shift = random(FACTS, WIDTH, seed=1), random(FACTS, CONTEXTS, WIDTH, seed=2), random(5, seed=3)
    shares = transferred(own, others, factored(second_moment, "C", "").solve)
    for fact, key in enumerate(own):
        change = torch.outer(shift, key) @ torch.linalg.inv(RIDGE * second_moment + torch.outer(key, key))
        for context, other in enumerate(others[fact]):
            torch.testing.assert_close(change @ other, shares[fact, context] * (change @ key))


def test_the_key_itself_gets_the_whole(second_moment):
    own = random(FACTS, WIDTH, seed=1)
    shares = transferred(own, own[:, None], factored(second_moment, "C", "").solve)
    torch.testing.assert_close(shares, torch.ones(FACTS, 1, dtype=torch.float64))
    torch.testing.assert_close(transferred(own, -2 * own[:, None], lambda keys: keys), torch.full_like(shares, -2))


def test_keys_of_one_solve_share_it(second_moment):
    """Shares with A = λC + KKᵀ are (A⁻¹k)ᵀk' over (A⁻¹k)ᵀk, other ones than C alone gives."""
    own, others = random(FACTS, WIDTH, seed=1), random(FACTS, CONTEXTS, WIDTH, seed=2)
    joint = factored(RIDGE * second_moment, "λC", "").plus(own.T)
    inverse = torch.linalg.inv(RIDGE * second_moment + own.T @ own)
    expected = torch.stack([others[fact] @ inverse @ key / (key @ inverse @ key) for fact, key in enumerate(own)])
    torch.testing.assert_close(transferred(own, others, joint.solve), expected)
    assert not torch.allclose(transferred(own, others, factored(second_moment, "C", "").solve), expected)
