"""The scheduler's promises, under any order of events and any deaths."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator import events
from orchestrator.cost import uncalibrated, with_degrees
from orchestrator.degrees import Limits
from orchestrator.events import Finish, GiveUp, StartDecode, StartPhase, StartSketch
from orchestrator.geometry import model
from orchestrator.policy import ArmSizing, Sizing, Throughput
from orchestrator.scheduler import MAX_PARDONED, Scheduler, SchedulerConfig, replay
from orchestrator.sizing import SizingConfig
from orchestrator.types import Decision, Item, Phase
from tests.unit.worlds import DECISION, KINDS, Widths, World, item, ready_world

WAN = model("wan2.2-a14b")
configs = st.builds(
    SchedulerConfig,
    max_attempts=st.integers(1, 3),
    max_ahead=st.integers(1, 4),
    max_undecoded=st.integers(1, 3),
    decode_on=st.sampled_from(["workers", "pod", "sketchers"]),
)
widths = st.sampled_from([1, 2, 4])
COST = with_degrees(WAN, uncalibrated(WAN, "NVIDIA H200"), (1, 2, 4))
"""Clips of seconds, in a world where everything takes as long as it takes to be told: any event may be late or early."""
RULES = ({"rule": "throughput"}, {"rule": "latency"}, {"rule": "deadline", "deadline_s": 9.0}, {"rule": "fixed", "width": 2})
SWEEP = {"rule": "deadline", "deadline_s": 30.0, "deadline_of": "sweep"}


def sized(options: dict[str, Any]) -> Sizing:
    arm = ArmSizing(model=WAN.name, cost=COST, limits=Limits(max_width=4), actions=(DECISION.action,))
    return Sizing(config=SizingConfig.model_validate(options), arms={"dvg": arm})


policies = st.one_of(
    st.builds(sized, st.sampled_from([*RULES, SWEEP])),
    st.builds(Throughput, order=st.sampled_from(["arrival", "longest"]), degrees=st.sampled_from([(1,), (1, 2), (2, 4, 1)])),
    st.builds(Widths, st.tuples(widths, widths, widths), decode=widths),
)
PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""A history is lived through while it is drawn, which takes as long as it takes on a busy machine."""
STEPS = ("arrive", "join", "succeed", "succeed", "succeed", "fail", "lose", "late", "leave", "reach")


def disturb(world: World, step: str, data: st.DataObject) -> None:
    """One thing that can happen in the outside world; nothing if it cannot happen now."""
    if step == "arrive":
        world.arrive()
    elif step == "join":
        kind = data.draw(st.sampled_from(KINDS))
        world.join(kind, data.draw(st.sampled_from([1, 2, 4])) if kind == "pod" else 1)
    elif step == "succeed" and world.running:
        world.succeed(data.draw(st.sampled_from(world.running)))
    elif step == "fail" and world.running:
        command = data.draw(st.sampled_from(world.running))
        world.fail(command, data.draw(st.sampled_from([None, "sketch", "refine", "decode"])))
    elif step == "lose" and world.workers:
        name = data.draw(st.sampled_from(sorted(world.workers)))
        num_ranks = world.workers[name][1]
        world.lose(name, data.draw(st.sampled_from([(), (0,), (num_ranks - 1,)])), data.draw(st.booleans()))
    elif step == "leave" and world.workers:
        world.leave(data.draw(st.sampled_from(sorted(world.workers))))
    elif step == "reach" and (clips := [c for c in world.running if isinstance(c, StartPhase)]):
        command = data.draw(st.sampled_from(clips))
        world.reach(command, data.draw(st.integers(command.begin, command.stop)))
        world.fail(command)
    elif step == "late" and world.past:
        before = world.scheduler.counts()
        world.tell(data.draw(st.sampled_from(world.past)))
        by_the_clock = isinstance(world.scheduler.policy, Sizing)  # what was not worth it a second ago may be now
        assert by_the_clock or world.scheduler.counts() == before, "a result of an ended attempt changed something"


@st.composite
def histories(draw: st.DrawFn) -> World:
    """A world after any events in any order, then drained: every item that can end has ended."""
    world = World(Scheduler(draw(configs), draw(policies)))
    data = draw(st.data())
    for kind in KINDS:
        world.join(kind, 4 if kind == "pod" else 1)
    for step in draw(st.lists(st.sampled_from(STEPS), min_size=draw(st.sampled_from([0, 40])), max_size=80)):
        disturb(world, step, data)
    world.drain()
    return world


@settings(PATIENT, max_examples=150)
@given(histories())
def test_no_item_is_lost_or_ended_twice_whatever_happens(world: World) -> None:
    assert world.scheduler.finished
    assert world.scheduler.idle
    assert sorted(world.ended) == sorted(item(n).item_key for n in range(1, world.num_items + 1))
    assert all(len(ends) == 1 for ends in world.ended.values())
    assert {*world.scheduler.books.pods, *world.scheduler.books.workers} <= set(world.workers), "the dead are still booked"


@settings(PATIENT, max_examples=100)
@given(histories())
def test_an_item_is_charged_for_its_own_failures_and_no_others(world: World) -> None:
    limit = world.scheduler.config.max_attempts
    for key, (end,) in world.ended.items():
        charges, pardons = world.charges.get(key, 0), min(world.pardons.get(key, 0), MAX_PARDONED)
        assert end.attempt - pardons <= limit
        if isinstance(end, GiveUp):
            assert charges == end.attempt == limit + pardons
            assert len([line for line in end.story if f"attempt {end.attempt}:" in line]) >= 1
        else:
            assert end.attempt == charges + 1


@settings(PATIENT, max_examples=100)
@given(histories())
def test_replaying_the_log_through_json_gives_the_same_commands(world: World) -> None:
    rows = [json.loads(json.dumps(row)) for row in world.scheduler.log]
    again = Scheduler(world.scheduler.config, world.scheduler.policy)
    replay(rows, again)
    assert again.log == world.scheduler.log


@settings(PATIENT, max_examples=100)
@given(histories())
def test_sketches_never_run_further_ahead_than_allowed(world: World) -> None:
    """Counted from the log: items whose sketch started and whose refinement did not, at every start of a sketch."""
    ahead: set[str] = set()
    for row in world.scheduler.log:
        if row["type"] in ("Failed", "WorkerLost"):
            ahead = set()  # items go back to boundaries: count afresh, which can only miss some
        for command in row["commands"]:
            if command["type"] == "StartSketch":
                ahead.add(command["item_key"])
                assert len(ahead) <= world.scheduler.config.max_ahead
            elif command["type"] in ("StartPhase", "GiveUp"):
                ahead.discard(command["item_key"])


@settings(PATIENT, max_examples=150)
@given(histories())
def test_every_stage_of_a_finished_clip_ran_once_in_phases_that_follow_each_other(world: World) -> None:
    for key, (end,) in world.ended.items():
        if isinstance(end, Finish):
            assert [stage for phase in world.ran[key] for stage in phase] == [1, 2, 3]
            assert [phase.stop for phase in world.ran[key]] == [phase.stop for phase in end.phases]
            assert key in world.reached or end.timings_s["refine_s"] == 2.0 * len(end.phases)


def test_an_item_goes_through_sketch_refine_decode_and_its_finish_joins_all_timings() -> None:
    world = ready_world()
    for kind in (StartSketch, StartPhase, StartDecode):
        (command,) = world.running
        assert isinstance(command, kind)
        world.succeed(command)
    (finish,) = world.ended["key1"]
    assert isinstance(finish, Finish)
    assert finish.timings_s == {"sketch_s": 1.0, "refine_s": 2.0, "decode_s": 1.0}
    assert finish.latency_s == finish.device_s == 3.0
    assert finish.decision == DECISION


def test_device_seconds_count_every_rank_of_the_slice() -> None:
    world = World(Scheduler(policy=Throughput(degrees=(2,))))
    world.join("pod", 4)
    world.join("sketch")
    world.join("decode")
    world.arrive()
    while world.running:
        world.succeed(world.running[0])
    (finish,) = world.ended["key1"]
    assert isinstance(finish, Finish)
    assert [phase.width for phase in finish.phases] == [2]
    assert finish.device_s == 1.0 + 2 * 1.0 + 1.0


def test_each_phase_runs_on_its_own_width_from_where_the_last_one_stopped() -> None:
    world = ready_world(policy=Widths((1, 2, 4)), num_ranks=4)
    ran = []
    while world.running:
        (command,) = world.running
        if isinstance(command, StartPhase):
            ran.append((command.begin, command.stop, command.slice.width, command.handle))
        world.succeed(command)
    assert ran == [(1, 2, 1, ("key1", "sketched", 1)), (2, 3, 2, ("key1", 2, 1)), (3, 4, 4, ("key1", 3, 1))]
    (finish,) = world.ended["key1"]
    assert isinstance(finish, Finish)
    assert [phase.width for phase in finish.phases] == [1, 2, 4]
    assert finish.timings_s == {"sketch_s": 1.0, "refine_s": 6.0, "decode_s": 1.0}
    assert finish.device_s == 1.0 + (1 + 2 + 4) * 1.0 + 1.0


def test_a_clip_between_two_phases_goes_before_those_that_have_not_begun() -> None:
    world = ready_world(num_items=3, policy=Widths((1, 1, 1)))
    order = []
    while world.running:
        sketches = [command for command in world.running if isinstance(command, StartSketch)]
        command = (sketches or world.running)[0]
        order += [command.item_key] if isinstance(command, StartPhase) else []
        world.succeed(command)
    assert order == ["key1"] * 3 + ["key3"] * 3 + ["key2"] * 3


def test_a_phase_that_fails_is_tried_again_from_the_last_phases_boundary() -> None:
    world = ready_world(policy=Widths((1, 2, 4)), num_ranks=4)
    for _ in range(2):
        world.succeed(world.running[0])
    (phase,) = world.running
    world.fail(phase)
    (again,) = world.running
    assert isinstance(phase, StartPhase)
    assert isinstance(again, StartPhase)
    assert (again.attempt, again.begin, again.slice.width, again.handle) == (2, 2, 2, ("key1", 2, 1))


def test_the_policy_is_asked_again_when_the_pod_it_counted_on_is_gone() -> None:
    world = ready_world(policy=Widths((4, 4, 4)), num_ranks=4)
    for _ in range(2):
        world.succeed(world.running[0])
    world.lose(world.running[0].slice.pod)
    world.join("pod", 2)
    (phase,) = world.running
    assert isinstance(phase, StartPhase)
    assert (phase.begin, phase.slice.width) == (2, 2)
    world.drain()
    (finish,) = world.ended["key1"]
    assert isinstance(finish, Finish)
    assert [(phase.width, phase.why) for phase in finish.phases] == [(4, "asked 4"), (2, "asked 2"), (2, "asked 2")]


def test_a_width_that_no_pod_has_is_refused_at_once() -> None:
    class TooWide(Widths):
        def phases(self, item: Item, decision: Decision, max_width: int) -> tuple[Phase, ...]:
            return (Phase(4, 8, "as wide as can be"),)

    world = ready_world(policy=TooWide(()), num_ranks=2)
    with pytest.raises(ValueError, match=r"'key1' is to run on 8 ranks; the widest pod has 2"):
        world.succeed(world.running[0])


def test_a_pod_decodes_on_a_slice_and_before_it_begins_anything_else() -> None:
    world = ready_world(num_items=2, policy=Widths((1, 1, 1), decode=2), num_ranks=2, decode_on="pod")
    while not any(isinstance(command, StartDecode) for command in world.running):
        world.succeed(world.running[0])
    (decode,) = (command for command in world.running if isinstance(command, StartDecode))
    assert decode.slice is not None
    assert (decode.worker, decode.slice.width) == (decode.slice.pod, 2)
    assert decode.handle[:2] == (decode.item_key, 4)


def test_phases_do_not_take_the_ranks_that_a_wide_decode_waits_for() -> None:
    world = ready_world(num_items=6, policy=Widths((1, 1, 1), decode=2), num_ranks=2, decode_on="pod", max_ahead=6)
    while sketches := [command for command in world.running if isinstance(command, StartSketch)]:
        world.succeed(sketches[0])
    while world.running:
        commands = world.succeed(world.running[0])
        waiting = world.scheduler.counts().get("refined", 0)
        assert not waiting or not any(isinstance(command, StartPhase) for command in commands)
    assert world.scheduler.finished


def test_a_lost_worker_sends_its_item_back_to_the_last_boundary_with_the_handle_kept() -> None:
    world = ready_world()
    world.succeed(world.running[0])
    (phase,) = world.running
    world.lose(phase.slice.pod)
    assert world.running == []
    world.join("pod")
    (again,) = world.running
    assert isinstance(again, StartPhase)
    assert again.attempt == 2
    assert again.handle == ("key1", "sketched", 1)


def test_a_dead_rank_costs_only_its_own_slice() -> None:
    world = World(Scheduler())
    world.join("sketch")
    pod = world.join("pod", 2)
    for _ in range(3):
        world.arrive()
    for _ in range(2):
        world.succeed(next(c for c in world.running if isinstance(c, StartSketch)))
    first, second = (c for c in world.running if isinstance(c, StartPhase))
    world.lose(pod, ranks=(second.slice.start,))
    world.succeed(first)
    assert world.charges == {second.item_key: 1}
    assert not [c for c in world.running if isinstance(c, StartPhase)], "a draining pod got new work"
    world.join("pod", 2)
    restarted = {c.item_key: c.attempt for c in world.running if isinstance(c, StartPhase)}
    assert restarted[second.item_key] == 2


def test_a_boundary_that_cannot_be_read_any_more_is_made_again() -> None:
    world = ready_world()
    world.succeed(world.running[0])
    world.fail(world.running[0], phase="sketch")
    (again,) = world.running
    assert isinstance(again, StartSketch)
    assert again.attempt == 2


def test_giving_up_tells_the_story_and_the_others_go_on() -> None:
    world = ready_world(num_items=2, max_attempts=2)
    for _ in range(2):
        world.fail(next(c for c in world.running if c.item_key == "key1"))
    (give_up,) = world.ended["key1"]
    assert isinstance(give_up, GiveUp)
    assert "ValueError: no" in give_up.error
    assert len(give_up.story) == 2
    assert "trace" in give_up.story[0]
    assert [c.item_key for c in world.running] == ["key2"]


def test_refining_stops_while_too_many_latents_wait_for_a_decoder() -> None:
    world = World(Scheduler(SchedulerConfig(max_undecoded=1)))
    world.join("sketch")
    world.join("pod")
    for _ in range(4):
        world.arrive()
    while world.running and world.time_s < 50:
        world.succeed(world.running[0])
    assert world.scheduler.counts()["refined"] == 2, "two for each rank"
    world.drain()
    assert world.scheduler.finished


def test_the_longest_first_policy_starts_the_most_work_first() -> None:
    policy = Throughput(order="longest")
    small = events.Decision(type(DECISION.action)("small", DECISION.action.stages[:1], 0.1), "")
    assert policy.priority(item(1), DECISION) < policy.priority(item(1), small)
    assert Throughput().priority(item(1), DECISION) == Throughput().priority(item(1), small)


@pytest.mark.parametrize(
    "event, says",
    [
        (events.WorkerJoined(0.0, "oven", "oven-1"), "sketch, decode, pod"),
        (events.Failed(0.0, "key1", 1, "lunch", "no"), "sketch, refine, decode"),
        (events.Decoded(0.0, "nobody", 1, None), "never arrived"),
        (events.WorkerJoined(0.0, "sketch", "sketch-1"), "joined twice"),
        (events.Arrived(0.0, item(1)), "arrived twice"),
    ],
)
def test_events_that_no_shell_may_send_are_refused_with_the_rule(event: events.Event, says: str) -> None:
    world = ready_world()
    with pytest.raises(ValueError, match=says):
        world.scheduler.handle(event)


def test_check_finds_books_that_do_not_balance() -> None:
    world = ready_world()
    world.scheduler.books.workers[world.running[0].worker].item_key = None
    with pytest.raises(RuntimeError, match="do not balance"):
        world.scheduler.check()


def test_a_log_that_was_tampered_with_does_not_replay() -> None:
    world = ready_world()
    rows = [dict(row) for row in world.scheduler.log]
    rows[-1]["commands"] = []
    with pytest.raises(RuntimeError, match="replay differs at event 3"):
        replay(rows, Scheduler())
