"""Batches one after the other against the plain way: every batch's matrix formed, factored and judged anew.

Both are measured in one run on the same random keys and residuals, of which only the sizes matter; prints, for each
rule, the ratio of the medians of a batch and how far the changes are apart.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from functools import cache, partial

import torch
from scipy.linalg.lapack import dpocon
from torch import Tensor

from jacobian_lab.editing.rules import Problem, Rule, alphaedit, emmet, memit

LAYER, RIDGE = 0, 15000.0


def solved(matrix: Tensor, right: Tensor) -> Tensor:
    """A Cholesky solve, and an estimate of the condition number that is thrown away.

    Args:
        matrix: The matrix.
        right: The right-hand side.

    Returns:
        The solution.
    """
    factor = torch.linalg.cholesky(matrix)
    dpocon(factor.numpy(), float(torch.linalg.matrix_norm(matrix, 1)), uplo="L")
    return torch.cholesky_solve(right, factor)


def plain_memit(C: Tensor, S: Tensor, K: Tensor, R: Tensor) -> Tensor:
    """MEMIT's rule with Σ K Kᵀ of the batches before.

    Args:
        C: Second moment.
        S: Σ K Kᵀ of the batches before.
        K: Keys.
        R: Residuals.

    Returns:
        ΔW.
    """
    return solved(RIDGE * C + S + K @ K.T, K @ R.T).T


def plain_emmet(C: Tensor, S: Tensor, K: Tensor, R: Tensor) -> Tensor:
    """EMMET's, as `plain_memit` has it.

    Args:
        C: Second moment.
        S: Σ K Kᵀ of the batches before.
        K: Keys.
        R: Residuals.

    Returns:
        ΔW.
    """
    whitened = solved(RIDGE * C + S, K)
    return solved(K.T @ whitened + 0.1 * torch.eye(K.shape[1], dtype=K.dtype), R.T).T @ whitened.T


def plain_alphaedit(C: Tensor, S: Tensor, K: Tensor, R: Tensor, basis: Tensor) -> Tensor:
    """AlphaEdit's, as `plain_memit` has it.

    Args:
        C: Second moment, which the basis stands for.
        S: Σ K Kᵀ of the batches before.
        K: Keys.
        R: Residuals.
        basis: Of C's null space.

    Returns:
        ΔW.
    """
    inner = basis.T @ K
    matrix = inner @ inner.T + 10.0 * torch.eye(len(inner), dtype=K.dtype) + basis.T @ S @ basis
    return (basis @ solved(matrix, inner @ R.T)).T


def timed(batches: Iterator[Tensor]) -> tuple[float, list[Tensor]]:
    """Seconds that a batch took, and all changes.

    Args:
        batches: Solved as they are asked for.

    Returns:
        The median over all batches but the first, and the changes.
    """
    seconds, changes, begin = [], [], time.perf_counter()
    for change in batches:
        seconds.append(time.perf_counter() - begin)
        changes.append(change)
        begin = time.perf_counter()
    return statistics.median(seconds[1:]), changes


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--d-mlp", type=int, default=1536)
    parser.add_argument("--d-model", type=int, default=576)
    parser.add_argument("--facts", type=int, default=32)
    parser.add_argument("--size", type=int, default=1, help="facts in a batch")
    options = parser.parse_args()
    n, generator = options.d_mlp, torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    scales = torch.logspace(0, -2, n, dtype=torch.float64)[:, None]
    corpus = scales * random(n, 2 * n)
    C, keys, residuals = (
        corpus @ corpus.T / (2 * n),
        scales * random(n, options.facts),
        random(options.d_model, options.facts),
    )
    weight = random(options.d_model, n)
    values, vectors = torch.linalg.eigh(C)
    eigh = cache(lambda _matrix: (values, vectors))
    parts = [slice(start, start + options.size) for start in range(0, options.facts, options.size)]

    def anew(plain: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> Iterator[Tensor]:
        S = torch.zeros_like(C)
        for part in parts:
            K, R = keys[:, part], residuals[:, part]
            yield plain(C, S, K, R)
            S += K @ K.T

    def growing(rule: Rule) -> Iterator[Tensor]:
        carried = None
        for part in parts:
            problem = Problem(LAYER, keys[:, part], residuals[:, part], C, weight, RIDGE, carried, has_next=True)
            update = rule(problem)
            carried = update.carried
            yield update.delta

    basis = vectors[:, values < 0.02]
    pairs: dict[str, tuple[Rule, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]]] = {
        "memit": (memit, plain_memit),
        "emmet": (emmet, plain_emmet),
        "alphaedit": (partial(alphaedit, eigh=eigh), partial(plain_alphaedit, basis=basis)),
    }
    print(f"d_mlp {n}, {options.facts} facts, {options.size} in a batch, null space of {basis.shape[1]}")
    for name, (rule, plain) in pairs.items():
        grown, changes = timed(growing(rule))
        single, expected = timed(anew(plain))
        apart = max(float((a - b).norm() / b.norm()) for a, b in zip(changes, expected, strict=True))
        print(
            f"{name}: {1000 * grown:.1f} ms a batch, plain {1000 * single:.1f} ms, ratio {single / grown:.1f}",
            end="; ",
        )
        print(f"changes apart by {apart:.1e} at the most, relative")


if __name__ == "__main__":
    main()
