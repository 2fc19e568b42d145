"""Calls and seconds of what a command should do once: tokenize a text, open its run, multiply by a matrix of the model.

Profiles one command in this process. An older checkout is measured by the same script with PYTHONPATH set to it. With
--out, adds a row to a JSON file, under the checkout's commit.

    python benchmarks/once.py "methods --slice 0:4 --methods memit memit+fe --no-greedy" --out once.json
"""

import argparse
import cProfile
import json
import pstats
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from torch.nn import Linear
from torch.nn.modules.module import register_module_forward_pre_hook

import jacobian_lab
from jacobian_lab.cli import main as command

PROFILED = {
    "texts": ("transformers/tokenization_utils_base.py", "__call__"),
    "runs opened": ("xarray/backends/zarr.py", "open_zarr"),
}
"""What is counted: by name, the end of a function's file, and its name."""


def main() -> None:
    """Profile, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", help="what follows jacobian-lab on the command line")
    parser.add_argument("--out", type=Path, help="a JSON file")
    options = parser.parse_args()
    products: Counter[type] = Counter()
    handle = register_module_forward_pre_hook(lambda module, _: products.update([type(module)]))
    profile, begin = cProfile.Profile(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        sys.argv = ["jacobian-lab", *shlex.split(options.command), "--out", str(Path(folder) / "run")]
        try:
            profile.runcall(command)
        except SystemExit as end:
            if end.code:
                raise
        finally:
            handle.remove()
    report = {"command": options.command, "seconds": time.perf_counter() - begin, "products": products[Linear]}
    for name, (file, function) in PROFILED.items():
        report |= counted(profile, name, file, function)
    report["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(report, indent=1))
    if options.out is not None:
        add(options.out, report)


def counted(profile: cProfile.Profile, name: str, file: str, function: str) -> dict[str, float]:
    """Calls and cumulative seconds of a function."""
    rows = pstats.Stats(profile).stats.items()  # type: ignore[attr-defined]
    matching = [row for (path, _, own), row in rows if path.endswith(file) and own == function]
    return {name: sum(row[1] for row in matching), f"{name}, seconds": sum(row[3] for row in matching)}


def add(path: Path, report: dict[str, float]) -> None:
    """Add a row under the checkout's commit."""
    root = Path(jacobian_lab.__file__).parent
    commit = subprocess.run(["git", "-C", root, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    rows = json.loads(path.read_text()) if path.exists() else {}
    rows[commit.stdout.strip()] = report
    path.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
