"""Every command in one table, which imports nothing heavy: help and dispatch need no more."""

from importlib import import_module
from typing import Any, NamedTuple

PROGRAM = "jacobian-lab"
GROUPS = ("start", "edit", "compare", "explain", "runs")
"""Purposes of commands, in the order of the help."""


class Command(NamedTuple):
    """A command.

    Attributes:
        group: One of `GROUPS`.
        summary: Help, in a line.
        home: Module of this package and dataclass in it, whose fields are the options and whose `run` does the work.
        examples: Command lines, the first of which takes about a minute on the embedded model.
    """

    group: str
    summary: str
    home: str
    examples: tuple[str, ...]

    def load(self) -> Any:
        """Import the dataclass."""
        module, name = self.home.split(":")
        return getattr(import_module(f"{__package__}.{module}"), name)


COMMANDS = {
    "models": Command(
        "start",
        "List the models at hand, and the settings of known ones.",
        "listings:Models",
        ("models", "models | grep llama"),
    ),
    "facts": Command(
        "start",
        "List facts, one a line.",
        "listings:Facts",
        ("facts --slice 0:3", "facts --facts my_facts.json --on-bad-record skip"),
    ),
    "check": Command(
        "start",
        "Show what would be edited, before anything is; status 1 if not all can be.",
        "checking:Check",
        (
            "check --slice 0:4",
            "check --facts my_facts.json --json --out check.json",
            "check --facts my_facts.json --diagnose --out runs/check",
        ),
    ),
    "demo": Command(
        "start",
        "Compare every target scheme on two facts in the embedded model, in a minute or two.",
        "jobs:Demo",
        ("demo", "demo --slice 0:1 --out runs/demo"),
    ),
    "edit": Command(
        "edit",
        "Edit facts with one method, evaluate, and save the edit.",
        "jobs:Edit",
        (
            "edit --slice 0:1 --corpus-tokens auto --out runs/first-edit",
            "edit --facts my_facts.json --method alphaedit+fe --out runs/edited",
            "edit --facts my_facts.json --save lora --push somebody/edited",
        ),
    ),
    "apply": Command(
        "edit",
        "Put saved edits on their base model; ask the edited model, or write it as a folder.",
        "edits:Apply",
        (
            'apply --delta runs/first-edit/delta-memit+fe.safetensors --prompt "The Eiffel Tower stands in"',
            "apply --delta runs/edited/delta-alphaedit+fe.safetensors --out edited-model",
        ),
    ),
    "evaluate": Command(
        "edit",
        "Ask saved edits and the unedited model the same: tasks, and texts side by side.",
        "evaluating:Evaluate",
        (
            "evaluate --delta runs/first-edit/delta-memit+fe.safetensors --slice 0:1 --out evaluated",
            "evaluate --delta runs/a/delta-memit.safetensors runs/b/delta-memit+fe.safetensors --facts my_facts.json "
            "--tasks builtin arc_easy --out evaluated",
        ),
    ),
    "schemes": Command(
        "compare",
        "Compare target schemes, layer by layer: Tables 1, 2 and 5, verdicts on J, studies.",
        "jobs:Schemes",
        (
            "schemes --slice 0:2 --corpus-tokens auto --no-verdicts --out runs/schemes",
            "schemes --slice 0:32 --studies theorem1 step_size --out runs/schemes",
            "schemes --model path/to/Llama-3-8B --facts counterfact.json --dtype bfloat16 --plan",
        ),
    ),
    "methods": Command(
        "compare",
        "Compare methods by the paper's metrics: Tables 3, 4, 6 and 7.",
        "jobs:Methods",
        (
            "methods --slice 0:2 --methods memit memit+fe --corpus-tokens auto --out runs/methods",
            "methods --slice 0:16 --methods memit wise rledit --training training.yaml",
            "methods --config runs/methods/config.json --seed 1",
        ),
    ),
    "frontier": Command(
        "compare",
        "Compare schemes along λ under one rule: what is gained against what is disturbed.",
        "jobs:Frontier",
        (
            "frontier --slice 0:1 --schemes forward-replay --ridges 150 1500 --corpus-tokens auto",
            "frontier --slice 0:16 --rule rect --out runs/frontier",
            "frontier --slice 0:16 --rule alphaedit --ridges 1 10 100 --thresholds 0.002 0.02 --out runs/frontier-l2",
        ),
    ),
    "sequence": Command(
        "compare",
        "Edit batch after batch: what is forgotten, and what breaks.",
        "jobs:Sequences",
        (
            "sequence --slice 0:4 --methods memit --edits-per-batch 2 --corpus-tokens auto --out runs/sequence-four",
            "sequence --slice 0:64 --edits-per-batch 8 --targets both --out runs/sequence",
            "sequence --facts counterfact.json --slice 0:128 --methods lyaplock rlsedit+cr --look-every 2 --plan",
        ),
    ),
    "tune": Command(
        "compare",
        "Search layers, λ, learning rate and passes for methods on your model.",
        "tuning:Tune",
        (
            "tune --slice 0:1 --methods memit memit+fe --windows 4-5 8-9 --ridges 300 3000 --lrs 0.5 --passes 10 "
            "--finalists 1 --corpus-tokens auto --out runs/tune",
            "tune --slice 0:16 --width 4 --kl-bound 0.1 --out runs/tuned",
            "tune --model path/to/Llama-3-8B --facts held_out.json --dtype bfloat16 --plan",
        ),
    ),
    "jacobians": Command(
        "explain",
        "Measure J of every fact and layer: spectra, and the verdict of theorem 2.",
        "jobs:Jacobians",
        ("jacobians --slice 0:2 --layers 7-8", "jacobians --slice 0:64 --layers 4-8 --out runs/jacobians"),
    ),
    "locate": Command(
        "explain",
        "Trace which layers and tokens bring an answer back after its subject is corrupted.",
        "jobs:Locate",
        (
            "locate --slice 0:1 --samples 3 --out runs/locate-one",
            "locate --facts counterfact.json --slice 0:32 --recalled-only --out runs/locate",
        ),
    ),
    "transfer": Command(
        "explain",
        "Measure how much of a layer's shift reaches other contexts, imposed and edited.",
        "jobs:Transfer",
        (
            "transfer --slice 0:2 --layers 7-8 --schemes forward-replay --corpus-tokens auto --out runs/transfer-two",
            "transfer --facts counterfact.json --slice 0:16 --out runs/transfer",
        ),
    ),
    "layer-count": Command(
        "explain",
        "Add decisive layers one by one, and measure what is left.",
        "jobs:LayerCounts",
        (
            "layer-count --slice 0:1 --max-layers 2 --schemes forward-replay --corpus-tokens auto",
            "layer-count --slice 0:32 --out runs/layer-count",
        ),
    ),
    "damping": Command(
        "explain",
        "Edit with jacobian-pullback at several μ, beside backward spreading.",
        "jobs:Dampings",
        (
            "damping --slice 0:1 --layers 7-8 --dampings 0.01 0.1 --corpus-tokens auto",
            "damping --slice 0:32 --out runs/damping",
        ),
    ),
    "show": Command(
        "runs",
        "Show a run: what it holds, or some of its tables and figures.",
        "shows:Show",
        ("show runs/schemes", "show runs/schemes table2 residual_by_layer"),
    ),
    "figure": Command(
        "runs",
        "Draw a figure of a run into a file.",
        "shows:Figure",
        ("figure runs/schemes residual_by_layer", "figure runs/locate locate --fact 7"),
    ),
    "report": Command(
        "runs",
        "Write a run, or two side by side, as one page that opens anywhere: verdicts, tables, figures, every fact.",
        "shows:Report",
        ("report runs/schemes", "report runs/schemes runs/other --out compared.html"),
    ),
}


class Old(NamedTuple):
    """An old name of a command, which works in this version.

    Attributes:
        new: Command line that takes its place.
        script: Script in ``analyses/`` that does the same, where that is no plain command.
    """

    new: str
    script: str = ""


OLD = {
    "tables": Old("schemes"),
    "edit-table": Old("methods"),
    "jacobian": Old("jacobians"),
    "theorem1": Old("schemes --studies theorem1", "theorem1"),
    "theorem2": Old("schemes --studies theorem1, then show RUN theorem2", "theorem2"),
    "decomposition": Old("schemes --no-verdicts, then show RUN decomposition", "decomposition"),
    "step-size": Old("schemes --studies step_size --no-verdicts", "step_size"),
}


def overview() -> str:
    """List the commands by purpose."""
    width = max(map(len, COMMANDS))
    lines = ["Why an edit of a language model's knowledge works, layer by layer.", "", f"usage: {PROGRAM} COMMAND …"]
    for group in GROUPS:
        lines += ["", f"{group.capitalize()}:"]
        members = [(name, command.summary) for name, command in COMMANDS.items() if command.group == group]
        lines += [f"  {name:<{width}}  {summary}" for name, summary in members]
    return "\n".join([
        *lines,
        "",
        f"{PROGRAM} COMMAND --help gives examples and options; {PROGRAM} --version the version.",
    ])
