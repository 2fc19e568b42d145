"""Two workers of one thread each against one process of one thread: the same command, in turns, part by part.

Prints a line a part and, with --out, writes all as JSON.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

from plan import costs_of, write

ONE, TWO = "one process of one thread", "two workers of one thread each"


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "command", nargs="?", default="tables --slice 0:16 --schemes forward-replay --anchors-per-batch 4"
    )
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--out", type=Path, help="a JSON file")
    options = parser.parse_args()
    ways = {ONE: options.command, TWO: f"{options.command} --workers 2 --worker-cpus 1"}
    runs_by_way: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    for _ in range(options.repeats):
        for name, command in ways.items():
            runs_by_way[name].append(costs_of(command, threads=1))
    medians = {name: by_part(runs) for name, runs in runs_by_way.items()}
    parts = [
        {"part": part, ONE: alone, TWO: medians[TWO][part], "ratio": alone / medians[TWO][part]}
        for part, alone in medians[ONE].items()
    ]
    for part in parts:
        print(f"{part['part']}: {part[ONE]:.1f} s, {part[TWO]:.1f} s with two ({part['ratio']:.2f} times as fast)")
    if options.out is not None:
        write(options.out, {"command": options.command, "repeats": options.repeats, "parts": parts})


def by_part(runs: list[dict[str, Any]]) -> dict[str, float]:
    """Median seconds of every part of some runs, and of all of them together."""
    parts = [{", ".join(part["stages"]): part["took_seconds"] for part in run["parts"]} for run in runs]
    whole = statistics.median(run["took_seconds"] for run in runs)
    return {part: statistics.median(seconds[part] for seconds in parts) for part in parts[0] if part} | {"all": whole}


if __name__ == "__main__":
    main()
