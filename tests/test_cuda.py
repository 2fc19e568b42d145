"""On a card the same comes out as on the processor, in float64; skipped where there is no card."""

import numpy as np
import pytest
import torch
from helpers.commands import options
from helpers.exact import load_exact
from helpers.small import CONTEXTS, FAMILIES

from jacobian_lab import cli
from jacobian_lab.catalogue import METHODS
from jacobian_lab.editing.anchors import AnchorSettings
from jacobian_lab.editing.rules import Problem, emmet
from jacobian_lab.editing.schemes import damped_pullback
from jacobian_lab.editor import Editor
from jacobian_lab.maps.definiteness import (
    definiteness_matrix_free,
    is_positive_definite,
    symmetric_part,
    verdict_of,
)
from jacobian_lab.maps.jacobians import dense_jacobians, jvp, linear_operator, vjp
from jacobian_lab.maps.replay import freeze, replay, replay_logits
from jacobian_lab.model.loading import load_model
from jacobian_lab.model.tokens import Prompt
from jacobian_lab.store.run import config_of, open_run

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
PLACES = "cpu", "cuda"
STATES, DERIVATIVES = 1e-10, 1e-11
"""How far apart they may be beside 10⁻⁹ of their size."""


def near(cuda, cpu, atol):
    assert cuda.device.type == "cuda"
    torch.testing.assert_close(cuda.cpu(), cpu, rtol=1e-9, atol=atol)


@pytest.fixture(scope="module", params=FAMILIES)
def models(request, folders):
    return [load_exact(folders[request.param], place) for place in PLACES]


def test_auto_takes_the_card(folders):
    assert load_model(folders["gpt2"]).device.type == "cuda"


def test_replay_and_derivatives(models, facts):
    generator = torch.Generator().manual_seed(0)
    found = []
    shift, other = torch.randn(2, len(facts), models[0].d_model, dtype=torch.float64, generator=generator)
    for model in models:
        frozen = freeze(model, [model.fact_prompt(fact, answer=True) for fact in facts], [1, 2])
        v, u = shift.to(model.device), other.to(model.device)
        moved = frozen.states(1) + v
        found.append([
            (STATES, replay(frozen, 1, moved, (2, 4), {3: u})),
            (STATES, replay_logits(frozen, 1, moved, {2: u}).double()),
            (DERIVATIVES, dense_jacobians(frozen, [1, 2], 4, moved)),
            (DERIVATIVES, dense_jacobians(frozen, [1, 2], 4, site="mlp")),
            (DERIVATIVES, jvp(frozen, 1, 4, v, moved)),
            (DERIVATIVES, vjp(frozen, 1, 4, u, moved)),
        ])
    for (atol, on_cpu), (_, on_cuda) in zip(*found, strict=True):
        near(on_cuda, on_cpu, atol)


def test_a_matrix_free_verdict(models, facts):
    frozen = [freeze(model, [model.fact_prompt(facts[1]).cut()], [1]) for model in models]
    cpu, cuda = (definiteness_matrix_free(linear_operator(each, 0, 1, 4)) for each in frozen)
    assert cuda.decision == cpu.decision
    np.testing.assert_allclose([cuda.smallest, cuda.largest], [cpu.smallest, cpu.largest], rtol=1e-6)


@pytest.fixture(scope="module")
def editors(models, facts, corpus_file):
    anchor = AnchorSettings(lr=0.1, steps=4)
    shared = {"layers": (1, 2, 3), "ridge": 10.0, "templates": CONTEXTS, "corpus": str(corpus_file), "progress": False}
    return [Editor(model, facts, anchor=anchor, **shared) for model in models]


@pytest.mark.parametrize("name", METHODS)
def test_every_method(name, editors):
    """Deltas to a share of their own size; what is asked of the edited model likewise, and the weights are back."""
    asked = []
    for editor in editors:
        before = [editor.model.weight(layer).clone() for layer in editor.layers]
        with editor.edit(name) as edit:
            asked.append((edit, edit.evaluate()))
        assert all(torch.equal(editor.model.weight(layer), old) for layer, old in zip((1, 2, 3), before, strict=True))
    (on_cpu, cpu), (on_cuda, cuda) = asked
    for layer, delta in on_cpu.deltas.items():
        apart = torch.linalg.norm(on_cuda.deltas[layer].cpu() - delta) / torch.linalg.norm(delta)
        assert apart < 1e-7, layer
    np.testing.assert_allclose(cuda.to_numpy(float), cpu.to_numpy(float), rtol=1e-6, atol=1e-9)
    if not METHODS[name].refit:
        for variable, values in on_cpu.measures.items():
            np.testing.assert_allclose(on_cuda.measures[variable], values, rtol=1e-5, atol=1e-7, err_msg=str(variable))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_edits_and_puts_back(dtype, folders, facts, corpus_file):
    model = load_model(folders["llama"], dtype=dtype, device="cuda")
    anchor = AnchorSettings(lr=0.1, steps=3)
    shared = {"layers": (1, 2, 3), "ridge": 10.0, "templates": CONTEXTS, "corpus": str(corpus_file), "progress": False}
    editor, before = Editor(model, facts, anchor=anchor, **shared), model.weight(2).clone()
    with editor.edit("memit+cr") as edit:
        assert np.isfinite(edit.measures["residual_ratio"]).all()
        assert not torch.equal(model.weight(2), before)
    assert torch.equal(model.weight(2), before)


@pytest.mark.parametrize(
    ("command", "further"),
    [
        ("tables", []),
        ("edit-table", ["--methods", "memit", "alphaedit+fe", "memit+cr", "--edits-per-batch", "4"]),
        ("jacobian", []),
        ("layer-count", []),
        ("frontier", ["--ridges", "3", "30"]),
    ],
)
def test_commands_store_the_same(command, further, arguments, tmp_path):
    """Floats to rounding, what is counted or decided exactly; what is rounding itself is left out."""
    unused = {"jacobian": ("templates", "corpus", "ridge", "anchor", "anchors_per_batch"), "frontier": ("ridge",)}
    given = {name: value for name, value in arguments.items() if name not in unused.get(command, ())}
    for place in PLACES:
        cli.main([command, *options({**given, "device": place, "out": tmp_path / place}), *further])
    cpu, cuda = (open_run(tmp_path / place) for place in PLACES)
    assert config_of(cuda)["settings"]["device"] == "cuda"
    for name in cpu:
        ours, theirs = (run[name].values for run in (cuda, cpu))
        if ours.dtype.kind == "f" and name not in {"lambda_error", "unstored"}:
            scale = np.nanmax(np.abs(theirs), initial=0.0)
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6 * scale + 1e-9, err_msg=name)
        elif ours.dtype.kind == "i":
            np.testing.assert_array_equal(ours, theirs, err_msg=name)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_row_that_sees_itself_alone_beside_a_long_one(dtype, folders):
    """No BOS, the subject first in one row of a batch, after 200 tokens in the other: no row of attention is empty."""
    model = load_model(folders["gpt2"], dtype=dtype, device="cuda")
    long = torch.randint(3, 512, (201,), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [Prompt((7, 8, 9), 0, (5, 6)), Prompt(tuple(long), 198, (5, 6))]
    logits = []
    for some in (rows, rows[:1]):
        frozen = freeze(model, some, [1])
        states = frozen.states(1).float().requires_grad_()
        found = replay_logits(frozen, 1, states)
        (gradient,) = torch.autograd.grad(found.log_softmax(-1)[..., 0].sum(), states)
        assert found.isfinite().all()
        assert gradient.isfinite().all()
        logits.append(found[0].detach())
    together, alone = logits
    torch.testing.assert_close(
        together[: len(alone)], alone, rtol=0, atol=4 * torch.finfo(model.dtype).eps * alone.abs().max().item()
    )


def test_a_verdict_and_a_pull_back_at_a_width_of_5120():
    """J = I + εG, so that S lies within 1 ± ε√2 but for the edge; the pull-back by its normal equations."""
    generator = torch.Generator().manual_seed(0)
    J = (
        torch.eye(5120, dtype=torch.float64)
        + 0.3 * torch.randn(5120, 5120, dtype=torch.float64, generator=generator) / 5120**0.5
    )
    residual = torch.randn(1, 5120, dtype=torch.float64, generator=generator).cuda()
    J = J.cuda()
    S = symmetric_part(J)
    verdict = verdict_of(S, 1e-7, 2.0)
    assert verdict.decision == "definite"
    np.testing.assert_allclose([verdict.smallest, verdict.largest], [1 - 0.3 * 2**0.5, 1 + 0.3 * 2**0.5], atol=0.01)
    assert is_positive_definite(S)
    assert not is_positive_definite(S - 0.7 * torch.eye(5120, dtype=torch.float64, device="cuda"))
    shift = damped_pullback(J[None], residual, 1e-2)[0]
    left = J.T @ (J @ shift - residual[0]) + 1e-2 * shift
    assert left.norm() < 1e-10 * (J.T @ residual[0]).norm()


def test_emmet_at_a_key_of_14336():
    """C of few tokens and hardly regular; what is asked for is realised but for ε."""
    generator = torch.Generator().manual_seed(0)
    seen = torch.randn(14336, 2000, generator=generator).cuda()
    C = (seen @ seen.T / 2000).double()
    C.diagonal().add_(1e-2)
    K = torch.randn(14336, 64, dtype=torch.float64, generator=generator).cuda()
    R = torch.randn(256, 64, dtype=torch.float64, generator=generator).cuda()
    update = emmet(Problem(8, K, R, C, torch.zeros(256, 14336, device="cuda"), ridge=1e3))
    assert update.condition > 1e5
    assert (update.delta @ K - R).norm() < 1e-3 * R.norm()
