"""Names of target schemes, update rules and methods, and what each of them stands for.

Runs store these names, commands take them, and reports put them into tables: nothing here needs torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from jacobian_lab.errors import InputError

Kind = Literal["optimised", "replayed", "coordinated", "separate", "restarted", "joint"]
OPTIMISED: Kind = "optimised"
REPLAYED: Kind = "replayed"
COORDINATED: Kind = "coordinated"
SEPARATE: Kind = "separate"
RESTARTED: Kind = "restarted"
JOINT: Kind = "joint"


@dataclass(frozen=True)
class Scheme:
    """Recipe that turns anchors into layer targets (methods.md §4).

    Attributes:
        edits: Which of the decisive layers are edited: all, the first, the last, or both ends.
        reads: Layer whose hidden state is compared with its target when a layer is edited: the last, or its own.
        divides: Whether a layer gets one share of the residual among the layers that are left, instead of all of it.
        kind: Targets: optimised at the last layer, or at the end that is read; replayed from the anchor at the first
            layer, or with coordinated shifts at all layers; separate, optimised at each layer; restarted or joint,
            replayed from the best of several anchors at the first layer, or from one that is drawn to the last's.
        pulls_back: Whether a layer's shift is solved from J_{l→L} (`damped_pullback`) instead of being the residual.
    """

    edits: Literal["all", "first", "last", "ends"]
    reads: Literal["last", "own"]
    divides: bool
    kind: Kind
    pulls_back: bool = False

    def edited(self, layers: tuple[int, ...]) -> tuple[int, ...]:
        """Select the layers to edit.

        Args:
            layers: The decisive layers, ascending.

        Returns:
            Those of them.
        """
        first, last = layers[:1], layers[-1:]
        ends = tuple(dict.fromkeys(first + last))
        return {"all": layers, "first": first, "last": last, "ends": ends}[self.edits]

    def read(self, layers: tuple[int, ...], index: int) -> int:
        """Select the layer at which the residual is read.

        Args:
            layers: The edited layers.
            index: Which of them is edited now.

        Returns:
            The layer.
        """
        return layers[-1] if self.reads == "last" else layers[index]

    def anchored(self, layers: tuple[int, ...]) -> tuple[int, ...]:
        """Select the layers whose anchors the targets are made of, beside coordinated shifts and descents of their own.

        Args:
            layers: The decisive layers, ascending.

        Returns:
            Some of their ends.
        """
        edited, ends = self.edited(layers), tuple(dict.fromkeys(layers[:1] + layers[-1:]))
        if self.kind == OPTIMISED:
            return tuple(dict.fromkeys(self.read(edited, index) for index in range(len(edited))))
        return {REPLAYED: layers[:1], SEPARATE: ends}.get(self.kind, ())

    def divisor(self, index: int, count: int) -> int:
        """Divisor of the residual.

        Args:
            index: Which of the edited layers is edited now.
            count: Number of edited layers.

        Returns:
            The number of layers that are left, or 1.
        """
        return count - index if self.divides else 1


SchemeName = Literal[
    "backward-dividing",
    "backward-full",
    "one-layer",
    "independent",
    "forward-replay",
    "coordinated-replay",
    "jacobian-pullback",
    "first-layer",
    "independent-everywhere",
    "forward-replay-divided",
    "forward-replay-restarted",
    "forward-replay-joint",
]
SCHEMES: dict[str, Scheme] = {
    "backward-dividing": Scheme("all", "last", divides=True, kind="optimised"),
    "backward-full": Scheme("all", "last", divides=False, kind="optimised"),
    "one-layer": Scheme("last", "last", divides=False, kind="optimised"),
    "independent": Scheme("ends", "own", divides=False, kind="optimised"),
    "forward-replay": Scheme("all", "own", divides=False, kind="replayed"),
    "coordinated-replay": Scheme("all", "own", divides=False, kind="coordinated"),
    "jacobian-pullback": Scheme("all", "last", divides=True, kind="optimised", pulls_back=True),
    "first-layer": Scheme("first", "own", divides=False, kind="replayed"),
    "independent-everywhere": Scheme("all", "own", divides=False, kind="separate"),
    "forward-replay-divided": Scheme("all", "own", divides=True, kind="replayed"),
    "forward-replay-restarted": Scheme("all", "own", divides=False, kind="restarted"),
    "forward-replay-joint": Scheme("all", "own", divides=False, kind="joint"),
}
"""Any scheme goes with any update rule of `jacobian_lab.editing.rules`."""

CONTROLS: tuple[SchemeName, ...] = (
    "first-layer",
    "independent-everywhere",
    "forward-replay-divided",
    "forward-replay-restarted",
    "forward-replay-joint",
)
"""Controls of the comparison between forward and coordinated replay; only those that are named are measured."""

TABLE_SCHEMES: tuple[SchemeName, ...] = tuple(name for name in get_args(SchemeName) if name not in CONTROLS)
"""Default schemes of a table: all but the controls."""

PAPER_RULES = ("memit", "prune", "rect", "alphaedit", "emmet")
LATER_RULES = ("nse", "encore", "sphere", "nas", "betaedit", "lyaplock", "rlsedit")
RULE_NAMES = (*PAPER_RULES, "rome", *LATER_RULES)
"""Update rules: the keys of `jacobian_lab.editing.rules.RULES`; those of the paper, ROME, and later ones."""
PROJECTING = ("alphaedit", "sphere", "nas", "betaedit")
"""Rules that need a null space of C."""
KEYLESS = ("emmet", "rome")
"""Rules that solve with λC or C alone, without the facts' keys."""
RIDGELESS = ("alphaedit", "rome", "sphere", "nas")
"""Rules without λ."""
RESCALING = ("nas",)
"""Rules whose targets are given another length first (`jacobian_lab.editing.norm_anchors`)."""


@dataclass(frozen=True)
class Method:
    """A target scheme with an update rule.

    Attributes:
        scheme: Its name in `SCHEMES`.
        rule: Its name in `RULE_NAMES`.
        refit: Whether the last layer's anchor is optimised on the model as the edit of the first has left
            it (the protocol of BLUE's authors) instead of the unedited one (the paper's).
    """

    scheme: str
    rule: str
    refit: bool = False


UNEDITED, FE, CR = "unedited", "+fe", "+cr"
"""Name of the model before any edit; suffixes of a rule's name with forward and with coordinated replay."""

METHODS: Mapping[str, Method] = {
    "onelayer": Method("one-layer", "memit"),
    "memit": Method("backward-dividing", "memit"),
    "blue": Method("independent", "memit"),
    "blue-refit": Method("independent", "memit", refit=True),
    "prune": Method("backward-dividing", "prune"),
    "rect": Method("backward-dividing", "rect"),
    "alphaedit": Method("backward-dividing", "alphaedit"),
    "memit+fe": Method("forward-replay", "memit"),
    "prune+fe": Method("forward-replay", "prune"),
    "rect+fe": Method("forward-replay", "rect"),
    "alphaedit+fe": Method("forward-replay", "alphaedit"),
    "emmet": Method("backward-dividing", "emmet"),
    "emmet+fe": Method("forward-replay", "emmet"),
    "memit+cr": Method("coordinated-replay", "memit"),
    "prune+cr": Method("coordinated-replay", "prune"),
    "rect+cr": Method("coordinated-replay", "rect"),
    "alphaedit+cr": Method("coordinated-replay", "alphaedit"),
    "emmet+cr": Method("coordinated-replay", "emmet"),
    "rome": Method("one-layer", "rome"),
    **{rule: Method("backward-dividing", rule) for rule in LATER_RULES},
    **{rule + FE: Method("forward-replay", rule) for rule in LATER_RULES},
    **{rule + CR: Method("coordinated-replay", rule) for rule in LATER_RULES},
}
"""The paper's methods by name, those with coordinated replay, and later ones; any other pair is ``rule@scheme``."""

TABLE_METHODS = tuple(name for name, pair in METHODS.items() if pair.rule in PAPER_RULES and not pair.refit)
"""Default methods of a table: the paper's rules, without the other reading of BLUE."""

TRAINED = ("wise", "rledit")
"""The paper's methods that train, which are no pairs; `jacobian_lab.training` implements them."""

PAIRS = tuple(f"{rule}@{scheme}" for rule in RULE_NAMES for scheme in SCHEMES)
ALIASES = {"fe": "memit+fe"}


def method_name(text: str) -> str:
    """Look up the name under which a method is stored.

    Args:
        text: A name in `METHODS` or `TRAINED`, ``fe``, or ``rule@scheme``; case does not matter.

    Returns:
        The name.

    Raises:
        InputError: If there is no such method.
    """
    name = ALIASES.get(text.lower(), text.lower())
    if name not in {*METHODS, *PAIRS, *TRAINED}:
        raise InputError(
            f"expected methods among {', '.join((*METHODS, *TRAINED))}, or a pair rule@scheme such as "
            f"rect@backward-full, got {text!r}: choose among them"
        )
    return name


def method(name: str) -> Method:
    """Look up a method that is a pair.

    Args:
        name: A result of `method_name`, or of `with_setting`.

    Returns:
        The method.

    Raises:
        InputError: If it is one that trains.
    """
    name, _ = without_setting(name)
    if name in METHODS:
        return METHODS[name]
    if name in TRAINED:
        raise InputError(
            f"expected a target scheme with an update rule, got {name}, which trains: choose among {', '.join(METHODS)}"
        )
    rule, _, scheme = name.partition("@")
    return Method(scheme, rule)


def with_setting(name: str, setting: float) -> str:
    """Name a method whose rule has a setting of its own, such as ``alphaedit[0.002]+fe``.

    Args:
        name: A method that is a pair.
        setting: The setting.

    Returns:
        The name, in which the setting belongs to the rule.
    """
    rule = method(name).rule
    return f"{rule}[{setting:g}]{name.removeprefix(rule)}"


def without_setting(name: str) -> tuple[str, str]:
    """Take a setting out of a method's name.

    Args:
        name: A method's name, perhaps one of `with_setting`.

    Returns:
        The plain name; the setting, empty where there is none.
    """
    rule, bracket, rest = name.partition("[")
    setting, _, ending = rest.partition("]")
    return (rule + ending, setting) if bracket else (name, "")


def paired(rule: str, scheme: str) -> str:
    """Name a rule with a scheme.

    Args:
        rule: A name in `RULE_NAMES`.
        scheme: A name in `SCHEMES`.

    Returns:
        The one in `METHODS` if there is one, else ``rule@scheme``.
    """
    named = (name for name, pair in METHODS.items() if pair == Method(scheme, rule))
    return next(named, f"{rule}@{scheme}")


PROMPT_GROUPS = ("seen", "held out", "paraphrase", "neighborhood")
"""Groups of a fact's prompts: the contexts that its key is averaged over, other ones, other wordings, and prompts about
other subjects."""

TraceSite = Literal["residual", "mlp", "attention", "mlp-severed", "attention-severed"]
"""Restorations of causal tracing: one hidden state; the MLP's or the attention's output in a window of layers; one
hidden state while the MLPs, or the attention, of its token stay corrupted in the layers above."""
TRACE_SITES: tuple[TraceSite, ...] = ("residual", "mlp", "attention")
"""Sites that are traced by default."""
SUBJECT_END = "last subject"
ROLES = ("first subject", "middle subject", SUBJECT_END, "first further", "further", "last")
"""Roles of a prompt's tokens from its subject on. The subject's last token is never its first; the prompt's last token
is no further one."""
