"""A second device where there is none: the arithmetic is the host's, and tensors on two devices do not mix."""

from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

AWAY = torch.device("lazy", 0)
"""A device that torch knows by name, and runs the backward pass of without a driver."""

_COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}
_OWN_KERNEL = {torch.ops.aten._efficientzerotensor.default: torch.ops.aten.zeros.default}


class Away(torch.Tensor):
    """A tensor on the second device."""

    @staticmethod
    def __new__(cls, held):
        kept = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, held.size(), **kept, device=AWAY)

    def __init__(self, held):
        self.held = held

    def __repr__(self):
        return f"Away({self.held})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


@contextmanager
def two_devices():
    """Within it a tensor can be sent to `AWAY` and back, as to a card."""
    with _Dispatch(), _Made():
        yield


class _Made(TorchFunctionMode):
    """`torch.tensor` asks the device itself for memory, which only a driver has."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.tensor and kwargs.get("device") == AWAY:
            return func(*args, **{**kwargs, "device": "cpu"}).to(AWAY)
        return func(*args, **kwargs)


class _Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


def _run(func, args, kwargs):
    tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
    away = [isinstance(each, Away) for each in tensors]
    if func not in _COPIES and any(away) and any(each.dim() for each in tensors if not isinstance(each, Away)):
        raise RuntimeError(f"expected tensors on one device in {func}")  # numbers may come from anywhere
    if "device" in kwargs and kwargs["device"] is not None:
        there = torch.device(kwargs["device"]).type == AWAY.type
        kwargs = {**kwargs, "device": torch.device("cpu")}
    else:
        there = away[0] if func in _COPIES else any(away)
    args, kwargs = tree_map(lambda each: each.held if isinstance(each, Away) else each, (args, kwargs))
    result = _OWN_KERNEL.get(func, func)(*args, **kwargs)
    if func._schema.is_mutable:
        return tensors[0]
    return tree_map(lambda each: Away(each) if there and isinstance(each, torch.Tensor) else each, result)
