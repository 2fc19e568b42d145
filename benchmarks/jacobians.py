"""The sweep against reverse mode through the hooked model, and against the machine's matrix products.

All J_{l→L} of one fact in one sweep, and `torch.func.jacrev` of the whole hooked model for each of
them; everything in one run, in turns. The rate counts the floating-point operations of the d
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

from jacobian_lab.facts import load_facts
from jacobian_lab.jacobians import dense_jacobians
from jacobian_lab.models import load_model
from jacobian_lab.replay import freeze
from jacobian_lab.tokens import fact_prompt

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from reference import Plain

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
    parser.add_argument("--slice", default="0:1")
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 5, 6, 7, 8])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--facts-in-memory", type=int, nargs="*", default=[])
    options = parser.parse_args()
    model = load_model(dtype=options.dtype)
    fact = load_facts(options.facts, options.slice)[0]
    *layers, last = options.layers
    frozen = freeze(model, [fact_prompt(model.tokenizer, fact).cut()], layers, last)
    plain = Plain(model.hf, model.tokenizer, model.blocks)

    def sweep() -> torch.Tensor:
        return dense_jacobians(frozen, layers, last)

    matrices = [w for layer in range(layers[0] + 1, last + 1) for w in model.blocks[layer].parameters() if w.dim() == 2]
    work = 2 * model.d_model * sum(weight.numel() for weight in matrices)
    cotangents = [
        torch.randn(model.d_model, weight.shape[0], dtype=model.dtype, device=model.device) for weight in matrices
    ]

    def own_products() -> None:
        for cotangent, weight in zip(cotangents, matrices, strict=True):
            cotangent @ weight.detach()

    found, apart = sweep(), []
    slow: list[float] = []
    for index, layer in enumerate(layers):
        begin = time.perf_counter()
        expected = plain.jacobian(fact, layer, last)
        slow.append(time.perf_counter() - begin)
        apart.append(float((found[index, 0] - expected).norm() / expected.norm()))
    print(f"{model.name}, layers {layers} to {last}, {options.dtype}, {torch.get_num_threads()} threads")
    print(f"jacrev of the hooked model: {sum(slow):.1f} s for {len(layers)}; apart by {max(apart):.1e} at the most")
    rounds = []
    for _ in range(options.rounds):
        ours = seconds(sweep, options.repeats)
        large = 2 * LARGE**3 / seconds(lambda: square @ square, options.repeats)
        own = work / seconds(own_products, options.repeats)
        rounds.append((ours, work / ours / large, work / ours / own))
        print(
            f"sweep {ours:.3f} s, {sum(slow) / ours:.0f} times faster, {work / ours / 1e9:.0f} GFLOP/s; "
            f"large products {large / 1e9:.0f} GFLOP/s, its own {own / 1e9:.0f} GFLOP/s"
        )
    ours, of_large, of_own = (statistics.median(column) for column in zip(*rounds, strict=True))
    print(f"medians: {sum(slow) / ours:.0f} times faster, {of_large:.2f} of large products, {of_own:.2f} of its own")
    for count in options.facts_in_memory:
        chosen = load_facts(options.facts, f"0:{count}")
        for each in chosen:
            dense_jacobians(freeze(model, [fact_prompt(model.tokenizer, each).cut()], layers, last), layers, last)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"peak memory after {count} facts: {peak:.2f} GiB")


if __name__ == "__main__":
    main()
