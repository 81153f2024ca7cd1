"""Goals that go by cost, after a change of pods or of what is known, with a late pod, and with decodes on slices."""

from __future__ import annotations

import pytest

from orchestrator import events
from orchestrator.books import Books, State
from orchestrator.canonical import Canonical
from orchestrator.events import Command, StartDecode, StartPhase, StartSketch
from orchestrator.forecast import ClipClass, Forecast
from orchestrator.horizon import Horizon
from orchestrator.sizing import Choice
from orchestrator.split import DecodeOn
from orchestrator.types import Decision, Phase, Slice
from tests.unit.test_throughput import ACTIONS, COST, Clock, item, sizing
from tests.unit.worlds import Widths, ready_world

LONG = Decision(ACTIONS["long"], "because")


def test_a_clip_that_is_resumed_where_its_width_gains_nothing_any_more_goes_on() -> None:
    slower = COST.forwards[-1].model_copy(update={"token_s": 1.0})
    cost = COST.model_copy(update={"forwards": (*COST.forwards[:-1], slower)})
    arms = {"long": sizing().arms["long"].model_copy(update={"cost": cost})}
    clock = Clock(sizing().model_copy(update={"arms": arms}), pods=1, sketchers=0)
    clock.arrive(item(0))
    clock.tell(events.Reached(0.0, "key0", 1, LONG, 2, {}, (Phase(2, 8, "told"),)))
    assert [(c.item_key, c.slice.width) for _, c in clock.phases] == [("key0", 4)]


@pytest.mark.parametrize(("began", "widths", "goes_on"), [(8, (1, 2, 4), 4), (4, (1, 2, 8), 2), (2, (1, 2), 2), (1, (2, 4), 2)])
def test_a_begun_clip_goes_on_at_its_width_or_the_next_narrower_or_the_narrowest_there_is(
    began: int, widths: tuple[int, ...], goes_on: int
) -> None:
    books = Books()
    entry = books.arrive(item(0))
    entry.done = (Phase(2, began, "told"),)
    stage = tuple(Choice(width, 1000, 1.0 / width, 10.0 / width, 1.0, False) for width in widths)
    policy = sizing()
    goal = Canonical(policy, books, Forecast(policy))
    assert goal._begun(entry, ClipClass(("long", "a100", 0.5, 2), (stage,))) == goes_on


def test_the_time_that_a_sweep_is_allowed_counts_from_the_start_and_not_from_the_first_pod() -> None:
    def widths(late_s: float) -> set[int]:
        clock = Clock(sizing("deadline", deadline_s=100.0, deadline_of="sweep"), pods=0)
        clock.arrive(item(0))
        clock.step()
        clock.now_s = late_s
        clock.tell(events.WorkerJoined(late_s, "pod", "pod-late", 8))
        return {c.slice.width for _, c in clock.phases}

    assert widths(2.0) == {1}
    assert widths(95.0) == {8}, "the pod came late, the deadline does not"


def test_of_clips_that_wait_none_is_made_wider_than_leaves_ranks_for_the_others_now() -> None:
    """Though as many ranks come free before it is done."""
    books, policy = Books(), sizing()
    goal = Canonical(policy, books, Forecast(policy))
    books.pool.add("idle", 8)
    books.pool.add("busy", 8)
    books.pool.hold("other", Slice("busy", 0, 8), 0.5)
    for n in range(100):
        entry = books.arrive(item(n))
    for entry in list(books.items.values())[:2]:
        books.decide(entry, LONG)
        books.wait(entry, State.SKETCHED, goal.forecast.lane("long", LONG.action, 1), 0.0)
    assert [offer.width for offer in goal.offers(entry, 0.0)] == [4, 2, 1]


@pytest.mark.parametrize(("num_ahead", "next_one"), [(4, StartSketch), (8, StartDecode)])
def test_workers_that_do_both_decode_first_unless_fewer_sketches_than_are_wanted_are_ahead(
    num_ahead: int, next_one: type[Command]
) -> None:
    world = ready_world(num_items=30, num_ranks=1, decode_on="sketchers", max_ahead=10)
    while world.scheduler.books.num_ahead < num_ahead:
        world.succeed(next(command for command in world.running if isinstance(command, StartSketch)))
    while not world.scheduler.counts().get("refined"):
        world.succeed(next(command for command in world.running if isinstance(command, StartPhase)))
    sketch = next(command for command in world.running if isinstance(command, StartSketch))
    assert [type(command) for command in world.succeed(sketch)] == [next_one]


@pytest.mark.parametrize(("where", "number"), [("workers", 2), ("sketchers", 3), ("pod", 0)])
def test_who_decodes_is_who_was_asked_to(where: DecodeOn, number: int) -> None:
    books = Books()
    for kind, count in (("sketch", 3), ("decode", 2)):
        for n in range(count):
            books.hire(f"{kind}-{n}", kind)
    assert Horizon(books, Forecast(sizing()), where).num_decoders == number


def test_the_goal_of_a_sweep_that_decodes_on_pods_counts_on_no_sketch_worker_for_it() -> None:
    clock = Clock(sizing(), pods=1, decoders=0, decode_on="pod")
    clock.arrive(item(0))
    assert clock.scheduler.objective.horizon.num_decoders == 0  # type: ignore[attr-defined]


@pytest.mark.parametrize(("width", "learned"), [(1, True), (2, False), (4, False)])
def test_only_a_decode_on_one_rank_says_how_long_one_rank_takes(width: int, learned: bool) -> None:
    world = ready_world(policy=Widths((1, 1, 1), decode=width), num_ranks=4, decode_on="pod")
    while world.running:
        world.succeed(world.running[0])
    assert world.scheduler.finished
    assert (world.scheduler.forecast.mean_decode_s > 0.0) is learned
    assert (world.scheduler.forecast.decode_s("dvg") > 0.0) is learned


def test_a_decode_of_a_worker_is_learned() -> None:
    world = ready_world()
    while world.running:
        world.succeed(world.running[0])
    assert world.scheduler.forecast.decode_s("dvg") == 1.0
