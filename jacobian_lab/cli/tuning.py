"""The command that searches layers, λ, learning rate and passes."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from jacobian_lab.cli.jobs import JobCommand
from jacobian_lab.jobs.tune_config import TuneConfig
from jacobian_lab.model.protocols import file_name
from jacobian_lab.report.results import Results
from jacobian_lab.report.tables.tune import why


@dataclass(frozen=True)
class Tune(JobCommand):
    """Search layers, λ, learning rate and passes.

    Attributes:
        config: The job.
        verbose: Print every try too.
    """

    config: Annotated[TuneConfig, arg(name="")] = field(default_factory=TuneConfig)
    verbose: bool = False

    def report(self, folder: Path) -> str:
        """Write every try, and say what was chosen and why."""
        run = Results(folder, "tune")
        table = run.write("tune")
        files = ", ".join(str(folder / file_name(str(name))) for name in run.dataset["edit"].values)
        said = (
            *why(run.dataset),
            f"Every try: {folder / 'tune.csv'}, tune.md; figure: jacobian-lab figure {folder} tune",
            f"For --protocol of any command: {files}",
        )
        return "\n\n".join([*([table] if self.verbose else []), *said])
