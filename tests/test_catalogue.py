"""Names of schemes, rules and methods, each defined once."""

from typing import get_args

from jacobian_lab.catalogue import (
    CR,
    FE,
    METHODS,
    PAIRS,
    RULE_NAMES,
    SCHEMES,
    UNEDITED,
    SchemeName,
    method,
    paired,
    with_setting,
    without_setting,
)
from jacobian_lab.editing.rules import RULES
from jacobian_lab.report.figures.style import RULE_MARKERS, STYLES
from jacobian_lab.report.registry import TABLES


def test_names_are_those_of_the_functions_and_looks():
    assert tuple(RULES) == RULE_NAMES
    assert get_args(SchemeName) == tuple(SCHEMES)
    assert set(STYLES) == set(SCHEMES)
    unmarked = {name.removesuffix(FE).removesuffix(CR) for name in METHODS} - set(RULE_MARKERS)
    assert not unmarked
    assert UNEDITED in RULE_MARKERS


def test_methods_are_schemes_with_rules():
    for name, pair in METHODS.items():
        assert pair.scheme in SCHEMES
        assert pair.rule in RULE_NAMES
        assert pair.refit or paired(pair.rule, pair.scheme) == name
        assert not name.endswith(FE) or pair.scheme == "forward-replay"
        assert not name.endswith(CR) or pair.scheme == "coordinated-replay"
    assert method("rect@backward-full") == method(paired("rect", "backward-full"))


def test_tables_edit_with_schemes_and_methods_that_there_are():
    edits = {name: entry.edits for name, entry in TABLES.items() if entry.edits}
    assert edits["table1"] == ("backward-dividing",)
    assert edits["table2"] == ("backward-dividing", "backward-full", "one-layer")
    assert edits["table5"] == ("forward-replay", "coordinated-replay")
    first = ("onelayer", "memit", "blue", "prune", "rect", "alphaedit", "memit+fe")
    last = ("memit+cr", "prune+cr", "rect+cr", "alphaedit+cr")
    assert edits["table3"] == (*first, *last)
    pairs = ("prune", "prune+fe", "rect", "rect+fe", "alphaedit", "alphaedit+fe")
    assert edits["table4"] == (*pairs, "memit", "memit+fe", *last)
    assert edits["table6"] == edits["table7"] == (*first, "prune+fe", "rect+fe", "alphaedit+fe", *last)
    models = {name: entry.model for name, entry in TABLES.items() if entry.model}
    assert models == {
        "table3": "llama-3-8b-instruct",
        "table4": "llama-3-8b-instruct",
        "table6": "gpt2-xl",
        "table7": "gpt-j-6b",
    }


def test_a_setting_belongs_to_the_rule_in_a_methods_name():
    for name in (*METHODS, *PAIRS):
        label = with_setting(name, 0.002) if name.startswith(method(name).rule) else ""
        if label:
            assert without_setting(label) == (name, "0.002")
            assert method(label) == method(name)
    assert with_setting("alphaedit+fe", 0.002) == "alphaedit[0.002]+fe"
    assert with_setting("alphaedit@one-layer", 2.0) == "alphaedit[2]@one-layer"
    assert without_setting("memit+cr") == ("memit+cr", "")
