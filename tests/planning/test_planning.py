"""What a job costs: counted against what is really run, and told without any weights."""

import copy
import json
import shutil
from dataclasses import replace

import pytest
import torch
from helpers.commands import options
from helpers.small import CONFIGS, CONTEXTS, make_folder
from jacobian_lab.planning.cards import CARDS
from jacobian_lab.planning.clock import Clock, measured
from jacobian_lab.planning.costs import Costs, Stage
from jacobian_lab.planning.held import asking, served
from jacobian_lab.planning.sketch import Sizes, two_blocks
from transformers import LlamaConfig

from jacobian_lab import cli
from jacobian_lab.crew.settings import Load
from jacobian_lab.editing.anchors import AnchorSettings, coordinate_shifts, optimise_anchors
from jacobian_lab.editing.layers import Setting, edit_layers, restored
from jacobian_lab.editing.schemes import SCHEMES, make_targets
from jacobian_lab.editing.second_moments import sums_of_keys
from jacobian_lab.errors import InputError
from jacobian_lab.evaluation import examination as examined
from jacobian_lab.evaluation.examination import Examination
from jacobian_lab.facts.reading import load_facts
from jacobian_lab.jobs import job as jobs
from jacobian_lab.jobs.config import EditConfig, JacobianConfig, SchemesConfig
from jacobian_lab.jobs.jacobians import Survey
from jacobian_lab.jobs.kinds import run_job
from jacobian_lab.jobs.schemes import schemes_job
from jacobian_lab.jobs.studies import cost_of
from jacobian_lab.model.families import KNOWN
from jacobian_lab.model.loading import load_model, sketch_model
from jacobian_lab.model.rows import fact_rows
from jacobian_lab.planning import costs as planning
from jacobian_lab.planning.plan import Plan, told
from jacobian_lab.store.finished import Finished
from jacobian_lab.training.settings import RLEditSettings

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
    assert edited == list(SCHEMES[scheme].edited(layers))
    counted = Costs(model, counting(1, 0)).edit(rows, SCHEMES[scheme], layers, observed=False)
    assert 0.8 * counted <= sum(ran) <= 1.2 * counted


@pytest.mark.parametrize("at_once", [1, 32])
def test_an_evaluation_runs_the_tokens_that_are_counted(at_once, family_model, ran, monkeypatch):
    monkeypatch.setattr(examined, "FACTS_AT_ONCE", at_once)
    examination = Examination.of(family_model, load_facts("builtin", "0:6"))
    _ = examination.before
    ran.clear()
    list(examination.answers())
    counted = Costs(family_model, counting(1, 0)).evaluation(examination.rows())
    assert 0.8 * counted <= sum(ran) <= 1.2 * counted


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
        assert all(min(each) > 0 for each in clock.blocks.values())
        assert min(*clock.rates.values(), *clock.cubes.values(), *clock.logits, clock.moved) > 0
    assert all(there < both for there, both in card.blocks.values())
    assert (ours.card, card.card) == (False, True)


def test_descents_in_another_dtype_go_by_their_own_clock(rows):
    own = counting(1, 2)
    other = replace(own, descents={tokens: (there / 4, both / 4) for tokens, (there, both) in own.blocks.items()})
    costs = Costs(rows.model, own), Costs(rows.model, other, descents=torch.bfloat16)
    alone, copied = (each.descent("anchors", rows, 1, 5, None) for each in costs)
    assert copied.seconds == alone.seconds / 4
    assert (own.slowdown(), other.slowdown()) == (1.0, 0.25)
    edits = [each.edit(rows, SCHEMES["forward-replay"], (1, 2), observed=True) for each in costs]
    assert edits[0] == edits[1]
    weights = Sizes.of(rows.model).weights
    assert costs[1].stage("", 0.0) == costs[0].stage("", 0.0)  # the copy is there while anchors are made
    assert costs[1].stage("", 0.0, copies=weights).host == costs[1].stage("", 0.0).host + 2 * weights
    crews = (Costs(rows.model, other, load=Load(2, 1), descents=each) for each in (None, torch.bfloat16))
    shared = [each.stage("", 0.0).host for each in crews]
    assert shared[1] == shared[0] + 2 * weights  # a worker keeps its own


def test_a_dtype_that_makes_descents_slower_is_told(arguments, tmp_path, monkeypatch, capsys):
    slow = replace(counting(1, 2), descents={1: (9.0, 30.0), 1000: (9000.0, 30000.0)})
    monkeypatch.setattr(jobs, "measured", lambda *_args, **_named: slow)
    cli.main(["edit", *options(arguments), "--anchor.dtype", "float16", "--out", str(tmp_path / "new"), "--plan"])
    assert "descents in float16 take 15 times as long as in float64 here" in capsys.readouterr().err


def test_a_clock_measures_the_dtype_of_descents(family_model):
    clock = measured(family_model, descents=torch.float32)
    assert min(min(each) for each in clock.descents.values()) > 0
    assert measured(family_model).descents is None
    card = CARDS["h200"].clock(family_model.cast(torch.float32), descents=torch.bfloat16)
    assert card.descents.keys() == card.blocks.keys()


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
    assert len(capsys.readouterr().out.splitlines()) >= len(found["stages"]) + 3
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
        hidden_size=shape.width,
        intermediate_size=shape.d_mlp,
        num_hidden_layers=shape.blocks,
        num_key_value_heads=8,
        vocab_size=shape.words,
        max_position_embeddings=shape.positions,
    ).save_pretrained(tmp_path)
    given = ["--slice", "0:8", "--protocol", "llama-3-8b-instruct", "--plan", "--json"]
    plans = {}
    for dtype, card, workers in (("bfloat16", "h200", 1), ("float32", "h200", 1), ("bfloat16", "h100", 8)):
        chosen = ["--dtype", dtype, "--card", card, "--workers", str(workers)]
        cli.main(["tables", "--model", str(tmp_path), *given, *chosen])
        plans[dtype, workers] = json.loads(capsys.readouterr().out)
    stages = {key: {each["name"]: each for each in plan["stages"]} for key, plan in plans.items()}
    one, exact, eight = stages["bfloat16", 1], stages["float32", 1], stages["bfloat16", 8]
    assert all(plan["refused"] is None for plan in plans.values())
    weights = 8.03e9
    assert one["loading"]["device_bytes"] == pytest.approx(2 * weights, rel=0.01)
    assert exact["loading"]["device_bytes"] == pytest.approx(4 * weights, rel=0.01)
    assert one["Jacobians"]["seconds"] > 8 * 4 * 1.493  # eigenvalues and singular values, as measured
    assert eight["Jacobians"]["seconds"] == pytest.approx(one["Jacobians"]["seconds"] / 8, rel=0.3)
    assert one["anchors at layer 8"]["seconds"] < one["anchors at layer 4"]["seconds"]
    assert 1 < exact["anchors at layer 4"]["seconds"] / one["anchors at layer 4"]["seconds"] < 735 / 50.3


def test_a_model_over_several_cards_takes_a_share_of_each_and_no_less_time(arguments, capsys):
    """Two blocks of six cards hold what is no block, here the most."""
    model, plans = sketch_model(arguments["model"]), {}
    for cards in ("cuda", "cuda:0-1", "cuda:0-5"):
        cli.main(["tables", *options(arguments), "--plan", "--json", "--card", "h100", "--device", cards])
        plans[cards] = json.loads(capsys.readouterr().out)
    loading = {cards: plan["stages"][0]["device_bytes"] for cards, plan in plans.items()}
    sizes, itemsize = Sizes.of(model), 8
    assert loading["cuda"] == itemsize * sizes.weights
    assert loading["cuda:0-1"] == itemsize * (sizes.weights // 2 + sizes.block)
    assert loading["cuda:0-5"] == itemsize * (sizes.weights - sizes.blocks * sizes.block)
    assert [plan["machine"] for plan in plans.values()] == ["one NVIDIA H100", "2 NVIDIA H100s", "6 NVIDIA H100s"]
    edits = [plan["stages"][-1]["seconds"] for plan in plans.values()]
    assert edits == pytest.approx([edits[0]] * 3, rel=0.2)


def test_a_run_says_what_it_was_estimated_to_take_and_took(arguments, tmp_path, capsys):
    config = SchemesConfig(**{**arguments, "slice": "0:2"}, schemes=("one-layer",), out=tmp_path / "run")
    run_job(config, progress=False)
    told_on_stderr = capsys.readouterr().err
    found = json.loads((tmp_path / "run" / "costs.json").read_text())
    assert [stage["name"] for stage in found["stages"]][-4:] == [
        "anchors at layer 1",
        "anchors at layer 3",
        "Jacobians",
        "edits under 1 scheme",
    ]
    assert found["took_seconds"] == pytest.approx(sum(part["took_seconds"] for part in found["parts"]))
    assert [name for part in found["parts"] for name in part["stages"]] == [each["name"] for each in found["stages"]]
    assert found["peak_bytes"] > 2**27
    assert "about " in told_on_stderr
    assert "of what was estimated" in told_on_stderr
    run_job(config, progress=False)
    assert "about " not in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "costs.json").read_text()) == found


def test_a_run_that_goes_on_is_estimated_by_what_is_left(arguments, monkeypatch, tmp_path):
    monkeypatch.setattr(jobs, "measured", lambda *_args, **_named: counting(1e-6, 2e-6))
    given = {**arguments, "slice": "0:4", "survey": "none", "out": tmp_path / "run"}
    run_job(SchemesConfig(**given, schemes=("one-layer",)), progress=False)
    first = json.loads((tmp_path / "run" / "costs.json").read_text())
    run_job(SchemesConfig(**given, schemes=("one-layer", "backward-full")), progress=False)
    second = json.loads((tmp_path / "run" / "costs.json").read_text())
    assert [stage["name"] for stage in second["stages"]] == ["λ and its checks", "edits under 1 scheme"]
    assert len(first["stages"]) > 3
    seconds = [run["stages"][-1]["seconds"] for run in (first, second)]
    assert 1.5 * seconds[0] < seconds[1] < 5 * seconds[0]  # at three layers and not at one


def test_a_scheme_that_is_left_is_counted_by_what_it_costs(arguments, monkeypatch, tmp_path):
    monkeypatch.setattr(jobs, "measured", lambda *_args, **_named: counting(1e-6, 2e-6))
    given = {**arguments, "slice": "0:4", "survey": "none", "out": tmp_path / "run"}
    cheap = ("one-layer", "independent", "backward-full", "backward-dividing")
    whole = schemes_job(SchemesConfig(**given, schemes=("jacobian-pullback",)), progress=False)
    alone = [part.cost(Costs(whole.model, counting(1, 2)), Finished.nothing())[-1].seconds for part in whole.parts][-1]
    run_job(SchemesConfig(**given, schemes=cheap), progress=False)
    left = schemes_job(SchemesConfig(**given, schemes=(*cheap, "jacobian-pullback")), progress=False)
    done = Finished.of(tmp_path / "run")
    (stage,) = left.parts[-1].cost(Costs(left.model, counting(1, 2)), done)
    asked = Costs(left.model, counting(1, 2)).evaluation([fact_rows(left.model, load_facts("builtin", "0:4")).answered])
    assert stage.name == "edits under 1 scheme"
    assert stage.seconds == pytest.approx(alone - asked)  # the unedited model has been asked


def test_what_is_done_again_is_estimated(arguments, monkeypatch, tmp_path):
    monkeypatch.setattr(jobs, "measured", lambda *_args, **_named: counting(1e-6, 2e-6))
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


def test_what_can_be_divided_is_not_refused(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(planning, "LOGITS", 2**20)  # so that a batch is large and one fact is not
    monkeypatch.setattr(jobs, "memory_of", lambda _device: (10 * 2**30, None))
    config = SchemesConfig(
        **{**arguments, "batch_size": 6}, schemes=("one-layer",), survey="none", out=tmp_path / "run"
    )
    run_job(config, progress=False)
    assert "what does not fit is halved" in capsys.readouterr().err


def test_a_plan_names_what_does_not_fit():
    plan = Plan("a card", [Stage("small", 1.0, 1, 1, 1), Stage("large", 2.0, 1, 2**40, 2**37)], 0)
    assert (plan.seconds, plan.host, plan.device) == (3.0, 1, 2**40)
    plan.check_fits(1, 2**38)
    assert plan.tight(1, 2**38) == ["large"]
    with pytest.raises(InputError, match=r"expected 128.0 GiB of the card's memory for large, got 80.0 GiB"):
        plan.check_fits(2**30, 80 * 2**30)
    with pytest.raises(InputError, match=r"expected 128.0 GiB of the host's memory for large, got 1.0 GiB"):
        plan.check_fits(2**30, None)


def test_what_does_not_fit_is_planned_all_the_same(arguments, monkeypatch, capsys):
    monkeypatch.setattr(jobs, "memory_of", lambda _device: (2**28, None))
    given = {name: arguments[name] for name in ("model", "layers", "device", "dtype")}
    cli.main(["jacobian", *options(given), "--slice", "0:2", "--plan", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["total_seconds"] > 0
    assert "expected 0.7 GiB of the host's memory" in found["refused"]


def test_json_and_card_belong_to_a_plan(arguments, capsys):
    for alone in (["--json"], ["--card", "h200"]):
        with pytest.raises(SystemExit) as caught:
            cli.main(["tables", "--model", arguments["model"], *alone])
        assert caught.value.code == 2
        assert "expected --plan with --json and --card" in capsys.readouterr().err


def test_anchors_of_another_run_cost_nothing(arguments, tmp_path, capsys):
    given = {**arguments, "slice": "0:2"}
    donor = SchemesConfig(**given, schemes=("one-layer",), survey="none", out=tmp_path / "donor")
    run_job(donor, progress=False)
    capsys.readouterr()
    for command, counted in (("tables", 0), ("layer-count", 2)):
        cli.main([command, *options(given), "--anchors-from", str(tmp_path / "donor"), "--plan", "--json"])
        names = [stage["name"] for stage in json.loads(capsys.readouterr().out)["stages"]]
        assert sum(name.startswith("anchors") for name in names) == counted, command
        assert any(name.startswith("coordinated") for name in names)  # which the donor has not


def test_a_model_of_one_block_and_one_whose_padding_is_far_up(tmp_path):
    for name, changes in (("one", {"num_hidden_layers": 1}), ("padded", {"pad_token_id": 500})):
        config = copy.deepcopy(CONFIGS["llama"])
        for field, value in changes.items():
            setattr(config, field, value)
        model = load_model(make_folder(tmp_path / name, config), dtype="float64", device="cpu")
        assert measured(model).blocks
        assert two_blocks(model, torch.device("cpu")).n_layers == 2


def test_measuring_leaves_the_random_state_as_it_was(family_model):
    before = torch.random.get_rng_state()
    measured(family_model)
    two_blocks(family_model, torch.device("cpu"))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_what_takes_long_is_counted(rows):
    """A dense J for every fact and layer, eigenvectors, and many replays."""
    costs = Costs(rows.model, replace(counting(1, 2), cubes=dict.fromkeys(CUBES, 1.0)))
    layers, sample = (1, 2, 3), frozenset(range(len(rows)))
    plain, pulled = (
        costs.edit(rows, SCHEMES[name], layers, observed=True) for name in ("backward-dividing", "jacobian-pullback")
    )
    assert pulled > plain + 3 * len(rows) * 32**3
    dense = cost_of("theorem1", costs, layers, Survey("dense", sample, 0), len(rows))
    assert dense > 2 * 2 * len(rows) * 32**3
    assert cost_of("theorem1", costs, layers, Survey("lanczos", frozenset(), 0), len(rows)) > 0
    assert cost_of("step_size", costs, layers, Survey("dense", sample, 0), len(rows)) > 100 * len(rows)
    alone = SCHEMES["one-layer"].edited(layers)
    assert cost_of("theorem1", costs, alone, Survey("dense", sample, 0), len(rows)) == 0.0  # J of L to L


def stages(capsys, *options):
    cli.main(["edit-table", *options, "--plan", "--json"])
    return {stage["name"]: stage for stage in json.loads(capsys.readouterr().out)["stages"]}


def test_a_method_that_trains_is_counted_without_second_moments_and_solves(tmp_path, arguments, capsys):
    """They weigh most where keys are wide."""
    config = LlamaConfig(**{**CONFIGS["llama"].to_dict(), "intermediate_size": 1024})
    given = {**arguments, "model": str(make_folder(tmp_path / "wide", config)), "slice": "0:2"}
    alone, pair = (stages(capsys, *options(given), "--methods", name) for name in ("wise", "memit"))
    evaluated = "1 edit, evaluated"
    assert pair[evaluated]["host_bytes"] > 6 * 8 * 1024**2 + alone[evaluated]["host_bytes"]
    assert "λ and its checks" not in alone


def test_rledit_is_counted_with_what_it_holds(family_model, rows):
    """Matrices by their number and dtype, whichever of the two kinds they are."""
    costs, matrix = Costs(family_model, counting(1, 2)), 32 * 64
    inner, projections = (RLEditSettings(blocks=(2, 3), projections=each, rank=1) for each in (False, True))
    held = [costs.training(rows, 4, each).host for each in (inner, projections)]
    assert (held[0] > held[1]) == (costs.sizes.inner == 2)
    model = replace(costs.sizes, inner=1)
    few, many = (served(replace(inner, blocks=each), model, torch.float32) for each in ((1, 2), (1, 2, 3)))
    assert many - few == matrix * 20 + 4 * 4 * 4 * (32 + 64) * 2  # and of each its scales and shifts


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_long_rows_are_counted(family, folders):
    """A row that stands alone takes in proportion, unless windows need a mask of every pair of its tokens."""
    costs = Costs(load_model(folders[family], dtype="float32", device="cpu"), counting(1, 2))
    short, long, longer = (costs.moments(10**6, (1, 3), longest).host for longest in (256, 50_000, 100_000))
    assert long > short
    pairs = 8 * 50_000**2 if family == "mistral" else 0
    assert longer - short == pytest.approx(2 * (long - short - pairs) + 4 * pairs, rel=0.2)


@pytest.mark.parametrize("boasted", [10**6, 10**9])
def test_what_is_measured_has_few_positions(boasted, folders):
    sketch = sketch_model(folders["gpt2"])
    sketch.hf.config.max_position_embeddings = boasted
    assert two_blocks(sketch, torch.device("cpu")).max_tokens == 2048


def test_logits_that_are_read_are_counted(family_model):
    costs = Costs(family_model, counting(1, 2))
    logits = 256 * costs.sizes.words * 16 + 16 * costs.sizes.words * 48
    assert asking(1000, costs.sizes, torch.float64) == logits
    silent, asked = (costs.editing("", 0.0, 1, asked=rows).host for rows in (0, 1000))
    assert asked >= silent + logits


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
    assert Costs(rows.model, dense).survey(rows.bare, (1, 3), 5, 5, 2**30).seconds > 10 * 32**3
    assert Costs(rows.model, dense).survey(rows.bare, (3,), 5, 5, 2**30).seconds == 0
