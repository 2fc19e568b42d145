"""Replay equals the model, whatever shares the batch."""

import pytest
import torch
from helpers.exact import load_exact
from helpers.reference import Plain, prompt
from helpers.small import CONTEXTS, FAMILIES, make_folder, make_tokenizer
from transformers import LlamaConfig

from jacobian_lab.errors import InputError
from jacobian_lab.facts.fact import Fact
from jacobian_lab.maps.agreement import check_replay
from jacobian_lab.maps.hooks import decisive_states
from jacobian_lab.maps.replay import freeze, replay, replay_logits
from jacobian_lab.model.loading import load_model
from jacobian_lab.model.rows import fact_rows
from jacobian_lab.model.tokens import fact_prompt


def relative(got, expected):
    return float((got - expected).norm() / expected.norm())


def rows_of(model, facts):
    templates = [template for group in CONTEXTS for template in group]
    return [(fact, t, fact_prompt(model.tokenizer, fact, t, answer=True)) for fact in facts for t in templates]


def assert_replay_is_the_model(model, facts, starts, tolerance):
    """Replay from every start, with a state of its own in every row, against the model one row at a time."""
    plain = Plain.of(model)
    rows = rows_of(model, facts)
    frozen = freeze(model, [row for _, _, row in rows], starts)
    above = tuple(range(min(starts), model.n_layers))
    generator = torch.Generator().manual_seed(0)
    for start in starts:
        noise = torch.randn(len(rows), model.d_model, generator=generator, dtype=torch.float64).to(model.dtype)
        states = frozen.states(start) * (1 + 0.3 * noise)
        read = above[above.index(start) :]
        got, logits = replay(frozen, start, states, read), replay_logits(frozen, start, states)
        for index, (fact, template, row) in enumerate(rows):
            ids, position = prompt(model.tokenizer, fact, template)
            own_logits, own = plain.states(list(row.ids), position, read, start, value=states[index])
            assert position == row.decisive
            assert row.ids[: len(ids)] == tuple(ids)
            for place, layer in enumerate(read):
                assert relative(got[index, place], own[layer]) < tolerance, (start, layer, fact.id)
            answer = len(row.answer)
            assert relative(logits[index, :answer], own_logits[-answer:]) < tolerance, (
                start,
                fact.id,
            )


@torch.no_grad()
def test_replay_equals_the_model_in_float64(family_model, facts):
    assert_replay_is_the_model(family_model, facts, (0, 2, 4), 1e-10)


@torch.no_grad()
def test_replay_with_shifts_equals_the_model_with_the_same(family_model, facts):
    """A state of its own at the start, and shifts behind two layers above, one of them read and one not."""
    model, plain = family_model, Plain.of(family_model)
    rows = rows_of(model, facts)
    frozen = freeze(model, [row for _, _, row in rows], [1])
    noise = torch.randn(3, len(rows), model.d_model, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    states, shifts = frozen.states(1) + 0.3 * noise[0], {2: 0.3 * noise[1], 4: 0.3 * noise[2]}
    got, logits = replay(frozen, 1, states, (1, 3, 4), shifts), replay_logits(frozen, 1, states, shifts)
    for index, (fact, _, row) in enumerate(rows):
        added = {layer: shift[index] for layer, shift in shifts.items()}
        own_logits, own = plain.states(list(row.ids), row.decisive, (1, 3, 4), 1, states[index], added)
        for place, layer in enumerate((1, 3, 4)):
            assert relative(got[index, place], own[layer]) < 1e-10, (layer, fact.id)
        answer = len(row.answer)
        assert relative(logits[index, :answer], own_logits[-answer:]) < 1e-10


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_replay_equals_the_model_in_float32_for_either_padding_side(family, side, folders, facts):
    model = load_model(folders[family], device="cpu")
    model.tokenizer.padding_side = side
    assert_replay_is_the_model(model, facts, (1, 3), 1e-5)
    assert model.tokenizer.padding_side == side


@pytest.mark.real
@torch.no_grad()
@pytest.mark.parametrize(
    ("load", "tolerance"), [(load_model, 1e-5), pytest.param(load_exact, 1e-10, marks=pytest.mark.slow)]
)
def test_replay_equals_the_real_model(load, tolerance, facts):
    assert_replay_is_the_model(load(device="cpu"), facts[:3], (4, 8), tolerance)


@pytest.mark.slow
@torch.no_grad()
def test_replay_of_the_untouched_real_model_in_float64(facts):
    """transformers computes norms in float32 even then; both do, so both agree."""
    assert_replay_is_the_model(load_model(dtype="float64", device="cpu"), facts[:2], (4,), 1e-10)


@torch.no_grad()
def test_rows_can_be_selected_in_any_order(tiny, facts):
    rows = [row for _, _, row in rows_of(tiny, facts)]
    frozen = freeze(tiny, rows, [2])
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))
    whole = replay_logits(frozen, 2, frozen.states(2))
    part = frozen.select(order)
    torch.testing.assert_close(replay_logits(part, 2, part.states(2)), whole[order], rtol=1e-12, atol=1e-12)


def test_gradients_flow_through_replay(tiny, facts):
    rows = [fact_prompt(tiny.tokenizer, facts[1], answer=True)]
    frozen = freeze(tiny, rows, [2])
    state = frozen.states(2).clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: replay(frozen, 2, s, (3, 5)), (state,))


@torch.no_grad()
def test_states_are_those_of_the_model_with_a_last_block_that_stops_it(tiny, facts):
    rows = [fact_prompt(tiny.tokenizer, fact) for fact in facts]
    frozen = freeze(tiny, rows, [1], last=3)
    expected = decisive_states(tiny, rows, (1, 2, 3))
    torch.testing.assert_close(replay(frozen, 1, frozen.states(1), (1, 2, 3)), expected, rtol=1e-12, atol=1e-12)


def test_check_passes_on_every_family(family_model, facts):
    check_replay(family_model, facts, (1, 3))


def test_check_names_what_fails(tmp_path, facts, monkeypatch):
    model = load_model(
        make_folder(
            tmp_path / "m",
            LlamaConfig(hidden_size=32, num_attention_heads=4, num_hidden_layers=4, intermediate_size=64),
        ),
        device="cpu",
    )
    original = type(model).positional

    def shifted(self, hidden, positions, kind):
        return original(self, hidden, positions * 2, kind)

    monkeypatch.setattr(type(model), "positional", shifted)
    with pytest.raises(InputError, match="replay from layer 1 to give the hidden states"):
        check_replay(model, facts, (1, 2))


def test_check_refuses_a_wrong_subject_index(tiny, facts, monkeypatch):
    def late(model, fact, **keywords):
        row = fact_prompt(model.tokenizer, fact, **keywords)
        return type(row)(row.ids, row.decisive - 1, row.answer)

    monkeypatch.setattr(type(tiny), "fact_prompt", late)
    with pytest.raises(InputError, match="decisive token to end the subject"):
        check_replay(tiny, facts[1:3], (1,))


def test_check_takes_subjects_that_end_in_a_character_of_several_tokens(tiny):
    check_replay(tiny, [Fact(0, "Tōkyō 日", "{} is in", "Japan"), Fact(1, "Cafe\u0301", "{} is", "open")], (1,))


def test_prompts_longer_than_the_model_takes_are_refused(tiny, facts):
    fact_rows(tiny, facts, CONTEXTS)
    with pytest.raises(InputError, match=r"at most 256 tokens, got one of \d+ in fact 'first'"):
        fact_rows(tiny, facts, (("word " * 300 + "{}",),))


def test_tokenizer_variants_give_the_same_decisive_token(facts):
    plain, left, bos = make_tokenizer(), make_tokenizer("left"), make_tokenizer(bos=True, eos=True)
    for fact in facts:
        row, other, with_bos = (fact_prompt(t, fact, answer=True) for t in (plain, left, bos))
        assert row == other
        assert with_bos.ids == (bos.bos_token_id, *row.ids)
        assert with_bos.decisive == row.decisive + 1
