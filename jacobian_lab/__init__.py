"""Why an edit of a language model's knowledge works, layer by layer.

The toolkit implements and extends "From Backward Spreading to Forward Replay" (arXiv 2605.00358v2). What is listed here
is its public face; each name is imported when it is first asked for.
"""

import warnings
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jacobian_lab.applying import apply as apply
    from jacobian_lab.catalogue import METHODS as METHODS
    from jacobian_lab.catalogue import SCHEMES as SCHEMES
    from jacobian_lab.editing.anchors import coordinate_shifts as coordinate_shifts
    from jacobian_lab.editing.anchors import optimize_anchors as optimize_anchors
    from jacobian_lab.editing.deltas import load_delta as load_delta
    from jacobian_lab.editing.rules import RULES as RULES
    from jacobian_lab.editing.rules import RuleSettings as RuleSettings
    from jacobian_lab.editing.schemes import make_targets as make_targets
    from jacobian_lab.editing.second_moments import second_moments as second_moments
    from jacobian_lab.editing.settings import AnchorSettings as AnchorSettings
    from jacobian_lab.editing.settings import CoordinationSettings as CoordinationSettings
    from jacobian_lab.editing.settings import ReplaySettings as ReplaySettings
    from jacobian_lab.editor import Editor as Editor
    from jacobian_lab.errors import InputError as InputError
    from jacobian_lab.facts.fact import Fact as Fact
    from jacobian_lab.facts.reading import load_facts as load_facts
    from jacobian_lab.jobs.config import AnchorConfig as AnchorConfig
    from jacobian_lab.jobs.config import DampingConfig as DampingConfig
    from jacobian_lab.jobs.config import EditConfig as EditConfig
    from jacobian_lab.jobs.config import EditTableConfig as EditTableConfig
    from jacobian_lab.jobs.config import FrontierConfig as FrontierConfig
    from jacobian_lab.jobs.config import JacobianConfig as JacobianConfig
    from jacobian_lab.jobs.config import LayerCountConfig as LayerCountConfig
    from jacobian_lab.jobs.config import SchemesConfig as SchemesConfig
    from jacobian_lab.jobs.locating import LocateConfig as LocateConfig
    from jacobian_lab.jobs.sequence_config import SequenceConfig as SequenceConfig
    from jacobian_lab.jobs.transferring import TransferConfig as TransferConfig
    from jacobian_lab.jobs.tune_config import TuneConfig as TuneConfig
    from jacobian_lab.maps.conditions import eigenspaces as eigenspaces
    from jacobian_lab.maps.definiteness import definiteness as definiteness
    from jacobian_lab.maps.operator import Jacobian as Jacobian
    from jacobian_lab.maps.replay import freeze as freeze
    from jacobian_lab.maps.replay import replay as replay
    from jacobian_lab.maps.tracing import trace as trace
    from jacobian_lab.maps.words import read_out as read_out
    from jacobian_lab.model.corpus import load_corpus as load_corpus
    from jacobian_lab.model.language_model import LanguageModel as LanguageModel
    from jacobian_lab.model.loading import load_model as load_model
    from jacobian_lab.model.rows import fact_rows as fact_rows
    from jacobian_lab.model.templates import sample_templates as sample_templates
    from jacobian_lab.runs import open_run as open_run
    from jacobian_lab.runs import run as run
    from jacobian_lab.runs import run_jacobians as run_jacobians
    from jacobian_lab.runs import run_methods as run_methods
    from jacobian_lab.runs import run_schemes as run_schemes
    from jacobian_lab.training.wise_memory import load_wise as load_wise

__version__ = version(__name__)

_HOMES = {
    "AnchorConfig": "jobs.config",
    "AnchorSettings": "editing.settings",
    "CoordinationSettings": "editing.settings",
    "DampingConfig": "jobs.config",
    "EditConfig": "jobs.config",
    "EditTableConfig": "jobs.config",
    "Editor": "editor",
    "Fact": "facts.fact",
    "FrontierConfig": "jobs.config",
    "InputError": "errors",
    "Jacobian": "maps.operator",
    "JacobianConfig": "jobs.config",
    "LanguageModel": "model.language_model",
    "METHODS": "catalogue",
    "ReplaySettings": "editing.settings",
    "RULES": "editing.rules",
    "RuleSettings": "editing.rules",
    "SCHEMES": "catalogue",
    "LayerCountConfig": "jobs.config",
    "LocateConfig": "jobs.locating",
    "SchemesConfig": "jobs.config",
    "SequenceConfig": "jobs.sequence_config",
    "TransferConfig": "jobs.transferring",
    "TuneConfig": "jobs.tune_config",
    "apply": "applying",
    "coordinate_shifts": "editing.anchors",
    "definiteness": "maps.definiteness",
    "eigenspaces": "maps.conditions",
    "fact_rows": "model.rows",
    "freeze": "maps.replay",
    "load_corpus": "model.corpus",
    "load_delta": "editing.deltas",
    "load_facts": "facts.reading",
    "load_wise": "training.wise_memory",
    "load_model": "model.loading",
    "make_targets": "editing.schemes",
    "open_run": "runs",
    "optimize_anchors": "editing.anchors",
    "read_out": "maps.words",
    "replay": "maps.replay",
    "run": "runs",
    "run_jacobians": "runs",
    "run_methods": "runs",
    "run_schemes": "runs",
    "sample_templates": "model.templates",
    "second_moments": "editing.second_moments",
    "trace": "maps.tracing",
}

__all__ = sorted(_HOMES)

_OLD_NAMES = {"optimise_anchors": "optimize_anchors", "load_memory": "load_wise"}
"""Names of earlier versions; they go on working, with a warning that says the new one."""


def __getattr__(name: str) -> Any:
    if name in _OLD_NAMES:
        warnings.warn(f"{name} is now {_OLD_NAMES[name]}", DeprecationWarning, stacklevel=2)
        name = _OLD_NAMES[name]
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
