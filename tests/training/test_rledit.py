"""RLEdit against the untouched model: keys and gradients, the network's gradient through everything, sequences."""

from dataclasses import replace

import pytest
import torch
from torch.func import functional_call

from jacobian_lab.editing.adapters import TOLERANCE
from jacobian_lab.editing.deltas import add_delta, load_delta
from jacobian_lab.errors import InputError
from jacobian_lab.facts.reading import load_facts
from jacobian_lab.model.language_model import matrix
from jacobian_lab.model.loading import load_model
from jacobian_lab.model.tokens import pad
from jacobian_lab.training.examples import TrainingExample
from jacobian_lab.training.rledit import RLEdit
from jacobian_lab.training.settings import RLEditConfig

SETTINGS = RLEditConfig(
    blocks=(2, 3),
    rank=4,
    n_blocks=2,
    lr=0.05,
    meta_lr=1e-3,
    n_edits=2,
    batch_size=2,
    edited_at_once=2,
    back_depth=2,
    reg_coef=0.3,
)


def examples_of(model, facts):
    return [
        TrainingExample(
            model.text_prompt(fact.text, fact.target_new),
            model.text_prompt("In other words: " + fact.text, fact.target_new),
            model.text_prompt(f"The weather of day {number} is", "fine"),
        )
        for number, fact in enumerate(facts)
    ]


def rledit_of(model, training_examples=(), **changes):
    return RLEdit(
        model,
        training_examples,
        [each.edit for each in training_examples],
        replace(SETTINGS, **changes).resolved(model),
    )


def disturb(editor):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for network in editor.networks.values():
            for parameter in network.parameters():
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)


def weights_of(editor, changes):
    """What functional_call takes: the changed matrices as the modules hold them."""
    given = {}
    for name, change in changes.items():
        module = editor.modules[name]
        new = matrix(module) + change.T
        same = module.weight.stride() == matrix(module).stride()
        given[f"{name}.weight"] = new if same else new.T
    return given


def log_p(model, given, row):
    logits = functional_call(model.hf, given, (pad([row]),)).logits[0]
    return logits[len(row.ids) - len(row.answer) : len(row.ids)].log_softmax(-1)


@pytest.mark.parametrize("projections", [False, True])
def test_keys_and_gradients_are_the_models(projections, family_model, facts):
    """Over all positions Σ k gᵀ is the gradient of the matrix; the answers' positions are some of them."""
    editor = rledit_of(family_model, projections=projections)
    rows = [each.edit for each in examples_of(family_model, facts)[:2]]
    told = editor._pass(rows)
    given = {
        n: w.detach().clone().requires_grad_()
        for n, w in weights_of(editor, {n: 0 * matrix(m).T for n, m in editor.modules.items()}).items()
    }
    losses = torch.cat([-log_p(family_model, given, row)[range(len(row.answer)), list(row.answer)] for row in rows])
    torch.testing.assert_close(told.loss, losses.mean(), rtol=1e-9, atol=1e-10)
    expected = torch.autograd.grad(losses.mean(), list(given.values()))
    for name, gradient in zip(editor.modules, expected, strict=True):
        ours = torch.einsum("rti,rto->oi", told.inputs[name], told.gradients[name])
        torch.testing.assert_close(
            ours,
            gradient
            if gradient.shape == ours.shape
            and editor.modules[name].weight.stride() == matrix(editor.modules[name]).stride()
            else gradient.T,
            rtol=1e-7,
            atol=1e-10,
        )
    padded = editor._pass([rows[0]])
    for name in editor.modules:
        length = len(rows[0].ids)
        torch.testing.assert_close(padded.inputs[name][0, :length], told.inputs[name][0, :length], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("penalized", "batch_size"), [(True, 4), (False, 4), (True, 1)])
def test_the_networks_gradient_is_autograds_through_everything(penalized, batch_size, tiny, facts):
    """Solve, edit, other wordings, divergence, penalty: two batches, the older one discounted; sums over passes."""
    editor = rledit_of(tiny, penalized=penalized, batch_size=batch_size)
    disturb(editor)
    training_examples = examples_of(tiny, facts[:4])
    seen = [training_examples[2:], training_examples[:2]]
    with editor.changing():
        editor._learn(seen)
    ours = {s: {n: p.grad.clone() for n, p in network.named_parameters()} for s, network in editor.networks.items()}

    again = rledit_of(tiny, penalized=penalized, batch_size=batch_size)
    disturb(again)
    told = again._keys_and_standardized([each.edit for each in seen[0]])
    changes = {}
    for name, (keys, standard) in told.items():
        shape, number = again.places[name]
        network = again.networks[shape]
        gram = keys.T @ keys + network.log_ridge[number].exp() * torch.eye(keys.shape[1], dtype=keys.dtype)
        changes[name] = torch.linalg.solve(gram, keys.T @ network(number, keys, standard))
    given = weights_of(again, changes)
    loss = torch.zeros((), dtype=torch.float64)
    parts = [
        (age, batch[i : i + batch_size]) for age, batch in enumerate(seen) for i in (0, 1) if i < 1 or batch_size < 2
    ]
    for age, batch in parts:
        other = [
            log_p(tiny, given, each.other)[range(len(each.other.answer)), list(each.other.answer)] for each in batch
        ]
        loss = loss - 0.95**age * torch.cat(other).mean()
        apart = []
        for each in batch:
            before, after = log_p(tiny, {}, each.unrelated), log_p(tiny, given, each.unrelated)
            apart.append((before.exp() * (before - after)).sum(-1))
        loss = loss + SETTINGS.loc_coef * 0.95**age * torch.cat(apart).mean()
    if penalized:
        loss = loss + SETTINGS.reg_coef * sum((change**2).sum() for change in changes.values())
    for shape, network in again.networks.items():
        expected = torch.autograd.grad(loss, list(network.parameters()), retain_graph=True)
        for (name, _), gradient in zip(network.named_parameters(), expected, strict=True):
            torch.testing.assert_close(ours[shape][name], gradient, rtol=1e-6, atol=1e-10, msg=f"{shape} {name}")


def test_a_sequence_adds_up_and_is_put_back_to_the_bit(tiny, facts):
    """Two batches: what the first did, and what the second added on the model as the first had left it."""
    training_examples = examples_of(tiny, facts[:4])
    editor, first = rledit_of(tiny, training_examples), rledit_of(tiny, training_examples[:2])
    before = {name: matrix(module).clone() for name, module in editor.modules.items()}
    for _ in range(2):  # and again: what is standardised begins where the training left it
        told = []
        with editor.edited(told.append):
            for name, module in editor.modules.items():
                torch.testing.assert_close(matrix(module), before[name] + editor.deltas[name], rtol=1e-12, atol=1e-12)
            both = dict(editor.deltas)
        assert told == [2, 2]
        assert all(torch.equal(matrix(module), before[name]) for name, module in editor.modules.items())
    with first.edited():
        tokens = sum(len(each.edit.answer) for each in training_examples[:2])
        for name, change in first.deltas.items():
            assert torch.linalg.matrix_rank(change) <= tokens
            assert (
                0
                < torch.linalg.matrix_rank(both[name] - change)
                <= sum(len(e.edit.answer) for e in training_examples[2:])
            )
    with pytest.raises(RuntimeError, match="within"), editor.edited():
        raise RuntimeError("within")
    assert all(torch.equal(matrix(module), before[name]) for name, module in editor.modules.items())


@pytest.mark.parametrize("projections", [False, True])
def test_what_it_changed_is_saved_and_goes_on_the_base_model_alone(projections, family_model, facts, tmp_path):
    editor = rledit_of(family_model, examples_of(family_model, facts[:2]), projections=projections)
    with editor.edited():
        edited = {name: matrix(module).clone() for name, module in editor.modules.items()}
    editor.save("delta", tmp_path / "delta.safetensors", {})
    with editor.changing():
        add_delta(family_model, load_delta(tmp_path / "delta.safetensors", family_model))
        for name, module in editor.modules.items():
            torch.testing.assert_close(matrix(module), edited[name], rtol=1e-12, atol=1e-12)


def test_a_trained_change_is_an_adapter_by_its_singular_values(tiny, facts, tmp_path, capsys):
    """In float32 rounding has every rank; what it adds is cut off."""
    editor = rledit_of(tiny, examples_of(tiny, facts[:2]))
    with editor.edited():
        pass
    editor.deltas = {name: delta.float().double() for name, delta in editor.deltas.items()}
    editor.save("lora", tmp_path / "adapter", {})
    assert "from an SVD at" in capsys.readouterr().err
    loaded = load_delta(tmp_path / "adapter", tiny)
    for place, delta in editor._placed(editor.deltas).items():
        assert torch.linalg.matrix_norm(loaded[place] - delta) <= 2 * TOLERANCE * torch.linalg.matrix_norm(delta)
        assert torch.linalg.matrix_rank(loaded[place]) < min(delta.shape) == torch.linalg.matrix_rank(delta)


def test_what_is_not_changed_diverges_by_nothing(tiny, facts):
    editor = rledit_of(tiny, lr=0.0)
    with editor.changing():
        editor._learn([examples_of(tiny, facts[:2])])
        _, apart = editor._learn([examples_of(tiny, facts[:2])])
    assert apart == pytest.approx(0, abs=1e-12)


def test_training_lowers_the_loss(tiny, facts):
    editor = rledit_of(tiny, examples_of(tiny, facts[:4]), n_epochs=12, meta_lr=1e-3, reg_coef=0.0, loc_coef=0.0)
    list(editor.train())
    losses = [first for first, _ in editor.losses]
    assert sum(losses[-2:]) < sum(losses[:2])


def test_a_penalty_without_a_gradient_does_nothing(tiny, facts):
    """As published: the term is there, and no parameter hears of it."""
    found = []
    for penalty, penalized in ((0.0, True), (1e3, False), (1e3, True)):
        editor = rledit_of(tiny, examples_of(tiny, facts[:2]), reg_coef=penalty, penalized=penalized, n_epochs=1)
        list(editor.train())
        found.append(torch.cat([p.detach().flatten() for n in editor.networks.values() for p in n.parameters()]))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_the_same_training_is_the_same_again(tiny, facts):
    training_examples = examples_of(tiny, facts[:4])
    first, again = (rledit_of(tiny, training_examples, n_epochs=2, step="batch", clipped="each") for _ in range(2))
    for editor in (first, again):
        list(editor.train())
    assert first.losses == again.losses


@pytest.mark.parametrize("step", ["trajectory", "batch"])
@pytest.mark.parametrize("killed", [1, 2, 3])
def test_killed_after_any_batch_it_goes_on_to_the_same_bits(killed, step, tiny, facts):
    whole, first, second = (rledit_of(tiny, examples_of(tiny, facts[:4]), n_epochs=2, step=step) for _ in range(3))
    list(whole.train())
    for _, _ in zip(range(killed), first.train(), strict=False):
        pass
    second.restore({name: tensor.clone() for name, tensor in first.state().items()})
    assert len(list(second.train())) == 4 - killed
    assert second.losses == whole.losses
    ours, theirs = second.state(), whole.state()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_blocks_that_are_not_there_are_refused(tiny):
    for blocks in ((0, 1), (5, 6)):
        with pytest.raises(InputError, match=r"expected rledit\.blocks of 1 to 5, got"):
            rledit_of(tiny, blocks=blocks)


def test_one_fact_is_learnt_to_a_loss_near_zero(real):
    """By a network that is taught with that fact alone, with nothing to be left alone."""
    (lesson,) = examples_of(real, load_facts("builtin", "0:1"))
    settings = RLEditConfig(
        blocks=(27, 28), rank=8, lr=1e-3, meta_lr=1e-3, loc_coef=0.0, reg_coef=0.0, n_epochs=8, step="batch"
    )
    network = RLEdit(real, [replace(lesson, other=lesson.edit)], [lesson.edit], settings.resolved(real))
    (before,) = network._losses([lesson.edit])
    for _ in network.train():
        pass
    with network.edited():
        assert network.learnt[0] < 0.02 < 1 < before
        assert network._losses([lesson.edit]) == pytest.approx(network.learnt, rel=1e-3)
    assert network._losses([lesson.edit]) == [before]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_several_batches_are_rounded_once(dtype, folders, facts, tmp_path):
    """So that base and saved delta are the measured model to the last bit."""
    model = load_model(folders["llama"], dtype=dtype, device="cpu")
    training_examples = examples_of(model, facts[:4])
    network = rledit_of(model, training_examples, lr=0.05, edited_at_once=1)
    with network.edited():
        now = {name: matrix(module).clone() for name, module in network.modules.items()}
        network.save("delta", tmp_path / "delta.safetensors", {})
        lost = [each for each in network.diagnostics()["changed_unstored"] if each == each]
    delta = load_delta(tmp_path / "delta.safetensors", model)
    with network.changing():
        add_delta(model, delta)
        assert all(torch.equal(matrix(module), now[name]) for name, module in network.modules.items())
    assert (max(lost) > 1e-3) == (dtype == "bfloat16")


def test_changes_that_are_not_finite_are_refused(tiny, facts):
    network = rledit_of(tiny, examples_of(tiny, facts[:2]), lr=float("inf"))
    before = {name: matrix(module).clone() for name, module in network.modules.items()}
    with pytest.raises(InputError, match=r"expected finite changes, got NaN or infinity in .*: lower rledit\.lr"):
        next(network.train())
    assert all(torch.equal(matrix(module), before[name]) for name, module in network.modules.items())
