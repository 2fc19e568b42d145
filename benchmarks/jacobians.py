"""The sweep against reverse mode through the hooked model, and against the machine's matrix products.

All J_{l→L} of one fact in one sweep, and `torch.func.jacrev` of the whole hooked model for each of
them, on the shortest, the median and the longest prompt of the facts; everything in one run, in
turns, medians. The rate counts the floating-point operations of the d
pull-backs through the blocks' matrices alone, and is set against two measured rates of matrix
products: of large square ones, and of the sweep's own shapes. With --families the same of random
models of --width; with --against FILE also the sweep of another version of maps/jacobians.py, as
`git show` gives it. With --facts-in-memory also how the peak of memory grows with the number of facts.
"""

import argparse
import copy
import importlib.util
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from jacobian_lab.facts.fact import Fact
from jacobian_lab.facts.reading import load_facts
from jacobian_lab.maps.jacobians import dense_jacobians
from jacobian_lab.maps.replay import freeze
from jacobian_lab.model.language_model import LanguageModel
from jacobian_lab.model.loading import load_model
from jacobian_lab.model.tokens import fact_prompt

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from helpers.reference import Plain
from helpers.small import CONFIGS, make_folder
from timing import medians

LARGE = 2048


def models(families: list[str], width: int, blocks: int, dtype: str) -> Iterator[LanguageModel]:
    """Random models of some families, or the embedded one if there are none.

    Args:
        families: Names of families.
        width: Of the residual stream.
        blocks: How many.
        dtype: Of the weights.

    Yields:
        The models.
    """
    if not families:
        yield load_model(dtype=dtype)
    for family in families:
        config = copy.deepcopy(CONFIGS[family])
        config.hidden_size, config.num_hidden_layers = width, blocks
        setattr(config, "n_inner" if hasattr(config, "n_inner") else "intermediate_size", 4 * width)
        with tempfile.TemporaryDirectory() as folder:
            yield load_model(make_folder(Path(folder) / family, config), dtype=dtype)


def sweep_of(file: Path) -> Callable[..., torch.Tensor]:
    """The sweep of another version of the module.

    Args:
        file: The version.

    Returns:
        Its `dense_jacobians`.
    """
    spec = importlib.util.spec_from_file_location("against", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.dense_jacobians


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--facts", default="builtin")
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 5, 6, 7, 8])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--families", nargs="*", default=[], choices=["gpt2", "gptj", "gpt_neox"])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--facts-in-memory", type=int, nargs="*", default=[])
    options = parser.parse_args()
    for model in models(options.families, options.width, max(options.layers) + 1, options.dtype):
        measure(model, options)


def measure(model: LanguageModel, options: argparse.Namespace) -> None:
    """Measure one model and print.

    Args:
        model: The model.
        options: What `main` was given.
    """
    facts = sorted(load_facts(options.facts), key=lambda fact: len(fact_prompt(model.tokenizer, fact).ids))
    *layers, last = options.layers
    plain = Plain(model.hf, model.tokenizer, model.blocks)
    sweeps = [dense_jacobians, *([sweep_of(options.against)] if options.against else [])]
    place: dict[str, Any] = {"dtype": model.dtype, "device": model.device}
    matrices = [w for layer in range(layers[0] + 1, last + 1) for w in model.blocks[layer].parameters() if w.dim() == 2]
    cotangents = [torch.randn(model.d_model, weight.shape[0], **place) for weight in matrices]
    square = torch.randn(LARGE, LARGE, **place)
    work = 2 * model.d_model * sum(weight.numel() for weight in matrices)

    def own_products() -> None:
        for cotangent, weight in zip(cotangents, matrices, strict=True):
            cotangent @ weight.detach()

    print(f"{Path(model.name).name}, layers {layers} to {last}, {options.dtype}, {torch.get_num_threads()} threads")
    for fact in (facts[0], facts[len(facts) // 2], facts[-1]):
        prompt = fact_prompt(model.tokenizer, fact)
        frozen = freeze(model, [prompt.cut()], layers, last)

        def all_reverse(fact: Fact = fact) -> list[torch.Tensor]:
            return [plain.jacobian(fact, layer, last) for layer in layers]

        jacobians, expected = dense_jacobians(frozen, layers, last), all_reverse()
        apart = max(float((J - own).norm() / own.norm()) for J, own in zip(jacobians[0], expected, strict=True))
        swept, *others = medians([partial(sweep, frozen, layers, last) for sweep in sweeps], options.repeats)
        (reversed_mode,) = medians([all_reverse], 3)
        large, own = medians([lambda: square @ square, own_products], options.repeats)
        rates = work / swept, 2 * LARGE**3 / large, work / own
        print(
            f"{len(prompt.ids)} tokens: sweep {swept:.3f} s, jacrev of the hooked model {reversed_mode:.2f} s, "
            f"{reversed_mode / swept:.0f} times; apart by {apart:.0e}\n"
            f"  {rates[0] / 1e9:.0f} GFLOP/s: {rates[0] / rates[1]:.2f} of {rates[1] / 1e9:.0f} in large products, "
            f"{rates[0] / rates[2]:.2f} of {rates[2] / 1e9:.0f} in products of its own shapes"
        )
        for other in others:
            print(f"  the sweep of {options.against} {other:.3f} s, {other / swept:.2f} times")
    for count in options.facts_in_memory:
        for fact in facts[:count]:
            dense_jacobians(freeze(model, [fact_prompt(model.tokenizer, fact).cut()], layers, last), layers, last)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"peak memory after {count} facts: {peak:.2f} GiB")


if __name__ == "__main__":
    main()
