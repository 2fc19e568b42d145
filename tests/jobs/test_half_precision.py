"""bfloat16 and float16: what is rounding is not taken for a measurement."""

import numpy as np
import pytest
import torch
from helpers.commands import options
from helpers.small import CONTEXTS

from jacobian_lab import cli
from jacobian_lab.catalogue import SCHEMES
from jacobian_lab.editing.anchors import AnchorSettings, optimize_anchors
from jacobian_lab.editing.layers import Setting, restored
from jacobian_lab.editing.measures import measure, observed_edits
from jacobian_lab.editing.schemes import make_targets
from jacobian_lab.facts.reading import load_facts
from jacobian_lab.maps.replay import freeze, replay_logits
from jacobian_lab.model.loading import load_model
from jacobian_lab.model.rows import fact_rows
from jacobian_lab.store.run import open_run

LAYERS = (1, 2, 3)
OF_RESIDUAL = ("residual_ratio", "unrealised", "realised", "share_initial", "share_linear", "linear_residual_cosine")


@pytest.fixture(params=["float32", "bfloat16", "float16"])
def model(request, folders):
    return load_model(folders["llama"], dtype=request.param, device="cpu")


def measured(model, scheme, parts, settings):
    """All measures of one edit of facts whose anchors were optimised part by part."""
    facts = [fact for part in parts for fact in part]
    anchors = {
        layer: torch.cat([optimize_anchors(fact_rows(model, p, CONTEXTS), layer, settings).states for p in parts])
        for layer in (1, 3)
    }
    rows = fact_rows(model, facts, CONTEXTS)
    targets = make_targets(rows, LAYERS, anchors)
    moments = {layer: torch.eye(model.d_mlp, dtype=torch.float64) for layer in LAYERS}
    with restored(model, LAYERS):
        edits = list(observed_edits(Setting(rows, moments, 1.0), SCHEMES[scheme], targets))
    return measure(edits, targets, SCHEMES[scheme])


@pytest.mark.parametrize("scheme", ["backward-dividing", "forward-replay"])
def test_facts_that_are_answered_already_have_no_ratios_in_any_dtype(model, scheme):
    """All facts stop at the first pass, so that targets are states, up to how they were batched."""
    facts = load_facts("builtin", "0:12")
    found = measured(model, scheme, [facts[:5], facts[5:]], AnchorSettings(stop_loss=1e9))
    for name in OF_RESIDUAL:
        assert found[name].isnan().all(), name
    assert torch.isfinite(found["shift_norm"]).all()


@pytest.mark.parametrize("scheme", ["backward-dividing", "forward-replay"])
def test_facts_with_a_residual_keep_their_ratios_in_every_dtype(model, scheme):
    found = measured(model, scheme, [load_facts("builtin", "0:6")], AnchorSettings(lr=0.3, steps=6))
    for name in OF_RESIDUAL:
        assert torch.isfinite(found[name]).all(), name


def test_the_loss_of_anchors_is_taken_from_logits_that_are_not_rounded(model):
    fact = load_facts("builtin", "0:1")[0]
    frozen = freeze(model, [model.fact_prompt(fact, answer=True)], [2])
    logits = replay_logits(frozen, 2, frozen.states(2))
    assert logits.dtype == torch.float32
    for half in (torch.bfloat16, torch.float16):
        assert (logits != logits.to(half).float()).any()


@pytest.mark.slow
def test_a_trust_radius_that_a_dtype_cannot_tell_is_not_known_and_says_why(arguments, tmp_path, capsys):
    found = {}
    for dtype, known in (("float64", True), ("float32", True), ("bfloat16", False), ("float16", False)):
        out = tmp_path / dtype
        cli.main([
            "step-size",
            *options({**arguments, "slice": "0:3", "dtype": dtype, "out": out}),
            "--schemes",
            "backward-full",
        ])
        said = capsys.readouterr().out
        found[dtype] = open_run(out)["trust_share"]
        assert found[dtype].notnull().any() == known
        assert (f"not known: {dtype} rounds a replayed state" in said) != known
        row = next(line for line in said.splitlines() if "norm of the step trusted to 10 %, over" in line)
        assert (row.count("| not known") == 2) != known
        assert open_run(out)["best_step"].notnull().any()
    assert (found["float32"].sel(scheme="backward-full", layer=[1, 2]) > 0).all()
    np.testing.assert_allclose(found["float32"], found["float64"], rtol=0.01)
