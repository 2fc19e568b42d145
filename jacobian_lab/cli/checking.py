"""The command that looks before anything is edited."""

import json
import sys
from dataclasses import dataclass, field
from typing import Annotated

from tyro.conf import arg

from jacobian_lab.caching import write_text
from jacobian_lab.cli import say
from jacobian_lab.cli.parsing import Runnable
from jacobian_lab.jobs.diagnosing import table_of
from jacobian_lab.jobs.inspection import CheckConfig, inspect, summary
from jacobian_lab.report.writing import write_csv


@dataclass(frozen=True)
class Check(Runnable):
    """Show what would be edited.

    Attributes:
        config: The model, and the facts.
    """

    config: Annotated[CheckConfig, arg(name="")] = field(default_factory=CheckConfig)

    def run(self) -> None:
        """Print the report; status 1 if a record is refused, facts conflict, or the model fails a check."""
        report = inspect(self.config)
        text = json.dumps(report, indent=1, ensure_ascii=False)
        if self.config.out is not None:
            path = self.config.out if self.config.out.suffix == ".json" else self.config.out / "check.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, text + "\n")
            if "diagnosis" in report:
                write_csv(path.with_name("diagnosis.csv"), table_of(report["diagnosis"]["facts"]))
        say(text if self.config.json else "\n".join(summary(report)))
        if not report["passed"]:
            sys.exit(1)
