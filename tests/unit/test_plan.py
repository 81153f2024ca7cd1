"""The report of ``dvg plan``."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from orchestrator.actions import DvgConfig, InfeasibleBudget
from orchestrator.geometry import model
from orchestrator.plan import plan_report
from orchestrator.types import Demand, VideoShape

HV15 = VideoShape(121, 480, 848)


def report(demand=None, budget=0.5):
    return plan_report("hunyuanvideo-1.5", HV15, 50, budget, DvgConfig(), demand)


def test_the_report_states_grid_tokens_and_steps():
    rows = report()
    assert rows["model"] == "hunyuanvideo-1.5"
    assert rows["grid"] == [31, 30, 53]
    assert rows["tokens"] == 49_290
    assert rows["steps_per_stage"] == [14, 11, 11, 14]
    assert len(rows["actions"]) == 24


def test_an_action_states_its_rates_density_and_stages():
    action = next(row for row in report()["actions"] if (row["s2"], row["f2"]) == (0.7, 17))
    assert set(action) == {"s2", "f2", "density", "stages"}
    assert action["density"] == pytest.approx(0.4862, abs=5.1e-5)
    assert action["stages"][0] == {"grid": [12, 15, 26], "tokens": 4680, "steps": 14, "shift": 7.0}
    assert [stage["grid"] for stage in action["stages"]][1:] == [[17, 21, 37], [17, 30, 53], [31, 30, 53]]


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
        plan_report("wan-mini", VideoShape(42, 144, 144), 30, 0.5, DvgConfig(), None)


@pytest.mark.parametrize("name", ["hunyuanvideo", "wan2.1-1.3b", "wan2.2-a14b", "wan2.2-ti2v-5b", "wan-mini"])
def test_every_model_has_a_plan_at_half_the_budget(name):
    geometry = model(name)
    rows = plan_report(name, geometry.default_shape, geometry.default_steps, 0.5, DvgConfig(), Demand(0.2, 0.2))
    assert rows["chosen"]["stages"][-1]["tokens"] == rows["tokens"]


def test_planning_loads_neither_torch_nor_ray():
    code = "import sys, orchestrator.plan; print(sorted({'torch', 'ray', 'mlflow', 'diffusers'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
