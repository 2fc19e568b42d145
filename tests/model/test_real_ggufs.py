"""Real GGUF files against a reader of their own: gguf's dequantisation, tensor by tensor, into the plain model."""

import os
from pathlib import Path

import pytest
import torch
from helpers.gguf_files import read_plainly, sentencepieces

from jacobian_lab.model import sources
from jacobian_lab.model.loading import load_model

GEMMA = "gemma-3-270m-q4_k_m.gguf"
TEXTS = (
    "The Eiffel Tower is in the city of",
    "def add(a, b):\n    return a + b\n\n\nprint(add(1413, 7))",
    "\u00c9t\u00e9 \u6771\u4eac, 1413 km away. " * 12,
)
FOLDER = os.environ.get("JACOBIAN_LAB_REAL_MODELS")
"""Where shared/tools/real_models.sh has put its files."""


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("file", ["", "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf", GEMMA])
def test_tensors_and_logits_are_those_of_an_independent_reader(file, record_property):
    if file and not (FOLDER and (Path(FOLDER) / file).is_file()):
        pytest.skip(f"no {file}: set JACOBIAN_LAB_REAL_MODELS to the folder that holds it")
    path = Path(FOLDER) / file if FOLDER and file else sources._embedded(sources.DEFAULT_MODEL)
    model, plain = load_model(path if file else sources.DEFAULT_MODEL, device="cpu"), read_plainly(path)
    unread = dict(plain.named_parameters())
    tensors = max(float((weight - unread.pop(name)).abs().max()) for name, weight in model.hf.named_parameters())
    assert not unread
    largest = size = 0.0
    for text in TEXTS:
        ids = torch.tensor([model.text_prompt(text).ids])
        own = plain(ids).logits
        largest = max(largest, float((model.hf(ids).logits - own).abs().max()))
        size = max(size, float(own.abs().max()))
    record_property("differences", f"{path.name}: tensors {tensors:.1e}, logits (up to {size:.0f}) {largest:.1e}")
    if file == GEMMA:
        assert all(list(model.text_prompt(text).ids) == sentencepieces(path, text) for text in TEXTS)
    assert tensors == 0
    assert largest < 1e-4 * size
