"""Growth of time and memory with the facts: one command on more and more of a file, each in a process of its own.

Prints a line a size; with --out, writes all as JSON; with --figure, draws seconds by stage and peak memory. With
--measured, draws those of such a file instead of running anything.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from plan import costs_of, write

from jacobian_lab.report.figures.style import style

LOOKS: tuple[dict[str, Any], ...] = (
    {"color": "0.1", "marker": "o"},
    {"color": "#1b84cc", "marker": "v"},
    {"color": "#b3161f", "marker": "s"},
    {"color": "0.6", "marker": "^"},
)
"""Looks of stages, in their order."""


def main() -> None:
    """Run, print, write and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", nargs="?", help="the command with its options but --slice and --out, one argument")
    parser.add_argument("--sizes", nargs="+", type=int, default=[25, 100, 400, 2000])
    parser.add_argument("--out", type=Path, help="a JSON file")
    parser.add_argument("--measured", type=Path, help="a JSON file of --out, to draw")
    parser.add_argument("--figure", type=Path, help="an SVG or PNG file")
    options = parser.parse_args()
    if (options.command is None) == (options.measured is None):
        parser.error("expected a command to run or the file of --measured: give one of them")
    if options.measured is not None:
        runs = json.loads(options.measured.read_text("utf-8"))["runs"]
    else:
        runs = [grown(size, costs_of(f"{options.command} --slice 0:{size}")) for size in options.sizes]
    for run in runs:
        parts = ", ".join(f"{stage} {took:.0f} s" for stage, took in run["seconds"].items())
        print(f"{run['facts']} facts: {parts}; peak {run['peak_bytes'] / 2**30:.2f} GiB", flush=True)
    if options.out is not None:
        write(options.out, {"command": options.command, "runs": runs})
    if options.figure is not None:
        draw(runs, options.figure)


def grown(size: int, costs: dict[str, Any]) -> dict[str, Any]:
    """Time and memory of a run of so many facts, by its parts."""
    seconds = {", ".join(part["stages"]): part["took_seconds"] for part in costs["parts"] if part["stages"]}
    return {"facts": size, "seconds": seconds, "peak_bytes": costs["peak_bytes"]}


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """Seconds by stage, and peak memory, over the number of facts."""
    with style("full", 2, 0.75):
        figure, (time, memory) = plt.subplots(1, 2)
        for stage, look in zip(dict.fromkeys(stage for run in runs for stage in run["seconds"]), LOOKS, strict=False):
            having = [run for run in runs if stage in run["seconds"]]
            seconds = [run["seconds"][stage] for run in having]
            time.loglog([run["facts"] for run in having], seconds, label=stage, markersize=3, linewidth=1, **look)
        peaks = [run["peak_bytes"] / 2**30 for run in runs]
        memory.semilogx([run["facts"] for run in runs], peaks, "o-", color="0.3", markersize=3, linewidth=1)
        time.set(xlabel="facts", ylabel="seconds")
        memory.set(xlabel="facts", ylabel="peak memory, GiB", ylim=(0, 1.1 * max(peaks)))
        figure.legend(*time.get_legend_handles_labels(), fontsize="x-small", loc="outside upper center", ncols=3)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)


if __name__ == "__main__":
    main()
