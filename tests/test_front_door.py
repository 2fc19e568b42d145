"""The public face: complete, lazy, documented, and every example of it runs."""

import doctest
import functools
import inspect
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from helpers.commands import ENVIRONMENT

import jacobian_lab as jl
from jacobian_lab.editing.layers import restored
from jacobian_lab.model import loading

NAMES = sorted(jl.__all__)
CALLED = [name for name in NAMES if callable(getattr(jl, name))]


@pytest.mark.job
def test_importing_is_quick_and_brings_no_torch():
    code = "import sys, jacobian_lab as jl; jl.InputError; jl.__version__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, check=False).returncode == 0


def test_every_name_is_there_and_listed():
    assert set(NAMES) <= set(dir(jl))
    assert 20 <= len(NAMES) <= 48
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = jl.nothing


def test_an_old_name_goes_on_working_and_says_the_new_one():
    with pytest.warns(DeprecationWarning, match="^optimi[s]e_anchors is now optimize_anchors$"):
        assert getattr(jl, "optimize_anchors".replace("z", "s", 1)) is jl.optimize_anchors


@pytest.fixture(scope="module")
def loaded():
    """The embedded model, read once for all examples."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "load_model", functools.cache(loading.load_model))
        yield


COMPUTING = ("Editor", "run", "run_jacobians", "run_methods", "run_schemes", "open_run", "coordinate_shifts")
"""Names whose examples compute for seconds."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in COMPUTING else name for name in CALLED]
)
def test_every_example_runs(name, loaded, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = getattr(jl, name)
    tests = doctest.DocTestFinder(recurse=False).find(inspect.unwrap(found), name, globs={})
    assert sum(len(test.examples) for test in tests) > 0, "no example"
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for test in tests:
        runner.run(test)
    assert runner.failures == 0


@pytest.fixture(scope="module")
def editor(tiny, facts):
    return jl.Editor(
        tiny,
        facts,
        layers=(1, 2, 3),
        ridge=10.0,
        anchor=jl.AnchorSettings(lr=0.1, steps=4),
        corpus=jl.load_corpus("python-docs"),
        corpus_tokens=500,
        progress=False,
    )


def test_an_edit_is_measured_evaluated_saved_and_undone(editor, tmp_path):
    model = editor.model
    before = {name: weight.clone() for name, weight in model.hf.named_parameters()}
    with editor.edit("memit+fe") as edit:
        ratios, frame, path = edit.measures["residual_ratio"], edit.evaluate(), edit.save(tmp_path / "d.safetensors")
        edited = {layer: model.weight(layer).clone() for layer in (1, 2, 3)}
    assert all(torch.equal(weight, before[name]) for name, weight in model.hf.named_parameters())
    assert ratios.dims == ("fact", "layer")
    assert ratios.sizes == {"fact": len(editor.facts), "layer": 3}
    assert ratios.attrs["long_name"]
    assert list(frame.index) == [fact.id for fact in editor.facts]
    assert float(frame["efficacy_accuracy"].max()) <= 1
    for layer, delta in jl.load_delta(path, model).items():
        assert torch.equal((model.weight(layer).double() + delta.double()).to(model.dtype), edited[layer])
    for action in (edit.evaluate, lambda: edit.save(tmp_path / "again.safetensors")):
        with pytest.raises(jl.InputError, match="itself again"):
            action()
    assert "put back" in repr(edit)


def test_an_edit_is_undone_whatever_happens_within(editor):
    before = editor.model.weight(2).clone()
    with pytest.raises(ZeroDivisionError), editor.edit("alphaedit@backward-full"):
        raise ZeroDivisionError
    assert torch.equal(editor.model.weight(2), before)


def test_an_edit_within_an_edit_is_refused(editor):
    model, before = editor.model, editor.model.weight(2).clone()
    again = jl.Editor(model, editor.facts[:1], layers=(2, 3), templates=editor.templates, progress=False)
    with editor.edit("memit@one-layer"):
        edited = model.weight(3).clone()
        for name in ("memit", "wise", "rledit"):
            for other in (editor, again):
                with pytest.raises(jl.InputError, match=r"the unedited model to edit, got .*: leave that with first"):
                    other.edit(name).__enter__()
        with pytest.raises(jl.InputError, match="the unedited model to edit"), restored(model, (2,)):
            pass
        with pytest.raises(jl.InputError, match="the unedited model to make an editor of"):
            jl.Editor(model, editor.facts)
        for ask in (lambda: again.moments, lambda: again.anchors(2), lambda: again.targets, lambda: again.ridge):
            with pytest.raises(jl.InputError, match="expected the unedited model to"):
                ask()
        assert torch.equal(model.weight(3), edited)
    assert torch.equal(model.weight(2), before)
    with editor.edit("memit@one-layer"):
        assert torch.equal(model.weight(3), edited)


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (
            lambda fact: (fact, replace(fact, id="again")),
            "expected every subject and prompt once, got 1 more than once",
        ),
        (lambda fact: (fact, replace(fact, subject="Bea")), "own id, got 'first' twice"),
        (lambda fact: (fact, replace(fact, target_new=" poems")), "expected 'poems' as target_new"),
    ],
)
def test_facts_are_such_as_a_job_takes(tiny, facts, words):
    fact = jl.Fact("first", "Ada Lovelace", "{} wrote about", "poetry")
    with pytest.raises(jl.InputError, match=words):
        jl.Editor(tiny, facts(fact), layers=(1, 2, 3))


def test_every_fact_is_checked_and_not_the_first_alone(tiny, facts):
    special = jl.Fact("special", "Ada<eos>", "{} wrote about", "poetry")
    long = jl.Fact("long", "Ada", "{} wrote about", "poetry " * 299 + "poetry")
    with pytest.raises(jl.InputError, match="the special token '<eos>' in 'Ada<eos>' in fact 5 of what was given"):
        jl.Editor(tiny, (*facts, special), layers=(1, 2, 3))
    with pytest.raises(jl.InputError, match=r"got 2 records .*fact 5: .* fact 6: expected prompts of at most 256"):
        jl.Editor(tiny, (*facts, special, long), layers=(1, 2, 3))


def test_an_edit_measures_what_a_run_measures(editor):
    """The same loop, through the job's own door."""
    from jacobian_lab.jobs.measuring import measured_edit

    _, expected = measured_edit(editor.setting, jl.SCHEMES["backward-full"], editor.targets)
    with editor.edit("memit@backward-full") as edit:
        for name in ("residual_ratio", "cosine", "linear_norm", "update_norm"):
            torch.testing.assert_close(torch.tensor(edit.measures[name].values), torch.tensor(expected[name]))


def test_coordinated_replay_from_the_front_door(editor):
    shifts = jl.coordinate_shifts(editor.rows, editor.layers, editor.anchor).shifts
    expected = jl.make_targets(editor.rows, editor.layers, editor.targets.optimised, shifts)
    with editor.edit("memit"), pytest.raises(jl.InputError, match="the unedited model to optimise shifts on"):
        _ = editor.coordinated
    for layer in editor.layers:
        torch.testing.assert_close(  # in batches, which round otherwise
            editor.coordinated.of("coordinated", layer), expected.of("coordinated", layer), rtol=1e-9, atol=1e-10
        )
    with editor.edit("memit+cr") as edit:
        assert edit.measures["effort"].sum("layer").values == pytest.approx(1)
    with pytest.raises(jl.InputError, match="targets of the kind coordinated, got none"):
        editor.targets.of("coordinated", editor.layers[0])


def test_anchors_that_are_there_are_taken(editor):
    held = {layer: editor.anchors(layer) for layer in (1, 3)}
    again = jl.Editor(
        editor.model, editor.facts, layers=(1, 2, 3), anchors=held, templates=editor.templates, progress=False
    )
    assert torch.equal(again.targets.of("replayed", 2), editor.targets.of("replayed", 2))
    with pytest.raises(jl.InputError, match="got \\(1, "):
        jl.Editor(editor.model, editor.facts, layers=(1, 2, 3), anchors={1: held[1][:1]})


def test_what_an_editor_is_made_for_suits_the_model(real):
    editor = jl.Editor(real, jl.load_facts("builtin", "0:1"), progress=False)
    assert (editor.layers, editor.anchor.steps) == ((4, 5, 6, 7, 8), 25)
    assert "λ by what is realised" in repr(editor)
    with pytest.raises(jl.InputError, match="layers from 0 to 29"):
        jl.Editor(real, jl.load_facts("builtin", "0:1"), layers=(4, 77))
    with pytest.raises(jl.InputError, match="at least one fact"):
        jl.Editor(real, ())


def test_unknown_settings_of_a_job_are_refused():
    with pytest.raises(jl.InputError, match="expected settings among model, facts"):
        jl.run_schemes(scheme="one-layer")
    with pytest.raises(jl.InputError, match="expected settings among lr, steps"):
        jl.run_schemes(anchor={"passes": 2})


def test_unknown_kinds_and_old_names_of_a_job_are_told():
    with pytest.raises(jl.InputError, match="expected a configuration among SchemesConfig"):
        jl.run("schemes")
    with (
        pytest.warns(DeprecationWarning, match="batch_size is now called anchors_per_batch"),
        pytest.raises(jl.InputError, match="above zero, got anchors_per_batch 0"),
    ):
        jl.run_schemes(batch_size=0)


def test_a_job_runs_by_its_configuration(arguments, tmp_path):
    given = {**arguments, "slice": "0:2", "out": str(tmp_path / "run")}
    config = jl.SchemesConfig(**given, schemes=["one-layer"], studies=["step_size"], verdicts=False)
    run = jl.run(config, progress=False)
    assert run.folder == tmp_path / "run"
    assert run.dataset["residual_ratio"].sel(scheme="one-layer", layer=3).notnull().all()
    assert run.dataset["lambda_min"].isnull().all()
    options = run.config["provenance"]["options"]
    assert options["schemes"] == ["one-layer"]
    assert options["studies"] == ["step_size"]
    assert "out" not in options


@pytest.mark.parametrize("name", ["memit+fe", "rledit", "wise"])
def test_a_saved_edit_of_any_kind_is_put_back_and_undone(name, editor, tmp_path):
    model, path = editor.model, tmp_path / "edit.safetensors"
    prompt = torch.tensor([model.text_prompt(editor.facts[0].text).ids])

    def logits():
        with torch.no_grad():
            return model.hf(prompt).logits

    before = {place: weight.clone() for place, weight in model.hf.named_parameters()}
    plain = logits()
    with editor.edit(name) as edit:
        edited = logits()
        edit.save(path)
        with pytest.raises(jl.InputError, match="the unedited model to put an edit on"), jl.apply(model, path):
            pass
    with jl.apply(model, path) as same:
        assert same is model
        torch.testing.assert_close(logits(), edited)
        with pytest.raises(jl.InputError, match="the unedited model to put an edit on"), jl.apply(model, path):
            pass
    with pytest.raises(ZeroDivisionError), jl.apply(model, str(path)):
        raise ZeroDivisionError
    assert torch.equal(logits(), plain)
    assert all(torch.equal(weight, before[place]) for place, weight in model.hf.named_parameters())


def test_what_is_no_saved_edit_is_refused(editor, tmp_path):
    (tmp_path / "not.safetensors").write_bytes(b"nothing")
    for path, words in ((tmp_path, "got the folder .*: load a whole model"), (tmp_path / "not.safetensors", "a whole")):
        with pytest.raises(jl.InputError, match=words), jl.apply(editor.model, path):
            pass
    with editor.edit("memit@one-layer"):  # and the model can be edited again
        pass
