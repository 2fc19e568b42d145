"""Keys of an edit by a pass that goes on from layer to layer against passes from the embedding, with the edits between.

Both are measured in one run, in turns; prints the ratio of the medians, of the blocks that were run and of the peaks of
memory above what was held before, the states that are carried, and how far the keys are apart. Says too how many of the
context rows' tokens begin as another row does. With --out, writes all as JSON.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from timing import timed
from torch import Tensor

from jacobian_lab.editing.layers import KEYS_AT_ONCE, KeyWalk, averaged_keys, restored
from jacobian_lab.facts.reading import load_facts
from jacobian_lab.memory import peak_memory
from jacobian_lab.model.language_model import LanguageModel
from jacobian_lab.model.loading import load_model
from jacobian_lab.model.rows import FactRows, fact_rows
from jacobian_lab.model.sources import DEFAULT_MODEL
from jacobian_lab.model.templates import sample_templates

RESET = Path("/proc/self/clear_refs")
"""Takes a 5 to forget the peak of this process."""


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--facts", default="builtin")
    parser.add_argument("--slice", default="0:64")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="a JSON file")
    options = parser.parse_args()
    model = load_model(options.model, dtype=options.dtype)
    rows = fact_rows(model, load_facts(options.facts, options.slice), sample_templates(model))
    layers = model.defaults().layers
    keys: dict[str, Tensor] = {}
    ways: dict[str, Callable[[int], Tensor]] = {}
    seconds: dict[str, list[float]] = {"anew": [], "carried": []}
    peaks: dict[str, list[int]] = {"anew": [], "carried": []}
    for _ in range(options.repeats):
        for name in seconds:
            ways[name] = (lambda layer: averaged_keys(rows, layer)) if name == "anew" else KeyWalk(rows, layers).keys
            held = start_of_peak(model)
            elapsed, results = timed(lambda: list(edited(model, layers, ways[name])))  # noqa: B023
            seconds[name].append(elapsed)
            peaks[name].append(peak_memory(model.devices) - held)
            keys[name] = torch.stack(results)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    apart = float((keys["carried"] - keys["anew"]).abs().max() / keys["anew"].abs().max())
    report = {
        "facts": len(rows),
        "layers": list(layers),
        "dtype": options.dtype,
        "seconds": median,
        "blocks": {"anew": sum(layer + 1 for layer in layers), "carried": layers[-1] + 1},
        "peak_bytes": {name: max(values) for name, values in peaks.items()},
        "apart": apart,
        "tokens": shared_tokens(rows),
    }
    blocks, peak, tokens = report["blocks"], report["peak_bytes"], report["tokens"]
    print(f"{len(rows)} facts, layers {', '.join(map(str, layers))}, {options.dtype} on {model.device}")
    print(f"anew {median['anew']:.2f} s, carried {median['carried']:.2f} s (medians of {options.repeats})")
    print(f"ratio {median['anew'] / median['carried']:.2f}; of the blocks {blocks['anew'] / blocks['carried']:.2f}")
    print(f"peak {peak['carried'] / 2**20:.0f} MiB carried, {peak['anew'] / 2**20:.0f} MiB anew")
    print(f"keys apart by {apart:.1e} at the most, relative")
    print(f"{tokens['distinct']} of {tokens['all']} tokens begin no other row; {tokens['padded']} with padding")
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n")


def edited(model: LanguageModel, layers: tuple[int, ...], keys: Callable[[int], Tensor]) -> Iterator[Tensor]:
    """Keys of each layer, whose weight changes by a hundredth once they are taken."""
    with restored(model, layers), torch.no_grad():
        for layer in layers:
            yield keys(layer)
            weight = model.weight(layer)
            weight.copy_(1.01 * weight)


def start_of_peak(model: LanguageModel) -> int:
    """Forget the peak of memory; what is held now."""
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        RESET.write_text("5")
    return peak_memory(model.devices)


def shared_tokens(rows: FactRows) -> dict[str, Any]:
    """Tokens of all context rows, piece by piece, and how many are left when rows that begin alike share that."""
    whole = distinct = padded = 0
    for start in range(0, len(rows), KEYS_AT_ONCE):
        piece = rows.contexts[start : start + KEYS_AT_ONCE]
        ids = [row.ids[: row.decisive + 1] for contexts in piece for row in contexts]
        whole += sum(map(len, ids))
        padded += len(ids) * max(map(len, ids))
        distinct += len({row[:end] for row in ids for end in range(1, len(row) + 1)})
    return {"all": whole, "distinct": distinct, "padded": padded}


if __name__ == "__main__":
    main()
