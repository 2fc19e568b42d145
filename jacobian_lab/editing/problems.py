"""Problems that update rules solve, and their updates."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from jacobian_lab.editing.solving import Factored, NullSpace, advice, factored, grown
from jacobian_lab.errors import InputError


@dataclass(frozen=True, eq=False)
class CarriedState:
    """State that a rule carries from a layer's batch to the next one; each rule reads what it has put there.

    Attributes:
        matrix: What it solved with: λC + S, or what the rule has in its place, with S = Σ K Kᵀ of all batches so far.
        limit: PRUNE's: the largest singular value that the weight had before all edits.
        space: Null space that AlphaEdit and its kin project on, its basis where the model is.
        keys: Keys of all batches so far, of rules whose matrix is formed anew.
        renewed: BetaEdit's: edits that were made when the null space was last taken.
        change: LyapLock's: ΔW of all batches so far.
        written: LyapLock's: what this change made of the keys, each after its own batch.
        queue: LyapLock's: the factor by which λ has grown.
        bound: LyapLock's: D, the disturbance above which the queue grows.
    """

    matrix: Factored | None = None
    limit: Float[Tensor, ""] | None = None
    space: NullSpace | None = None
    keys: Float[Tensor, "d_mlp edit"] | None = None
    renewed: int = 0
    change: Float[Tensor, "d_model d_mlp"] | None = None
    written: Float[Tensor, "d_model edit"] | None = None
    queue: float = 1.0
    bound: float = 0.0

    def without_keys(self) -> "CarriedState":
        """Drop what stands for the keys of the batches so far, for a next batch that does not protect them.

        Returns:
            The state with the null space, PRUNE's limit, and LyapLock's change and queue.
        """
        return replace(self, matrix=None, keys=None, written=None, renewed=0)


CarriedStates = dict[int, CarriedState]
"""By layer."""


@dataclass(frozen=True, eq=False)
class Update:
    """A change of one weight.

    Attributes:
        delta: ΔW, in float64.
        condition: Condition number of the matrix that was factored, in the 1-norm, as LAPACK estimates it
            from the Cholesky factor.
        notes: What else a rule has to say, by the names under which runs store it.
        carried: For the layer's next batch, where there is to be one.
    """

    delta: Float[Tensor, "d_model d_mlp"]
    condition: float
    notes: Mapping[str, float] = field(default_factory=dict)
    carried: CarriedState | None = None


@dataclass(frozen=True, eq=False)
class Problem:
    """Keys, residuals and matrices of one layer; not every rule reads them all.

    Attributes:
        layer: The layer, for messages.
        keys: K, one column a fact, in float64.
        residuals: R, one column a fact, in float64.
        second_moment: C.
        weight: W.
        ridge: λ.
        carried: What the rule handed on after the batch before this one.
        has_next: Whether there are to be further batches.
        factored_moment: Gives C factored, once a layer for all batches, rules and values of λ; none where a matrix is
            to be factored as a whole, as it is for a single batch.
    """

    layer: int
    keys: Float[Tensor, "d_mlp fact"]
    residuals: Float[Tensor, "d_model fact"]
    second_moment: Float[Tensor, "d_mlp d_mlp"]
    weight: Float[Tensor, "d_model d_mlp"]
    ridge: float
    carried: CarriedState | None = None
    has_next: bool = False
    factored_moment: Callable[[], Factored] | None = None

    @property
    def before(self) -> CarriedState:
        """State that the batch before has handed on; none of it at the first."""
        return self.carried or CarriedState()

    def keys_so_far(self) -> Float[Tensor, "d_mlp edit"]:
        """Keys of the batches before, then those of this one."""
        return self.keys if self.before.keys is None else torch.cat([self.before.keys, self.keys], dim=1)

    def with_keys(self, keys: Float[Tensor, "d_mlp k"], weight: float = 1.0, norm_ridge: float = 0.0) -> Factored:
        """wλC + λₙI + K Kᵀ, by Woodbury's formula on the factor of C where that is there, cheaper and as exact.

        Args:
            keys: K.
            weight: w.
            norm_ridge: λₙ.

        Returns:
            The matrix.

        Raises:
            InputError: If it is singular to working precision.
        """
        norm = " + λₙI" if norm_ridge else ""
        name = f"λC{norm}{' + K Kᵀ' if keys.shape[1] else ''} at layer {self.layer}"
        hint, scale = advice(self.second_moment, self.ridge), weight * self.ridge
        if self.factored_moment is not None and scale > 0 and not norm_ridge:
            with suppress(InputError):  # C alone may be singular where λC + K Kᵀ is not
                if matrix := grown(self.factored_moment(), scale, keys, name, hint):
                    return matrix
        whole = scale * self.second_moment.to(keys.device) + keys @ keys.T
        whole.diagonal().add_(norm_ridge)
        return factored(whole, name, hint)


Rule = Callable[[Problem], Update]
"""An update rule: a pure function."""
