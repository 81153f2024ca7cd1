"""When a sweep will be done, and who is busy meanwhile."""

from __future__ import annotations

import random

import pytest

from orchestrator.actions import DvgConfig, action_list
from orchestrator.cost import CostModel, ForwardCost
from orchestrator.degrees import Limits
from orchestrator.eta import EARLY, ENOUGH, Eta
from orchestrator.events import StartDecode, StartPhase, StartSketch, WorkerLeaving, WorkerLost
from orchestrator.geometry import model
from orchestrator.policy import Sizing, Throughput
from orchestrator.resolve_sizing import sizing_on
from orchestrator.scheduler import Scheduler, SchedulerConfig
from orchestrator.sizing import SizingConfig
from orchestrator.split import decode_s, sketch_s
from orchestrator.tally import PoolTime, Tally
from orchestrator.types import Decision, Item, VideoShape
from tests.unit.clockwork import Clockwork

HV15, SHAPE = model("hunyuanvideo-1.5"), VideoShape(121, 480, 848)
COST = CostModel(
    label="calibrated", device="NVIDIA H200", forwards=(ForwardCost(fixed_s=0.0, token_s=1e-4, token2_s=0.0),), decode_s=3.0
)
ACTIONS = action_list(HV15, SHAPE, 50, 0.5, DvgConfig())
ARM = sizing_on(Limits(max_width=8), HV15, SHAPE, COST)
NARROW = Sizing(config=SizingConfig(rule="narrowest"), arms={"dvg": ARM.model_copy(update={"actions": ACTIONS})})


def items(number):
    return [Item(f"key{n}", "dvg", f"p{n}", "a circle", n) for n in range(number)]


def decide(item):
    return Decision(ACTIONS[item.seed % len(ACTIONS)], "by its number")


class Watched:
    """A sweep that keeps what the estimate was at every moment."""

    def __init__(self, number, slower=1.0, policy=NARROW, noise=0.0, fails=lambda command: False, config=None):
        self.tally, self.eta = Tally(), Eta(policy)
        self.told = []
        self.random, self.slower, self.noise = random.Random(1), slower, noise
        scheduler = Scheduler(config or SchedulerConfig(max_ahead=16), policy)
        self.world = Clockwork(scheduler, items(number), decide, self.seconds, self.listen, fails)

    def listen(self, event, commands):
        self.eta.take(event, commands, self.tally.take(event, commands))
        self.told.append((event.time_s, self.eta.estimate(self.tally)))

    def seconds(self, command, item):
        action = decide(item).action
        predicted_s = {
            StartSketch: sketch_s(ARM, action),
            StartDecode: decode_s(ARM, action),
            StartPhase: 0.0,
        }[type(command)]
        if isinstance(command, StartPhase):
            predicted_s = self.eta._predicted("dvg", action).refine_s(command.begin, command.stop) / command.slice.width
        return predicted_s * self.slower * (1 + self.noise * self.random.random())

    def run(self, **workers):
        self.total_s = self.world.run(**{"sketchers": 2, "pods": (8,), "decoders": 2, **workers})
        return self

    def at(self, share):
        """(Estimated, true) seconds left when ``share`` of the time was over."""
        now_s, estimate = next(row for row in self.told if row[0] >= share * self.total_s and row[1] is not None)
        return estimate, self.total_s - now_s


@pytest.mark.parametrize("slower", [1.0, 0.5, 3.0])
def test_a_machine_of_another_speed_than_predicted_is_found_out(slower):
    watched = Watched(80, slower, noise=0.2).run()
    for share in (0.3, 0.6, 0.8):
        estimate, left_s = watched.at(share)
        assert estimate.seconds == pytest.approx(left_s, rel=0.15, abs=0.08 * watched.total_s)
        assert not estimate.early


def test_before_anything_was_seen_the_cost_model_is_believed_and_the_estimate_says_that_it_is_early():
    watched = Watched(80).run()
    first = next(row for row in watched.told if row[1] is not None)[1]
    assert first.early
    assert first.seconds == pytest.approx(watched.total_s, rel=0.15)
    seen = [estimate for _, estimate in watched.told if estimate is not None]
    turned = next(index for index, estimate in enumerate(seen) if not estimate.early)
    assert all(estimate.early for estimate in seen[:turned])
    assert not any(estimate.early for estimate in seen[turned:])


def test_one_clip_that_stood_still_does_not_spoil_the_estimate():
    watched = Watched(80)
    plain_s, stuck = watched.seconds, "key7"
    watched.world.seconds = lambda command, item: plain_s(command, item) * (40 if item.item_key == stuck else 1)
    watched.run()
    assert max(watched.eta.ratio("dvg", "refine"), watched.eta.ratio("dvg", "sketch")) == pytest.approx(1.0, rel=0.01)


def test_at_the_end_nothing_is_left_and_every_second_of_work_was_counted():
    watched = Watched(20, slower=2.0).run()
    assert sum(watched.eta.work_left().values()) == pytest.approx(0.0, abs=1e-6)
    assert watched.told[-1][1].seconds == pytest.approx(0.0, abs=1e-6)
    assert watched.tally.gpu_s == pytest.approx(sum(_device_s(watched)))
    assert watched.tally.num_finished == 20
    assert not watched.tally.jobs


def _device_s(watched):
    for item in watched.world.items.values():
        predicted = watched.eta._predicted("dvg", decide(item).action)
        yield 2.0 * (predicted.load.sketch_s + predicted.load.heavy_s + predicted.load.decode_s)


def test_what_failed_and_starts_again_is_still_to_do_and_what_is_given_up_is_not():
    failed = set()

    def fails(command):
        first = isinstance(command, StartPhase) and command.item_key not in failed
        failed.add(command.item_key) if first else None
        return first or command.item_key == "key3"

    watched = Watched(12, fails=fails).run()
    assert watched.tally.num_failed > 12
    assert (watched.tally.num_finished, watched.tally.num_given_up) == (11, 1)
    assert sum(watched.eta.work_left().values()) == pytest.approx(0.0, abs=1e-6)


def test_an_item_that_starts_over_is_to_do_in_full_again():
    lost = []

    def fails(command):
        if isinstance(command, StartDecode) and not lost:
            lost.append(command.item_key)
            return "sketch"
        return False

    watched = Watched(4, fails=fails)
    before, after = [], []

    def listen(event, commands):
        start = [c for c in commands if isinstance(c, StartSketch) and c.attempt == 2]
        (before if not lost else after).append(sum(watched.eta.work_left().values())) if not start else None
        watched.eta.take(event, commands, watched.tally.take(event, commands))
        if start:
            after.append(sum(watched.eta.work_left().values()))

    watched.world.listen = listen
    watched.run()
    assert after[0] > before[-1], "its sketch and its stages again"
    assert watched.tally.num_finished == 4
    assert sum(watched.eta.work_left().values()) == pytest.approx(0.0, abs=1e-6)


def test_what_runs_is_counted_as_far_as_it_must_be_by_now():
    watched = Watched(8, policy=NARROW)
    left = []

    def listen(event, commands):
        watched.eta.take(event, commands, watched.tally.take(event, commands))
        if watched.tally.pools["heavy"].busy == 8 and not left:
            left.append(watched.eta.estimate(watched.tally).seconds)
            watched.tally.now_s += 5.0
            left.append(watched.eta.estimate(watched.tally).seconds)
            watched.tally.now_s -= 5.0

    watched.world.listen = listen
    watched.run(sketchers=8)
    assert left[1] == pytest.approx(left[0] - 5.0, abs=0.01)


def test_a_pool_without_a_worker_leaves_no_estimate():
    watched = Watched(4)
    watched.world.run(sketchers=1, pods=(), decoders=1)
    assert watched.told[-1][1] is None


def test_a_policy_that_knows_no_cost_is_estimated_by_what_was_seen():
    watched = Watched(60, policy=Throughput(degrees=(1,)))
    watched.world.seconds = lambda command, item: 8.0 if isinstance(command, StartPhase) else 1.0
    watched.run()
    estimate, left_s = watched.at(0.5)
    assert estimate.seconds == pytest.approx(left_s, rel=0.25)


def test_an_arm_is_judged_by_its_own_phases_once_there_are_enough():
    eta = Eta(NARROW)
    eta._ratios = {}
    from collections import deque

    eta._ratios["dvg", "refine"] = deque([2.0] * ENOUGH)
    eta._ratios["other", "refine"] = deque([5.0] * 9)
    eta._ratios["young", "refine"] = deque([9.0] * (ENOUGH - 1))
    assert eta.ratio("young", "refine") == 5.0
    assert eta.ratio("dvg", "refine") == 2.0
    assert eta.ratio("new", "refine") == 5.0
    assert eta.ratio("dvg", "decode") == 1.0
    assert EARLY >= ENOUGH


def test_a_pool_is_idle_for_the_time_that_its_ranks_had_nothing_to_do():
    tally = Tally()
    scheduler = Scheduler(SchedulerConfig(), Throughput(degrees=(4,)))
    world = Clockwork(scheduler, items(1), decide, lambda command, item: 10.0, lambda e, c: tally.take(e, c))
    world.run(sketchers=1, pods=(8,), decoders=1)
    heavy = tally.pools["heavy"]
    assert heavy.alive_s == pytest.approx(8 * 30.0)
    assert heavy.busy_s == pytest.approx(4 * 10.0)
    assert heavy.idle_share == pytest.approx(5 / 6)
    assert 0 < heavy.recent < 1 / 6, "half a minute ago counts less than now"
    start = PoolTime(size=2, busy=2)
    start.advance(1.0)
    assert start.recent == pytest.approx(1.0), "from the first second on"
    assert dict(tally.pods)["pod-0"].busy_share(tally.now_s) == pytest.approx(1 / 6)
    assert tally.pools["sketch"].idle_share == pytest.approx(2 / 3)


def test_a_lost_rank_ends_its_own_job_and_the_rest_of_the_pod_counts_until_it_is_done():
    tally = Tally()
    scheduler = Scheduler(SchedulerConfig(), Throughput(degrees=(4,)))
    world = Clockwork(scheduler, items(2), decide, lambda command, item: 10.0, lambda e, c: tally.take(e, c))
    lost = []

    def listen(event, commands):
        lost.extend(ended for ended in tally.take(event, commands) if not ended.done)

    world.listen = listen
    plain = world.tell

    def tell(event):
        plain(event)
        running = [job for job in tally.jobs.values() if job.phase == "refine"]
        if len(running) == 2 and not lost:
            plain(WorkerLost(event.time_s, "pod-0", "rank 5 died", (5,)))

    world.tell = tell
    world.run(sketchers=2, pods=(8,), decoders=1)
    (ended,) = lost
    assert 5 in ended.job.ranks
    assert tally.num_lost == 1
    assert "pod-0" not in tally.workers, "once its other slice was done"
    assert tally.pools["heavy"].size == 0


def test_a_worker_that_leaves_counts_until_its_job_is_done():
    tally = Tally()
    scheduler = Scheduler(SchedulerConfig(), Throughput(degrees=(8,)))
    world = Clockwork(scheduler, items(1), decide, lambda command, item: 10.0, lambda e, c: tally.take(e, c))
    plain = world.tell

    def tell(event):
        plain(event)
        if tally.num_workers("decode") == 2 and any(job.phase == "decode" for job in tally.jobs.values()):
            plain(WorkerLeaving(event.time_s, "decode-0", "a notice"))
            plain(WorkerLeaving(event.time_s, "decode-1", "a notice"))
            assert tally.num_workers("decode") == 1, "the idle one is gone at once"

    world.tell = tell
    world.run(decoders=2)
    assert tally.num_workers("decode") == 0
    assert tally.num_finished == 1
