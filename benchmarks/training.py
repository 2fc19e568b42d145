"""Methods that train: which settings suit the embedded model, and what they cost beside MEMIT.

``--scan wise`` and ``--scan rledit`` edit built-in facts, which are in no table, with each of several settings, and say
what came of it; ``--cost`` edits the same facts with MEMIT, WISE and RLEdit, each in a process of its own, and says how
long that took and what memory it had at its peak.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch

import jacobian_lab as jl
from jacobian_lab.training.settings import RLEditConfig, TrainingConfig, WiseConfig

LAB = Path(sys.executable).parent / "jacobian-lab"
METHODS = ("memit", "wise", "rledit")
GRIDS: dict[str, dict[str, Any]] = {
    "wise": {"edit_lr": (0.02, 0.05, 0.1, 0.2), "beta": (0.1, 0.3)},
    "rledit": {"lr": (1e-4, 1e-3, 1e-2), "num_seq": (4,)},
}
"""What is scanned."""


def settings_of(name: str, scanned: dict[str, Any]) -> Iterator[tuple[dict[str, Any], TrainingConfig]]:
    """The settings that are tried.

    Args:
        name: The method.
        scanned: For each option that is set, its values.

    Yields:
        What is set, and the whole configuration; α and γ of WISE go with β as the published ones do.
    """
    for values in product(*scanned.values()):
        settings: dict[str, Any] = dict(zip(scanned, values, strict=True))
        if name == "wise":
            beta = settings.get("beta", 1.0)
            rest = {"alpha": beta / 10, "gamma": beta / 2}
            yield settings, TrainingConfig(wise=WiseConfig(**settings, **rest))
        else:
            yield settings, TrainingConfig(rledit=RLEditConfig(**settings))


def scan(name: str, part: str, scanned: dict[str, Any]) -> list[dict[str, Any]]:
    """Edit with every setting.

    Args:
        name: The method.
        part: Which of the built-in facts.
        scanned: For each option that is set, its values.

    Returns:
        For each setting what came of it: shares × 100, D_KL in nats, and what the method says of itself.
    """
    os.environ["JACOBIAN_LAB_CACHE"] = tempfile.mkdtemp()  # so that nothing is found there, and times are times
    model, facts, every = jl.load_model(), jl.load_facts("builtin", part), jl.load_facts("builtin")
    rows = []
    for settings, training in settings_of(name, scanned):
        editor = jl.Editor(model, facts, training=training, train_facts=every, progress=False)
        begin = time.perf_counter()
        with editor.edit(name) as edit:
            frame, measured = edit.evaluate().mean(), edit.told
        row = settings | {
            "efficacy": 100 * frame["efficacy_accuracy"],
            "generalisation": 100 * frame["generalization_accuracy"],
            "kl": frame["kl"],
            "top10": 100 * frame["top10"],
            "seconds": time.perf_counter() - begin,
        }
        if name == "wise":
            row |= {kind: 100 * share for kind, share in served(measured).items()}
            row |= {name: statistics.median(measured[f"training_{name}"]) for name in ("steps", "loss")}
        else:
            row["changed"] = max(norm for norm in measured["changed_norm"] if norm == norm)
        print(json.dumps({key: round(value, 4) for key, value in row.items()}), flush=True)
        rows.append(row)
    return rows


def served(measured: dict[str, Any]) -> dict[str, float]:
    """Shares of the prompts that the memory serves.

    Args:
        measured: Distances of WISE over the threshold: from 1 on the memory serves.

    Returns:
        By kind of prompt.
    """
    flat = {
        "prompts": measured["distance"],
        "paraphrases": [distance for distances in measured["distance_paraphrase"] for distance in distances],
        "neighbourhood": [distance for distances in measured["distance_neighbor"] for distance in distances],
    }
    return {kind: sum(d >= 1 for d in distances) / max(1, len(distances)) for kind, distances in flat.items()}


def cost(part: str) -> list[dict[str, Any]]:
    """Edit with each method in a process of its own, nothing in the cache but the second moments.

    Args:
        part: Which of the built-in facts.

    Returns:
        Seconds, and GiB at the peak.
    """
    rows = list[dict[str, Any]]()
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"JACOBIAN_LAB_CACHE": folder}
        for name in ("memit", *METHODS):  # the first fills the cache, and is not counted
            command = [
                str(LAB),
                "edit",
                "--slice",
                part,
                "--no-greedy",
                "--method",
                name,
                "--out",
                f"{folder}/{len(rows)}",
            ]
            begin = time.perf_counter()
            process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            _, status, used = os.wait4(process.pid, 0)
            if status:
                sys.exit(f"{' '.join(command)} ended with status {os.waitstatus_to_exitcode(status)}")
            seconds = time.perf_counter() - begin
            rows.append({"method": name, "seconds": seconds, "peak_gib": used.ru_maxrss / 2**20})
            print(json.dumps(rows[-1]), flush=True)
    return rows[1:]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scan", choices=METHODS[1:])
    parser.add_argument(
        "--grid", type=json.loads, help='for each option its values, as {"edit_lr": [0.05], "beta": [0.3]}'
    )
    parser.add_argument("--cost", action="store_true")
    parser.add_argument("--slice", default="0:16")
    parser.add_argument("--out", type=Path, help="a JSON file")
    options = parser.parse_args()
    grid = options.grid or GRIDS.get(options.scan, {})
    rows = scan(options.scan, options.slice, grid) if options.scan else cost(options.slice)
    versions = {"python": platform.python_version(), "torch": torch.__version__, "threads": torch.get_num_threads()}
    report = {"what": options.scan or "cost", "slice": options.slice, "rows": rows, "machine": versions}
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")
