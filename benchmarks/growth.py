"""Growth of time and memory with the facts: one command on more and more of a file, each in a process of its own.

Prints a line a size; with --out, writes all as JSON; with --figure, draws seconds by stage and peak memory.
"""

import argparse
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from plan import costs_of, write


def main() -> None:
    """Run, print, write and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", help="the command with its options but --slice and --out, one argument")
    parser.add_argument("--sizes", nargs="+", type=int, default=[25, 100, 400, 2000])
    parser.add_argument("--out", type=Path, help="a JSON file")
    parser.add_argument("--figure", type=Path, help="an SVG or PNG file")
    options = parser.parse_args()
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
    figure, (time, memory) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    for stage in dict.fromkeys(stage for run in runs for stage in run["seconds"]):
        having = [run for run in runs if stage in run["seconds"]]
        time.loglog([run["facts"] for run in having], [run["seconds"][stage] for run in having], "o-", label=stage)
    memory.semilogx([run["facts"] for run in runs], [run["peak_bytes"] / 2**30 for run in runs], "o-", color="0.3")
    time.set(xlabel="facts", ylabel="seconds")
    memory.set(xlabel="facts", ylabel="peak memory (GiB)", ylim=(0, None))
    time.legend(frameon=False, fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


if __name__ == "__main__":
    main()
