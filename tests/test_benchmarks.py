"""The benchmark of a device runs without one."""

import json
import subprocess
import sys

from helpers.commands import ENVIRONMENT, ROOT


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
    assert found["shape"]["width"] == 64
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
