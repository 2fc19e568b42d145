"""Fixtures: small random models of every family, the real model, and the shared data where they are; marks of tiers."""

import json
import os
import tempfile
from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("JACOBIAN_LAB_CACHE", str(Path(tempfile.gettempdir()) / "jacobian_lab-tests-cache"))
os.environ["HF_HUB_OFFLINE"] = "1"

from filelock import FileLock
from helpers import exact
from helpers.small import CONFIGS, CONTEXTS, FAMILIES, make_folder, make_tokenizer

from jacobian_lab.facts.fact import Fact
from jacobian_lab.jobs import job
from jacobian_lab.jobs.config import AnchorConfig, SchemesConfig
from jacobian_lab.jobs.kinds import run_job
from jacobian_lab.jobs.studies import STUDIES
from jacobian_lab.model.loading import load_model
from jacobian_lab.model.templates import read_templates
from jacobian_lab.planning.rates import Rates
from jacobian_lab.planning.work import Work
from jacobian_lab.report import intervals
from jacobian_lab.store import completion

SHARED = Path(__file__).resolve().parents[2] / "shared"


REAL = {"real", "shared", "golden", "loaded"}
"""Fixtures that need the embedded model, or data that are not everywhere."""

JOB = {"arguments"}
"""Fixtures of whole jobs."""

LONG = {
    "editing": ("test_coordination", "test_variants"),
    "jobs": ("test_half_precision", "test_job"),
    "maps": ("test_operator",),
    "model": ("test_chat_templates", "test_gguf_files", "test_hub", "test_loading"),
    "report": (
        "test_page",
        "test_page_browser",
        "test_paper",
        "test_residuals",
        "test_results",
        "test_showing",
        "test_writing",
    ),
    "store": ("test_arrays", "test_run"),
    "tests": ("test_cli", "test_pages"),
    "training": ("test_rledit",),
}
"""Modules, by folder, that take five seconds and more together; `make check` leaves them out."""

ALIKE = {"gpt_neox", "mistral", "qwen2", "qwen3", "granite"}
"""Families whose edits `make test-all` alone repeats: every family's blocks stand in maps/test_every_family.py."""

settings.register_profile("default", derandomize=True, deadline=None)
settings.register_profile("check", derandomize=True, deadline=None, max_examples=20)
settings.load_profile("default")


@pytest.hookimpl(tryfirst=True)  # before marks choose
def pytest_collection_modifyitems(items):
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if REAL & fixtures:
            item.add_marker(pytest.mark.real)
        if JOB & fixtures:
            item.add_marker(pytest.mark.job)
        if item.path.stem in LONG.get(item.path.parent.name, ()):
            item.add_marker(pytest.mark.long)
        parameters = getattr(item, "callspec", None)
        if parameters and item.path.stem != "test_every_family" and ALIKE & set(map(str, parameters.params.values())):
            item.add_marker(pytest.mark.slow)
        if item.path.suffix == ".ipynb" and not item.path.name.startswith("01"):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session", autouse=True)
def nothing_measured_at_length():
    """Few resamples, no waiting for other writers, and rates that are not measured when a job starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(intervals, "RESAMPLES", 199)
        patch.setattr(completion, "PAUSE", 0.0)  # no writer is at work beside a test
        patch.setattr(job, "measured", lambda *_: Rates("a test", False, Work(*[1e-9] * len(fields(Work)))))
        yield


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """Make a folder by its name once for all processes of the tests."""
    own = tmp_path_factory.getbasetemp()
    root = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def made(name, make) -> Path:
        folder = root / name
        with FileLock(f"{folder}.lock"):
            if not Path(f"{folder}.made").exists():
                make(folder)
                Path(f"{folder}.made").touch()
        return folder

    return made


@pytest.fixture(scope="session")
def folders(once) -> dict[str, Path]:
    """A folder for each family; some tokenizers pad left, some add BOS."""
    variants = {"llama": {"side": "left", "bos": True}, "qwen3": {"side": "left"}, "gptj": {"bos": True, "eos": True}}

    def make(root):
        for seed, name in enumerate(CONFIGS):
            make_folder(root / name, CONFIGS[name], make_tokenizer(**variants.get(name, {})), seed)

    root = once("families", make)
    return {name: root / name for name in CONFIGS}


@pytest.fixture(scope="session")
def load_exact(folders):
    """A family's model in exact float64, loaded once."""
    return cache(lambda family: exact.load_exact(folders[family]))


@pytest.fixture(scope="session", params=FAMILIES)
def family_model(request, load_exact):
    return load_exact(request.param)


@pytest.fixture(scope="session")
def tiny(load_exact):
    return load_exact("llama")


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
def corpus_file(once) -> Path:
    lines = (f"Line {n} tells of towers, rivers and {n * n} old books." for n in range(60))
    return once("corpus.txt", lambda path: path.write_text("\n".join(lines)))


@pytest.fixture(scope="session")
def templates_file(once) -> Path:
    return once("templates.json", lambda path: path.write_text(json.dumps(CONTEXTS)))


@pytest.fixture(scope="session")
def arguments(once, corpus_file, templates_file) -> dict[str, object]:
    """Options of a quick run."""
    return {
        "model": str(once("gpt2", lambda folder: make_folder(folder, CONFIGS["gpt2"]))),
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
def tables_run(once, arguments) -> Path:
    """All schemes, without a study; to be read, or copied."""
    return once("tables", lambda folder: run_job(SchemesConfig(**arguments, out=folder), progress=False))


@pytest.fixture(scope="session")
def studied_run(once, arguments) -> Path:
    """Two schemes with all studies; to be read, or copied."""
    schemes = ("backward-dividing", "forward-replay")

    def make(folder):
        run_job(SchemesConfig(**arguments, schemes=schemes, studies=tuple(STUDIES), out=folder), progress=False)

    return once("studied", make)


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
