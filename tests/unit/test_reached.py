"""Where the scheduler lets an item go on that has a checkpoint: after a restart, a failure, a loss of its boundary."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from orchestrator.events import (
    Arrived,
    Command,
    Decoded,
    Event,
    Failed,
    Finish,
    PhaseDone,
    Reached,
    Sketched,
    StartDecode,
    StartPhase,
    StartSketch,
    WorkerJoined,
    WorkerLost,
)
from orchestrator.scheduler import Scheduler, SchedulerConfig, replay
from orchestrator.types import Action, Clip, Decision, Item, Phase, Stage

STAGES = tuple(Stage((2, size, size), 5, 3.0) for size in (4, 6, 8, 8))
DECISION = Decision(Action("a", STAGES, 0.5, 0.7, 2), "because")
ITEM = Item("key", "dvg", "p", "a red circle", 7)
TIMINGS_S = {"sketch_s": 5.0, "refine_s": 20.0}
PHASES = (Phase(2, 1, "before"), Phase(3, 4, "before"))
CLIP = Clip("a.mp4", 1, "ab", {"decode_s": 1.0})
CONFIG = SchedulerConfig(max_attempts=5)


class World:
    """A scheduler with a worker of each kind, told one event a second."""

    def __init__(self) -> None:
        self.scheduler = Scheduler(CONFIG)
        self.time_s = 100.0

    def tell(self, make: type[Event], *fields: Any, **named: Any) -> list[Command]:
        self.time_s += 1
        commands = self.scheduler.handle(make(self.time_s, *fields, **named))
        self.scheduler.check()
        return commands

    def join(self) -> list[Command]:
        return [c for kind in ("sketch", "pod", "decode") for c in self.tell(WorkerJoined, kind, f"{kind}-0")]

    def reached(self, stop: int, attempt: int = 1, **named: Any) -> list[Command]:
        return self.tell(Reached, "key", attempt, DECISION, stop, TIMINGS_S, handle=f"on disk {stop}", **named)

    def refining(self, done: int = 1) -> StartPhase:
        """The item is at work after so many stages."""
        self.join()
        self.tell(Arrived, ITEM)
        (command,) = self.tell(Sketched, "key", 1, DECISION, {"sketch_s": 5.0}, handle="in memory 1")
        while isinstance(command, StartPhase) and command.begin < done:
            (command,) = self.tell(PhaseDone, "key", 1, command.stop, {"refine_s": 9.0}, handle=f"in memory {command.stop}")
        assert isinstance(command, StartPhase)
        return command


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    replay(made.scheduler.log, Scheduler(CONFIG))


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_after_a_restart_an_item_waits_for_a_slice_with_its_stages_done(world: World, stop: int) -> None:
    world.tell(Arrived, ITEM)
    world.reached(stop, phases=PHASES[: stop - 1])
    (command,) = world.join()
    assert isinstance(command, StartPhase)
    assert (command.begin, command.handle, command.attempt) == (stop, f"on disk {stop}", 1)


def test_after_a_restart_a_clip_with_all_stages_done_is_decoded_and_its_record_counts_the_time_before(world: World) -> None:
    world.tell(Arrived, ITEM)
    phases = (*PHASES, Phase(4, 2, "before"))
    world.reached(4, phases=phases, device_s=60.0, latency_s=50.0)
    (command,) = world.join()
    assert isinstance(command, StartDecode)
    assert command.handle == "on disk 4"
    (finish,) = world.tell(Decoded, "key", 1, CLIP)
    assert isinstance(finish, Finish)
    assert finish.timings_s == {**TIMINGS_S, "decode_s": 1.0}
    assert finish.phases == phases
    assert 60 < finish.device_s < 70
    assert 50 < finish.latency_s < 60


def test_a_plain_run_goes_on_before_its_only_stage(world: World) -> None:
    plain = Decision(Action("full", STAGES[-1:], 1.0), "all")
    world.tell(Arrived, ITEM)
    world.tell(Reached, "key", 1, plain, 0, {"text_s": 1.0}, handle="on disk")
    (command,) = world.join()
    assert isinstance(command, StartPhase)
    assert (command.begin, command.stop) == (0, 1)


@pytest.mark.parametrize("lost", [True, False], ids=["lost", "failed"])
def test_a_phase_that_got_farther_than_its_start_is_taken_up_where_it_got_to(world: World, lost: bool) -> None:
    first = world.refining()
    assert world.reached(2) == []
    if lost:
        world.tell(WorkerLost, first.slice.pod, "died")
        (again,) = world.tell(WorkerJoined, "pod", "pod-1")
    else:
        (again,) = world.tell(Failed, "key", 1, "refine", "broke")
    assert isinstance(again, StartPhase)
    assert (again.begin, again.handle, again.attempt) == (2, "on disk 2", 2)


def test_a_sketch_that_is_on_disk_is_not_made_again_when_its_worker_is_lost(world: World) -> None:
    (sketch,) = [*world.join(), *world.tell(Arrived, ITEM)]
    assert isinstance(sketch, StartSketch)
    world.reached(1)
    (command,) = world.tell(WorkerLost, sketch.worker, "died")
    assert isinstance(command, StartPhase)
    assert (command.begin, command.handle) == (1, "on disk 1")


def test_a_boundary_that_is_lost_is_that_on_disk_and_else_the_sketch_is_made_again(world: World) -> None:
    world.refining()
    world.reached(1)
    (command,) = world.tell(Failed, "key", 1, "sketch", "the object is lost")
    assert isinstance(command, StartPhase)
    assert (command.begin, command.handle) == (1, "on disk 1")
    (again,) = world.tell(Failed, "key", 2, "sketch", "the file is lost too")
    assert isinstance(again, StartSketch), "what was told of one attempt says nothing of the next"


def test_what_is_reached_in_an_attempt_that_is_over_changes_nothing(world: World) -> None:
    world.refining()
    world.tell(Failed, "key", 1, "refine", "broke")
    world.reached(3, attempt=1)
    (again,) = world.tell(Failed, "key", 2, "refine", "broke again")
    assert isinstance(again, StartPhase)
    assert (again.begin, again.handle) == (1, "in memory 1")


@pytest.mark.parametrize(("phase", "goes_on"), [("decode", "in memory 4"), ("sketch", "on disk 3")])
def test_a_file_that_is_behind_counts_only_when_what_is_in_memory_is_lost(world: World, phase: str, goes_on: str) -> None:
    first = world.refining()
    (decode,) = world.tell(PhaseDone, "key", 1, first.stop, {"refine_s": 9.0}, handle="in memory 4")
    assert isinstance(decode, StartDecode)
    world.reached(3, phases=PHASES)
    (again,) = world.tell(Failed, "key", 1, phase, "broke")
    assert isinstance(again, StartDecode if phase == "decode" else StartPhase)
    assert again.handle == goes_on
