"""Every method on small models: complete, repeatable, resumable, put back; batches, deltas, tables, bad input."""

import json
import os
import runpy
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import official
from helpers.commands import ROOT, options
from helpers.reference import Plain, prompt
from helpers.small import CONFIGS, make_folder
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPTJConfig, LlamaConfig

from jacobian_lab import cli
from jacobian_lab.catalogue import LATER_RULES, METHODS, PAPER_RULES, SCHEMES, method, method_name
from jacobian_lab.editing.anchors import coordinate_shifts, optimize_anchors
from jacobian_lab.editing.deltas import DELTA, FOLDER, add_delta, load_delta, save_delta
from jacobian_lab.editing.folders import save_model
from jacobian_lab.editing.layers import Setting, edit_layers, restored
from jacobian_lab.editing.measures import observed_edits
from jacobian_lab.editing.methods import edit_with
from jacobian_lab.editing.norm_anchors import norm_anchored
from jacobian_lab.editing.problems import Update
from jacobian_lab.editing.rules import RULES as RULES_BY_NAME
from jacobian_lab.editing.rules import RuleSettings, memit
from jacobian_lab.editing.schemes import Targets, make_targets
from jacobian_lab.editing.solving import largest_singular_value, shrink
from jacobian_lab.errors import InputError
from jacobian_lab.evaluation import evaluator
from jacobian_lab.facts.reading import load_facts
from jacobian_lab.jobs import comparison
from jacobian_lab.jobs.config import EditConfig, EditTableConfig
from jacobian_lab.jobs.experiment import prepare
from jacobian_lab.jobs.kinds import run_job
from jacobian_lab.model.families import KNOWN
from jacobian_lab.model.loading import load_model
from jacobian_lab.model.rows import fact_rows
from jacobian_lab.report.paper import METRICS
from jacobian_lab.report.registry import TABLES
from jacobian_lab.report.results import write_comparison
from jacobian_lab.report.tables.methods import gains_of, summaries
from jacobian_lab.session import descents as bench_module
from jacobian_lab.session import session as session_module
from jacobian_lab.store.run import config_of, open_run

RULES = RuleSettings(alphaedit_threshold=1.0, alphaedit_relative=True)
QUICK = {"rules": RULES, "held_out_tokens": 64, "corpus_length": 64}
ALL = tuple(name for name, pair in METHODS.items() if pair.rule in PAPER_RULES)
RECT_DELTA, RECT_FOLDER = DELTA.format("rect+fe"), FOLDER.format("rect+fe")


@pytest.fixture(scope="module")
def quick(arguments):
    return {**arguments, **QUICK}


@pytest.fixture(scope="module")
def finished(quick, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    return run_job(EditTableConfig(**quick, methods=ALL, out=folder), progress=False)


@pytest.fixture(scope="module")
def bench(quick):
    """An experiment with its targets, and what its edits are made with."""
    experiment = prepare(EditTableConfig(**quick))
    rows = experiment.rows
    anchors = {layer: optimize_anchors(rows, layer, experiment.session.anchor).states for layer in (1, 3)}
    shifts = coordinate_shifts(rows, experiment.layers, experiment.session.anchor).shifts
    return experiment, make_targets(rows, experiment.layers, anchors, shifts), experiment.session.setting


def edited(bench, name, rules=RULES, **keywords):
    """The weights that a method leaves, and what it says."""
    experiment, targets, setting = bench
    with restored(experiment.model, experiment.layers):
        made = edit_with(method(name), setting, targets, rules, **keywords)
        return {layer: experiment.model.weight(layer).clone() for layer in experiment.layers}, made


def test_a_run_holds_every_method_metric_and_fact(finished):
    dataset = open_run(finished)
    assert list(dataset["edit"].values) == ["unedited", *ALL]
    for name in ("efficacy_success", "efficacy_accuracy", "efficacy_greedy", "generalization_accuracy", "kl", "top10"):
        assert np.isfinite(dataset[name]).any(dim=[d for d in dataset[name].dims if d not in {"edit", "fact"}]).all(), (
            name
        )
    unedited = dataset.sel(edit="unedited")
    assert float(abs(unedited["kl"]).max()) < 1e-9
    assert float(unedited["top10"].min()) == 1
    assert (dataset["efficacy_greedy"] == dataset["efficacy_accuracy"]).all()
    assert float(dataset["kl"].sel(edit="memit+fe").max()) > 1e-6
    edited_layers = np.isfinite(dataset["update_norm"])
    assert edited_layers.sel(edit="onelayer").values.tolist() == [False, False, True]
    assert edited_layers.sel(edit="blue").values.tolist() == [True, False, True]
    assert edited_layers.sel(edit="rect+fe").all()
    assert np.isfinite(dataset["null_space_rank"].sel(edit="alphaedit")).all()
    assert float(dataset["unstored"].max()) < 1e-10


def test_what_speaks_against_an_edit_is_said_once(bench, capsys):
    """A null space that protects nothing, and a solve that leaves few digits."""
    experiment, targets, setting = bench
    small = {layer: 1e-6 * C for layer, C in setting.moments.items()}
    for name, moments, rules, line in (
        (
            "alphaedit",
            small,
            RuleSettings(),
            "null space of C is all 64 dimensions at layers 1, 2, 3, so that nothing is",
        ),
        ("alphaedit", small, replace(RULES, alphaedit_relative=True, alphaedit_threshold=0.5), ""),
        ("memit", small, RULES, "has the condition number"),
        ("memit", setting.moments, RULES, ""),
    ):
        edited((experiment, targets, replace(setting, moments=moments)), name, rules)
        lines = [one for one in capsys.readouterr().err.splitlines() if one.startswith("jacobian-lab:")]
        assert len(lines) == bool(line), lines
        assert line in "".join(lines)


def test_anchors_are_computed_once_and_shared(quick, finished, tmp_path, monkeypatch):
    original, calls = bench_module.optimize_anchors, []
    monkeypatch.setattr(bench_module, "optimize_anchors", lambda *a: calls.append(a[1]) or original(*a))
    folder = tmp_path / "run"
    run_job(EditTableConfig(**quick, methods=("memit", "rect+fe", "blue"), out=folder), progress=False)
    assert calls.count(1) == calls.count(3) > 0
    done = len(calls)
    run_job(EditTableConfig(**quick, methods=("FE", "prune@backward-full"), out=folder), progress=False)
    assert len(calls) == done
    some = open_run(folder)
    assert list(some["edit"].values) == ["unedited", "memit", "blue", "memit+fe", "rect+fe", "prune@backward-full"]
    whole = open_run(finished).sel(edit=[name for name in some["edit"].values if "@" not in name])
    for name in METRICS:
        np.testing.assert_array_equal(some[name].sel(edit=whole["edit"]), whole[name])


def test_a_model_may_be_evaluated_on_a_sample_of_what_was_edited(quick, finished, tmp_path, capsys):
    """The edit is of all facts, and what is said of the sample is what is said of these facts anyway."""
    folder = tmp_path / "run"
    config = EditTableConfig(
        **quick, methods=("memit", "rect+fe"), evaluation_facts=2, anchors_from=finished, out=folder
    )
    run_job(config, progress=False)
    assert "evaluated on 2 of 6 facts" in capsys.readouterr().err
    some, whole = open_run(folder), open_run(finished)
    asked = np.isfinite(some["efficacy_accuracy"]).all("edit")
    assert int(asked.sum()) == 2
    for name in (*METRICS, "efficacy_greedy", "nll_new", "neighborhood_success"):
        ours, theirs = some[name], whole[name].sel(edit=some["edit"])
        np.testing.assert_allclose(ours.sel(fact=asked), theirs.sel(fact=asked), rtol=1e-9, atol=1e-12, err_msg=name)
        assert ours.sel(fact=~asked).isnull().all(), name
    np.testing.assert_array_equal(some["neighbor_edited"].sel(fact=asked), whole["neighbor_edited"].sel(fact=asked))
    np.testing.assert_array_equal(some["update_norm"], whole["update_norm"].sel(edit=some["edit"]))
    assert dict(some.sizes) == dict(whole.sel(edit=some["edit"]).sizes)
    assert config_of(some)["settings"]["evaluation_facts"] == 2
    assert "evaluation_facts" not in config_of(whole)["settings"]
    write_comparison(folder)
    assert "2 of 6 facts in each cell" in (folder / "edit_table.md").read_text()


def test_a_changed_setting_is_refused_by_name(quick, finished):
    for name, value, expected in (
        ("rules", replace(RULES, emmet_epsilon=0.2), "rules.emmet_epsilon"),
        ("edits_per_batch", 2, "edits_per_batch"),
        ("held_out_tokens", 65, "held_out.tokens"),
        ("success", "zsre", "metrics"),
    ):
        with pytest.raises(InputError, match=f"another {expected}"):
            run_job(EditTableConfig(**{**quick, name: value}, out=finished), progress=False)


@pytest.mark.parametrize("name", [*ALL, "rome", *LATER_RULES])
def test_weights_are_back_bit_for_bit(name, bench):
    """After the method itself, and after one that is interrupted between two batches."""
    parameters = dict(bench[0].model.hf.named_parameters())
    before = {key: weight.clone() for key, weight in parameters.items()}
    anchors = bench[1].optimised[3]
    keywords = {"size": 3, "refit": lambda _layer, batch: anchors[list(batch)] + 0.1}
    weights, _ = edited(bench, name, **keywords)
    assert any(
        not torch.equal(weight, before[f"transformer.h.{n}.mlp.c_proj.weight"].T) for n, weight in weights.items()
    )
    assert all(torch.equal(weight, before[key]) for key, weight in parameters.items())

    def interrupted(_count):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        edited(bench, name, done=interrupted, **keywords)
    assert all(torch.equal(weight, before[key]) for key, weight in parameters.items())


def test_weights_are_back_when_the_evaluation_fails(bench, quick, tmp_path, monkeypatch):
    parameters = dict(bench[0].model.hf.named_parameters())
    before, original, calls = {key: weight.clone() for key, weight in parameters.items()}, evaluator.evaluate, []

    def second_fails(*given):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("in the middle")
        return original(*given)

    monkeypatch.setattr(comparison, "prepare", lambda _config, **_: bench[0])
    monkeypatch.setattr(evaluator, "evaluate", second_fails)
    config = EditTableConfig(**quick, methods=("memit+fe",), greedy=False, out=tmp_path / "run")
    with pytest.raises(RuntimeError, match="in the middle"):
        run_job(config, progress=False)
    assert all(torch.equal(weight, before[key]) for key, weight in parameters.items())


@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if m.rule == "memit" and not m.refit])
def test_memits_rule_is_the_loop_that_the_golden_numbers_test(name, bench):
    experiment, targets, setting = bench
    weights, made = edited(bench, name)
    with restored(experiment.model, experiment.layers):
        scheme = SCHEMES[METHODS[name].scheme]
        list(observed_edits(setting, scheme, targets))
        for layer, weight in weights.items():
            torch.testing.assert_close(weight, experiment.model.weight(layer), rtol=1e-12, atol=1e-14)
    for layer, delta in made.deltas.items():
        torch.testing.assert_close(experiment.model.weight(layer) + delta, weights[layer], rtol=1e-12, atol=1e-14)


def test_sequential_batches_keep_the_old_keys_in_the_solve(bench):
    """Two batches by hand: the second one's solve has the first one's keys, as they were when it was solved."""
    experiment, targets, setting = bench
    model, layers = experiment.model, experiment.layers
    weights, _ = edited(bench, "memit+fe", size=4)
    with restored(model, layers):
        grams, deltas = {}, {}
        original = {layer: model.weight(layer).clone() for layer in layers}

        def dense(problem):
            left = problem.ridge * problem.second_moment + problem.keys @ problem.keys.T + grams.get(problem.layer, 0)
            grams[problem.layer] = grams.get(problem.layer, 0) + problem.keys @ problem.keys.T
            return Update(torch.linalg.solve(left, problem.keys @ problem.residuals.T).T, 1.0)

        scheme = SCHEMES["forward-replay"]
        for part in (range(4), range(4, 6)):
            for edit in edit_layers(setting.select(part), scheme, targets.select(part), dense):
                deltas[edit.layer] = deltas.get(edit.layer, 0) + edit.update.delta
                model.weight(edit.layer).copy_(original[edit.layer] + deltas[edit.layer])  # added to the weight once
        for layer in layers:
            change = (weights[layer] - original[layer]).norm()  # whose entries near zero have no digits of their own
            assert (weights[layer] - model.weight(layer)).norm() < 1e-9 * change
    jointly, _ = edited(bench, "memit+fe", size=6)
    default, _ = edited(bench, "memit+fe")
    assert all(torch.equal(jointly[layer], default[layer]) for layer in layers)
    assert not torch.allclose(jointly[1], weights[1])


@pytest.mark.parametrize("name", ["rome", "nse+cr", "encore+fe", "sphere", "betaedit+fe", "lyaplock+cr", "rlsedit"])
def test_later_rules_in_batches_are_their_authors_functions(name, bench, monkeypatch):
    """Of the keys and residuals that the batches have on a model that is edited as they come, under any scheme."""
    experiment, _, setting = bench
    settings, seen = replace(RULES, betaedit_renewal=2, lyaplock_tolerance=1.1, encore_norm_ridge=0.1), {}
    pair = method(name)
    rule = RULES_BY_NAME[pair.rule]

    def watched(problem, **options):
        update = rule(problem, **options)
        seen.setdefault(problem.layer, []).append((problem, update.delta))
        return update

    monkeypatch.setitem(RULES_BY_NAME, pair.rule, watched)
    edited(bench, name, settings, size=1 if name == "rome" else 2)
    scale = {layer: float(torch.linalg.eigvalsh(moment).mean()) for layer, moment in setting.moments.items()}
    assert len(seen) == len(SCHEMES[pair.scheme].edited(experiment.layers))
    for layer, solved in seen.items():
        ridge, projection = {"ridge": setting.ridge}, {"threshold": scale[layer], "l2": 10.0}
        options = {
            "rome": {},
            "nse": {**ridge, "share": 0.8},
            "encore": {**ridge, "norm_ridge": 0.1},
            "sphere": {**projection, "share": 0.5, "strength": 0.5},
            "betaedit": {**ridge, "threshold": None, "l2": 10.0, "renewal": 2},
            "lyaplock": {**ridge, "tolerance": 1.1},
            "rlsedit": {**ridge, "norm_ridge": 0.0},
        }[pair.rule]
        first = solved[0][0]
        batches = [(problem.keys.numpy(), problem.residuals.numpy()) for problem, _ in solved]
        plain = getattr(official, pair.rule)(first.second_moment.numpy(), first.weight.numpy(), batches, **options)
        for (_, delta), expected in zip(solved, plain, strict=True):
            assert np.linalg.norm(delta.numpy() - expected) < 1e-6 * np.linalg.norm(expected)


@pytest.mark.parametrize(("name", "kind", "layers"), [("nas", "optimised", (1, 3)), ("nas+fe", "replayed", (1, 2, 3))])
def test_nas_is_alphaedit_with_the_mlps_part_of_the_targets_at_its_mean_length(name, kind, layers, bench):
    experiment, targets, setting = bench
    model, plain = experiment.model, Plain.of(experiment.model)
    states, added = {}, {}
    for layer in layers:
        record = []
        handle = model.mlp(layer).register_forward_hook(lambda _m, _i, output, record=record: record.append(output[0]))
        for fact in experiment.facts:
            ids, position = prompt(model.tokenizer, fact)
            with torch.no_grad():
                states.setdefault(layer, []).append(plain.states(ids, position, [layer])[1][layer])
            added.setdefault(layer, []).append(record.pop()[position])
        handle.remove()
    anchored = norm_anchored(experiment.rows, targets, kind)
    for layer in layers:
        state, value = torch.stack(states[layer]), torch.stack(added[layer])
        goal = targets.of(kind, layer)
        added_now = official.norm_anchor(value.numpy(), (goal - state).numpy())
        expected = state.numpy() - value.numpy() + added_now
        np.testing.assert_allclose(anchored.of(kind, layer), expected, rtol=1e-9, atol=1e-9)
    _, rescaled = edited(bench, name)
    _, same = edited((experiment, anchored, setting), name.replace("nas", "alphaedit"))
    for layer, delta in rescaled.deltas.items():
        torch.testing.assert_close(delta, same.deltas[layer], rtol=1e-12, atol=1e-14)
    assert all(torch.equal(anchored.of(other, 3), targets.of(other, 3)) for other in {"replayed", "optimised"} - {kind})


def test_a_batch_without_a_usable_fact_is_passed_over(bench):
    experiment, targets, setting = bench
    broken = {layer: states.clone() for layer, states in targets.optimised.items()}
    broken[1][:2] = float("nan")
    with_nan = Targets(targets.layers, broken, targets.replayed)
    some, _ = edited((experiment, with_nan, setting), "memit", size=2)
    with restored(experiment.model, experiment.layers):
        for weight in some.values():
            assert torch.isfinite(weight).all()
    every = {layer: torch.full_like(states, float("nan")) for layer, states in broken.items()}
    with pytest.raises(InputError, match="at least one fact with a finite anchor"):
        edited((experiment, Targets(targets.layers, every, targets.replayed), setting), "memit")


def test_prune_on_the_total_shrinks_once_after_all_edits(bench):
    experiment = bench[0]
    settings = RuleSettings(prune_scope="total", prune_kind="linear")
    original = {layer: experiment.model.weight(layer).clone() for layer in experiment.layers}
    for layer in experiment.layers:
        experiment.model.weight(layer).mul_(1e-3)  # so that changes are large beside it
    try:
        small = {layer: experiment.model.weight(layer).clone() for layer in experiment.layers}
        _, plain = edited(bench, "memit", size=3)
        weights, made = edited(bench, "prune", settings, size=3)
        for place, layer in enumerate(experiment.layers):
            expected, count = shrink(plain.deltas[layer], largest_singular_value(small[layer]), "linear")
            assert made.values["shrunk_values"][place] == count > 0
            torch.testing.assert_close(made.deltas[layer], expected, rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(weights[layer], small[layer] + expected, rtol=1e-10, atol=1e-12)
    finally:
        for layer, weight in original.items():
            experiment.model.weight(layer).copy_(weight)


def test_blues_two_protocols_differ_in_the_second_anchor(bench):
    """The refitted one by hand: the first layer alone, then an anchor on what that left, then the last alone."""
    experiment, targets, setting = bench
    model = experiment.model

    def refit(layer, batch):
        return optimize_anchors(setting.rows.select(batch), layer, experiment.session.anchor).states

    weights, _ = edited(bench, "blue-refit", refit=refit)
    with restored(model, experiment.layers):
        for layer in (1, 3):
            anchors = targets.optimised[1] if layer == 1 else refit(3, range(len(setting.facts)))
            alone = Targets((layer,), {layer: anchors}, {layer: anchors})
            scheme = SCHEMES["one-layer"]
            list(observed_edits(setting, scheme, alone))
        for layer in (1, 2, 3):
            torch.testing.assert_close(weights[layer], model.weight(layer), rtol=1e-12, atol=1e-14)
    papers, _ = edited(bench, "blue")
    assert torch.equal(papers[1], weights[1])
    assert not torch.allclose(papers[3], weights[3])


def test_methods_are_read():
    assert method_name("FE") == "memit+fe"
    assert method_name("AlphaEdit+FE") == "alphaedit+fe"
    assert method("rect@backward-full").scheme == "backward-full"
    with pytest.raises(InputError, match=r"expected methods among onelayer, .*got 'mend'"):
        method_name("mend")


def test_the_tables_trace_every_mean_to_its_records(finished):
    text = write_comparison(finished)
    dataset = open_run(finished)
    metrics = pd.read_csv(finished / "metrics.csv")
    assert list(metrics.columns) == ["method", *METRICS]
    assert list(metrics["method"]) == ["unedited", *ALL]
    records = pd.read_csv(finished / "records.csv")
    assert len(records) == 6 * (len(ALL) + 1)
    for name, kind in METRICS.items():
        weight = records["neighborhood_prompts"] if kind.flat else 1.0 * records[name].notnull()
        weighted = (records[name] * weight).groupby(records["method"]).sum() / weight.groupby(records["method"]).sum()
        expected = kind.scale * weighted[metrics["method"]].to_numpy()
        np.testing.assert_allclose(metrics[name], expected, rtol=1e-9, atol=1e-12, err_msg=name)
    for name in ("table3", "table4", "edit_table", "damage", "gains"):
        assert (finished / f"{name}.md").is_file()
        assert (finished / f"{name}.tex").read_text().isascii()
    assert r"\textbf{" in (finished / "table3.tex").read_text()
    table = (finished / "table3.md").read_text()
    assert "| memit+fe, paper (llama-3-8b-instruct)" in table
    assert "99.9" in table
    assert "Table 3." in text
    best = summaries(dataset).query("metric == 'kl'")
    best = best[best["method"].isin(TABLES["table3"].edits)]
    winner = best.loc[best["mean"].idxmin(), "method"]
    row = next(line for line in table.splitlines() if line.startswith(f"| {winner} "))
    assert row.split("|")[6].strip().startswith("**")
    assert "**" not in next(line for line in table.splitlines() if line.startswith("| unedited "))


def test_neighbourhood_prompts_that_are_edited_themselves_are_told_apart(finished):
    """France's neighbours ask for the Eiffel Tower's city, and the other way round; both are edited."""
    facts, dataset = load_facts("builtin", "0:6"), open_run(finished)
    prompts = {fact.text for fact in facts}
    kept, edited = [], 0
    for place, fact in enumerate(facts):
        values = dataset["kl"].sel(edit="memit+fe").values[place]
        inside = [text in prompts for text in fact.neighborhood_prompts]
        np.testing.assert_array_equal(dataset["neighbor_edited"].values[place][: len(inside)], inside)
        edited += sum(inside)
        kept += [value for value, skip in zip(values, inside, strict=False) if not skip]
    assert edited >= 2
    write_comparison(finished)
    lines = (finished / "damage.md").read_text().splitlines()
    total = sum(len(fact.neighborhood_prompts) for fact in facts)
    assert f"edited themselves ({edited} of {total})" in lines[0]
    assert f" {np.mean(kept):.3f} " in next(line for line in lines if line.startswith("| memit+fe "))


def test_gains_are_paired_over_facts(finished):
    dataset = open_run(finished)
    gained = gains_of(dataset).set_index(["method", "against", "metric"])
    rules = ["memit", "prune", "rect", "alphaedit", "emmet"]
    steps = [
        (f"{rule}{after}", rule + before)
        for before, after in (("", "+fe"), ("+fe", "+cr"), ("", "+cr"))
        for rule in rules
    ]
    assert list(dict.fromkeys((one, other) for one, other, _ in gained.index)) == steps
    for name, against, metric in (
        ("memit+fe", "memit", "efficacy_success"),
        ("alphaedit+fe", "alphaedit", "generalization_success"),
        ("memit+cr", "memit+fe", "efficacy_accuracy"),
        ("emmet+cr", "emmet", "generalization_accuracy"),
    ):
        scale = METRICS[metric].scale
        difference = dataset[metric].sel(edit=name) - dataset[metric].sel(edit=against)
        by_fact = difference.mean([dim for dim in difference.dims if dim != "fact"]).values * scale
        row = gained.loc[name, against, metric]
        assert row["mean"] == pytest.approx(by_fact.mean())
        draws = np.random.default_rng(1).choice(by_fact, (20_000, len(by_fact))).mean(axis=1)
        spread = max(by_fact.std(), 1e-12)
        np.testing.assert_allclose([row["low"], row["high"]], np.quantile(draws, (0.025, 0.975)), atol=0.1 * spread)


SHAPES = {
    "llama-3-8b-instruct": LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=10,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
    ),
    "gpt2-xl": GPT2Config(n_embd=16, n_inner=24, n_layer=19, n_head=2, n_positions=256),
    "gpt-j-6b": GPTJConfig(n_embd=16, n_inner=24, n_layer=10, n_head=2, n_positions=256, rotary_dim=4),
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "table"), [(known.model, name) for name, known in TABLES.items() if known.model])
def test_the_papers_protocols_by_name(name, table, quick, tmp_path, monkeypatch, capsys):
    """The scripts of Tables 3, 4, 6 and 7 on small models of the paper's families, each with its own settings."""
    folder = make_folder(tmp_path / "model", SHAPES[name])
    chosen = {**quick, "model": folder, "protocol": name, "slice": "0:2", "out": tmp_path / "run"}
    del chosen["layers"], chosen["anchor"], chosen["ridge"]
    seen = []
    monkeypatch.setattr(
        bench_module, "optimize_anchors", lambda *a, o=bench_module.optimize_anchors: seen.append(a[2]) or o(*a)
    )
    script = str(ROOT / "analyses" / f"{table}.py")
    monkeypatch.setattr(sys, "argv", [script, *options(chosen)])
    runpy.run_path(script, run_name="__main__")
    settings = json.loads((tmp_path / "run" / "config.json").read_text())["settings"]
    known = KNOWN[name].defaults
    assert tuple(settings["layers"]) == known.layers
    assert (settings["ridge"], settings["anchor"]["lr"]) == (known.ridge, known.anchor_lr)
    assert settings["anchor"]["steps"] == known.anchor_steps
    assert {each.steps for each in seen} == {known.anchor_steps}
    assert f"Table {table[-1]}." in capsys.readouterr().out
    methods = pd.read_csv(tmp_path / "run" / f"{table}.csv")["method"]
    assert list(dict.fromkeys(methods)) == ["unedited", *TABLES[table].edits]


def test_bfloat16_says_what_its_weights_did_not_take(quick, tmp_path):
    chosen = {**quick, "dtype": "bfloat16", "methods": ("memit+fe",), "slice": "0:3", "out": tmp_path / "run"}
    folder = run_job(EditTableConfig(**chosen), progress=False)
    dataset = open_run(folder).sel(edit="memit+fe")
    assert (dataset["unstored"] > 1e-4).all()
    assert np.isfinite(dataset["kl"]).any()
    assert "of it not stored" in write_comparison(folder)


@pytest.fixture(scope="module")
def saved(quick, tmp_path_factory):
    folder = tmp_path_factory.mktemp("edit") / "run"
    config = {**quick, "dtype": "float32", "slice": "0:4"}
    return run_job(EditConfig(**config, method="rect+fe", save="both", out=folder), progress=False), config


def _logits(folder):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return model(**tokenizer("The Eiffel Tower is in the city of", return_tensors="pt")).logits


def test_a_saved_delta_gives_the_same_logits_when_applied(saved, tmp_path, capsys):
    folder, config = saved
    (tmp_path / ".partial-notes").mkdir()
    os.utime(tmp_path / ".partial-notes", (1, 1))
    cli.main(["apply", "--delta", str(folder / RECT_DELTA), "--model", config["model"], "--out", str(tmp_path / "out")])
    assert str(tmp_path / "out") in capsys.readouterr().out
    assert (tmp_path / ".partial-notes").is_dir()
    whole, applied, base = (_logits(path) for path in (folder / RECT_FOLDER, tmp_path / "out", config["model"]))
    torch.testing.assert_close(applied, whole, rtol=1e-5, atol=1e-6)
    assert (whole - base).abs().max() > 1e-3
    reloaded = load_model(tmp_path / "out", device="cpu")
    assert not torch.equal(reloaded.weight(1), load_model(config["model"], device="cpu").weight(1))


def test_what_a_delta_says_of_itself(saved):
    folder, config = saved
    with safe_open(folder / RECT_DELTA, framework="pt") as file:
        metadata = file.metadata()
        assert {str(file.get_tensor(name).dtype) for name in file.keys()} == {"torch.float32"}  # noqa: SIM118
    assert metadata["model"] == load_model(config["model"], device="cpu").fingerprint
    assert json.loads(metadata["config"])["method"] == "rect+fe"
    assert json.loads(metadata["config"])["rules"]["rect_by"] == "magnitude"


def test_a_delta_that_does_not_fit_is_refused_with_one_line(saved, tmp_path, folders, capsys):
    folder, config = saved
    model = load_model(config["model"], device="cpu")
    delta = load_delta(folder / RECT_DELTA, model)
    whole = (folder / RECT_DELTA).read_bytes()
    (tmp_path / "short").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty").write_bytes(b"")
    save_file({"layer.1": torch.zeros(2, 2)}, tmp_path / "foreign")
    save_delta(tmp_path / "shape", model, {1: torch.zeros(3, 5)}, {})
    save_delta(tmp_path / "layer", model, {77: delta[1]}, {})
    tensors = load_file(folder / RECT_DELTA)
    with safe_open(folder / RECT_DELTA, framework="pt") as file:
        metadata = file.metadata()
    save_file({**tensors, "layer.1": delta[1] * float("nan")}, tmp_path / "nan", metadata=metadata)
    save_file(tensors, tmp_path / "bfloat16", metadata={**metadata, "dtype": "bfloat16"})
    cases = [
        ({"delta": tmp_path / "short"}, "expected a whole delta"),
        ({"delta": tmp_path / "empty"}, "expected a whole delta"),
        ({"delta": tmp_path / "nothing"}, "expected a whole delta"),
        ({"delta": tmp_path / "foreign"}, "jacobian-lab edit saved"),
        ({"delta": tmp_path / "shape"}, "got (3, 5)"),
        ({"delta": tmp_path / "layer"}, "layer.77"),
        ({"delta": tmp_path / "nan"}, "finite numbers"),
        ({"model": folders["llama"]}, "apply it to its own base model"),
        ({"model": folder / RECT_FOLDER}, "in one command with all other deltas that are to go on it"),
        ({"delta": f"{folder / RECT_DELTA}|{folder / RECT_DELTA}"}, "deltas that differ"),
        ({"delta": f"{folder / RECT_DELTA}|{tmp_path / 'bfloat16'}"}, "of one dtype, got float32, bfloat16"),
        ({"out": folder}, "new or empty folder"),
    ]
    capsys.readouterr()
    for changes, words in cases:
        given = {"delta": folder / RECT_DELTA, "model": config["model"], "out": tmp_path / "new"} | changes
        with pytest.raises(SystemExit) as caught:
            cli.main(["apply", *(part for option in options(given) for part in option.split("|"))])
        err = capsys.readouterr().err
        assert caught.value.code == 2
        assert words in err, (changes, err)
        assert err.count("\n") == 1
        assert not list((tmp_path / "new").glob("*"))


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("size", [None, 4])
def test_base_and_saved_delta_are_the_measured_model_to_the_last_bit(dtype, size, bench, quick, tmp_path):
    experiment = prepare(EditTableConfig(**{**quick, "dtype": dtype}))
    setting = replace(bench[2], rows=experiment.rows)
    weights, made = edited((experiment, bench[1], setting), "memit+fe", size=size)
    model = experiment.model
    save_delta(tmp_path / "delta", model, made.deltas, {})
    with restored(model, experiment.layers):
        add_delta(model, load_delta(tmp_path / "delta", model))
        assert all(torch.equal(model.weight(layer), weight) for layer, weight in weights.items())


def test_several_deltas_of_one_base_model_are_added_up(saved, tmp_path):
    folder, config = saved
    base = load_model(config["model"], device="cpu")
    first = load_delta(folder / RECT_DELTA, base)
    save_delta(tmp_path / "second", base, {2: first[1], 4: first[3]}, {})
    paths = [str(folder / RECT_DELTA), str(tmp_path / "second")]
    cli.main(["apply", "--delta", *paths, "--model", config["model"], "--out", str(tmp_path / "out")])
    made = load_model(tmp_path / "out", device="cpu")
    second = {2: first[1], 4: first[3]}
    for layer in range(base.n_layers):
        changes = [delta[layer].double() for delta in (first, second) if layer in delta]
        assert torch.equal(made.weight(layer), (base.weight(layer).double() + sum(changes)).float()), layer


def test_what_is_not_finite_is_not_saved(saved, tmp_path):
    model = load_model(saved[1]["model"], device="cpu")
    change = torch.zeros(model.d_model, model.d_mlp)
    change[0, 0] = float("nan")
    with pytest.raises(InputError, match=r"finite weights to save, got NaN in the change of layer 2: lower"):
        save_delta(tmp_path / "delta", model, {2: change}, {})
    model.weight(3)[0, 0] = float("inf")
    with pytest.raises(InputError, match=r"finite weights to save, got infinity in transformer\.h\.3\.mlp\.c_proj"):
        save_model(model, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_a_model_replaces_a_model_and_nothing_else(saved, tmp_path):
    model = load_model(saved[1]["model"], device="cpu")
    for _ in range(2):
        save_model(model, tmp_path / "model")
    (tmp_path / "model" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"a folder with a model alone, .* which holds 'notes\.txt': move"):
        save_model(model, tmp_path / "model")
    assert (tmp_path / "model" / "notes.txt").read_text() == "mine"


def test_a_delta_on_a_model_in_memory(saved):
    folder, config = saved
    model = load_model(config["model"], device="cpu")
    delta = load_delta(folder / RECT_DELTA, model)
    with restored(model, tuple(delta)):
        add_delta(model, delta)
        expected = AutoModelForCausalLM.from_pretrained(folder / RECT_FOLDER).state_dict()
        for name, weight in model.hf.state_dict().items():
            torch.testing.assert_close(weight, expected[name], rtol=1e-5, atol=1e-6)


def test_edit_says_how_it_went_and_does_nothing_twice(saved, capsys, monkeypatch):
    folder, config = saved
    monkeypatch.setattr(session_module, "edit_with", lambda *_a, **_k: pytest.fail("computed again"))
    given = {**config, "method": "rect+fe", "save": "both", "out": folder}
    cli.main(["edit", *options(given)])
    out = capsys.readouterr().out
    assert f"Saved: {folder / RECT_DELTA}, {folder / RECT_FOLDER}" in out
    assert "| rect+fe " in out


def test_a_delta_that_was_lost_is_made_again(quick, tmp_path):
    config = EditConfig(**{**quick, "slice": "0:2", "greedy": False}, method="memit", out=tmp_path / "run")
    folder = run_job(config, progress=False)
    first = load_file(folder / DELTA.format("memit"))
    (folder / DELTA.format("memit")).unlink()
    run_job(config, progress=False)
    again = load_file(folder / DELTA.format("memit"))
    assert first.keys() == again.keys()
    assert all(torch.equal(again[name], delta) for name, delta in first.items())


def test_bad_input_ends_with_one_line(quick, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(bench_module, "optimize_anchors", lambda *_a, **_k: pytest.fail("long work begun"))
    (tmp_path / "facts.json").write_text('[{"subject": "Ada", "prompt": "{} is", "target_new": "old"}]')
    (tmp_path / "paper.csv").write_text("rank\n")
    cases = [
        ("edit-table", {"methods": "mend"}, "expected methods among"),
        ("edit-table", {"methods": "unedited"}, "a method that edits"),
        ("edit-table", {"held_out": quick["corpus"]}, "held-out text"),
        ("edit-table", {"facts": tmp_path / "facts.json", "slice": "0:1", "success": "counterfact"}, "target_true"),
        ("edit-table", {"rules": replace(RULES, alphaedit_threshold=1e-12)}, "null space, got none"),
        ("edit-table", {"paper": tmp_path / "paper.csv"}, "with the columns method"),
        ("edit-table", {"protocol": "gpt9"}, "expected a protocol of"),
        ("edit", {"method": "mend"}, "expected methods among"),
    ]
    for command, changes, words in cases:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main([command, *options({**quick, "out": tmp_path / "run", **changes})])
        err = capsys.readouterr().err
        assert caught.value.code == 2, (changes, err)
        assert words in err, (changes, err)
        assert "Traceback" not in err
        assert err.splitlines()[-1].startswith("jacobian-lab: expected ")
        assert not (tmp_path / "run" / "config.json").exists()


def silent_neurons(folder):
    """Five neurons that never fire, in the second block."""
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][:5] = 0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(("ridge", "hint"), [(0, "raise --ridge"), (10, "5 of 64 neurons are silent on the corpus")])
def test_silent_neurons_are_refused_with_the_layer(ridge, hint, quick, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench_module, "optimize_anchors", lambda *_a, **_k: pytest.fail("long work begun"))
    silent_neurons(make_folder(tmp_path / "model", CONFIGS["llama"]))
    given = {**quick, "model": tmp_path / "model", "ridge": ridge, "method": "emmet", "out": tmp_path / "run"}
    with pytest.raises(SystemExit):
        cli.main(["edit", *options(given)])
    last = capsys.readouterr().err.splitlines()[-1]
    assert "positive definite λC at layer 1 to solve with" in last
    assert hint in last


@pytest.mark.parametrize("method", ["emmet", "memit"])
def test_a_corpus_of_one_repeated_sentence_is_refused_with_the_layer(method, quick, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench_module, "optimize_anchors", lambda *_a, **_k: pytest.fail("long work begun"))
    (tmp_path / "corpus.txt").write_text("The old tower stands beside the river.\n" * 60)
    given = {**quick, "corpus": tmp_path / "corpus.txt", "method": method, "out": tmp_path / "run"}
    with pytest.raises(SystemExit):
        cli.main(["edit", *options(given)])
    last = capsys.readouterr().err.splitlines()[-1]
    assert "positive definite λC at layer 1 to solve with" in last
    assert "give a longer corpus" in last


def test_with_vanishing_ridge_one_layer_meets_its_target(tiny, facts):
    """Through the whole model: λ → 0, one decisive layer, bare keys: the hidden state becomes the target."""
    bare = (("{}",),)
    goal = torch.randn(len(facts), tiny.d_model, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    targets = Targets((3,), {3: goal}, {3: goal})
    moments = {3: torch.eye(tiny.d_mlp, dtype=torch.float64)}
    setting = Setting(fact_rows(tiny, facts, bare), moments, 1e-9)
    for rule in (memit, RuleSettings(emmet_epsilon=1e-12).rule("emmet")):
        with restored(tiny, (3,)):
            (edit,) = observed_edits(setting, SCHEMES["one-layer"], targets, rule)
        torch.testing.assert_close(edit.after, goal, rtol=1e-5, atol=1e-5)
