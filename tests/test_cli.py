"""The command line itself: light, grouped, with examples; options from files; old names."""

import json
import shlex
import subprocess
import sys
from types import ModuleType

import pytest
from helpers.commands import ENVIRONMENT

from jacobian_lab import cli
from jacobian_lab.cli import catalog, options, parsing
from jacobian_lab.cli.jobs import SCRIPTS, Edit, Methods, Schemes
from jacobian_lab.editing.settings import CoordinationSettings
from jacobian_lab.errors import InputError
from jacobian_lab.jobs.config import EditTableConfig, SchemesConfig
from jacobian_lab.jobs.options import options_of
from jacobian_lab.training.settings import TrainingConfig

HEAVY = ("torch", "transformers", "pandas", "xarray", "matplotlib")


def parsed(command, *words):
    return parsing.parse(command, words, "test", "Test.")


def refused(capsys, *words):
    """The one line that bad usage ends with."""
    with pytest.raises(SystemExit) as caught:
        cli.main(list(map(str, words)))
    out, err = capsys.readouterr()
    assert (caught.value.code, out, err.count("\n")) == (2, "", 1), err
    return err


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["facts", "--slice", "0:1"], ["show", "--help"]])
def test_what_needs_no_torch_imports_none(words):
    code = f"""
import sys
from jacobian_lab.cli import main
try:
    main({words!r})
except SystemExit as end:
    assert not end.code
heavy = [name for name in {HEAVY!r} if name in sys.modules]
sys.exit(f"imported {{heavy}}" if heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_the_help_has_every_command_once_by_purpose(capsys):
    cli.main([])
    text = capsys.readouterr().out
    for group in catalog.GROUPS:
        assert f"\n{group.capitalize()}:\n" in text
    for name, command in catalog.COMMANDS.items():
        assert command.group in catalog.GROUPS
        assert text.count(f"\n  {name} ") == 1


@pytest.mark.parametrize("name", catalog.COMMANDS)
def test_examples_can_be_parsed_and_stand_in_the_help(name, capsys):
    command = catalog.COMMANDS[name]
    assert 2 <= len(command.examples) <= 3
    for example in command.examples:
        first, *words = shlex.split(example.split(" | ")[0])
        assert first == name
        if "--config" not in words:
            parsed(command.load(), *words)
    with pytest.raises(SystemExit):
        cli.main([name, "--help"])
    assert f"{command.summary}\n\nExamples:\n" in capsys.readouterr().out


def test_rare_options_stand_in_the_whole_help_alone(capsys):
    texts = []
    for option in ("--help", "--help-all"):
        with pytest.raises(SystemExit):
            cli.main(["methods", option])
        texts.append(capsys.readouterr().out)
    short, whole = ({word.strip(",]") for word in text.split() if word.startswith("--")} for text in texts)
    assert len({word for word in short if not word.startswith("--no-")}) < 50
    assert {"--wise.alpha", "--rect-kept", "--chat-system", "--coordination.budget"} <= whole - short
    assert short - {"--help-all"} <= whole
    with pytest.raises(SystemExit):
        parsed(SCRIPTS["table3"][0], "--help")
    assert "memit+cr" in capsys.readouterr().out  # a script's own defaults


def test_an_unknown_command_ends_with_one_line(capsys):
    assert "expected a command of models, facts" in refused(capsys, "nothing")


def test_options_of_a_file_are_those_of_the_command_line(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "slice: 0:2\nanchor: {steps: 3}\nrect-kept: 0.5\nrules:\n  prune_base: 1.5\ngreedy: false\nbatch_size: 4\n"
        "methods: [memit, rect]\ncorpus_tokens: auto\nchat: true\nchat_option: [a=1, b=2]\n"
        "ridge: null\nwise.alpha: 2.0\n"
    )
    words = "--slice=0:2 --anchor.steps 3 --rect-kept 0.5 --prune-base 1.5 --no-greedy --anchors-per-batch 4"
    words += " --methods memit rect --corpus-tokens auto --chat --chat-option a=1 --chat-option b=2 --wise.alpha 2"
    expected = parsed(Methods, *words.split()).config
    assert parsed(Methods, "--config", str(path)).config == expected
    config = parsed(Methods, "--slice", "1:3", "--config", str(path), "--greedy", "--methods", "memit").config
    assert (config.slice, config.greedy, config.methods, config.anchor.steps) == ("1:3", True, ("memit",), 3)


def test_weights_of_layers_are_a_name_or_numbers(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("coordination: {weighting: [1, 0.5, 0]}\n")
    listed = parsed(Schemes, "--coordination.weighting", "1", "0.5", "0", "--coordination.rate", "full").config
    assert listed.coordination.weighting == parsed(Schemes, "--config", str(path)).config.coordination.weighting
    assert listed.coordination == CoordinationSettings((1.0, 0.5, 0.0), rate="full")
    named = parsed(Schemes, "--coordination.weighting", "random", "--coordination.draw", "3").config
    assert named.coordination == CoordinationSettings("random", draw=3)
    assert options_of(listed) == {"coordination.weighting": [1.0, 0.5, 0.0], "coordination.rate": "full"}


def test_a_run_keeps_the_options_that_it_was_made_with(tmp_path):
    words = "--slice 0:2 --anchor.lr 0.1 --methods memit rect --corpus-tokens auto --out x"
    config = parsed(Methods, *words.split()).config
    kept = options_of(config)
    assert kept == {"slice": "0:2", "anchor.lr": 0.1, "methods": ["memit", "rect"], "corpus_tokens": "auto"}
    file = {"format": 1, "kind": "edit_table", "settings": {}, "provenance": {"options": kept}}
    (tmp_path / "config.json").write_text(json.dumps(file))
    for path in (tmp_path, tmp_path / "config.json"):
        again = parsed(Methods, "--config", str(path), "--out", "x").config
        assert again == config
    assert options_of(EditTableConfig()) == {}
    assert options_of(SchemesConfig(studies=("theorem1",))) == {"studies": ["theorem1"]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sclice: 0:2", "got 'sclice': leave it out"),
        ("anchor: {steps: many}", "another value of --anchor.steps in "),
        ("dtype: float8", "another value of --dtype in "),
        ("greedy: 3", "another value of --greedy in "),
        ("- slice", "options with values in --config "),
        ("[", "YAML or JSON in --config "),
        (None, "YAML or JSON in --config "),
        (
            '{"settings": {}, "provenance": {"command": "jacobian-lab tables"}}',
            "(jacobian-lab tables): give the options",
        ),
        ("seed: -1", "got --seed -1"),
    ],
)
def test_a_bad_file_of_options_ends_with_one_line(text, words, tmp_path, capsys):
    path = tmp_path / "run.yaml"
    if text is not None:
        path.write_text(text)
    assert words in refused(capsys, "methods", "--config", path)


def test_settings_of_training_come_from_a_file(tmp_path, capsys):
    path = tmp_path / "training.yaml"
    path.write_text("wise: {alpha: 2.5}\n")
    words = ("--training", str(path))
    for command in (Methods, Edit):
        assert parsed(command, *words).job_config().training.wise.alpha == 2.5
        assert parsed(command).job_config().training == TrainingConfig()
    with pytest.raises(InputError, match="expected training alone, got --wise"):
        parsed(Methods, *words, "--wise.alpha", "1").job_config()
    path.write_text("wise: {alfa: 2.5}\n")
    assert "got wise.alfa" in refused(capsys, "methods", *words)


def test_old_names_of_options_go_on_working(capsys):
    words, lines = options.modern([
        "--metrics=zsre",
        "--batch-size",
        "4",
        "--wise.clamp",
        "2",
        "--json",
        "--slice",
        "0:2",
    ])
    assert words == [
        "--success=zsre",
        "--anchors-per-batch",
        "4",
        "--wise.norm-constraint",
        "2",
        "--plan-json",
        "--slice",
        "0:2",
    ]
    assert lines[0] == "--metrics is now called --success"
    assert [line.split()[-1] for line in lines] == ["--success", "--anchors-per-batch", "--plan-json", "FILE"]
    assert parsed(Methods, *words).config.success == "zsre"


def test_old_names_of_commands_go_on_working_with_a_line_at_the_end(monkeypatch, capsys):
    ran = []
    monkeypatch.setattr("jacobian_lab.cli.jobs.run_job", lambda config: ran.append(config))
    for command in (*{type(default) for default, _ in SCRIPTS.values()}, Schemes, Methods):
        monkeypatch.setattr(command, "report", lambda _self, _folder: "Done.")
    for name, old in catalog.OLD.items():
        cli.main([name, "--slice", "0:2"])
        out, err = capsys.readouterr()
        assert out == "Done.\n"
        assert err == f"jacobian-lab: {name} is now called jacobian-lab {old.new}\n"
        assert ran[-1].slice == "0:2"
        words = old.new.split(",")[0].split()
        instead = parsed(catalog.COMMANDS[words[0]].load(), *words[1:], "--slice", "0:2").config
        assert instead == ran[-1]


def test_a_page_of_a_run_is_written_and_its_gaps_are_said(monkeypatch, capsys, tmp_path):
    fake = ModuleType("jacobian_lab.report.page.writing")
    fake.write_report = lambda folder, against, out, facts: (out or folder / "report.html", [f"{against} {facts}"])
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    cli.main(["report", str(tmp_path)])
    cli.main(["report", str(tmp_path), "other", "--out", "a.html", "--facts", "b.json"])
    out, err = capsys.readouterr()
    assert out.splitlines() == [str(tmp_path / "report.html"), "a.html"]
    assert "None None" in err
    assert "other b.json" in err


def test_a_run_is_shown_and_drawn(monkeypatch, capsys, tmp_path):
    fake = ModuleType("jacobian_lab.report.showing")
    fake.show = lambda folder, names: f"shown {folder.name} {names}"
    fake.draw = lambda folder, name, out, fact: out or folder / f"{name}.pdf"
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    cli.main(["show", str(tmp_path / "run"), "table2", "effort"])
    cli.main(["figure", str(tmp_path / "run"), "effort"])
    cli.main(["figure", str(tmp_path / "run"), "effort", "--out", "a.pdf"])
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["shown run ('table2', 'effort')", str(tmp_path / "run" / "effort.pdf"), "a.pdf"]
