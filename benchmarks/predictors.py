"""Predictors of an edit's fate: numbers that are there before the edit, held against what came of each fact.

    python benchmarks/predictors.py runs/trial/* --out runs/predictors
    python benchmarks/predictors.py runs/a runs/b --ridges 70 700 --verdicts --out runs/predictors

Takes runs of `jacobian-lab methods` and `frontier`, the batches of one model and of others. Each run's facts are
diagnosed as `jacobian-lab check --diagnose` does, with the run's own anchors, and never edited; λ_min of S comes from
runs of `jacobian-lab schemes` of the same facts, if some are among those given, or with --verdicts from J itself.
A frontier counts at the λ nearest to the run's own, unless --ridges names others. Runs in which a method has other
settings count as runs of that method: give those that have the same. Start it in the folder in which the runs were
made, where their files of facts and models are.

Leaves facts.csv (a row for each fact and method), predictors.csv and predictors.md (`jacobian_lab.report.prediction`),
and beside them the diagnosis of every run, which the next call takes.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tyro
import xarray as xr

from jacobian_lab.caching import content_key, write_text
from jacobian_lab.catalogue import RIDGELESS, SCHEMES, TRAINED, UNEDITED, method, without_setting
from jacobian_lab.cli.options import words_of
from jacobian_lab.jobs.config import EditConfig, EditingConfig, EditTableConfig, FrontierConfig
from jacobian_lab.jobs.diagnosing import Bounds, diagnose, donated, features_of, symmetric_bounds
from jacobian_lab.jobs.experiment import prepare
from jacobian_lab.progress import note
from jacobian_lab.report.prediction import PLACE, predicted, texts
from jacobian_lab.report.writing import markdown, write_csv
from jacobian_lab.store.run import config_of, open_run

OUTCOMES = ("efficacy", "generalization", "kl", "paraphrases")
"""Columns of ``facts.csv`` that say what came of a fact."""
BESIDE = (*PLACE, "run", "fact", "scheme", "ridge", *OUTCOMES)
"""Columns of ``facts.csv`` that are no predictors."""
Edit = tuple[str, str, float, Mapping[str, Any]]
"""A measured edit: its method, its scheme, the λ that it is diagnosed at, and where its outcomes are."""


def main() -> None:
    """Diagnose, fit, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="runs of methods and frontier, and of schemes for λ_min")
    parser.add_argument("--out", type=Path, required=True, help="folder for the tables and diagnoses")
    parser.add_argument("--ridges", nargs="+", type=float, help="values of λ of frontiers, each a method of its own")
    parser.add_argument("--verdicts", action="store_true", help="survey J where no run of schemes has λ_min")
    options = parser.parse_args()
    runs = {folder: open_run(folder) for folder in options.runs}
    surveys = [run for run in runs.values() if config_of(run)["kind"] == "tables"]
    usable = {folder: run for folder, run in runs.items() if config_of(run)["kind"] in {"edit_table", "frontier"}}
    options.out.mkdir(parents=True, exist_ok=True)
    parts = []
    for folder, run in usable.items():
        edits = list(edits_of(run, options.ridges))
        if run_settings(run).get("edits_per_batch") or not edits:
            note(f"{folder} is left out: facts that are edited in batches, or no method that is a pair")
            continue
        diagnosed = diagnosis_of(folder, run, edits, surveys, options.out, verdicts=options.verdicts)
        parts.append(joined(folder, run, edits, diagnosed))
    if not parts:
        sys.exit("expected runs of jacobian-lab methods or frontier, got none of which facts can be taken: give some")
    facts = pd.concat(parts, ignore_index=True)
    write_csv(options.out / "facts.csv", facts)
    table = predicted(facts, [str(name) for name in facts.columns if name not in BESIDE])
    write_csv(options.out / "predictors.csv", table)
    caption = (
        f"Predictors known before the edit, {len(facts)} outcomes in {facts['batch'].nunique()} batches of facts: area "
        "under the ROC curve over pairs of facts of one edit (0.5: nothing is predicted), and R² of the logarithm of "
        "D_KL; gain in log-likelihood over the share of successes alone; slope for a standard deviation. In brackets "
        "95 % intervals over batches; a predictor predicts where they lie above what is no use. None is corrected for "
        f"the number of rows, {len(table)}."
    )
    text = markdown(texts(table).set_index("outcome"), caption) + "\n"
    write_text(options.out / "predictors.md", text)
    sys.stdout.write(text)


def run_settings(run: xr.Dataset) -> dict[str, Any]:
    """Settings that decide a run's numbers."""
    return dict(config_of(run)["settings"])


def edits_of(run: xr.Dataset, ridges: Sequence[float] | None) -> Iterator[Edit]:
    """List the edits of a run that are pairs of a scheme with a rule, at the values of λ that count."""
    own = float(config_of(run)["provenance"]["ridge"])
    for name in map(str, run["edit"].values):
        plain = without_setting(name)[0]
        if plain in {UNEDITED, *TRAINED} or method(name).refit or SCHEMES[method(name).scheme].pulls_back:
            continue
        pair = method(name)
        if "ridge" not in run.dims:
            yield name, pair.scheme, own, {"edit": name}
            continue
        grid = run["ridge"].values[(run["measured"].sel(edit=name) == 1).values]
        ridgeless = pair.rule in RIDGELESS
        middle = float(np.exp(np.log(grid).mean())) if ridgeless else own
        points = [grid[np.abs(np.log(grid / middle)).argmin()]] if ridges is None else [r for r in ridges if r in grid]
        for point in map(float, points):
            label = name if ridges is None else f"{name}, λ = {point:g}"
            yield label, pair.scheme, own if ridgeless else point, {"edit": name, "ridge": point}


def configuration(folder: Path, run: xr.Dataset) -> EditingConfig:
    """Make the configuration that a run was made with, which takes its anchors from it."""
    kind: type[EditingConfig] = FrontierConfig if config_of(run)["kind"] == "frontier" else EditTableConfig
    if "method" in config_of(run)["provenance"]["options"]:
        kind = EditConfig
    return tyro.cli(kind, args=[*words_of(folder, kind), f"--anchors-from={folder}"])


def diagnosis_of(
    folder: Path, run: xr.Dataset, edits: Sequence[Edit], surveys: Sequence[xr.Dataset], out: Path, *, verdicts: bool
) -> pd.DataFrame:
    """Diagnose a run's facts for every scheme and λ, or read what an earlier call has left."""
    pairs = list(dict.fromkeys((scheme, ridge) for _, scheme, ridge, _ in edits))
    bounds = surveyed(run, surveys)
    key = content_key([config_of(run)["settings"], pairs, verdicts, bounds is not None])
    path = out / "diagnoses" / f"{folder.name}-{key[:12]}.csv"
    if path.is_file():
        return pd.read_csv(path, dtype={"fact": str, "scheme": str})
    experiment = prepare(configuration(folder, run), questions=lambda fact: fact, progress=sys.stderr.isatty())
    try:
        bounds = symmetric_bounds(experiment) if verdicts and bounds is None else bounds
        frame = pd.DataFrame([
            {"fact": str(record["id"]), "scheme": scheme, "ridge": ridge, **features_of(record)}
            for scheme, ridge in pairs
            for record in diagnose(experiment, scheme, donated(experiment, scheme), ridge=ridge, bounds=bounds)
        ])
    finally:
        experiment.executor.release()
    path.parent.mkdir(exist_ok=True)
    write_csv(path, frame)
    return frame


def surveyed(run: xr.Dataset, surveys: Sequence[xr.Dataset]) -> Bounds | None:
    """Take λ_min and λ_max from a run of schemes of the same model, facts and layers, if one has surveyed them all."""
    for survey in surveys:
        same = all(run_settings(survey)[name] == run_settings(run)[name] for name in ("model", "facts", "layers"))
        if same and bool((survey["surveyed"] == 1).all()):
            return {name: survey[name].values for name in ("lambda_min", "lambda_max")}
    return None


def joined(folder: Path, run: xr.Dataset, edits: Sequence[Edit], diagnosed: pd.DataFrame) -> pd.DataFrame:
    """Hold what came of each fact against its diagnosis, a row for each fact and edit."""
    config = config_of(run)
    name = Path(str(config["provenance"]["model"])).name.removesuffix(".gguf")
    batch = f"{name} {config['settings']['facts'][:12]}"
    parts = []
    for label, scheme, ridge, where in edits:
        cell = run.sel(where)
        answers = cell["generalization_accuracy"]
        outcomes = pd.DataFrame({
            "model": name,
            "batch": batch,
            "edit": f"{folder}: {label}",
            "method": label,
            "run": str(folder),
            "fact": [str(fact) for fact in cell["fact"].values],
            "scheme": scheme,
            "ridge": ridge,
            "efficacy": cell["efficacy_accuracy"].values,
            "generalization": answers.mean("paraphrase").values,
            "kl": cell["kl"].mean("neighbor").values,
            "paraphrases": answers.notnull().sum("paraphrase").values,
        })
        parts.append(outcomes.merge(diagnosed, on=["fact", "scheme", "ridge"], how="inner", validate="one_to_one"))
    return pd.concat(parts, ignore_index=True)


if __name__ == "__main__":
    main()
