"""Solves from a factor of C that is made once, by Woodbury's formula, against forming and factoring λC + K Kᵀ.

Both are measured in one run on the same random matrices, of which only the sizes matter. Prints, for each width and
number of keys, the seconds of each, the ratio of their medians, and how far the changes are apart.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jacobian_lab.editing.paper_rules import memit
from jacobian_lab.editing.problems import Problem
from jacobian_lab.editing.solving import factored

RANK = 256


def timed(work: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Time some work.

    Args:
        work: The work.
        repeats: How often it is done.

    Returns:
        The median of the seconds, and the last result.
    """
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        result = work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds), result


def second_moment(width: int, generator: torch.Generator, device: str) -> Tensor:
    """A random second moment: a diagonal over two decades, and RANK directions that are larger.

    Args:
        width: d_mlp.
        generator: Of random numbers.
        device: Where it is to be.

    Returns:
        The matrix.
    """
    scales = torch.logspace(0, -2, width, dtype=torch.float64)
    directions = scales.sqrt()[:, None] * torch.randn(width, RANK, generator=generator, dtype=torch.float64) / 4
    directions = directions.to(device)
    matrix = directions @ directions.T
    matrix.diagonal().add_(scales.to(device))
    return matrix


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--d-mlp", type=int, nargs="+", default=[1536, 14336])
    parser.add_argument("--d-model", type=int, nargs="+", default=[576, 4096], help="one for each d_mlp")
    parser.add_argument("--keys", type=int, nargs="+", default=[1, 16, 100])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="a JSON file")
    options = parser.parse_args()
    generator, rows = torch.Generator().manual_seed(0), []
    for width, d_model in zip(options.d_mlp, options.d_model, strict=False):
        moment = second_moment(width, generator, options.device)
        weight = torch.zeros(d_model, width, device=options.device)
        once, factor = timed(lambda: factored(moment, "C", ""), 1)  # noqa: B023
        print(f"d_mlp {width}, d_model {d_model}: C factored once in {once:.2f} s, condition {factor.condition:.1e}")
        for count in options.keys:
            keys = torch.randn(width, count, generator=generator, dtype=torch.float64).to(options.device)
            keys = factor.factor @ keys
            residuals = torch.randn(d_model, count, generator=generator, dtype=torch.float64).to(options.device)
            plain = Problem(0, keys, residuals, moment, weight, width / 9)  # the λ that suits keys of the corpus
            grown = replace(plain, factored_moment=lambda: factor)  # noqa: B023
            direct, expected = timed(lambda: memit(plain).delta, options.repeats)  # noqa: B023
            woodbury, change = timed(lambda: memit(grown).delta, options.repeats)  # noqa: B023
            apart = float((change - expected).norm() / expected.norm())
            rows.append({
                "d_mlp": width,
                "d_model": d_model,
                "keys": count,
                "factored_once": once,
                "direct": direct,
                "woodbury": woodbury,
                "ratio": direct / woodbury,
                "apart": apart,
            })
            print(
                f"  {count} keys: direct {direct:.3f} s, by Woodbury {woodbury:.3f} s, ratio {direct / woodbury:.1f}, "
                f"changes apart by {apart:.1e}"
            )
    if options.out:
        machine = torch.cuda.get_device_name() if options.device != "cpu" else f"{torch.get_num_threads()} threads"
        options.out.write_text(
            json.dumps({"machine": machine, "torch": torch.__version__, "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
