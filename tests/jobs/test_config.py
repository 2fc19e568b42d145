"""Settings: choices and ranges beside their fields, errors that name the field, options on the command line alone."""

from dataclasses import replace
from typing import get_args

import pytest
from helpers.commands import holding

from jacobian_lab import cli
from jacobian_lab.catalogue import RIDGELESS, SCHEMES, SchemeName
from jacobian_lab.editing.rules import RECT_KEPT, RULES, RuleSettings
from jacobian_lab.errors import InputError
from jacobian_lab.jobs.config import (
    AnchorConfig,
    DampingConfig,
    EditConfig,
    EditTableConfig,
    FrontierConfig,
    JacobianConfig,
    LayerCountConfig,
    SchemesConfig,
    check,
)
from jacobian_lab.jobs.experiment import _note_corpus
from jacobian_lab.model.loading import DTYPES

CONFIGS = (DampingConfig, EditConfig, EditTableConfig, FrontierConfig, JacobianConfig, LayerCountConfig, SchemesConfig)


@pytest.mark.parametrize("config", CONFIGS)
def test_defaults_can_be_used(config):
    check(config())


@pytest.mark.parametrize(
    ("settings", "doubted"),
    [
        ({}, True),
        ({"protocol": "gpt2-xl"}, True),
        ({"protocol": "smollm2-135m/memit"}, False),
        ({"ridge": 15000.0}, False),
        ({"corpus": "mine.txt"}, False),
        ({"moments": "moments"}, False),
    ],
)
def test_the_literatures_ridge_is_doubted_with_the_default_corpus(settings, doubted, capsys):
    _note_corpus(EditTableConfig(**settings), 15000.0)
    assert ("λ = 15000 is the literature's" in capsys.readouterr().err) == doubted
    _note_corpus(EditTableConfig(**settings), None)
    assert not capsys.readouterr().err


def test_choices_are_what_there_is():
    assert get_args(SchemeName) == tuple(SCHEMES)
    assert {*get_args(FrontierConfig.__dataclass_fields__["rule"].type), *RIDGELESS} == set(RULES)
    assert set(get_args(SchemesConfig.__dataclass_fields__["dtype"].type)) == set(DTYPES)
    assert set(get_args(RuleSettings.__dataclass_fields__["rect_by"].type)) == set(RECT_KEPT)


@pytest.mark.parametrize(
    ("config", "values", "words"),
    [
        (SchemesConfig, {"dtype": "float8"}, "expected of float32, float64, bfloat16, float16, got dtype 'float8'"),
        (SchemesConfig, {"survey": "magic"}, "expected of auto, dense, lanczos, none, got survey 'magic'"),
        (SchemesConfig, {"schemes": ("sideways",)}, "got schemes 'sideways'"),
        (SchemesConfig, {"schemes": ()}, "at least one of backward-dividing, .*got schemes without"),
        (SchemesConfig, {"ridge": -1.0}, "not negative, got ridge -1"),
        (SchemesConfig, {"ridge": float("nan")}, "not negative, got ridge nan"),
        (SchemesConfig, {"seed": -1}, "above -1, got seed -1"),
        (SchemesConfig, {"seed": 2**63}, "below 9223372036854775808, got seed"),
        (SchemesConfig, {"anchors_per_batch": 0}, "above zero, got anchors_per_batch 0"),
        (SchemesConfig, {"anchor__lr": 0.0}, "above zero, got anchor.lr 0"),
        (SchemesConfig, {"anchor__steps": 1}, "above 1, got anchor.steps 1"),
        (SchemesConfig, {"anchor__lr": float("nan")}, "not negative, got anchor.lr nan"),
        (SchemesConfig, {"anchor__steps": 0}, "above 1, got anchor.steps 0"),
        (SchemesConfig, {"pullback_damping": 0.0}, "above zero, got pullback_damping 0"),
        (SchemesConfig, {"anchor__kl_factor": float("inf")}, "not negative, got anchor.kl_factor inf"),
        (
            SchemesConfig,
            {"coordination__weighting": "last"},
            "equal, front, .*got coordination.weighting 'last'",
        ),
        (SchemesConfig, {"coordination__weighting": (1.0, -1.0)}, "not negative, got coordination.weighting -1"),
        (SchemesConfig, {"coordination__weighting": ()}, "at least one, got coordination.weighting without"),
        (SchemesConfig, {"anchor__delivered": "half"}, "none, random, margin, got anchor.delivered 'half'"),
        (SchemesConfig, {"anchor__delivered_share": 0.0}, "above zero, got anchor.delivered_share 0"),
        (SchemesConfig, {"anchor__delivered_share": 1.5}, "at most 1, got anchor.delivered_share 1.5"),
        (SchemesConfig, {"coordination__draw": -1}, "above -1, got coordination.draw -1"),
        (EditTableConfig, {"rules__rect_kept": 1.5}, "at most 1, got rect_kept 1.5"),
        (EditTableConfig, {"rules__rect_kept": 0.0}, "above zero, got rect_kept 0"),
        (EditTableConfig, {"rules__prune_base": 1.0}, "above 1, got prune_base 1"),
        (EditTableConfig, {"rules__prune_kind": "cube"}, "log, log_a, linear, got prune_kind 'cube'"),
        (EditTableConfig, {"methods": ()}, "at least one, got methods without"),
        (EditTableConfig, {"edits_per_batch": 0}, "above zero, got edits_per_batch 0"),
        (EditConfig, {"save": "pickle"}, "delta, folder, both, lora, got save 'pickle'"),
        (DampingConfig, {"dampings": (0.1, 0.0)}, "above zero, got dampings 0"),
        (FrontierConfig, {"ridges": (0.0,)}, "above zero, got ridges 0"),
        (FrontierConfig, {"ridges": (1.0, float("nan"))}, "not negative, got ridges nan"),
        (JacobianConfig, {"sweep_memory": float("nan")}, "not negative, got sweep_memory nan"),
        (JacobianConfig, {"sweep_memory": float("inf")}, "not negative, got sweep_memory inf"),
        (JacobianConfig, {"seed": -1}, "above -1, got seed -1"),
        (LayerCountConfig, {"max_layers": 0}, "above zero, got max_layers 0"),
    ],
)
def test_the_field_is_named(config, values, words):
    with pytest.raises(InputError, match=words):
        check(holding(config(), **values))


def test_only_the_command_line_makes_an_option_of_a_field(capsys):
    error = InputError("expected a number, got ⟨anchor.kl_factor⟩ inf: raise ⟨ridge⟩ ⟨R, Jδ⟩")
    assert str(error) == "expected a number, got anchor.kl_factor inf: raise ridge ⟨R, Jδ⟩"
    assert error.by_option() == "expected a number, got --anchor.kl-factor inf: raise --ridge ⟨R, Jδ⟩"
    with pytest.raises(SystemExit) as caught:
        cli.main(["edit-table", "--rect-kept", "2"])
    assert caught.value.code == 2
    assert (
        capsys.readouterr().err == "jacobian-lab: expected a number of at most 1, got --rect-kept 2.0: give another\n"
    )


@pytest.mark.parametrize("option", [["--schemes", "sideways"], ["--dtype", "float8"], ["--survey", "magic"]])
def test_a_choice_that_there_is_not_ends_with_the_choices(option, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["tables", *option])
    assert caught.value.code == 2
    assert option[1] in capsys.readouterr().err


def test_a_nested_setting_is_one_of_its_own():
    config = SchemesConfig(anchor=AnchorConfig(lr=0.1))
    assert replace(config, seed=1).anchor.lr == 0.1
