"""Causal traces of every fact, into a run."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

from jacobian_lab.catalogue import ROLES, TRACE_SITES, TraceSite
from jacobian_lab.facts.fact import Fact
from jacobian_lab.jobs.config import Above, ComputingConfig, Positive
from jacobian_lab.jobs.counts import Counts
from jacobian_lab.jobs.job import Job, Part, Preparation
from jacobian_lab.jobs.setup import load_subject
from jacobian_lab.maps.restorations import NOISE, SAMPLES, TracedPrompt, TraceSettings, traced_prompt, true_fact
from jacobian_lab.maps.tracing import embedding_deviation, trace_prompt
from jacobian_lab.maps.tracing_check import check_tracing
from jacobian_lab.model.devices import Places
from jacobian_lab.model.language_model import LanguageModel
from jacobian_lab.parallel.executor import Batch, called
from jacobian_lab.planning.work import Stage
from jacobian_lab.progress import bar
from jacobian_lab.store.completion import Completion
from jacobian_lab.store.run import Run


@dataclass(frozen=True)
class LocateConfig(ComputingConfig):
    """Causal traces of facts.

    Attributes:
        layers: Layers to restore, or to center windows on, as 4-8 or 4,6,8; all by default.
        sites: Restorations: residual (one hidden state), mlp or attention (their output in a window of layers),
            mlp-severed or attention-severed (one hidden state, while its token's MLPs, or attention, above stay
            corrupted).
        noise: Standard deviation of the noise on the subject's embeddings, over that of the embedding matrix.
        samples: Draws of the noise.
        window: Layers in which an MLP's or attention's output is restored at once; 10, or a third of the blocks where
            that is less, by default.
        recalled_only: Trace only facts whose answer is the model's own, as ROME does.

    Examples:
        >>> import jacobian_lab as jl
        >>> jl.LocateConfig(slice="0:4", samples=3).sites
        ('residual', 'mlp', 'attention')
    """

    layers: str | None = None
    sites: tuple[TraceSite, ...] = TRACE_SITES
    noise: Above = NOISE
    samples: Positive = SAMPLES
    window: Positive | None = None
    recalled_only: bool = False


def locate_job(config: LocateConfig, *, progress: bool = True, sketch: Places | None = None) -> Job:
    """Trace every fact, fact by fact."""
    subject = load_subject(config, questions=true_fact, sketch=sketch)
    model = subject.model
    settings = TraceSettings(
        layers=None if config.layers is None else subject.layers,
        sites=config.sites,
        noise=config.noise,
        samples=config.samples,
        window=config.window,
        seed=config.seed,
        recalled_only=config.recalled_only,
    ).of(model.n_layers)
    assert settings.layers is not None
    subject = replace(subject, layers=settings.layers)
    prompts, labels = [traced_prompt(model, fact) for fact in subject.facts], subject.labels()
    deviation = cache(lambda: embedding_deviation(model))

    def todo(done: Completion) -> list[int]:
        return [place for place, label in enumerate(labels) if not done.all("traced", fact=label)]

    def work(counts: Counts, places: Sequence[int]) -> Iterable[Stage]:
        yield counts.tracing([prompts[place] for place in places], settings)

    def compute(run: Run, places: Sequence[int]) -> None:
        named, traced = (
            partial(called, labels=labels),
            partial(_traced, model, subject.facts, prompts, settings, deviation()),
        )
        with bar(len(places), "traces", "fact", show=progress) as progress_bar:
            for (place,), values in subject.executor.map([[place] for place in places], traced, named=named):
                tokens = list(range(len(values["role"])))
                for name, value in values.items():
                    dims = {"token": tokens} if name in {"role", "effect"} else {}
                    run.write(name, value, fact=labels[place], **dims)
                run.commit("traced", fact=labels[place])
                progress_bar.update()

    return Job(
        "locate",
        model,
        config.out,
        subject.settings()
        | {
            "sites": list(settings.sites),
            "noise": settings.noise,
            "samples": settings.samples,
            "window": settings.window,
            "recalled_only": settings.recalled_only,
        },
        lambda: subject.provenance() | {"deviation": deviation(), "tokens": _texts(model, prompts)},
        {
            "fact": labels,
            "token": range(max(len(prompt.places) for prompt in prompts)),
            "layer": list(settings.layers),
            "site": list(settings.sites),
        },
        [Part(todo, compute, work)],
        before=Preparation(lambda _folder: check_tracing(model, subject.facts[0], prompts[0], settings, deviation())),
        executor=subject.executor,
    )


def _traced(
    model: LanguageModel,
    facts: Sequence[Fact],
    prompts: Sequence[TracedPrompt],
    settings: TraceSettings,
    deviation: float,
    piece: Batch,
) -> dict[str, Any]:
    """All that is stored of one fact's trace."""
    (place,) = piece
    traced = trace_prompt(model, facts[place], prompts[place], settings, deviation)
    return {
        "answer_clean": traced.clean,
        "answer_corrupted": traced.corrupted,
        "recalled": float(traced.recalled),
        "role": [1 + ROLES.index(role) for role in traced.roles],
        "effect": traced.effect,
    }


def _texts(model: LanguageModel, prompts: Sequence[TracedPrompt]) -> list[list[str]]:
    """Texts of the traced tokens, fact by fact."""
    return [[model.tokenizer.decode([prompt.ids[place]]) for place in prompt.places] for prompt in prompts]
