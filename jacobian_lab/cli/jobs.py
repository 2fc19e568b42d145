"""Commands that fill a run and write its tables, and the scripts in ``analyses/``."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from tyro.conf import OmitArgPrefixes, Suppress, arg

from jacobian_lab.caching import write_text
from jacobian_lab.cli import say
from jacobian_lab.cli.options import modern, words_of
from jacobian_lab.cli.parsing import Runnable
from jacobian_lab.errors import InputError
from jacobian_lab.facts.reading import read_facts
from jacobian_lab.jobs.config import (
    DampingConfig,
    EditConfig,
    EditTableConfig,
    FrontierConfig,
    JacobianConfig,
    LayerCountConfig,
    MethodsConfig,
    SchemesConfig,
)
from jacobian_lab.jobs.job import planned
from jacobian_lab.jobs.kinds import JOBS, run_job
from jacobian_lab.jobs.locating import LocateConfig
from jacobian_lab.jobs.methods import saved_forms, saved_paths
from jacobian_lab.jobs.sequence_config import SequenceConfig
from jacobian_lab.jobs.transferring import TransferConfig
from jacobian_lab.model.hub import check_upload, upload
from jacobian_lab.report.cards import card_of, write_card
from jacobian_lab.report.paper import read_paper
from jacobian_lab.report.registry import TABLES
from jacobian_lab.report.results import (
    SCHEMES,
    write_account,
    write_comparison,
    write_locate,
    write_reports,
    write_schemes,
)
from jacobian_lab.training.reading import read_training
from jacobian_lab.training.settings import TrainingConfig

NAMES = (*SCHEMES, "efficacy", "theorem2", "decomposition", "effort")
"""Tables that every comparison of schemes writes."""


@dataclass(frozen=True)
class Planning:
    """Say what the work would take, instead of doing it.

    Attributes:
        plan: Print time and memory by stage, and stop; the model's weights are not read.
        plan_json: Print the plan as JSON.
        plan_card: Plan for this GPU instead of this machine.
    """

    plan: bool = False
    plan_json: bool = False
    plan_card: Literal["h100", "h200"] | None = None


NO_PLAN = Planning()


@dataclass(frozen=True)
class JobCommand(Runnable):
    """A command that fills a run.

    Attributes:
        options: YAML or JSON file of options by name, or the config.json of a run, whose options are taken; what the
            command line gives wins.
        planning: A plan in place of the work.
    """

    options: Annotated[Path | None, arg(name="config")] = None
    planning: OmitArgPrefixes[Planning] = NO_PLAN

    @classmethod
    def modern(cls, words: Sequence[str]) -> tuple[list[str], list[str]]:
        """Replace old names of options; also say by what."""
        return modern(words)

    def completed(self, read: Callable[[Sequence[str]], Any]) -> Any:
        """Take the options of a file, where the command line gives no other."""
        return self if self.options is None else read(words_of(self.options, type(self)))

    def job_config(self) -> Any:
        """Configuration of the job."""
        return vars(self)["config"]

    def run(self) -> None:
        """Do the work and say what came out, or plan it."""
        config, planning = self.job_config(), self.planning
        if planning != NO_PLAN:
            say(planned(JOBS[type(config)], config, card=planning.plan_card, as_json=planning.plan_json))
        else:
            self.check()
            say(self.report(run_job(config)))

    def check(self) -> None:
        """Refuse bad input before the long work."""

    def report(self, folder: Path) -> str:
        """Write the tables of a run, and say what is in it."""
        raise NotImplementedError


@dataclass(frozen=True)
class Schemes(JobCommand):
    """Compare target schemes.

    Attributes:
        config: The job.
        verbose: Print the tables too.
    """

    config: Annotated[SchemesConfig, arg(name="")] = field(default_factory=SchemesConfig)
    verbose: bool = False

    def report(self, folder: Path) -> str:
        """Write all tables, and a summary."""
        tables, lines = write_schemes(folder)
        studies = [write_account(folder, name) for name in self.config.studies]
        names = ", ".join([*NAMES, *self.config.studies])
        files = (
            f"Tables in {folder}: {names}: .md, .tex and .csv.",
            f"Every measurement: {folder / 'measurements.csv'}; figures: jacobian-lab figure {folder} "
            "residual_by_layer",
        )
        short = "\n".join([*lines, *files])
        write_text(folder / "summary.txt", short + "\n")
        return "\n\n".join([*([tables] if self.verbose else []), *studies, short])


@dataclass(frozen=True)
class Demo(Runnable):
    """Compare every target scheme on a few facts in the embedded model.

    Attributes:
        slice: Part of the built-in facts, as A:B.
        out: The run's folder.
    """

    slice: str = "0:2"
    out: Path = Path("runs/demo")

    def run(self) -> None:
        """Fill the run, and print its summary."""
        Schemes(config=SchemesConfig(slice=self.slice, corpus_tokens="auto", verdicts=False, out=self.out)).run()


@dataclass(frozen=True)
class PaperTable(JobCommand):
    """Measure what one of Tables 1, 2 and 5 needs, into the run that all share.

    Attributes:
        config: The job.
        table: The table.
    """

    config: Annotated[SchemesConfig, arg(name="")] = field(default_factory=SchemesConfig)
    table: Suppress[str] = ""

    def report(self, folder: Path) -> str:
        """Write the table."""
        return f"{write_reports(folder, (self.table,))}\n\nRun: {folder}"


@dataclass(frozen=True)
class Account(JobCommand):
    """Compute what an analysis shows.

    Attributes:
        config: The job.
        table: The analysis.
    """

    config: Annotated[Any, arg(name="")] = None
    table: Suppress[str] = ""

    def report(self, folder: Path) -> str:
        """Write the table."""
        return f"{write_account(folder, self.table)}\n\nRun: {folder}"


@dataclass(frozen=True)
class SchemesAccount(Account):
    """Compute what an analysis of edits under target schemes shows, into the run that all share."""

    config: Annotated[SchemesConfig, arg(name="")] = field(default_factory=SchemesConfig)


@dataclass(frozen=True)
class Frontier(Account):
    """Compare schemes along λ."""

    config: Annotated[FrontierConfig, arg(name="")] = field(default_factory=FrontierConfig)
    table: Suppress[str] = "frontier"


@dataclass(frozen=True)
class Sequences(Account):
    """Edit batch after batch."""

    config: Annotated[SequenceConfig, arg(name="")] = field(default_factory=SequenceConfig)
    table: Suppress[str] = "sequence"


@dataclass(frozen=True)
class Jacobians(Account):
    """Measure Jacobians."""

    config: Annotated[JacobianConfig, arg(name="")] = field(default_factory=JacobianConfig)
    table: Suppress[str] = "jacobian"


@dataclass(frozen=True)
class Locate(Account):
    """Trace the states that bring an answer back."""

    config: Annotated[LocateConfig, arg(name="")] = field(default_factory=LocateConfig)
    table: Suppress[str] = "locate"

    def report(self, folder: Path) -> str:
        """Write the table, and a summary."""
        return f"{write_locate(folder)}\n\nRun: {folder}; heat maps: jacobian-lab figure {folder} locate"


@dataclass(frozen=True)
class Transfer(Account):
    """Measure how far shifts carry."""

    config: Annotated[TransferConfig, arg(name="")] = field(default_factory=TransferConfig)
    table: Suppress[str] = "transfer"


@dataclass(frozen=True)
class LayerCounts(Account):
    """Add decisive layers one by one."""

    config: Annotated[LayerCountConfig, arg(name="")] = field(default_factory=LayerCountConfig)
    table: Suppress[str] = "layer_count"


@dataclass(frozen=True)
class Dampings(Account):
    """Edit at several μ."""

    config: Annotated[DampingConfig, arg(name="")] = field(default_factory=DampingConfig)
    table: Suppress[str] = "damping"


@dataclass(frozen=True)
class TrainingCommand(JobCommand):
    """A command with methods that train.

    Attributes:
        training: YAML or JSON file with the settings of WISE and RLEdit.
    """

    training: Path | None = None

    def job_config(self) -> Any:
        """Configuration of the job, with the settings of the file."""
        config: MethodsConfig = vars(self)["config"]
        if self.training is None:
            return config
        if config.training != TrainingConfig():
            raise InputError("expected ⟨training⟩ alone, got --wise.… or --rledit.… too: write them into the file")
        return replace(config, training=read_training(self.training))


@dataclass(frozen=True)
class Methods(TrainingCommand):
    """Compare methods.

    Attributes:
        config: The job.
        paper: CSV file in the layout of metrics.csv, whose rows stand beside ours instead of the paper's.
        only: The paper's tables that are written; those of the model by default.
    """

    config: Annotated[EditTableConfig, arg(name="")] = field(default_factory=EditTableConfig)
    paper: Path | None = None
    only: Suppress[tuple[str, ...] | None] = None

    def check(self) -> None:
        """Read the paper's numbers."""
        if self.paper is not None:
            read_paper(self.paper)

    def report(self, folder: Path) -> str:
        """Write the tables of methods."""
        return f"{write_comparison(folder, self.only, self.paper)}\n\nRun: {folder}"


@dataclass(frozen=True)
class Edit(TrainingCommand):
    """Edit with one method.

    Attributes:
        config: The job.
        push: Name on the hub, user/name, that the folder is uploaded to; a new repository is private.
    """

    config: Annotated[EditConfig, arg(name="")] = field(default_factory=EditConfig)
    push: str | None = None

    def check(self) -> None:
        """Refuse an upload that cannot be made."""
        if self.push is None:
            return
        if self.config.save == "delta":
            raise InputError("expected ⟨save⟩ lora or folder to ⟨push⟩, got delta: the hub takes folders")
        check_upload(self.push)

    def report(self, folder: Path) -> str:
        """Say how it went, and where the edit is; give its folder a card, and upload it if that is asked."""
        config = self.config
        tables, paths = write_comparison(folder, ()), saved_paths(folder, config.method, config.save)
        lines = [f"Saved: {', '.join(map(str, paths))}"]
        forms = saved_forms(folder, config.method, config.save).items()
        cards = [(form, path) for form, path in forms if form != "delta"]
        if not cards:
            return "\n\n".join([tables, *lines])
        facts = read_facts(config.facts, config.slice, on_bad_record=config.on_bad_record, on_repeat=config.on_repeat)
        for form, path in cards:
            lines.append(f"Card: {write_card(card_of(folder, form, config.method, facts.facts), path)}")
            if self.push is not None:
                lines.append(f"Uploaded: {upload(path, self.push)}")
        return "\n\n".join([tables, "\n".join(lines)])


SUITS = "What is not given suits the model at hand."


def _analysis(name: str, default: Account) -> tuple[JobCommand, str]:
    shared = "Goes into the same run as jacobian-lab schemes. " if "tables" in TABLES[name].kinds else ""
    return replace(default, table=name), f"{TABLES[name].caption} {shared}{SUITS}"


def _titled(name: str, text: str) -> str:
    return f"{name.replace('table', 'Table ')}: {text}"


SCRIPTS: Mapping[str, tuple[JobCommand, str]] = {
    **{
        name: _analysis(name, default)
        for name, default in {
            "theorem1": SchemesAccount(config=SchemesConfig(studies=("theorem1",))),
            "theorem2": SchemesAccount(config=SchemesConfig(studies=("theorem1",))),
            "decomposition": SchemesAccount(config=SchemesConfig(verdicts=False)),
            "step_size": SchemesAccount(config=SchemesConfig(studies=("step_size",), verdicts=False)),
            "layer_count": LayerCounts(),
            "damping": Dampings(),
            "frontier": Frontier(),
            "jacobian": Jacobians(),
            "locate": Locate(),
            "sequence": Sequences(),
            "transfer": Transfer(),
        }.items()
    },
    **{
        name: (
            PaperTable(config=SchemesConfig(schemes=cast("Any", TABLES[name].edits), verdicts=False), table=name),
            _titled(name, TABLES[name].caption),
        )
        for name in SCHEMES
    },
    **{
        name: (
            Methods(config=EditTableConfig(methods=entry.edits), only=(name,)),
            _titled(name, f"{', '.join(entry.edits)} (the paper's are of {entry.model})."),
        )
        for name, entry in TABLES.items()
        if entry.model
    },
}
"""Scripts in ``analyses/`` by name: their defaults, and their help."""
