"""``preset:`` of a spec and of ``dvg generate``, and methods with settings on the command line."""

from __future__ import annotations

import pathlib
from typing import Any, get_args

import pytest
from typer.testing import CliRunner

from orchestrator.arms import Arm
from orchestrator.cli import app
from orchestrator.config import Sweep, build_sweep
from orchestrator.methods import find, named
from orchestrator.mistakes import ConfigError
from orchestrator.presets import PRESETS, PresetName, with_preset

NAMES: list[PresetName] = list(get_args(PresetName))
FOLDER = pathlib.Path(__file__).parent


def swept(**spec: Any) -> Sweep:
    return build_sweep({"model": "wan-mini", "prompts": ["a red circle"], **spec}, FOLDER, with_weights=False)


def arm(**settings: Any) -> Arm:
    return swept(arms={"a": settings}).arms[0]


def test_every_name_of_a_preset_has_its_settings_and_figures() -> None:
    assert list(PRESETS) == NAMES
    assert all(preset.measured for preset in PRESETS.values())


@pytest.mark.parametrize("name", NAMES)
def test_an_arm_of_a_preset_is_the_arm_of_its_settings(name: PresetName) -> None:
    preset = PRESETS[name]
    assert arm(preset=name) == arm(**preset.settings)
    assert arm(preset=name).planner == named(preset.planner)[0]
    for use in preset.accelerators:
        find(named(use)[0], "accelerator")


def test_what_is_given_beside_a_preset_stands() -> None:
    assert arm(preset="fast", budget=0.6).budget == 0.6
    assert arm(preset="fast", accelerators=[]).accelerators == ()
    assert arm(preset="fast", accelerators=["adacache"]).accelerators[0].name == "adacache"
    assert arm(preset="fast", steps=20).num_steps == 20


def test_under_another_planner_nothing_of_a_preset_is_left() -> None:
    sweep = swept(preset="fast", arms={"full": {"planner": "full"}, "fast": {}, "careful": {"preset": "careful"}})
    plain, fast, careful = sweep.arms
    assert (plain.planner, plain.accelerators, plain.budget) == ("full", (), None)
    assert (fast.budget, careful.planner) == (PRESETS["fast"].budget, PRESETS["careful"].planner)
    assert with_preset({"preset": "fast", "planner": "full"}) == {"planner": "full"}
    assert with_preset({"preset": None, "budget": 0.4}) == {"budget": 0.4}


def test_an_arms_own_preset_stands_over_the_planner_of_the_spec() -> None:
    shared = {"planner": "full", "accelerators": ["adacache"]}
    fast, plain = swept(**shared, arms={"f": {"preset": "fast"}, "p": {}}).arms
    assert fast == arm(preset="fast").model_copy(update={"name": "f"})
    assert (plain.planner, plain.accelerators[0].name) == ("full", "adacache")
    (given,) = swept(budget=0.6, arms={"f": {"preset": "fast"}}).arms
    assert given.budget == PRESETS["fast"].budget


def test_a_preset_beside_another_planner_is_refused_where_one_place_gives_both() -> None:
    told = "preset fast is planner dvg, .*and planner is full: drop one of the two"
    both = {"preset": "fast", "planner": "full"}
    for spec in (both, {"arms": {"a": both}}, {**both, "arms": {"a": {"planner": "dvg"}}}):
        with pytest.raises(ConfigError, match=told):
            swept(**spec)
    assert "preset fast is planner dvg" in generated("--preset", "fast", "--planner", "full")
    assert swept(preset="fast", planner={"dvg": {}}).arms[0].name == "fast"


def test_presets_are_swept_and_a_lone_one_names_its_arm() -> None:
    assert [arm.name for arm in swept(preset="balanced").arms] == ["balanced"]
    sweep = swept(arms={"a": {}}, sweep={"preset": ["fast", "careful"]})
    assert [arm.name for arm in sweep.arms] == ["a-presetfast", "a-presetcareful"]
    assert [arm.budget for arm in sweep.arms] == [PRESETS["fast"].budget, PRESETS["careful"].budget]


def test_an_unknown_preset_is_refused_with_the_choices() -> None:
    with pytest.raises(ConfigError, match=r"arms.a.preset: Input should be 'fast', .*'sparse' or 'long' .got 'quick'"):
        arm(preset="quick")


def generated(*options: str) -> str:
    """What ``dvg generate`` refuses; the picture size is wrong in any case, so nothing is made."""
    done = CliRunner().invoke(app, ["generate", "a red circle", "--height", "7", *options])
    assert isinstance(done.exception, ConfigError)
    return str(done.exception)


def test_the_command_line_takes_methods_in_the_forms_of_a_spec() -> None:
    assert "planner" not in generated(
        "--planner", "{jenga-prores: {preset: 3-stage}}", "--accelerators", "{adacache: {warmup: 2}}"
    )
    assert "unknown planner 'jenga'" in generated("--planner", "{jenga: {}}")
    assert "unknown accelerator 'cache'" in generated("--accelerators", "adacache", "--accelerators", "cache")
    assert "is not {name: {setting: value}}" in generated("--planner", "{jenga-prores: ")
    assert "budget: planner full spends what it spends" in generated("--planner", "full", "--budget", "0.5")
    assert "'fast', 'balanced', 'careful', 'sparse' or 'long'" in generated("--preset", "quick")
    assert "preset" not in generated("--preset", "fast")


def test_a_method_in_text_is_the_method_itself() -> None:
    text = arm(planner="{jenga-prores: {preset: 3-stage}}", accelerators=["{adacache: {warmup: 2}}"])
    assert text == arm(planner={"jenga-prores": {"preset": "3-stage"}}, accelerators=[{"adacache": {"warmup": 2}}])
