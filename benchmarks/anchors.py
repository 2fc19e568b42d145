"""Anchors by batched replay against the plain way: one fact at a time through the whole model.

Both are measured in one run, in turns, on prompts of the built-in set; prints the
ratio of the medians, the share of the machine's product rate, and how far the anchors are apart.
"""

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from jacobian_lab.editing.anchors import AnchorSettings, optimize_anchors
from jacobian_lab.editing.batches import anchor_batches
from jacobian_lab.facts.reading import load_facts
from jacobian_lab.model.language_model import LanguageModel
from jacobian_lab.model.loading import load_model
from jacobian_lab.model.rows import fact_rows
from jacobian_lab.model.templates import sample_templates

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from helpers.reference import Plain
from timing import timed


def product_rate(model: LanguageModel, width: int = 2048, repeats: int = 9) -> float:
    """Floating-point operations a second in the product of two large matrices, the median of some."""
    left, right = (torch.randn(width, width, dtype=model.dtype, device=model.device) for _ in range(2))
    return 2 * width**3 / statistics.median(timed(lambda: left @ right)[0] for _ in range(repeats))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--facts", default="builtin")
    parser.add_argument("--slice", default="0:8")
    parser.add_argument("--layer", type=int, default=4)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    first_load, model = timed(lambda: load_model(dtype=options.dtype))
    second_load, _ = timed(lambda: load_model(dtype=options.dtype))
    facts = load_facts(options.facts, options.slice)
    templates = sample_templates(model)
    rows = fact_rows(model, facts, templates)
    settings = AnchorSettings(steps=options.steps)
    plain = Plain(model.hf, model.tokenizer, model.blocks)

    def batched() -> dict[int, Any]:
        states: dict[int, Any] = {}
        for batch in anchor_batches(rows, 16):
            anchors = optimize_anchors(rows.select(batch), options.layer, settings)
            states |= dict(zip(batch, anchors.states, strict=True))
        return states

    def one_by_one() -> list[Any]:
        return [plain.anchor(fact, options.layer, templates, steps=options.steps)[0] for fact in facts]

    times: dict[str, list[float]] = {"batched": [], "plain": []}
    for _ in range(options.repeats):
        seconds, batched_states = timed(batched)
        times["batched"].append(seconds)
        seconds, single_states = timed(one_by_one)
        times["plain"].append(seconds)
    with FlopCounterMode(display=False) as counter:
        batched()
    rate = product_rate(model)
    share = counter.get_total_flops() / statistics.median(times["batched"]) / rate
    apart = max(float((batched_states[i] - state).norm() / state.norm()) for i, state in enumerate(single_states))
    batched_median, plain_median = (statistics.median(times[name]) for name in ("batched", "plain"))
    print(f"loading the embedded model: {first_load:.1f} s, again {second_load:.1f} s")
    print(f"{len(facts)} facts, layer {options.layer}, {options.steps} passes, {options.dtype}")
    print(f"batched replay {batched_median:.1f} s, plain {plain_median:.1f} s (medians of {options.repeats})")
    print(f"products at {share:.2f} of the rate of large ones, {rate / 1e9:.0f} GFLOP/s")
    print(f"ratio {plain_median / batched_median:.1f}; anchors apart by {apart:.1e} at the most, relative")


if __name__ == "__main__":
    main()
