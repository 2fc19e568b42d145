"""Bytes that computations hold for each token, by a model's widths; batches and plans use the same numbers."""

DOUBLE = 8
"""Bytes of a number in float64."""


def descent_bytes(blocks: int, d_model: int, d_mlp: int, itemsize: int) -> int:
    """Activations that a descent keeps of one token for its backward pass through some blocks."""
    return blocks * (12 * d_model + 4 * d_mlp) * itemsize


def logit_bytes(itemsize: int) -> int:
    """One logit while its gradient is taken: itself and its gradient, and three of log-softmax in float64."""
    return 2 * itemsize + 3 * DOUBLE


def sweep_bytes(blocks: int, d_model: int, d_mlp: int, itemsize: int, prefix: int = 0) -> int:
    """One cotangent in a sweep through some blocks: gradients within a block, and the results."""
    return ((12 + 2 * blocks) * d_model + 6 * d_mlp + 8 * prefix) * itemsize


def carried_bytes(d_model: int, d_mlp: int, itemsize: int) -> int:
    """One token that rests in a block: the block's input, its attention's output and the key."""
    return (2 * d_model + d_mlp) * itemsize
