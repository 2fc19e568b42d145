"""Estimates of commands against their measurements: time by part, and memory.

Each command runs by itself on the embedded model, in a folder of its own and with an empty cache of second moments, so
that all of it has to be done. Prints a line a command and, with --out, writes all as JSON.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jacobian_lab.caching import cache_folder

COMMANDS = (
    "schemes --slice 0:8",
    "methods --slice 0:8 --methods memit alphaedit memit+fe memit+cr",
    "jacobians --slice 0:8",
    "layer-count --slice 0:4 --max-layers 3",
    "frontier --slice 0:8 --ridges 100 1000",
)


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commands", nargs="*", default=COMMANDS, help="commands with their options, each one argument")
    parser.add_argument("--out", type=Path, help="a JSON file")
    options = parser.parse_args()
    costs_by_command = []
    for command in options.commands:
        costs = costs_of(command)
        time = costs["took_seconds"] / costs["total_seconds"]
        peak = costs["peak_bytes"] / max(costs["host_bytes"], costs["device_bytes"])
        for part in costs["parts"]:
            if part["seconds"]:
                times = f"{part['seconds']:.0f} s, took {part['took_seconds']:.0f}"
                print(f"  {', '.join(part['stages'])}: {times} ({part['took_seconds'] / part['seconds']:.2f})")
        print(
            f"{command}: estimated {costs['total_seconds']:.0f} s, took {costs['took_seconds']:.0f} ({time:.2f}); "
            f"peak {costs['peak_bytes'] / 2**30:.2f} GiB ({peak:.2f} of what was estimated)",
            flush=True,
        )
        costs_by_command.append({"command": command, "time_ratio": time, "memory_ratio": peak} | costs)
        if options.out is not None:
            write(options.out, {"commands": costs_by_command})


def costs_of(command: str, threads: int | None = None) -> dict[str, Any]:
    """Run a command, and read what it was estimated to take and took.

    Args:
        command: The command with its options.
        threads: How many it computes with; by default all that there are.

    Returns:
        What stands in its run's ``costs.json``.
    """
    with tempfile.TemporaryDirectory() as folder:
        own = Path(folder) / "cache"
        own.mkdir()
        (own / "models").symlink_to(cache_folder("models"))  # which take no part in the estimate
        run = [sys.executable, "-c", "from jacobian_lab.cli import main; main()", *command.split()]
        environment = os.environ | {"JACOBIAN_LAB_CACHE": str(own)}
        environment |= {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
        place = Path(folder) / "run"
        subprocess.run([*run, "--out", place], env=environment, check=True, stdout=subprocess.DEVNULL)
        return json.loads((place / "costs.json").read_text())


def machine() -> dict[str, Any]:
    """The machine and the versions, as they stand beside a figure."""
    versions = {name: version(name) for name in ("torch", "transformers", "numpy")}
    return {"cores": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()} | versions


def write(out: Path, content: dict[str, Any]) -> None:
    """Write what was measured.

    Args:
        out: A JSON file.
        content: What was measured; the machine is written beside it.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"machine": machine()} | content, indent=1) + "\n")


if __name__ == "__main__":
    main()
