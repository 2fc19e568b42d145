"""An experiment: what a configuration of edits names, loaded and checked, with the session that edits."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from jacobian_lab.editing.published_moments import Published, check_moments
from jacobian_lab.editing.rules import RuleSettings
from jacobian_lab.editing.second_moments import moment_rows, moments_cached, second_moments
from jacobian_lab.editing.settings import AnchorSettings, recorded
from jacobian_lab.editing.solving import REALISED
from jacobian_lab.errors import InputError
from jacobian_lab.facts.fact import Fact
from jacobian_lab.jobs.config import EditingConfig, EvaluationConfig, check
from jacobian_lab.jobs.counts import Counts
from jacobian_lab.jobs.donors import Donor, donor_of, facts_named, splits_of
from jacobian_lab.jobs.job import Preparation
from jacobian_lab.jobs.setup import Subject, load_subject
from jacobian_lab.model.corpus import TOKENS_PER_NEURON, Corpus, load_corpus
from jacobian_lab.model.devices import Places
from jacobian_lab.model.footprint import DOUBLE
from jacobian_lab.model.language_model import LanguageModel, Layers
from jacobian_lab.model.protocols import measured_protocol
from jacobian_lab.model.templates import TYPICAL_TEMPLATES, Templates, read_templates, sample_templates
from jacobian_lab.planning.work import Stage
from jacobian_lab.progress import note
from jacobian_lab.session.descents import JOINT_ANCHOR, RESTARTED_ANCHOR, SHIFT
from jacobian_lab.session.session import Moments, Session
from jacobian_lab.store.arrays import exists, read_config

OWN_SETTINGS = {
    SHIFT: ("layers", "coordination"),
    RESTARTED_ANCHOR: ("layers", "replay", "seed"),
    JOINT_ANCHOR: ("layers", "replay"),
}
"""Settings that decide a descent of that name alone."""


@dataclass(frozen=True, eq=False)
class Experiment(Subject):
    """An `EditingConfig` with everything that it names loaded and checked.

    Attributes:
        session: What the facts are edited with.
        corpus: The corpus of the second moment, unless published ones take its place.
        published: Second moments that take the corpus's place, if there are any.
        donor: The run that anchors are taken from, if there is one.
        ridge: λ that the settings say; none if it follows from what is realised.
    """

    config: EditingConfig
    session: Session
    corpus: Corpus | None
    published: Published | None
    donor: Donor | None
    ridge: float | None

    def deciding(self, name: str) -> tuple[str, ...]:
        """Settings that decide a descent beside those that decide every anchor."""
        anchor, coordination, shifted = self.session.anchor, self.config.coordination, name == SHIFT
        measured = anchor.needs_transfers or (shifted and coordination.needs_transfers)
        weighted = measured or (shifted and coordination.needs_eases)
        drawn = measured or anchor.delivered == "random"
        return (*OWN_SETTINGS.get(name, ()), *(("corpus",) * weighted), *(("seed",) * drawn))

    def with_layers(self, layers: Layers) -> "Experiment":
        """The same with other decisive layers."""
        executor, published = self.executor.of(layers), _published(self.config, self.model, layers)
        take = partial(_moments, self.model, self.corpus, published, layers, self.config, self.session.progress)
        session = replace(self.session, layers=layers, executor=executor, take_moments=take)
        return replace(self, layers=layers, executor=executor, session=session, published=published)

    def preparation(self, columns: int | None = None, further: Preparation | None = None) -> Preparation:
        """Moments and λ, before any part; a singular λC is refused where it is solved with fewer keys than it is wide.

        A run that is resumed keeps its λ, lest another machine's rounding choose another.
        """
        session, further = self.session, further or Preparation()

        def recall(folder: Path) -> None:
            if session.fixed_ridge is None and exists(folder) and "ridge" in (run := read_config(folder)["provenance"]):
                session.fixed_ridge = float(run["ridge"])

        def compute(folder: Path) -> None:
            recall(folder)
            if self.published is not None:
                _ = session.moments  # files that cannot be used are refused before the long work
            session.check_solvable(len(self.facts) if columns is None else columns)
            further.compute(folder)

        def work(counts: Counts, folder: Path | None) -> Iterator[Stage]:
            if folder is not None:
                recall(folder)
            if lengths := self.moment_lengths:
                yield counts.moments(lengths, self.layers)
            count = len(self.layers)
            checks = counts.solves(count, 0)
            if session.fixed_ridge is None:
                checks += counts.keys(self.rows, self.layers) + counts.substitutions(count * len(self.rows))
            yield Stage("λ and its checks", checks)
            yield from further.work(counts, folder)

        return Preparation(compute, work, 2 * len(self.layers) * self.model.d_mlp**2 * DOUBLE + further.host)

    @cached_property
    def moment_lengths(self) -> list[int]:
        """Tokens of each row that the second moments are still to be taken over; none where they are there."""
        if self.corpus is None:
            return []
        length, tokens = self.config.corpus_length, corpus_tokens(self.config, self.model)
        if moments_cached(self.model, self.corpus, self.layers, length, tokens):
            return []
        return [len(row.ids) for row in moment_rows(self.model, self.corpus, length, tokens)]

    def settings(self) -> dict[str, Any]:
        """Everything that decides a number, as it stands in ``config.json``."""
        config, ridge = self.config, self.ridge
        return super().settings() | {
            "templates": [list(group) for group in self.templates],
            "anchor": recorded(self.session.anchor),
            "corpus": self._corpus_settings(),
            "ridge": f"realises {REALISED:g}" if ridge is None else ridge,
            "pullback_damping": config.pullback_damping,
            "coordination": recorded(config.coordination),
            "replay": recorded(config.replay),
        }

    def _corpus_settings(self) -> dict[str, Any]:
        if self.published is not None:
            return {"published": self.published.digest}
        assert self.corpus is not None
        tokens = corpus_tokens(self.config, self.model)
        drawn = {} if tokens is None else {"tokens_seed": self.config.seed}
        return {"digest": self.corpus.digest, "length": self.config.corpus_length, "tokens": tokens} | drawn

    def provenance(self) -> dict[str, Any]:
        """Facts worth knowing of a run that decide no number."""
        donor = {} if self.config.anchors_from is None else {"anchors_from": str(self.config.anchors_from)}
        return super().provenance() | {
            "templates": str(self.config.templates or f"sampled with seed {self.config.seed}"),
            "corpus": str(self.config.moments) if self.corpus is None else self.corpus.name,
            "splits": splits_of(self.model, self.facts),
            **donor,
        }

    def solved(self) -> dict[str, Any]:
        """The same with λ, of a run in which something is solved."""
        return self.provenance() | {"ridge": self.session.ridge}


def corpus_tokens(config: EditingConfig, model: LanguageModel) -> int | None:
    """Tokens that the second moment is taken over; none: the whole corpus."""
    return TOKENS_PER_NEURON * model.d_mlp if config.corpus_tokens == "auto" else config.corpus_tokens


def _published(config: EditingConfig, model: LanguageModel, layers: Layers) -> Published | None:
    """Find the second moments that take the corpus's place, if the configuration names any."""
    return None if config.moments is None else Published.of(model, config.moments, layers)


def _moments(
    model: LanguageModel,
    corpus: Corpus | None,
    published: Published | None,
    layers: Layers,
    config: EditingConfig,
    progress: bool,
) -> Moments:
    """Take C of some layers."""
    if published is not None:
        return published.read(model).matrices
    assert corpus is not None
    tokens = corpus_tokens(config, model)
    return second_moments(model, corpus, layers, config.corpus_length, tokens, progress=progress).matrices


def prepare(
    config: EditingConfig,
    questions: Callable[[Fact], Fact] | None = None,
    *,
    progress: bool = False,
    sketch: Places | None = None,
    opened: tuple[LanguageModel, Layers] | None = None,
) -> Experiment:
    """Load and check everything that a configuration names, but for a model that has been opened already."""
    check(config)
    templates = read_templates(config.templates) if config.templates else None
    corpus = _corpus(config)
    donor = donor_of(config, planned=sketch is not None)

    def contexts(model: LanguageModel) -> Templates:
        if templates is not None:
            return templates
        return TYPICAL_TEMPLATES if sketch is not None else sample_templates(model, config.seed)

    subject = load_subject(config, contexts, questions, sketch=sketch, opened=opened)
    model, layers = subject.model, subject.layers
    defaults = model.defaults(config.protocol)
    if corpus is not None and config.corpus_length > model.max_tokens:
        raise InputError(
            f"expected documents of at most {model.max_tokens} tokens, got ⟨corpus_length⟩ {config.corpus_length}: "
            f"{config.model} takes no longer ones"
        )
    overridden = {name: value for name, value in asdict(config.anchor).items() if value is not None}
    anchor = AnchorSettings(**{"lr": defaults.anchor_lr, "steps": defaults.anchor_steps} | overridden)
    ridge = defaults.ridge if config.ridge is None else config.ridge
    published = _published(config, model, layers)
    _note_corpus(config, ridge)
    places = {label: place for place, label in enumerate(subject.labels())}
    session = Session(
        rows=subject.rows,
        layers=layers,
        anchor=anchor,
        take_moments=partial(_moments, model, corpus, published, layers, config, progress),
        coordination=config.coordination,
        replay=config.replay,
        rules=config.rules if isinstance(config, EvaluationConfig) else RuleSettings(),
        fixed_ridge=ridge,
        damping=config.pullback_damping,
        seed=config.seed,
        batch_size=config.anchors_per_batch,
        apart=frozenset(places[label] for label in (donor.labels if donor else ()) if label in places),
        executor=subject.executor,
        progress=progress,
    )
    experiment = Experiment(
        **vars(subject),
        session=session,
        corpus=corpus,
        published=published,
        donor=donor,
        ridge=ridge,
    )
    if donor is not None:
        donated = facts_named(donor.labels, subject.facts, config.facts)
        donor.check(experiment.settings(), donated, model, planned=sketch is not None)
    return experiment


def _note_corpus(config: EditingConfig, ridge: float | None) -> None:
    """Say so where the literature's λ meets the C of the default corpus."""
    by_literature = ridge is not None and config.ridge is None and measured_protocol(config.protocol) is None
    if by_literature and config.moments is None and config.corpus == EditingConfig.corpus:
        note(
            f"λ = {ridge:g} is the literature's, which goes with C of Wikipedia; with C of the default corpus it has "
            "another strength: give a corpus, moments or a ridge"
        )


def _corpus(config: EditingConfig) -> Corpus | None:
    """Load the corpus, unless second moments take its place."""
    if config.moments is None:
        return load_corpus(config.corpus, seed=config.seed)
    check_moments(config.moments)
    if config.corpus != EditingConfig.corpus or config.corpus_tokens is not None:
        raise InputError("expected ⟨moments⟩, or ⟨corpus⟩ and ⟨corpus_tokens⟩, got both: they take each other's place")
    return None
