"""Recorded demands and the actions that they make likely."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from orchestrator.actions import DvgConfig
from orchestrator.demands import (
    MAX_DEMANDS,
    Demands,
    Recorded,
    actions_of,
    decision_for,
    expected_actions,
    read_demands,
    saves_by_content_alone,
)
from orchestrator.types import Demand
from tests.arms import ARM
from tests.unit import records

STILL, MOVING = Demand(0.9, 0.05), Demand(0.05, 0.9)


def rows_of(*demands):
    return Demands(tuple(Recorded(demand) for demand in demands), "made up")


def write(path, *rows):
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path


def test_shares_are_how_often_each_demand_is_there():
    actions = actions_of(ARM)
    still, moving = (decision_for(ARM, actions, demand).action for demand in (STILL, MOVING))
    assert still != moving
    assert dict(expected_actions(ARM, rows_of(STILL, STILL, STILL, MOVING))) == {still: 0.75, moving: 0.25}


def test_without_demands_every_action_is_as_likely():
    shares = expected_actions(ARM, Demands())
    assert {action for action, _ in shares} == set(actions_of(ARM))
    assert sum(share for _, share in shares) == pytest.approx(1.0)
    assert len({share for _, share in shares}) == 1


@pytest.mark.parametrize("planner", ["full", "temporal-only", "spatial-only", "fixed"])
def test_planners_that_measure_nothing_have_one_action(planner):
    budget = ARM.budget if planner.endswith("only") else None
    arm = ARM.model_copy(update={"planner": planner, "budget": budget, "dvg": DvgConfig()})
    ((action, share),) = expected_actions(arm, rows_of(STILL))
    assert share == 1.0
    assert (len(action.stages) == 1) == (planner == "full")


def vgdfr(**settings):
    planner = {"planner": "vgdfr", "planner_settings": settings, "budget": None, "dvg": DvgConfig()}
    return ARM.model_copy(update={"num_frames": 65, **planner})


def test_a_planner_of_content_is_expected_to_do_what_it_was_asked_for_whatever_was_measured():
    arm = vgdfr(keep_token_ratio=0.75)
    actions = actions_of(arm)
    assert len(actions) > 2
    assert actions[0].stages[1].grid[0] == 13, "of 17 latent frames"
    for demands in (Demands(), rows_of(STILL, MOVING)):
        assert expected_actions(arm, demands) == ((actions[0], 1.0),)
    for demand in (STILL, MOVING):
        assert decision_for(arm, actions, demand).action == actions[0]


def test_a_threshold_saves_nothing_that_could_be_expected_and_a_ratio_does():
    assert saves_by_content_alone(vgdfr(similarity_threshold=0.8))
    assert not saves_by_content_alone(vgdfr(keep_token_ratio=0.75))
    assert not saves_by_content_alone(ARM)


def test_many_demands_are_sampled_over_their_whole_length():
    half = MAX_DEMANDS * 5
    shares = expected_actions(ARM, rows_of(*[STILL] * half, *[MOVING] * half))
    assert [share for _, share in shares] == pytest.approx([0.5, 0.5], abs=0.01)


def test_a_runs_records_and_a_plain_file_say_the_same(tmp_path):
    record = records.make(1)
    of_run = read_demands(write(tmp_path / "records.jsonl", asdict(record))).rows[0]
    plain = {"prompt_id": "p1", "seed": 1, "spatial": 0.25, "temporal": 0.5, "neutral": False}
    of_file = read_demands(write(tmp_path / "demands.jsonl", plain)).rows[0]
    assert of_run.demand == of_file.demand == Demand(0.25, 0.5)
    assert (of_run.prompt_id, of_run.seed) == (of_file.prompt_id, of_file.seed)
    assert of_run.bits_per_pixel == pytest.approx(80 / (41 * 144 * 144))
    assert of_file.bits_per_pixel is None


def test_clips_that_measured_nothing_are_left_out_and_seconds_go_by_model(tmp_path):
    measured, plain = asdict(records.make(1)), asdict(records.make(2)) | {"spatial_demand": None, "temporal_demand": None}
    found = read_demands(write(tmp_path / "records.jsonl", plain, measured))
    assert [row.prompt_id for row in found.rows] == ["p1"]
    assert found.text_s("wan-mini") == 0.1
    assert found.text_s("hunyuanvideo") is None
    with pytest.raises(ValueError, match="hold no demand"):
        read_demands(write(tmp_path / "other.jsonl", plain))


@pytest.mark.parametrize("line", ["{", "[1]", '"x"', "{}", '{"spatial": "a lot", "temporal": 0}', '{"spatial": 0.1}'])
def test_a_line_that_is_no_demand_is_named(tmp_path, line):
    path = tmp_path / "demands.jsonl"
    path.write_text('{"spatial": 0.1, "temporal": 0.2}\n' + line + "\n")
    with pytest.raises(ValueError, match=r"demands\.jsonl:2"):
        read_demands(path)
    with pytest.raises(ValueError, match="cannot be read"):
        read_demands(tmp_path / "none.jsonl")
