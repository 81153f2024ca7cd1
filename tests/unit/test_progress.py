"""What a person sees while a sweep runs."""

from __future__ import annotations

import dataclasses
import io
import itertools
import re
import threading

import pytest
from rich.console import Console

from orchestrator.cluster_config import ClusterConfig
from orchestrator.events import Arrived, Failed, StartPhase, StartSketch, WorkerJoined, WorkerLeaving, WorkerLost
from orchestrator.policy import Throughput
from orchestrator.progress import FEW_ITEMS, LINE_S, LONGEST_LINE_S, Progress, about, figure, why_idle
from orchestrator.scheduler import Scheduler, SchedulerConfig
from orchestrator.split import POOLS
from orchestrator.tally import Tally
from tests.unit import records
from tests.unit.clockwork import Clockwork
from tests.unit.test_eta import NARROW, decide, items

START_S = 1e6
GPUS = ClusterConfig(heavy_ranks=8, pods=2, gpus_per_rank=1, gpus_per_sketch=1, gpus_per_decode=1)


class Watched:
    """A sweep on a virtual clock with a view of it."""

    def __init__(self, number=20, terminal=False, policy=NARROW, config=GPUS, width=140):
        self.file = io.StringIO()
        console = Console(file=self.file, force_terminal=terminal, width=width, color_system=None)
        self.scheduler = Scheduler(SchedulerConfig(max_ahead=16), policy)
        self.world = None
        self.progress = Progress(console, number, self.scheduler, config, self.now_s)
        self.world = Clockwork(self.scheduler, items(number), decide, self.seconds, self.listen)
        self.views = []
        self.first_line = self.progress.line()
        """Somebody looks before anything happened."""

    def now_s(self):
        """A clock that counts from elsewhere than the shell's."""
        return START_S + (self.world.now_s if self.world else 0.0)

    @staticmethod
    def seconds(command, item):
        return {StartSketch: 3.0, StartPhase: 60.0}.get(type(command), 3.0)

    def listen(self, event, commands):
        self.progress.on_event(event, commands)
        for command in commands:
            if type(command).__name__ == "Finish":
                self.progress.on_record(dataclasses.replace(records.make(command.item.seed), item_key=command.item_key))
        self.progress.tick()
        if self.progress.console.is_terminal:
            self.views.append(self.shown())

    def shown(self):
        console = Console(file=io.StringIO(), width=140, color_system=None)
        console.print(self.progress.view())
        return console.file.getvalue()

    def run(self, **workers):
        self.world.run(**{"sketchers": 2, "pods": (8, 8), "decoders": 1, **workers})
        return self

    @property
    def lines(self):
        return self.file.getvalue().splitlines()


def test_each_finished_item_has_a_line_only_while_there_are_few():
    few = Watched(10).run().lines
    assert sum("density" in line for line in few) == 10
    many = Watched(FEW_ITEMS + 10).run().lines
    assert not any("density" in line for line in many)
    assert any(re.match(r"\d+/210: sketch 2/2 busy", line) for line in many)


def test_a_plain_line_comes_every_few_seconds_and_rarer_as_time_goes_by():
    watched = Watched(FEW_ITEMS + 100)
    times = []
    watched.progress._print = lambda line: times.append(watched.world.now_s)
    for watched.world.now_s in range(1, 9000):
        watched.progress.num_ended += 1
        watched.progress.tick()
    gaps = [(before, after - before) for before, after in itertools.pairwise(times)]
    assert min(gap for _, gap in gaps) == LINE_S
    assert all(gap == pytest.approx(before / 100, abs=2) for before, gap in gaps if 1000 < before < 5000)
    assert max(gap for _, gap in gaps) == LONGEST_LINE_S


def test_before_any_worker_is_up_a_line_says_so():
    assert Watched(4).first_line == "0/4: starting workers"


def test_nothing_new_is_not_told_again_until_long_after():
    now = [0.0]
    console = Console(file=io.StringIO(), width=140, color_system=None)
    progress = Progress(console, 3, Scheduler(), GPUS, lambda: now[0])
    for now[0] in range(int(3 * LONGEST_LINE_S) + 1):
        progress.tick()
    assert len(console.file.getvalue().splitlines()) == 1 + 2, "the first, and one for every longest wait"


def test_a_line_tells_the_pools_the_queues_the_pace_and_what_is_left():
    lines = [line for line in Watched(FEW_ITEMS + 10).run().lines if "left" in line]
    told = lines[len(lines) // 2]
    assert re.search(r"heavy 16/16 busy \(idle \d+% so far, \d+ waiting\)", told)
    assert re.search(r"[\d.,]+ videos an hour, [\d.]+ per GPU-hour, about [\d.]+ (s|min) left$", told)
    assert "(an early guess)" in lines[0]


def test_the_estimate_counts_down_between_events():
    watched = Watched(8)
    estimates = []

    def listen(event, commands):
        watched.progress.on_event(event, commands)
        if watched.progress.tally.pools["heavy"].busy == 8 and not estimates:
            estimates.append(watched.progress.estimate().seconds)
            watched.world.now_s += 1.0
            estimates.append(watched.progress.estimate().seconds)
            watched.world.now_s -= 1.0

    watched.world.listen = listen
    watched.run(pods=(8,))
    assert estimates[1] == pytest.approx(estimates[0] - 1.0, abs=0.01)
    assert watched.progress.estimate().seconds == pytest.approx(0.0, abs=1e-6)


def test_on_a_terminal_the_view_shows_idle_shares_and_why_and_no_plain_lines():
    watched = Watched(20, terminal=True).run(sketchers=1)
    starved = [view for view in watched.views if "waits for sketches" in view]
    assert starved, "one sketcher cannot feed two pods"
    heavy = next(line for line in starved[-1].splitlines() if line.startswith("heavy"))
    assert re.search(r"heavy\s+\d+/16\s+\d+%\s+\d+%", heavy)
    assert "pods: 2 up" in starved[-1]
    assert not any(re.match(r"\d+/20: ", line) for line in watched.lines)
    assert "nothing is left to begin" in watched.views[-1]


def test_the_view_counts_pods_that_start_leave_and_are_lost():
    watched = Watched(4, terminal=True)
    tell = watched.world.tell
    tell(WorkerJoined(0.0, "pod", "pod-0", 8))
    assert "pods: 1 up, 1 starting" in watched.shown()
    for item in items(4):
        tell(Arrived(0.0, item))
    tell(WorkerJoined(0.0, "sketch", "sketch-0"))
    tell(WorkerLost(1.0, "pod-0", "node gone"))
    tell(WorkerJoined(1.0, "pod", "pod-1", 8))
    assert "pods: 1 up, 1 starting, 1 workers lost so far" in watched.shown()
    assert "lost pod-0: node gone" in watched.shown()
    tell(WorkerLeaving(2.0, "pod-1", "spot notice"))
    assert "leaving pod-1: spot notice" in watched.shown()


def test_failures_are_told_as_they_are_and_the_last_stay_in_view():
    watched = Watched(6)
    progress = watched.progress
    for number in range(5):
        progress.on_event(Failed(0.0, f"key{number}", 1, "refine", f"ValueError: [red] bracket {number}"), [])
    progress.on_failure({"item_key": "key1", "arm": "dvg", "prompt_id": "p[b]1", "seed": 1, "attempts": 3, "error": "[x]"})
    assert "attempt 1 failed in refine: ValueError: [red] bracket 0" in watched.file.getvalue()
    shown = watched.shown()
    assert "bracket 2" not in shown
    assert "bracket 4" in shown
    assert "1/6 dvg/p[b]1/1 given up after 3 attempts: [x]" in shown


def test_a_scheduler_is_not_needed_to_count():
    console = Console(file=io.StringIO(), width=140, color_system=None)
    progress = Progress(console, 2, None, None, lambda: 0.0)
    with progress:
        progress.on_record(records.make(1))
    assert console.file.getvalue().splitlines()[0] == "making 2 videos"
    assert "1/2 dvg/p1/1 s0.70-f9 density 0.50" in console.file.getvalue()


def test_another_thread_may_look_at_any_time():
    watched = Watched(60)
    over, looked, wrong = threading.Event(), [], []

    def look():
        while not over.is_set():
            try:
                looked.append(watched.progress.line())
                watched.shown()
            except RuntimeError as error:
                wrong.append(error)

    thread = threading.Thread(target=look)
    thread.start()
    watched.run()
    over.set()
    thread.join()
    assert looked
    assert wrong == []


@pytest.mark.parametrize("pool", POOLS)
def test_a_pool_that_is_wholly_busy_needs_no_reason(pool):
    tally = Tally()
    tally.pools[pool].size = tally.pools[pool].busy = 2
    assert why_idle(pool, tally, {}) == ""
    tally.pools[pool].busy = 1
    assert why_idle(pool, tally, {})
    tally.pools[pool].size = 0
    assert why_idle(pool, tally, {}) == "no worker is up"


def test_a_policy_without_costs_can_be_watched_too():
    assert Watched(12, policy=Throughput(degrees=(1,))).run().progress.num_ended == 12


def test_a_guess_that_the_time_gone_has_proved_wrong_is_not_told():
    watched = Watched(4)
    for item in items(4):
        watched.world.tell(Arrived(0.0, item))
    for kind, ranks in (("sketch", 1), ("pod", 8), ("decode", 1)):
        watched.world.tell(WorkerJoined(0.0, kind, f"{kind}-0", ranks))
    guess_s = watched.progress.estimate().seconds
    assert "(an early guess)" in watched.progress.line()
    watched.world.now_s = 3 * guess_s
    assert "left" not in watched.progress.line()


def test_figures_have_three_digits():
    assert [figure(value) for value in (1234.5, 52.13, 0.3471)] == ["1,234", "52.1", "0.347"]


def test_times_left_have_two_figures():
    assert [about(s) for s in (4.2, 40, 89, 700, 12_700, 181_440)] == ["4.2 s", "40 s", "89 s", "12 min", "3.5 h", "2.1 days"]
