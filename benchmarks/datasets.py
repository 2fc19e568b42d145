"""Make the data sets of the results from the files that their authors publish, and compare digests.

    python benchmarks/datasets.py counterfact multi_counterfact.json
    python benchmarks/datasets.py zsre zsre_mend_eval.json
    python benchmarks/datasets.py wikitext wiki.test.tokens
    python benchmarks/datasets.py wikitext wiki.test.tokens wiki.valid.tokens

Each writes one file into --out (this folder by default) and says whether it is, byte for byte, the one that the
results were made from. Where the files are from and under which licence is in docs/results/reproduce.md.
"""

import argparse
import hashlib
import itertools
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jacobian_lab.facts.fact import Fact
from jacobian_lab.facts.reading import read_facts

RECORDS = 2_000
"""Records of the paper's protocol: the first ones of each file."""
PARAGRAPHS = 600
SHORTEST = 51
"""Characters of the shortest paragraph that is kept."""

DIGESTS = {
    "counterfact_2000.json": "cb394fa76dad221eaaebac0807a96ae36dbd0f53b5269e5b8b8abb6f9269d842",
    "zsre_2000.json": "32ffa1b22881cb779c0714d2f8bcdd04eccc815d354b04eb5a004522ad15f608",
    "wikitext2_600.txt": "105cb874822731bcca55ea5e9102891978ddbd3eabf1aaf5a42f283916d27653",
    "wikitext2_3400.txt": "66d39b9247599fe409f1e05ebf7cd548ea81b61161a54735ca46d9d1c21db55e",
}
"""SHA-256 of the files that the results were made from."""


def main() -> None:
    """Convert, write, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=["counterfact", "zsre", "wikitext"])
    parser.add_argument("published", nargs="+", type=Path, help="the published file, or files")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for the converted file")
    options = parser.parse_args()
    if options.dataset == "wikitext":
        lines = list(paragraphs(options.published))
        whole = len(options.published) > 1
        name = "wikitext2_3400.txt" if whole else "wikitext2_600.txt"
        text = "".join(f"{line}\n" for line in (lines if whole else lines[:PARAGRAPHS]))
    else:
        facts = read_facts(str(options.published[0]), f"0:{RECORDS}", on_repeat="keep").facts
        name = f"{options.dataset}_{RECORDS}.json"
        text = json.dumps([record(fact) for fact in facts], indent=0, ensure_ascii=False)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / name).write_text(text, "utf-8")
    digest = hashlib.sha256(text.encode()).hexdigest()
    same = "the file of the results" if digest == DIGESTS[name] else f"NOT the file of the results ({DIGESTS[name]})"
    sys.stdout.write(f"{options.out / name}: SHA-256 {digest}, {same}\n")


def record(fact: Fact) -> dict[str, Any]:
    """One fact in the project's own layout.

    Args:
        fact: The fact.

    Returns:
        Its fields, the neighborhood's answers only where there are any.
    """
    fields: dict[str, Any] = {
        "id": fact.id,
        "subject": fact.subject,
        "prompt": fact.prompt,
        "target_new": fact.target_new,
        "target_true": fact.target_true,
        "paraphrase_prompts": list(fact.paraphrase_prompts),
        "neighborhood_prompts": list(fact.neighborhood_prompts),
    }
    if fact.neighborhood_answers:
        fields["neighborhood_prompts_answers"] = list(fact.neighborhood_answers)
    return fields


def paragraphs(files: Iterable[Path]) -> Iterable[str]:
    """Longer paragraphs of WikiText files, without headings.

    Args:
        files: The files, as published: a paragraph a line.

    Yields:
        Each paragraph, stripped.
    """
    lines = itertools.chain.from_iterable(file.read_text("utf-8").split("\n") for file in files)
    for line in map(str.strip, lines):
        if len(line) >= SHORTEST and not line.startswith("="):
            yield line


if __name__ == "__main__":
    main()
