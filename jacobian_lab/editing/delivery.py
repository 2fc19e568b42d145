"""Shares of shifts that an edit will deliver, at which a descent asks for the answer."""

import torch
from jaxtyping import Float
from torch import Tensor

from jacobian_lab.caching import content_key
from jacobian_lab.editing.settings import MARGIN, AnchorSettings
from jacobian_lab.errors import InputError
from jacobian_lab.facts.fact import Fact
from jacobian_lab.model.rows import FactRows


def delivered_shares(
    rows: FactRows,
    layers: int,
    settings: AnchorSettings,
    seed: int,
    transfers: Float[Tensor, "fact layer"] | None = None,
) -> Float[Tensor, "fact pass layer"] | None:
    """Draw the shares at which each pass of each fact's descent takes its loss (methods.md §4).

    Args:
        rows: The facts.
        layers: Number of layers that are shifted.
        settings: The descent's settings.
        seed: Seed of random shares; those of a fact depend on no other fact.
        transfers: Mean share of a shift that arrives at held-out contexts, where the settings need it.

    Returns:
        The shares, in float64; none where whole shifts are asked for.

    Raises:
        InputError: If measured shares are needed and there are none.
    """
    shape = (len(rows), settings.steps, layers)
    if settings.delivered == "none":
        return None
    if settings.delivered == "margin":
        share = MARGIN if settings.delivered_share is None else settings.delivered_share
        return torch.full(shape, share, dtype=torch.float64)
    if settings.needs_transfers and transfers is None:
        raise InputError("expected measured transfers for random shares, got none: set ⟨anchor.delivered_share⟩")
    least = torch.full(shape, settings.delivered_share or 0.0, dtype=torch.float64)
    if settings.needs_transfers and transfers is not None:
        least = transfers.double().cpu().clamp(min=0)[:, None].expand(shape)
    draws = [torch.rand(shape[1:], generator=fact_generator(f, seed, 0), dtype=torch.float64) for f in rows.facts]
    return least + (1 - least) * torch.stack(draws)


def fact_generator(fact: Fact, *seeds: int) -> torch.Generator:
    """Make a generator that depends on a fact and on seeds alone.

    Args:
        fact: The fact.
        *seeds: Further numbers.

    Returns:
        The generator, on the host.
    """
    return torch.Generator().manual_seed(int(content_key([*seeds, fact.text])[:15], 16))
