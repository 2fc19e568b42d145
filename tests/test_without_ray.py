"""Workers without Ray."""

import sys

import pytest
from helpers.commands import options

from jacobian_lab import cli


def test_it_is_said_in_one_line(arguments, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SystemExit) as caught:
        cli.main(["tables", *options({**arguments, "out": tmp_path / "run"}), "--workers", "2"])
    assert caught.value.code == 2
    assert "pip install 'jacobian_lab[ray]'" in capsys.readouterr().err
