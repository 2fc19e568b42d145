"""A release: metadata that agree, and a wheel that holds all that the package reads."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest
import yaml
from helpers.commands import ROOT

from jacobian_lab import __version__
from jacobian_lab.cli import jobs

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_versions_agree_and_are_semantic():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert re.fullmatch(r"\d+\.\d+\.\d+(-[\w.]+)?", PROJECT["version"])
    assert cited["version"] == PROJECT["version"] == __version__
    assert cited["title"] == PROJECT["name"]
    assert cited["license"] == PROJECT["license"]
    assert cited["abstract"] == PROJECT["description"]
    assert (ROOT / PROJECT["readme"]).is_file()
    latest = re.search(r"^## \[(.+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert latest is not None
    assert latest[1] in {"Unreleased", PROJECT["version"]}


def test_the_workflow_tests_the_pythons_that_the_classifiers_name():
    matrix = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text())["jobs"]["tests"]["strategy"]["matrix"]
    classified = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", line)]
    assert matrix["python"] == classified
    assert len(classified) == 3
    assert PROJECT["requires-python"] == f">={classified[0]}"


@pytest.mark.job
def test_the_wheel_holds_every_file_of_the_package(tmp_path):
    """Facts, paper tables, measured settings, the mark of types: whatever stands in the package's folder."""
    pytest.importorskip("setuptools")
    source = tmp_path / "source"
    shutil.copytree(ROOT / "jacobian_lab", source / "jacobian_lab", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", PROJECT["readme"], "LICENSE"):
        shutil.copy(ROOT / name, source)
    expected = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    expected = {name for name in expected if name.startswith("jacobian_lab/")}
    code = "from setuptools import build_meta; build_meta.build_wheel('..')"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(next(name for name in names if name.endswith("/METADATA"))).decode()
    assert names >= expected
    assert {name.rpartition(".")[2] for name in expected} > {"py", "json", "csv", "typed"} - {"py"}
    assert not [name for name in names if name.startswith("tests")]
    assert "License-Expression: Apache-2.0" in metadata
    assert "Project-URL: Paper" in metadata


def test_the_demo_is_a_small_run_of_schemes(monkeypatch, tmp_path):
    configs = []
    monkeypatch.setattr(jobs.Schemes, "run", lambda self: configs.append(self.config))
    jobs.Demo(out=tmp_path).run()
    assert [(config.slice, config.corpus_tokens, config.out) for config in configs] == [("0:2", "auto", tmp_path)]
