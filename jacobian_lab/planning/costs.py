"""The work of every stage in terms of a clock's pieces, and what it holds in memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from jacobian_lab.crew.settings import UNSHARED, Load
from jacobian_lab.editing.anchors import anchor_batches
from jacobian_lab.editing.layers import KEYS_AT_ONCE
from jacobian_lab.editing.schemes import Scheme
from jacobian_lab.editing.solving import FOLD
from jacobian_lab.evaluation.metrics import hosts
from jacobian_lab.maps.hooks import TOKENS_PER_BATCH, batches
from jacobian_lab.model.language_model import LanguageModel, Layers
from jacobian_lab.model.rows import FactRows
from jacobian_lab.model.tokens import Prompt
from jacobian_lab.planning.clock import Clock
from jacobian_lab.planning.held import DOUBLE, asking, served
from jacobian_lab.planning.sketch import Sizes
from jacobian_lab.training.settings import RLEditSettings, WiseSettings

PROCESS = 700 * 2**20
"""Bytes of the process itself, the interpreter and its libraries: what `benchmarks/plan.py` saw beside the rest."""

PASSED = 0.85
"""The share of its passes that a fact takes before its loss is reached: 0.5 to 1.0 in `descents.md` of the results."""

LANCZOS = 52
"""Products with J, and as many with its transpose, for λ_min, λ_max and σ_max of one Jacobian, as SmolLM2's take; the
matrix that a verdict forms where these show no counterexample is not foreseen."""

STEP_REPLAYS = 130
"""Replays of all facts that `step_size` makes at a layer: two grids of 31, and what SciPy's searches ask for."""

LOGITS = 28
"""Bytes of a logit while its gradient is taken: itself and its gradient, and log-softmax and its own in float64."""

MASK = 8
"""Bytes of a pair of tokens in an attention mask, while it is made: measured at 4,000 tokens."""

STATES = 12
"""States and shifts of every fact, in float64, that an observed edit keeps of a layer."""


@dataclass(frozen=True)
class Stage:
    """A stage of a job.

    Attributes:
        name: Its name.
        seconds: How long it is going to take.
        host: Bytes of the host that it holds at the most.
        device: Bytes of the card; 0 where the host has the model.
        least: Bytes where the model is, without which it cannot be done however it is divided.
        half: The same, were the weights in half precision; 0 where they are.
    """

    name: str
    seconds: float
    host: int = 0
    device: int = 0
    least: int = 0
    half: int = 0


@dataclass(frozen=True, eq=False)
class Costs:
    """What the stages of a job cost for one model on one machine.

    Attributes:
        model: The model; its weights are not looked at.
        clock: The machine's.
        kept: Bytes that the host keeps through the whole job beside the weights: C of the decisive layers.
        load: How the work is spread; the cards that a model is divided over take turns, and what goes between them is
            taken to cost nothing.
        descents: Dtype of the copy of the model that descents run in, if they do.
        room: Bytes that there are where the model is, on each card.
    """

    model: LanguageModel
    clock: Clock
    kept: int = 0
    load: Load = UNSHARED
    descents: torch.dtype | None = None
    room: int = 2**60

    @cached_property
    def sizes(self) -> Sizes:
        """The model's."""
        return Sizes.of(self.model)

    @property
    def _dividing(self) -> int:
        """Over how many cards the model is divided of whoever works fact by fact."""
        return self.load.worker_cards if self.load.beside else self.load.cards

    @property
    def _workers(self) -> int:
        """How many work at once on one card, or this host: the workers, while this process waits, or it alone."""
        return max(1, self.load.beside)

    def _there(self, dtype: torch.dtype) -> int:
        """Bytes of the models on the card that holds most, or on the host: this process's, and workers' with copies."""
        own, theirs = self._share(self.load.cards), self.load.beside * self._share(self.load.worker_cards)
        return (own + theirs) * dtype.itemsize + theirs * self._copied(dtype)

    @property
    def _descending(self) -> int:
        """Weights of the model that this process descends with: none where workers do."""
        return 0 if self.load.beside else self._share(self.load.cards)

    def _copied(self, dtype: torch.dtype) -> int:
        """Bytes of a weight in the copy that descents run in, if the model is in another dtype."""
        return 0 if self.descents is None or self.descents == dtype else self.descents.itemsize

    def _share(self, cards: int) -> int:
        """Weights of one model on the card that holds most of them; what is no block is on the first."""
        sizes = self.sizes
        if cards == 1:
            return sizes.weights
        return max(sizes.weights - sizes.blocks * sizes.block, sizes.weights // cards + sizes.block)

    def stage(
        self,
        name: str,
        seconds: float,
        held: int = 0,
        *,
        least: int | None = None,
        host: int = 0,
        share: float = 1.0,
        shared: bool = False,
        copies: int = 0,
    ) -> Stage:
        """A stage with what it holds."""
        dtype, half, times = self.model.dtype, torch.bfloat16, self._workers if shared else 1
        held, smallest = times * held, times * (held if least is None else least)
        seconds = seconds / self.load.sharing if shared else seconds
        weights, own = self._there(dtype) + copies * self._copied(dtype), PROCESS * self.load.processes + self.kept
        base = 0 if self.clock.card else own + host
        less = self._there(half) + copies * self._copied(half)
        halved = base + less + smallest if dtype.itemsize > half.itemsize else 0
        where = (own + host, weights + held) if self.clock.card else (own + host + weights + held, 0)
        return Stage(name, share * seconds, *where, base + weights + smallest, halved)

    def loading(self) -> Stage:
        """Reading the weights, which the host holds before a single card does."""
        weights = self.sizes.weights * self.model.dtype.itemsize
        load = self.load  # into several cards each weight is read by itself
        whole = (load.cards == 1) + (load.processes - 1) * (load.worker_cards == 1)
        return self.stage("loading", weights / self.clock.moved, host=whole * weights if self.clock.card else 0)

    def forward(self, rows: Sequence[Prompt], blocks: int, at_once: int = TOKENS_PER_BATCH) -> float:
        """Seconds of rows through some blocks, padded as they are when they are run."""
        groups = ([len(rows[i].ids) for i in group] for group in batches(rows, at_once))
        return blocks * sum((self.clock.block(len(lengths) * max(lengths)) for lengths in groups), 0.0)

    def moments(self, tokens: int, layers: Layers, longest: int = 0) -> Stage:
        """The second moments of a corpus."""
        n, count = self.sizes.d_mlp, len(layers)
        products = 2 * n**2 * tokens * count / self.clock.rates["float32"]
        through = (max(layers) + 1) * self.clock.passes(tokens, TOKENS_PER_BATCH)
        stored = 3 * count * DOUBLE * n**2 / self.clock.moved  # copied, hashed, written
        keys = count * max(TOKENS_PER_BATCH, longest) * n * self.model.dtype.itemsize
        working = 2 * DOUBLE * n**2 + keys + self._passing(longest)
        held = working + (count * DOUBLE * n**2 if self.clock.card else 0)  # on the host the sums are what is kept
        return self.stage("second moments", through + products + stored, held)

    def _passing(self, longest: int) -> int:
        """Bytes of a forward pass of rows of some length: a block's states and keys, and a mask where there is one."""
        sizes, together = self.sizes, max(TOKENS_PER_BATCH, longest)
        windows = any(self.model.window(layer) is not None for layer in range(sizes.blocks))
        masked = longest <= TOKENS_PER_BATCH or windows  # a row that stands alone is not padded
        states = (6 * sizes.width + (1 + sizes.inner) * sizes.d_mlp) * self.model.dtype.itemsize
        return together * (states + MASK * longest * masked)

    def solves(self, count: int, keys: int) -> float:
        """Seconds of factoring matrices of d_mlp and solving with them."""
        return count * (self.sizes.d_mlp**3 * self.clock.cubes["cholesky"] + self.substitutions(keys))

    def substitutions(self, keys: int) -> float:
        """Seconds of solving with a factor of a matrix of d_mlp that is there."""
        return 2 * self.sizes.d_mlp**2 * keys / self.clock.rates["float64"]

    def eigenvectors(self, count: int) -> float:
        """Seconds of the eigenvectors of C: about those of eigenvalues and singular values."""
        return count * self.sizes.d_mlp**3 * self.clock.cubes["spectra"]

    def descent(self, name: str, rows: FactRows, first: int, steps: int, size: int | None) -> Stage:
        """Anchors at a layer, or shifts from a layer on."""
        taken = [self._batch(rows.select(batch), first, steps) for batch in self._batches(rows, size)]
        alone = max((self._batch(rows.select([fact]), first, steps)[1] for fact in range(len(rows))), default=0)
        seconds, held = sum((each for each, _ in taken), 0.0), max((most for _, most in taken), default=0)
        return self.stage(name, seconds, held, least=alone, shared=True, copies=self._descending)

    def _batches(self, rows: FactRows, size: int | None) -> list[list[int]]:
        """As they are going to be made, where the model is going to be."""
        dtype = self.model.dtype
        free = self.room - self._there(dtype) - self._descending * self._copied(dtype)
        cards = self._dividing if self.clock.card else 0
        return anchor_batches(rows, size, cards=cards, free=max(0, free) // self._workers, dtype=self.descents)

    def _batch(self, rows: FactRows, first: int, steps: int) -> tuple[float, int]:
        """Seconds of one batch of a descent, and the bytes that it holds."""
        sizes, answered = self.sizes, [row for each in rows.answered_contexts for row in each]
        above, tail = sizes.blocks - 1 - first, max(row.tail for row in answered)
        tokens, answers = len(answered) * tail, sum(len(row.answer) for row in answered)
        once = above * (self.clock.descent(tokens, back=True) + self.clock.descent(len(rows), back=True))
        once += (answers + len(rows)) * self.clock.logits[1]
        whole = len(answered) * max(len(row.ids) for row in answered)
        seconds = PASSED * steps * once + sizes.blocks * self.clock.descent(whole)
        itemsize = (self.descents or self.model.dtype).itemsize
        there = min(above, -(-sizes.blocks // self._dividing))  # blocks on the card that has most of them
        gradients = there * tokens * (12 * sizes.width + 6 * sizes.d_mlp) * itemsize
        frozen = there * whole * sizes.cached * itemsize
        logits = (answers + len(rows)) * sizes.words * LOGITS + self._head(self.descents or self.model.dtype)
        return seconds, gradients + frozen + logits

    def training(self, rows: FactRows, lessons: int, settings: WiseSettings | RLEditSettings) -> Stage:
        """The training of a method that trains, where nothing is cached."""
        if isinstance(settings, WiseSettings):
            return self.stage("training of wise", *self._wise(rows, settings))
        return self.stage("training of rledit", *self._rledit(rows, lessons // settings.epochs, settings))

    def _wise(self, rows: FactRows, settings: WiseSettings) -> tuple[float, int]:
        """Seconds, if every fact takes all of its steps, and bytes."""
        above, seconds, held = self.sizes.blocks - 1 - settings.block, 0.0, 0
        for contexts in rows.answered_contexts:
            tokens = (len(contexts) + 1) * max(len(row.ids) for row in contexts)
            answers = sum(len(row.answer) for row in contexts)
            step = above * self.clock.block(tokens, back=True) + answers * self.clock.logits[1]
            seconds += settings.steps * step + self.sizes.blocks * self.clock.block(tokens)
            held = max(held, answers * self.sizes.words * LOGITS)
        return seconds, held + served(settings, self.sizes, self.model.dtype)

    def _rledit(self, rows: FactRows, lessons: int, settings: RLEditSettings) -> tuple[float, int]:
        """Seconds, editing among them, with lessons as long as the facts themselves, and bytes."""
        above, at_once = self.sizes.blocks - min(settings.blocks), settings.rows_at_once
        tokens, answer = max(len(row.ids) for row in rows.answered), max(len(row.answer) for row in rows.answered)
        there = above * self.clock.block(at_once * tokens) + at_once * answer * self.clock.logits[0]
        back = above * self.clock.block(at_once * tokens, back=True) + at_once * answer * self.clock.logits[1]
        parts, batches_of = -(-settings.facts_at_once // at_once), -(-lessons // settings.facts_at_once)
        count = min(batches_of, settings.batches)
        looked_back = sum(min(number + 1, settings.back) for number in range(count))
        seconds = settings.epochs * parts * (looked_back * (2 * back + there) + count * back)
        seconds += -(-len(rows) // at_once) * (back + 2 * there)
        before = settings.back * settings.facts_at_once * answer * self.sizes.words * DOUBLE  # of unrelated rows
        gradients = (
            above * at_once * tokens * (12 * self.sizes.width + 6 * self.sizes.d_mlp) * self.model.dtype.itemsize
        )
        passed = at_once * answer * self.sizes.words * LOGITS + before + gradients
        return seconds, served(settings, self.sizes, self.model.dtype) + passed

    def sweep(self, span: int) -> float:
        """Seconds of all J of one fact from so many blocks below the last."""
        sizes, width = self.sizes, self.sizes.width
        mlps = sizes.d_mlp * width
        merged = 2 * width * mlps + sizes.inner * mlps
        rest = sizes.block - (sizes.inner + 1) * mlps + width**2
        return span * ((merged + 2 * width * rest) / self.clock.rates["model"] + 2 * self.clock.block(1, back=True))

    def spectra(self) -> float:
        """Seconds of the eigenvalues of S and the singular values of one J."""
        return self.sizes.width**3 * self.clock.cubes["spectra"]

    def own(self) -> float:
        """Seconds of one J's own eigenvectors."""
        return self.sizes.width**3 * self.clock.cubes["eigenvectors"]

    def products(self, span: int) -> float:
        """Seconds of a verdict on one J by products alone."""
        return span * LANCZOS * 2 * self.clock.block(1, back=True)

    def survey(
        self, bare: Sequence[Prompt], layers: Layers, formed: int, sampled: int, budget: int, *, share: float = 1.0
    ) -> Stage:
        """Jacobians of all facts."""
        last, below, width = layers[-1], len(layers) - 1, self.sizes.width
        if not below:
            return self.stage("Jacobians", 0.0)
        by_matrix = self.sweep(last - layers[0]) + below * self.spectra()
        by_products = sum(self.products(last - layer) for layer in layers[:-1])
        seconds = formed * by_matrix + (len(bare) - formed) * by_products + sampled * below * self.own()
        itemsize = self.model.dtype.itemsize
        working = min(budget, width * itemsize * ((12 + 2 * (last - layers[0])) * width + 6 * self.sizes.d_mlp))
        held = (below + 1) * width**2 * itemsize + 4 * width**2 * DOUBLE + working
        seconds += self.forward(bare, last + 1, 1)
        return self.stage("Jacobians", seconds, held if formed else 0, share=share, shared=True)

    def edit(self, rows: FactRows, scheme: Scheme, layers: Layers, size: int | None = None, *, observed: bool) -> float:
        """Seconds of one edit of all facts."""
        width, last, facts = self.sizes.width, layers[-1], len(rows)
        size = size or facts
        parts = [rows.select(range(start, min(start + size, facts))) for start in range(0, facts, size)]
        contexts = [[row for each in part.contexts for row in each] for part in parts]
        bare, seconds = sum((self.forward(part.bare, last + 1) for part in parts), 0.0), 0.0
        for layer in scheme.edited(layers):
            keys = sum((self.forward(each, layer + 1) for each in contexts), 0.0)
            seconds += keys / (self.load.sharing if size > KEYS_AT_ONCE else 1.0) + bare + self.solves(1, facts + width)
            if len(parts) > 1:  # each solves, and is folded into the factor
                refactored = int(facts / (FOLD * self.sizes.d_mlp))
                again = (len(parts) - 1) * (self.substitutions(width) + self._written())
                seconds += again + self.solves(refactored, 0)
            if scheme.pulls_back:
                normal = 2 * width**3 / self.clock.rates["float64"] + width**3 * self.clock.cubes["cholesky"]
                seconds += facts * (self.sweep(last - layer) + normal)
            if observed:
                replays = 5 * (last - layer) * self.clock.passes(facts, max(1, TOKENS_PER_BATCH // 8))
                seconds += bare + replays + self.solves(1, facts)
        return seconds

    def _written(self) -> float:
        """Seconds of writing a layer's change, in float64 and back."""
        return 4 * DOUBLE * self.sizes.width * self.sizes.d_mlp / self.clock.moved

    def editing(
        self,
        name: str,
        seconds: float,
        layers: int,
        *,
        rows: FactRows | None = None,
        observed: bool = False,
        projected: int = 0,
        asked: int = 0,
        longest: int = 0,
        solved: bool = True,
        trained: Sequence[WiseSettings | RLEditSettings] = (),
    ) -> Stage:
        """The stage in which edits are made, once their seconds are known.

        Where a method solves, it holds λC + K Kᵀ with its factor and a copy, the weights as they were and the changes
        of every layer; where a rule projects by them, the eigenvectors of every C on the host, and of one where the
        model is. Where a method trains, it holds what that method leaves; logits, where a model is asked.
        """
        n, changes = self.sizes.d_mlp, self.sizes.width * self.sizes.d_mlp * (self.model.dtype.itemsize + 2 * DOUBLE)
        there, states = 3 + bool(projected and self.clock.card), 0
        if rows is not None:
            states = self._states(rows, layers, layers if observed else 1)
        solving = (there * DOUBLE * n**2 + layers * changes + states) * solved
        left = [served(each, self.sizes, self.model.dtype) for each in trained]
        held = max([solving, *left]) + self._head(self.model.dtype) + asking(asked, self.sizes, self.model.dtype)
        held += self._passing(longest) if asked else 0
        return self.stage(name, seconds, held, host=projected * DOUBLE * n**2)

    def _states(self, rows: FactRows, layers: int, kept: int) -> int:
        """Bytes of all facts' targets, keys, states and frozen prompts, while what some edits did is kept."""
        sizes, tokens = self.sizes, sum(len(row.ids) for row in rows.bare)
        states = (2 + 2 * layers + kept * STATES) * sizes.width + (kept + 1) * sizes.d_mlp
        frozen = kept * (layers + 1) * tokens * sizes.cached // 2  # of the blocks between a layer and the last
        return len(rows) * states * DOUBLE + frozen * self.model.dtype.itemsize

    def evaluation(
        self, asked: Sequence[Sequence[Prompt]], greedy: Sequence[Prompt] = (), *, shared: bool = False
    ) -> float:
        """Seconds of asking a model some questions."""
        read = sum(max(1, len(row.answer)) for part in asked for row in part) * self.clock.logits[0]
        steps = max((len(row.answer) for row in greedy), default=0)
        written = steps * self.sizes.blocks * self.clock.passes(len(greedy), 64)  # of one length, rarely more
        run = (list(dict.fromkeys(hosts(part))) for part in asked)
        through = sum((self.forward(part, self.sizes.blocks) for part in (*run, greedy)), 0.0)
        return (through + read + written) / (self.load.sharing if shared else 1.0)

    def _head(self, dtype: torch.dtype) -> int:
        """Bytes of the head in float32, which a model in half precision makes for its logits."""
        half = dtype.itemsize < torch.float32.itemsize
        return self.sizes.words * self.sizes.width * torch.float32.itemsize if half else 0
