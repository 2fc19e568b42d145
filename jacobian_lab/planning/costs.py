"""The work of every stage in terms of a clock's pieces, and what it holds in memory."""

from collections.abc import Sequence
from dataclasses import dataclass

from jacobian_lab.editing.anchors import anchor_batches
from jacobian_lab.maps.hooks import TOKENS_PER_BATCH, batches
from jacobian_lab.model.language_model import LanguageModel, Layers
from jacobian_lab.model.rows import FactRows
from jacobian_lab.model.tokens import Prompt
from jacobian_lab.planning.clock import Clock
from jacobian_lab.planning.sketch import Sizes

DOUBLE = 8
PROCESS = 700 * 2**20
"""Bytes of the process itself: the interpreter and its libraries."""

PASSED = 0.85
"""The share of an anchor's passes that a fact takes on the average before its loss is reached."""

LANCZOS = 260
"""Products with J, and as many with its transpose, that λ_min, λ_max and σ_max of one Jacobian take."""


@dataclass(frozen=True)
class Stage:
    """A stage of a job.

    Attributes:
        name: Its name.
        seconds: How long it is going to take.
        host: Bytes of the host that it holds at the most.
        device: Bytes of the card; 0 where the host has the model.
    """

    name: str
    seconds: float
    host: int = 0
    device: int = 0


@dataclass(frozen=True, eq=False)
class Costs:
    """What the stages of a job cost for one model on one machine.

    Attributes:
        model: The model; its weights are not looked at.
        clock: The machine's.
    """

    model: LanguageModel
    clock: Clock

    @property
    def sizes(self) -> Sizes:
        """The model's."""
        return Sizes.of(self.model)

    def forward(self, rows: Sequence[Prompt], blocks: int, at_once: int = TOKENS_PER_BATCH) -> float:
        """Seconds of rows through some blocks, padded as they are when they are run.

        Args:
            rows: The rows.
            blocks: How many.
            at_once: Tokens of one pass at the most.

        Returns:
            Seconds.
        """
        groups = (([len(rows[i].ids) for i in group]) for group in batches(rows, at_once))
        return blocks * sum((self.clock.block(len(lengths) * max(lengths)) for lengths in groups), 0.0)

    def moments(self, tokens: int, layers: Layers) -> Stage:
        """The second moments of a corpus.

        Args:
            tokens: Its tokens.
            layers: The decisive layers.

        Returns:
            The stage.
        """
        sizes, n = self.sizes, len(layers)
        products = 2 * sizes.d_mlp**2 * tokens * n / self.clock.rates["float32"]
        seconds = (max(layers) + 1) * self.clock.passes(tokens, TOKENS_PER_BATCH) + products
        held = DOUBLE * sizes.d_mlp**2
        seconds += 3 * n * held / self.clock.moved  # copied, hashed, written
        return self.stage("second moments", seconds, [2 * held, n * held], host=n * held)

    def descent(self, name: str, rows: FactRows, first: int, steps: int, size: int) -> Stage:
        """Anchors at a layer, or shifts from a layer on.

        Args:
            name: What the stage is called.
            rows: The facts.
            first: The first layer that is shifted.
            steps: Passes at the most.
            size: Facts side by side at the most.

        Returns:
            The stage.
        """
        sizes = self.sizes
        above, seconds, most = sizes.blocks - 1 - first, 0.0, 0
        for batch in anchor_batches(rows, size):
            some = rows.select(batch)
            answered = [row for each in some.answered_contexts for row in each]
            tail, answer = max(row.tail for row in answered), max(len(row.answer) for row in answered)
            tokens = len(answered) * tail
            one = above * (self.clock.block(tokens, back=True) + self.clock.block(len(batch), back=True))
            one += (len(answered) * answer + len(batch)) * self.clock.logits[1]
            frozen = sizes.blocks * (self.clock.block(sum(len(row.ids) for row in answered)))
            seconds += PASSED * steps * one + frozen
            kept = above * tokens * self._kept() + len(answered) * answer * sizes.words * 28
            most = max(most, kept)
        return self.stage(name, seconds, [most])

    def survey(self, bare: Sequence[Prompt], layers: Layers, formed: int, sampled: int) -> Stage:
        """Jacobians of all facts.

        Args:
            bare: The facts' prompts.
            layers: The decisive layers, L the last.
            formed: Of how many facts the matrices are formed.
            sampled: Of how many their own eigenvectors are sought.

        Returns:
            The stage.
        """
        sizes, clock, last = self.sizes, self.clock, layers[-1]
        span, below, width = last - layers[0], len(layers) - 1, self.sizes.width
        mlps = sizes.d_mlp * width
        merged = 2 * width * mlps + sizes.inner * mlps
        rest = sizes.block - (sizes.inner + 1) * mlps + width**2
        sweep = span * (merged + 2 * width * rest) / clock.rates["model"]
        spectra = below * width**3 * clock.cubes["spectra"]
        free = sum(last - layer for layer in layers[:-1]) * LANCZOS * 2 * clock.block(1, back=True)
        tokens = self.forward(bare, last + 1, 1)
        own = sampled * below * width**3 * clock.cubes["eigenvectors"]
        seconds = tokens + formed * (sweep + spectra) + (len(bare) - formed) * free + own
        itemsize = self.model.dtype.itemsize
        return self.stage("Jacobians", seconds, [(below + 1) * width**2 * itemsize, 4 * width**2 * DOUBLE])

    def edit(self, rows: FactRows, layers: Sequence[int], last: int, observed: bool) -> float:
        """Seconds of one edit of all facts.

        Args:
            rows: The facts.
            layers: The layers that are edited.
            last: The last decisive layer.
            observed: Whether what it does is split.

        Returns:
            Seconds.
        """
        sizes, clock, seconds = self.sizes, self.clock, 0.0
        contexts = [row for each in rows.contexts for row in each]
        n, m = sizes.d_mlp, len(rows)
        solve = n**3 * clock.cubes["cholesky"] + 2 * n**2 * (m + sizes.width) / clock.rates["float64"]
        for layer in layers:
            seconds += self.forward(contexts, layer + 1) + self.forward(rows.bare, last + 1) + solve
            if observed:
                ease = n**3 * clock.cubes["cholesky"] + 2 * n**2 * m / clock.rates["float64"]
                replays = 5 * (last - layer) * clock.passes(m, TOKENS_PER_BATCH // 8)
                seconds += self.forward(rows.bare, last + 1) + replays + ease
        return seconds

    def evaluation(self, rows: Sequence[Prompt], greedy: Sequence[Prompt] = ()) -> float:
        """Seconds of asking a model some questions.

        Args:
            rows: The rows that are run.
            greedy: Rows whose answers are decoded greedily too.

        Returns:
            Seconds.
        """
        asked = sum(max(1, len(row.answer)) for row in rows) * self.clock.logits[0]
        decoded = sum(len(row.ids) + len(row.answer) for row in greedy) / max(1, len(greedy))
        steps = max((len(row.answer) for row in greedy), default=0)
        written = self.sizes.blocks * steps * self.clock.block(min(len(greedy), 64)) * max(1, len(greedy) / 64)
        return self.forward(rows, self.sizes.blocks) + asked + (written if decoded else 0.0)

    def _kept(self) -> int:
        """Bytes that a block keeps of a token for its gradient."""
        return (12 * self.sizes.width + 6 * self.sizes.d_mlp) * self.model.dtype.itemsize

    def stage(self, name: str, seconds: float, held: Sequence[int] = (), host: int = 0) -> Stage:
        """A stage with what it holds.

        Args:
            name: Its name.
            seconds: How long it takes.
            held: Bytes that it holds beside the weights, where the model is.
            host: Bytes that it holds on the host wherever the model is.

        Returns:
            The stage.
        """
        weights = self.sizes.weights * self.model.dtype.itemsize
        total = weights + sum(held)
        if self.clock.card:
            return Stage(name, seconds, PROCESS + host, total)
        return Stage(name, seconds, PROCESS + total)
