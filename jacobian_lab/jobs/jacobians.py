"""J_{l→L} of every fact and layer: spectra, verdicts and yardsticks, into a run."""

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from jacobian_lab.errors import InputError
from jacobian_lab.facts.fact import Fact
from jacobian_lab.facts.sampling import sample
from jacobian_lab.jobs.config import JacobianConfig, SchemesConfig
from jacobian_lab.jobs.counts import Counts
from jacobian_lab.jobs.job import Job, Part
from jacobian_lab.jobs.setup import Subject, load_subject
from jacobian_lab.maps.conditions import (
    Eigenspaces,
    cosine,
    eigen_residual,
    eigenspaces,
    eigenvector_angle,
    gain,
    plane_angle,
    rayleigh_quotient,
)
from jacobian_lab.maps.definiteness import (
    WIDEST_DENSE,
    WIDEST_ON_CARD,
    Verdict,
    definiteness_matrix_free,
    in_double,
    is_positive_definite,
    largest_singular_value,
    positive_share,
    symmetric_part,
    verdict_of,
)
from jacobian_lab.maps.jacobians import MEMORY_BUDGET, dense_jacobians, jvp, linear_operator, precision, to_numpy
from jacobian_lab.maps.replay import RESIDUAL, Frozen, Site, freeze
from jacobian_lab.maps.spectra import henrici_departure, rotation
from jacobian_lab.model.devices import Places
from jacobian_lab.model.language_model import LanguageModel, Layers
from jacobian_lab.parallel.executor import Batch, called
from jacobian_lab.planning.work import Stage
from jacobian_lab.progress import bar, note
from jacobian_lab.store.completion import Completion
from jacobian_lab.store.run import Run
from jacobian_lab.store.schema import DECISIONS, RANDOM_DIRECTIONS

SAMPLED, SAMPLED_WIDE = 64, 4
"""For how many facts eigenvectors of J are sought by default: up to a width of `WIDEST_DENSE`, and above it unless the
matrix is asked for."""


SurveyKind = Literal["dense", "lanczos"]


@dataclass(frozen=True)
class Survey:
    """Choice of how closely the Jacobians of a run are examined.

    Eigenvalues of S and singular values come from the matrix, on the model's device, or by Lanczos from products alone.
    Eigenvectors of J come from the matrix on the CPU, where they take most of the time (its cube grows eightfold with
    twice the width), so that they are sought for a sample of the facts. What is found of a fact is the same whether
    others are in the sample or not.

    Attributes:
        kind: Whether the facts outside the sample are surveyed by the matrix or by Lanczos.
        sample: Places of the facts whose eigenvectors are sought.
        seed: Seed of Lanczos.
    """

    kind: SurveyKind
    sample: frozenset[int]
    seed: int

    @classmethod
    def of(
        cls, config: JacobianConfig | SchemesConfig, width: int, facts: Sequence[Fact], device: torch.device
    ) -> "Survey":
        """Resolve a configuration for a model and facts."""
        own, choice = cls.by_width(width, device, config.seed), config.survey
        kind = own.kind if choice in {"auto", "none"} else cast("SurveyKind", choice)
        many = SAMPLED if choice == "dense" or width <= WIDEST_DENSE else SAMPLED_WIDE
        count = 0 if choice == "lanczos" else many
        count = count if config.survey_facts is None else config.survey_facts
        return cls(kind, frozenset(sample(facts, count, config.seed)), config.seed)

    @classmethod
    def by_width(cls, width: int, device: torch.device, seed: int) -> "Survey":
        """Take the matrix unless that is too wide, and seek eigenvectors of no fact."""
        wide = width > (WIDEST_ON_CARD if device.type == "cuda" else WIDEST_DENSE)
        return cls("lanczos" if wide else "dense", frozenset(), seed)

    def forms(self, place: int) -> bool:
        """Tell whether the matrix of a fact is formed."""
        return self.kind == "dense" or place in self.sample

    def settings(self) -> dict[str, Any]:
        """Settings that decide a number, as they stand in ``config.json``."""
        return {"survey": self.kind, "survey_facts": len(self.sample)}

    def formed(self, facts: int) -> int:
        """Count the facts whose matrix is formed."""
        return sum(self.forms(place) for place in range(facts))

    def say(self, facts: int) -> None:
        """Say on stderr what is not sought of every fact."""
        if len(self.sample) == facts:
            return
        if self.kind == "lanczos":
            note(f"J is surveyed by products alone (λ_min, λ_max, σ_max) but for {len(self.sample)} of {facts} facts")
        else:
            note(f"J's own eigenvectors are sought for {len(self.sample)} of {facts} facts (survey_facts)")


def jacobian_job(config: JacobianConfig, *, progress: bool = True, sketch: Places | None = None) -> Job:
    """Survey the Jacobians of every fact and layer, fact by fact."""
    subject = load_subject(config, sketch=sketch)
    model, layers = subject.model, subject.layers
    how = Survey.of(config, model.d_model, subject.facts, subject.device)
    if len(layers) == 1:
        raise InputError(f"expected at least two layers, l and L, got only {layers[0]}: give them as 4-8")
    part = survey_part(
        subject, how, site=config.site, budget=int(config.sweep_memory * 2**30), progress=progress, say=True
    )
    return Job(
        "jacobian",
        model,
        config.out,
        subject.settings() | {"site": config.site} | how.settings(),
        subject.provenance,
        {"fact": subject.labels(), "layer": list(layers[:-1]), "rank": range(model.d_model)},
        [part],
        executor=subject.executor,
    )


def survey_part(
    subject: Subject,
    how: Survey,
    *,
    site: Site = RESIDUAL,
    budget: int = MEMORY_BUDGET,
    progress: bool = True,
    say: bool = False,
) -> Part:
    """Describe the part of a run with spectra, verdicts and yardsticks; one fact's Jacobians are held at a time."""
    layers, labels = subject.layers, subject.labels()

    def todo(done: Completion) -> list[int]:
        return [place for place, label in enumerate(labels) if not done.all("surveyed", fact=label)]

    def work(counts: Counts, places: Sequence[int]) -> Iterable[Stage]:
        formed, sampled = sum(map(how.forms, places)), len(how.sample & set(places))
        yield counts.survey([subject.rows.bare[place] for place in places], layers, formed, sampled, budget)

    def compute(run: Run, places: Sequence[int]) -> None:
        if len(layers) == 1:  # J of the last layer to itself is the identity
            run.commit("surveyed")
            return
        if say:
            how.say(len(labels))
        named = partial(called, labels=labels)
        survey = partial(surveyed_conditions, subject.model, subject.facts, layers, how, site, budget)
        with bar(len(places), "Jacobians", "fact", show=progress) as progress_bar:
            for (place,), by_layer in subject.executor.map([[place] for place in places], survey, named=named):
                for layer, conditions in zip(layers, by_layer, strict=False):
                    for name in conditions.keys() & run.variables.keys():
                        run.write(name, conditions[name], fact=labels[place], layer=layer)
                run.commit("surveyed", fact=labels[place])
                progress_bar.update()

    return Part(todo, compute, work)


def surveyed_conditions(
    model: LanguageModel, facts: Sequence[Fact], layers: Layers, how: Survey, site: Site, budget: int, piece: Batch
) -> list[dict[str, Any]]:
    """Examine one fact's Jacobians, layer by layer, on the model as it is: all that is stored of each."""
    (place,) = piece
    frozen = freeze(model, [model.fact_prompt(facts[place]).cut()], layers[:-1], layers[-1])
    seeds = (how.seed, zlib.crc32(facts[place].text.encode()))  # so that a fact's directions are its own in any slice
    if not how.forms(place):
        return [_matrix_free(frozen, layer, layers[-1], seeds, site) for layer in layers[:-1]]
    eps = precision(model.dtype)
    sweep = dense_jacobians(frozen, layers[:-1], layers[-1], site=site, budget=budget)[0]
    return [
        dense_conditions(J, (*seeds, layer), eps, eigenvectors=place in how.sample)
        for layer, J in zip(layers, sweep, strict=False)
    ]


def dense_conditions(
    J: Float[Tensor, "d d"], seed: int | Sequence[int], eps: float, *, eigenvectors: bool = True
) -> dict[str, Any]:
    """All that is stored of one Jacobian, from the dense matrix."""
    double, matrix = in_double(J), to_numpy(J)
    singular = to_numpy(torch.linalg.svdvals(double))
    S = symmetric_part(double)
    verdict, random = verdict_of(S, eps, singular[0]), _directions(seed, len(matrix))
    conditions = _verdict(verdict) | _yardsticks(random, random @ matrix.T)
    conditions |= {
        "cholesky": float(is_positive_definite(S)),
        "positive_share": positive_share(verdict.eigenvalues),
        "sigma_max": singular[0],
        "sigma_min": singular[-1],
        "rotation": rotation(matrix),
        "symmetric_eigenvalue": verdict.eigenvalues,
        "singular_value": singular,
    }
    return conditions | (_eigen_conditions(matrix, eigenspaces(matrix), random) if eigenvectors else {})


def _eigen_conditions(
    J: Float[np.ndarray, "d d"], spaces: Eigenspaces, random: Float[np.ndarray, "direction d"]
) -> dict[str, Any]:
    """Compute what is stored of J's own eigenvalues and eigenvectors."""
    own = eigen_residual(spaces.lines, spaces.lines @ J.T)
    order = np.argsort(spaces.values.real)
    return {
        "spectral_radius": np.abs(spaces.values).max(),
        "henrici": henrici_departure(J, spaces.values),
        "eigenvector_count": len(spaces.lines),
        "eigenvector_residual": own.max() if len(own) else np.nan,
        "eigenvector_positive": (spaces.values[spaces.values.imag == 0].real > 0).mean() if len(own) else np.nan,
        "random_eigenvector_angle": eigenvector_angle(spaces, random).mean(),
        "random_plane_angle": plane_angle(spaces, random).mean(),
        "eigenvalue_real": spaces.values.real[order],
        "eigenvalue_imag": spaces.values.imag[order],
    }


def _matrix_free(frozen: Frozen, layer: int, last: int, seeds: tuple[int, int], site: Site) -> dict[str, Any]:
    """Compute what is stored of one Jacobian from products alone; seeds are the run's and the fact's."""
    J = linear_operator(frozen, 0, layer, last, site=site)
    norm = largest_singular_value(J, seed=seeds[0])
    verdict = definiteness_matrix_free(J, norm, seed=seeds[0], eps=precision(frozen.model.dtype))
    random = _directions((*seeds, layer), J.shape[0])
    repeated = frozen.select(torch.zeros(RANDOM_DIRECTIONS, dtype=torch.long, device=frozen.start.device))
    pushed = jvp(repeated, layer, last, torch.from_numpy(random).to(frozen.start.device), site=site)
    return _verdict(verdict) | _yardsticks(random, to_numpy(pushed)) | {"sigma_max": norm}


def _directions(seed: int | Sequence[int], width: int) -> Float[np.ndarray, "direction d"]:
    return np.random.default_rng(seed).standard_normal((RANDOM_DIRECTIONS, width))


def _yardsticks(random: Float[np.ndarray, "direction d"], pushed: Float[np.ndarray, "direction d"]) -> dict[str, Any]:
    """Yardsticks: what J makes of random directions."""
    return {
        "random_rayleigh": rayleigh_quotient(random, pushed).mean(),
        "random_gain": gain(random, pushed).mean(),
        "random_cosine": cosine(random, pushed).mean(),
        "random_positive": (cosine(random, pushed) > 0).mean(),
        "random_residual": eigen_residual(random, pushed).mean(),
    }


def _verdict(verdict: Verdict) -> dict[str, Any]:
    return {
        "lambda_min": verdict.smallest,
        "lambda_max": verdict.largest,
        "lambda_error": verdict.error,
        "decision": DECISIONS[verdict.decision],
        "margin": verdict.margin,
    }
