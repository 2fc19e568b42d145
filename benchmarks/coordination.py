"""Coordinated shifts at all decisive layers against one anchor at the first of them: time and passes of one descent.

Both are measured in one run, in turns, on the same facts; prints the ratio of the medians.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from typing import Any

from timing import timed

from jacobian_lab.editing.anchors import AnchorSettings, coordinate_shifts, optimize_anchors
from jacobian_lab.editing.batches import anchor_batches
from jacobian_lab.facts.reading import load_facts
from jacobian_lab.model.loading import load_model
from jacobian_lab.model.rows import fact_rows
from jacobian_lab.model.templates import sample_templates


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--facts", default="builtin")
    parser.add_argument("--slice", default="0:16")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    model = load_model()
    defaults = model.defaults()
    rows = fact_rows(model, load_facts(options.facts, options.slice), sample_templates(model))
    settings = AnchorSettings(lr=defaults.anchor_lr, steps=defaults.anchor_steps)

    def passes(descend: Callable[[Any], Any]) -> int:
        return sum(int(descend(rows.select(batch)).passes.sum()) for batch in anchor_batches(rows, 16))

    ways: dict[str, Callable[[Any], Any]] = {
        "one anchor": lambda rows: optimize_anchors(rows, defaults.layers[0], settings),
        "coordinated shifts": lambda rows: coordinate_shifts(rows, defaults.layers, settings),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    counts = {}
    for _ in range(options.repeats):
        for name, descend in ways.items():
            seconds, counts[name] = timed(lambda descend=descend: passes(descend))
            times[name].append(seconds)
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    for name, median in medians.items():
        sys.stdout.write(f"{name}: {median:.1f} s, {counts[name]} passes of {len(rows)} facts\n")
    ratio = medians["coordinated shifts"] / medians["one anchor"]
    by_pass = ratio * counts["one anchor"] / counts["coordinated shifts"]
    sys.stdout.write(f"coordinated over one: {ratio:.2f} in time, {by_pass:.2f} by pass\n")


if __name__ == "__main__":
    main()
