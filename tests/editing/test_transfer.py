"""Share of a shift that a solve gives to keys of other contexts, against the change that it makes."""

import pytest
import torch
from helpers.small import CONTEXTS

from jacobian_lab.editing.layers import Setting, averaged_keys
from jacobian_lab.editing.solving import factored
from jacobian_lab.editing.transfer import transferred
from jacobian_lab.maps.stepwise import decisive_keys
from jacobian_lab.model.rows import fact_rows

OTHERS = ("Yes, so. {}", "They said it again. {}", "No. {}")

FACTS, COUNT, WIDTH, RIDGE = 3, 4, 7, 2.5


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def second_moment():
    root = random(WIDTH, 3 * WIDTH)
    return root @ root.T


def test_the_share_is_that_of_the_least_change(second_moment):
    """ΔW k' over ΔW k, with ΔW by the normal equations of min λ tr(ΔW C ΔWᵀ) + ‖ΔW k − δ‖²."""
    own, others, shift = random(FACTS, WIDTH, seed=1), random(FACTS, COUNT, WIDTH, seed=2), random(5, seed=3)
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
    own, others = random(FACTS, WIDTH, seed=1), random(FACTS, COUNT, WIDTH, seed=2)
    joint = factored(RIDGE * second_moment, "λC", "").plus(own.T)
    inverse = torch.linalg.inv(RIDGE * second_moment + own.T @ own)
    expected = torch.stack([others[fact] @ inverse @ key / (key @ inverse @ key) for fact, key in enumerate(own)])
    torch.testing.assert_close(transferred(own, others, joint.solve), expected)
    assert not torch.allclose(transferred(own, others, factored(second_moment, "C", "").solve), expected)


def test_the_mean_share_at_a_layer_is_what_an_edit_gives_to_other_contexts(tiny, facts):
    """ΔW k' of one fact's own edit, over ΔW k, averaged over the other contexts' keys, which are taken one by one."""
    rows, others = fact_rows(tiny, facts[:2], CONTEXTS), fact_rows(tiny, facts[:2], (OTHERS,))
    moments = {layer: moment(tiny.d_mlp, layer) for layer in (1, 3)}
    shares = Setting(rows, moments, RIDGE).transfers((1, 3), others)
    for fact in range(2):
        for place, layer in enumerate((1, 3)):
            key = averaged_keys(rows.select([fact]), layer)[0]
            inverse = torch.linalg.inv(RIDGE * moments[layer] + torch.outer(key, key))
            other = decisive_keys(tiny, others.contexts[fact], layer)
            expected = torch.stack([k @ inverse @ key / (key @ inverse @ key) for k in other]).mean()
            torch.testing.assert_close(shares[fact, place], expected, rtol=1e-8, atol=1e-10)


def moment(width, seed):
    root = random(width, 2 * width, seed=seed)
    return root @ root.T
