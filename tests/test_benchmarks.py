"""Benchmarks run without a card; data sets are made from the published files."""

import json
import subprocess
import sys

import pytest
from helpers.commands import ENVIRONMENT, ROOT


@pytest.mark.slow
def test_the_benchmark_of_a_device_runs_to_its_end(tmp_path):
    out = tmp_path / "gpu.json"
    sizes = ["--shape", "tiny", "--facts", "2", "--steps", "2", "--edits", "8", "--tokens", "256", "--repeats", "1"]
    script = ROOT / "benchmarks" / "gpu.py"
    done = subprocess.run(
        [sys.executable, script, *sizes, "--out", out],
        env=ENVIRONMENT | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert found["shape"]["d_model"] == 64
    assert found["machine"]["card"] is None
    stages = {stage["name"]: stage for stage in found["stages"]}
    assert found["options"]["facts"] == 2
    assert list(stages) == [
        "products in float32",
        "products in float64",
        "anchors one by one",
        "anchors side by side",
        "all J to 8",
        "a verdict by the matrix",
        "a verdict by Lanczos",
        "second moments",
        "a solve",
    ]
    assert all(stage.get("seconds", stage.get("teraflops")) > 0 for stage in stages.values())
    assert stages["anchors side by side"]["apart"] < 1e-4
    verdicts = {stages[f"a verdict by {way}"]["verdict"].split(":")[0] for way in ("the matrix", "Lanczos")}
    assert len(verdicts) == 1


@pytest.mark.slow
@pytest.mark.real
def test_the_embedded_model_answers_the_second_hops_that_are_asked():
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "reasoning.py"],
        env=ENVIRONMENT | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "second hops answered by smollm2-135m" in done.stdout


def _published(folder, name):
    """The file of the results in the layout of its authors."""
    records = json.loads((folder / name).read_text("utf-8"))
    if name.startswith("zsre"):
        return [
            {
                "subject": fact["subject"],
                "src": fact["prompt"].replace("{}", fact["subject"]),
                "pred": "",
                "rephrase": fact["paraphrase_prompts"][0],
                "alt": "another",
                "answers": [fact["target_new"]],
                "loc": fact["neighborhood_prompts"][0].removesuffix("?"),
                "loc_ans": fact["neighborhood_prompts_answers"][0],
                "cond": "",
            }
            for fact in records
        ]
    return [
        {
            "case_id": fact["id"],
            "requested_rewrite": {
                "prompt": fact["prompt"],
                "relation_id": "P103",
                "target_new": {"str": fact["target_new"], "id": "Q1"},
                "target_true": {"str": fact["target_true"], "id": "Q2"},
                "subject": fact["subject"],
            },
            "paraphrase_prompts": fact["paraphrase_prompts"],
            "neighborhood_prompts": fact["neighborhood_prompts"],
            "attribute_prompts": [],
            "generation_prompts": [],
        }
        for fact in records
    ]


@pytest.mark.parametrize("dataset", ["counterfact", "zsre"])
def test_data_sets_of_the_results_are_made_from_the_published_ones(tmp_path, shared, dataset):
    folder, name = shared / "data", f"{dataset}_2000.json"
    published = [*_published(folder, name), {"case_id": 99_999, "more": "than is taken"}]
    (tmp_path / "published.json").write_text(json.dumps(published), "utf-8")
    script = ROOT / "benchmarks" / "datasets.py"
    done = subprocess.run(
        [sys.executable, script, dataset, tmp_path / "published.json", "--out", tmp_path],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "the file of the results" in done.stdout, done.stderr
    assert "NOT" not in done.stdout
    assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
