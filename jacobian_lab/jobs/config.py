"""Settings of jobs with their choices and ranges."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Gt, Le, Lt
from tyro.conf import OmitArgPrefixes, UseAppendAction, arg

from jacobian_lab.catalogue import TABLE_METHODS, TABLE_SCHEMES, SchemeName
from jacobian_lab.editing.rules import RuleSettings
from jacobian_lab.editing.schemes import DAMPING
from jacobian_lab.editing.settings import AnchorSettings, CoordinationSettings, Delivered, ReplaySettings
from jacobian_lab.facts.reading import BUILTIN
from jacobian_lab.jobs.checks import check as check
from jacobian_lab.maps.jacobians import MEMORY_BUDGET
from jacobian_lab.maps.replay import Site
from jacobian_lab.model.chat import DATE
from jacobian_lab.model.corpus import DOCSTRINGS, PYTHON_DOCS
from jacobian_lab.model.sources import DEFAULT_MODEL
from jacobian_lab.parallel.settings import ExecutorConfig
from jacobian_lab.training.settings import TrainingConfig

Positive = Annotated[int, Gt(0)]
Above = Annotated[float, Gt(0)]
"""A number above zero; any other float is one that is not negative."""
SurveyName = Literal["auto", "dense", "lanczos"]
"""Method of a survey of Jacobians (`jacobian_lab.jobs.jacobians.Survey`)."""
StudyName = Literal["theorem1", "step_size"]
"""A study of edits as they are made (`jacobian_lab.jobs.studies.STUDIES`)."""
FrontierRule = Literal[
    "memit", "prune", "rect", "emmet", "alphaedit", "nse", "encore", "betaedit", "lyaplock", "rlsedit"
]
"""A rule that goes along λ, or AlphaEdit along its L2."""
Dtype = Literal["float32", "float64", "bfloat16", "float16"]
Count = Annotated[int, Gt(-1)]
"""A number of things, of which there may be none."""
RARE = {"rare": True}
"""Metadata of fields whose options stand in the whole help alone."""
RENAMED = {"batch_size": "anchors_per_batch", "metrics": "success", "most": "max_layers", "memory": "sweep_memory"}
"""Old names of fields and their options; they go on working in this version."""


@dataclass(frozen=True)
class SubjectConfig:
    """A model, and the facts and layers that are looked at.

    Attributes:
        model: An embedded model's name (smollm2-135m), a folder, a .gguf file, or a name on the hub.
        facts: "builtin", "builtin-reasoning", or a JSON or JSON Lines file of facts.
        slice: Part of the facts, as A:B; all of them by default.
        on_bad_record: refuse the facts if a record cannot be used, or skip it.
        on_repeat: refuse facts that come more than once, or edit each once, as the first or last record says.
        layers: Decisive layers, the last of them L, as 4-8 or 4,6,8.
        chat: Put prompts into the model's own chat template, as the user's turn that the answer follows.
        chat_option: Option of that template, as name=value, such as enable_thinking=false; may be given several times.
        chat_system: The system's turn; the template's own, if it has one, by default.
        chat_date: Day, or day and time, that a template is told which writes the date; the same on every day.
        protocol: Settings to use in place of the model's own: a file that tune wrote, a measured model's method, as
            smollm2-135m/memit+fe, or a known model of the literature, as gpt2-xl.
        seed: Seed of all that is sampled: templates, the bootstrap, random directions, the facts of a survey.
        device: auto, cpu, cuda, cuda:N or, for a model divided over several cards, cuda:M-N.
        dtype: Dtype of the weights; verdicts on J want float32.
        out: Folder of the run; runs/<hash of the settings> by default.
    """

    model: str = DEFAULT_MODEL
    facts: str = BUILTIN
    slice: str | None = None
    on_bad_record: Literal["refuse", "skip"] = "refuse"
    on_repeat: Literal["refuse", "first", "last"] = "refuse"
    layers: str | None = None
    chat: bool = False
    chat_option: UseAppendAction[tuple[str, ...]] = field(default=(), metadata=RARE)
    chat_system: str | None = field(default=None, metadata=RARE)
    chat_date: str = field(default=DATE, metadata=RARE)
    protocol: str | None = None
    seed: Annotated[Count, Lt(2**63)] = 0
    device: str = "auto"
    dtype: Dtype = "float32"
    out: Path | None = None


@dataclass(frozen=True)
class ComputingConfig(SubjectConfig):
    """A subject, and who computes.

    Attributes:
        executor: Workers that share the work on facts.
    """

    executor: OmitArgPrefixes[ExecutorConfig] = field(default_factory=ExecutorConfig)


@dataclass(frozen=True)
class AnchorConfig:
    """Optimisation of anchors; what is not given suits the model at hand.

    Attributes:
        lr: Adam's learning rate.
        steps: Passes of the optimisation, the first of which makes no update.
        weight_decay: Weight of the anchor's norm in the loss.
        kl_factor: Weight of the KL divergence in the loss.
        clamp: Largest norm of the anchor's shift, as a share of the state's.
        dtype: Dtype of the copy of the model that the descent runs in; the model's own by default. Where the processor
            multiplies bfloat16 faster, so are anchors.
        delivered: Share of the shifts at which the answer is asked for: none (all of them), margin (a constant one) or
            random (drawn for every pass and layer).
        delivered_share: The constant share, 0.8 by default; or the least random one, by default as measured.
        likeliest: Passes in which every token of the answer is the likeliest, in all contexts, after which a fact is
            done, as in ENCORE; by its loss alone by default.

    Examples:
        >>> import jacobian_lab as jl
        >>> jl.AnchorConfig(steps=10).steps
        10
    """

    lr: Above | None = None
    steps: Annotated[int, Gt(1)] | None = None
    weight_decay: float = AnchorSettings.weight_decay
    kl_factor: float = AnchorSettings.kl_factor
    clamp: Above = AnchorSettings.clamp
    dtype: Dtype | None = None
    delivered: Delivered = field(default="none", metadata=RARE)
    delivered_share: Annotated[float, Gt(0), Le(1)] | None = field(default=None, metadata=RARE)
    likeliest: Positive | None = None


@dataclass(frozen=True)
class EditingConfig(ComputingConfig):
    """Ingredients of edits.

    Attributes:
        templates: File of context templates, [["{}"], ["... {}", ...]]; sampled from the seed by default.
        corpus: Text for the second moment: "python-docs", a file with one document a line, or a data set's name.
        corpus_length: Tokens of a document at the most.
        corpus_tokens: Tokens in all, of documents drawn by the seed; auto: ten for every neuron of an MLP; the whole
            corpus by default.
        moments: Folder of published second moments that take the corpus's place: a file a layer, MEMIT's .npz or
            safetensors, named after the MLP's output projection in the model.
        ridge: Weight λ of the second moment in the solve; if it is not given, the literature's for the model, or that
            at which a fact alone realises nine tenths of what a layer is given.
        pullback_damping: Weight μ of the shift's norm in the scheme jacobian-pullback.
        anchor: Optimisation of anchors.
        coordination: Effort of coordinated-replay, shared over the decisive layers.
        replay: Controls of forward replay: starts of forward-replay-restarted, and the joint loss.
        anchors_per_batch: Facts optimised side by side at the most, 16 on a processor by default and what memory holds
            on a card; changes no number beyond rounding.
        anchors_from: Folder of another run of these facts, of some of them or of more of their file, whose anchors and
            shifts are taken instead of being optimised again.
    """

    templates: Path | None = None
    corpus: str = PYTHON_DOCS
    corpus_length: Positive = field(default=256, metadata=RARE)
    corpus_tokens: Positive | Literal["auto"] | None = None
    moments: Path | None = None
    ridge: float | None = None
    pullback_damping: Above = field(default=DAMPING, metadata=RARE)
    anchor: AnchorConfig = field(default_factory=AnchorConfig)
    coordination: CoordinationSettings = field(default_factory=CoordinationSettings, metadata=RARE)
    replay: ReplaySettings = field(default_factory=ReplaySettings, metadata=RARE)
    anchors_per_batch: Positive | None = None
    anchors_from: Path | None = None


@dataclass(frozen=True)
class SchemesConfig(EditingConfig):
    """Edits of facts under target schemes.

    Attributes:
        schemes: Target schemes to measure.
        studies: Further measurements during the edits: theorem1 (angles to eigenvectors of J; takes long), step_size.
        verdicts: Survey J; without, the same command can add that to the run later.
        survey: Survey of J: dense (all eigenvalues of its symmetric part and singular values), lanczos (the
            extreme ones, by products alone), none, or auto: dense up to a width of 2048 (on a card 4096),
            lanczos above. In bfloat16 and float16 verdicts may stay undecided: J is known to few digits.
        survey_facts: Number of facts, chosen by the seed, whose J's own eigenvectors are sought, from the matrix; 64 by
            default, 4 above a width of 2048 unless dense is asked for, none where lanczos is.

    Examples:
        >>> import jacobian_lab as jl
        >>> jl.SchemesConfig(slice="0:4", anchor=jl.AnchorConfig(steps=10)).anchor.steps
        10
    """

    schemes: tuple[SchemeName, ...] = TABLE_SCHEMES
    studies: tuple[StudyName, ...] = ()
    verdicts: bool = True
    survey: SurveyName | Literal["none"] = "auto"
    survey_facts: Count | None = None


@dataclass(frozen=True)
class LayerCountConfig(EditingConfig):
    """Edits with decisive layers added one by one; only the last of `layers` matters.

    Attributes:
        schemes: Target schemes to measure.
        max_layers: Decisive layers at the most, counted from 1; 8, or as many as there are, by default.

    Examples:
        >>> import jacobian_lab as jl
        >>> jl.LayerCountConfig(slice="0:4", max_layers=3).max_layers
        3
    """

    schemes: tuple[SchemeName, ...] = (
        "backward-dividing",
        "backward-full",
        "forward-replay",
        "coordinated-replay",
        "jacobian-pullback",
    )
    max_layers: Positive | None = None


@dataclass(frozen=True)
class DampingConfig(EditingConfig):
    """Edits with jacobian-pullback at several μ, beside backward spreading.

    Attributes:
        dampings: The values of μ.

    Examples:
        >>> import jacobian_lab as jl
        >>> jl.DampingConfig(dampings=(0.01, 0.1)).dampings
        (0.01, 0.1)
    """

    dampings: tuple[Above, ...] = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


@dataclass(frozen=True)
class JacobianConfig(ComputingConfig):
    """J_{l→L} at the decisive token of every fact.

    Attributes:
        site: residual (the stream behind a block) or mlp (what the block's MLP adds to it).
        survey: Survey of J: dense (all eigenvalues of its symmetric part and singular values), lanczos (the
            extreme ones, by products alone), or auto: dense up to a width of 2048 (on a card 4096),
            lanczos above. In bfloat16 and float16 verdicts may stay undecided: J is known to few digits.
        survey_facts: Number of facts, chosen by the seed, whose J's own eigenvectors are sought, from the matrix; 64 by
            default, 4 above a width of 2048 unless dense is asked for, none where lanczos is.
        sweep_memory: GiB that a sweep may hold beside the model; changes no number beyond rounding.

    Examples:
        >>> import jacobian_lab as jl
        >>> jl.JacobianConfig(slice="0:4", layers="7-8").layers
        '7-8'
    """

    site: Site = "residual"
    survey: SurveyName = "auto"
    survey_facts: Count | None = None
    sweep_memory: Above = field(default=MEMORY_BUDGET / 2**30, metadata=RARE)


@dataclass(frozen=True)
class EvaluationConfig(EditingConfig):
    """Edits, and the evaluation of edited models.

    Attributes:
        rules: Settings of the update rules.
        edits_per_batch: Facts that are edited jointly; all of them by default, else one batch after the other.
        success: Definition of Success: counterfact (before the true answer), zsre (share of tokens), or auto:
            counterfact where every fact has a true answer.
        evaluation_facts: Number of edited facts, chosen by the seed, that the edited models are evaluated on; all of
            them by default.
        greedy: Check Accuracy by real greedy decoding too.
        held_out: Text whose perplexity is taken, named as corpus is.
        held_out_tokens: Tokens of it.
    """

    rules: OmitArgPrefixes[RuleSettings] = field(default_factory=RuleSettings, metadata=RARE)
    edits_per_batch: Positive | None = None
    success: Literal["auto", "counterfact", "zsre"] = "auto"
    evaluation_facts: Positive | None = None
    greedy: bool = True
    held_out: str = field(default=DOCSTRINGS, metadata=RARE)
    held_out_tokens: Positive = field(default=2048, metadata=RARE)


@dataclass(frozen=True)
class MethodsConfig(EvaluationConfig):
    """Methods of any kind, those that train among them.

    Attributes:
        training: Settings of the methods that train.
        train_facts: "builtin", or a file, with the facts that these train with: those of other subjects than what is
            edited. By default the file of the facts, outside the slice.
        train_slice: Part of them, as A:B; all of them by default.
    """

    training: Annotated[TrainingConfig, arg(name="")] = field(default_factory=TrainingConfig, metadata=RARE)
    train_facts: str | None = None
    train_slice: str | None = None


@dataclass(frozen=True)
class EditTableConfig(MethodsConfig):
    """Edits with several methods.

    Attributes:
        methods: Methods, or pairs rule@scheme; the unedited model always comes first.

    Examples:
        >>> import jacobian_lab as jl
        >>> jl.EditTableConfig(methods=("memit", "memit+fe")).methods
        ('memit', 'memit+fe')
    """

    methods: tuple[str, ...] = TABLE_METHODS


@dataclass(frozen=True)
class FrontierConfig(EvaluationConfig):
    """Edits with one rule under several schemes along λ.

    Attributes:
        rule: The update rule; alphaedit goes along its L2 in λ's place; sphere, nas and rome have no λ.
        schemes: Target schemes; by default those of the tables but jacobian-pullback, whose dense J of every fact take
            long.
        ridges: The values of λ, or L2; seven over three decades around the model's own by default.
        thresholds: Values of alphaedit's threshold, each with every L2; the rule's own by default.
        greedy: Check Accuracy by real greedy decoding too; off here, since there are many points.

    Examples:
        >>> import jacobian_lab as jl
        >>> jl.FrontierConfig(ridges=(150.0, 1500.0)).rule
        'memit'
    """

    rule: FrontierRule = "memit"
    schemes: tuple[SchemeName, ...] = tuple(name for name in TABLE_SCHEMES if name != "jacobian-pullback")
    ridges: tuple[Above, ...] | None = None
    thresholds: tuple[Above, ...] | None = None
    greedy: bool = False


@dataclass(frozen=True)
class EditConfig(MethodsConfig):
    """An edit with one method.

    Attributes:
        method: The method, or a pair rule@scheme.
        save: delta (delta-<method>.safetensors, for jacobian-lab apply), folder (model-<method>, for transformers),
            both, or lora (adapter-<method>, for peft and for jacobian-lab apply).

    Examples:
        >>> import jacobian_lab as jl
        >>> jl.EditConfig(method="alphaedit+fe").save
        'delta'
    """

    method: str = "memit+fe"
    save: Literal["delta", "folder", "both", "lora"] = "delta"
