"""The report of ``dvg plan``."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from orchestrator.actions import DvgConfig, InfeasibleBudget
from orchestrator.budgets import InfeasibleTarget, Target
from orchestrator.cli import app
from orchestrator.cost import CostModel, ForwardCost, uncalibrated
from orchestrator.degrees import Limits
from orchestrator.geometry import model
from orchestrator.plan import ARM, plan_report
from orchestrator.policy import Sizing
from orchestrator.resolve_sizing import sizing_on
from orchestrator.sizing import SizingConfig
from orchestrator.types import Demand, VideoShape

RULES = ("efficient", "throughput", "narrowest", "fastest")
HV15 = VideoShape(121, 480, 848)
LINEAR = ForwardCost(fixed_s=0.0, token_s=1e-4, token2_s=0.0)
COST = CostModel(label="calibrated", device="made up", forwards=(LINEAR,), num_branches=2, decode_s=3.0)


def report(demand=None, budget=0.5, kind="density"):
    return plan_report("hunyuanvideo-1.5", HV15, 50, Target(kind=kind, value=budget), DvgConfig(), demand, COST)


def test_the_report_states_grid_tokens_and_steps():
    rows = report()
    assert rows["model"] == "hunyuanvideo-1.5"
    assert rows["grid"] == [31, 30, 53]
    assert rows["tokens"] == 49_290
    assert rows["steps_per_stage"] == [14, 11, 11, 14]
    assert len(rows["actions"]) == 24


def test_an_action_states_its_rates_density_and_stages():
    action = next(row for row in report()["actions"] if (row["s2"], row["f2"]) == (0.7, 17))
    assert set(action) == {"s2", "f2", "density", "density_executed", "predicted_s", "speedup", "stages"}
    assert action["density"] == pytest.approx(0.4862, abs=5.1e-5)
    assert action["stages"][0] == {"grid": [12, 15, 26], "tokens": 4680, "steps": 14, "shift": 7.0}
    assert [stage["grid"] for stage in action["stages"]][1:] == [[17, 21, 37], [17, 30, 53], [31, 30, 53]]


def test_an_action_states_what_it_is_predicted_to_cost():
    rows = report()
    assert rows["cost"] == {
        "label": "calibrated",
        "device": "made up",
        "branches": 2,
        "full_s": rows["cost"]["full_s"],
        "decode_s": 3,
    }
    assert rows["cost"]["full_s"] == pytest.approx(2 * 50 * 4.929)
    action = next(row for row in rows["actions"] if (row["s2"], row["f2"]) == (0.7, 17))
    forwards = zip((15, 11, 11, 13), (stage["tokens"] for stage in action["stages"]), strict=True)
    assert action["predicted_s"] == pytest.approx(2 * sum(num * 1e-4 * tokens for num, tokens in forwards))
    assert action["speedup"] == pytest.approx(rows["cost"]["full_s"] / action["predicted_s"])
    assert action["density_executed"] == pytest.approx(1 / action["speedup"])  # a linear cost has no other story


def test_a_speedup_lists_the_actions_that_give_it_and_the_density_they_mean():
    rows = report(budget=2.0, kind="speedup")
    assert rows["target"] == {"kind": "speedup", "value": 2.0}
    assert all(row["speedup"] == pytest.approx(2.0, rel=0.042) for row in rows["actions"])
    assert rows["budget"] == pytest.approx(0.5, abs=0.05)
    with pytest.raises(InfeasibleTarget):
        report(budget=20.0, kind="speedup")


def test_nothing_is_chosen_without_a_demand():
    rows = report()
    assert rows["chosen"] is rows["demand"] is rows["weights"] is None


def test_the_demand_decides_the_choice():
    rows = report(Demand(0.1, 0.3))
    assert (rows["chosen"]["s2"], rows["chosen"]["f2"]) == (0.7, 20)
    assert rows["chosen"] in rows["actions"]
    assert rows["demand"] == {"spatial": 0.1, "temporal": 0.3}
    assert rows["weights"] == pytest.approx([0.3729, 0.6271], abs=5.1e-5)


def test_the_report_survives_json():
    assert json.loads(json.dumps(report(Demand(0.1, 0.3)))) == report(Demand(0.1, 0.3))


def test_an_infeasible_budget_and_a_bad_shape_are_errors():
    with pytest.raises(InfeasibleBudget):
        report(budget=0.9)
    with pytest.raises(ValueError, match="4k\\+1"):
        plan_report("wan-mini", VideoShape(42, 144, 144), 30, Target(value=0.5), DvgConfig(), None, COST)


@pytest.mark.parametrize("name", ["hunyuanvideo", "wan2.1-1.3b", "wan2.2-a14b", "wan2.2-ti2v-5b", "wan-mini"])
def test_every_model_has_a_plan_at_half_the_budget(name):
    geometry = model(name)
    run = (name, geometry.default_shape, geometry.default_steps, Target(value=0.5), DvgConfig())
    rows = plan_report(*run, Demand(0.2, 0.2), uncalibrated(geometry, "NVIDIA H200"))
    assert rows["chosen"]["stages"][-1]["tokens"] == rows["tokens"]


def test_planning_loads_neither_torch_nor_ray():
    code = "import sys, orchestrator.plan; print(sorted({'torch', 'ray', 'mlflow', 'diffusers'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def pod(num_ranks, rule="efficient", cost=COST, **options):
    limits = Limits(max_width=num_ranks)
    arm = sizing_on(limits, model("hunyuanvideo-1.5"), HV15, cost)
    return Sizing(config=SizingConfig(rule=rule, **options), arms={ARM: arm})


def test_for_a_pod_every_action_states_ranks_seconds_and_reasons():
    args = ("hunyuanvideo-1.5", HV15, 50, Target(value=0.5), DvgConfig(), Demand(0.5, 0.5), COST)
    assert plan_report(*args)["pod"] is None
    rows = plan_report(*args, pod(8))
    assert (rows["pod"]["ranks"], rows["pod"]["backend"], rows["pod"]["sizing"]["rule"]) == (8, "auto", "efficient")
    for action in [*rows["actions"], rows["chosen"]]:
        assert len(action["slices"]) == len(action["stages"]) - 1, "the sketch is not the pod's"
        assert action["refine_s"] == pytest.approx(sum(piece["stage_s"] for piece in action["slices"]))
        assert action["refine_s"] < action["predicted_s"]
        assert action["phases"][-1]["stop"] == len(action["stages"])
        assert all("tokens: " in phase["why"] for phase in action["phases"])
    json.dumps(rows, allow_nan=False)


def test_the_fastest_rule_takes_no_more_seconds_than_any_other():
    args = ("hunyuanvideo-1.5", HV15, 50, Target(value=0.5), DvgConfig(), None, COST)
    took = {rule: plan_report(*args, pod(8, rule, min_phase_s=0))["actions"][0]["refine_s"] for rule in RULES}
    assert took["fastest"] == min(took.values())
    assert took["narrowest"] == max(took.values())


def test_the_command_prints_a_pods_widths_and_refuses_with_the_arithmetic():
    def dvg(*options):
        return CliRunner().invoke(app, ["plan", "--device-name", "NVIDIA H200", "--ranks", "8", *options])

    done = dvg("--model", "wan2.2-a14b", "--guidance", "1")
    for words in ("a pod of 8 ranks, backend auto, sizing efficient (at least 85%)", "-4: 32,760 tokens: "):
        assert words in done.stdout
    assert "115,455 tokens / 2 ranks" in str(dvg("--model", "hunyuanvideo", "--backend", "usp").exception)
    assert "needs deadline_s" in str(dvg("--model", "hunyuanvideo", "--sizing", "deadline").exception)
    told = str(dvg("--model", "hunyuan", "--ranks", "3", "--backend", "ring", "--sizing", "deadline").exception)
    for words in ("'hunyuan' is not known", "--ranks 3: slices nest", "'ring'; choices: auto", "needs deadline_s"):
        assert words in told, "all mistakes at once"
    assert "'throughput', 'latency'" in str(dvg("--model", "hunyuanvideo", "--sizing", "widest").exception)
    tight = CliRunner().invoke(app, ["plan", "--model", "wan2.2-a14b", "--device-name", "NVIDIA RTX 4090", "--ranks", "1"])
    assert "57.2 GB of weights" in str(tight.exception)
