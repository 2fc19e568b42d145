"""Growth of time and memory with a model's blocks, width and words: one command on random models of Llama's kind.

Each is varied alone, in a process of its own, with the embedded model's tokenizer. Prints a line a model and, with
--out, writes all as JSON.

    OMP_NUM_THREADS=1 python benchmarks/sizes.py --out benchmarks/results/sizes.json
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from plan import costs_of, write
from transformers import LlamaConfig, LlamaForCausalLM

import jacobian_lab as jl

BASE = {"blocks": 12, "width": 256, "words": 49_152}
VARIED = {"blocks": (24, 48), "width": (512, 1024), "words": (98_304, 196_608)}
COMMAND = (
    "schemes --slice 0:8 --layers 4-8 --schemes forward-replay --survey-facts 2 --ridge 100 --anchor.steps 5 "
    "--corpus-tokens 8192"
)


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a JSON file")
    options = parser.parse_args()
    measured = []
    for sizes in varied():
        with tempfile.TemporaryDirectory() as folder:
            parameters = save(Path(folder), **sizes)
            costs = costs_of(f"{COMMAND} --model {folder}")
        seconds = {", ".join(part["stages"]): part["took_seconds"] for part in costs["parts"] if part["stages"]}
        measured.append(sizes | {"parameters": parameters, "seconds": seconds, "peak_bytes": costs["peak_bytes"]})
        stages = ", ".join(f"{stage} {took:.0f} s" for stage, took in seconds.items())
        print(f"{sizes}, {parameters / 1e6:.0f} M: {stages}; {costs['peak_bytes'] / 2**30:.2f} GiB", flush=True)
    if options.out is not None:
        write(options.out, {"command": COMMAND, "models": measured})


def varied() -> Iterator[dict[str, int]]:
    """The base's sizes, and those with one of them larger."""
    yield BASE
    for name, values in VARIED.items():
        yield from (BASE | {name: value} for value in values)


def save(folder: Path, blocks: int, width: int, words: int) -> int:
    """Write a random model of these sizes, and count its parameters."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": blocks}
    shape |= {"num_attention_heads": width // 64, "num_key_value_heads": width // 64, "vocab_size": words}
    model = LlamaForCausalLM(LlamaConfig(max_position_embeddings=2048, tie_word_embeddings=True, **shape))
    model.save_pretrained(folder)
    jl.load_model().tokenizer.save_pretrained(folder)
    return model.num_parameters()


if __name__ == "__main__":
    main()
