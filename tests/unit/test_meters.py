"""A sweep's metrics: what they count, what they are tagged with, and the dashboard that shows them."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
from collections import defaultdict

import pytest

from orchestrator.events import StartPhase, WorkerJoined, WorkerLost
from orchestrator.meters import METRICS, OF_CLIP, SWITCH, Meters, ray_metrics_on, slot
from orchestrator.policy import Throughput
from orchestrator.scheduler import Scheduler, SchedulerConfig
from tests.unit import records
from tests.unit.clockwork import Clockwork
from tests.unit.test_eta import decide, items

DASHBOARD = pathlib.Path(__file__).parents[2] / "experiments" / "grafana" / "dvg.json"


class Instrument:
    """Keeps what it is told, by its tags' values."""

    def __init__(self, tags):
        self.tags, self.values = tags, defaultdict(list)

    def _take(self, value, tags):
        assert set(tags) == set(self.tags), "Ray refuses a tag too many or too few"
        assert all(isinstance(text, str) for text in tags.values())
        self.values[tuple(tags[name] for name in self.tags)].append(value)

    def inc(self, value, tags):
        assert value > 0
        self._take(value, tags)

    def set(self, value, tags):
        self._take(value, tags)

    def observe(self, value, tags):
        self._take(value, tags)


class Metered:
    """A sweep on a virtual clock, metered."""

    def __init__(self, number=8, fails=lambda command: False, on=True):
        self.made = {}
        scheduler = Scheduler(SchedulerConfig(max_attempts=2), Throughput(degrees=(4,)))
        self.world = None
        now_s = lambda: self.world.now_s if self.world else 0.0  # noqa: E731
        self.meters = Meters("mine", {"dvg": "wan-mini"}, scheduler, now_s, lambda: on, self.make)
        self.world = Clockwork(scheduler, items(number), decide, self.seconds, self.listen, fails)

    def make(self):
        self.made = {m.name: Instrument(m.tags) for m in METRICS}
        return self.made

    @staticmethod
    def seconds(command, item):
        return 20.0 if isinstance(command, StartPhase) else 5.0

    def listen(self, event, commands):
        self.meters.on_event(event, commands)
        for command in commands:
            if type(command).__name__ == "Finish":
                row = dataclasses.replace(records.make(0), attempts=command.attempt, device_s=command.device_s)
                self.meters.on_record(row)
            elif type(command).__name__ == "GiveUp":
                self.meters.on_failure({"arm": "dvg", "attempts": command.attempt, "prompt_id": "secret", "error": "x"})

    def run(self, **workers):
        self.world.run(**{"sketchers": 1, "pods": (8, 8), "decoders": 1, **workers})
        return self

    def total(self, name, *tags):
        return sum(self.made[name].values.get(tags, []))

    def last(self, name, *tags):
        return self.made[name].values[tags][-1]


def test_videos_attempts_failures_and_what_was_given_up_are_counted():
    def fails(command):
        return isinstance(command, StartPhase) and (command.item_key == "key1" or command.attempt == 1)

    metered = Metered(8, fails).run()
    assert metered.total("dvg_videos", "mine", "dvg", "wan-mini") == 7
    assert metered.total("dvg_given_up", "mine", "dvg", "wan-mini") == 1
    assert metered.total("dvg_attempts", "mine", "dvg", "wan-mini") == 16
    assert metered.total("dvg_failures", "mine", "refine") == 9


def test_gpu_seconds_are_ranks_times_seconds_by_pool():
    metered = Metered(8).run()
    assert metered.total("dvg_gpu_seconds", "mine", "heavy") == pytest.approx(8 * 4 * 20.0)
    assert metered.total("dvg_gpu_seconds", "mine", "sketch") == pytest.approx(8 * 5.0)
    assert metered.total("dvg_gpu_seconds_per_video", "mine", "dvg", "wan-mini") == pytest.approx(8 * (80 + 5 + 5))
    assert metered.made["dvg_phase_seconds"].values["mine", "refine"] == [20.0] * 8


def test_the_seconds_of_each_stage_are_observed_by_its_number():
    metered = Metered(1).run()
    stages = {tags[-1]: seconds for tags, seconds in metered.made["dvg_stage_seconds"].values.items()}
    assert stages == {"1": [0.1], "2": [0.2], "3": [0.3], "4": [0.4]}


def test_gauges_tell_queues_workers_and_busy_shares():
    metered = Metered(12).run()
    depths = metered.made["dvg_queue_depth"].values
    assert max(depths["mine", "arrived"]) >= 10
    assert depths["mine", "arrived"][-1] == 0
    assert metered.last("dvg_workers", "mine", "heavy") == 16
    shares = metered.made["dvg_pod_busy_share"].values["mine", "pod-0"]
    assert 0 < shares[-1] < 1
    assert metered.last("dvg_videos_per_minute", "mine") > 0


def test_a_lost_pod_is_counted_and_its_share_falls_to_zero_under_the_same_name_as_its_replacement():
    metered = Metered(4)
    tell = metered.world.tell
    tell(WorkerJoined(0.0, "pod", "pod-0", 8))
    metered.world.now_s = 10.0
    tell(WorkerLost(10.0, "pod-0", "gone"))
    assert metered.total("dvg_workers_lost", "mine", "heavy") == 1
    assert metered.last("dvg_pod_busy_share", "mine", "pod-0") == 0.0
    assert slot("pod-0.12") == slot("pod-0") == "pod-0"
    assert slot("sketch-3.1") == "sketch-3"


def test_gauges_are_set_at_most_once_a_second():
    metered = Metered(40)
    metered.world.seconds = lambda command, item: 0.05
    metered.run()
    assert len(metered.made["dvg_videos_per_minute"].values["mine",]) <= metered.world.now_s + 2


def test_no_tag_can_take_ever_more_values():
    allowed = {"sweep", "arm", "model", "phase", "pool", "pod", "stage", "boundary"}
    for metric in METRICS:
        assert set(metric.tags) <= allowed, metric.name
    few, many = (Metered(number).run().made for number in (4, 40))
    for name, instrument in many.items():
        assert set(instrument.values) == set(few[name].values), "more items, no more series"


def test_with_metrics_off_or_without_ray_nothing_is_made(monkeypatch):
    metered = Metered(4, on=False).run()
    assert metered.made == {}
    assert not metered.meters.on
    monkeypatch.delitem(__import__("sys").modules, "ray", raising=False)
    assert not ray_metrics_on({})

    class Ray:
        @staticmethod
        def is_initialized():
            return True

    monkeypatch.setitem(__import__("sys").modules, "ray", Ray)
    assert ray_metrics_on({})
    assert not ray_metrics_on({SWITCH: "0"})
    assert not ray_metrics_on({SWITCH: "False"})


def test_every_metric_names_its_sweep_first_and_no_two_share_a_name():
    assert OF_CLIP == ("sweep", "arm", "model")
    assert all(metric.tags[0] == "sweep" for metric in METRICS)
    assert len({metric.name for metric in METRICS}) == len(METRICS)


def test_the_dashboard_is_valid_and_names_only_metrics_that_there_are():
    board = json.loads(DASHBOARD.read_text())
    expressions = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    named = {name for text in expressions for name in re.findall(r"ray_\w+", text)}
    queries = {name for row in board["templating"]["list"] for name in re.findall(r"ray_\w+", str(row["query"]))}
    exported = {name for metric in METRICS for name in metric.exported}
    assert named | queries <= exported
    for metric in METRICS:
        assert named & set(metric.exported), f"{metric.name} is on no panel"
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    assert all(text.count("(") == text.count(")") for text in expressions)


def test_the_dashboard_groups_only_by_tags_that_the_metric_has():
    board = json.loads(DASHBOARD.read_text())
    tags_of = {name: {*metric.tags, "le"} for metric in METRICS for name in metric.exported}
    for panel in board["panels"]:
        for target in panel["targets"]:
            asked = {tag.strip() for group in re.findall(r"by \(([^)]*)\)", target["expr"]) for tag in group.split(",")}
            shown = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            for name in re.findall(r"ray_\w+", target["expr"]):
                assert asked | shown <= tags_of[name], panel["title"]


def test_the_guide_names_every_metric_and_no_other():
    text = (DASHBOARD.parents[2] / "docs" / "planning.md").read_text()
    assert set(re.findall(r"`(dvg_\w+)`", text)) == {metric.name for metric in METRICS}
