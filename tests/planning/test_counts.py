"""Counts of work, held against what is really run."""

from dataclasses import replace

import pytest
import torch
from helpers.small import CONTEXTS
from torch.utils.flop_counter import FlopCounterMode

from jacobian_lab.catalogue import SCHEMES
from jacobian_lab.editing.anchors import AnchorSettings, coordinate_shifts, optimize_anchors
from jacobian_lab.editing.layers import Setting, edit_layers, restored
from jacobian_lab.editing.schemes import make_targets
from jacobian_lab.editing.second_moments import sums_of_keys
from jacobian_lab.evaluation import evaluator as examined
from jacobian_lab.evaluation.evaluator import Evaluator
from jacobian_lab.facts.reading import load_facts
from jacobian_lab.jobs import counts as counting
from jacobian_lab.jobs.config import SchemesConfig
from jacobian_lab.jobs.counts import Counts
from jacobian_lab.jobs.jacobians import Survey
from jacobian_lab.jobs.kinds import run_job
from jacobian_lab.jobs.schemes import schemes_job
from jacobian_lab.jobs.studies import work_of_study
from jacobian_lab.model.loading import load_model, sketch_model
from jacobian_lab.model.rows import fact_rows
from jacobian_lab.planning.shape import Shape, two_blocks
from jacobian_lab.planning.work import Work
from jacobian_lab.store.completion import Completion


@pytest.fixture
def ran(family_model):
    """Counts tokens through the blocks of a model."""
    tokens, handles = [], []
    for block in family_model.blocks:
        handles.append(block.register_forward_hook(lambda _m, inputs, _o: tokens.append(inputs[0][..., 0].numel())))
    yield tokens
    for handle in handles:
        handle.remove()


@pytest.fixture
def rows(family_model, facts):
    return fact_rows(family_model, facts, CONTEXTS)


def test_the_shape_is_that_of_the_loaded_model(family_model, folders):
    family = family_model.hf.config.model_type
    sketch = sketch_model(folders[family], dtype="float64")
    assert {weight.device.type for weight in sketch.hf.parameters()} == {"meta"}
    shape = Shape.of(sketch)
    assert shape == Shape.of(family_model)
    assert shape.weights == sum(weight.numel() for weight in family_model.hf.parameters())
    assert shape.block == sum(w.numel() for w in family_model.blocks[2].parameters() if w.dim() == 2)
    assert (shape.blocks, shape.d_model, shape.d_mlp) == (6, 32, 64)
    small = two_blocks(sketch, torch.device("cpu"))
    assert (len(small.blocks), Shape.of(small).block) == (2, shape.block)


def test_a_token_through_a_block_is_two_operations_a_number(family_model):
    """Beside those of attention, which few tokens have few of."""
    ids = torch.zeros(8, 1, dtype=torch.long)
    with FlopCounterMode(display=False) as flops:
        family_model.hf.base_model(input_ids=ids, use_cache=False)
    shape = Shape.of(family_model)
    assert flops.get_total_flops() == pytest.approx(2 * shape.block * shape.blocks * 8, rel=0.05)


@pytest.mark.parametrize("layers", [(1,), (1, 2, 3)])
def test_a_descent_runs_the_tokens_that_are_counted(layers, rows, ran, monkeypatch):
    monkeypatch.setattr(counting, "PASSED", 1.0)
    one = rows.select([1])  # a batch of one fact, whose rows have one tail
    settings = AnchorSettings(steps=4, stop_loss=0.0)
    if len(layers) == 1:
        optimize_anchors(one, 1, settings)
    else:
        coordinate_shifts(one, layers, settings)
    work = Counts(rows.model).descent("anchors", one, 1, 4, 8).work
    assert work.back_tokens <= sum(ran) <= 1.5 * (work.back_tokens + work.tokens)
    assert work.back_tokens == 4 * 4 * (len(CONTEXTS[1]) + 1) * one.answered[0].tail + 4 * 4


def test_second_moments_run_the_tokens_that_are_counted(rows, ran):
    sums_of_keys(rows.model, rows.answered, (1, 3))
    lengths = [len(row.ids) for row in rows.answered]
    tokens = Counts(rows.model).moments(lengths, (1, 3)).work.tokens
    assert tokens == pytest.approx(4 * sum(lengths))
    assert tokens <= sum(ran) <= 2 * tokens  # rows are padded


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
    tokens = Counts(model).edit(rows, SCHEMES[scheme], layers, observed=False).tokens
    assert 0.5 * tokens <= sum(ran) <= 2 * tokens


@pytest.mark.parametrize("at_once", [1, 32])
def test_an_evaluation_runs_the_tokens_that_are_counted(at_once, family_model, ran, monkeypatch):
    monkeypatch.setattr(examined, "FACTS_AT_ONCE", at_once)
    evaluator = Evaluator.of(family_model, load_facts("builtin", "0:6"))
    _ = evaluator.before
    ran.clear()
    list(evaluator.answers())
    tokens = Counts(family_model).evaluation(evaluator.rows()).tokens
    assert 0.8 * tokens <= sum(ran) <= 1.2 * tokens


def test_what_takes_long_is_counted(rows):
    """A dense J for every fact and layer, eigenvectors, and many replays."""
    counts, layers, everyone = Counts(rows.model), (1, 2, 3), frozenset(range(len(rows)))
    plain, pulled = (
        counts.edit(rows, SCHEMES[name], layers, observed=True) for name in ("backward-dividing", "jacobian-pullback")
    )
    assert pulled.cholesky == plain.cholesky + 3 * len(rows) * 32**3
    dense = work_of_study("theorem1", counts, layers, Survey("dense", everyone, 0), len(rows))
    assert dense.spectra == dense.eigenvectors == 2 * len(rows) * 32**3
    by_products = work_of_study("theorem1", counts, layers, Survey("lanczos", frozenset(), 0), len(rows))
    assert by_products.spectra == 0 < by_products.back_passes
    steps = work_of_study("step_size", counts, layers, Survey("dense", everyone, 0), len(rows))
    assert steps.tokens > 100 * len(rows)
    alone = SCHEMES["one-layer"].edited(layers)
    assert work_of_study("theorem1", counts, alone, Survey("dense", everyone, 0), len(rows)) == Work()  # J of L to L


def test_more_facts_cost_more(rows):
    counts, fewer = Counts(rows.model), rows.select([0, 1])
    few, many = (counts.descent("", some_rows, 1, 4, 8).work for some_rows in (fewer, rows))
    assert few.back_tokens < many.back_tokens
    assert counts.survey(rows.bare, (1, 3), 5, 5, 2**30).work.spectra == 5 * 32**3
    assert counts.survey(rows.bare, (3,), 5, 5, 2**30).work == Work()


def test_a_copy_that_descents_run_in_is_held_while_they_run(rows):
    own, copied = (Counts(rows.model, descents=dtype) for dtype in (None, torch.bfloat16))
    weights = Shape.of(rows.model).weights
    alone, beside = (counts.descent("", rows, 1, 5, None).least for counts in (own, copied))
    assert beside - 2 * weights < alone
    assert beside > 2 * weights


def test_a_method_that_trains_holds_its_matrices(rows):
    counts = Counts(rows.model)
    few, many = (counts.training("", rows, 2, 3, matrices) for matrices in (1, 4))
    assert many.held - few.held == 3 * 32 * 64 * 8
    assert many.work == few.work
    assert many.work.back_passes == 3 * 4 * len(rows)


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_long_rows_are_counted(family, folders):
    """A row that stands alone takes in proportion, unless windows need a mask of every pair of its tokens."""
    counts = Counts(load_model(folders[family], dtype="float32", device="cpu"))
    short, long, longer = (counts.moments([longest] * 20, (1, 3)).held for longest in (256, 50_000, 100_000))
    assert long > short
    pairs = 8 * 50_000**2 if family == "mistral" else 0
    assert longer - short == pytest.approx(2 * (long - short - pairs) + 4 * pairs, rel=0.2)


def test_logits_that_are_read_are_counted(rows):
    counts = Counts(rows.model)
    logits = 256 * counts.shape.vocabulary * 16 + 16 * counts.shape.vocabulary * 48
    silent, asked = (counts.editing("", Work(), 1, rows, parts=parts).held for parts in ((), [rows.answered * 300]))
    assert asked >= silent + logits


def test_a_scheme_that_is_left_is_counted_by_what_it_costs(arguments, tmp_path):
    small = {**arguments, "slice": "0:4", "survey": "none", "out": tmp_path / "run"}
    cheap = ("one-layer", "independent", "backward-full", "backward-dividing")
    whole = schemes_job(SchemesConfig(**small, schemes=("jacobian-pullback",)), progress=False)
    counts, nothing = Counts(whole.model), Completion.nothing()
    (alone,) = whole.parts[-1].work(counts, whole.parts[-1].todo(nothing))
    run_job(SchemesConfig(**small, schemes=cheap), progress=False)
    left = schemes_job(SchemesConfig(**small, schemes=(*cheap, "jacobian-pullback")), progress=False)
    (stage,) = left.parts[-1].work(counts, left.parts[-1].todo(Completion.of(tmp_path / "run")))
    asked = counts.evaluation([fact_rows(left.model, load_facts("builtin", "0:4")).answered])
    assert stage.name == "edits under 1 scheme"
    assert stage.work + asked == alone.work  # the unedited model has been asked


def test_a_job_lists_what_is_left_of_it(arguments, tmp_path):
    small = {**arguments, "slice": "0:2", "survey": "none", "out": tmp_path / "run"}
    run_job(SchemesConfig(**small, schemes=("one-layer",)), progress=False)
    job = schemes_job(SchemesConfig(**small, schemes=("one-layer", "backward-full")), progress=False)
    assert [part.todo(Completion.of(tmp_path / "run")) for part in job.parts] == [[], [("backward-full", ())]]
    studied = schemes_job(SchemesConfig(**small, schemes=("one-layer",), studies=("step_size",)), progress=False)
    cells = [part.todo(Completion.of(tmp_path / "run")) for part in studied.parts]
    assert cells == [[], [("one-layer", ("step_size",))]]
    nothing = replace(job, out=tmp_path / "new").parts[0].todo(Completion.nothing())
    assert {(name, tuple(where.values()), left) for name, where, left in nothing} == {
        ("anchor", (1,), (0, 1)),
        ("anchor", (3,), (0, 1)),
    }
