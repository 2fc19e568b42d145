"""A table of the families whose small random models pass `jacobian-lab check`, for docs/guide/verified.md.

Every family's model of the tests (`tests/helpers/small.py`), six blocks of width 32, is checked on built-in facts in
float64.
"""

import argparse
import io
import json
import sys
import tempfile
from collections.abc import Mapping
from contextlib import redirect_stdout, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from jacobian_lab import cli
from jacobian_lab.errors import InputError
from jacobian_lab.facts.reading import BUILTIN, load_facts
from jacobian_lab.maps.restorations import TraceSettings, traced_prompt
from jacobian_lab.maps.tracing import embedding_deviation
from jacobian_lab.maps.tracing_check import check_tracing
from jacobian_lab.model.loading import load_model

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from helpers.small import CONFIGS, LACKING, make_folder  # noqa: E402

HEAD = """# Verified models

`python benchmarks/verified_models.py` has written this page, with torch {torch} and transformers {transformers}.
It runs `jacobian-lab check --json --dtype float64` for a small random model of each family on built-in facts, {facts}.
*Largest difference* is that of a hidden state or of logits between replay and the model itself, relative to their norm.
transformers computes Gemma 2's attention in float32 whatever the dtype.

What is guaranteed for a row that says yes: `make test` compares replay from three layers, logits, \\(J_{{l\\to L}}\\)
and keys with the untouched transformers model, one row at a time, in float64 to 10⁻¹⁰
(`tests/maps/test_every_family.py`). Rows of several lengths stand side by side, some longer than a sliding window, with
answers of several tokens. The small models have the attention variants of their family: norms on queries and keys,
windows by layer, soft caps, two kinds of rotary positions, layers without any, multipliers, fused projections.

What is not guaranteed: that an edit works *well* on such a model; that a configuration which no small model has agrees
(another rotary scaling, say); that another version of transformers does. So every command compares replay with the
model itself when it loads one, on the facts at hand, and refuses what does not agree. Each token chooses its experts: J
of such a model holds as long as a change leaves the choice as it is.

"""


def main() -> None:
    """Check every family, print the page and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=list(CONFIGS), choices=list(CONFIGS))
    parser.add_argument("--slice", default="0:8", help="the built-in facts to check on")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "guide" / "verified.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        rows = [row(name, report(name, root, options.slice), traced(root / name)) for name in options.families]
    rows += [{"family": name, "replay and J": f"not in transformers {version('transformers')}"} for name in LACKING]
    head = HEAD.format(facts=options.slice, torch=version("torch"), transformers=version("transformers"))
    text = head + pd.DataFrame(rows).fillna("").to_markdown(index=False) + "\n"
    options.out.write_text(text, "utf-8")
    sys.stdout.write(text)


def report(name: str, root: Path, facts: str) -> dict[str, Any]:
    """Report of the command on a family's small model.

    Args:
        name: The family, or one layout of it.
        root: Folder to make the model in.
        facts: The slice of the built-in facts.

    Returns:
        What the command prints.
    """
    folder = make_folder(root / name, CONFIGS[name])
    options = ["--model", folder, "--dtype", "float64", "--device", "cpu", "--slice", facts, "--json"]
    printed = io.StringIO()
    with redirect_stdout(printed), suppress(SystemExit):  # with status 1 for what is not edited
        cli.main(["check", *map(str, options)])
    return json.loads(printed.getvalue())


def traced(folder: Path) -> str:
    """Say whether causal tracing of a model agrees with whole passes of it, in float64."""
    model, (fact,) = load_model(folder, dtype="float64", device="cpu"), load_facts(BUILTIN, "0:1")
    try:
        check_tracing(model, fact, traced_prompt(model, fact), TraceSettings(samples=1), embedding_deviation(model))
    except InputError:
        return "no"
    return "yes"


def row(name: str, checked: Mapping[str, Any], tracing: str) -> dict[str, str]:
    """A family's row of the table.

    Args:
        name: The family, or one layout of it.
        checked: The command's report.
        tracing: Whether it can be traced.

    Returns:
        Cells by column.
    """
    checks = {check["check"]: check for check in checked["model"]["checks"]}
    replay, edits = checks["replay"], checks["edits"]
    config = CONFIGS[name]
    return {
        "family": name,
        "transformers": type(config).__name__.removesuffix("Config"),
        "replay and J": "yes" if replay["passed"] else "no",
        "tracing": tracing,
        "edits": "yes" if edits["passed"] else edits["detail"].partition(", whose ")[2].partition(":")[0],
        "largest difference": f"{max(replay['states'], replay['logits']):.0e}",
    }


if __name__ == "__main__":
    main()
