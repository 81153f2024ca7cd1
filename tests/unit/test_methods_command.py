"""``dvg methods``: every method that a spec may name, with what it combines with, needs and can be set to."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.method_rows import every_method
from orchestrator.methods import ABSENT, WITHOUT_SETTINGS, as_given, available, find, nothing_wrong
from orchestrator.mistakes import ConfigError
from orchestrator.presets import PRESETS
from orchestrator.resolve_methods import conflicts

ROWS = {row["name"]: row for row in every_method()}
NAMES = [*available("planner"), *available("accelerator")]


def test_every_method_of_the_registry_is_told_once_planners_first() -> None:
    told = json.loads(CliRunner().invoke(app, ["methods", "--json"]).stdout)
    assert [row["name"] for row in told["methods"]] == NAMES
    assert [row["name"] for row in told["presets"]] == list(PRESETS)
    assert told["not in this version"].keys() == ABSENT.keys()


@pytest.mark.parametrize("name", NAMES)
def test_a_method_says_what_it_goes_by_and_every_setting_what_it_means(name: str) -> None:
    row = ROWS[name]
    assert row["source"]
    assert row["summary"]
    assert row["follows"] in ("release", "paper", "reconstructed")
    assert [setting["name"] for setting in row["settings"]] == list(find(name, row["kind"]).settings.model_fields)
    assert all(setting["what"].endswith(".") for setting in row["settings"]), "documented in whole sentences"


@pytest.mark.parametrize("name", NAMES)
def test_what_a_method_combines_with_is_what_a_spec_accepts_beside_it(name: str) -> None:
    row = ROWS[name]
    for other in set(NAMES) - {name}:
        kinds = (row["kind"], ROWS[other]["kind"])
        pair = [find(name, kinds[0]), find(other, kinds[1])]
        assert (other in row["composes_with"]) == (not conflicts(pair) and kinds != ("planner", "planner")), other
        assert (other in row["composes_with"]) == (name in ROWS[other]["composes_with"])


@pytest.mark.parametrize("name", WITHOUT_SETTINGS)
def test_a_planner_that_is_read_without_its_module_has_nothing_to_say_there(name: str) -> None:
    method = find(name, "planner")
    assert not method.settings.model_fields
    assert (method.resolve, method.mistakes) == (as_given, nothing_wrong)
    assert (method.excludes, method.follows == "reconstructed") == ({}, False)


def test_the_table_marks_what_is_reconstructed_and_names_what_is_not_there() -> None:
    shown = CliRunner().invoke(app, ["methods"]).stdout
    for name, row in ROWS.items():
        (line,) = [line for line in shown.splitlines() if line.split()[:2] == [name, row["kind"]]]
        assert {row["follows"], row["lever"]} <= set(line.split())
    assert all(f"{name} (" in shown for name in ABSENT)
    assert all(f"\n{name} " in shown for name in PRESETS)


def test_one_method_is_told_with_its_settings_and_defaults() -> None:
    shown = CliRunner().invoke(app, ["methods", "taylorseer"]).stdout
    assert "combines with: full, dvg, temporal-only" in shown
    assert any(line.split()[:2] == ["max_order", "1"] for line in shown.splitlines())
    assert "Presets" not in shown


def test_an_unknown_method_is_answered_with_the_choices_and_an_absent_one_with_its_source() -> None:
    with pytest.raises(ConfigError, match=r"unknown method 'teacahe' .did you mean 'teacache'.*; choices: full, dvg"):
        CliRunner().invoke(app, ["methods", "teacahe"], catch_exceptions=False)
    with pytest.raises(ConfigError, match=r"cache-dit .*wraps.* is not available in this version"):
        CliRunner().invoke(app, ["methods", "cache-dit"], catch_exceptions=False)
