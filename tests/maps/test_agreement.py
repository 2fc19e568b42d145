"""The check at load time: what it costs, and what it says of what it saw."""

import torch

from jacobian_lab.facts.fact import Fact
from jacobian_lab.maps import agreement
from jacobian_lab.maps.agreement import TOLERANCE, check_replay


def test_logits_are_made_only_where_answers_are_predicted(family_model, facts):
    checks = []
    head = family_model.hf.get_output_embeddings()
    handle = head.register_forward_hook(lambda _m, _i, output: checks.append(output.shape))
    long = [Fact(n, fact.subject, "word " * 100 + fact.prompt, fact.target_new) for n, fact in enumerate(facts[:3])]
    check_replay(family_model, long, (1, 3))
    handle.remove()
    answers = sum(len(family_model.fact_prompt(fact, answer=True).answer) for fact in long)
    (shape,) = checks
    assert shape[1] <= answers < 100


def test_the_differences_that_were_seen_are_told(family_model, facts, monkeypatch):
    check = check_replay(family_model, facts, (1, 3))
    assert 0 <= max(check.states, check.logits) < TOLERANCE[torch.float64] / 1e3
    original = agreement.replay
    monkeypatch.setattr(agreement, "replay", lambda *arguments: original(*arguments) * (1 + 3e-7))
    further = check_replay(family_model, facts, (1, 3))
    assert abs(further.states - 3e-7) < 1e-9
    assert further.logits == check.logits
