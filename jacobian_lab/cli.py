"""The command line: ``jacobian-lab tables | models | facts``."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from jacobian_lab.errors import InputError
from jacobian_lab.facts import BUILTIN, load_facts
from jacobian_lab.families import DEFAULTS, FAMILIES
from jacobian_lab.models import EMBEDDED
from jacobian_lab.reporting import TABLES, write_reports
from jacobian_lab.tables import TablesConfig, run_tables


@dataclass(frozen=True)
class ModelsConfig:
    """List the models that are at hand, and the defaults of those that are known."""


@dataclass(frozen=True)
class FactsConfig:
    """List facts.

    Attributes:
        facts: "builtin", or a JSON or JSON Lines file of facts.
        slice: Which of the facts, as A:B; all of them by default.
    """

    facts: str = BUILTIN
    slice: str | None = None


def tables(config: TablesConfig) -> None:
    """Measure, write the tables, and print them.

    Args:
        config: The configuration.
    """
    folder = run_tables(config)
    _say(f"{write_reports(folder)}\n\nRun: {folder}")


def analysis(table: str, arguments: list[str] | None = None) -> None:
    """Measure what one table of the paper needs, into the run that all share, and print it.

    Args:
        table: ``"table1"``, ``"table2"`` or ``"table5"``.
        arguments: Arguments of the command line; those of the process by default.
    """
    default = TablesConfig(schemes=TABLES[table].schemes)
    config = tyro.cli(TablesConfig, default=default, args=arguments, description=TABLES[table].caption)

    def report(chosen: TablesConfig) -> None:
        folder = run_tables(chosen)
        _say(f"{write_reports(folder, (table,))}\n\nRun: {folder}")

    guarded(report, config)


def models(_config: ModelsConfig) -> None:
    """Print the models.

    Args:
        _config: Nothing to configure.
    """
    for name, (package, file, _) in EMBEDDED.items():
        _say(f"{name}: embedded, {file} of the package {package}")
    _say(f"any folder, .gguf file or hub name of the families {', '.join(FAMILIES)}")
    for name, (_, known) in DEFAULTS.items():
        layers = f"{known.layers[0]}-{known.layers[-1]}"
        anchor = f"anchor lr {known.anchor_lr}, {known.anchor_steps} steps"
        _say(f"defaults of {name}: layers {layers}, ridge {known.ridge:g}, {anchor}")


def facts(config: FactsConfig) -> None:
    """Print facts, one a line, tab-separated.

    Args:
        config: Which facts.
    """
    for fact in load_facts(config.facts, config.slice):
        _say(f"{fact.id}\t{fact.text}\t{fact.target_true} -> {fact.target_new}")


Subcommand = (
    Annotated[TablesConfig, tyro.conf.subcommand("tables")]
    | Annotated[ModelsConfig, tyro.conf.subcommand("models")]
    | Annotated[FactsConfig, tyro.conf.subcommand("facts")]
)
COMMANDS: dict[type, Callable[[Any], None]] = {
    TablesConfig: tables,
    ModelsConfig: models,
    FactsConfig: facts,
}


def main(arguments: list[str] | None = None) -> None:
    """Run the command line.

    Args:
        arguments: Its arguments; those of the process by default.
    """
    config = tyro.cli(
        Subcommand,
        args=arguments,
        prog="jacobian-lab",
        description="Why an edit of a language model's knowledge works, layer by layer.",
        config=(tyro.conf.OmitArgPrefixes,),
    )
    guarded(COMMANDS[type(config)], config)


def guarded(command: Callable[[Any], None], config: Any) -> None:
    """Run a command; bad input ends it with one line and status 2, an interruption with status 130.

    Args:
        command: The command.
        config: Its configuration.
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
    except KeyboardInterrupt:
        sys.stderr.write("\njacobian-lab: interrupted; the same command goes on where it stopped\n")
        sys.exit(130)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
