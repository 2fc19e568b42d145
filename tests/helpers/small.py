"""Small random models of every family, with a tokenizer trained on the built-in facts."""

import os
from functools import cache
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

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
CONFIGS = {
    "llama": LlamaConfig(**ROTARY),
    "mistral": MistralConfig(**ROTARY, sliding_window=6),
    "qwen2": Qwen2Config(**ROTARY, use_sliding_window=True, sliding_window=6, max_window_layers=3),
    "qwen3": Qwen3Config(**ROTARY, head_dim=8),
    "olmo2": Olmo2Config(**ROTARY),
    "gpt2": GPT2Config(**GPT),
    "gptj": GPTJConfig(**GPT, rotary_dim=4),
    "gpt_neox": GPTNeoXConfig(**SMALL, max_position_embeddings=256, rotary_pct=0.5),
}
FAMILIES = os.environ.get("JACOBIAN_LAB_FAMILIES", " ".join(sorted(CONFIGS))).split()
"""The families that tests of every family run on: all of them, or those that the environment names."""

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
    for name, weight in model.named_parameters():
        if weight.dim() == 1:  # norms and biases, which begin as ones and zeros
            torch.nn.init.normal_(weight, mean=float("norm" in name or "ln_" in name), std=0.1)
    model.save_pretrained(path)
    (tokenizer or make_tokenizer()).save_pretrained(path)
    return path
