"""The theorems' commands on a small model: what they store against the plain way, resuming, figures, bad input."""

import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.commands import ENVIRONMENT, ROOT, options
from helpers.reference import Plain, prompt
from helpers.small import CONTEXTS
from scipy.optimize import minimize_scalar

from jacobian_lab import cli
from jacobian_lab.catalogue import SCHEMES
from jacobian_lab.editing.layers import Setting, restored
from jacobian_lab.editing.measures import measure, observed_edits
from jacobian_lab.editing.schemes import Targets
from jacobian_lab.errors import InputError
from jacobian_lab.facts.reading import load_facts
from jacobian_lab.jobs import jacobians as surveys
from jacobian_lab.jobs import studies
from jacobian_lab.jobs.config import (
    DampingConfig,
    EditTableConfig,
    JacobianConfig,
    LayerCountConfig,
    SchemesConfig,
)
from jacobian_lab.jobs.kinds import run_job
from jacobian_lab.jobs.studies import STEPS, STUDIES
from jacobian_lab.jobs.transferring import TransferConfig
from jacobian_lab.maps.hooks import decisive_states
from jacobian_lab.model.loading import load_model
from jacobian_lab.model.rows import fact_rows
from jacobian_lab.report.registry import TABLES
from jacobian_lab.report.results import write_account
from jacobian_lab.report.tables.theorems import ROWS, conditions, summarized
from jacobian_lab.store.run import open_run

pytestmark = pytest.mark.slow

LAYERS = (1, 2, 3)
STUDIED = ("backward-dividing", "forward-replay")
CPU = torch.device("cpu")
EVERYTHING = surveys.Survey("dense", frozenset(range(6)), 0)
OF_EIGENVECTORS = ("henrici", "spectral_radius", "eigenvector_count", "random_eigenvector_angle", "eigenvalue_real")


@pytest.fixture(scope="module")
def studied(studied_run, tmp_path_factory):
    return shutil.copytree(studied_run, tmp_path_factory.mktemp("runs") / "studied")


@pytest.fixture(scope="module")
def counted(arguments, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "counted"
    return run_job(LayerCountConfig(**arguments, out=folder), progress=False)


@pytest.fixture(scope="module")
def damped(arguments, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "damped"
    return run_job(DampingConfig(**arguments, dampings=(0.1,), out=folder), progress=False)


def survey_options(arguments):
    return {name: arguments[name] for name in ("model", "slice", "layers", "device", "dtype")}


@pytest.fixture(scope="module")
def surveyed(arguments, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "surveyed"
    return run_job(JacobianConfig(**survey_options(arguments), out=folder), progress=False)


@pytest.fixture(scope="module")
def transferred(arguments, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "transferred"
    return run_job(TransferConfig(**arguments, out=folder), progress=False)


@pytest.fixture(scope="module")
def plain(arguments):
    """The untouched model, its facts, and J of each by reverse mode through all of it."""
    model = load_model(arguments["model"], dtype="float64", device="cpu")
    facts = load_facts("builtin", arguments["slice"])
    reference = Plain(model.hf, model.tokenizer, model.blocks)
    J = {layer: [reference.jacobian(fact, layer, 3).numpy() for fact in facts] for layer in (1, 2)}
    return reference, facts, J


def test_spectra_and_verdicts_against_the_plain_way(surveyed, plain):
    dataset, J = open_run(surveyed, "jacobian"), plain[2]
    assert list(dataset["layer"].values) == [1, 2]
    for layer, matrices in J.items():
        for fact, matrix in enumerate(matrices):
            found = dataset.isel(fact=fact).sel(layer=layer)
            symmetric = np.linalg.eigvalsh((matrix + matrix.T) / 2)
            np.testing.assert_allclose(found["symmetric_eigenvalue"], symmetric, rtol=1e-6, atol=1e-7)
            np.testing.assert_allclose(found["lambda_min"], symmetric[0], rtol=1e-6)
            np.testing.assert_allclose(found["lambda_max"], symmetric[-1], rtol=1e-6)
            assert found["positive_share"] == (symmetric > 0).mean()
            assert found["decision"] == np.sign(symmetric[0])
            singular = np.linalg.svd(matrix, compute_uv=False)
            np.testing.assert_allclose(found["singular_value"], singular, rtol=1e-5, atol=1e-7)
            eigenvalues = found["eigenvalue_real"].values + 1j * found["eigenvalue_imag"].values
            theirs = np.linalg.eigvals(matrix)
            distances = np.abs(eigenvalues[:, None] - theirs)
            assert distances.min(axis=0).max() < 1e-5
            assert distances.min(axis=1).max() < 1e-5
            assert found["cholesky"] == (symmetric[0] > 0)
            np.testing.assert_allclose(found["spectral_radius"], np.abs(np.linalg.eigvals(matrix)).max(), rtol=1e-6)


def test_the_csv_of_conditions(surveyed):
    write_account(surveyed, "jacobian")
    frame = pd.read_csv(surveyed / "conditions.csv")
    assert list(frame.columns[:7]) == [
        "fact",
        "layer",
        "lambda_min",
        "lambda_max",
        "positive_share",
        "definite",
        "sigma_max",
    ]
    assert len(frame) == 6 * 2
    assert frame["definite"].dtype == bool
    np.testing.assert_array_equal(frame["definite"], frame["lambda_min"] > 0)
    np.testing.assert_array_equal(frame["definite"], frame["positive_share"] == 1)
    np.testing.assert_array_equal(frame["margin"], np.maximum(0, -frame["lambda_min"]))
    np.testing.assert_array_equal(frame["distance"], 3 - frame["layer"])


def test_what_is_too_close_to_call_is_called_undecided(surveyed):
    dataset = open_run(surveyed)
    dataset["decision"][0, 0] = 0
    frame = conditions(dataset)
    assert frame["definite"].tolist()[0] == "undecided"
    assert set(frame["definite"]) <= {"undecided", "True", "False"}


def test_random_directions_are_those_of_the_seed_the_fact_and_the_layer(arguments, tmp_path, monkeypatch):
    """In whatever slice a fact stands, and no two facts or layers share them."""
    original, seen = surveys._directions, {}

    def noted(seed, width):
        seen.setdefault(name, []).append(original(seed, width))
        return seen[name][-1]

    monkeypatch.setattr(surveys, "_directions", noted)
    for name, given in {
        "two": {"slice": "0:2"},
        "second": {"slice": "1:2"},
        "other": {"slice": "1:2", "seed": 1},
    }.items():
        run_job(JacobianConfig(**{**survey_options(arguments), **given}, out=tmp_path / name), progress=False)
    layers = len(seen["two"]) // 2
    for place, directions in enumerate(seen["two"]):
        assert not any(np.array_equal(directions, other) for other in seen["two"][:place])
    for ours, theirs, others in zip(seen["two"][layers:], seen["second"], seen["other"], strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert not np.array_equal(ours, others)


def test_lanczos_agrees_with_dense(arguments, surveyed, tmp_path):
    some = {**survey_options(arguments), "slice": "0:2"}
    config = JacobianConfig(**some, survey="lanczos", out=tmp_path / "run")
    lanczos, dense = open_run(run_job(config, progress=False)), open_run(surveyed).isel(fact=slice(2))
    np.testing.assert_array_equal(lanczos["decision"], dense["decision"])
    for name in ("lambda_min", "lambda_max", "sigma_max"):
        np.testing.assert_allclose(lanczos[name], dense[name], rtol=1e-4)
    for name in ("random_rayleigh", "random_gain", "random_cosine", "random_positive", "random_residual"):
        np.testing.assert_allclose(lanczos[name], dense[name], rtol=1e-6)  # the same directions, by products
    assert np.isnan(lanczos["positive_share"]).all()
    assert "nan" not in write_account(tmp_path / "run", "jacobian")


@pytest.mark.parametrize("survey", ["dense", "lanczos"])
def test_eigenvectors_are_sought_for_a_sample_of_the_facts(arguments, surveyed, tmp_path, survey):
    """What is found of a fact of the sample does not depend on the others; the rest of them is known all the same."""
    some, whole = {**survey_options(arguments), "slice": "0:3"}, open_run(surveyed).isel(fact=slice(3))
    config = JacobianConfig(**some, survey=survey, survey_facts=1, out=tmp_path / "run")
    found = open_run(run_job(config, progress=False))
    sampled = found["henrici"].notnull().all("layer").values
    assert sampled.sum() == 1
    for name in OF_EIGENVECTORS:
        known = found[name].notnull().any([dim for dim in found[name].dims if dim != "fact"])
        np.testing.assert_array_equal(known, sampled, err_msg=name)
    for name in set(found.data_vars) - {"surveyed_digest"}:
        np.testing.assert_array_equal(found[name][sampled], whole[name][sampled], err_msg=name)
    for name in ("lambda_min", "lambda_max", "sigma_max", "decision"):
        np.testing.assert_allclose(found[name], whole[name], rtol=1e-4)
    assert found["symmetric_eigenvalue"].isnull().any() == (survey == "lanczos")
    assert "1 to 3 of 3 facts" in write_account(tmp_path / "run", "jacobian")


def test_the_sample_follows_the_seed(arguments):
    facts = load_facts("builtin", "0:32")

    def sample(count, seed=0, facts=facts):
        return surveys.Survey.of(JacobianConfig(survey_facts=count, seed=seed), 32, facts, CPU).sample

    assert sample(8) == sample(8) != sample(8, seed=1)
    assert sample(4) < sample(8)
    assert {31 - place for place in sample(8, facts=facts[::-1])} == sample(8)
    assert sample(0) == frozenset()
    assert sample(99) == frozenset(range(32))


@pytest.mark.parametrize(
    ("width", "device", "asked", "kind", "count"),
    [
        (2048, "cpu", "auto", "dense", 64),
        (2049, "cpu", "auto", "lanczos", 4),
        (2049, "cpu", "none", "lanczos", 4),
        (4096, "cpu", "dense", "dense", 64),
        (32, "cpu", "lanczos", "lanczos", 0),
        (2048, "cuda", "auto", "dense", 64),
        (4096, "cuda", "auto", "dense", 4),
        (4097, "cuda", "auto", "lanczos", 4),
    ],
)
def test_what_is_wide_is_surveyed_by_lanczos(width, device, asked, kind, count):
    how = surveys.Survey.of(SchemesConfig(survey=asked), width, load_facts("builtin") * 2, torch.device(device))
    assert (how.kind, len(how.sample)) == (kind, count)


def test_no_matrix_is_formed_of_a_wide_model_beyond_the_sample(arguments, tmp_path, monkeypatch, capsys):
    original, calls = surveys.dense_jacobians, []
    monkeypatch.setattr(
        surveys, "dense_jacobians", lambda *given, **named: calls.append(1) or original(*given, **named)
    )
    monkeypatch.setattr(surveys, "WIDEST_DENSE", 31)
    monkeypatch.setattr(surveys, "SAMPLED_WIDE", 1)
    config = JacobianConfig(**{**survey_options(arguments), "slice": "0:2"}, out=tmp_path / "run")
    run_job(config, progress=False)
    assert len(calls) == 1
    assert "by products alone (λ_min, λ_max, σ_max) but for 1 of 2 facts" in capsys.readouterr().err


def test_theorem_1_forms_no_matrix_where_lanczos_is_asked_for(arguments, tmp_path, monkeypatch):
    def forbidden(*_, **__):
        raise AssertionError("a matrix was formed")

    for module, name in ((studies, "dense_jacobians"), (studies, "eigenspaces"), (surveys, "dense_jacobians")):
        monkeypatch.setattr(module, name, forbidden)
    some = {**arguments, "slice": "0:2"}
    config = SchemesConfig(**some, schemes=("backward-full",), survey="lanczos", out=tmp_path / "run")
    found = open_run(run_job(replace(config, studies=("theorem1",)), progress=False))
    monkeypatch.undo()
    config = SchemesConfig(**some, schemes=("backward-full",), out=tmp_path / "dense")
    dense = open_run(run_job(replace(config, studies=("theorem1",)), progress=False))
    np.testing.assert_allclose(found["range_position"], dense["range_position"], atol=1e-4)
    assert dense["range_position"].sel(scheme="backward-full", layer=[1, 2]).notnull().all()
    assert found["eigenvector_angle"].isnull().all()
    account = write_account(tmp_path / "run", "theorem1")
    assert "eigen-residual" in account
    assert "nearest eigenvector" not in account
    assert "nan" not in account


def test_theorem_1_seeks_angles_for_the_sample_alone(arguments, studied, tmp_path):
    config = SchemesConfig(**arguments, schemes=STUDIED[:1], survey_facts=2, out=tmp_path / "run")
    found, dense = open_run(run_job(replace(config, studies=("theorem1",)), progress=False)), open_run(studied)
    for name in ("eigenvector_angle", "plane_angle"):
        here, there = (each[name].sel(scheme=STUDIED[0], layer=1) for each in (found, dense))
        np.testing.assert_array_equal(here.notnull(), found["henrici"].sel(layer=1).notnull())
        np.testing.assert_array_equal(here[here.notnull()], there[here.notnull()])
    assert found["range_position"].sel(scheme=STUDIED[0], layer=1).notnull().all()


def test_the_mlp_site_is_another_map(arguments, surveyed, tmp_path):
    config = JacobianConfig(**survey_options(arguments), site="mlp", out=tmp_path / "run")
    mlp = open_run(run_job(config, progress=False))
    assert (abs(mlp["lambda_max"] - open_run(surveyed)["lambda_max"]) > 1e-3).all()
    with pytest.raises(InputError, match="another site"):
        run_job(JacobianConfig(**survey_options(arguments), out=tmp_path / "run"), progress=False)


def test_the_main_job_holds_the_same_verdicts(studied, surveyed):
    tables_run, survey_run = open_run(studied, "tables"), open_run(surveyed)
    for name in ("lambda_min", "decision", "sigma_max", "henrici", "rotation", "random_cosine"):
        np.testing.assert_array_equal(tables_run[name].sel(layer=[1, 2]), survey_run[name])
        assert name == "decision" or tables_run[name].sel(layer=3).isnull().all()


def test_theorem_1_along_the_shifts(studied, plain):
    """At the first layer J is the unedited model's, so the plain way can say it all."""
    dataset, J = open_run(studied), plain[2][1]
    for scheme in STUDIED:
        for fact, matrix in enumerate(J):
            found = dataset.sel(scheme=scheme, layer=1).isel(fact=fact)
            low, high = np.linalg.eigvalsh((matrix + matrix.T) / 2)[[0, -1]]
            np.testing.assert_allclose(found["range_position"], (found["rayleigh"] - low) / (high - low), rtol=1e-5)
            np.testing.assert_allclose(found["eigen_residual"] ** 2 + found["linear_cosine"] ** 2, 1, rtol=1e-9)
            np.testing.assert_allclose(found["linear_cosine"] * found["gain"], found["rayleigh"], rtol=1e-9)
            for name in ("eigenvector_angle", "plane_angle"):
                assert 0 < found[name] <= np.pi / 2
    assert dataset["eigenvector_angle"].sel(layer=3).isnull().all()  # there J is the identity
    np.testing.assert_allclose(dataset["linear_cosine"].sel(layer=3), 1)


def test_the_terms_of_a_shift_add_up(studied):
    dataset = open_run(studied)
    total = sum(dataset[f"share_{term}"] for term in ("initial", "linear", "curvature", "leakage"))
    np.testing.assert_allclose(total, 1, rtol=1e-9)
    last = dataset.sel(layer=3)
    np.testing.assert_allclose(last["linear_norm"], last["passive_shift_norm"], rtol=1e-9)
    assert float(last["curvature_norm"].max()) == 0
    assert float(last["leakage_norm"].max()) < 1e-9


@pytest.fixture(scope="module")
def steps(tiny, facts):
    """Step sizes of one edit, with what the plain way needs to check them."""
    model, chosen = tiny, facts[:3]
    generator = torch.Generator().manual_seed(4)
    reference = Plain(model.hf, model.tokenizer, model.blocks)
    with torch.no_grad():
        rows = [reference.states(*prompt(model.tokenizer, fact), [1, 3])[1] for fact in chosen]
    states = {layer: torch.stack([row[layer] for row in rows]) for layer in (1, 3)}
    anchors = {
        layer: value + 0.5 * torch.randn(value.shape, generator=generator, dtype=torch.float64)
        for layer, value in states.items()
    }
    targets = Targets(LAYERS, anchors, {layer: anchors.get(layer, states[1]) for layer in LAYERS})
    moments = {layer: torch.eye(model.d_mlp, dtype=torch.float64) for layer in LAYERS}
    found = {}

    def look_on(edit):
        if edit.layer == 1:
            found.update(STUDIES["step_size"](edit, EVERYTHING, False))

    setting, edits = Setting(fact_rows(model, chosen, CONTEXTS), moments, 2.0), []
    with restored(model, LAYERS):
        for edit in observed_edits(setting, SCHEMES["backward-full"], targets):
            look_on(edit)
            edits.append(edit)
    measure(edits, targets, SCHEMES["backward-full"])
    shift = edits[0].shift

    def left(index, step, measured=True):
        """‖R − t·Jδ‖ or ‖R − (F(h + tδ) − F(h))‖ over ‖R‖, through the whole model."""
        fact, R = chosen[index], anchors[3][index] - states[3][index]
        delta = shift[index]
        if not measured:
            return float((R - step * reference.jacobian(fact, 1, 3) @ delta).norm() / R.norm())
        with torch.no_grad():
            value = states[1][index] + step * delta
            moved = reference.states(*prompt(model.tokenizer, fact), [3], 1, value)[1][3]
        return float((R - (moved - states[3][index])).norm() / R.norm())

    def off(index, step):
        """By which share of t·Jδ the replayed shift misses it."""
        delta = shift[index]
        with torch.no_grad():
            value = states[1][index] + step * delta
            moved = reference.states(*prompt(model.tokenizer, chosen[index]), [3], 1, value)[1][3] - states[3][index]
        linear = step * reference.jacobian(chosen[index], 1, 3) @ delta
        return float((moved - linear).norm() / linear.norm())

    size = shift.norm(dim=1)
    return found, left, off, size, len(chosen)


def test_step_curves_against_the_whole_model(steps):
    found, left, _, _, count = steps
    for index in range(count):
        unit = abs(float(found["best_step"][index]))
        for place in (0, 3, 10, 25):
            step = STEPS[place] * unit
            assert float(found["step_replayed"][index, place]) == pytest.approx(left(index, step), rel=1e-8)
            predicted = left(index, step, measured=False)
            assert float(found["step_predicted"][index, place]) == pytest.approx(predicted, rel=1e-8)


def test_best_steps_and_bounds_against_a_search(steps):
    found, left, _, _, count = steps
    for index in range(count):
        best, bound = float(found["best_step"][index]), float(found["harm_bound"][index])
        search = minimize_scalar(lambda t, i=index: left(i, t, measured=False), bounds=(-50, 50), method="bounded")
        assert best == pytest.approx(search.x, rel=1e-3, abs=1e-3)
        assert bound == pytest.approx(2 * best)
        assert best > 0
        assert left(index, bound, measured=False) == pytest.approx(1)
        replayed = float(found["best_step_replayed"][index])
        ours = float(found["best_residual_replayed"][index])
        assert ours == pytest.approx(left(index, replayed), rel=1e-8)
        assert ours <= min(left(index, step * abs(best)) for step in STEPS) + 1e-12
        near = minimize_scalar(
            lambda t, i=index: left(i, t),
            bounds=(max(0.0, replayed - 0.2 * abs(best)), replayed + 0.2 * abs(best)),
            method="bounded",
        )
        assert ours == pytest.approx(near.fun, rel=1e-4)
        harm = float(found["harm_bound_replayed"][index])
        if np.isfinite(harm) and harm > 0:
            assert left(index, harm) == pytest.approx(1, abs=1e-4)


def test_a_fact_without_a_residual_has_no_steps(tiny, facts):
    """What is left of nothing is noise over noise; how far J is right can be told all the same."""
    chosen = facts[:2]
    rows = fact_rows(tiny, chosen, CONTEXTS)
    states = decisive_states(tiny, rows.bare, LAYERS)
    away = torch.tensor([[1e-7], [0.5]], dtype=torch.float64)  # of the first fact, of the second
    anchors = {layer: states[:, place] * (1 + away) for place, layer in enumerate(LAYERS)}
    targets = Targets(LAYERS, {1: anchors[1], 3: anchors[3]}, anchors)
    moments = {layer: torch.eye(tiny.d_mlp, dtype=torch.float64) for layer in LAYERS}
    with restored(tiny, LAYERS):
        edit = next(observed_edits(Setting(rows, moments, 2.0), SCHEMES["backward-full"], targets))
        found = STUDIES["step_size"](edit, EVERYTHING, False)
    for name, values in found.items():
        known = torch.isfinite(values.reshape(2, -1))
        assert known[1].any(), name
        assert name.startswith("trust") or not known[0].any(), name


def test_the_trust_radius_is_where_the_error_is_a_tenth(steps):
    found, _, off, size, count = steps
    for index in range(count):
        step = float(found["trust_radius"][index] / size[index])
        assert off(index, step) == pytest.approx(0.1, rel=1e-3)
        assert off(index, step / 2) < 0.1


def test_layer_counts_are_edits_of_so_many_layers(arguments, counted, tmp_path):
    """Each count is the main job with these layers; four is all there are up to layer 3."""
    dataset = open_run(counted, "layer_count")
    assert list(dataset["count"].values) == [1, 2, 3, 4]
    run = open_run(run_job(SchemesConfig(**{**arguments, "layers": "2-3"}, out=tmp_path / "run"), progress=False))
    for scheme in LayerCountConfig.schemes:
        for ours, theirs in (("final_ratio", "residual_ratio"), ("final_norm", "residual_norm")):
            np.testing.assert_allclose(
                dataset[ours].sel(scheme=scheme, count=2), run[theirs].sel(scheme=scheme, layer=3), rtol=1e-7
            )
        np.testing.assert_array_equal(
            dataset["count_efficacy"].sel(scheme=scheme, count=2), run["efficacy"].sel(scheme=scheme)
        )
    one = dataset["final_ratio"].sel(count=1)
    np.testing.assert_allclose(one.sel(scheme="forward-replay"), one.sel(scheme="backward-full"), rtol=1e-9)


def test_layer_counts_are_examined_as_methods_are(arguments, counted, tmp_path):
    """Generalisation and D_KL with the two last layers are those of the edit table with these layers."""
    methods = {"memit": "backward-dividing", "memit+fe": "forward-replay", "memit+cr": "coordinated-replay"}
    config = EditTableConfig(**{**arguments, "layers": "2-3"}, methods=tuple(methods), greedy=False, out=tmp_path / "r")
    expected, found = open_run(run_job(config, progress=False)), open_run(counted).sel(count=2)
    for name, scheme in methods.items():
        for ours, theirs, dim in (
            ("count_generalization", "generalization_accuracy", "paraphrase"),
            ("count_kl", "kl", "neighbor"),
        ):
            np.testing.assert_allclose(
                found[ours].sel(scheme=scheme), expected[theirs].sel(edit=name).mean(dim), rtol=1e-6, atol=1e-12
            )
    assert float(found["count_kl"].min()) > 0


def test_dampings_beside_backward_spreading(arguments, tmp_path, capsys):
    folder = tmp_path / "run"
    cli.main(["damping", *options({**arguments, "out": folder}), "--dampings", "0.01", "2.0"])
    printed = capsys.readouterr().out
    rows = pd.read_csv(folder / "damping.csv").set_index(["row", "layer"])["mean"]
    schemes = ("backward-dividing", "jacobian-pullback")
    config = SchemesConfig(**arguments, schemes=schemes, pullback_damping=2.0, out=tmp_path / "other")
    expected = open_run(run_job(config, progress=False))
    for scheme, row in zip(schemes, ("backward-dividing", "jacobian-pullback, μ = 2"), strict=True):
        ratios = expected["residual_ratio"].sel(scheme=scheme).mean("fact")
        np.testing.assert_allclose(rows.loc[f"{row}: residual left"], ratios, rtol=1e-6)
        answered = float(expected["efficacy"].sel(scheme=scheme).mean())
        assert rows.loc[f"{row}: efficacy", 3] == pytest.approx(answered)
    assert "μ = 2" in printed
    assert (folder / "damping.tex").read_text().isascii()


def test_a_study_is_added_to_a_run_without_changing_it(arguments, studied, tmp_path):
    config = SchemesConfig(**arguments, schemes=STUDIED, out=tmp_path / "run")
    run_job(config, progress=False)
    run_job(replace(config, studies=("step_size",)), progress=False)
    added, whole = open_run(tmp_path / "run"), open_run(studied)
    for name in ("residual_ratio", "linear_norm", "step_replayed", "trust_radius"):
        assert added[name].identical(whole[name])
    assert added["eigenvector_angle"].isnull().all()


RUNS = {
    "tables": "studied",
    "layer_count": "counted",
    "damping": "damped",
    "jacobian": "surveyed",
    "transfer": "transferred",
}
ANALYSES = tuple(name for name in ROWS if TABLES[name].command == name)


@pytest.mark.parametrize("name", ANALYSES)
def test_every_analysis_has_a_subcommand(name, arguments, request, capsys):
    folder = request.getfixturevalue(RUNS[TABLES[name].kinds[0]])
    chosen = {**(survey_options(arguments) if name == "jacobian" else arguments), "out": folder}
    schemes = {
        "layer_count": ["--schemes", *LayerCountConfig.schemes],
        "damping": ["--dampings", "0.1"],
        "jacobian": [],
        "transfer": [],
    }
    schemes = schemes.get(name, ["--schemes", *STUDIED])
    cli.main([name.replace("_", "-"), *options(chosen), *schemes])
    printed = capsys.readouterr().out
    assert TABLES[name].caption in printed
    assert (folder / f"{name}.tex").read_text().isascii()
    long = pd.read_csv(folder / f"{name}.csv")
    assert np.isfinite(long[["mean", "median"]].to_numpy()).all()
    pd.testing.assert_frame_equal(long, summarized(open_run(folder), name))


def test_schemes_that_edit_the_last_layer_alone_have_nothing_below_it(arguments, tmp_path, capsys):
    folder = tmp_path / "run"
    for command in ("decomposition", "step-size"):
        cli.main([command, *options({**arguments, "out": folder}), "--schemes", "one-layer"])
        assert "The run holds no such layer." in capsys.readouterr().out
    cli.main(["tables", *options({**arguments, "out": folder}), "--schemes", "one-layer", "--verbose"])
    assert "S ≻ 0" in capsys.readouterr().out
    script = [sys.executable, ROOT / "figures" / "decomposition.py", folder]
    result = subprocess.run(script, capture_output=True, text=True, check=False, env=ENVIRONMENT)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)


def test_the_survey_can_be_done_by_lanczos_or_left_out(arguments, studied, tmp_path):
    dense, some = open_run(studied).isel(fact=slice(2)), {**arguments, "slice": "0:2"}
    for survey in ("lanczos", "none"):
        config = SchemesConfig(**some, schemes=("one-layer",), survey=survey, out=tmp_path / survey)
        dataset = open_run(run_job(config, progress=False))
        if survey == "none":
            assert dataset["lambda_min"].isnull().all()
        else:
            np.testing.assert_allclose(dataset["lambda_min"], dense["lambda_min"], rtol=1e-4)
            assert dataset["henrici"].isnull().all()


def test_figures_of_another_run_or_of_nothing_computed_are_refused(surveyed, arguments, tmp_path):
    folder = run_job(SchemesConfig(**arguments, schemes=("one-layer",), out=tmp_path / "run"), progress=False)
    for name, run, words in (
        ("theorem2", surveyed, "expected a run of jacobian-lab schemes, got one of jacobians"),
        ("theorem1", folder, f"make it with jacobian-lab schemes --studies theorem1, to {folder}"),
        ("step_size", folder, "make it with jacobian-lab schemes --studies step_size --no-verdicts"),
    ):
        command = [sys.executable, ROOT / "figures" / f"{name}.py", run, "--out", tmp_path / "figures"]
        result = subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT)
        assert result.returncode == 2
        assert words in result.stderr
        assert result.stderr.count("\n") == 1


def test_bad_input_ends_with_one_line(arguments, surveyed, studied, capsys):
    survey = survey_options(arguments)
    cases = [
        ("jacobian", {**survey, "layers": "3"}, "at least two layers"),
        ("jacobian", {**survey, "layers": "1-9"}, "layers from 0 to 5"),
        ("jacobian", {**survey, "out": studied}, "a folder of jacobian-lab jacobians, got one of schemes"),
        ("theorem1", {**arguments, "out": surveyed}, "a folder of jacobian-lab schemes, got one of jacobians"),
        ("layer-count", {**arguments, "max_layers": 9}, "at most 4 layers up to layer 3"),
    ]
    for command, changes, words in cases:
        with pytest.raises(SystemExit) as caught:
            cli.main([command, *options(changes)])
        out, err = capsys.readouterr()
        assert caught.value.code == 2, changes
        assert out == ""
        assert err.startswith("jacobian-lab: expected ")
        assert err.count("\n") == 1
        assert words in err
