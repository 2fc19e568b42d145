"""An MLP's small Jacobian against reverse mode through the untouched MLP."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from jacobian_lab.maps.merged_mlps import merged_mlps


@pytest.fixture
def state(family_model):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, 1, family_model.d_model, generator=generator, dtype=torch.float64, requires_grad=True)


def test_the_small_jacobian_is_that_of_the_mlp(family_model, state):
    mlp, unit = family_model.mlp(2), torch.eye(family_model.d_model, dtype=torch.float64)
    expected = torch.func.jacrev(lambda x: mlp(x[None, None])[0, 0])(state.detach()[0, 0])
    with merged_mlps(family_model, [2]):
        output = mlp(state)
    torch.testing.assert_close(output, mlp(state), rtol=0, atol=0)
    rows = [torch.autograd.grad(output, state, row.view_as(output), retain_graph=True)[0][0, 0] for row in unit]
    torch.testing.assert_close(torch.stack(rows), expected, rtol=1e-12, atol=1e-13)


class Sizes(TorchDispatchMode):
    """Collects the sizes of all that operators are given."""

    def __init__(self):
        super().__init__()
        self.shapes = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.shapes.update(size for value in args if isinstance(value, torch.Tensor) for size in value.shape)
        return func(*args, **(kwargs or {}))


def test_cotangents_meet_no_matrix_of_the_mlp(family_model, state):
    mlp = family_model.mlp(2)
    for merged in (True, False):
        with merged_mlps(family_model, [2] if merged else []):
            output = mlp(state)
        with Sizes() as sizes:
            torch.autograd.grad(output, state, torch.ones_like(output))
        assert family_model.d_model in sizes.shapes
        assert (family_model.d_mlp in sizes.shapes) != merged


def test_mlps_are_as_they_were_afterwards(family_model):
    def hooks():
        parts = [family_model.mlp(2), *family_model.inner(2), family_model.projection(2)]
        return [(len(part._forward_hooks), len(part._forward_pre_hooks)) for part in parts]

    def fail():
        with merged_mlps(family_model, [2]):
            assert hooks() != before
            raise KeyError

    before = hooks()
    with pytest.raises(KeyError):
        fail()
    assert hooks() == before
