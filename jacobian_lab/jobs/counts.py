"""Counts of what jobs do with a model: blocks run, products, solves, and the bytes that are held meanwhile."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from jacobian_lab.catalogue import Scheme
from jacobian_lab.editing.batches import anchor_batches
from jacobian_lab.editing.layers import KEYS_AT_ONCE
from jacobian_lab.evaluation.metrics import ROWS_OF_LOGITS, hosts
from jacobian_lab.maps.hooks import TOKENS_PER_BATCH, batches
from jacobian_lab.maps.likelihood import ROWS_IN_DOUBLE
from jacobian_lab.maps.restorations import TracedPrompt, TraceSettings, batches_of
from jacobian_lab.model.footprint import DOUBLE, logit_bytes, sweep_bytes
from jacobian_lab.model.language_model import LanguageModel, Layers
from jacobian_lab.model.rows import FactRows
from jacobian_lab.model.tokens import Prompt
from jacobian_lab.planning.shape import Shape
from jacobian_lab.planning.work import Stage, Work, total

SINGLE = 4

PASSED = 0.85
"""The share of its passes that a fact takes before its loss is reached: 0.5 to 1.0 in `descents.md` of the results."""

LANCZOS = 52
"""Products with J, and as many with its transpose, for λ_min, λ_max and σ_max of one Jacobian, as SmolLM2's take; the
matrix that a verdict forms where these show no counterexample is not foreseen."""

STEP_REPLAYS = 130
"""Replays of all facts that `step_size` makes at a layer: two grids of 31, and what SciPy's searches ask for."""

COMPARED = 6
"""Numbers in float64 that are held of a logit while the model before is held against the model after."""

MASK = 8
"""Bytes of a pair of tokens in an attention mask, while it is made: measured at 4,000 tokens."""

STATES = 12
"""States and shifts of every fact, in float64, that an observed edit keeps of a layer."""


@dataclass(frozen=True, eq=False)
class Counts:
    """Counts of one model's work.

    Attributes:
        model: The model; its weights are not looked at.
        cards: Cards that the model is divided over whoever works fact by fact; 0 on a processor.
        free: Bytes that are free where facts are worked on.
        descents: Dtype of the copy of the model that descents run in, if they do.
    """

    model: LanguageModel
    cards: int = 0
    free: int = 2**60
    descents: torch.dtype | None = None

    @cached_property
    def shape(self) -> Shape:
        """The model's sizes."""
        return Shape.of(self.model)

    @property
    def _copied(self) -> int:
        """Bytes of the copy that descents run in, on the card that holds most of it."""
        return 0 if self.descents is None else self.descents.itemsize * self.shape.on_one_card(self.cards)

    def loading(self) -> Stage:
        """Reading the weights."""
        weights = self.shape.weights * self.model.dtype.itemsize
        return Stage("loading", Work(moved=weights), host=weights if self.cards == 1 else 0)

    def forward(self, rows: Sequence[Prompt], blocks: int, at_once: int = TOKENS_PER_BATCH) -> Work:
        """Rows through some blocks, padded as they are when they are run."""
        groups = [[len(rows[i].ids) for i in group] for group in batches(rows, at_once)]
        return Work(passes=blocks * len(groups), tokens=blocks * sum(len(lengths) * max(lengths) for lengths in groups))

    def moments(self, lengths: Sequence[int], layers: Layers) -> Stage:
        """The second moments of a corpus, whose rows have these lengths."""
        n, count, tokens, longest = self.shape.d_mlp, len(layers), sum(lengths), max(lengths)
        blocks = max(layers) + 1
        work = Work(
            passes=blocks * max(1.0, tokens / TOKENS_PER_BATCH),
            tokens=blocks * tokens,
            single_products=2 * n**2 * tokens * count,
            moved=3 * count * DOUBLE * n**2,  # copied, hashed, written
        )
        keys = count * max(TOKENS_PER_BATCH, longest) * n * self.model.dtype.itemsize
        held = 2 * DOUBLE * n**2 + keys + self._passing(longest)
        return Stage("second moments", work, held + (count * DOUBLE * n**2 if self.cards else 0))

    def _passing(self, longest: int) -> int:
        """Bytes of a forward pass of rows of some length: a block's states and keys, and a mask where there is one."""
        shape, together = self.shape, max(TOKENS_PER_BATCH, longest)
        masked = longest <= TOKENS_PER_BATCH or shape.windows  # a row that stands alone is not padded
        states = (6 * shape.d_model + (1 + shape.inner) * shape.d_mlp) * self.model.dtype.itemsize
        return together * (states + MASK * longest * masked)

    def solves(self, matrices: int, keys: int) -> Work:
        """Factoring matrices of d_mlp and solving with them for some keys."""
        return Work(cholesky=matrices * self.shape.d_mlp**3) + self.substitutions(matrices * keys)

    def substitutions(self, keys: int) -> Work:
        """Solving with a factor of a matrix of d_mlp that is there."""
        return Work(double_products=2 * self.shape.d_mlp**2 * keys)

    def keys(self, rows: FactRows, layers: Layers) -> Work:
        """Keys of all facts at some layers, of the model as it is."""
        pieces = (rows.contexts[start : start + KEYS_AT_ONCE] for start in range(0, len(rows), KEYS_AT_ONCE))
        contexts = [[row for fact_rows in piece for row in fact_rows] for piece in pieces]
        return total(self.forward(piece_rows, layers[-1] + 1) for piece_rows in contexts)

    def transfers(self, rows: FactRows, layers: Layers) -> Stage:
        """Keys in held-out contexts, of which there are about as many as others, and what they get of a shift."""
        return Stage("transfer of keys", self.keys(rows, layers) * 2 + self.substitutions(len(layers) * len(rows)))

    def null_spaces(self, count: int) -> Stage:
        """The eigenvectors of some C."""
        cubes = self.shape.d_mlp**3
        return Stage(
            f"null spaces of {count} C", Work(spectra=count * cubes), host=count * DOUBLE * cubes // self.shape.d_mlp
        )

    def descent(self, name: str, rows: FactRows, first: int, steps: int, size: int | None) -> Stage:
        """Anchors at a layer, or shifts from a layer on."""
        groups = anchor_batches(
            rows, size, cards=self.cards, free=max(0, self.free - self._copied), dtype=self.descents
        )
        counted = [self._descend(rows.select(batch), first, steps) for batch in groups]
        alone = max((self._descend(rows.select([fact]), first, steps)[1] for fact in range(len(rows))), default=0)
        held = max((most for _, most in counted), default=0)
        work = total(batch_work for batch_work, _ in counted)
        return Stage(name, work, held + self._copied, least=alone + self._copied, shared=True)

    def _descend(self, rows: FactRows, first: int, steps: int) -> tuple[Work, int]:
        """One batch of a descent, and the bytes that it holds."""
        shape, answered = self.shape, [row for fact_rows in rows.answered_contexts for row in fact_rows]
        above, tail = shape.blocks - 1 - first, max(row.tail for row in answered)
        tokens, answers = len(answered) * tail, sum(len(row.answer) for row in answered)
        whole = len(answered) * max(len(row.ids) for row in answered)
        once = Work(back_passes=2 * above, back_tokens=above * (tokens + len(rows)), back_logits=answers + len(rows))
        frozen_pass = Work(passes=shape.blocks, tokens=shape.blocks * whole)
        itemsize = (self.descents or self.model.dtype).itemsize
        there = min(above, -(-shape.blocks // max(1, self.cards)))  # blocks on the card that has most of them
        gradients = there * tokens * (12 * shape.d_model + 6 * shape.d_mlp) * itemsize
        frozen = there * whole * shape.cached * itemsize
        logits = (answers + len(rows)) * shape.vocabulary * logit_bytes(itemsize) + self._head(
            self.descents or self.model.dtype
        )
        return once * (PASSED * steps) + frozen_pass, gradients + frozen + logits

    def sweep(self, span: int) -> Work:
        """All J of one fact from so many blocks below the last."""
        shape, width = self.shape, self.shape.d_model
        mlps = shape.d_mlp * width
        merged = 2 * width * mlps + shape.inner * mlps
        rest = shape.block - (shape.inner + 1) * mlps + width**2
        return Work(back_passes=2 * span, back_tokens=2 * span, model_products=span * (merged + 2 * width * rest))

    def products(self, span: int) -> Work:
        """A verdict on one J by products alone."""
        return Work(back_passes=2 * LANCZOS * span, back_tokens=2 * LANCZOS * span)

    def spectra(self, matrices: int) -> Work:
        """Eigenvalues of S and singular values of some J."""
        return Work(spectra=matrices * self.shape.d_model**3)

    def survey(self, bare: Sequence[Prompt], layers: Layers, formed: int, sampled: int, budget: int) -> Stage:
        """Jacobians of some facts, of which some are formed, and of some of these eigenvectors are sought."""
        last, below, width = layers[-1], len(layers) - 1, self.shape.d_model
        if not below:
            return Stage("Jacobians")
        by_matrix = self.sweep(last - layers[0]) + self.spectra(below)
        by_products = total(self.products(last - layer) for layer in layers[:-1])
        work = by_matrix * formed + by_products * (len(bare) - formed) + self.forward(bare, last + 1, 1)
        itemsize = self.model.dtype.itemsize
        working = width * sweep_bytes(last - layers[0], width, self.shape.d_mlp, itemsize)
        held = (below + 1) * width**2 * itemsize + 4 * width**2 * DOUBLE + min(budget, working)
        own = Work(eigenvectors=sampled * below * width**3)
        return Stage("Jacobians", work + own, held if formed else 0, shared=True)

    def theorem_1(self, layers: Layers, facts: int, formed: int, sampled: int) -> Work:
        """The study of theorem 1 while all facts are edited once, at these layers."""
        last, below, cubes = layers[-1], layers[:-1], self.shape.d_model**3
        by_matrix = total(self.sweep(last - layer) + self.spectra(1) for layer in below)
        by_products = total(self.products(last - layer) for layer in below)
        return by_matrix * formed + by_products * (facts - formed) + Work(eigenvectors=len(below) * sampled * cubes)

    def step_size(self, layers: Layers, facts: int) -> Work:
        """The study of step sizes while all facts are edited once, at these layers."""
        blocks = STEP_REPLAYS * sum(layers[-1] - layer for layer in layers[:-1])
        return Work(passes=blocks, tokens=blocks * facts)

    def edit(self, rows: FactRows, scheme: Scheme, layers: Layers, size: int | None = None, *, observed: bool) -> Work:
        """One edit of all facts, so many of them in a batch."""
        width, last, facts = self.shape.d_model, layers[-1], len(rows)
        size = size or facts
        parts = [rows.select(range(start, min(start + size, facts))) for start in range(0, facts, size)]
        bare = total(self.forward(part.bare, last + 1) for part in parts)
        work = total(self.keys(part, scheme.edited(layers)) for part in parts)
        for layer in scheme.edited(layers):
            work += bare + self.solves(1, facts + width)
            if len(parts) > 1:  # each solves, is folded into the factor, and writes the layer's change
                again = self.substitutions(width) + Work(moved=4 * DOUBLE * width * self.shape.d_mlp)
                work += again * (len(parts) - 1)
            if scheme.pulls_back:
                normal = Work(double_products=2 * width**3, cholesky=width**3)
                work += (self.sweep(last - layer) + normal) * facts
            if observed:
                replays = 5 * (last - layer)
                work += bare + Work(passes=replays, tokens=replays * facts) + self.substitutions(facts)
        return work

    def evaluation(self, parts: Sequence[Sequence[Prompt]], greedy: Sequence[Prompt] = ()) -> Work:
        """Asking a model some questions, part by part; rows of a part that begin alike are run once."""
        read = sum(max(1, len(row.answer)) for part in parts for row in part)
        steps = max((len(row.answer) for row in greedy), default=0)
        run = (list(dict.fromkeys(hosts(part))) for part in parts)
        through = total(self.forward(part, self.shape.blocks) for part in (*run, greedy))
        written = Work(passes=steps * self.shape.blocks, tokens=steps * self.shape.blocks * len(greedy))
        return through + written + Work(logits=read)

    def imposition(self, rows: Sequence[Prompt], first: int, shares: int) -> Work:
        """Asking rows with shifts from a layer on, at so many shares."""
        above, answered = self.shape.blocks - 1 - first, sum(len(row.answer) for row in rows)
        groups = [[rows[i].tail for i in group] for group in batches(rows)]
        tails = sum(len(group) * max(group) for group in groups)
        once = Work(passes=above * len(groups), tokens=above * tails, logits=answered)
        return self.forward(rows, self.shape.blocks) + once * shares

    def editing(
        self,
        name: str,
        work: Work,
        layers: int,
        rows: FactRows,
        *,
        observed: bool = False,
        projected: int = 0,
        parts: Sequence[Sequence[Prompt]] = (),
        beside: int = 0,
    ) -> Stage:
        """The stage in which edits are made, once their work is known.

        It holds λC + K Kᵀ with its factor and a copy, the weights as they were and the changes of every layer; where a
        rule projects by them, the eigenvectors of every C on the host, and of one where the model is; the logits of
        what a model is asked, part by part; and what methods that train leave, ``beside`` all that.
        """
        n, itemsize = self.shape.d_mlp, self.model.dtype.itemsize
        changes = layers * self.shape.d_model * n * (itemsize + 2 * DOUBLE)
        matrices = (3 + bool(projected and self.cards)) * DOUBLE * n**2
        states = self._states(rows, layers, layers if observed else 1)
        rows_asked, longest = (
            max(map(len, parts), default=0),
            max((len(row.ids) for part in parts for row in part), default=0),
        )
        single = 2 * max(SINGLE, itemsize) * min(rows_asked, ROWS_OF_LOGITS)
        logits = self.shape.vocabulary * (single + COMPARED * DOUBLE * min(rows_asked, ROWS_IN_DOUBLE))
        solving = matrices + changes + states if layers else 0  # no layer: nothing is solved
        held = max(solving, beside) + self._head(self.model.dtype) + logits
        return Stage(name, work, held + (self._passing(longest) if rows_asked else 0), host=projected * DOUBLE * n**2)

    def _states(self, rows: FactRows, layers: int, remembered: int) -> int:
        """Bytes of all facts' targets, keys, states and frozen prompts, while some layers' edits are remembered."""
        shape, tokens = self.shape, sum(len(row.ids) for row in rows.bare)
        states = (2 + 2 * layers + remembered * STATES) * shape.d_model + (remembered + 1) * shape.d_mlp
        frozen = remembered * (layers + 1) * tokens * shape.cached // 2  # of the blocks between a layer and the last
        return len(rows) * states * DOUBLE + frozen * self.model.dtype.itemsize

    def _head(self, dtype: torch.dtype) -> int:
        """Bytes of the head in float32, which a model in half precision makes for its logits."""
        half = dtype.itemsize < torch.float32.itemsize
        return self.shape.vocabulary * self.shape.d_model * torch.float32.itemsize if half else 0

    def tracing(self, prompts: Sequence[TracedPrompt], settings: TraceSettings) -> Stage:
        """Causal traces: each restoration runs the tokens from its own on through the blocks above it."""
        shape, draws, longest = self.shape, settings.samples, max((len(prompt.ids) for prompt in prompts), default=0)
        cells, work, most = settings.restorations(shape.blocks), Work(), 0
        for prompt in prompts:
            work += Work(passes=shape.blocks, tokens=shape.blocks * len(prompt.ids)) * (1 + draws)
            for place in prompt.places:
                tokens = draws * (len(prompt.ids) - place)
                for batch in batches_of(cells, tokens):
                    run = sum(shape.blocks - 1 - cell.start for cell in batch)
                    passes = shape.blocks - 1 - batch[0].start
                    work += Work(passes=passes, tokens=run * tokens, logits=len(batch) * draws)
                    most = max(most, len(batch) * tokens)
        itemsize, states = self.model.dtype.itemsize, draws * longest * shape.blocks
        recorded = states * (3 * shape.d_model + shape.cached)
        running = most * (6 * shape.d_model + (1 + shape.inner) * shape.d_mlp + 2 * shape.cached)
        logits = ROWS_IN_DOUBLE * shape.vocabulary * 2 * DOUBLE
        return Stage("traces", work, (recorded + running) * itemsize + logits, shared=True)

    def training(self, name: str, rows: FactRows, block: int, steps: int, matrices: int) -> Stage:
        """Training on facts one after another above a block, so many steps each, with some matrices like an MLP's."""
        shape, above = self.shape, self.shape.blocks - block
        work, held = Work(), 0
        for contexts in rows.answered_contexts:
            tokens, answers = (
                len(contexts) * max(len(row.ids) for row in contexts),
                sum(len(r.answer) for r in contexts),
            )
            work += Work(back_passes=above, back_tokens=above * tokens, back_logits=answers) * steps
            held = max(held, answers * shape.vocabulary * logit_bytes(self.model.dtype.itemsize))
        return Stage(name, work, held + matrices * shape.d_model * shape.d_mlp * max(SINGLE, self.model.dtype.itemsize))
