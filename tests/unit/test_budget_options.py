"""Budgets in speedup and seconds, from a spec to a record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator import calibration as files
from orchestrator.actions import uniform_action
from orchestrator.arms import MethodUse
from orchestrator.budgets import Target
from orchestrator.config import Sweep, build_sweep
from orchestrator.cost import denoise_s, full_s
from orchestrator.events import Finish
from orchestrator.geometry import model
from orchestrator.mistakes import ConfigError
from orchestrator.runbook import make_record
from orchestrator.types import Clip, Decision, as_row, record_from_row
from stages.planners import make_planner
from tests.unit.records import make as old_record
from tests.unit.test_calibration import made


@pytest.fixture(autouse=True)
def no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(files.FOLDER_VARIABLE, str(tmp_path / "mine"))


def sweep(tmp_path: Path, **keys: Any) -> Sweep:
    return build_sweep({"prompts": ["a red circle"], **keys}, tmp_path)


def mistakes(tmp_path: Path, **keys: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        sweep(tmp_path, **keys)
    return str(caught.value)


def test_an_arms_own_budget_under_a_planner_that_spends_none_is_refused_and_an_inherited_one_is_idle(tmp_path: Path) -> None:
    own: dict[str, Any] = {"planner": "jenga-prores", "budget": "speedup=2"}
    for spec in (own, {"arms": {"a": own}}, {"planner": "jenga-prores", "arms": {"a": {"budget": 0.4}}}):
        assert "budget: planner jenga-prores spends what it spends; drop one of the two" in mistakes(tmp_path, **spec)
    first, second = sweep(tmp_path, budget=0.4, arms={"a": {"planner": "jenga-prores"}, "b": {}}).arms
    assert (first.budget, second.budget) == (None, 0.4)


@pytest.mark.parametrize("budget", ["speedup=2", {"speedup": 2}, {"kind": "speedup", "value": 2}])
def test_every_form_of_a_speedup_resolves_to_a_density_and_the_target(tmp_path: Path, budget: Any) -> None:
    (arm,) = sweep(tmp_path, budget=budget).arms
    assert arm.target == Target(kind="speedup", value=2)
    assert arm.cost is not None
    assert arm.cost.label == "uncalibrated"
    assert arm.cost.num_branches == 2
    assert 0.3 < (arm.budget or 0) < 0.8


def test_a_sweep_over_kinds_of_budget_makes_an_arm_of_each(tmp_path: Path) -> None:
    arms = sweep(tmp_path, sweep={"budget": [0.5, "speedup=2", {"gpu_seconds": 12}]}).arms
    assert [str(arm.target) for arm in arms] == ["None", "speedup=2", "gpu_seconds=12"]
    assert len({arm.name for arm in arms}) == 3


def test_an_arms_own_kind_of_budget_replaces_the_shared_one(tmp_path: Path) -> None:
    arms = sweep(tmp_path, budget={"speedup": 2}, arms={"a": {}, "b": {"budget": 0.5}, "c": {"planner": "full"}}).arms
    assert [(arm.target is not None, arm.budget is None) for arm in arms] == [(True, False), (False, False), (False, True)]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"budget": "speedup=0.5"}, "speedup must be at least 1"),
        ({"budget": "sped=2"}, "speedup=3"),
        ({"budget": {"speedup": 2, "gpu_seconds": 3}}, "gpu_seconds=120"),
        ({"budget": "speedup=50"}, "Nearest speedup"),
        ({"budget": "gpu_seconds=0.01"}, "Nearest gpu_seconds"),
        ({"sweep": {"budget": [0.5, "speedup=50"]}}, "Nearest speedup"),
        ({"calibration": "nowhere.json"}, "nowhere.json"),
    ],
)
def test_a_budget_that_cannot_be_met_is_refused_at_admission(tmp_path: Path, keys: dict[str, Any], words: str) -> None:
    assert words in mistakes(tmp_path, **keys)


def test_the_calibration_found_changes_the_key_of_an_item_only_under_a_cost_budget(tmp_path: Path) -> None:
    def keys() -> list[str]:
        items = sweep(tmp_path, sweep={"budget": [0.5, "speedup=1.4"]}).items
        return [item.item_key for item in items]

    before = keys()
    files.save(made(model_name="wan-mini", device=files.device_name(on_gpu=False)))
    after = keys()
    assert before[0] == after[0]
    assert before[1] != after[1]


def test_a_named_device_is_predicted_for(tmp_path: Path) -> None:
    files.save(made(model_name="wan-mini"))
    (arm,) = sweep(tmp_path, device_name="NVIDIA H200").arms
    assert arm.cost is not None
    assert (arm.cost.label, arm.cost.device) == ("calibrated", "NVIDIA H200")
    (arm,) = sweep(tmp_path).arms
    assert arm.cost is not None
    assert (arm.cost.label, arm.cost.device[:4]) == ("uncalibrated", "CPU ")


def test_the_worker_plans_with_the_arm_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.save(made(model_name="wan-mini"))
    (arm,) = sweep(tmp_path, budget="speedup=1.2", device_name="NVIDIA H200").arms
    monkeypatch.setenv(files.FOLDER_VARIABLE, str(tmp_path / "elsewhere"))
    geometry = model("wan-mini")
    planner = make_planner("dvg", geometry, arm.shape, arm.num_steps, arm.target, arm.dvg, cost=arm.cost)
    assert arm.cost is not None
    whole_s = full_s(geometry, arm.shape, arm.num_steps, arm.cost)
    assert planner.actions  # type: ignore[attr-defined]
    for action in planner.actions:  # type: ignore[attr-defined]
        assert whole_s / denoise_s(geometry, action, arm.cost) == pytest.approx(1.2, rel=0.042)


def test_a_record_tells_what_was_asked_and_what_was_predicted(tmp_path: Path) -> None:
    swept = sweep(tmp_path, budget="speedup=2")
    (arm,), (item,) = swept.arms, swept.items
    geometry = model("wan-mini")
    assert arm.cost is not None
    planner = make_planner("dvg", geometry, arm.shape, arm.num_steps, arm.target, arm.dvg, cost=arm.cost)
    action = planner.actions[0]  # type: ignore[attr-defined]
    clip = Clip("v.mp4", 1, "00")
    finish = Finish(item.item_key, 1, item, Decision(action, "because"), clip, {}, 1.0, 1.0, ())
    record = make_record(finish, arm, geometry, "cpu", "here", "v.mp4")
    assert (record.target, record.cost_label) == ("speedup=2", "uncalibrated")
    assert record.predicted_s == pytest.approx(denoise_s(geometry, action, arm.cost))
    assert record.budget == arm.budget
    cached = arm.model_copy(update={"accelerators": (MethodUse(name="taylorseer"),)})
    record = make_record(finish, cached, geometry, "cpu", "here", "v.mp4")
    assert (record.predicted_s, record.cost_label) == (None, ""), "what a cache leaves out is not predicted"


def test_a_record_from_before_predictions_can_still_be_read() -> None:
    row = as_row(old_record(1))
    for name in ("target", "predicted_s", "cost_label", "cost_device"):
        del row[name]
    assert record_from_row(row) == old_record(1)


def test_a_uniform_arm_gets_the_density_that_costs_as_asked(tmp_path: Path) -> None:
    (arm,) = sweep(tmp_path, planner="temporal-only", budget="speedup=2").arms
    assert arm.target == Target(kind="speedup", value=2)
    assert arm.budget is not None
    assert arm.cost is not None
    geometry = model("wan-mini")
    action = uniform_action("temporal-only", geometry, arm.shape, arm.num_steps, arm.budget, arm.dvg)
    whole_s = full_s(geometry, arm.shape, arm.num_steps, arm.cost)
    assert whole_s / denoise_s(geometry, action, arm.cost) == pytest.approx(2, rel=0.042)


def test_a_cost_budget_for_gpus_that_are_elsewhere_needs_their_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_gpu_name", lambda: None)
    cluster = {"gpus_per_rank": 1}
    assert "set device_name" in mistakes(tmp_path, budget="speedup=2", cluster=cluster)
    (arm,) = sweep(tmp_path, budget="speedup=1.02", cluster=cluster, device_name="NVIDIA H200").arms
    assert arm.cost is not None
    assert arm.cost.device == "NVIDIA H200"
    sweep(tmp_path, budget=0.5, cluster=cluster)
