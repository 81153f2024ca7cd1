"""Runs simulated again from their event logs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator import eventlog
from orchestrator.cli import app
from orchestrator.cli_simulate import replay_of
from orchestrator.events import Arrived, Decoded, Failed, PhaseDone, Reached, Sketched, WorkerLost
from orchestrator.mistakes import ConfigError
from orchestrator.scheduler import Scheduler
from orchestrator.simulator import Simulation
from orchestrator.simulator_meter import FILL, NO_SKETCH
from orchestrator.simulator_replay import recording, replay_report
from orchestrator.simulator_world import Realism, world_of
from tests.unit.virtual import study

DEMO = Path(__file__).parents[1] / "golden" / "demo_run"
"""Two prompts of experiments/specs/demo.yaml under two arms, on two CPU ranks."""


def told_by(of, kind=Simulation):
    """The log of a simulated sweep, as a run folder would hold it."""
    scheduler = Scheduler(of.config, of.sizing)
    outcome = kind(scheduler, of.world, of.fleet, of.seed, of.checkpoints).run()
    return eventlog.told(json.loads(json.dumps(scheduler.log))), outcome


def replayed(of, told):
    def predicted(run):
        return world_of(run.items, [run.decisions[item.item_key] for item in run.items], of.sizing, Realism(noise=0.0))

    return replay_report(told, lambda: Scheduler(of.config, of.sizing), predicted)


def test_a_run_with_its_own_seconds_comes_to_the_same_schedule():
    of = study(40, noise=0.2)
    told, outcome = told_by(of)
    found = replayed(of, told)
    assert found["replay"]["answered_otherwise"] == 0
    again = found["with_recorded_seconds"]
    assert again["commands_not_given"] == 0
    assert again["makespan_s"] == pytest.approx(outcome.makespan_s, rel=1e-6) == pytest.approx(found["real_makespan_s"])
    assert again["finished"] == 40


def test_predicted_seconds_are_off_by_the_noise_alone():
    of = study(40, noise=0.01)
    found = replayed(of, told_by(of)[0])
    assert abs(found["with_predicted_seconds"]["difference"]) < 0.05
    for row in found["calibration"].values():
        assert row["real_over_predicted"] == pytest.approx(1.0, abs=0.02)


def test_losses_and_failures_of_a_run_happen_again():
    of = study(40, 2, "max_attempts=20", mtbf_hours=0.5)
    told, outcome = told_by(of)
    assert any(isinstance(event, WorkerLost) for event, _ in told)
    found = replayed(of, told)
    assert found["replay"]["answered_otherwise"] == 0
    assert found["with_recorded_seconds"]["finished"] == outcome.finished == 40
    assert abs(found["with_recorded_seconds"]["difference"]) < 0.1


class NodesGo(Simulation):
    """What is lost is lost with its node."""

    def _lose_ranks(self, unit, ranks, reason, blameless=False):
        super()._lose_ranks(unit, ranks, reason, blameless=True)


def test_a_loss_that_cost_no_attempt_costs_none_again():
    of = study(40, 2, "max_attempts=1", mtbf_hours=0.5)
    told, outcome = told_by(of, NodesGo)
    assert any(isinstance(event, WorkerLost) and event.blameless for event, _ in told)
    assert replayed(of, told)["with_recorded_seconds"]["finished"] == outcome.finished == 40


def test_an_attempt_that_failed_fails_again():
    of = study(16)
    told, _ = told_by(of)
    event = next(event for event, _ in told if type(event).__name__ == "PhaseDone")
    failed = Failed(event.time_s, event.item_key, event.attempt, "refine", "ValueError: no")
    run = recording([(failed, c) if e is event else (e, c) for e, c in told])
    assert list(run.failed) == [(event.item_key, 1)]


def test_a_real_run_is_simulated_again():
    found = replay_of(DEMO)
    assert found["items"] == 4
    assert found["ranks"] == 2
    assert 80 < found["real_makespan_s"] < 85
    assert found["with_recorded_seconds"]["finished"] == found["with_predicted_seconds"]["finished"] == 4
    assert abs(found["with_recorded_seconds"]["difference"]) < 0.25
    assert {kind: row["number"] for kind, row in found["calibration"].items()} == {"sketch": 4, "refine": 7, "decode": 4}


class Resumed(Simulation):
    """Every item comes with its sketch on disk, every fourth with all its stages."""

    def _tell(self, event):
        super()._tell(event)
        if not isinstance(event, Arrived):
            return
        decision = self.world.decisions[number := self.world.index[event.item.item_key]]
        stop = decision.action.num_sketched if number % 4 else len(decision.action.stages)
        self.meter.unsketched -= 1
        if number % 4:
            self.meter.waiting += 1
        else:
            self.meter.undecoded += 1
        super()._tell(Reached(0.0, event.item.item_key, 1, decision, stop, {}))


def test_a_resumed_run_goes_on_from_what_it_had_on_disk():
    of = study(40, noise=0.2)
    scheduler = Scheduler(of.config, of.sizing)
    outcome = Resumed(scheduler, of.world, of.fleet).run()
    told = eventlog.told(json.loads(json.dumps(scheduler.log)))
    assert not any(isinstance(event, Sketched) for event, _ in told)
    found = replayed(of, told)
    again = found["with_recorded_seconds"]
    assert found["replay"]["answered_otherwise"] == again["commands_not_given"] == 0
    assert again["makespan_s"] == pytest.approx(outcome.makespan_s, rel=1e-6)
    assert again["finished"] == 40
    assert again["idle_breakdown"] == pytest.approx(outcome.idle_s, abs=0.01)
    assert again["idle_breakdown"][FILL] == again["idle_breakdown"][NO_SKETCH] == 0, "no sketch was ever waited for"


def test_a_checkpoint_told_in_the_middle_of_a_run_is_no_start_of_its_own():
    told, _ = told_by(study(16))
    place, done = next((n, event) for n, (event, _) in enumerate(told) if isinstance(event, PhaseDone))
    sketched = next(event for event, _ in told if isinstance(event, Sketched) and event.item_key == done.item_key)
    reached = Reached(done.time_s, done.item_key, 1, sketched.decision, done.stop, {})
    run = recording([*told[:place], (reached, []), *told[place:]])
    assert reached not in run.outside


def test_a_start_that_was_stopped_is_refused_with_what_it_left_open():
    told, _ = told_by(study(40))
    half = told[: len(told) * 2 // 3]
    num_open = 40 - sum(isinstance(event, Decoded) for event, _ in half)
    assert 0 < num_open < 40
    with pytest.raises(ValueError, match=f"stopped with {num_open} of 40 items open; replay a finished one"):
        recording(half)


def copy_of_demo(folder, text):
    shutil.copytree(DEMO, folder / "run")
    (folder / "run" / "events.jsonl").write_text(text)
    return folder / "run"


def test_a_last_line_that_was_never_finished_is_left_out(tmp_path):
    run = copy_of_demo(tmp_path, (DEMO / "events.jsonl").read_text() + '{"start": 2, "type": "Arr')
    assert replay_of(run)["real_makespan_s"] == replay_of(DEMO)["real_makespan_s"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is empty"),
        ('{"start": 1', "is empty"),
        ("no json\n", "Expecting value"),
        ('{"type": "Arrived"}\n', "is no event log"),
        ('{"type": "Arrived", "start": 1, "commands": []}\n', "Field required"),
    ],
)
def test_a_log_that_cannot_be_read_is_refused_in_one_line(tmp_path, text, told):
    with pytest.raises(ConfigError, match=told) as refused:
        replay_of(copy_of_demo(tmp_path, text))
    assert "\n" not in str(refused.value)


def test_a_replay_that_comes_to_a_stop_is_refused_in_one_line(tmp_path, monkeypatch):
    def stuck(*_):
        raise RuntimeError("nothing runs,\n and items are left")

    monkeypatch.setattr("orchestrator.cli_simulate.replay_report", stuck)
    with pytest.raises(ConfigError, match="nothing runs, and items are left"):
        replay_of(DEMO)


@pytest.mark.parametrize("option", ["--pods 2", "--items 9", "--seed 1", "--noise 0.1", "--no-baselines", "--demands x"])
def test_options_of_a_spec_are_refused_with_a_run_folder(option):
    refused = CliRunner().invoke(app, ["simulate", "--replay", str(DEMO), *option.split()]).exception
    assert isinstance(refused, ConfigError)
    assert str(refused).startswith(option.split()[0].replace("--no-", "--"))


def test_only_the_last_start_counts(tmp_path):
    shutil.copytree(DEMO, tmp_path / "run")
    rows = (DEMO / "events.jsonl").read_text().splitlines()
    again = [json.dumps(json.loads(row) | {"start": 2}) for row in rows]
    (tmp_path / "run" / "events.jsonl").write_text("\n".join([*rows[:7], *again]) + "\n")
    assert replay_of(tmp_path / "run")["real_makespan_s"] == replay_of(DEMO)["real_makespan_s"]


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no run folder"):
        replay_of(tmp_path)
    shutil.copytree(DEMO, tmp_path / "run")
    (tmp_path / "run" / "events.jsonl").write_text((DEMO / "events.jsonl").read_text().splitlines()[0] + "\n")
    with pytest.raises(ConfigError, match="starts no work"):
        replay_of(tmp_path / "run")


def test_the_command_prints_json_and_tables(tmp_path):
    runner = CliRunner()
    found = runner.invoke(app, ["simulate", "--replay", str(DEMO), "--json"])
    assert json.loads(found.stdout)["items"] == 4
    assert "recorded seconds" in runner.invoke(app, ["simulate", "--replay", str(DEMO)]).stdout
    spec = str(Path(__file__).parents[2] / "experiments" / "specs" / "mixed.yaml")
    options = ["--pods", "1", "--gpus-per-pod", "4", "--items", "12", "--no-baselines"]
    assert json.loads(runner.invoke(app, ["simulate", spec, *options, "--json"]).stdout)["finished"] == 12
    assert "regret" in runner.invoke(app, ["simulate", spec, *options]).stdout
    assert isinstance(runner.invoke(app, ["simulate"]).exception, ConfigError)
