"""A sample of facts that does not depend on their order, or on which others there are."""

from collections.abc import Sequence

from jacobian_lab.caching import content_key
from jacobian_lab.facts.fact import Fact


def sample(facts: Sequence[Fact], count: int, seed: int) -> list[int]:
    """Draw some facts: those whose digests with the seed are least."""
    digests = [content_key([seed, fact.text]) for fact in facts]
    return sorted(sorted(range(len(digests)), key=digests.__getitem__)[:count])
