"""Goals that go by cost, after a change of pods or of what is known, with a late pod, and with decodes on slices."""

from __future__ import annotations

import pytest

from orchestrator import events
from orchestrator.books import Books
from orchestrator.canonical import Canonical
from orchestrator.forecast import ClipClass, Forecast
from orchestrator.horizon import Horizon
from orchestrator.sizing import Choice
from orchestrator.split import DecodeOn
from orchestrator.types import Decision, Phase
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
