"""The command line: ``jacobian-lab tables | edit-table | edit | apply | theorem1 | … | models | facts``."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import tyro

from jacobian_lab.caching import write_text
from jacobian_lab.editing.deltas import add_delta, check_new_folder, common_dtype, read_delta, save_model, summed
from jacobian_lab.errors import InputError, first_line
from jacobian_lab.facts.reading import BUILTIN, check_choices, read_facts
from jacobian_lab.jobs.config import ExperimentConfig
from jacobian_lab.jobs.damping import DampingConfig, run_damping
from jacobian_lab.jobs.inspection import CheckConfig, inspect, summary
from jacobian_lab.jobs.jacobians import JacobianConfig, run_jacobian
from jacobian_lab.jobs.layer_count import LayerCountConfig, run_layer_count
from jacobian_lab.jobs.methods import EditConfig, EditTableConfig, run_edit, run_edit_table, saved_paths
from jacobian_lab.jobs.schemes import TablesConfig, run_tables
from jacobian_lab.memory import out_of_memory
from jacobian_lab.model.families import FAMILIES, KNOWN
from jacobian_lab.model.loading import load_model
from jacobian_lab.model.sources import DEFAULT_MODEL, EMBEDDED
from jacobian_lab.progress import note
from jacobian_lab.report.paper import read_paper
from jacobian_lab.report.registry import TABLES
from jacobian_lab.report.reports import write_account, write_comparison, write_reports
from jacobian_lab.report.writing import write_csv, write_table
from jacobian_lab.store.schema import command_of


@dataclass(frozen=True)
class EditTableCommand(EditTableConfig):
    """Edit with every method of the paper and evaluate: Tables 3, 4, 6 and 7.

    Whatever is not given suits the model at hand.

    Attributes:
        paper: CSV file in the layout of metrics.csv, with columns table, model and dataset if you like; its rows stand
            beside ours, instead of the paper's.
    """

    paper: Path | None = None


@dataclass(frozen=True)
class ApplyConfig:
    """Put saved deltas on their base model, and write the edited model as a folder that transformers loads.

    Attributes:
        delta: The file that jacobian-lab edit saved, or several that it saved of one base model, to be added up.
        out: A new or empty folder for the model.
        model: The base model, named as in jacobian-lab edit.
        device: auto, cpu, cuda or cuda:N.
    """

    delta: tuple[Path, ...]
    out: Path
    model: str = DEFAULT_MODEL
    device: str = "auto"


@dataclass(frozen=True)
class ModelsConfig:
    """List the models that are at hand, and the defaults of those that are known."""


@dataclass(frozen=True)
class FactsConfig:
    """List facts.

    Attributes:
        facts: "builtin", or a JSON or JSON Lines file of facts.
        slice: Which of the facts, as A:B; all of them by default.
        on_bad_record: refuse the facts if a record cannot be used, or skip it.
        on_repeat: refuse facts that come more than once, or take each once, as the first or last record says.
    """

    facts: str = BUILTIN
    slice: str | None = None
    on_bad_record: str = "refuse"
    on_repeat: str = "refuse"


def tables(config: TablesConfig) -> None:
    """Measure, write the tables, and print them.

    Args:
        config: The configuration.
    """
    folder = run_tables(config)
    tables, verdicts = write_reports(folder), write_account(folder, "theorem2")
    write_account(folder, "decomposition")
    _say(f"{tables}\n\n{verdicts}\n\nRun: {folder}")


@dataclass(frozen=True)
class Theorem1Config(ExperimentConfig):
    """Test theorem 1: how near the edits' shifts are to eigenvectors of J.

    Goes into the same run as tables. Whatever is not given suits the model at hand.
    """


@dataclass(frozen=True)
class Theorem2Config(ExperimentConfig):
    """Test theorem 2: whether S = (J + Jᵀ)/2 is positive definite, and cos(Jδ, δ) > 0 along the edits.

    Goes into the same run as tables. Whatever is not given suits the model at hand.
    """


@dataclass(frozen=True)
class DecompositionConfig(ExperimentConfig):
    """Split what an edit does at the last layer into J·δ, curvature and leakage.

    Goes into the same run as tables. Whatever is not given suits the model at hand.
    """


@dataclass(frozen=True)
class StepSizeConfig(ExperimentConfig):
    """Measure what other step sizes along the edits' shifts would leave, against what J predicts.

    Goes into the same run as tables. Whatever is not given suits the model at hand.
    """


@dataclass(frozen=True)
class _Analysis:
    """A command that makes a run and prints one table of it."""

    config: type
    run: Callable[[Any], Path]

    def __call__(self, config: Any) -> None:
        folder = self.run(config)
        _say(f"{write_account(folder, _name_of(type(config)))}\n\nRun: {folder}")


def damping(config: DampingConfig) -> None:
    """Edit at several μ, and print the residual that is left.

    Args:
        config: The configuration.
    """
    folder, rows = run_damping(config)
    write_csv(folder / "damping.csv", rows)
    last = rows[rows["layer"] == rows["layer"].max()].drop(columns=["layer", "median"])
    caption = (
        "Residual left at the last layer, over the initial one: mean, 95 % bootstrap interval, count of facts; "
        "efficacy: share of facts whose new answer is the argmax at every token, teacher forced; and what it cost."
    )
    _say(f"{write_table(folder / 'damping', last.round(3).set_index('row'), caption)}\n\nRun: {folder}")


def edit_table(config: EditTableCommand, tables: tuple[str, ...] | None = None) -> None:
    """Edit with every method, evaluate, write the tables, and print them.

    Args:
        config: The configuration.
        tables: Which of the paper's tables; those of the model by default.
    """
    if config.paper is not None:
        read_paper(config.paper)  # before the long work
    folder = run_edit_table(config)
    _say(f"{write_comparison(folder, tables, config.paper)}\n\nRun: {folder}")


def edit(config: EditConfig) -> None:
    """Edit with one method, say how it went, and where the edited model is.

    Args:
        config: The configuration.
    """
    folder = run_edit(config)
    told = write_comparison(folder, ())
    _say(f"{told}\n\nSaved: {', '.join(map(str, saved_paths(folder, config.method, config.save)))}")


def apply(config: ApplyConfig) -> None:
    """Put deltas on their base model, and write the model.

    Args:
        config: The configuration.
    """
    dtype = common_dtype(config.delta)
    check_new_folder(config.out)
    model = load_model(config.model, dtype, config.device)
    add_delta(model, summed([read_delta(path, model) for path in config.delta]))
    save_model(model, config.out)
    _say(f"Edited model: {config.out}")


ANALYSES: dict[str, _Analysis] = {
    "theorem1": _Analysis(Theorem1Config, partial(run_tables, studies=("theorem1",))),
    "theorem2": _Analysis(Theorem2Config, partial(run_tables, studies=("theorem1",))),
    "decomposition": _Analysis(DecompositionConfig, partial(run_tables, verdicts=False)),
    "step_size": _Analysis(StepSizeConfig, partial(run_tables, studies=("step_size",), verdicts=False)),
    "layer_count": _Analysis(LayerCountConfig, run_layer_count),
    "jacobian": _Analysis(JacobianConfig, run_jacobian),
}
"""Subcommands, with a dash for the underscore, and scripts in ``analyses/`` of the same name."""


def _name_of(config: type) -> str:
    return next(name for name, analysis in ANALYSES.items() if analysis.config is config)


def paper_table(table: str, arguments: list[str] | None = None) -> None:
    """Measure what one table of the paper needs, into the run that all share, and print it.

    Args:
        table: ``"table1"``, ``"table2"`` or ``"table5"``.
        arguments: Arguments of the command line; those of the process by default.
    """
    default = TablesConfig(schemes=TABLES[table].edits)
    config = tyro.cli(TablesConfig, default=default, args=arguments, description=TABLES[table].caption)

    def report(chosen: TablesConfig) -> None:
        folder = run_tables(chosen, verdicts=False)
        _say(f"{write_reports(folder, (table,))}\n\nRun: {folder}")

    guarded(report, config)


def comparison_table(table: str, arguments: list[str] | None = None) -> None:
    """Measure one of the paper's tables of methods, into the run that edit-table makes too, and print it.

    Args:
        table: One of ``table3``, ``table4``, ``table6`` and ``table7``.
        arguments: Arguments of the command line; those of the process by default.
    """
    chosen = TABLES[table]
    default = EditTableCommand(methods=chosen.edits)
    description = f"{table.replace('table', 'Table ')}: {', '.join(chosen.edits)} (in the paper of {chosen.model})."
    config = tyro.cli(EditTableCommand, default=default, args=arguments, description=description)
    guarded(partial(edit_table, tables=(table,)), config)


def analysis(name: str, arguments: list[str] | None = None) -> None:
    """Run one of `ANALYSES`.

    Args:
        name: Its name.
        arguments: Arguments of the command line; those of the process by default.
    """
    chosen = ANALYSES[name]
    guarded(chosen, tyro.cli(chosen.config, args=arguments))


def models(_config: ModelsConfig) -> None:
    """Print the models.

    Args:
        _config: Nothing to configure.
    """
    for name, (package, file, _) in EMBEDDED.items():
        _say(f"{name}: embedded, {file} of the package {package}")
    _say(f"any folder, .gguf file or hub name of the families {', '.join(FAMILIES)}")
    for name, known in KNOWN.items():
        defaults = known.defaults
        layers = f"{defaults.layers[0]}-{defaults.layers[-1]}"
        anchor = f"anchor lr {defaults.anchor_lr}, {defaults.anchor_steps} steps"
        hub = f" ({known.hub})" if known.hub else ""
        _say(f"settings of {name}{hub}: layers {layers}, ridge {defaults.ridge:g}, {anchor}")


def facts(config: FactsConfig) -> None:
    """Print facts, one a line, tab-separated.

    Args:
        config: Which facts.
    """
    check_choices(config.on_bad_record, config.on_repeat)
    file = read_facts(config.facts, config.slice, on_bad_record=config.on_bad_record, on_repeat=config.on_repeat)
    for line in file.notes():
        note(line)
    for fact in file.facts:
        _say(f"{fact.id}\t{fact.text}\t{fact.target_true} -> {fact.target_new}")


def check(config: CheckConfig) -> None:
    """Print what would be edited.

    Args:
        config: The configuration.

    Raises:
        InputError: If the model cannot be edited; the report has been printed before.
    """
    report = inspect(config)
    text = json.dumps(report, indent=1, ensure_ascii=False)
    if config.out is not None:
        config.out.mkdir(parents=True, exist_ok=True)
        write_text(config.out / "check.json", text + "\n")
    _say(text if config.json else "\n".join(summary(report)))
    if report["model"]["refused"] is not None:
        raise InputError(report["model"]["refused"])


COMMANDS: dict[str, tuple[type, Callable[[Any], None]]] = {
    "tables": (TablesConfig, tables),
    "damping": (DampingConfig, damping),
    "edit-table": (EditTableCommand, edit_table),
    "edit": (EditConfig, edit),
    "apply": (ApplyConfig, apply),
    **{command_of(name): (chosen.config, chosen) for name, chosen in ANALYSES.items()},
    "check": (CheckConfig, check),
    "models": (ModelsConfig, models),
    "facts": (FactsConfig, facts),
}


def main(arguments: list[str] | None = None) -> None:
    """Run the command line.

    Args:
        arguments: Its arguments; those of the process by default.
    """
    config = tyro.extras.subcommand_cli_from_dict(
        {name: config for name, (config, _) in COMMANDS.items()},
        args=arguments,
        prog="jacobian-lab",
        description="Why an edit of a language model's knowledge works, layer by layer.",
    )
    guarded(next(command for kind, command in COMMANDS.values() if kind is type(config)), config)


def guarded(command: Callable[[Any], None], config: Any) -> None:
    """Run a command; bad input and lack of memory end it with one line and status 2, an interruption with status 130.

    Args:
        command: The command.
        config: Its configuration.

    Raises:
        MemoryError: Never; it is said, as any lack of memory is.
        RuntimeError: If there is a fault in the command itself.
    """
    try:
        command(config)
    except InputError as error:
        sys.stderr.write(f"jacobian-lab: {error}\n")
        sys.exit(2)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone; there is nobody to tell
        sys.exit(1)
    except OSError as error:  # a disk that is full, rights that changed under way
        sys.stderr.write(f"jacobian-lab: expected files that can be read and written, got {error}: mend that\n")
        sys.exit(2)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        sys.stderr.write(f"jacobian-lab: {_short_of_memory(error)}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write("\njacobian-lab: interrupted; the same command goes on where it stopped\n")
        sys.exit(130)


def _short_of_memory(error: BaseException) -> str:
    return (
        f"expected memory for all that is computed side by side, got too little ({first_line(error)}): give a smaller "
        "--batch-size or --corpus-length, shorter or fewer facts, --dtype bfloat16, or another device or host; "
        "what is finished is kept, and the same command goes on from there"
    )


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
