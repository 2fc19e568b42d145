"""Plans, told without any weights, and what runs say of theirs."""

import json
import shutil

import pytest
from helpers.commands import options
from helpers.small import CONFIGS, make_folder
from transformers import LlamaConfig

from jacobian_lab import cli
from jacobian_lab.errors import InputError
from jacobian_lab.jobs import job as jobs
from jacobian_lab.jobs.config import EditConfig, JacobianConfig, SchemesConfig
from jacobian_lab.jobs.kinds import run_job
from jacobian_lab.model.families import KNOWN
from jacobian_lab.model.loading import sketch_model
from jacobian_lab.planning.plan import PROCESS, Plan, Resident, spoken
from jacobian_lab.planning.rates import Rates
from jacobian_lab.planning.shape import Shape
from jacobian_lab.planning.work import Stage, Work

TOKENS = Rates("a test", card=False, seconds=Work(tokens=1e-6, back_tokens=2e-6))
COMMANDS = ["tables", "edit-table", "edit", "theorem1", "layer-count", "damping", "frontier", "jacobian", "locate"]
COMMANDS += ["transfer", "sequence"]


def read_plan(capsys, command, *given):
    cli.main([command, *given, "--plan", "--json"])
    return json.loads(capsys.readouterr().out)


def stages_of(capsys, command, *given):
    return {stage["name"]: stage for stage in read_plan(capsys, command, *given)["stages"]}


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_computes_can_be_planned(command, arguments, tmp_path, monkeypatch, capsys):
    """With the configuration and the tokenizer alone, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "sketch"
    shutil.copytree(arguments["model"], folder)
    (folder / "model.safetensors").unlink()
    unused = (
        ("templates", "corpus", "ridge", "anchor", "anchors_per_batch") if command in {"jacobian", "locate"} else ()
    )
    used = {name: value for name, value in arguments.items() if name not in unused} | {"model": folder}
    before = sorted(tmp_path.rglob("*"))
    plan = read_plan(capsys, command, *options(used), "--card", "h200")
    assert plan["total_seconds"] == pytest.approx(sum(stage["seconds"] for stage in plan["stages"]))
    assert all(stage.keys() == {"name", "seconds", "host_bytes", "device_bytes"} for stage in plan["stages"])
    assert all(stage["seconds"] > 0 and stage["host_bytes"] > 0 for stage in plan["stages"])
    assert plan["device_bytes"] > 0
    assert plan["smallest_card"].startswith("16 GB")
    cli.main([command, *options(used), "--plan"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(plan["stages"]) + 4
    assert lines[-1].startswith("Smallest card: 16 GB")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_configuration_alone_is_enough(tmp_path, capsys, real):
    make_folder(tmp_path / "whole", CONFIGS["qwen3"])
    (tmp_path / "alone").mkdir()
    shutil.copy(tmp_path / "whole" / "config.json", tmp_path / "alone")
    cli.main(["jacobian", "--model", str(tmp_path / "alone"), "--slice", "0:2", "--layers", "1-3", "--plan"])
    assert "Jacobians" in capsys.readouterr().out


def test_tables_at_the_shape_of_llama_3_8b(tmp_path, capsys, real):
    """From its configuration alone, held against what is known of the shape and was measured on the card."""
    shape = KNOWN["llama-3-8b-instruct"].shape
    LlamaConfig(
        hidden_size=shape.d_model,
        intermediate_size=shape.d_mlp,
        num_hidden_layers=shape.blocks,
        num_key_value_heads=8,
        vocab_size=shape.vocab_size,
        max_position_embeddings=shape.positions,
    ).save_pretrained(tmp_path)
    given = ["--model", str(tmp_path), "--slice", "0:8", "--protocol", "llama-3-8b-instruct"]
    plans = {
        (dtype, workers): read_plan(
            capsys, "tables", *given, "--dtype", dtype, "--card", card, "--workers", str(workers)
        )
        for dtype, card, workers in (("bfloat16", "h200", 1), ("float32", "h200", 1), ("bfloat16", "h100", 8))
    }
    stages = {key: {stage["name"]: stage for stage in plan["stages"]} for key, plan in plans.items()}
    one, exact, eight = stages["bfloat16", 1], stages["float32", 1], stages["bfloat16", 8]
    assert all(plan["refused"] is None for plan in plans.values())
    weights = 8.03e9
    assert one["loading"]["device_bytes"] == pytest.approx(2 * weights, rel=0.01)
    assert exact["loading"]["device_bytes"] == pytest.approx(4 * weights, rel=0.01)
    assert one["Jacobians"]["seconds"] > 8 * 4 * 1.493  # eigenvalues and singular values, as measured
    assert eight["Jacobians"]["seconds"] == pytest.approx(one["Jacobians"]["seconds"] / 8, rel=0.3)
    assert one["anchors at layer 8"]["seconds"] < one["anchors at layer 4"]["seconds"]
    assert 1 < exact["anchors at layer 4"]["seconds"] / one["anchors at layer 4"]["seconds"] < 735 / 50.3
    assert plans["bfloat16", 1]["smallest_card"].startswith(("24 GB", "40 GB"))


def test_a_model_over_several_cards_takes_a_share_of_each_and_no_less_time(arguments, capsys):
    """Two blocks of six cards hold what is no block, here the most."""
    shape, plans = Shape.of(sketch_model(arguments["model"])), {}
    for cards in ("cuda", "cuda:0-1", "cuda:0-5"):
        plans[cards] = read_plan(capsys, "tables", *options(arguments), "--card", "h100", "--device", cards)
    loading = {cards: plan["stages"][0]["device_bytes"] for cards, plan in plans.items()}
    assert loading["cuda"] == 8 * shape.weights
    assert loading["cuda:0-1"] == 8 * (shape.weights // 2 + shape.block)
    assert loading["cuda:0-5"] == 8 * (shape.weights - shape.blocks * shape.block)
    assert [plan["machine"] for plan in plans.values()] == ["one NVIDIA H100", "2 NVIDIA H100s", "6 NVIDIA H100s"]
    edits = [plan["stages"][-1]["seconds"] for plan in plans.values()]
    assert edits == pytest.approx([edits[0]] * 3, rel=0.2)


def test_a_run_says_what_it_was_estimated_to_take_and_took(arguments, tmp_path, capsys):
    config = SchemesConfig(**{**arguments, "slice": "0:2"}, schemes=("one-layer",), out=tmp_path / "run")
    run_job(config, progress=False)
    said = capsys.readouterr().err
    costs = json.loads((tmp_path / "run" / "costs.json").read_text())
    assert [stage["name"] for stage in costs["stages"]][-4:] == [
        "anchors at layer 1",
        "anchors at layer 3",
        "Jacobians",
        "edits under 1 scheme",
    ]
    assert costs["took_seconds"] == pytest.approx(sum(part["took_seconds"] for part in costs["parts"]))
    assert [name for part in costs["parts"] for name in part["stages"]] == [each["name"] for each in costs["stages"]]
    assert costs["peak_bytes"] > 2**27
    assert "about " in said
    assert "of what was estimated" in said
    run_job(config, progress=False)
    assert "about " not in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "costs.json").read_text()) == costs


def test_what_is_done_again_is_estimated(arguments, monkeypatch, tmp_path):
    monkeypatch.setattr(jobs, "measured", lambda *_: TOKENS)
    config = EditConfig(**{**arguments, "slice": "0:2"}, method="memit", greedy=False, out=tmp_path / "run")
    run_job(config, progress=False)
    first = json.loads((tmp_path / "run" / "costs.json").read_text())["stages"][-1]
    next((tmp_path / "run").glob("delta-*")).unlink()
    run_job(config, progress=False)
    again = json.loads((tmp_path / "run" / "costs.json").read_text())["stages"][-1]
    assert again["name"] == first["name"]
    assert 0.4 * first["seconds"] < again["seconds"] < first["seconds"]  # the unedited model is not asked again


def test_what_memory_cannot_hold_is_refused_before_any_work(arguments, tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "memory_of", lambda _device: (2**28, None))
    config = JacobianConfig(
        **{name: arguments[name] for name in ("model", "layers", "device", "dtype")}, slice="0:2", out=tmp_path / "run"
    )
    with pytest.raises(InputError, match=r"expected 0.7 GiB of the host's memory for Jacobians, got 0.2 GiB"):
        run_job(config, progress=False)
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_plan_names_what_does_not_fit():
    card = Rates("a card", card=True, seconds=Work(tokens=1.0))
    stages = [Stage("small", Work(tokens=1), 1), Stage("large", Work(tokens=2), 2**40, least=2**37)]
    plan = Plan(card, stages, Resident(weights=0), 0)
    assert (plan.seconds, *plan.most()) == (3.0, PROCESS, 2**40)
    plan.check_fits(2**30, 2**38)
    with pytest.raises(InputError, match=r"expected 128.0 GiB of the card's memory for large, got 80.0 GiB.*141 GB"):
        plan.check_fits(2**30, 80 * 2**30)
    with pytest.raises(InputError, match=r"expected 0.7 GiB of the host's memory for small, got 0.0 GiB"):
        plan.check_fits(1, 2**38)


def test_workers_hold_models_and_share_the_time():
    stage, held = Stage("shared", Work(tokens=10), 5, shared=True), Resident(weights=100, workers=2, sharing=2.0)
    plan = Plan(Rates("", card=True, seconds=Work(tokens=1.0)), [stage, Stage("own", Work(tokens=10), 5)], held, 0)
    assert [plan.seconds_of(each) for each in plan.stages] == [5.0, 10.0]
    assert [plan.bytes_of(each)[1] for each in plan.stages] == [110, 105]
    assert plan.most()[0] == 3 * PROCESS


def test_what_does_not_fit_is_planned_all_the_same(arguments, monkeypatch, capsys):
    monkeypatch.setattr(jobs, "memory_of", lambda _device: (2**28, None))
    given = {name: arguments[name] for name in ("model", "layers", "device", "dtype")}
    plan = read_plan(capsys, "jacobian", *options(given), "--slice", "0:2")
    assert plan["total_seconds"] > 0
    assert "expected 0.7 GiB of the host's memory" in plan["refused"]


def test_a_card_means_a_plan(arguments, capsys):
    cli.main(["tables", *options({**arguments, "slice": "0:2"}), "--plan-card", "h200"])
    assert "On one NVIDIA H200" in capsys.readouterr().out


def test_anchors_of_another_run_cost_nothing(arguments, tmp_path, capsys):
    small = {**arguments, "slice": "0:2"}
    run_job(SchemesConfig(**small, schemes=("one-layer",), survey="none", out=tmp_path / "donor"), progress=False)
    capsys.readouterr()
    for command, anchors in (("tables", 0), ("layer-count", 2)):
        names = stages_of(capsys, command, *options(small), "--anchors-from", str(tmp_path / "donor"))
        assert sum(name.startswith("anchors") for name in names) == anchors, command
        assert any(name.startswith("coordinated") for name in names)  # which the donor has not


def test_a_method_that_trains_is_counted_without_second_moments_and_solves(tmp_path, arguments, capsys):
    """They weigh most where keys are wide."""
    config = LlamaConfig(**{**CONFIGS["llama"].to_dict(), "intermediate_size": 1024})
    given = {**arguments, "model": str(make_folder(tmp_path / "wide", config)), "slice": "0:2"}
    alone, pair = (stages_of(capsys, "edit-table", *options(given), "--methods", n) for n in ("wise", "memit"))
    assert alone["training of wise"]["seconds"] > 0
    assert "λ and its checks" in pair
    assert "λ and its checks" not in alone
    evaluated = "1 edit, evaluated"
    assert pair[evaluated]["host_bytes"] > 5 * 8 * 1024**2 + alone[evaluated]["host_bytes"]


@pytest.mark.parametrize(
    ("seconds", "words"), [(3.14, "3.1 s"), (42.0, "42 s"), (150.0, "2.5 min"), (7200.0, "2.0 h"), (2e6, "23 days")]
)
def test_seconds_as_a_person_says_them(seconds, words):
    assert spoken(seconds) == words
