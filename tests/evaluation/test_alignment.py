"""How far an edit goes where anchors lead, against the untouched model with hooks."""

import pytest
import torch
from helpers.small import CONTEXTS

from jacobian_lab.editing.layers import restored
from jacobian_lab.evaluation.alignment import TargetAlignment
from jacobian_lab.maps.hooks import decisive_states
from jacobian_lab.model.rows import fact_rows
from jacobian_lab.training.wise_memory import Memory, Place, Side


def last_states(model, rows, replaced=None):
    """States of the decisive tokens behind the last block, the whole prompt run, one row at a time."""
    found, last = [], model.n_layers - 1
    for number, row in enumerate(rows.answered):
        handles, seen = [], []

        def put(_module, _inputs, output, number=number, place=row.decisive):
            hidden = (output[0] if isinstance(output, tuple) else output).clone()
            hidden[0, place] = replaced[1][number]
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        if replaced is not None:
            handles.append(model.blocks[replaced[0]].register_forward_hook(put))
        handles.append(
            model.blocks[last].register_forward_hook(
                lambda _m, _i, output, seen=seen: seen.append(output[0] if isinstance(output, tuple) else output)
            )
        )
        with torch.no_grad():
            model.hf(input_ids=torch.tensor([row.ids]))
        for handle in handles:
            handle.remove()
        found.append(seen[0].reshape(-1, model.d_model)[row.decisive])
    return torch.stack(found)


def test_it_is_what_hooks_see(family_model, facts):
    model, rows = family_model, fact_rows(family_model, facts, CONTEXTS)
    generator = torch.Generator().manual_seed(0)
    states = decisive_states(model, rows.bare, [3])[:, 0]
    anchors = states + torch.randn(states.shape, generator=generator, dtype=states.dtype)
    aim = TargetAlignment.of(rows, 3, anchors)
    before, led = last_states(model, rows), last_states(model, rows, (3, anchors))
    torch.testing.assert_close(aim.residual, led - before, rtol=0, atol=1e-10)
    with restored(model, (2,)):
        model.weight(2).data += 0.1 * torch.randn(model.weight(2).shape, generator=generator, dtype=states.dtype)
        found, shift = aim.reached(), last_states(model, rows) - before
    residual = led - before
    cosine = torch.nn.functional.cosine_similarity(shift, residual)
    torch.testing.assert_close(torch.tensor(found["aim_cosine"]).double(), cosine, rtol=0, atol=1e-6)
    share = (shift * residual).sum(1) / residual.square().sum(1)
    torch.testing.assert_close(torch.tensor(found["aim_share"]).double(), share, rtol=0, atol=1e-6)


def test_who_goes_the_whole_way_has_one_of_both_and_who_stays_has_none(tiny, facts):
    rows = fact_rows(tiny, facts, CONTEXTS)
    last = tiny.n_layers - 1
    states = decisive_states(tiny, rows.bare, [last])[:, 0]
    aim = TargetAlignment.of(rows, last, states + 1.0)
    stays = aim.reached()
    assert all(value != value for value in stays["aim_cosine"])
    assert stays["aim_share"] == pytest.approx([0.0] * len(facts), abs=1e-12)
    handle = tiny.blocks[last].register_forward_hook(
        lambda _m, _i, output: (output[0] + 1.0, *output[1:]) if isinstance(output, tuple) else output + 1.0
    )
    try:
        goes = aim.reached()
    finally:
        handle.remove()
    assert goes["aim_cosine"] == pytest.approx([1.0] * len(facts))
    assert goes["aim_share"] == pytest.approx([1.0] * len(facts))


def test_a_router_judges_the_whole_prompt(tiny, facts):
    """A memory that serves from no distance on carries the decisive token, though what follows decides."""
    rows = fact_rows(tiny, facts, CONTEXTS)
    states = decisive_states(tiny, rows.bare, [3])[:, 0]
    aim = TargetAlignment.of(rows, 3, states + 1.0)
    place = Place(2)
    weight = tiny.weight(2) + 0.5
    whole = Memory(place, (Side(weight, 0.0),))
    prompts = [type(row)(row.ids[: row.prompt_length], row.decisive) for row in rows.answered]
    distances = whole.judge(tiny, prompts)[:, 0]
    threshold = float(distances.sort().values[1:3].mean())
    with Memory(place, (Side(weight, threshold),)).serving(tiny):
        share = torch.tensor(aim.reached()["aim_share"])
    assert torch.equal(share != 0, distances >= threshold)
