"""Settings of the methods that train: values for each model, stored names, and files."""

import json
from dataclasses import fields, replace
from types import SimpleNamespace

import pytest

from jacobian_lab.errors import InputError
from jacobian_lab.jobs.config import check
from jacobian_lab.store.run import check_same
from jacobian_lab.training.reading import read_training
from jacobian_lab.training.settings import RENAMED, RLEditConfig, TrainingConfig, WiseConfig

SMALL = SimpleNamespace(n_layers=30, known_as=lambda: "")

FORMER_WISE = (
    '{"mask_ratio": 0.2, "clamp": 1.0, "decay": 1e-05, "decayed": "masked", "shards": 4, "merged": 2, "density": 0.53, '
    '"retrieve": false, "block": 27, "entrance": false, "lr": 0.05, "steps": 30, "alpha": 0.03, "beta": 0.3, '
    '"gamma": 0.15, "absolute": false, "act_ratio": 0.88, "seed": 0}'
)
FORMER_RLEDIT = (
    '{"depth": 4, "meta_lr": 1e-05, "local": 0.6, "penalty": 0.0001, "discount": 0.95, "back": 10, "clip": 1.0, '
    '"clipped": "once", "penalised": true, "step": "trajectory", "facts_at_once": 20, "rows_at_once": 4, "epochs": 1, '
    '"blocks": [20, 21, 22, 23, 24, 25, 26, 27, 28], "projections": false, "rate": 0.0003, "rank": 256, "batches": 10, '
    '"edited_at_once": 1, "seed": 0}'
)
"""Settings as a run and a training of the first version hold them, for 30 blocks."""


def test_a_run_and_a_training_from_before_are_gone_on_with(tmp_path):
    resolved = TrainingConfig().resolved(SMALL)
    now = {"wise": resolved.wise.stored(), "rledit": replace(resolved.rledit, edited_at_once=1).stored()}
    before = {"wise": FORMER_WISE, "rledit": FORMER_RLEDIT}
    assert now == before  # byte for byte: they are part of a cached training's name
    check_same({"training": before}, {"training": now}, tmp_path)
    with pytest.raises(InputError, match=r"another training\.wise"):
        check_same(
            {"training": before}, {"training": now | {"wise": replace(resolved.wise, seed=1).stored()}}, tmp_path
        )


def test_what_is_set_stands_and_what_is_not_is_the_models(tiny):
    config = TrainingConfig(WiseConfig(edit_lr=0.3, n_iter=7), RLEditConfig(n_edits=5))
    for protocol, block, beta, lr in (("gpt2-xl", 8, 20.0, 1e-6), (None, 5, 0.3, 3e-4)):
        resolved = config.resolved(tiny, protocol, seed=4)
        assert (resolved.wise.edit_lr, resolved.wise.n_iter, resolved.wise.block) == (0.3, 7, block)
        assert (resolved.wise.beta, resolved.rledit.lr, resolved.rledit.edited_at_once) == (beta, lr, 5)
        assert {resolved.wise.seed, resolved.rledit.seed} == {4}
        assert all(getattr(part, f.name) is not None for part in (resolved.wise, resolved.rledit) for f in fields(part))
        assert resolved.resolved(tiny) == resolved


def test_former_names_stand_for_present_ones():
    for config in (WiseConfig(edit_lr=0.3), RLEditConfig(lr=0.2)):
        present = {field.name for field in fields(config)}
        for former, name in RENAMED[config.method].items():
            assert former not in present
            assert name in present


@pytest.mark.parametrize("ending", ["json", "yaml", "yml"])
def test_a_file_of_settings_is_read(ending, tmp_path):
    content = {"wise": {"edit_lr": 1, "retrieve": True, "decayed": "all"}, "rledit": {"blocks": [2, 3], "lr": 1e-6}}
    path = tmp_path / f"training.{ending}"
    path.write_text(json.dumps(content))  # in which YAML 1.1 takes 1e-06 for text
    config = read_training(path)
    assert config.wise == WiseConfig(edit_lr=1.0, retrieve=True, decayed="all")
    assert config.rledit == RLEditConfig(blocks=(2, 3), lr=1e-6)
    assert isinstance(config.wise.edit_lr, float)  # as it is stored
    check(config)


def test_unset_values_and_unnamed_methods_keep_their_defaults(tmp_path):
    path = tmp_path / "training.yaml"
    path.write_text("wise:\n  edit_lr: null\n")
    assert read_training(path) == TrainingConfig()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"mend": {}}, "expected one of wise, rledit, got mend in"),
        ({"wise": {"mask_rato": 0.1}}, "got wise.mask_rato in"),
        ({"wise": {"method": "rledit"}}, "got wise.method in"),
        ({"wise": {"lr": 0.1}}, "it is wise.edit_lr now"),
        ({"wise": {"save_freq": 500}}, "give wise.shards"),
        ({"wise": {"n_iter": 2.5}}, "expected a whole number above 0, got wise.n_iter 2.5 in"),
        ({"wise": {"n_iter": True}}, "expected a whole number above 0, got wise.n_iter True in"),
        ({"wise": {"n_iter": 0}}, "expected a whole number above 0, got wise.n_iter 0 in"),
        ({"wise": {"shards": None}}, "expected a whole number above 0, got wise.shards None in"),
        ({"wise": {"mask_ratio": 1.5}}, "expected a finite number above 0 of at most 1, got wise.mask_ratio 1.5 in"),
        ({"wise": {"edit_lr": "fast"}}, "expected a finite number above 0, got wise.edit_lr 'fast' in"),
        ({"wise": {"edit_lr": "inf"}}, "expected a finite number above 0, got wise.edit_lr 'inf' in"),
        ({"wise": {"alpha": True}}, "expected a finite number, got wise.alpha True in"),
        ({"wise": {"retrieve": 1}}, "expected true or false, got wise.retrieve 1 in"),
        ({"wise": {"decayed": "some"}}, "expected one of masked, all, none, got wise.decayed 'some' in"),
        ({"rledit": {"blocks": []}}, r"expected a list of whole numbers, got rledit.blocks [] in"),
        ({"rledit": {"blocks": 3}}, "expected a list of whole numbers, got rledit.blocks 3 in"),
        ({"rledit": {"blocks": [1, "a"]}}, "expected a whole number above 0, got rledit.blocks 'a' in"),
        ({"rledit": [1]}, "expected names with values, got [1] as rledit in"),
        ([], "expected names with values, got [] as all in"),
    ],
)
@pytest.mark.parametrize("ending", ["json", "yaml"])
def test_a_bad_setting_is_refused_in_one_line(content, words, ending, tmp_path):
    path = tmp_path / f"training.{ending}"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError) as caught:
        read_training(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.txt", "{}", "ends in .json, .yaml, .yml"),
        ("a.json", "{", "expected JSON or YAML in"),
        ("a.yaml", "wise: [", "expected JSON or YAML in"),
        ("a.yaml", "wise: !!python/object/apply:os.system [true]", "expected JSON or YAML in"),
        ("a.yaml", None, "expected a readable file"),
    ],
)
def test_a_file_that_is_none_of_settings_is_refused_in_one_line(name, text, words, tmp_path):
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_training(path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
