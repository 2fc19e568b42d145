"""Restorations of causal tracing, the tokens that they are made at, and the settings that say which are made."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from jacobian_lab.catalogue import ROLES, SUBJECT_END, TRACE_SITES, TraceSite
from jacobian_lab.errors import InputError
from jacobian_lab.facts.fact import Fact
from jacobian_lab.maps.hooks import TOKENS_PER_BATCH
from jacobian_lab.model.language_model import LanguageModel
from jacobian_lab.model.tokens import subject_start

NOISE, SAMPLES, WIDEST = 3.0, 10, 10
"""ROME's noise, in standard deviations, its number of draws, and its window of layers."""


@dataclass(frozen=True)
class TraceSettings:
    """Settings of causal tracing.

    Attributes:
        layers: Layers that are restored, or that windows are centered on; all by default.
        sites: Restorations (`jacobian_lab.catalogue.TraceSite`).
        noise: Standard deviation of the noise, over that of all numbers of the embedding.
        samples: Draws of the noise.
        window: Layers in which an MLP's or attention's output is restored at once; 10 by default, or a third of the
            blocks where that is less.
        seed: Seed of the noise.
        recalled_only: Whether facts are left out whose answer is not the model's own.
    """

    layers: tuple[int, ...] | None = None
    sites: tuple[TraceSite, ...] = TRACE_SITES
    noise: float = NOISE
    samples: int = SAMPLES
    window: int | None = None
    seed: int = 0
    recalled_only: bool = False

    def of(self, n_layers: int) -> "TraceSettings":
        """The same with layers and window of a model.

        Args:
            n_layers: Number of its blocks.

        Returns:
            Settings without a default.

        Raises:
            InputError: If the window is wider than the model.
        """
        window = max(1, min(WIDEST, n_layers // 3)) if self.window is None else self.window
        if window > n_layers:
            raise InputError(f"expected a window of at most {n_layers} layers, got ⟨window⟩ {window}: lower it")
        layers = tuple(range(n_layers)) if self.layers is None else self.layers
        return replace(self, layers=layers, window=window)

    def restorations(self, n_layers: int) -> list["Restoration"]:
        """All restorations at one token, the lowest first.

        Args:
            n_layers: Number of the model's blocks.

        Returns:
            One for every site and layer.

        Raises:
            InputError: If the window is wider than the model.
        """
        settings = self.of(n_layers)
        assert settings.layers is not None
        assert settings.window is not None
        below, above = settings.window // 2, -(-settings.window // 2)  # as ROME has them
        restored = [
            Restoration(site, layer, range(max(0, layer - below), min(n_layers, layer + above)))
            for site in self.sites
            for layer in settings.layers
        ]
        return sorted(restored, key=lambda restoration: restoration.start)


@dataclass(frozen=True)
class Restoration:
    """One cell of a trace at some token.

    Attributes:
        site: The site.
        layer: The layer whose state is restored, or on which the window is centered.
        window: Layers of the window; it matters to `mlp` and `attention` alone.
    """

    site: TraceSite
    layer: int
    window: range

    @property
    def of_state(self) -> bool:
        """Tells whether a hidden state is restored."""
        return self.site not in {"mlp", "attention"}

    @property
    def start(self) -> int:
        """Block behind which the pass leaves the corrupted one; -1 for the embedding."""
        return self.layer if self.of_state else self.window.start - 1

    def source(self, part: str, block: int) -> str:
        """Pass that the output of a block's part comes from at the token.

        Args:
            part: ``"mlp"`` or ``"attention"``.
            block: A block above `start`.

        Returns:
            ``"clean"``, ``"corrupted"``, or nothing where it is computed.
        """
        if self.site == part and block in self.window:
            return "clean"
        return "corrupted" if self.site == f"{part}-severed" else ""


@dataclass(frozen=True)
class TracedPrompt:
    """A prompt with the places that tracing looks at.

    Attributes:
        ids: Ids of the prompt.
        subject: Places of the subject's tokens.
        answer: First token of the true answer.
    """

    ids: tuple[int, ...]
    subject: range
    answer: int

    @property
    def places(self) -> range:
        """Tokens that are traced: from the subject's first on, since noise changes none before."""
        return range(self.subject.start, len(self.ids))

    def role(self, place: int) -> str:
        """Role of a traced token, among `jacobian_lab.catalogue.ROLES`.

        Args:
            place: Its place in the prompt.

        Returns:
            The first that applies of: last and first of the subject, middle, last of the prompt, first further.
        """
        if place in self.subject:
            last, first = place == self.subject[-1], place == self.subject[0]
            return SUBJECT_END if last else ROLES[0] if first else ROLES[1]
        return "last" if place == len(self.ids) - 1 else ROLES[3] if place == self.subject.stop else ROLES[4]


def true_fact(fact: Fact) -> Fact:
    """The fact as it is before any edit.

    Args:
        fact: The fact.

    Returns:
        The fact with its true answer alone.

    Raises:
        InputError: If it has no true answer.
    """
    if not fact.target_true:
        raise InputError(
            f"expected a true answer, whose probability is traced, got none in fact {fact.id!r}: give target_true"
        )
    return Fact(fact.id, fact.subject, fact.prompt, fact.target_true, join=fact.join)


def traced_prompt(model: LanguageModel, fact: Fact) -> TracedPrompt:
    """Tokenise a fact's prompt for tracing.

    Args:
        model: The model.
        fact: The fact.

    Returns:
        The prompt, as it stands before the true answer.

    Raises:
        InputError: If the fact has no true answer.
    """
    row = model.fact_prompt(true_fact(fact), answer=True)
    start = min(subject_start(model.tokenizer, fact, model.chat), row.decisive)
    return TracedPrompt(row.ids[: row.prompt_length], range(start, row.decisive + 1), row.answer[0])


def batches_of(cells: Sequence[Restoration], tokens: int) -> list[Sequence[Restoration]]:
    """Divide restorations into batches that one pass takes.

    Args:
        cells: The restorations, the lowest first.
        tokens: Tokens that one of them runs, all draws together.

    Returns:
        The batches; a restoration with more tokens than a pass takes stands alone.
    """
    size = max(1, TOKENS_PER_BATCH // tokens)
    return [cells[start : start + size] for start in range(0, len(cells), size)]
