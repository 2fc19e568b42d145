"""The sweep against reverse mode through the hooked model, and against the machine's matrix products.

All J_{l→L} of one fact in one sweep, and `torch.func.jacrev` of the whole hooked model for each of
them, on the shortest, the median and the longest prompt of the facts; everything in one run, in
turns, medians. The rate counts the floating-point operations of the d
pull-backs through the blocks' matrices alone, and is set against two measured rates of matrix
products: of large square ones, and of the sweep's own shapes. With --facts-in-memory also how the
peak of memory grows with the number of facts.
"""

import argparse
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from jacobian_lab.facts.fact import Fact
from jacobian_lab.facts.reading import load_facts
from jacobian_lab.maps.jacobians import dense_jacobians
from jacobian_lab.maps.replay import Frozen, freeze
from jacobian_lab.model.loading import load_model
from jacobian_lab.model.tokens import fact_prompt

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from helpers.reference import Plain

LARGE = 2048


def seconds(work: Callable[[], Any], repeats: int) -> float:
    """Median time of some work.

    Args:
        work: The work.
        repeats: How often to do it.

    Returns:
        Seconds.
    """
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--facts", default="builtin")
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 5, 6, 7, 8])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--facts-in-memory", type=int, nargs="*", default=[])
    options = parser.parse_args()
    model = load_model(dtype=options.dtype)
    facts = sorted(load_facts(options.facts), key=lambda fact: len(fact_prompt(model.tokenizer, fact).ids))
    *layers, last = options.layers
    plain = Plain(model.hf, model.tokenizer, model.blocks)
    place: dict[str, Any] = {"dtype": model.dtype, "device": model.device}
    matrices = [w for layer in range(layers[0] + 1, last + 1) for w in model.blocks[layer].parameters() if w.dim() == 2]
    cotangents = [torch.randn(model.d_model, weight.shape[0], **place) for weight in matrices]
    square = torch.randn(LARGE, LARGE, **place)
    work = 2 * model.d_model * sum(weight.numel() for weight in matrices)

    def own_products() -> None:
        for cotangent, weight in zip(cotangents, matrices, strict=True):
            cotangent @ weight.detach()

    print(f"{model.name}, layers {layers} to {last}, {options.dtype}, {torch.get_num_threads()} threads")
    for fact in (facts[0], facts[len(facts) // 2], facts[-1]):
        prompt = fact_prompt(model.tokenizer, fact)
        frozen = freeze(model, [prompt.cut()], layers, last)

        def sweep(frozen: Frozen = frozen) -> torch.Tensor:
            return dense_jacobians(frozen, layers, last)

        def all_reverse(fact: Fact = fact) -> list[torch.Tensor]:
            return [plain.jacobian(fact, layer, last) for layer in layers]

        found, expected = sweep(), all_reverse()
        apart = max(float((ours[0] - own).norm() / own.norm()) for ours, own in zip(found, expected, strict=True))
        ours = seconds(sweep, options.repeats)
        theirs = seconds(all_reverse, 3)
        large = 2 * LARGE**3 / seconds(lambda: square @ square, options.repeats)
        own = work / seconds(own_products, options.repeats)
        rate = work / ours
        print(
            f"{len(prompt.ids)} tokens: sweep {ours:.3f} s, jacrev of the hooked model {theirs:.2f} s, "
            f"{theirs / ours:.0f} times; apart by {apart:.0e}\n"
            f"  {rate / 1e9:.0f} GFLOP/s: {rate / large:.2f} of {large / 1e9:.0f} in large products, "
            f"{rate / own:.2f} of {own / 1e9:.0f} in products of its own shapes"
        )
    for count in options.facts_in_memory:
        for fact in facts[:count]:
            dense_jacobians(freeze(model, [fact_prompt(model.tokenizer, fact).cut()], layers, last), layers, last)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"peak memory after {count} facts: {peak:.2f} GiB")


if __name__ == "__main__":
    main()
