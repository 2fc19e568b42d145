"""Measure a device at the paper's own size: a random model of Llama-3-8B's shape, or a smaller one without a card.

Anchors of facts side by side against one after the other, all J_{l→L} of a fact, theorem 2's verdict by the matrix and
by Lanczos, the second moment, a layer's solve; beside them the machine's rate of matrix products, of which the shares
are. Weights are random: what is measured is time and memory, not what an edit does. Prints a line a stage and, with
--out, writes all as JSON, with the machine's name and versions.
"""

import argparse
import json
import os
import platform
import resource
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from jacobian_lab.editing.anchors import AnchorSettings, optimize_anchors
from jacobian_lab.editing.batches import anchor_batches
from jacobian_lab.editing.rules import Problem, memit
from jacobian_lab.editing.second_moments import sums_of_keys
from jacobian_lab.facts.reading import load_facts
from jacobian_lab.maps.definiteness import (
    Verdict,
    definiteness_matrix_free,
    largest_singular_value,
    symmetric_part,
    verdict_of,
)
from jacobian_lab.maps.jacobians import dense_jacobians, linear_operator, precision
from jacobian_lab.maps.replay import freeze
from jacobian_lab.model.families import FAMILIES, KNOWN, Shape
from jacobian_lab.model.language_model import LanguageModel
from jacobian_lab.model.loading import DTYPES
from jacobian_lab.model.rows import FactRows, fact_rows
from jacobian_lab.model.tokens import Prompt

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from helpers.small import CONTEXTS, VOCABULARY, make_tokenizer
from timing import medians

SHAPES = {
    "llama-3-8b": KNOWN["llama-3-8b-instruct"].shape,
    "smollm2-135m": KNOWN["smollm2-135m"].shape,
    "small": Shape("llama", 10, 256, 896, 2048, 512),
    "tiny": Shape("llama", 9, 64, 128, 512, 256),
}
HEAD, SHARING = 128, 4
"""Width of an attention head, and how many queries share a key, as in Llama 3."""

FORWARD_AND_BACK = 4
"""Floating-point operations a weight and a token: two forward, two back to the activations."""


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, help="llama-3-8b on a card, else small")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--facts", type=int, default=16, help="facts whose anchors are optimised")
    parser.add_argument("--steps", type=int, default=5, help="passes of an anchor")
    parser.add_argument("--edits", type=int, default=2000, help="keys in a solve")
    parser.add_argument("--tokens", type=int, default=8192, help="tokens of the second moment")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 5, 6, 7, 8])
    parser.add_argument("--out", type=Path, help="a JSON file")
    options = parser.parse_args()
    card = torch.cuda.is_available()
    shape = SHAPES[options.shape or ("llama-3-8b" if card else "small")]
    model = random_model(shape, DTYPES[options.dtype], torch.device("cuda" if card else "cpu"))
    settings = {name: value for name, value in vars(options).items() if name not in {"out", "shape", "dtype"}}
    about = {"machine": machine(), "shape": shape._asdict(), "dtype": options.dtype, "options": settings}
    stages, layers = Stages(model, options.repeats, options.out, about), options.layers
    rows = fact_rows(model, load_facts("builtin", f"0:{options.facts}"), CONTEXTS)
    add_anchors(stages, rows, layers[0], AnchorSettings(lr=0.1, steps=options.steps, stop_loss=0.0))
    add_jacobians(stages, rows, layers)
    add_solve(stages, layers, options.tokens, options.edits)


def machine() -> dict[str, Any]:
    """The machine's name and the versions of what computes."""
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    versions = {name: version(name) for name in ("torch", "transformers", "numpy")}
    processor = {"cores": os.cpu_count(), "threads": torch.get_num_threads(), "platform": platform.platform()}
    return {"card": card, "cuda": torch.version.cuda, "python": platform.python_version()} | processor | versions


def random_model(shape: Shape, dtype: torch.dtype, device: torch.device) -> LanguageModel:
    """A model that nobody trained.

    Args:
        shape: Its shape.
        dtype: Of its weights.
        device: Where they are.

    Returns:
        The model, with a small tokenizer made on the spot.
    """
    heads = max(SHARING, shape.d_model // HEAD)
    config = LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.d_model,
        intermediate_size=shape.d_mlp,
        num_hidden_layers=shape.blocks,
        num_attention_heads=heads,
        num_key_value_heads=heads // SHARING,
        max_position_embeddings=shape.positions,
    )
    torch.manual_seed(0)
    with torch.device(device):
        hf = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return LanguageModel(hf.eval().requires_grad_(False), make_tokenizer(), FAMILIES["llama"], "random", "random")


class Stages:
    """Measured stages; the first is the machine's rate of products, of which the others are shares.

    Args:
        model: The model.
        repeats: How often each stage is measured.
        out: A JSON file, written after every stage.
        about: What it says beside the stages.

    Attributes:
        stages: For each stage its name, the seconds and what they are for, its share of the machine's rate, the peak of
            memory, and what else there is to say.
    """

    def __init__(self, model: LanguageModel, repeats: int, out: Path | None, about: dict[str, Any]) -> None:
        self.model, self.repeats, self.out, self.about = model, repeats, out, about
        self.rates = {dtype: products(model, dtype) for dtype in (model.dtype, torch.float64)}
        self.stages: list[dict[str, Any]] = []
        for dtype, rate in self.rates.items():
            name = f"products in {str(dtype).removeprefix('torch.')}"
            self._note(f"{name}: {rate / 1e12:.3g} TFLOP/s", {"name": name, "teraflops": rate / 1e12})

    def add(
        self,
        name: str,
        unit: str,
        work: Callable[[], Any],
        count: float = 1,
        flops: float = 0,
        dtype: torch.dtype | None = None,
        say: Callable[[Any], dict[str, Any]] = lambda _: {},
    ) -> Any:
        """Do a stage once, then measure it, and print.

        Args:
            name: Its name.
            unit: What the seconds are for.
            work: The stage.
            count: How many of these the work does.
            flops: Its floating-point operations in matrix products, if they are known.
            dtype: In which dtype; the model's by default.
            say: What else there is to say, of what the work returns.

        Returns:
            What the work returns.
        """
        result = work()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        (elapsed,), peak = medians([work], self.repeats), peak_memory()
        share = flops / elapsed / self.rates[dtype or self.model.dtype] if flops else None
        more, seconds = say(result), elapsed / count
        stage = {"name": name, "unit": unit, "seconds": seconds, "share": share, "peak_bytes": peak} | more
        share_text = f", {share:.0%} of products" if share else ""
        said = "".join(f"; {key} {value}" for key, value in more.items())
        self._note(f"{name}: {seconds:.3g} s {unit}{share_text}, {peak / 2**30:.1f} GiB{said}", stage)
        return result

    def _note(self, line: str, stage: dict[str, Any]) -> None:
        """Print a stage, and write all so far, so that nothing is lost."""
        print(line, flush=True)
        self.stages.append(stage)
        if self.out is not None:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self.out.write_text(json.dumps(self.about | {"stages": self.stages}, indent=1) + "\n")


def add_anchors(stages: Stages, rows: FactRows, layer: int, settings: AnchorSettings) -> None:
    """Anchors side by side and one by one; in float32 on a card also with products in TF32.

    Args:
        stages: Collects the stages.
        rows: The facts.
        layer: The anchor layer.
        settings: How to optimise.
    """
    count, work = len(rows), anchor_work(rows, layer) * settings.steps
    unit, batches = f"a fact, {settings.steps} passes and what goes before", anchor_batches(rows, count)

    def optimise(way: str, size: int, flops: float, say: Callable[[torch.Tensor], dict[str, Any]]) -> torch.Tensor:
        work = partial(anchors, rows, layer, settings, size)
        return stages.add(f"anchors {way}", unit, work, count, flops, say=say)

    alone = optimise("one by one", 1, work, lambda _: {})

    def compared(states: torch.Tensor) -> dict[str, Any]:
        return {"batches": [len(batch) for batch in batches], "apart": float((states - alone).norm() / alone.norm())}

    optimise("side by side", count, work, compared)
    if stages.model.device.type == "cuda" and stages.model.dtype == torch.float32:
        torch.backends.cuda.matmul.allow_tf32 = True
        optimise("side by side in TF32", count, 0, compared)
        torch.backends.cuda.matmul.allow_tf32 = False


def add_jacobians(stages: Stages, rows: FactRows, layers: list[int]) -> None:
    """All J_{l→L} of a fact, and the verdict on the deepest by the matrix and by Lanczos.

    Args:
        stages: Collects the stages.
        rows: The facts.
        layers: The layers, ascending, the last of them L.
    """
    model, last = stages.model, layers[-1]
    frozen, eps = freeze(model, [rows.bare[0]], layers, last), precision(model.dtype)
    matrices = [w for layer in range(layers[0] + 1, last + 1) for w in model.blocks[layer].parameters() if w.dim() == 2]
    work = 2 * model.d_model * sum(weight.numel() for weight in matrices)
    sweep = partial(dense_jacobians, frozen, layers, last)
    double = stages.add(f"all J to {last}", "a fact", sweep, flops=work)[0, 0].double()

    def by_matrix() -> Verdict:
        return verdict_of(symmetric_part(double), eps, float(torch.linalg.svdvals(double)[0]))

    def by_lanczos() -> Verdict:
        J = linear_operator(frozen, 0, layers[0], last)
        return definiteness_matrix_free(J, largest_singular_value(J), eps=eps)

    for way, verdict in (("the matrix", by_matrix), ("Lanczos", by_lanczos)):
        stages.add(f"a verdict by {way}", "a Jacobian", verdict, say=lambda result: {"verdict": repr(result)})


def add_solve(stages: Stages, layers: list[int], tokens: int, edits: int) -> None:
    """The second moment of random tokens at all layers, and MEMIT's solve at the last.

    Args:
        stages: Collects the stages.
        layers: The layers.
        tokens: How many tokens.
        edits: How many keys.
    """
    model, length = stages.model, min(256, stages.model.max_tokens)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, VOCABULARY, (tokens // length, length), generator=generator).tolist()
    documents = [Prompt(tuple(row), length - 1) for row in ids]
    sums, count = partial(sums_of_keys, model, documents, layers), length * len(documents)
    moments = stages.add("second moments", f"{count} tokens, {len(layers)} layers", sums)
    n = model.d_mlp
    place: dict[str, Any] = {"dtype": torch.float64, "device": model.device}
    C = moments[layers[-1]].to(model.device) / count + 1e-2 * torch.eye(n, **place)  # of full rank with few tokens
    K, R = (torch.randn(width, edits, **place) for width in (n, model.d_model))
    solve = partial(memit, Problem(layers[-1], K, R, C, model.weight(layers[-1]), ridge=1e3))
    work = 2 * n**2 * edits + n**3 / 3 + 2 * model.d_model * n * (edits + n)
    stages.add("a solve", f"a layer, {edits} facts", solve, flops=work, dtype=torch.float64)


def anchors(rows: FactRows, layer: int, settings: AnchorSettings, size: int) -> torch.Tensor:
    """Anchors of all facts.

    Args:
        rows: The facts.
        layer: The layer.
        settings: How to optimise.
        size: Facts side by side at the most.

    Returns:
        The states, fact by fact.
    """
    batches = anchor_batches(rows, size)
    states = torch.cat([optimize_anchors(rows.select(batch), layer, settings).states for batch in batches])
    return states[torch.argsort(torch.tensor([index for batch in batches for index in batch])).to(states.device)]


def anchor_work(rows: FactRows, layer: int) -> float:
    """Floating-point operations of one pass over all facts in the matrices, the last without an update likewise.

    Args:
        rows: The facts.
        layer: The anchor layer.

    Returns:
        Their number.
    """
    model = rows.model
    above = sum(w.numel() for block in model.blocks[layer + 1 :] for w in block.parameters() if w.dim() == 2)
    answered = [row for contexts in rows.answered_contexts for row in contexts]
    tokens = sum(row.tail for row in answered) + len(rows.kl)
    logits = sum(len(row.answer) for row in answered) + len(rows.kl)
    return FORWARD_AND_BACK * (tokens * above + logits * model.d_model * model.hf.config.vocab_size)


def products(model: LanguageModel, dtype: torch.dtype) -> float:
    """Rate at which the machine multiplies large matrices.

    Args:
        model: Where and about how large.
        dtype: In which dtype.

    Returns:
        Floating-point operations a second.
    """
    size = 8192 if model.device.type == "cuda" else 2048
    square = torch.randn(size, size, device=model.device).to(dtype)
    _ = square @ square  # the first takes longer
    (seconds,) = medians([lambda: square @ square], 7)
    return 2 * size**3 / seconds


def peak_memory() -> int:
    """The most memory that was taken, the model's included: on the card, or on the host since the process began.

    Returns:
        Bytes.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
