"""Another run whose anchors and shifts are taken instead of being optimized again."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from jacobian_lab.caching import content_key
from jacobian_lab.errors import InputError
from jacobian_lab.facts.fact import Fact, describe
from jacobian_lab.facts.reading import read_facts
from jacobian_lab.jobs.config import EditingConfig
from jacobian_lab.model.language_model import LanguageModel
from jacobian_lab.progress import note
from jacobian_lab.session.descents import REFIT_ANCHOR
from jacobian_lab.store.arrays import exists, open_arrays, read_config
from jacobian_lab.store.commands import command_of
from jacobian_lab.store.completion import Completion
from jacobian_lab.store.run import Run, check_same
from jacobian_lab.store.schema import KINDS

ANCHORS = ("model", "chat", "dtype", "facts", "templates", "anchor")
"""The settings that decide an anchor, but for rounding."""
ROUNDING = ("device", "versions")
"""Those that decide its rounding: anchors of a card may be edited with on a processor."""
OF_WEIGHTS = ("model", "templates")
"""Those of them that a model without weights does not tell."""

Settings = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Donor:
    """A run that anchors are taken from.

    Attributes:
        folder: Its folder.
        settings: Its settings.
        provenance: Its provenance.
        labels: Its facts.
        gone: Why it cannot be read, where it may not be needed any more.
    """

    folder: Path
    settings: Settings = field(default_factory=dict)
    provenance: Settings = field(default_factory=dict)
    labels: Sequence[Any] = ()
    gone: InputError | None = None

    @cached_property
    def finished(self) -> Completion:
        """Cells that it has finished."""
        if self.gone is not None:
            raise self.gone
        return Completion.of(self.folder)

    def check(self, own_settings: Settings, facts: Sequence[Fact], model: LanguageModel, *, planned: bool) -> None:
        """Hold the settings that decide its anchors against those of this job."""
        if self.gone is not None:
            return
        names = [name for name in ANCHORS if not (planned and name in OF_WEIGHTS)]
        own_settings = {**own_settings, "facts": content_key(describe(facts))}
        donated, here = ({n: settings[n] for n in names if n in settings} for settings in (self.settings, own_settings))
        check_same(donated, here, self.folder, "anchors_from")
        if self.provenance.get("splits") not in {None, splits_of(model, facts)}:  # none in runs of earlier versions
            versions = self.settings["versions"]
            raise InputError(
                f"expected facts that are split into the same tokens as in {self.folder}, got others: this version of "
                "transformers or tokenizers reads the tokenizer otherwise; take transformers "
                f"{versions['transformers']} and tokenizers {versions['tokenizers']}, or another ⟨anchors_from⟩"
            )
        donated, here = ({name: settings[name] for name in ROUNDING} for settings in (self.settings, own_settings))
        if donated != here:
            where = f"{donated['device']} with torch {donated['versions']['torch']}"
            note(f"anchors of {self.folder} were made on {where}: they round otherwise")

    def changed(self, own_settings: Settings, deciding: Sequence[str]) -> str:
        """Name the first setting of some that is another one here; '' if none is."""
        here = json.loads(json.dumps({name: own_settings[name] for name in deciding}))
        return next((name for name in deciding if here[name] != self.settings.get(name)), "")  # an older run lacks some

    def gives(
        self, name: str, where: Settings, labels: Sequence[Any], own_settings: Settings, deciding: Sequence[str]
    ) -> list[bool]:
        """Tell for which facts it has a descent's result that can be used here."""
        mark, shared = f"{name}_passes", [label for label in labels if label in self.labels]
        unusable = name == REFIT_ANCHOR or self.changed(own_settings, deciding)
        if unusable or not shared or not self.finished.has(mark, **where):
            return [False] * len(labels)
        cells = np.reshape(self.finished.cells(mark, fact=shared, **where), -1).tolist()
        done = {label for label, cell in zip(shared, cells, strict=True) if cell}
        return [label in done for label in labels]

    def give(self, run: Run, name: str, own_settings: Settings, deciding: Sequence[str]) -> None:
        """Copy what it has finished of a descent into a run that lacks it, and say so."""
        if name == REFIT_ANCHOR or self.folder.resolve() == run.folder.resolve():
            return
        _ = self.finished
        plural = f"{name}s".replace("_", " ")
        if changed := self.changed(own_settings, deciding):
            note(f"{plural} are optimised anew: those of {self.folder} were made with another {changed}")
            return
        note(f"{run.copy_from(self.folder, f'{name}_passes')} {plural} are those of {self.folder}")


def donor_of(config: EditingConfig, *, planned: bool) -> Donor | None:
    """Read the run that ⟨anchors_from⟩ names, if it names one."""
    folder = config.anchors_from
    if folder is None:
        return None
    try:
        donor = read_config(folder)
    except InputError as error:
        gone = InputError(f"{error}, or give another ⟨anchors_from⟩")
        if planned or (config.out is not None and not exists(config.out)):
            raise gone from error
        return Donor(folder, gone=gone)
    if "anchor" not in KINDS[donor["kind"]]:
        kind = command_of(donor["kind"])
        raise InputError(f"expected a run with anchors, got one of {kind} in {folder}: give another ⟨anchors_from⟩")
    return Donor(folder, donor["settings"], donor["provenance"], open_arrays(folder, "r").labels["fact"])


def facts_named(labels: Sequence[Any], facts: Sequence[Fact], source: str) -> list[Fact]:
    """The facts that another run names, as far as there are such among own_settings, or else in the same file."""
    by_id = {str(fact.id): fact for fact in facts}
    if any(str(label) not in by_id for label in labels):
        whole = read_facts(source, on_bad_record="skip", on_repeat="first")
        by_id = {str(fact.id): fact for fact in whole.facts} | by_id
    return [by_id[str(label)] for label in labels if str(label) in by_id]


def splits_of(model: LanguageModel, facts: Sequence[Fact]) -> str:
    """Digest the tokens that facts are split into, of which the model's fingerprint tells a sample text alone."""
    rows = [model.fact_prompt(fact, answer=True) for fact in facts]
    return content_key([[row.ids, row.decisive, row.answer] for row in rows])
