"""The check at load time: does replay give the model's own states and logits on a sample?"""

from collections.abc import Sequence

import torch
from torch import Tensor

from jacobian_lab.activations import decisive_states
from jacobian_lab.errors import InputError
from jacobian_lab.facts import Fact
from jacobian_lab.models import LanguageModel
from jacobian_lab.replay import freeze, replay, replay_logits
from jacobian_lab.tokens import Prompt, fact_prompt, pad

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""Largest relative difference, in the Euclidean norm of a state or a row of logits."""

SAMPLE = 3


@torch.no_grad()
def check_replay(model: LanguageModel, facts: Sequence[Fact], layers: Sequence[int]) -> None:
    """Prove on a few facts that what is built on replay stands.

    Args:
        model: The model.
        facts: Facts to sample from.
        layers: The decisive layers; replay is checked from each of them.

    Raises:
        InputError: Naming what fails: the subject's index, the number of BOS, the hidden states or
            the logits, from which layer and for which fact.
    """
    sample = list(facts[:SAMPLE])
    rows = [fact_prompt(model.tokenizer, fact, answer=True) for fact in sample]
    for fact, row in zip(sample, rows, strict=True):
        _check_tokens(model, fact, row)
    frozen = freeze(model, rows, layers)
    above = tuple(range(layers[0], model.n_layers))
    own_states = decisive_states(model, rows, above)
    logits = model.hf(input_ids=pad(rows).to(model.device)).logits
    for layer in layers:
        read = above[above.index(layer) :]
        states = replay(frozen, layer, own_states[above.index(layer)], read)
        _compare("hidden states", layer, states, own_states[above.index(layer) :], sample, model)
        replayed = replay_logits(frozen, layer, own_states[above.index(layer)])
        for index, row in enumerate(rows):
            own = logits[index, len(row.ids) - len(row.answer) : len(row.ids)].to(replayed.dtype)
            _compare(
                "logits",
                layer,
                replayed[index, : len(row.answer)][:, None],
                own[:, None],
                [sample[index]],
                model,
            )


def _check_tokens(model: LanguageModel, fact: Fact, row: Prompt) -> None:
    """The subject is complete with the decisive token, not before it, and there is one BOS at most."""
    tokenizer = model.tokenizer
    subject = "".join(fact.subject.split())
    with_it, without = (
        "".join(tokenizer.decode(row.ids[:end], skip_special_tokens=True).split())
        for end in (row.decisive + 1, row.decisive)
    )
    start = with_it.rfind(subject)
    if start < 0 or len(without) >= start + len(subject):
        raise InputError(
            f"expected the decisive token to end the subject {fact.subject!r}, got {with_it!r} up to it: "
            f"the tokenizer of {model.name!r} is not supported"
        )
    bos = tokenizer.bos_token_id
    if bos is not None and row.ids.count(bos) > 1:
        raise InputError(f"expected one BOS at most, got {row.ids.count(bos)} in fact {fact.id!r}: mend the tokenizer")


def _compare(what: str, layer: int, got: Tensor, own: Tensor, facts: Sequence[Fact], model: LanguageModel) -> None:
    """Compare along the last dimension; the one before it counts the facts."""
    error = torch.linalg.vector_norm((got - own).double(), dim=-1) / torch.linalg.vector_norm(own.double(), dim=-1)
    worst = error.flatten(end_dim=-2).amax(0) if error.dim() > 1 else error
    if not (worst <= TOLERANCE[model.dtype]).all():
        fact = facts[int(worst.argmax())]
        raise InputError(
            f"expected replay from layer {layer} to give the {what} of {model.name!r} itself, got a relative "
            f"difference of {float(worst.max()):.1e} on fact {fact.id!r}: this model's blocks are called "
            "differently; please report it"
        )
