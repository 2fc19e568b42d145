"""What a user can say: configurations, with the checks that need nothing loaded."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path

from jacobian_lab.editing.anchors import AnchorSettings
from jacobian_lab.editing.schemes import DAMPING, SCHEMES
from jacobian_lab.errors import InputError
from jacobian_lab.facts.reading import BUILTIN
from jacobian_lab.model.corpus import PYTHON_DOCS
from jacobian_lab.model.language_model import Layers
from jacobian_lab.model.sources import DEFAULT_MODEL

DENSE, LANCZOS = "dense", "lanczos"
METHODS = (DENSE, LANCZOS)
"""How a Jacobian is surveyed; Lanczos for models whose J is too large to hold."""
SURVEYS = (*METHODS, "none")

DIGITS = 3
"""Digits that the number of a layer has at the most."""


@dataclass(frozen=True)
class SubjectConfig:
    """A model, and the facts and layers that are looked at.

    Attributes:
        model: An embedded model's name (smollm2-135m), a folder, a .gguf file, or a name on the hub.
        facts: "builtin", or a JSON or JSON Lines file of facts.
        slice: Which of the facts, as A:B; all of them by default.
        on_bad_record: refuse the facts if a record cannot be used, or skip it.
        on_repeat: refuse facts that come more than once, or edit each once, as the first or last record says.
        layers: Decisive layers, the last of them L, as 4-8 or 4,6,8.
        chat: Whether prompts are put into the model's own chat template, as the user's turn that the answer follows.
        protocol: Known model whose settings of the literature to use, such as gpt2-xl; the model's own by default.
        seed: Seed of all that is sampled: templates, the bootstrap, random directions.
        device: auto, cpu, cuda or cuda:N.
        dtype: float32, float64, bfloat16 or float16.
        out: Folder of the run; runs/<hash of the settings> by default.
    """

    model: str = DEFAULT_MODEL
    facts: str = BUILTIN
    slice: str | None = None
    on_bad_record: str = "refuse"
    on_repeat: str = "refuse"
    layers: str | None = None
    chat: bool = False
    protocol: str | None = None
    seed: int = 0
    device: str = "auto"
    dtype: str = "float32"
    out: Path | None = None


@dataclass(frozen=True)
class EditingConfig(SubjectConfig):
    """What edits of facts are made with.

    Whatever is not given suits the model at hand.

    Attributes:
        templates: File of context templates, [["{}"], ["... {}", ...]]; sampled from the seed by default.
        corpus: Text for the second moment: "python-docs", a file with one document a line, or a data set's name.
        corpus_length: Tokens of a document at the most.
        corpus_tokens: Tokens in all; the whole corpus by default.
        ridge: Weight of the second moment in the solve.
        pullback_damping: Weight μ of the shift's norm in the scheme jacobian-pullback.
        anchor_lr: Adam's learning rate for the anchors.
        anchor_steps: Passes of the anchors' optimisation.
        anchor_weight_decay: Weight of the anchor's norm in the loss.
        anchor_kl_factor: Weight of the KL divergence in the loss.
        anchor_clamp: Largest norm of the anchor's shift, as a share of the state's.
        batch_size: Facts optimised side by side at the most; changes no number beyond rounding.
    """

    templates: Path | None = None
    corpus: str = PYTHON_DOCS
    corpus_length: int = 256
    corpus_tokens: int | None = None
    ridge: float | None = None
    pullback_damping: float = DAMPING
    anchor_lr: float | None = None
    anchor_steps: int | None = None
    anchor_weight_decay: float = AnchorSettings.weight_decay
    anchor_kl_factor: float = AnchorSettings.kl_factor
    anchor_clamp: float = AnchorSettings.clamp
    batch_size: int = 16


@dataclass(frozen=True)
class ExperimentConfig(EditingConfig):
    """Edits of facts under target schemes.

    Whatever is not given suits the model at hand.

    Attributes:
        schemes: Target schemes to measure.
        survey: How J is surveyed: dense, lanczos (extreme eigenvalues only, for wide models) or none.
    """

    schemes: tuple[str, ...] = tuple(SCHEMES)
    survey: str = DENSE


def parse_layers(text: str) -> Layers:
    """Read decisive layers.

    Args:
        text: ``"4-8"``, ``"4,6,8"`` or ``"8"``.

    Returns:
        The layers.

    Raises:
        InputError: If it is not of this form or does not ascend.
    """
    layers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or max(len(first), len(last)) > DIGITS:
            raise InputError(f"expected layers as 4-8 or 4,6,8, got {text!r}: give whole numbers")
        span = range(int(first), int(last or first) + 1)
        layers.extend(span or [int(first), int(last)])
    if layers != sorted(set(layers)):
        raise InputError(f"expected ascending layers, got {text!r}: give them from the lowest to the highest, as 4-8")
    return tuple(layers)


def _check_config(config: EditingConfig) -> None:
    """What can be refused before anything is loaded."""
    if isinstance(config, ExperimentConfig):
        _check_schemes(config)
    if config.anchor_steps == 1:
        raise InputError("expected at least 2 passes, got --anchor-steps 1: the first one makes no update")
    positive = (
        "corpus_length",
        "corpus_tokens",
        "anchor_lr",
        "anchor_steps",
        "anchor_clamp",
        "batch_size",
        "pullback_damping",
        "held_out_tokens",
        "edits_per_batch",
    )
    for name, value in asdict(config).items():
        option = "--" + name.replace("_", "-")
        if isinstance(value, float) and not (math.isfinite(value) and value >= 0):
            raise InputError(f"expected a number that is not negative, got {option} {value}: give another")
        if name in positive and value is not None and not value > 0:
            raise InputError(f"expected a number above zero, got {option} {value}: give another")


def _check_schemes(config: ExperimentConfig) -> None:
    if not config.schemes:
        raise InputError(f"expected at least one scheme of {', '.join(SCHEMES)}, got none: name one after --schemes")
    for name in config.schemes:
        if name not in SCHEMES:
            raise InputError(f"expected schemes among {', '.join(SCHEMES)}, got {name!r}: choose among them")
    if config.survey not in SURVEYS:
        raise InputError(f"expected a survey of {', '.join(SURVEYS)}, got {config.survey!r}: choose one of them")
