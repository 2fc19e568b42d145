"""Models that compute in float64 throughout, for comparisons of derivatives.

transformers casts to float32 inside norms, rotary angles, routers and some attention, whatever the dtype.
"""

import functools
from dataclasses import replace
from functools import cache
from hashlib import sha256

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from jacobian_lab.model.language_model import LanguageModel
from jacobian_lab.model.loading import load_model


def load_exact(name="smollm2-135m", device="cpu") -> LanguageModel:
    """Load a model in float64 without these casts, under a fingerprint of its own."""
    model = load_model(name, dtype="float64", device=device)
    _compute_in_float64(model.hf)
    return replace(model, fingerprint=sha256(b"exact throughout" + model.fingerprint.encode()).hexdigest())


def _compute_in_float64(hf):
    """Lift transformers' casts to float32, which guard half precision: in norms, rotary angles, attention, routers."""
    for parent in list(hf.modules()):
        for name, module in parent.named_children():
            if type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
                norm = nn.RMSNorm(module.weight.shape, eps=module.variance_epsilon, dtype=torch.float64)
                norm.weight = module.weight
                setattr(parent, name, norm)
            if hasattr(module, "inv_freq"):
                setattr(parent, name, _Rotary(module))
            if hasattr(module, "sliding_attention_inv_freq"):
                setattr(parent, name, _RotaryByKind(module))
            if isinstance(getattr(module, "embed_positions", None), torch.Tensor):  # of GPT-J, which has no other
                module.embed_positions = _table_of_sines(module.embed_positions)
            if type(module).__name__ == "GPTJAttention":
                if hasattr(module, "_attn"):  # before transformers 5.24
                    module._attn = _plain_attention
                else:
                    module.config._attn_implementation = "sdpa"
    if hf.config.model_type not in PLAIN:
        for module in hf.modules():
            if type(module).__name__.endswith(("RMSNorm", "LayerNorm", "Layer", "Block")):
                module.__class__ = _without_casts(type(module))


PLAIN = ("llama", "mistral", "qwen2", "qwen3", "gpt2", "gptj", "gpt_neox")
"""Families whose casts are all in the modules that are replaced."""


@cache
def _without_casts(kind):
    """A module's class whose own code finds no way from float64 to float32."""
    own = kind.forward

    @functools.wraps(own)
    def forward(self, *args, **keywords):
        with _Uncast():
            return own(self, *args, **keywords)

    return type(kind.__name__, (kind,), {"forward": forward})


class _Uncast(TorchFunctionMode):
    """Leaves tensors in float64 where code asks for float32."""

    def __torch_function__(self, func, types, args=(), keywords=None):
        keywords, name = dict(keywords or {}), getattr(func, "__name__", "")
        if args and isinstance(args[0], torch.Tensor) and args[0].dtype == torch.float64:
            if name == "float" or (name == "to" and torch.float32 in (*args[1:], keywords.get("dtype"))):
                return args[0]
            if name == "softmax" and keywords.get("dtype") == torch.float32:
                keywords["dtype"] = torch.float64
        return func(*args, **keywords)


class _Rotary(nn.Module):
    """Cosines and sines of rotary angles in float64, by frequencies that may change with the length of the text."""

    def __init__(self, own):
        super().__init__()
        self.own = own

    def forward(self, x, position_ids):
        return self.of(x, position_ids)

    def of(self, x, position_ids, *kinds):
        as_is, _ = self.own(x, position_ids, *kinds)
        prefix = "".join(f"{kind}_" for kind in kinds)
        angles = position_ids[..., None].double() * getattr(self.own, f"{prefix}inv_freq").double()
        joined, scale = torch.cat([angles, angles], dim=-1), getattr(self.own, f"{prefix}attention_scaling")
        if abs(joined.cos() * scale - as_is).max() > 1e-2:  # of Cohere, whose pairs stand side by side
            joined = angles.repeat_interleave(2, dim=-1)
        return (joined.cos() * scale).to(x.dtype), (joined.sin() * scale).to(x.dtype)


class _RotaryByKind(_Rotary):
    """The same, by the layers' type."""

    def forward(self, x, position_ids, layer_type):
        return self.of(x, position_ids, layer_type)


def _table_of_sines(table):
    """Sines and cosines of GPT-J's rotary angles in float64, from its frequencies in float32."""
    positions, width = table.shape
    frequencies = 1.0 / 10000 ** (torch.arange(0, width, 2) / width)
    angles = torch.arange(positions)[:, None].double() * frequencies.double()
    return torch.cat([angles.sin(), angles.cos()], dim=1).to(table.device)


def _plain_attention(query, key, value, attention_mask=None):
    """GPT-J's attention in the dtype of its inputs."""
    mask = None if attention_mask is None else attention_mask[..., : key.shape[-2]]  # transformers 5.0 gives more
    return nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask), None
