"""−log P of answers, token by token."""

import torch
from helpers.small import CONTEXTS

from jacobian_lab.maps.likelihood import answer_nll
from jacobian_lab.maps.replay import freeze, replay_logits, replay_outputs
from jacobian_lab.model.rows import fact_rows


def test_answers_of_different_lengths(tiny, facts):
    rows = [row for contexts in fact_rows(tiny, facts, CONTEXTS).answered_contexts for row in contexts]
    assert len({len(row.answer) for row in rows}) > 1
    frozen = freeze(tiny, rows, [1])
    states = frozen.states(1)
    log_p = replay_logits(frozen, 1, states).log_softmax(-1)
    expected = [
        -torch.stack([log_p[place, n, token] for n, token in enumerate(row.answer)]).mean()
        for place, row in enumerate(rows)
    ]
    nll = answer_nll(frozen, replay_outputs(frozen, 1, states))
    torch.testing.assert_close(nll, torch.stack(expected), rtol=1e-12, atol=1e-12)
