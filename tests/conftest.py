"""Small random models of every family, the real model, and the shared data where they are."""

import json
import os
import tempfile
from pathlib import Path

import pytest
import torch

os.environ.setdefault("JACOBIAN_LAB_CACHE", str(Path(tempfile.gettempdir()) / "jacobian_lab-tests-cache"))
os.environ["HF_HUB_OFFLINE"] = "1"

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from jacobian_lab.facts import Fact, load_facts
from jacobian_lab.models import load_model
from jacobian_lab.templates import read_templates

SHARED = Path(__file__).resolve().parents[2] / "shared"
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
    "gpt2": GPT2Config(**GPT),
    "gptj": GPTJConfig(**GPT, rotary_dim=4),
    "gpt_neox": GPTNeoXConfig(**SMALL, max_position_embeddings=256, rotary_pct=0.5),
}
FAMILIES = sorted(CONFIGS)

CONTEXTS = (("{}",), ("The weather was fine. {}", "Therefore. {}", "I saw it in the old book. {}"))


def corpus_of_texts() -> list[str]:
    return [fact.text + " " + fact.target_true for fact in load_facts()]


def make_tokenizer(side: str = "right", bos: bool = False, eos: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on the built-in facts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<bos>", "<eos>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(corpus_of_texts(), trainer)
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


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A folder for each family; some tokenizers pad left, some add BOS."""
    root = tmp_path_factory.mktemp("families")
    variants = {
        "llama": make_tokenizer("left", bos=True),
        "qwen3": make_tokenizer("left"),
        "gptj": make_tokenizer(bos=True, eos=True),
    }
    return {
        name: make_folder(root / name, CONFIGS[name], variants.get(name), seed) for seed, name in enumerate(FAMILIES)
    }


@pytest.fixture(scope="session", params=FAMILIES)
def family_model(request, folders):
    """Each family in exact float64."""
    return load_model(folders[request.param], dtype="float64", device="cpu", exact=True)


@pytest.fixture(scope="session")
def tiny(folders):
    return load_model(folders["llama"], dtype="float64", device="cpu", exact=True)


@pytest.fixture(scope="session")
def real():
    return load_model(device="cpu")


@pytest.fixture(scope="session")
def facts() -> tuple[Fact, ...]:
    """Subjects first, in the middle and last; prompts, tails and targets of different lengths."""
    return (
        Fact("first", "Ada Lovelace", "{} wrote about", "poetry", "engines"),
        Fact("middle", "the Eiffel Tower", "You can find {} in the city of", "London", "Paris"),
        Fact(
            "last",
            "Gabriel García Márquez",
            "The author of that novel is called {}",
            "Dickens and Twain",
        ),
        Fact("alone", "Rome", "{}", "is old"),
        Fact("twice", "Paris", "Paris is where {} is, said", "nobody at all"),
    )


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text("\n".join(f"Line {n} tells of towers, rivers and {n * n} old books." for n in range(60)))
    return path


@pytest.fixture(scope="session")
def arguments(tmp_path_factory, corpus_file) -> dict[str, object]:
    """Options of a quick run."""
    return {
        "model": str(make_folder(tmp_path_factory.mktemp("model") / "gpt2", CONFIGS["gpt2"])),
        "slice": "0:6",
        "layers": "1-3",
        "corpus": str(corpus_file),
        "ridge": 10.0,
        "anchor_lr": 0.1,
        "anchor_steps": 4,
        "batch_size": 2,
        "device": "cpu",
        "dtype": "float64",
    }


def options(arguments: dict[str, object]) -> list[str]:
    """The same as a command line has them."""
    return [part for name, value in arguments.items() for part in ("--" + name.replace("_", "-"), str(value))]


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip("the shared data are not here")
    return SHARED


@pytest.fixture
def golden(shared):
    folder = shared / "reference" / "golden"
    return {
        "numbers": json.loads((folder / "mcf_100_104.json").read_text()),
        "templates": read_templates(folder / "templates.json"),
        "tensors": folder / "mcf_100_104.safetensors",
    }
