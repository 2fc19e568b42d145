"""Variants inside the families: switches of one configuration that decide how blocks are called."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from helpers.exact import load_exact
from helpers.reference import Plain
from helpers.small import CONTEXTS, ROTARY, SMALL, make_folder
from transformers import GPTNeoXConfig, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from jacobian_lab.catalogue import SCHEMES
from jacobian_lab.editing.layers import Setting, restored
from jacobian_lab.editing.measures import measure, observed_edits
from jacobian_lab.editing.schemes import make_targets
from jacobian_lab.errors import InputError
from jacobian_lab.facts.fact import Fact
from jacobian_lab.maps.agreement import check_replay
from jacobian_lab.maps.jacobians import dense_jacobians
from jacobian_lab.maps.replay import freeze, replay, replay_logits
from jacobian_lab.model.rows import fact_rows

WINDOW = {"sliding_window": 4, "max_window_layers": 0}
VARIANTS = {
    "gpt_neox, one after the other": GPTNeoXConfig(**SMALL, max_position_embeddings=256, use_parallel_residual=False),
    "qwen2, window off": Qwen2Config(**ROTARY, **WINDOW, use_sliding_window=False),
    "qwen2, window on": Qwen2Config(**ROTARY, **WINDOW, use_sliding_window=True),
    "qwen3, window off": Qwen3Config(**ROTARY, **WINDOW, head_dim=8, use_sliding_window=False),
    "qwen3, window on": Qwen3Config(**ROTARY, **WINDOW, head_dim=8, use_sliding_window=True),
    "mistral, window null": MistralConfig(**ROTARY, sliding_window=None),
}
LAYERS = (1, 2, 4)


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request, tmp_path_factory):
    folder = make_folder(tmp_path_factory.mktemp("variants") / "m", VARIANTS[request.param])
    model = load_exact(folder)
    assert {model.window(layer) for layer in range(model.n_layers)} == {4 if request.param.endswith("on") else None}
    return model


def test_replay_is_the_model_on_rows_longer_than_the_window(variant, facts):
    long = [
        replace(fact, id=n, prompt="In the old book of towers and rivers " + fact.prompt)
        for n, fact in enumerate(facts)
    ]
    assert min(len(variant.fact_prompt(fact).ids) for fact in long) > 12
    for sample in (long[:3], long[2:]):
        record = check_replay(variant, sample, LAYERS)
        assert max(record.states, record.logits) < 1e-10


def test_jacobians_are_reverse_modes(variant, facts):
    plain, rows = (
        Plain(variant.hf, variant.tokenizer, variant.blocks),
        [variant.fact_prompt(f).cut() for f in facts[:2]],
    )
    sweep = dense_jacobians(freeze(variant, rows, [1], 4), [1], 4)
    for row, fact in enumerate(facts[:2]):
        expected = plain.jacobian(fact, 1, 4)
        assert (sweep[row, 0] - expected).norm() < 1e-10 * expected.norm()


def test_the_mlps_own_map_is_the_residual_streams_less_what_attention_adds(variant, facts):
    """Site mlp against central differences of what the last MLP puts out, seen by a hook of the model's own pass."""
    row = variant.fact_prompt(facts[1]).cut()
    frozen = freeze(variant, [row], [1], 4)
    J = dense_jacobians(frozen, [1], 4, site="mlp")[0, 0]
    direction = torch.randn(variant.d_model, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plain, record = Plain(variant.hf, variant.tokenizer, variant.blocks), []
    handle = variant.mlp(4).register_forward_hook(lambda _m, _i, output: record.append(output[0, -1]))
    with torch.no_grad():
        for sign in (1, -1):
            plain.states(list(row.ids), row.decisive, [], 1, frozen.states(1)[0] + sign * 1e-5 * direction)
    handle.remove()
    quotient = (record[0] - record[1]) / 2e-5
    assert (J @ direction - quotient).norm() < 1e-7 * quotient.norm()


@pytest.mark.parametrize("name", ["backward-dividing", "forward-replay"])
def test_an_edit_is_the_plain_ways(name, variant, facts):
    """MEMIT's loop, and forward replay's, one fact at a time through the untouched model."""
    rows = fact_rows(variant, facts[:3], CONTEXTS)
    generator = torch.Generator().manual_seed(0)
    keys = {layer: torch.randn(variant.d_mlp, 300, generator=generator, dtype=torch.float64) for layer in LAYERS}
    setting = Setting(rows, {layer: part @ part.T / 300 for layer, part in keys.items()}, 2.0)
    frozen = freeze(variant, rows.bare, [1, 4])
    states = {layer: 1.3 * frozen.states(layer) for layer in (1, 4)}
    targets, scheme = make_targets(rows, LAYERS, states, None), SCHEMES[name]
    with restored(variant, LAYERS):
        measured = measure(list(observed_edits(setting, scheme, targets)), targets, scheme)
    plain = Plain(variant.hf, variant.tokenizer, variant.blocks)
    with restored(variant, LAYERS):
        expected = plain.edit(
            facts[:3], name, LAYERS, variant, partial(targets.of, scheme.kind), setting.moments, 2.0, CONTEXTS
        )
    for quantity, values in expected.items():
        torch.testing.assert_close(measured[quantity], values, rtol=1e-7, atol=1e-9, msg=quantity)


@pytest.mark.parametrize(
    ("rotary", "longest"),
    [
        ({"rope_type": "dynamic", "factor": 2.0}, 32),
        (
            {
                "rope_type": "longrope",
                "short_factor": [1.0] * 4,
                "long_factor": [3.0] * 4,
                "original_max_position_embeddings": 24,
            },
            24,
        ),
    ],
)
def test_rows_that_would_change_others_frequencies_are_refused(rotary, longest, facts, tmp_path):
    """Rows are as long as frequencies rest that follow the longest row of a batch; then nobody moves them."""
    config = LlamaConfig(**ROTARY | {"max_position_embeddings": 32}, rope_parameters={"rope_theta": 10000.0, **rotary})
    model = load_exact(make_folder(tmp_path / "m", config))
    assert model.max_tokens == longest
    long = Fact("long", "Ada Lovelace", "In the " + "old " * 30 + "book {} wrote about", "poetry")
    with pytest.raises(InputError, match=f"at most {longest} tokens, got one of .* in fact 'long'"):
        fact_rows(model, [facts[0], long])
    with torch.no_grad():
        model.hf(torch.arange(3, 63)[None])  # what somebody else has run before leaves nothing behind
        rows = [model.fact_prompt(fact, answer=True) for fact in facts]
        rows = [row for row in rows if len(row.ids) + len(row.answer) <= longest]
        assert len(rows) > 2
        frozen = freeze(model, rows, [1])
        states = 1.1 * frozen.states(1)
        together, logits = replay(frozen, 1, states, (3, 5)), replay_logits(frozen, 1, states)
        for index, row in enumerate(rows):
            part = frozen.select(torch.tensor([index]))  # as when the others leave the batch
            alone = freeze(model, [row], [1])
            for single in (part, alone):
                own = replay(single, 1, states[[index]], (3, 5))
                torch.testing.assert_close(own[0], together[index], rtol=1e-12, atol=1e-12)
                place = len(row.answer) - 1
                own_logits = replay_logits(single, 1, states[[index]])
                torch.testing.assert_close(own_logits[0, place], logits[index, place], rtol=1e-11, atol=1e-11)
