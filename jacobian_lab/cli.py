"""The command line: ``jacobian-lab tables | edit-table | edit | apply | theorem1 | … | models | facts``."""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from inspect import Parameter, Signature, signature, unwrap
from pathlib import Path
from typing import Annotated, Any, cast

import tyro
from tyro.conf import OmitArgPrefixes

from jacobian_lab.caching import write_text
from jacobian_lab.editing.deltas import check_new_folder, save_model
from jacobian_lab.editing.solving import REALISED
from jacobian_lab.errors import InputError, first_line
from jacobian_lab.facts.fact import on_one_line
from jacobian_lab.facts.reading import BUILTIN, read_facts
from jacobian_lab.jobs.config import (
    DampingConfig,
    EditConfig,
    EditTableConfig,
    FrontierConfig,
    JacobianConfig,
    LayerCountConfig,
    SchemesConfig,
    SubjectConfig,
)
from jacobian_lab.jobs.inspection import CheckConfig, inspect, summary
from jacobian_lab.jobs.jacobians import jacobian_job
from jacobian_lab.jobs.job import NO_PLAN, Job, PlanOptions, planned
from jacobian_lab.jobs.methods import edit_job, edit_table_job, saved_paths
from jacobian_lab.jobs.schemes import schemes_job
from jacobian_lab.jobs.sweeps import damping_job, frontier_job, layer_count_job
from jacobian_lab.memory import out_of_memory
from jacobian_lab.model.families import FAMILIES, KNOWN
from jacobian_lab.model.sources import DEFAULT_MODEL, EMBEDDED
from jacobian_lab.progress import note
from jacobian_lab.report.paper import read_paper
from jacobian_lab.report.registry import TABLES
from jacobian_lab.report.results import SCHEMES, write_account, write_comparison, write_reports
from jacobian_lab.report.tables.residuals import headlines
from jacobian_lab.store.run import open_run
from jacobian_lab.store.schema import command_of
from jacobian_lab.training.memories import memory_metadata
from jacobian_lab.training.saved import load_edited


@dataclass(frozen=True)
class Command:
    """A command, or a script in ``analyses/``.

    Attributes:
        help: What it does.
        function: Takes its options by name.
    """

    help: str
    function: Callable[..., None]

    def __call__(self, arguments: list[str] | None = None) -> None:
        """Run it as a script.

        Args:
            arguments: Arguments of the command line; those of the process by default.
        """
        guarded(lambda: tyro.cli(self.function, args=arguments, description=self.help))


@dataclass(frozen=True)
class Computation:
    """How a run comes to hold what an analysis shows.

    Attributes:
        config: What can be set.
        job: Makes the job of a configuration.
    """

    config: type[SubjectConfig]
    job: Callable[..., Job]


COMPUTATIONS: Mapping[str, Computation] = {
    "theorem1": Computation(SchemesConfig, partial(schemes_job, studies=("theorem1",))),
    "theorem2": Computation(SchemesConfig, partial(schemes_job, studies=("theorem1",))),
    "decomposition": Computation(SchemesConfig, partial(schemes_job, verdicts=False)),
    "step_size": Computation(SchemesConfig, partial(schemes_job, studies=("step_size",), verdicts=False)),
    "layer_count": Computation(LayerCountConfig, layer_count_job),
    "damping": Computation(DampingConfig, damping_job),
    "frontier": Computation(FrontierConfig, frontier_job),
    "jacobian": Computation(JacobianConfig, jacobian_job),
}
"""What computes each analysis of the registry."""


def tables(config: SchemesConfig, verbose: bool = False) -> None:
    """Measure Tables 1, 2 and 5, the verdicts on J and the split of the shifts, write all, and say what came out.

    Args:
        config: The configuration.
        verbose: Whether to print the tables too.
    """
    folder = schemes_job(config).carry_out()
    told = [write_reports(folder), write_account(folder, "theorem2")]
    write_account(folder, "decomposition")
    write_account(folder, "effort")
    files = (
        f"Tables in {folder}: table1, table2, table5, efficacy, theorem2, decomposition, effort: .md, .tex and .csv.",
        f"Every measurement: {folder / 'measurements.csv'}; figures: python figures/residual_by_layer.py {folder}",
    )
    short = "\n".join([*headlines(open_run(folder)), *files])
    write_text(folder / "summary.txt", short + "\n")
    _say("\n\n".join([*told, short]) if verbose else short)


def paper_table(config: SchemesConfig, name: str) -> None:
    """Measure what one of Tables 1, 2 and 5 needs, into the run that all share, and print it.

    Args:
        config: The configuration.
        name: The table.
    """
    folder = schemes_job(config, verdicts=False).carry_out()
    _say(f"{write_reports(folder, (name,))}\n\nRun: {folder}")


def analysis(config: Any, name: str) -> None:
    """Compute what an analysis shows, and print its table.

    Args:
        config: The configuration, of the kind that `COMPUTATIONS` has.
        name: The analysis.
    """
    folder = COMPUTATIONS[name].job(config).carry_out()
    _say(f"{write_account(folder, name)}\n\nRun: {folder}")


def edit_table(config: EditTableConfig, paper: Path | None = None, only: tuple[str, ...] | None = None) -> None:
    """Edit with every method, evaluate, write the tables, and print them.

    Args:
        config: The configuration.
        paper: CSV file in the layout of metrics.csv; its rows stand beside ours, instead of the paper's.
        only: Which of the paper's tables; those of the model by default.
    """
    if paper is not None:
        read_paper(paper)  # before the long work
    folder = edit_table_job(config).carry_out()
    _say(f"{write_comparison(folder, only, paper)}\n\nRun: {folder}")


def edit(config: EditConfig) -> None:
    """Edit with one method, say how it went, and where the edited model is.

    Args:
        config: The configuration.
    """
    folder = edit_job(config).carry_out()
    told = write_comparison(folder, ())
    _say(f"{told}\n\nSaved: {', '.join(map(str, saved_paths(folder, config.method, config.save)))}")


def apply(
    delta: tuple[Path, ...],
    out: Path | None = None,
    prompt: tuple[str, ...] = (),
    tokens: int = 16,
    model: str = DEFAULT_MODEL,
    device: str = "auto",
) -> None:
    """Put saved edits on their base model, and ask the edited model, or write it as a folder that transformers loads.

    Args:
        delta: The file that jacobian-lab edit saved, or several that it saved of one base model, to be added up; WISE's
            memory alone.
        out: A new or empty folder for the model; a memory has none, since no plain model asks which matrix is to serve.
        prompt: Prompts that the edited model is to go on with, greedily.
        tokens: Tokens of an answer at the most.
        model: The base model, named as in jacobian-lab edit.
        device: auto, cpu, cuda, cuda:N or, for a model divided over several cards, cuda:M-N.

    Raises:
        InputError: If anything cannot be used, or nothing is asked for.
    """
    memories = [path for path in delta if memory_metadata(path) is not None]
    if memories and out is not None:
        raise InputError(
            f"expected ⟨prompt⟩ for the memory {memories[0]}, got ⟨out⟩: no plain model asks which matrix is to serve"
        )
    if out is None and not prompt:
        raise InputError("expected ⟨out⟩, ⟨prompt⟩ or both, got neither: say what is to be done with the edited model")
    if tokens < 1:
        raise InputError(f"expected a number above zero, got ⟨tokens⟩ {tokens}: give another")
    if out is not None:
        check_new_folder(out)
    edited = load_edited(delta, model, device)
    if prompt and edited.model.chat is not None:
        note(f"prompts are put into {edited.model.chat}, as the edit was made")
    for text in prompt:
        _say(f"{text} →{edited.continuation(text, tokens)}")
    if out is not None:
        save_model(edited.model, out)
        _say(f"Edited model: {out}")


def models() -> None:
    """List the models that are at hand, and the defaults of those that are known."""
    for name, (package, file, _) in EMBEDDED.items():
        _say(f"{name}: embedded, {file} of the package {package}")
    _say(f"any folder, .gguf file or hub name of the families {', '.join(FAMILIES)}")
    for name, known in KNOWN.items():
        defaults = known.defaults
        layers = f"{defaults.layers[0]}-{defaults.layers[-1]}"
        anchor = f"anchor lr {defaults.anchor_lr}, {defaults.anchor_steps} steps"
        hub = f" ({known.hub})" if known.hub else ""
        ridge = f"ridge {defaults.ridge:g}" if defaults.ridge else f"ridge that realises {REALISED:g} of a residual"
        _say(f"settings of {name}{hub}: layers {layers}, {ridge}, {anchor}")


def facts(
    facts: str = BUILTIN, slice: str | None = None, on_bad_record: str = "refuse", on_repeat: str = "refuse"
) -> None:
    """List facts, one a line, tab-separated.

    Args:
        facts: "builtin", or a JSON or JSON Lines file of facts.
        slice: Which of the facts, as A:B; all of them by default.
        on_bad_record: refuse the facts if a record cannot be used, or skip it.
        on_repeat: refuse facts that come more than once, or take each once, as the first or last record says.
    """
    file = read_facts(facts, slice, on_bad_record=on_bad_record, on_repeat=on_repeat)
    for line in file.notes():
        note(line)
    for fact in file.facts:
        columns = (str(fact.id), fact.text, f"{fact.target_true} -> {fact.target_new}")
        _say("\t".join(map(on_one_line, columns)))


def check(config: CheckConfig) -> None:
    """Print what would be edited; status 1 if a record is refused, facts conflict, or the model fails a check.

    Args:
        config: The configuration.
    """
    report = inspect(config)
    text = json.dumps(report, indent=1, ensure_ascii=False)
    if config.out is not None:
        config.out.mkdir(parents=True, exist_ok=True)
        write_text(config.out / "check.json", text + "\n")
    _say(text if config.json else "\n".join(summary(report)))
    if not report["passed"]:
        sys.exit(1)


USABLE = "files that can be read and written"
"""What a command expects of the file system."""

_UNJUDGED = partial(schemes_job, verdicts=False)


def _taking(config: Any, function: Callable[..., None], job: Any = None, **fixed: Any) -> Callable[..., None]:
    """A function whose options are the fields of a configuration, given as its type or with its defaults."""
    default = config() if isinstance(config, type) else config

    def command(config: Any = default, planning: PlanOptions = NO_PLAN, **given: Any) -> None:
        if planning.plan:
            _say(planned(job, config, planning))
        elif planning != NO_PLAN:
            raise InputError("expected ⟨plan⟩ with ⟨json⟩ and ⟨card⟩, got these alone: they say how a plan is made")
        else:
            function(config, **fixed, **given)

    own = [p for name, p in signature(function).parameters.items() if name not in {"config", *fixed}]
    if job is not None:
        own.append(
            Parameter("planning", Parameter.KEYWORD_ONLY, default=NO_PLAN, annotation=OmitArgPrefixes[PlanOptions])
        )
    first = Parameter("config", Parameter.POSITIONAL_OR_KEYWORD, default=default)
    inner: Any = unwrap(command)  # where types are checked at run time, functions are wrapped
    inner.__signature__ = Signature([first, *own])
    inner.__annotations__ = {"config": Annotated[type(default), tyro.conf.arg(name="")]}
    inner.__annotations__ |= {each.name: each.annotation for each in own}
    inner.__doc__ = function.__doc__
    return cast("Callable[..., None]", inner)


SUITS = "Whatever is not given suits the model at hand."
_SHARED = f"Goes into the same run as tables. {SUITS}"


def _analyses() -> dict[str, Command]:
    return {
        name: Command(
            f"{TABLES[name].caption} {_SHARED if 'tables' in TABLES[name].kinds else SUITS}",
            _taking(each.config, analysis, each.job, name=name),
        )
        for name, each in COMPUTATIONS.items()
    }


COMMANDS: Mapping[str, Command] = {
    "tables": Command(
        f"Measure Tables 1, 2 and 5 of the paper, the verdicts on J, and the split of every passive shift. {SUITS}",
        _taking(SchemesConfig, tables, schemes_job),
    ),
    "edit_table": Command(
        f"Edit with several methods and evaluate: Tables 3, 4, 6 and 7. {SUITS}",
        _taking(EditTableConfig, edit_table, edit_table_job, only=None),
    ),
    "edit": Command(
        f"Edit facts with one method, evaluate, and save the edited model. {SUITS}", _taking(EditConfig, edit, edit_job)
    ),
    "apply": Command("Put saved edits on their base model, and ask the edited model or write it as a folder.", apply),
    **_analyses(),
    "check": Command(
        "Show what would be edited, before anything is; status 1 if not all can be.", _taking(CheckConfig, check)
    ),
    "models": Command("List the models that are at hand, and the defaults of those that are known.", models),
    "facts": Command("List facts.", facts),
}
"""By name; the command line has a dash for the underscore."""

SCRIPTS: Mapping[str, Command] = {
    **_analyses(),
    **{
        name: Command(
            f"{name.replace('table', 'Table ')}: {TABLES[name].caption}",
            _taking(SchemesConfig(schemes=cast("Any", TABLES[name].edits)), paper_table, _UNJUDGED, name=name),
        )
        for name in SCHEMES
    },
    **{
        name: Command(
            f"{name.replace('table', 'Table ')}: {', '.join(each.edits)} (the paper's are of {each.model}).",
            _taking(EditTableConfig(methods=each.edits), edit_table, edit_table_job, only=(name,)),
        )
        for name, each in TABLES.items()
        if each.model
    },
}
"""Scripts in ``analyses/`` by name."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line.

    Args:
        arguments: Its arguments; those of the process by default.
    """
    app = tyro.extras.SubcommandApp()
    for name, command in COMMANDS.items():
        app.command(name=command_of(name), help=command.help)(command.function)
    description = "Why an edit of a language model's knowledge works, layer by layer."
    guarded(partial(app.cli, prog="jacobian-lab", description=description, args=arguments))


def guarded(command: Callable[[], Any]) -> None:
    """Run a command; bad input and lack of memory end it with a line and status 2, an interruption with status 130.

    Args:
        command: The command, with nothing left to be said.

    Raises:
        MemoryError: Never; it is said, as any lack of memory is.
        RuntimeError: If there is a fault in the command itself.
    """
    try:
        command()
    except InputError as error:
        sys.stderr.write(f"jacobian-lab: {error.by_option()}\n")
        sys.exit(2)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone; there is nobody to tell
        sys.exit(1)
    except OSError as error:  # a disk that is full, rights that changed under way, a host that is gone
        expected = "hosts that answer" if isinstance(error, ConnectionError | TimeoutError) else USABLE
        sys.stderr.write(f"jacobian-lab: expected {expected}, got {first_line(error)}: mend that\n")
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
