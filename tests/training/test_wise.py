"""WISE's loop: loss and gradient against the untouched model, masks, decay, clamps, merges, a fact that is learnt."""

from dataclasses import replace

import pytest
import torch
from helpers.asked import efficacy
from helpers.small import CONTEXTS
from torch.func import functional_call

from jacobian_lab.errors import InputError
from jacobian_lab.facts.reading import load_facts
from jacobian_lab.model.language_model import matrix
from jacobian_lab.model.rows import fact_rows
from jacobian_lab.model.tokens import Prompt, pad
from jacobian_lab.training import wise as wise_module
from jacobian_lab.training.merging import margin
from jacobian_lab.training.settings import WiseConfig
from jacobian_lab.training.wise import Wise, _Seen
from jacobian_lab.training.wise_memory import ORIGINAL

SETTINGS = WiseConfig(block=2, edit_lr=0.5, n_iter=3, alpha=2.0, beta=5.0, gamma=3.0, absolute=True, shards=2, merged=1)


def unrelated_of(model, facts):
    return [model.text_prompt(f"{fact.target_true} is another matter than {index}") for index, fact in enumerate(facts)]


def wise_of(model, facts, settings=SETTINGS, **changes):
    rows = fact_rows(model, facts, CONTEXTS)
    return Wise(rows, unrelated_of(model, facts), replace(settings, **changes).resolved(model))


def place_of(model):
    return "entrance" if maps_at_the_entrance(model) == 1 else "projection"


def maps_at_the_entrance(model):
    return sum(len(matrix(module)) for module in model.inner(0)) // model.d_mlp


@pytest.mark.parametrize("entrance", [False, True])
def test_loss_and_gradient_are_those_of_the_model_with_its_weight_replaced(entrance, family_model, facts):
    if entrance and maps_at_the_entrance(family_model) > 1:
        pytest.skip("two maps at the entrance")
    wise = wise_of(family_model, facts, entrance=entrance)
    noise = torch.randn(wise.own.shape, generator=torch.Generator().manual_seed(1), dtype=wise.own.dtype)
    side = (wise.own + 0.1 * noise).requires_grad_()
    rows = wise.rows.answered_contexts[1]
    edited, unrelated = _Seen(wise, list(rows)), _Seen(wise, [wise.unrelated[1]])
    served = edited.served(side)
    inside, outside = edited.distances(served), unrelated.distances(unrelated.served(side))
    loss = edited.loss(served) + margin(inside, outside, 2.0, 5.0, 3.0)
    (gradient,) = torch.autograd.grad(loss, side)

    hf, name = family_model.hf, next(n for n, m in family_model.hf.named_modules() if m is wise.module)
    transposed = (
        matrix(wise.module).shape != wise.module.weight.shape
        or matrix(wise.module).stride() != wise.module.weight.stride()
    )

    def whole(weight):
        outputs = {}
        handle = wise.module.register_forward_hook(lambda _m, _i, output: outputs.update(now=output.clone()))
        losses, apart = [], []
        for row in (*rows, wise.unrelated[1]):
            outputs.clear()
            given = {f"{name}.weight": weight.T if transposed else weight}
            logits = functional_call(hf, given, (pad([row]),)).logits[0]
            changed = outputs["now"][0]
            outputs.clear()
            hf(pad([row]))
            own = outputs["now"][0]
            apart.append((wise.activation(own) - wise.activation(changed))[: row.prompt_length].norm(dim=-1).mean())
            if row.answer:
                log_p = logits[len(row.ids) - len(row.answer) :].log_softmax(-1)
                losses.append(-log_p[range(len(row.answer)), list(row.answer)].mean())
        handle.remove()
        return torch.stack(losses).mean() + margin(torch.stack(apart[:-1]), apart[-1:][0][None], 2.0, 5.0, 3.0)

    weight = side.detach().clone().requires_grad_()
    expected = whole(weight)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, weight)[0], rtol=1e-7, atol=1e-9)


def test_only_masked_entries_move_and_none_beyond_the_clamp(tiny, facts):
    wise = wise_of(tiny, facts[:1], shards=1, norm_constraint=0.05, edit_lr=50.0)
    mask = wise.mask.clone()
    assert float(mask.double().mean()) == pytest.approx(0.2, abs=0.03)
    list(wise.train())
    (served,) = wise.memory().sides
    moved = served.weight - wise.own
    assert (moved[~mask] == 0).all()
    assert moved.abs().max() == pytest.approx(0.05)


def test_decay_of_all_entries_is_that_of_so_many_steps(tiny, facts):
    wise = wise_of(tiny, facts[:1], shards=1, decayed="all", densities=1.0, weight_decay=1e-2)
    mask = wise.mask.clone()
    (trained,) = wise.train()
    (served,) = wise.memory().sides
    expected = wise.own * (1 - SETTINGS.edit_lr * 1e-2) ** trained.steps
    torch.testing.assert_close(served.weight[~mask], expected[~mask], rtol=1e-9, atol=1e-12)


def test_an_edit_that_stops_early_is_judged_at_its_final_weights(tiny, facts, monkeypatch):
    """As in the published loop: the pass at the final weights, then the stop, then the record."""
    plain = wise_of(tiny, facts[:1], shards=1, n_iter=2)
    plain._edit(0)
    monkeypatch.setattr(wise_module, "STILL", float("inf"))
    monkeypatch.setattr(wise_module, "LOW", float("inf"))
    stopped = wise_of(tiny, facts[:1], shards=1, n_iter=9)
    trained = stopped._edit(0)
    assert trained.steps == 2
    assert torch.equal(stopped.side, plain.side)
    edited, unrelated = _Seen(plain, list(plain.rows.answered_contexts[0])), _Seen(plain, [plain.unrelated[0]])
    served = edited.served(plain.side)
    inside, outside = edited.distances(served), unrelated.distances(unrelated.served(plain.side))
    assert stopped.least == trained.inside == float(inside.mean())
    assert trained.outside == float(outside.mean())
    assert trained.loss == pytest.approx(float(edited.loss(served) + margin(inside, outside, 2.0, 5.0, 3.0)))


def test_shards_are_merged_and_the_side_begins_anew(tiny, facts):
    wise = wise_of(tiny, facts[:4], shards=4, merged=2)
    for number, _ in enumerate(wise.train(), 1):
        assert len(wise.merged) == (number >= 2)
        assert torch.equal(wise.side, wise.own)  # a shard of one fact each
    first_two = wise_of(tiny, facts[:2], shards=2, merged=2)
    list(first_two.train())
    assert torch.equal(first_two.mask, wise._drawn(1))  # the last shard's own
    assert not torch.equal(first_two.mask, wise._drawn(0))


def test_masks_are_drawn_independently_of_one_another(tiny, facts):
    """Their share, and that of their overlap, within five standard deviations; other seeds, other masks."""
    wise = wise_of(tiny, facts[:1], mask_ratio=0.2)
    first, second = wise._drawn(0), wise._drawn(1)
    for mask, share in ((first, 0.2), (second, 0.2), (first & second, 0.04)):
        deviation = (share * (1 - share) / mask.numel()) ** 0.5
        assert abs(float(mask.double().mean()) - share) < 5 * deviation
    assert not torch.equal(first, wise_of(tiny, facts[:1], seed=1)._drawn(0))
    assert not torch.equal(second, wise_of(tiny, facts[:1], seed=1)._drawn(0))


@pytest.mark.parametrize(("count", "shards", "sizes"), [(5, 4, [2, 1, 1, 1]), (3, 4, [1, 1, 1]), (4, 2, [2, 2])])
def test_facts_are_divided_into_as_many_shards_as_there_can_be(count, shards, sizes, tiny, facts, monkeypatch):
    ends = []
    close = Wise._close_shard
    monkeypatch.setattr(Wise, "_close_shard", lambda wise: (ends.append(len(wise.done)), close(wise))[1])
    list(wise_of(tiny, facts[:count], shards=shards, n_iter=1).train())
    assert [end - begin for begin, end in zip([0, *ends], ends, strict=False)] == sizes


def test_a_fact_without_a_finite_loss_is_left_out(tiny, facts, monkeypatch):
    """The others are what they would be without it, but for their masks."""
    plain = wise_of(tiny, facts[:3], shards=1)
    (first, *_) = plain.train()
    wise = wise_of(tiny, facts[:3], shards=1)
    step = Wise._step
    monkeypatch.setattr(
        Wise,
        "_step",
        lambda self, side, gradient: side.fill_(torch.nan) if len(self.done) == 1 else step(self, side, gradient),
    )
    trained = list(wise.train())
    assert trained[0] == first
    assert trained[1].loss != trained[1].loss
    assert trained[2].loss == trained[2].loss
    assert all(torch.isfinite(side.weight).all() for side in wise.memory().sides)
    assert wise.memory().sides[0].threshold > 0


def test_memories_that_stay_apart_have_their_own_thresholds(tiny, facts):
    wise = wise_of(tiny, facts[:4], shards=4, merged=2, retrieve=True)
    list(wise.train())
    thresholds = [side.threshold for side in wise.memory().sides]
    assert len(set(thresholds)) == 2
    together = wise_of(tiny, facts[:4], shards=4, merged=2, act_ratio=0.5)
    list(together.train())
    assert [side.threshold for side in together.memory().sides] == [0.5 * together.least]
    assert together.least == min(trained.inside for trained in together.done)


@pytest.mark.slow
def test_a_fact_is_learnt_and_told_from_what_is_unrelated(real):
    """And takes no further steps when it is done."""
    fact = load_facts("builtin", "0:1")
    wise = wise_of(
        real,
        fact,
        WiseConfig(
            block=27, shards=1, merged=1, n_iter=300, edit_lr=0.02, beta=0.05, gamma=0.02, mask_ratio=1.0, densities=1.0
        ),
    )
    (trained,) = wise.train()
    assert trained.loss <= 0.02
    assert trained.steps < 300
    assert trained.inside > trained.outside
    memory, before = wise.memory(), real.weight(27).clone()
    assert memory.place.block == 27
    assert not efficacy(real, fact).any()
    with memory.serving(real):
        assert efficacy(real, fact).all()
    assert not efficacy(real, fact).any()
    assert torch.equal(real.weight(27), before)
    assert memory.route(memory.judge(real, wise.unrelated).T).tolist() == [ORIGINAL]


def test_it_is_the_same_again(tiny, facts):
    first, again = (wise_of(tiny, facts[:3]) for _ in range(2))
    assert list(first.train()) == list(again.train())
    for ours, theirs in zip(first.memory().sides, again.memory().sides, strict=True):
        assert torch.equal(ours.weight, theirs.weight)


@pytest.mark.parametrize("killed", [1, 2, 3])
@pytest.mark.parametrize("retrieve", [False, True])
def test_killed_after_any_fact_it_goes_on_to_the_same_bits(killed, retrieve, tiny, facts):
    def fresh():
        return wise_of(tiny, facts[:4], shards=4, merged=2, retrieve=retrieve)

    whole, first, second = fresh(), fresh(), fresh()
    list(whole.train())
    for _, _ in zip(range(killed), first.train(), strict=False):
        pass
    second.restore({name: tensor.clone() for name, tensor in first.state().items()})
    assert len(list(second.train())) == 4 - killed
    assert second.done == whole.done
    for ours, theirs in zip(second.memory().sides, whole.memory().sides, strict=True):
        assert torch.equal(ours.weight, theirs.weight)
        assert ours.threshold == theirs.threshold


def test_too_few_unrelated_rows_are_refused(tiny, facts):
    with pytest.raises(InputError, match="expected an unrelated row for each of 2 facts, got 1"):
        Wise(fact_rows(tiny, facts[:2]), [Prompt((1, 2), 1)], SETTINGS.resolved(tiny))


@pytest.mark.parametrize(
    ("protocol", "block", "lr", "steps", "distances", "act_ratio"),
    [
        ("llama-3-8b-instruct", 29, 0.9, 30, (2, 20, 10), 0.5),
        ("gpt2-xl", 8, 1.0, 40, (5, 20, 10), 0.8),
        ("gpt-j-6b", 21, 1.0, 70, (15, 40, 20), 0.88),
    ],
)
def test_settings_of_known_models_are_the_published_ones(protocol, block, lr, steps, distances, act_ratio, tiny):
    known = WiseConfig().resolved(tiny, protocol)
    assert (known.block, known.edit_lr, known.n_iter, known.act_ratio) == (block, lr, steps, act_ratio)
    assert (known.alpha, known.beta, known.gamma, known.absolute) == (*distances, True)
