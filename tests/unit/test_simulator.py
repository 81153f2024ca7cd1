"""The scheduler on a virtual clock: what every simulated sweep must come to."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from experiments.bench.simulate import per_hour_held
from orchestrator.cli_simulate import SimulateOptions, run_simulate
from orchestrator.cli_spec_plan import find_demands
from orchestrator.mistakes import ConfigError
from orchestrator.scheduler import Scheduler
from orchestrator.simulator import Simulation
from orchestrator.simulator_baselines import FIRST_COME, best_round_robin, round_robin_s
from orchestrator.simulator_bound import lower_bound_s
from orchestrator.simulator_meter import TICKS
from orchestrator.simulator_parts import Fleet
from orchestrator.simulator_report import fleet_for, report
from orchestrator.simulator_world import repeated
from orchestrator.sizing import SizingConfig
from orchestrator.split import Load
from tests.unit.virtual import MIXED, study

RULES = {"throughput": SizingConfig(rule="throughput"), **FIRST_COME}


def simulated(of, config=None):
    """The simulation itself, run to its end."""
    sizing = of.sizing if config is None else of.sizing.model_copy(update={"config": config})
    simulation = Simulation(Scheduler(of.config, sizing, keep_log=False), of.world, of.fleet, of.seed, of.checkpoints)
    simulation.run()
    return simulation


def test_the_same_seed_gives_the_same_sweep_and_another_seed_another():
    first, again, other = (study(60, seed=seed, mtbf_hours=4).run() for seed in (1, 1, 2))
    assert first == again
    assert first.makespan_s != other.makespan_s


def test_what_is_drawn_for_a_clip_depends_on_no_other_clip():
    few, many = study(40).world, study(90).world
    for number in range(40):
        assert few.decisions[number] == many.decisions[number]
        assert few.sketch_s(number) == many.sketch_s(number)
        assert few.refine_s(number, 1, 4, 2) == many.refine_s(number, 1, 4, 2)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("mtbf_hours", [None, 1.0])
def test_busy_and_idle_gpu_seconds_add_up_to_the_tick(rule, mtbf_hours):
    simulation = simulated(study(48, mtbf_hours=mtbf_hours), RULES[rule])
    meter = simulation.meter
    assert meter.busy_ticks + sum(meter.idle.values()) == meter.now * meter.num_ranks
    assert meter.busy_ticks / TICKS == pytest.approx(simulation.outcome.heavy_s)
    assert (meter.busy, meter.busy_down, meter.waiting, meter.undecoded, meter.unsketched) == (0, 0, 0, 0, 0)
    assert all(ticks >= 0 for ticks in meter.idle.values())


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    items=st.integers(1, 40),
    pods=st.integers(1, 3),
    sketch_gpus=st.integers(2, 12),
    noise=st.sampled_from([0.0, 0.03, 0.5]),
    rule=st.sampled_from(sorted(RULES)),
    seed=st.integers(0, 99),
)
def test_no_rule_beats_the_bound(items, pods, sketch_gpus, noise, rule, seed):
    of = study(items, pods, sketch_gpus=sketch_gpus, noise=noise, seed=seed)
    assert of.run(RULES[rule]).makespan_s >= of.bound_s() * (1 - 1e-9)
    assert best_round_robin(of.world, of.fleet)[1] >= of.bound_s() * (1 - 1e-9)


@pytest.mark.parametrize("where", ["workers", "pod", "sketchers"])
def test_no_rule_beats_the_bound_wherever_videos_are_decoded(where):
    of = study(24, 2, f"cluster.decode_on={where}")
    assert of.run().makespan_s >= of.bound_s()
    assert round_robin_s(of.world, of.fleet, 8) >= of.bound_s()


@pytest.mark.parametrize("seed", range(4))
def test_failures_lose_no_item_and_cost_time(seed):
    undisturbed, of = study(64, seed=seed), study(64, 2, "max_attempts=20", mtbf_hours=0.5, seed=seed)
    simulation = simulated(of)
    simulation.scheduler.check()
    found = simulation.outcome
    assert found.failures > 0
    assert found.lost_s > 0
    assert (found.finished, found.given_up) == (64, 0)
    assert 64 <= found.attempts <= 64 + 8 * found.failures
    assert found.idle_s["pod_down"] > 0
    assert found.makespan_s > undisturbed.run().makespan_s


def test_checkpoints_save_work_that_failures_would_lose():
    kept, thrown = (
        sum(study(48, 2, "max_attempts=50", f"cluster.checkpoints={on}", mtbf_hours=0.3, seed=s).run().lost_s for s in range(4))
        for on in ("true", "false")
    )
    assert kept < thrown


def test_items_are_repeated_under_further_seeds():
    of = study(8)
    many = repeated(of.world.items, 30)
    assert many[:8] == tuple(of.world.items)
    assert len({item.item_key for item in many}) == len({(i.arm, i.prompt_id, i.seed) for i in many}) == 30
    assert repeated(of.world.items, 3) == tuple(of.world.items[:3])


def test_a_thousand_items_with_their_report_are_json():
    found = report(study(1000, 8), baselines=False)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["finished"] == 1000
    assert 0 <= found["regret"] < 0.25
    assert sum(found["idle_breakdown"].values()) == pytest.approx(found["idle_gpu_s"])
    assert sum(row["clips"] for row in found["width_histogram"].values()) == 1000


def test_videos_per_gpu_hour_are_of_gpus_at_work_and_those_held_are_told_apart():
    of = study(48)
    found = report(of, baselines=False)
    assert found["videos_per_gpu_hour"] == pytest.approx(48 * 3600 / found["gpu_seconds"])
    assert found["videos_per_gpu_hour_held"] == pytest.approx(48 * 3600 / (of.fleet.num_gpus * found["makespan_s"]))
    assert found["videos_per_gpu_hour_held"] < found["videos_per_gpu_hour"]
    assert per_hour_held(found) == pytest.approx(found["videos_per_gpu_hour_held"])


def test_memory_is_what_came_since_before_the_world_was_made_or_not_told(monkeypatch):
    order = []
    monkeypatch.setattr("orchestrator.cli_simulate.peak_gb", lambda: order.append("memory") or 1.0)
    monkeypatch.setattr("orchestrator.cli_simulate.study_of", lambda *args: order.append("world") or study(8))
    monkeypatch.setattr("orchestrator.simulator_report.peak_gb", lambda: 1.5)
    told = []
    monkeypatch.setattr("orchestrator.cli_simulate.print_json", told.append)
    run_simulate(MIXED, (), SimulateOptions(baselines=False), as_json=True)
    assert order == ["memory", "world"]
    assert told[0]["items_per_gib"] == 16
    of = study(8)
    assert report(of, baselines=False)["items_per_gib"] is None, "nobody looked before its world was made"


def test_round_robin_which_never_fails_is_no_baseline_where_gpus_do():
    names = set(report(study(16, mtbf_hours=50.0))["baselines"])
    assert names == set(FIRST_COME)


def test_a_report_compares_with_every_baseline():
    found = report(study(48))
    assert set(found["baselines"]) == {*FIRST_COME, *(f"round_robin_{width}" for width in (1, 2, 4, 8))}
    for row in found["baselines"].values():
        assert row["ours_against_it"] == pytest.approx(found["makespan_s"] / row["makespan_s"] - 1)


def test_fixed_widths_run_every_clip_on_that_width():
    of = study(32)
    for width in (1, 2, 4, 8):
        assert set(of.run(RULES[f"fixed_{width}"]).width_gpu_s) == {width}


def test_the_usual_sketch_pool_leaves_the_pods_as_the_bottleneck():
    load = Load(3.0, 100.0, 5.0)
    fleet = fleet_for(load, 16, 8, None)
    assert fleet.sketch_workers / load.sketch_s > fleet.num_ranks / load.heavy_s < fleet.decode_workers / load.decode_s
    assert fleet_for(load, 16, 8, 40).num_gpus == 16 * 8 + 40
    assert fleet_for(load, 16, 8, None, "pod").num_decoders == 0
    assert fleet_for(load, 16, 8, None, "sketchers").num_decoders == fleet.sketch_workers + fleet.decode_workers
    assert fleet_for(load, 1, 1, 1) == Fleet(1, 1, 1, 1)


def test_demands_of_the_spec_reach_the_planner():
    of = study(1600, 1)
    assert len(find_demands(MIXED).rows) == 200
    assert len({cost.action for cost in of.world.costs}) > 20
    neutral = [decision for decision in of.world.decisions if decision.demand is not None and decision.demand.neutral]
    assert not neutral


def test_clips_of_the_shipped_spec_differ_tenfold_in_cost():
    gpu_s = [cost.load.heavy_s for cost in study(1600, 1).world.costs]
    assert max(gpu_s) > 9 * min(gpu_s)


@pytest.mark.parametrize("options", [{"noise": -1.0}, {"mtbf_hours": 0.0}, {"gpus_per_pod": 3}])
def test_what_cannot_be_is_refused(options):
    with pytest.raises(ConfigError):
        study(8, **{"pods": 1} | options) if "gpus_per_pod" not in options else study_with_ranks(3)


def study_with_ranks(ranks):
    from orchestrator.cli_simulate import SimulateOptions, study_of

    return study_of(MIXED, (), SimulateOptions(gpus_per_pod=ranks))


def test_nothing_to_do_takes_no_time():
    of = study(8)
    empty = dataclasses.replace(of.world, items=())
    assert lower_bound_s(empty, of.fleet) == 0.0


def test_a_small_backlog_ends_before_every_simpler_schedule_of_it():
    rows = report(study(256, 8))["baselines"]
    first_come = [row["ours_against_it"] for name, row in rows.items() if name in FIRST_COME]
    in_turn = [row["ours_against_it"] for name, row in rows.items() if name.startswith("round_robin")]
    assert max(first_come) <= 0.0
    assert max(in_turn) <= -0.15


def test_a_deep_backlog_ends_near_the_bound():
    assert report(study(768, 8), baselines=False)["regret"] < 0.05
