"""Goals that go by cost: the backlog narrow, the tail wide, the ramp as wide as it may be; hurry where it is asked for."""

from __future__ import annotations

import heapq
import itertools
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator import events
from orchestrator.cost import CostModel, ForwardCost
from orchestrator.degrees import Limits
from orchestrator.events import Finish, StartDecode, StartPhase, StartSketch
from orchestrator.geometry import model
from orchestrator.lanes import Lanes
from orchestrator.policy import ArmSizing, Sizing
from orchestrator.scheduler import Scheduler, SchedulerConfig
from orchestrator.sizing import SizingConfig
from orchestrator.types import Action, Clip, Decision, Item, Stage

WAN = model("wan2.2-a14b")
EFFICIENCY = {1: 1.0, 2: 0.95, 4: 0.9, 8: 0.8}
COST = CostModel(
    label="calibrated",
    device="NVIDIA H200",
    forwards=tuple(
        ForwardCost(degree=d, fixed_s=0.0, token_s=1e-4 / (d * share), token2_s=0.0) for d, share in EFFICIENCY.items()
    ),
    decode_s=0.5,
)
GRID = (10, 20, 20)
"""A thousand tokens, a tenth of a second a step."""


def action(steps: int) -> Action:
    """A sketch of a second, and two stages of so many tenths."""
    stages = (Stage((5, 20, 20), 20, 7.0), Stage(GRID, steps, 7.0), Stage(GRID, steps, 7.0))
    return Action(f"a{steps}", stages, 0.5)


ACTIONS = {"short": action(10), "long": action(100)}
"""Two seconds and twenty on one rank."""


def sizing(rule: str = "throughput", **options: Any) -> Sizing:
    arms = {name: ArmSizing(model=WAN.name, cost=COST, limits=Limits(), actions=(made,)) for name, made in ACTIONS.items()}
    return Sizing(config=SizingConfig.model_validate({"rule": rule, **options}), arms=arms)


def item(number: int, arm: str = "long", deadline_s: float | None = None) -> Item:
    return Item(f"key{number}", arm, f"p{number}", "a red circle", number, deadline_s=deadline_s)


class Clock:
    """A world in which everything takes as long as predicted."""

    def __init__(self, policy: Sizing, pods: int, ranks: int = 8, sketchers: int = 4, decoders: int = 2, **config: Any) -> None:
        config = {"max_ahead": 1000, "max_undecoded": 1000, **config}
        self.scheduler = Scheduler(SchedulerConfig(**config), policy)
        self.items: dict[str, Item] = {}
        self.now_s, self.number = 0.0, itertools.count()
        self.queue: list[tuple[float, int, events.Command]] = []
        self.phases: list[tuple[float, StartPhase]] = []
        self.finished: list[tuple[float, Finish]] = []
        for n in range(pods):
            self.tell(events.WorkerJoined(0.0, "pod", f"pod-{n}", ranks))
        for kind, count in (("sketch", sketchers), ("decode", decoders)):
            for n in range(count):
                self.tell(events.WorkerJoined(0.0, kind, f"{kind}-{n}"))

    def arrive(self, *items: Item) -> None:
        for one in items:
            self.items[one.item_key] = one
            self.tell(events.Arrived(self.now_s, one))

    def tell(self, event: events.Event) -> None:
        for command in self.scheduler.handle(event):
            if isinstance(command, Finish):
                self.finished.append((self.now_s, command))
            elif isinstance(command, StartSketch | StartPhase | StartDecode):
                heapq.heappush(self.queue, (self.now_s + self.seconds(command), next(self.number), command))
                if isinstance(command, StartPhase):
                    self.phases.append((self.now_s, command))

    def seconds(self, command: events.Command) -> float:
        if isinstance(command, StartSketch):
            return 1.0
        if isinstance(command, StartDecode):
            return 0.5
        assert isinstance(command, StartPhase)
        made, width = ACTIONS[self.items[command.item_key].arm], command.slice.width
        return sum(made.stages[n].steps for n in range(command.begin, command.stop)) * 0.1 / (width * EFFICIENCY[width])

    def step(self) -> None:
        self.answer()
        self.scheduler.check()

    def answer(self) -> None:
        """The next command is done."""
        self.now_s, _, command = heapq.heappop(self.queue)
        made = Decision(ACTIONS[self.items[command.item_key].arm], "because")
        key, attempt = command.item_key, command.attempt
        if isinstance(command, StartSketch):
            self.tell(events.Sketched(self.now_s, key, attempt, made, {}))
        elif isinstance(command, StartPhase):
            self.tell(events.PhaseDone(self.now_s, key, attempt, command.stop, {}))
        else:
            self.tell(events.Decoded(self.now_s, key, attempt, Clip("x.mp4", 1, "0")))

    def run(self) -> float:
        while self.queue:
            self.step()
        assert self.scheduler.finished
        return self.now_s


def test_while_the_backlog_fills_the_ranks_clips_are_narrow_and_one_phase_and_at_the_tail_wide() -> None:
    clock = Clock(sizing(), pods=1, sketchers=8, decoders=4)
    clock.arrive(*(item(n) for n in range(64)))
    makespan_s = clock.run()
    bulk = [c for time_s, c in clock.phases if 20 < time_s < 0.5 * makespan_s]
    assert {c.slice.width for c in bulk} == {1}
    assert all((c.begin, c.stop) == (1, 3) for c in bulk)
    late = [c for time_s, c in clock.phases if time_s > 0.9 * makespan_s]
    assert max(c.slice.width for c in late) >= 4
    assert all(c.slice.width > 1 for c in late)
    assert makespan_s < 64 * 20 / 8 * 1.12 + 3, "eight ranks, twenty seconds a clip"


def test_the_reason_says_whether_it_was_the_backlog_the_ramp_or_the_tail() -> None:
    clock = Clock(sizing(), pods=1, sketchers=1, decoders=4)
    clock.arrive(*(item(n) for n in range(40)))
    clock.run()
    whys = [phase.why for _, finish in clock.finished for phase in finish.phases]
    assert any(why.endswith("; the backlog fills the ranks") for why in whys)
    assert any("; the ramp: " in why for why in whys)
    assert any("; the tail: " in why and "rank" in why for why in whys)
    assert all(why.startswith("1,000 tokens: ") for why in whys)


def test_a_clip_alone_gets_all_ranks_that_make_it_faster() -> None:
    clock = Clock(sizing(), pods=2)
    clock.arrive(item(1))
    clock.run()
    assert {c.slice.width for _, c in clock.phases} == {8}


def test_no_slice_is_wider_than_pays() -> None:
    slower = COST.forwards[-1].model_copy(update={"token_s": 1.0})
    arm = sizing().arms["long"]
    cost = COST.model_copy(update={"forwards": (*COST.forwards[:-1], slower)})
    policy = sizing().model_copy(update={"arms": {"long": arm.model_copy(update={"cost": cost})}})
    clock = Clock(policy, pods=2)
    clock.arrive(item(1), item(2))
    clock.run()
    assert {c.slice.width for _, c in clock.phases} == {4}


@settings(deadline=None, max_examples=15)
@given(st.lists(st.sampled_from(["short", "long"]), min_size=1, max_size=30), st.integers(1, 3), st.integers(1, 6))
def test_it_is_never_slower_than_the_best_fixed_width_first_come_first_served_by_more_than_a_clip(
    arms: list[str], pods: int, sketchers: int
) -> None:
    def makespan_s(policy: Sizing) -> float:
        clock = Clock(policy, pods=pods, sketchers=sketchers)
        clock.arrive(*(item(n, arm) for n, arm in enumerate(arms)))
        return clock.run()

    fixed_s = min(makespan_s(sizing("fixed", width=width)) for width in (1, 2, 4, 8))
    assert makespan_s(sizing()) <= 1.05 * fixed_s + 20 / (8 * EFFICIENCY[8])


def test_a_wide_clip_is_promised_a_block_and_short_ones_go_round_it() -> None:
    clock = Clock(sizing("fixed", width=8), pods=1, ranks=8, sketchers=1)
    narrow = sizing("fixed", width=8).arms["short"].model_copy(update={"limits": Limits(max_width=1)})
    clock.scheduler.policy.arms["short"] = narrow  # type: ignore[index]
    clock.arrive(item(1, "short"), item(2, "long"), *(item(n, "short") for n in range(3, 30)))
    clock.run()
    began = {c.item_key: time_s for time_s, c in reversed(clock.phases)}
    assert began["key2"] < 6.0, "the block it was promised comes free when the clips on it end"
    assert max(began.values()) > 20.0


def test_latency_runs_the_shortest_first_and_alone_as_fast_as_can_be() -> None:
    clock = Clock(sizing("latency"), pods=1)
    clock.arrive(item(1, "long"))
    clock.run()
    assert [c.slice.width for _, c in clock.phases] == [8]
    clock = Clock(sizing("latency", min_efficiency=0.85), pods=1, sketchers=6)
    clock.arrive(*(item(n, "long") for n in range(3)), *(item(n, "short") for n in range(3, 6)))
    clock.run()
    order = [clock.items[c.item_key].arm for _, c in clock.phases]
    assert order[1:4].count("short") >= 2
    assert any(phase.why.endswith("waiting") and phase.width == 4 for _, f in clock.finished for phase in f.phases)


def test_a_deadline_takes_what_is_due_first_and_the_fewest_gpu_seconds_that_meet_it() -> None:
    clock = Clock(sizing("deadline", deadline_s=60.0), pods=3, sketchers=1)
    clock.arrive(item(1), item(2, deadline_s=8.0), item(3, deadline_s=1.5))
    clock.run()
    phases = {finish.item_key: finish.phases[0] for _, finish in clock.finished}
    assert {key: phase.width for key, phase in phases.items()} == {"key1": 1, "key2": 4, "key3": 8}
    assert [c.item_key for _, c in clock.phases] == ["key1", "key3", "key2"], "the first came alone"
    assert "of the 8 s allowed" in phases["key2"].why
    assert "late by" in phases["key3"].why
    assert "the fastest there is" in phases["key3"].why


def test_a_deadline_of_the_sweep_is_met_with_fewer_gpu_seconds_when_there_is_time() -> None:
    def gpu_s(deadline_s: float) -> tuple[float, float]:  # of the sweep, and of the heavy ranks at work
        clock = Clock(sizing("deadline", deadline_s=deadline_s, deadline_of="sweep"), pods=2, sketchers=8, decoders=8)
        clock.arrive(*(item(n) for n in range(8)))
        return clock.run(), sum(clock.seconds(c) * c.slice.width for _, c in clock.phases)

    (slow_s, cheap), (fast_s, dear) = gpu_s(60.0), gpu_s(10.0)
    assert cheap == pytest.approx(8 * 20), "one rank each, though as many idle again"
    assert cheap < dear
    assert fast_s < slow_s <= 60.0


def test_sketches_run_no_further_ahead_than_a_clip_for_every_rank() -> None:
    clock = Clock(sizing(), pods=1, ranks=2, sketchers=4)
    clock.arrive(*(item(n) for n in range(50)))
    most = 0
    while clock.queue:
        clock.step()
        most = max(most, clock.scheduler.books.num_ahead)
    assert 2 <= most <= 2 + 2 + 2, "two ranks idle at first; more would wait for them for minutes"


def test_sketchers_decode_too_where_they_are_asked_to() -> None:
    clock = Clock(sizing(), pods=1, sketchers=3, decoders=0, decode_on="sketchers")
    clock.arrive(*(item(n, "short") for n in range(20)))
    clock.run()
    assert len(clock.finished) == 20


def test_an_event_costs_as_many_calls_with_thirty_times_the_items_and_pods() -> None:
    def calls(pods: int) -> float:
        clock = Clock(sizing(), pods=pods, ranks=2, sketchers=2 * pods, decoders=pods, max_ahead=8 * pods)
        clock.arrive(*(item(n, ("short", "long")[n % 2]) for n in range(24 * pods)))
        for _ in range(12 * pods):
            clock.answer()
        counted = 0

        def count(frame: object, what: str, argument: object) -> None:
            nonlocal counted
            counted += what == "call"

        sys.setprofile(count)
        try:
            for _ in range(40):
                clock.answer()
        finally:
            sys.setprofile(None)
        return counted / 40

    assert calls(60) < 2.0 * calls(2)


tickets = st.tuples(st.booleans(), st.integers(0, 5).map(float), st.sampled_from("abc"))


@given(st.lists(st.one_of(tickets, st.integers(0, 30)), max_size=60))
def test_lanes_give_their_items_in_order_whatever_is_put_in_and_taken_out(moves: list[Any]) -> None:
    lanes, truth = Lanes(), {}
    for number, move in enumerate(moves):
        if isinstance(move, tuple):
            ticket = (move[0], move[1], number, f"key{number}")
            lanes.push(move[2], ticket)
            truth[ticket[-1]] = ticket, move[2]
        elif truth:
            key = sorted(truth)[move % len(truth)]
            lanes.remove(key)
            del truth[key]
        heads = sorted(min(t for t, lane in truth.values() if lane == name) for name in {lane for _, lane in truth.values()})
        assert [key for _, key in lanes.walk()] == [ticket[-1] for ticket in heads]
        assert lanes.first() == (min(t for t, _ in truth.values())[-1] if truth else None)
        assert (len(lanes), lanes.num_fresh) == (len(truth), sum(t[0] for t, _ in truth.values()))


def test_clips_that_come_at_once_fill_the_ranks_and_none_takes_them_all() -> None:
    clock = Clock(sizing(), pods=1, sketchers=4)
    clock.arrive(*(item(n) for n in range(4)))
    clock.run()
    first = [c.slice.width for time_s, c in clock.phases if time_s == 1.0]
    assert sum(first) == 8
    assert max(first) <= 4
