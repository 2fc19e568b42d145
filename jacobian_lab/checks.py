"""The check at load time: does replay give the model's own states and logits on a sample?"""

import unicodedata
from collections.abc import Sequence

import torch
from torch import Tensor

from jacobian_lab.activations import decisive_states
from jacobian_lab.errors import InputError
from jacobian_lab.facts import Fact
from jacobian_lab.language_model import LanguageModel
from jacobian_lab.replay import freeze, replay, replay_logits
from jacobian_lab.templates import Templates
from jacobian_lab.tokens import Prompt, fact_prompt, pad

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""Largest relative difference, in the Euclidean norm of a state or a row of logits."""

SAMPLE = 3


def check_lengths(model: LanguageModel, facts: Sequence[Fact], templates: Templates) -> None:
    """Refuse facts whose rows are longer than the model takes.

    Args:
        model: The model.
        facts: The facts.
        templates: The context templates.

    Raises:
        InputError: Naming the first such fact.
    """
    for fact in facts:
        longest = max(
            len(fact_prompt(model.tokenizer, fact, template, answer=True).ids)
            for group in templates
            for template in group
        )
        if longest > model.max_tokens:
            raise InputError(
                f"expected prompts of at most {model.max_tokens} tokens, got one of {longest} in fact {fact.id!r}: "
                "shorten it"
            )


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
    subject = _plain(fact.subject)
    with_it, without = (
        _plain(tokenizer.decode(row.ids[:end], skip_special_tokens=True)) for end in (row.decisive + 1, row.decisive)
    )
    if with_it.count(subject) <= without.count(subject):
        raise InputError(
            f"expected the decisive token to end the subject {fact.subject!r}, got {with_it!r} up to it: "
            f"the tokenizer of {model.name!r} is not supported"
        )
    bos = tokenizer.bos_token_id
    if bos is not None and row.ids.count(bos) > 1:
        raise InputError(f"expected one BOS at most, got {row.ids.count(bos)} in fact {fact.id!r}: mend the tokenizer")


def _plain(text: str) -> str:
    """Without spaces, and composed: what tokenizers may change."""
    return unicodedata.normalize("NFC", "".join(text.split()))


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
