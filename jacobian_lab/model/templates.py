"""Context templates: made once from the seed, or given in a file."""

import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import GenerationConfig

from jacobian_lab.errors import InputError
from jacobian_lab.model.language_model import LanguageModel
from jacobian_lab.model.tokens import BARE, going_on

Templates = tuple[tuple[str, ...], ...]
"""Groups of templates; keys are averaged inside each group, then over the groups."""

OPENINGS = ("The", "Therefore", "Because", "I", "You")
"""What the sampled contexts begin with (methods.md §1)."""

LENGTH = 10
"""Tokens of a sampled context, its opening counted."""

TYPICAL_TEMPLATES: Templates = (
    (BARE,),
    tuple(f"{opening} {'word ' * (LENGTH - 2)}. {BARE}" for opening in OPENINGS),
)
"""As long as sampled ones, to count with where there is no model to sample from."""

TOP_K = 5


def sample_templates(model: LanguageModel, seed: int = 0) -> Templates:
    """The bare template and one context for each opening, sampled from the model.

    Args:
        model: The model that continues the openings.
        seed: Seed of the sampling; the global random state is left as it was.

    Returns:
        Two groups: ``{}`` alone, and five of the form ``context. {}``.

    Examples:
        >>> import jacobian_lab as jl
        >>> bare, contexts = jl.sample_templates(jl.load_model(), seed=0)
        >>> bare, len(contexts)
        (('{}',), 5)
    """
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        contexts = [_continue(model, opening) for opening in OPENINGS]
    return ((BARE,), tuple(context + ". {}" for context in contexts))


def read_templates(path: Path) -> Templates:
    """Read groups of templates from a JSON file."""
    try:
        groups = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"expected a JSON file of templates, got {path} ({error}): check the file") from error
    return check_templates(groups, str(path))


def template_weights(templates: Templates) -> list[tuple[str, float]]:
    """Each template with its share in the average of the keys (methods.md §3)."""
    return [(text, 1 / (len(templates) * len(group))) for group in templates for text in group]


def check_templates(groups: Any, source: str) -> tuple[tuple[str, ...], ...]:
    """Check groups of context templates as they come from a file."""
    expected = 'expected groups of templates, [["{}"], ["… {}", …]], each text with one {}'
    if not isinstance(groups, list) or not groups:
        raise InputError(f"{expected}, got {groups!r:.60} in {source}: see the README")
    for group in groups:
        if not isinstance(group, list) or not group:
            raise InputError(f"{expected}, got the group {group!r:.60} in {source}: see the README")
        for text in group:
            if not isinstance(text, str) or text.count("{}") != 1:
                raise InputError(f"{expected}, got {text!r:.60} in {source}: see the README")
    return tuple(tuple(group) for group in groups)


def _continue(model: LanguageModel, opening: str) -> str:
    """Sample a context, without braces; special tokens are not sampled, so that its length is `LENGTH`."""
    tokenizer = model.tokenizer
    encoded = tokenizer(opening, return_special_tokens_mask=True)
    ids = torch.tensor([going_on(encoded["input_ids"], encoded["special_tokens_mask"])], device=model.device)
    opening_length = len(tokenizer(opening, add_special_tokens=False)["input_ids"])
    special = [token for token, added in tokenizer.added_tokens_decoder.items() if added.special]
    output = write(
        model,
        ids,
        do_sample=True,
        top_k=TOP_K,
        top_p=1.0,
        temperature=1.0,
        max_new_tokens=max(LENGTH - opening_length, 1),
        suppress_tokens=special or None,
    )
    text = tokenizer.decode(output[0], skip_special_tokens=True)
    return text.replace("{", " ").replace("}", " ")


def write(model: LanguageModel, ids: Int[Tensor, "row token"], **settings: Any) -> Int[Tensor, "row written"]:
    """Continue rows without the penalties, word lists and temperatures that a model may bring along."""
    own, model.hf.generation_config = model.hf.generation_config, GenerationConfig()
    plain = GenerationConfig(pad_token_id=0, **settings)
    try:
        written: Tensor = model.hf.generate(ids, attention_mask=torch.ones_like(ids), generation_config=plain)
    finally:
        model.hf.generation_config = own
    return written
