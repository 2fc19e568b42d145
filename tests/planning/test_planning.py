"""What a job costs: counted against what is really run, and told without any weights."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from helpers.commands import options
from helpers.small import CONFIGS, CONTEXTS, make_folder

from jacobian_lab import cli
from jacobian_lab.editing.anchors import AnchorSettings, coordinate_shifts, optimise_anchors
from jacobian_lab.editing.layers import Setting, edit_layers, restored
from jacobian_lab.editing.schemes import SCHEMES, make_targets
from jacobian_lab.editing.second_moments import sums_of_keys
from jacobian_lab.errors import InputError
from jacobian_lab.evaluation.examination import Examination
from jacobian_lab.facts.reading import load_facts
from jacobian_lab.jobs import job as jobs
from jacobian_lab.jobs.config import JacobianConfig, SchemesConfig
from jacobian_lab.jobs.jacobians import run_jacobian
from jacobian_lab.jobs.schemes import run_schemes
from jacobian_lab.model.loading import load_model, sketch_model
from jacobian_lab.model.rows import fact_rows
from jacobian_lab.planning import costs as planning
from jacobian_lab.planning.cards import CARDS
from jacobian_lab.planning.clock import Clock, measured
from jacobian_lab.planning.costs import Costs, Stage
from jacobian_lab.planning.plan import Plan, told
from jacobian_lab.planning.sketch import Sizes, two_blocks

NEVER = 1e30
CUBES = dict.fromkeys(("spectra", "eigenvectors", "cholesky"), 0.0)
FREE = {"rates": dict.fromkeys(("model", "float32", "float64"), NEVER), "cubes": CUBES, "moved": NEVER}


def counting(forward, both):
    """A clock whose seconds are tokens through a block, forward, or forward and back."""
    blocks = {tokens: (float(forward * tokens), float(both * tokens)) for tokens in (1, 1000)}
    return Clock("a test", card=False, blocks=blocks, logits=(0.0, 0.0), **FREE)


@pytest.fixture
def ran(family_model):
    """Counts tokens through the blocks of a model."""
    counts, handles = [], []
    for block in family_model.blocks:
        handles.append(block.register_forward_hook(lambda _m, given, _o: counts.append(given[0][..., 0].numel())))
    yield counts
    for handle in handles:
        handle.remove()


@pytest.fixture
def rows(family_model, facts):
    return fact_rows(family_model, facts, CONTEXTS)


def test_sizes_are_those_of_the_loaded_model(family_model, folders):
    family = family_model.hf.config.model_type
    sketch = sketch_model(folders[family], dtype="float64")
    assert {weight.device.type for weight in sketch.hf.parameters()} == {"meta"}
    sizes = Sizes.of(sketch)
    assert sizes == Sizes.of(family_model)
    assert sizes.weights == sum(weight.numel() for weight in family_model.hf.parameters())
    assert sizes.block == sum(w.numel() for w in family_model.blocks[2].parameters() if w.dim() == 2)
    assert (sizes.blocks, sizes.width, sizes.d_mlp) == (6, 32, 64)
    small = two_blocks(sketch, torch.device("cpu"))
    assert len(small.blocks) == 2
    assert Sizes.of(small).block == sizes.block


@pytest.mark.parametrize("layers", [(1,), (1, 2, 3)])
def test_a_descent_runs_the_tokens_that_are_counted(layers, rows, ran, monkeypatch):
    monkeypatch.setattr(planning, "PASSED", 1.0)
    some = rows.select([1])  # a batch of one fact, whose rows have one tail
    settings = AnchorSettings(steps=4, stop_loss=0.0)
    if len(layers) == 1:
        optimise_anchors(some, 1, settings)
    else:
        coordinate_shifts(some, layers, settings)
    replayed = Costs(rows.model, counting(0, 1)).descent("anchors", some, 1, 4, 8).seconds
    frozen = Costs(rows.model, counting(1, 0)).descent("anchors", some, 1, 4, 8).seconds
    assert replayed <= sum(ran) <= 1.5 * (replayed + frozen)
    assert replayed == 4 * 4 * (len(CONTEXTS[1]) + 1) * some.answered[0].tail + 4 * 4


def test_second_moments_run_the_tokens_that_are_counted(rows, ran):
    sums_of_keys(rows.model, rows.answered, (1, 3))
    tokens = sum(len(row.ids) for row in rows.answered)
    counted = Costs(rows.model, counting(1, 0)).moments(tokens, (1, 3)).seconds
    assert counted == pytest.approx(4 * tokens)
    assert counted <= sum(ran) <= 2 * counted  # rows are padded


@pytest.mark.parametrize("scheme", ["forward-replay", "one-layer"])
def test_an_edit_runs_the_tokens_that_are_counted(scheme, rows, ran):
    model, layers = rows.model, (1, 2, 3)
    states = torch.randn(len(rows), model.d_model, dtype=model.dtype, generator=torch.Generator().manual_seed(0))
    targets = make_targets(rows, layers, {1: states, 3: states})
    setting = Setting(rows, {layer: torch.eye(model.d_mlp, dtype=torch.float64) for layer in layers}, 1.0)
    ran.clear()
    with restored(model, layers):
        edited = [edit.layer for edit in edit_layers(setting, SCHEMES[scheme], targets)]
    counted = Costs(model, counting(1, 0)).edit(rows, edited, 3, observed=False)
    assert 0.8 * counted <= sum(ran) <= 1.2 * counted


def test_an_evaluation_runs_the_tokens_that_are_counted(family_model, ran):
    examination = Examination.of(family_model, load_facts("builtin", "0:2"))
    _ = examination.before
    ran.clear()
    list(examination.answers())
    counted = Costs(family_model, counting(1, 0)).evaluation(examination.rows())
    assert counted / 3 <= sum(ran) <= 1.5 * counted  # rows that begin alike are run once


def test_between_what_was_measured_a_clock_interpolates():
    clock = Clock(
        "a test", card=False, blocks={1: (1.0, 2.0), 11: (2.0, 5.0), 21: (4.0, 9.0)}, logits=(0.0, 0.0), **FREE
    )
    assert clock.block(6) == 1.5
    assert clock.block(6, back=True) == 3.5
    assert clock.block(31) == 6.0
    assert clock.passes(42, 21) == 8.0
    assert clock.passes(0, 21) == 0.0


def test_a_clock_of_this_machine_and_one_of_a_card(family_model):
    ours, card = measured(family_model), CARDS["h200"].clock(family_model)
    for clock in (ours, card):
        assert all(0 < there < both for there, both in clock.blocks.values())
        assert min(*clock.rates.values(), *clock.cubes.values(), *clock.logits, clock.moved) > 0
    assert (ours.card, card.card) == (False, True)


COMMANDS = ["tables", "edit-table", "edit", "theorem1", "layer-count", "damping", "frontier", "jacobian"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_computes_can_be_planned(command, arguments, tmp_path, monkeypatch, capsys):
    """With the configuration and the tokenizer alone, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "sketch"
    shutil.copytree(arguments["model"], folder)
    (folder / "model.safetensors").unlink()
    unused = ("templates", "corpus", "ridge", "anchor", "batch_size") if command == "jacobian" else ()
    given = {name: value for name, value in arguments.items() if name not in unused} | {"model": folder}
    before = sorted(tmp_path.rglob("*"))
    for extra in ([], ["--card", "h200"]):
        cli.main([command, *options(given), "--plan", "--json", *extra])
        found = json.loads(capsys.readouterr().out)
        assert found["total_seconds"] == pytest.approx(sum(stage["seconds"] for stage in found["stages"]))
        assert all(stage.keys() == {"name", "seconds", "host_bytes", "device_bytes"} for stage in found["stages"])
        assert all(stage["seconds"] > 0 and stage["host_bytes"] > 0 for stage in found["stages"])
        assert (found["device_bytes"] > 0) == bool(extra)
    cli.main([command, *options(given), "--plan"])
    assert len(capsys.readouterr().out.splitlines()) == len(found["stages"]) + 3
    assert sorted(tmp_path.rglob("*")) == before


def test_a_configuration_alone_is_enough(tmp_path, capsys, real):
    make_folder(tmp_path / "whole", CONFIGS["qwen3"])
    (tmp_path / "alone").mkdir()
    shutil.copy(tmp_path / "whole" / "config.json", tmp_path / "alone")
    cli.main(["jacobian", "--model", str(tmp_path / "alone"), "--slice", "0:2", "--layers", "1-3", "--plan"])
    assert "Jacobians" in capsys.readouterr().out


def test_a_run_says_what_it_was_estimated_to_take_and_took(arguments, tmp_path, capsys):
    config = SchemesConfig(**{**arguments, "slice": "0:2"}, schemes=("one-layer",), out=tmp_path / "run")
    run_schemes(config, progress=False)
    told_on_stderr = capsys.readouterr().err
    found = json.loads((tmp_path / "run" / "costs.json").read_text())
    assert [stage["name"] for stage in found["stages"]][-4:] == [
        "anchors at layer 1",
        "anchors at layer 3",
        "Jacobians",
        "edits under 1 schemes",
    ]
    assert found["took_seconds"] == pytest.approx(sum(found["took_by_part"]))
    assert min(found["took_by_part"]) > 0
    assert found["peak_bytes"] > 2**27
    assert "about " in told_on_stderr
    assert "of what was estimated" in told_on_stderr
    run_schemes(config, progress=False)
    assert "about " not in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "costs.json").read_text()) == found


def test_what_memory_cannot_hold_is_refused_before_any_work(arguments, tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "available_memory", lambda: 2**27)
    monkeypatch.setattr(jobs, "held_memory", lambda: 2**27)
    config = JacobianConfig(
        **{name: arguments[name] for name in ("model", "layers", "device", "dtype")}, slice="0:2", out=tmp_path / "run"
    )
    with pytest.raises(InputError, match=r"expected 0.7 GiB of the host's memory for Jacobians, got 0.2 GiB"):
        run_jacobian(config, progress=False)
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_plan_names_what_does_not_fit_a_card():
    plan = Plan("a card", [Stage("small", 1.0, 1, 1), Stage("large", 2.0, 1, 2**40)], 0)
    assert (plan.seconds, plan.host, plan.device) == (3.0, 1, 2**40)
    plan.check_fits(2**30, None)
    with pytest.raises(InputError, match=r"expected 1024.0 GiB of the card's memory for large, got 80.0 GiB"):
        plan.check_fits(2**30, 80 * 2**30)


@pytest.mark.parametrize(
    ("seconds", "words"), [(3.14, "3.1 s"), (42.0, "42 s"), (150.0, "2.5 min"), (7200.0, "2.0 h"), (2e6, "23 days")]
)
def test_seconds_as_a_person_says_them(seconds, words):
    assert told(seconds) == words


def test_a_sketch_has_no_numbers(folders):
    assert sketch_model(folders["gpt2"]).fingerprint == "no weights"
    assert load_model(folders["gpt2"], device="cpu").fingerprint != "no weights"
    with pytest.raises(InputError, match="expected a dtype"):
        sketch_model(folders["gpt2"], dtype="int4")


def test_more_facts_cost_more(rows):
    costs = Costs(rows.model, counting(1, 2))
    fewer = rows.select([0, 1])
    assert costs.descent("", fewer, 1, 4, 8).seconds < costs.descent("", rows, 1, 4, 8).seconds
    dense = replace(costs.clock, cubes=CUBES | {"spectra": 1.0, "eigenvectors": 1.0})
    assert Costs(rows.model, dense).survey(rows.bare, (1, 3), 5, 5).seconds > 10 * 32**3
