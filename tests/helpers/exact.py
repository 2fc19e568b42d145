"""Models that compute in float64 throughout, for comparisons of derivatives.

transformers casts to float32 inside RMS norms, rotary angles and GPT-J's attention, whatever the dtype.
"""

from dataclasses import replace
from hashlib import sha256

import torch
from torch import nn

from jacobian_lab.model.language_model import LanguageModel
from jacobian_lab.model.loading import load_model


def load_exact(name="smollm2-135m", device="cpu") -> LanguageModel:
    """Load a model in float64 without these casts, under a fingerprint of its own."""
    model = load_model(name, dtype="float64", device=device)
    _compute_in_float64(model.hf)
    return replace(model, fingerprint=sha256(b"exact throughout" + model.fingerprint.encode()).hexdigest())


def _compute_in_float64(hf):
    """Lift transformers' casts to float32, which guard half precision: in norms, rotary angles, GPT-J's attention."""
    for parent in list(hf.modules()):
        for name, module in parent.named_children():
            if type(module).__name__.endswith("RMSNorm"):
                eps = getattr(module, "variance_epsilon", None)
                norm = nn.RMSNorm(module.weight.shape, eps=eps, dtype=torch.float64)
                norm.weight = module.weight
                setattr(parent, name, norm)
            if hasattr(module, "inv_freq"):
                setattr(parent, name, _Rotary(module))
            if hasattr(module, "embed_positions"):  # of GPT-J, which has no other
                module.embed_positions = _table_of_sines(module.embed_positions)
            if type(module).__name__ == "GPTJAttention":
                if hasattr(module, "_attn"):  # before transformers 5.24
                    module._attn = _plain_attention
                else:
                    module.config._attn_implementation = "sdpa"


class _Rotary(nn.Module):
    """Cosines and sines of rotary angles in float64, by frequencies that may change with the length of the text."""

    def __init__(self, own):
        super().__init__()
        self.own = own

    def forward(self, x, position_ids):
        self.own(x, position_ids)
        angles = position_ids[..., None].double() * self.own.inv_freq.double()
        angles = torch.cat([angles, angles], dim=-1)
        scale = self.own.attention_scaling
        return (angles.cos() * scale).to(x.dtype), (angles.sin() * scale).to(x.dtype)


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
