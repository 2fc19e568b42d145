"""Small random models of every family, with a tokenizer trained on the built-in facts."""

import os
from functools import cache
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from jacobian_lab.facts.reading import load_facts

VOCABULARY = 512

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
}
ROTARY = {**SMALL, "num_key_value_heads": 2, "max_position_embeddings": 256}
GPT = {"n_embd": 32, "n_inner": 64, "n_layer": 6, "n_head": 4, "n_positions": 256}
WORDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
WINDOWS = {**ROTARY, **WORDS, "sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"] * 3}
GEMMA = {**WINDOWS, "head_dim": 8, "query_pre_attn_scalar": 8, "final_logit_softcapping": 3.0}
FALCON = {**SMALL, **WORDS, "ffn_hidden_size": 64, "max_position_embeddings": 256}
_LOCAL_AND_GLOBAL = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
    "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0},
}
_SETTINGS = {
    "gpt2": GPT,
    "gpt_neox": {**SMALL, "max_position_embeddings": 256, "rotary_pct": 0.5},
    "gptj": {**GPT, "rotary_dim": 4},
    "llama": ROTARY,
    "mistral": {**ROTARY, "sliding_window": 6},
    "qwen2": {**ROTARY, "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 3},
    "qwen3": {**ROTARY, "head_dim": 8},
    "gemma2": {**GEMMA, "attn_logit_softcapping": 2.0},
    "gemma3_text": {**GEMMA, "rope_parameters": _LOCAL_AND_GLOBAL},
    "olmo3": {**WINDOWS, "rope_parameters": _LOCAL_AND_GLOBAL},
    "exaone4": WINDOWS,
    "glm4": {**ROTARY, **WORDS, "head_dim": 8, "attention_bias": True},
    "cohere2": {**WINDOWS, "logit_scale": 0.5},
    "phi3": {**ROTARY, **WORDS, "sliding_window": 6},
    "granite": {
        **ROTARY,
        "residual_multiplier": 0.4,
        "logits_scaling": 3.0,
        "embedding_multiplier": 2.0,
        "attention_multiplier": 0.7,
    },
    "smollm3": {**ROTARY, **WORDS, "no_rope_layers": [1, 1, 0, 1, 0, 1]},
    "stablelm": {**ROTARY, **WORDS, "use_parallel_residual": True, "qk_layernorm": True},
    "starcoder2": {**ROTARY, **WORDS, "sliding_window": 6},
    "falcon": {**FALCON, "multi_query": True},
    "falcon-new": {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon-serial": {**FALCON, "multi_query": False, "parallel_attn": False, "bias": True},
    "opt": {**SMALL, **WORDS, "ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 256},
    "mixtral": {**ROTARY, **WORDS, "sliding_window": 6, "num_local_experts": 4},
    "qwen3_moe": {
        **{**ROTARY, **WORDS, "head_dim": 8, "use_sliding_window": True, "sliding_window": 6},
        **{"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "mlp_only_layers": [3]},
    },
    "olmo2": ROTARY,
}
"""Settings of a small model, by its type, or by that and a layout; the order decides the random numbers, so new ones
come last."""

_TYPES = {name: name.partition("-")[0] for name in _SETTINGS}
LACKING = [name for name, kind in _TYPES.items() if kind not in CONFIG_MAPPING]
"""Those that this version of transformers does not have."""

CONFIGS = {name: AutoConfig.for_model(_TYPES[name], **_SETTINGS[name]) for name in _SETTINGS if name not in LACKING}
EDITED = ("gpt2", "gpt_neox", "gptj", "llama", "mistral", "qwen2", "qwen3", "granite", "phi3", "olmo2")
FAMILIES = os.environ.get("JACOBIAN_LAB_FAMILIES", " ".join(EDITED)).split()
"""The families that tests of every kind of family run on, or those that the environment names."""

EVERY = os.environ.get("JACOBIAN_LAB_FAMILIES", " ".join(_SETTINGS)).split()
"""All families, or those that the environment names: for tests of what their blocks compute."""

CONTEXTS = (("{}",), ("The weather was fine. {}", "Therefore. {}", "I saw it in the old book. {}"))


def corpus_of_texts() -> list[str]:
    return [fact.text + " " + fact.target_true for fact in load_facts()]


@cache
def _trained() -> str:
    """A byte-level BPE tokenizer trained on the built-in facts, as JSON."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<bos>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(corpus_of_texts(), trainer)
    return tokenizer.to_str()


def make_tokenizer(side: str = "right", bos: bool = False, eos: bool = False) -> PreTrainedTokenizerFast:
    """The tokenizer, padding on a side, with or without special tokens around a text."""
    tokenizer = Tokenizer.from_str(_trained())
    if bos or eos:
        single = " ".join((["<bos>"] if bos else []) + ["$A"] + (["<eos>"] if eos else []))
        tokenizer.post_processor = processors.Sequence([
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single=single, special_tokens=[("<bos>", 1), ("<eos>", 2)]),
        ])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        padding_side=side,
    )


def make_folder(path: Path, config, tokenizer=None, seed: int = 0) -> Path:
    """A random model in a folder laid out as the hub's."""
    torch.manual_seed(seed)
    config.vocab_size = VOCABULARY
    config.initializer_range = 0.15  # large enough that layers matter
    model = AutoModelForCausalLM.from_config(config)
    scaled = not config.model_type.startswith("gemma")  # whose norms multiply by one more than their weights
    for name, weight in model.named_parameters():
        if weight.dim() == 1:  # norms and biases, which begin as ones and zeros
            torch.nn.init.normal_(weight, mean=float(scaled and ("norm" in name or "ln_" in name)), std=0.1)
    model.save_pretrained(path)
    (tokenizer or make_tokenizer()).save_pretrained(path)
    return path
