"""``dvg plan SPEC``: what a sweep comes to, and whether a cluster can hold it."""

from __future__ import annotations

import io
import json
import pathlib
import sys

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.cli_spec_plan import clock, in_lines, print_spec_plan, size
from orchestrator.config import build_sweep
from orchestrator.cost import denoise_s
from orchestrator.demands import Demands, Recorded, actions_of
from orchestrator.geometry import model
from orchestrator.mistakes import ConfigError
from orchestrator.resolve_sizing import sizing_of
from orchestrator.spec_plan import BITS_PER_PIXEL, expected_work, latent_bytes, spec_plan
from orchestrator.types import Demand

ROOT = pathlib.Path(__file__).parents[2]
H200 = {"name": "made-up", "device_name": "NVIDIA H200", "prompts": [f"a circle number {n}" for n in range(12)]}
ON_GPUS = {"gpus_per_sketch": 1, "gpus_per_rank": 1, "gpus_per_decode": 1, "heavy_ranks": 8}
ARMS = {"half": {"model": "hunyuanvideo-1.5", "budget": 0.5}, "whole": {"model": "hunyuanvideo-1.5", "planner": "full"}}


def sweep_of(arms=None, **cluster):
    options = {**ON_GPUS, "sizing": {"rule": "throughput"}, **cluster}
    return build_sweep({**H200, "arms": arms or ARMS, "cluster": options}, ROOT, with_weights=False)


def planned(demands=None, arms=None, **cluster):
    sweep = sweep_of(arms, **cluster)
    return spec_plan(sweep, demands or Demands(), sizing_of(sweep.arms, sweep.cluster))


def write(tmp_path, **settings):
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump({**H200, "arms": ARMS, "cluster": {**ON_GPUS, "sizing": {"rule": "throughput"}}, **settings}))
    return str(path)


def dvg_plan(*args):
    return CliRunner().invoke(app, ["plan", *args])


def mistakes_of(*args):
    """Of a plan that is refused, with the report that was printed before."""
    result = dvg_plan(*args)
    assert isinstance(result.exception, ConfigError), result.output
    return result.exception.mistakes, result.stdout


def test_gpu_hours_are_the_sum_over_items_of_what_each_phase_costs():
    rows = planned(heavy_ranks=1, pods=8)
    hours = rows["gpu_hours"]
    assert rows["items"] == 24
    assert hours["total"] == pytest.approx(hours["sketch"] + hours["refine"] + hours["decode"])
    assert hours["total"] * 3600 == pytest.approx(sum(arm["items"] * arm["gpu_s"]["total"] for arm in rows["arms"]))
    assert rows["videos_per_gpu_hour"] == pytest.approx(24 / hours["total"])


def test_a_plain_run_costs_what_the_cost_model_says_and_its_sketch_nothing():
    sweep = sweep_of({"whole": ARMS["whole"]})
    (work,) = expected_work(sweep, Demands(), sizing_of(sweep.arms, sweep.cluster))
    geometry, arm = model("hunyuanvideo-1.5"), sweep.arms[0]
    assert work.number == 12
    assert work.load.sketch_s == 0.0
    assert work.load.heavy_s == pytest.approx(denoise_s(geometry, work.action, arm.cost), rel=1e-6)


def test_actions_are_expected_as_often_as_the_demands_choose_them():
    still, moving = Demand(0.9, 0.05), Demand(0.05, 0.9)
    rows = planned(Demands(tuple(Recorded(demand) for demand in (still, still, still, moving)), "as four showed"))
    (half,) = (arm for arm in rows["arms"] if arm["arm"] == "half")
    assert [action["share"] for action in half["actions"]] == [0.75, 0.25]
    assert rows["demands"] == "as four showed"
    uniform = planned()
    (half,) = (arm for arm in uniform["arms"] if arm["arm"] == "half")
    assert len(half["actions"]) == len(actions_of(sweep_of().arms[0]))
    assert "equally often" in uniform["demands"]


def test_a_planner_that_saves_by_content_alone_is_planned_as_full_runs_and_the_plan_says_so():
    settings = {"model": "hunyuanvideo-1.5", "frames": 65}
    arms = {"seen": {**settings, "planner": {"vgdfr": {"similarity_threshold": 0.8}}}}
    arms["asked"] = {**settings, "planner": "vgdfr"}
    rows = planned(arms=arms)
    shares = {arm["arm"]: [action["share"] for action in arm["actions"]] for arm in rows["arms"]}
    assert shares == {"seen": [1.0], "asked": [1.0]}
    assert rows["notes"] == ["arm seen: no saving expected until content is seen; counted as full runs"]


def test_the_wall_time_is_never_below_the_work_over_the_ranks_or_the_longest_clip():
    for pods in (1, 2, 16):
        rows = planned(pods=pods, sketch_workers=8, decode_workers=8)
        assert rows["wall"]["at_least_s"] >= rows["gpu_hours"]["refine"] * 3600 / (8 * pods)
    slow = planned(pods=16, sizing={"rule": "narrowest"})
    longest_s = max(arm["gpu_s"]["heavy"] for arm in slow["arms"])
    assert slow["wall"]["allotment_s"] >= longest_s, "on one rank each"


def test_with_ranks_to_spare_clips_are_taken_to_run_wide_and_cost_more_gpu_hours():
    few, many = planned(pods=1), planned(pods=16)
    assert set(few["wall"]["gpu_s_by_width"]) != set(many["wall"]["gpu_s_by_width"])
    assert many["gpu_hours"]["refine"] > few["gpu_hours"]["refine"]
    assert many["wall"]["at_least_s"] < few["wall"]["at_least_s"]


def test_a_rule_that_leaves_no_choice_is_planned_as_it_is():
    fixed = planned(pods=1, sizing={"rule": "narrowest"})
    assert list(fixed["wall"]["gpu_s_by_width"]) == ["1"]


def test_a_pool_too_small_sets_the_wall_time_and_the_others_are_expected_to_idle():
    rows = planned(pods=8, decode_workers=1)
    roomy = planned(pods=8, decode_workers=8, sketch_workers=8)
    assert roomy["wall"]["at_least_s"] <= rows["wall"]["at_least_s"]
    split = planned(pods=32, decode_workers=1, sketch_workers=40)["split"]
    assert split["slowest"] == "decode"
    assert split["idle"]["decode"] == 0
    assert split["idle"]["heavy"] > 0
    assert split["balanced"]["decode"] > 1


def test_where_the_pod_decodes_its_ranks_do_that_work_too():
    rows = planned(decode_on="pod")
    assert rows["split"]["workers"]["decode"] == 0
    assert rows["gpu_hours"]["decode"] > 0
    assert rows["gpu_hours"]["total"] == pytest.approx(sum(rows["gpu_hours"][key] for key in ("sketch", "refine", "decode")))
    assert rows["held"]["gpus"] == 9
    assert rows["wall"]["set_by"] != "decode"
    one, other = (planned(decode_on=where, sizing={"rule": "narrowest"})["gpu_hours"] for where in ("pod", "workers"))
    assert one == pytest.approx(other), "whoever does it, the work is the same"


def test_where_sketch_workers_decode_too_they_have_both_to_do():
    rows, apart = planned(decode_on="sketchers"), planned()
    assert rows["held"]["gpus"] == 9
    assert rows["split"]["workers"]["decode"] == 0
    assert rows["split"]["idle"]["sketch"] < apart["split"]["idle"]["sketch"]
    busy = planned(decode_on="sketchers", pods=64)
    each = busy["split"]["seconds_per_item"]
    assert busy["wall"]["set_by"] == "sketch"
    assert busy["wall"]["at_least_s"] == pytest.approx(24 * (each["sketch"] + each["decode"]))


def test_the_price_is_of_every_gpu_held_from_first_to_last():
    rows = planned(price_per_gpu_hour=2.0)
    assert rows["held"]["gpus"] == 10
    assert rows["held"]["cost"] == pytest.approx(2.0 * 10 * rows["wall"]["at_least_s"] / 3600)
    assert rows["held"]["videos_per_gpu_hour_held"] == pytest.approx(rows["items"] / rows["held"]["gpu_hours"])
    assert rows["held"]["cost_of_work"] == pytest.approx(2.0 * rows["gpu_hours"]["total"])
    assert planned()["held"]["cost"] is None


def test_more_pods_than_it_starts_with_are_planned_for_too():
    rows = planned(pods=1, max_pods=4, sketch_workers=4, decode_workers=4)
    assert rows["grown"]["pods"] == 4
    assert rows["grown"]["at_least_s"] < rows["wall"]["at_least_s"]
    assert "grown" not in planned()


def test_disk_is_videos_by_recorded_bits_and_latents_under_way_once():
    pixels = 24 * 121 * 480 * 848
    guessed = planned()["disk"]
    assert guessed["videos_gb"] == pytest.approx(pixels * BITS_PER_PIXEL / 8e9)
    assert "estimate" in guessed["bits_from"]
    recorded = planned(Demands((Recorded(Demand(0.5, 0.5), bits_per_pixel=0.25),)))["disk"]
    assert recorded["videos_gb"] == pytest.approx(guessed["videos_gb"] * 0.25 / BITS_PER_PIXEL)
    assert recorded["bits_from"] == "recorded clips"
    assert latent_bytes(sweep_of().arms[0]) == 4 * 32 * 31 * 30 * 53
    assert planned(checkpoints=False)["disk"]["checkpoints_gb"] == 0
    assert guessed["checkpoints_gb"] == pytest.approx((1 + 2 * 8 + 1) * 4 * 32 * 31 * 30 * 53 / 1e9)


def test_seconds_that_rest_on_no_measurement_are_noted():
    assert planned()["notes"] == [], "this model was measured on this device"
    (rough, decode) = planned(arms={"wan": {"model": "wan2.1-1.3b"}})["notes"]
    assert "roofline" in rough
    assert "decoding was never measured" in decode


def test_the_command_prints_the_whole_plan_and_json_says_the_same(tmp_path):
    spec = write(tmp_path)
    done = dvg_plan(spec, "cluster.price_per_gpu_hour=3")
    assert done.exit_code == 0, done.output
    for words in (
        "24 items",
        "2 arms",
        "GPU-hours",
        "wall time:",
        "simulated; at least",
        "cost: 10 GPUs",
        "at 3 an hour",
        "disk:",
        "sets the pace",
    ):
        assert words in done.stdout
    rows = json.loads(dvg_plan(spec, "--json").stdout)
    assert rows["items"] == 24
    assert rows["feasibility"]["fits"] is None
    assert "200 sketches of wan-mini" in rows["demands"]


def test_demands_can_come_from_a_run(tmp_path):
    row = {"prompt_id": "p", "seed": 0, "spatial_demand": 0.9, "temporal_demand": 0.1, "num_bytes": 1000}
    sizes = {"num_frames": 10, "height": 10, "width": 10, "model": "hunyuanvideo-1.5", "text_s": 2.0}
    (tmp_path / "records.jsonl").write_text(json.dumps(row | sizes) + "\n")
    rows = json.loads(dvg_plan(write(tmp_path), "--demands", str(tmp_path), "--json").stdout)
    assert rows["disk"]["bits_per_pixel"] == pytest.approx(8.0)
    (whole,) = (arm for arm in rows["arms"] if arm["arm"] == "whole")
    assert whole["gpu_s"]["sketch"] == 2.0, "a plain run's sketch is its text"


def test_plan_and_simulate_find_the_same_demands(tmp_path):
    from orchestrator.cli_simulate import SimulateOptions, study_of
    from orchestrator.cli_spec_plan import find_demands

    spec = pathlib.Path(write(tmp_path))
    assert "wan-mini showed" in find_demands(spec).source
    row = {"prompt_id": "p", "seed": 0, "spatial_demand": 0.9, "temporal_demand": 0.1, "neutral_demand": False}
    sizes = {"num_frames": 10, "height": 10, "width": 10, "model": "hunyuanvideo-1.5", "text_s": 2.0, "num_bytes": 1000}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "records.jsonl").write_text(json.dumps(row | sizes) + "\n")
    assert len(find_demands(spec, tmp_path / "run").rows) == 1
    chosen = {d.action.name for d in study_of(spec, (), SimulateOptions(demands=tmp_path / "run")).world.decisions}
    assert len(chosen) == len(ARMS), "one demand, one action of each arm"
    (tmp_path / "demands_wan_mini.jsonl").write_text(json.dumps(row | sizes) + "\n")
    assert "1 sketches" in json.loads(dvg_plan(str(spec), "--json").stdout)["demands"]
    chosen = {d.action.name for d in study_of(spec, (), SimulateOptions()).world.decisions}
    assert len(chosen) == len(ARMS)
    with pytest.raises(ConfigError, match="--demands 'none' cannot be read"):
        study_of(spec, (), SimulateOptions(demands=pathlib.Path("none")))


def test_what_the_cluster_cannot_give_is_told_after_the_report_all_at_once(tmp_path):
    spec = write(tmp_path)
    assert dvg_plan(spec, "--cluster", str(ROOT / "ray_cluster.yaml")).exit_code == 0
    told, printed = mistakes_of(spec, "cluster.pods=9", "cluster.sketch_workers=50", "--cluster", str(ROOT / "ray_cluster.yaml"))
    assert len(told) >= 2
    assert "does not fit" in printed
    found = json.loads(mistakes_of(spec, "cluster.pods=9", "--cluster", str(ROOT / "ray_cluster.yaml"), "--json")[1])
    assert found["feasibility"]["fits"] is False
    assert found["feasibility"]["mistakes"]


def test_every_mistake_of_the_input_is_told_at_once(tmp_path):
    told, printed = mistakes_of(write(tmp_path), "arms.half.planner=x", "--demands", "none.jsonl", "--cluster", "none.yaml")
    assert len(told) == 3
    assert printed == ""
    assert "give one" in mistakes_of(write(tmp_path), "--address", "x", "--cluster", "y")[0][0]


def test_the_two_kinds_of_plan_are_not_mixed(tmp_path):
    (told,) = mistakes_of(write(tmp_path), "--model", "wan-mini", "--ranks", "2")[0]
    assert told.startswith("--model, --ranks: for a plan without a SPEC")
    (told,) = mistakes_of("--demands", "x")[0]
    assert told.startswith("--demands: for a SPEC")
    assert dvg_plan("--model", "wan-mini", "--device-name", "NVIDIA H200").exit_code == 0, "the plan of one model is as it was"


def test_planning_a_spec_starts_nothing_and_loads_neither_torch_nor_diffusers(tmp_path):
    import subprocess

    code = (
        "import sys; from orchestrator.cli import app; sys.argv = ['dvg', 'plan', sys.argv[1]]\n"
        "try: app()\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'ray', 'mlflow', 'diffusers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, write(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")
    assert list(tmp_path.iterdir()) == [tmp_path / "spec.yaml"]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_no_figure_of_the_table_is_cut_off_on_a_narrow_terminal(tmp_path, width):
    rows = json.loads(dvg_plan(write(tmp_path), "--json").stdout)
    console = Console(file=io.StringIO(), width=width)
    print_spec_plan(rows, console)
    assert "…" not in console.file.getvalue()


@pytest.mark.parametrize("name", ["hunyuan15-480p-rich", "wan2.1-14b_with-a-long.name", "abcdefghijklmnopqrstuvwxyz"])
def test_long_names_of_arms_break_between_their_words(tmp_path, name):
    rows = json.loads(dvg_plan(write(tmp_path, arms={name: ARMS["half"]}), "--json").stdout)
    console = Console(file=io.StringIO(), width=80)
    print_spec_plan(rows, console)
    parts = in_lines(name).split("\n")
    printed = [line.split()[0] for line in console.file.getvalue().splitlines() if line.strip()]
    assert "".join(parts) == name
    assert all(part[-1] in "-_." for part in parts[:-1])
    if "-" in name:
        assert [word for word in printed if word in parts] == parts


def test_an_address_of_a_dashboard_in_the_environment_is_no_cluster_to_fit(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("orchestrator.machines.live_machines", asked.append)
    for dashboard in ("http://127.0.0.1:8265", "https://head:8265"):
        monkeypatch.setenv("RAY_ADDRESS", dashboard)
        assert dvg_plan(write(tmp_path)).exit_code == 0
    assert asked == []
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    assert dvg_plan(write(tmp_path)).exit_code == 0
    assert dvg_plan(write(tmp_path), "--address", "http://127.0.0.1:8265").exit_code == 0
    assert asked == [None, "http://127.0.0.1:8265"]


def test_durations_and_sizes_read_as_people_say_them():
    assert [clock(s) for s in (0, 1.23, 59.94, 200, 10_140, 97_200)] == [
        *("0 s", "1.2 s", "59.9 s", "3 min 20 s", "2 h 49 min", "1 d 3 h"),
    ]
    assert [size(gb) for gb in (1234.5, 2.5, 0.0025, 0.0000025)] == ["1,234.5 GB", "2.5 GB", "2.5 MB", "2.5 kB"]


def test_a_sweep_that_is_soon_simulated_is_and_then_its_time_and_price_are_the_simulations(tmp_path, monkeypatch):
    rows = json.loads(dvg_plan(write(tmp_path), "cluster.price_per_gpu_hour=3", "--json").stdout)
    wall = rows["wall"]
    assert wall["at_least_s"] <= wall["simulated_s"] * (1 + 1e-3)
    assert wall["simulated_s"] < 2 * wall["at_least_s"]
    assert rows["held"]["cost"] == pytest.approx(3 * 10 * wall["simulated_s"] / 3600)
    monkeypatch.setattr("orchestrator.cli_spec_plan.MOST_SIMULATED", 5)
    rows = json.loads(dvg_plan(write(tmp_path), "--json").stdout)
    assert rows["wall"]["simulated_s"] is None
    assert rows["held"]["gpu_hours"] == pytest.approx(10 * rows["wall"]["at_least_s"] / 3600)
