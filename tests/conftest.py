"""Fixtures: small random models of every family, the real model, and the shared data where they are."""

import json
import os
import tempfile
from pathlib import Path

import pytest

os.environ.setdefault("JACOBIAN_LAB_CACHE", str(Path(tempfile.gettempdir()) / "jacobian_lab-tests-cache"))
os.environ["HF_HUB_OFFLINE"] = "1"

from helpers.exact import load_exact
from helpers.small import CONFIGS, CONTEXTS, FAMILIES, make_folder, make_tokenizer

from jacobian_lab.facts.fact import Fact
from jacobian_lab.jobs.config import AnchorConfig
from jacobian_lab.model.loading import load_model
from jacobian_lab.model.templates import read_templates

SHARED = Path(__file__).resolve().parents[2] / "shared"


REAL = {"real", "shared", "golden", "loaded"}
"""Fixtures that need the embedded model, or data that are not everywhere."""


def pytest_collection_modifyitems(items):
    for item in items:
        if REAL & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.real)


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A folder for each family; some tokenizers pad left, some add BOS."""
    root = tmp_path_factory.mktemp("families")
    variants = {
        "llama": make_tokenizer("left", bos=True),
        "qwen3": make_tokenizer("left"),
        "gptj": make_tokenizer(bos=True, eos=True),
    }
    return {
        name: make_folder(root / name, CONFIGS[name], variants.get(name), seed) for seed, name in enumerate(FAMILIES)
    }


@pytest.fixture(scope="session", params=FAMILIES)
def family_model(request, folders):
    """Each family in exact float64."""
    return load_exact(folders[request.param])


@pytest.fixture(scope="session")
def tiny(folders):
    return load_exact(folders["llama"])


@pytest.fixture(scope="session")
def real():
    return load_model(device="cpu")


@pytest.fixture(scope="session")
def facts() -> tuple[Fact, ...]:
    """Subjects first, in the middle and last; prompts, tails and targets of different lengths."""
    return (
        Fact("first", "Ada Lovelace", "{} wrote about", "poetry", "engines"),
        Fact("middle", "the Eiffel Tower", "You can find {} in the city of", "London", "Paris"),
        Fact(
            "last",
            "Gabriel García Márquez",
            "The author of that novel is called {}",
            "Dickens and Twain",
        ),
        Fact("alone", "Rome", "{}", "is old"),
        Fact("twice", "Paris", "Paris is where {} is, said", "nobody at all"),
    )


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text("\n".join(f"Line {n} tells of towers, rivers and {n * n} old books." for n in range(60)))
    return path


@pytest.fixture(scope="session")
def templates_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("templates") / "templates.json"
    path.write_text(json.dumps(CONTEXTS))
    return path


@pytest.fixture(scope="session")
def arguments(tmp_path_factory, corpus_file, templates_file) -> dict[str, object]:
    """Options of a quick run."""
    return {
        "model": str(make_folder(tmp_path_factory.mktemp("model") / "gpt2", CONFIGS["gpt2"])),
        "slice": "0:6",
        "layers": "1-3",
        "templates": templates_file,
        "corpus": str(corpus_file),
        "ridge": 10.0,
        "anchor": AnchorConfig(lr=0.1, steps=4),
        "anchors_per_batch": 2,
        "device": "cpu",
        "dtype": "float64",
    }


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip("the shared data are not here")
    return SHARED


@pytest.fixture
def golden(shared):
    folder = shared / "reference" / "golden"
    return {
        "numbers": json.loads((folder / "mcf_100_104.json").read_text()),
        "templates": read_templates(folder / "templates.json"),
        "tensors": folder / "mcf_100_104.safetensors",
    }
