"""Shifts in words, and mean Jacobians, against the untouched model."""

from contextlib import ExitStack

import pytest
import torch
from helpers.reference import output_of

from jacobian_lab.errors import InputError
from jacobian_lab.maps.lens import Lens, fit_lens
from jacobian_lab.maps.words import read_out
from jacobian_lab.model.tokens import Prompt

TEXTS = [Prompt(tuple(range(3 + shift, 12 + shift)), 8) for shift in (0, 5)]


def states_behind(model, ids, layer, change):
    """Last block's output over all tokens, with a change of a block's output, by hooks on the model."""
    states = []

    def changed(_module, _inputs, result):
        hidden = output_of(result) + change
        return (hidden, *result[1:]) if isinstance(result, tuple) else hidden

    with ExitStack() as stack:
        stack.callback(model.blocks[layer].register_forward_hook(changed).remove)
        keep = model.blocks[model.n_layers - 1].register_forward_hook(lambda *of: states.append(output_of(of[2])))
        stack.callback(keep.remove)
        model.hf(torch.tensor([ids]))
    return states[0][0]


def test_mean_jacobians_against_reverse_mode_through_the_untouched_model(family_model):
    """Later places summed, earlier ones averaged, without the first two and the last; then averaged over texts."""
    layers, skipped = (1, 3), 2
    lens = fit_lens(family_model, [*TEXTS, Prompt((3, 4, 5), 2)], layers, skipped=skipped)
    assert lens.texts == len(TEXTS)
    for layer in layers:
        every = []
        for text in TEXTS:

            def last(change, text=text, layer=layer):
                return states_behind(family_model, text.ids, layer, change)[skipped:-1].sum(0)

            with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
                zero = torch.zeros(len(text.ids), family_model.d_model, dtype=family_model.dtype)
                J = torch.autograd.functional.jacobian(last, zero)
            every.append(J[:, skipped:-1].mean(1))
        expected = torch.stack(every).mean(0)
        assert (lens.jacobians[layer] - expected).norm() < 1e-10 * expected.norm()


@pytest.mark.parametrize("answered", [True, False])
def test_words_against_differences_of_the_models_own_logits(answered, tiny, facts):
    prompt = tiny.fact_prompt(facts[0], answer=answered)
    place = prompt.prompt_length - 1 if answered else prompt.decisive
    shift = torch.randn(tiny.d_model, generator=torch.Generator().manual_seed(0), dtype=tiny.dtype)

    def log_p(share):
        change = torch.zeros(len(prompt.ids), tiny.d_model, dtype=tiny.dtype)
        change[prompt.decisive] = share * shift
        with torch.no_grad():
            return tiny.head(tiny.norm(states_behind(tiny, prompt.ids, 2, change)))[place].log_softmax(-1)

    step = 1e-5
    linear, replayed = (log_p(step) - log_p(-step)) / (2 * step), log_p(1) - log_p(0)
    readout = read_out(tiny, prompt, 2, shift, count=4)
    for words, order in ((readout.rising, linear.argsort(descending=True)), (readout.falling, linear.argsort())):
        tokens = order[:4].tolist()
        assert [word.token for word in words] == [tiny.tokenizer.decode([token]) for token in tokens]
        assert [word.linear for word in words] == pytest.approx(linear[tokens].tolist(), rel=1e-6, abs=1e-8)
        assert [word.replayed for word in words] == pytest.approx(replayed[tokens].tolist(), rel=1e-9, abs=1e-9)
    assert readout.agreement == pytest.approx(float(torch.cosine_similarity(linear, replayed, dim=0)), rel=1e-6)


def test_a_lens_of_a_models_last_but_one_layer_reads_as_the_head_does(tiny, facts):
    """With the identity for J̄ the linear change is that of the head itself, at the state behind the last block."""
    prompt = tiny.fact_prompt(facts[0], answer=True)
    shift = torch.randn(tiny.d_model, generator=torch.Generator().manual_seed(0), dtype=tiny.dtype)
    lens = Lens({2: torch.eye(tiny.d_model, dtype=tiny.dtype)}, 1)
    state = states_behind(tiny, prompt.ids, 2, 0)[prompt.prompt_length - 1].detach()
    step = 1e-5
    up, down = (tiny.head(tiny.norm(state + side * step * shift)).log_softmax(-1) for side in (1, -1))
    linear = (up - down).detach() / (2 * step)
    readout = read_out(tiny, prompt, 2, shift, count=3, lens=lens)
    assert [word.linear for word in readout.rising] == pytest.approx(linear.topk(3).values.tolist(), rel=1e-6)


def test_a_lens_is_read_as_it_was_written_and_nothing_else_is(tiny, tmp_path):
    lens = fit_lens(tiny, TEXTS, (0, 2), skipped=1)
    lens.save(tmp_path / "lens.safetensors")
    again = Lens.load(tmp_path / "lens.safetensors")
    assert (again.texts, sorted(again.jacobians)) == (2, [0, 2])
    for layer, J in lens.jacobians.items():
        assert torch.equal(again.jacobians[layer], J.half().float())
    (tmp_path / "other.safetensors").write_bytes(b"x" * 64)
    for name in ("other.safetensors", "none.safetensors"):
        with pytest.raises(InputError, match="expected a lens in"):
            Lens.load(tmp_path / name)


def test_bad_input_is_refused(tiny, facts):
    with pytest.raises(InputError, match="expected a text of more than 17 tokens, got none"):
        fit_lens(tiny, TEXTS, (0,))
    for layers in ((), (2, 1), (tiny.n_layers - 1,)):
        with pytest.raises(InputError, match="expected ascending layers from 0 to"):
            fit_lens(tiny, TEXTS, layers, skipped=1)
    prompt, shift = tiny.fact_prompt(facts[0]), torch.zeros(tiny.d_model)
    with pytest.raises(InputError, match="expected a layer of 2, got 1"):
        read_out(tiny, prompt, 1, shift, lens=Lens({2: torch.eye(tiny.d_model)}, 1))
