"""Shares of a layer's shift that other contexts get, and answers where shifts are imposed, into a run."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from jacobian_lab.catalogue import PROMPT_GROUPS, SCHEMES, paired
from jacobian_lab.editing.imposing import imposed_shifts
from jacobian_lab.editing.layers import KEYS_AT_ONCE, averaged_keys
from jacobian_lab.editing.solving import advice, factored
from jacobian_lab.editing.transfer import Solve, transferred
from jacobian_lab.errors import InputError
from jacobian_lab.evaluation.imposed import imposed_answers
from jacobian_lab.evaluation.metrics import Answers, answers, predicting_states
from jacobian_lab.facts.fact import Fact
from jacobian_lab.jobs.config import EditingConfig
from jacobian_lab.jobs.counts import Counts
from jacobian_lab.jobs.experiment import Experiment, prepare
from jacobian_lab.jobs.job import Job, Labels, Part, each_cell, unfinished
from jacobian_lab.jobs.recording import Recorded, descents
from jacobian_lab.maps.hooks import batches, capture, forward
from jacobian_lab.maps.stepwise import decisive_keys
from jacobian_lab.model.devices import Places
from jacobian_lab.model.language_model import LanguageModel
from jacobian_lab.model.rows import fact_rows
from jacobian_lab.model.templates import TYPICAL_TEMPLATES, read_templates, sample_templates
from jacobian_lab.model.tokens import BARE, Prompt
from jacobian_lab.planning.work import Stage, total
from jacobian_lab.progress import bar, counted
from jacobian_lab.session.session import any_coordinated
from jacobian_lab.store.run import Run

ImposedScheme = Literal["backward-dividing", "forward-replay", "coordinated-replay"]
"""A scheme whose target is a sum of shifts: the last layer's anchor, the first layer's, or coordinated ones."""
SEEN, HELD_OUT, PARAPHRASE, NEIGHBORHOOD = PROMPT_GROUPS


@dataclass(frozen=True)
class TransferConfig(EditingConfig):
    """Shares of a layer's shift that other contexts get, and answers where shifts are imposed.

    Attributes:
        schemes: Schemes whose shifts are imposed, and that edit for comparison, by MEMIT's rule.
        shares: Shares of the shifts that are imposed.
        held_out_templates: File of templates that are held out; sampled with the next seed by default.

    Examples:
        >>> import jacobian_lab as jl
        >>> jl.TransferConfig(slice="0:4", shares=(1.0, 0.8)).shares
        (1.0, 0.8)
    """

    schemes: tuple[ImposedScheme, ...] = get_args(ImposedScheme)
    shares: tuple[float, ...] = (1.0, 0.9, 0.8, 0.65, 0.5)
    held_out_templates: Path | None = None


@dataclass(frozen=True, eq=False)
class Prompts:
    """Prompts of every fact, by group and place, such as ``"paraphrase 1"``.

    Attributes:
        model: The model.
        by_fact: Rows of each fact by their labels, with answers but for the neighborhood's.
    """

    model: LanguageModel
    by_fact: Sequence[Mapping[str, Prompt]]

    @classmethod
    def of(cls, experiment: Experiment, held_out: Sequence[str]) -> "Prompts":
        """Make the rows of all prompts."""
        model, rows = experiment.model, experiment.rows
        held = fact_rows(model, rows.facts, (tuple(held_out),)).answered_contexts
        groups = [
            {
                SEEN: contexts,
                HELD_OUT: others,
                PARAPHRASE: tuple(_paraphrases(model, fact)),
                NEIGHBORHOOD: tuple(model.text_prompt(text) for text in fact.neighborhood_prompts),
            }
            for fact, contexts, others in zip(rows.facts, rows.answered_contexts, held, strict=True)
        ]
        return cls(model, [{f"{g} {at}": row for g, own in of.items() for at, row in enumerate(own)} for of in groups])

    @cached_property
    def labels(self) -> list[str]:
        """Labels of the prompts that any fact has, group by group."""
        held = {label for rows in self.by_fact for label in rows}
        return sorted(held, key=lambda label: (PROMPT_GROUPS.index(_group(label)), int(label.rpartition(" ")[2])))

    def within(self, *groups: str) -> tuple[list[tuple[int, int]], list[Prompt]]:
        """List places, fact and prompt, and rows of some groups."""
        at = {label: place for place, label in enumerate(self.labels)}
        cells = [
            ((fact, at[label]), row)
            for fact, rows in enumerate(self.by_fact)
            for label, row in rows.items()
            if _group(label) in groups
        ]
        return [place for place, _ in cells], [row for _, row in cells]

    def spread(self, places: Sequence[tuple[int, int]], values: Float[Tensor, " cell"]) -> np.ndarray:
        """Put values at their places, ``[fact, prompt]``, NaN elsewhere."""
        whole = np.full((len(self.by_fact), len(self.labels)), np.nan)
        whole[tuple(np.array(places, dtype=int).reshape(-1, 2).T)] = values.cpu().numpy()
        return whole


def _group(label: str) -> str:
    return label.rpartition(" ")[0]


def _paraphrases(model: LanguageModel, fact: Fact) -> Iterator[Prompt]:
    """Rows of the paraphrases that name the subject, with the answer; others have no decisive token."""
    for text in fact.paraphrase_prompts:
        before, subject, after = text.rpartition(fact.subject)
        if subject and BARE not in before:
            with suppress(InputError):
                yield model.fact_prompts(replace(fact, prompt=f"{before}{BARE}{after}"))[1]


def held_out_texts(config: TransferConfig, experiment: Experiment, sketch: Places | None) -> list[str]:
    """Choose templates beside those that the key is averaged over."""
    if config.held_out_templates is not None:
        templates = read_templates(config.held_out_templates)
    else:
        templates = TYPICAL_TEMPLATES if sketch is not None else sample_templates(experiment.model, config.seed + 1)
    averaged = {text for group in experiment.templates for text in group}
    texts = [text for text in dict.fromkeys(text for group in templates for text in group) if text not in averaged]
    if not texts and sketch is None:
        raise InputError(
            "expected templates beside those that keys are averaged over, got none: give other ⟨held_out_templates⟩"
        )
    return texts or list(TYPICAL_TEMPLATES[1])


def layer_shares(experiment: Experiment, prompts: Prompts, layer: int) -> dict[str, np.ndarray]:
    """Measure at one layer of the unedited model which share of its shift each prompt gets."""
    setting = experiment.session.setting
    own = averaged_keys(experiment.rows, layer, experiment.executor)
    moment = setting.moments[layer].to(own.device)
    matrix = factored(
        setting.ridge * moment + own.T @ own, f"λC + K Kᵀ at layer {layer}", advice(moment, setting.ridge)
    )
    solved = matrix.solve(own.T)

    def solve_for(facts: Sequence[int]) -> Solve:
        return lambda _keys: solved[:, list(facts)]

    places, rows = prompts.within(SEEN, HELD_OUT, PARAPHRASE)
    around, texts = prompts.within(NEIGHBORHOOD)
    shares = own.new_empty(len(rows))
    for start in range(0, len(rows), KEYS_AT_ONCE):
        part = slice(start, start + KEYS_AT_ONCE)
        facts = [fact for fact, _ in places[part]]
        keys = decisive_keys(prompts.model, [row.cut() for row in rows[part]], layer).to(own)
        shares[part] = transferred(own[facts], keys[:, None], solve_for(facts))[:, 0]
    largest = own.new_empty(len(texts))
    for group in batches(texts):
        facts = [around[text][0] for text in group]
        keys, inside = _every_key(prompts.model, [texts[text] for text in group], layer)
        every = transferred(own[facts], keys.to(own), solve_for(facts)).masked_fill(~inside, 0.0)
        largest[group] = every.gather(1, every.abs().argmax(1, keepdim=True))[:, 0]
    return {
        "transferred": prompts.spread([*places, *around], torch.cat([shares, largest])),
        "own_share": (own * solved.T).sum(-1).cpu().numpy(),
        "ease": setting.ease(layer, own).cpu().numpy(),
    }


@torch.no_grad()
def _every_key(model: LanguageModel, rows: Sequence[Prompt], layer: int) -> tuple[Tensor, Tensor]:
    """Keys of all tokens of rows, and which of them are no padding."""
    with capture(model, keys=[layer]) as record:
        forward(model, rows, stop=layer)
    keys = record.keys[layer].view(len(rows), -1, model.d_mlp)
    lengths = torch.tensor([len(row.ids) for row in rows], device=keys.device)
    return keys, torch.arange(keys.shape[1], device=keys.device) < lengths[:, None]


def transfer_job(config: TransferConfig, *, progress: bool = True, sketch: Places | None = None) -> Job:
    """Measure shares layer by layer; then impose each scheme's shifts, and edit with it."""
    experiment = prepare(config, questions=lambda fact: fact, progress=progress, sketch=sketch)
    session, rows, layers, model = experiment.session, experiment.rows, experiment.layers, experiment.model
    held_out = held_out_texts(config, experiment, sketch)
    prompts = Prompts.of(experiment, held_out)
    places, asked_rows = prompts.within(SEEN, HELD_OUT, PARAPHRASE)
    shares = list(dict.fromkeys(config.shares))
    shifted = list[Labels]([{}]) if any_coordinated(config.schemes) else list[Labels]()
    by_layer, by_scheme = [{"layer": layer} for layer in layers], [{"scheme": scheme} for scheme in config.schemes]

    def share(run: Run, left: Sequence[Labels]) -> None:
        with bar(len(left), "shares", "layer", show=progress) as progress_bar:
            for cell in left:
                for name, values in layer_shares(experiment, prompts, cell["layer"]).items():
                    run.write(name, values, **cell)
                run.commit("shared", **cell)
                progress_bar.update()

    def compute(run: Run, left: Sequence[Labels]) -> None:
        recorder = Recorded(run, experiment)
        targets = session.targets(recorder, config.schemes)
        shifts = session.shifts(recorder) if shifted else None
        facts = [fact for fact, _ in places]

        def values_of(scored: Answers, scheme: str) -> tuple[np.ndarray, np.ndarray]:
            finite = targets.finite(SCHEMES[scheme].kind).to(scored.nll.device)[facts]
            right = (scored.share == 1).double()
            every = (torch.where(finite, values, torch.nan) for values in (right, scored.nll))
            accuracy, nll = (prompts.spread(places, values) for values in every)
            return accuracy, nll

        def impose(scheme: str) -> Iterator[tuple[str, Any, Labels]]:
            own = imposed_shifts(rows, targets, SCHEMES[scheme].kind, shifts)
            along = {layer: shift[facts] for layer, shift in own.items()}
            imposed = imposed_answers(model, asked_rows, along, shares)
            for factor, scored in zip(shares, imposed, strict=True):
                accuracy, nll = values_of(scored, scheme)
                yield "imposed_accuracy", accuracy, {"share": factor}
                yield "imposed_nll", nll, {"share": factor}
            with session.edited(paired("memit", scheme), targets):
                scored = answers(model, asked_rows, predicting_states(model, asked_rows))
            accuracy, nll = values_of(scored, scheme)
            yield "edited_accuracy", accuracy, {}
            yield "edited_nll", nll, {}

        each_cell(run, "measured", left, impose, "schemes", "scheme", progress)

    def sharing(counts: Counts, left: Sequence[Labels]) -> Iterable[Stage]:
        _, every = prompts.within(*PROMPT_GROUPS)
        work = total(
            counts.keys(rows, (cell["layer"],)) + counts.forward(every, cell["layer"] + 1) + counts.solves(1, len(rows))
            for cell in left
        )
        yield counts.editing(f"shares at {counted(len(left), 'layer')}", work, 1, rows)

    def imposing(counts: Counts, left: Sequence[Labels]) -> Iterable[Stage]:
        work = total(
            counts.imposition(asked_rows, layers[-1] if scheme == "backward-dividing" else layers[0], len(shares))
            + counts.edit(rows, SCHEMES[scheme], layers, observed=False)
            + counts.evaluation([asked_rows])
            for scheme in (cell["scheme"] for cell in left)
        )
        name = f"shifts of {counted(len(left), 'scheme')}, imposed and edited"
        yield counts.editing(name, work, len(layers), rows, parts=[asked_rows])

    return Job(
        "transfer",
        model,
        config.out,
        experiment.settings() | {"shares": shares, "held_out_templates": held_out},
        experiment.solved,
        {
            "fact": experiment.labels(),
            "layer": list(layers),
            "scheme": list(get_args(ImposedScheme)),
            "share": shares,
            "prompt": prompts.labels,
            "anchor_layer": list(session.anchor_layers),
            "d_model": range(model.d_model),
        },
        [
            Part(lambda done: unfinished(done, "shared", by_layer), share, sharing),
            descents(experiment, session.anchor_layers, shifted),
            Part(lambda done: unfinished(done, "measured", by_scheme), compute, imposing),
        ],
        before=experiment.preparation(),
        descents=session.descent_dtype,
        executor=experiment.executor,
    )
