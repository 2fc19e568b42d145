r"""A model of the same shape that nobody has trained, to hold its Jacobians beside the trained one's.

Writes a folder that every command takes: the configuration and the tokenizer of a model, with weights as its class
draws them from the seed.

    python benchmarks/untrained.py --model smollm2-135m --out untrained-smollm2
    jacobian-lab jacobians --model untrained-smollm2 --facts counterfact_2000.json --slice 0:64 --layers 4-8 \
        --out runs/untrained-smollm2
"""

import argparse
import copy
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

import jacobian_lab as jl


def main() -> None:
    """Draw the weights and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="an empty folder, or a new one")
    options = parser.parse_args()
    if options.out.exists() and any(options.out.iterdir()):
        sys.exit(f"expected an empty folder, or a new one, got {options.out}: give another")
    trained = jl.load_model(options.model)
    torch.manual_seed(options.seed)
    AutoModelForCausalLM.from_config(copy.deepcopy(trained.hf.config)).save_pretrained(options.out)
    trained.tokenizer.save_pretrained(options.out)


if __name__ == "__main__":
    main()
