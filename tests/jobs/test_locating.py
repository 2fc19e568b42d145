"""Runs of causal traces: from facts to the table, resumed, refused, and counted."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from jacobian_lab import cli
from jacobian_lab.errors import InputError
from jacobian_lab.facts.reading import load_facts
from jacobian_lab.jobs import locating
from jacobian_lab.jobs.counts import Counts
from jacobian_lab.jobs.kinds import run_job
from jacobian_lab.jobs.locating import LocateConfig, locate_job
from jacobian_lab.maps.tracing import trace
from jacobian_lab.model.loading import load_model
from jacobian_lab.report.results import Results
from jacobian_lab.report.tables.locating import decisive_window
from jacobian_lab.store.completion import Completion
from jacobian_lab.store.run import open_run


@pytest.fixture
def options(arguments):
    return {name: arguments[name] for name in ("model", "slice", "device", "dtype")} | {"samples": 2, "slice": "0:3"}


def test_a_run_holds_the_traces_and_goes_on_where_it_was_left(options, tmp_path, monkeypatch):
    config = LocateConfig(**options, out=tmp_path / "run")
    traced, plain = [], locating.trace_prompt

    def twice(model, fact, *rest):
        if len(traced) == 2:
            raise KeyboardInterrupt
        traced.append(fact.id)
        return plain(model, fact, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(locating, "trace_prompt", twice)
        with pytest.raises(KeyboardInterrupt):
            run_job(config, progress=False)
    assert Results(config.out).dataset["traced"].values.tolist() == [1, 1, 0]
    assert "traces of 2 of 3 facts" in repr(Results(config.out))
    monkeypatch.setattr(locating, "trace_prompt", lambda *rest: traced.append(rest[1].id) or plain(*rest))
    dataset = open_run(run_job(config, progress=False))
    assert traced == dataset["fact"].values.tolist()
    model = load_model(options["model"], dtype="float64", device="cpu")
    for place, expected in enumerate(trace(model, load_facts("builtin", "0:3"), samples=2)):
        one = dataset.isel(fact=place)
        tokens = len(expected.tokens)
        np.testing.assert_allclose(one["effect"].values[:tokens], expected.effect, rtol=0, atol=1e-14)
        assert np.isnan(one["effect"].values[tokens:]).all()
        assert (one["role"].values > 0).sum() == tokens
        assert float(one["answer_clean"]) == pytest.approx(expected.clean)
        assert float(one["answer_corrupted"]) == pytest.approx(expected.corrupted)


def test_the_command_writes_its_table_and_says_what_it_shows(options, tmp_path, capsys):
    words = [f"--{name}={value}" for name, value in options.items()]
    cli.main(["locate", *words, "--sites", "residual", "mlp", "--layers", "0-3", f"--out={tmp_path / 'run'}"])
    out = capsys.readouterr().out
    assert "3 facts traced in" in out
    assert "The MLP's effect at the last subject token is largest at layer" in out
    table = pd.read_csv(tmp_path / "run" / "locate.csv")
    assert table.columns.tolist() == ["role", "layer", "site", "effect", "low", "high"]
    assert set(table["layer"]) == {0, 1, 2, 3}
    assert set(table["site"]) == {"residual", "mlp"}
    assert (tmp_path / "run" / "locate.md").is_file()
    run = Results(tmp_path / "run")
    assert len(decisive_window(run.dataset, 2)) == 2
    cli.main(["figure", str(tmp_path / "run"), "locate", "--fact", str(run.dataset["fact"].values[1])])
    assert (tmp_path / "run" / "figures" / "locate-1.png").is_file()


def test_when_no_fact_is_recalled_that_is_said(options, tmp_path, capsys):
    words = [f"--{name}={value}" for name, value in options.items()]
    cli.main(["locate", *words, "--recalled-only", f"--out={tmp_path / 'run'}"])
    assert capsys.readouterr().out.startswith("No fact is recalled by the model")


def test_bad_input_is_refused_in_one_line(options, tmp_path):
    facts = [{"id": n, "subject": "Rome", "prompt": "{} is" + " so" * n, "target_new": "old"} for n in range(2)]
    facts[1]["target_true"] = "new"
    path = tmp_path / "facts.json"
    path.write_text(json.dumps(facts))
    given = {**options, "facts": str(path), "slice": None}
    with pytest.raises(
        InputError, match=r"expected a true answer.* in fact 0 in record 0 of .*: give target_true, or"
    ) as caught:
        locate_job(LocateConfig(**given, out=tmp_path / "run"), progress=False)
    assert "\n" not in str(caught.value)
    job = locate_job(LocateConfig(**given, on_bad_record="skip"), progress=False)
    assert job.coordinates["fact"] == [1]
    for name, value, words in (
        ("window", 7, "window of at most 6 layers, got window 7"),
        ("noise", 0.0, "above zero, got noise"),
        ("samples", 0, "above zero, got samples"),
        ("sites", ("head",), "got sites 'head'"),
        ("layers", "2-9", "layers from 0 to 5"),
    ):
        with pytest.raises(InputError, match=words):
            locate_job(replace(LocateConfig(**options), **{name: value}), progress=False)


def test_a_run_is_checked_before_it_is_begun(options, tmp_path, monkeypatch):
    def refuse(*_):
        raise InputError("expected causal tracing to agree")

    monkeypatch.setattr(locating, "check_tracing", refuse)
    with pytest.raises(InputError, match="expected causal tracing to agree"):
        run_job(LocateConfig(**options, out=tmp_path / "run"), progress=False)
    assert not (tmp_path / "run" / "config.json").exists()


def test_traces_run_the_tokens_and_blocks_that_are_counted(options, tmp_path):
    job = locate_job(LocateConfig(**options, out=tmp_path / "run"), progress=False)
    (part,) = job.parts
    (stage,) = part.work(Counts(job.model), part.todo(Completion.nothing()))
    job.before.compute(tmp_path)  # the check, which is not counted
    ran, job = [], replace(job, before=locating.Preparation())
    for block in job.model.blocks:
        block.register_forward_hook(lambda _m, inputs, _o: ran.append(inputs[0][..., 0].numel()))
    job.carry_out()
    assert sum(ran) == stage.work.tokens
    assert len(ran) == pytest.approx(stage.work.passes, abs=3 * job.model.n_layers)
    assert stage.held > 0
