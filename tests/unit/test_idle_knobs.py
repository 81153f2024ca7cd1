"""Knobs of ``dvg:`` under planners with settings of their own: what they do not read is refused, or changes nothing."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest

from orchestrator.arms import Arm, item_key
from orchestrator.config import build_sweep
from orchestrator.methods import PLANNERS, WITHOUT_SETTINGS
from orchestrator.mistakes import ConfigError

FOLDER = pathlib.Path(__file__).parent
OTHERS = [name for name in PLANNERS if name not in WITHOUT_SETTINGS]
IDLE = {"renoise": "random", "smoothing": 0.1, "resize": "trilinear", "shifts": [5, 7, 9, 11], "stale_timesteps": True}


def arms(**spec: Any) -> tuple[Arm, ...]:
    return build_sweep({"model": "wan-mini", "prompts": ["a red circle"], **spec}, FOLDER, with_weights=False).arms


def key(arm: Arm) -> str:
    return item_key(arm, "a red circle", 1)


@pytest.mark.parametrize("planner", OTHERS)
def test_what_a_planner_does_not_read_is_refused_of_the_arm_and_idle_of_the_spec(planner: str) -> None:
    for name, value in IDLE.items():
        with pytest.raises(ConfigError, match=f"planner {planner} does not read {name}; drop it"):
            arms(arms={"a": {"planner": planner, "dvg": {name: value}}})
    both = {"a": {"planner": planner}, "dvg": {"planner": "dvg"}}
    (plain, _), (inherits, ours) = arms(arms=both), arms(arms=both, dvg=IDLE)
    assert (inherits.dvg, key(inherits)) == (plain.dvg, key(plain))
    assert ours.dvg.renoise == "random"


def test_a_spec_of_one_arm_gives_its_knobs_itself() -> None:
    with pytest.raises(ConfigError, match="planner bottleneck does not read renoise"):
        arms(planner="bottleneck", dvg={"renoise": "random"})


def test_knobs_that_count_are_taken_and_change_the_key() -> None:
    plain, near = arms(arms={"p": {"planner": "bottleneck"}, "n": {"planner": "bottleneck", "dvg": {"extrapolation": 0.9}}})
    assert near.dvg.extrapolation == 0.9
    assert key(plain) != key(near.model_copy(update={"name": "p"}))


def test_the_noise_field_is_read_where_a_clip_starts_from_it() -> None:
    field = {"noise_seed": 7}
    with pytest.raises(ConfigError, match="does not read noise_seed"):
        arms(arms={"a": {"planner": "bottleneck", "dvg": field}})
    for planner, knobs in (("bottleneck", {**field, "initial_noise": "coordinate"}), ("fresco", field)):
        assert arms(arms={"a": {"planner": planner, "dvg": knobs}})[0].dvg.noise_seed == 7


@pytest.mark.parametrize("planner", ["dvg", "fixed", "temporal-only"])
def test_dvg_and_its_ablations_take_every_knob(planner: str) -> None:
    assert arms(arms={"a": {"planner": planner, "dvg": IDLE}})[0].dvg.stale_timesteps
