"""What the scheduler makes of workers that leave, of checkpoints, and of clips that take their slice with them."""

from __future__ import annotations

import json
import random

import pytest

from orchestrator import events
from orchestrator.events import Finish, GiveUp, StartDecode, StartPhase, StartSketch
from orchestrator.scheduler import MAX_PARDONED, Scheduler, SchedulerConfig, replay
from orchestrator.types import Phase
from tests.unit.worlds import DECISION, Widths, World, ready_world


@pytest.mark.parametrize("seed", range(2))
def test_a_decode_gets_the_block_that_was_promised_to_a_clip_which_waits_until_latents_are_decoded(seed: int) -> None:
    """Only the larger pod has room for either, and while latents wait the smaller one makes no more of them."""
    draw = random.Random(seed)
    config = SchedulerConfig(decode_on="pod", max_ahead=60, max_undecoded=1)
    world = World(Scheduler(config, Widths((1, 1, 4), decode=4)))
    for kind, num_ranks in (("sketch", 1), ("pod", 4), ("pod", 2)):
        world.join(kind, num_ranks)
    for _ in range(40):
        world.arrive()
    while world.running:
        world.succeed(draw.choice(world.running))
    assert world.scheduler.finished, world.scheduler.counts()


@pytest.mark.parametrize("seed", range(6))
def test_decodes_and_phases_on_one_pod_never_wait_for_each_other(seed: int) -> None:
    """Each may be promised ranks that the other needs, and refining waits for decodes when too many latents wait."""
    draw = random.Random(seed)
    policy = Widths((1, 1, 2), decode=4)
    world = ready_world(num_items=30, policy=policy, num_ranks=4, decode_on="pod", max_ahead=30, max_undecoded=1)
    while world.running:
        world.succeed(draw.choice(world.running))
    assert world.scheduler.finished, world.scheduler.counts()


def test_a_worker_that_leaves_finishes_what_it_does_and_takes_nothing_new() -> None:
    world = ready_world(num_items=3, num_ranks=2)
    world.succeed(world.running[0])
    phase = next(c for c in world.running if isinstance(c, StartPhase))
    sketch = next(c for c in world.running if isinstance(c, StartSketch))
    world.leave(phase.slice.pod)
    world.leave(sketch.worker)
    world.succeed(sketch)
    world.succeed(phase)
    assert not [c for c in world.running if isinstance(c, StartPhase | StartSketch)]
    assert not world.scheduler.books.pods
    assert sketch.worker not in world.scheduler.books.workers
    world.drain()
    assert all(isinstance(end, Finish) and end.attempt == 1 for (end,) in world.ended.values()), "nobody was charged"


def test_a_clip_goes_on_from_a_checkpoint_that_is_farther_than_its_last_boundary() -> None:
    world = ready_world()
    world.succeed(world.running[0])
    (phase,) = world.running
    world.reach(phase, 3)
    world.fail(phase)
    (again,) = world.running
    assert isinstance(again, StartPhase)
    assert (again.attempt, again.begin, again.stop, again.handle) == (2, 3, 4, ("key1", 3, 1))


def test_a_resumed_item_goes_on_from_its_checkpoint_without_a_sketch() -> None:
    world = World(Scheduler())
    world.arrive()
    told = (Phase(4, 2, "told"),)
    world.tell(events.Reached(5.0, "key1", 1, DECISION, 4, {"sketch_s": 9.0}, told, 7.0, 3.0, handle=("key1", 4, 1)))
    world.join("decode")
    world.join("sketch")
    (decode,) = world.running
    assert isinstance(decode, StartDecode)
    world.succeed(decode)
    (finish,) = world.ended["key1"]
    assert isinstance(finish, Finish)
    assert finish.timings_s == {"sketch_s": 9.0, "decode_s": 1.0}
    assert finish.latency_s == pytest.approx(world.time_s - 2.0)
    assert finish.device_s == 7.0 + 2.0
    assert finish.phases == told


def test_a_clip_that_kills_its_slice_again_and_again_is_given_up_and_its_neighbours_lose_nothing() -> None:
    world = ready_world(num_items=2, num_ranks=2, max_ahead=2)
    world.join("sketch")
    for sketch in [c for c in world.running if isinstance(c, StartSketch)]:
        world.succeed(sketch)
    for _ in range(3):
        poison = next(c for c in world.running if isinstance(c, StartPhase) and c.item_key == "key1")
        world.lose(poison.slice.pod, ranks=tuple(poison.slice.ranks))
        world.join("pod", 2)
    world.drain()
    (given_up,), (finish,) = world.ended["key1"], world.ended["key2"]
    assert isinstance(given_up, GiveUp)
    assert len([line for line in given_up.story if "refining lost with" in line]) == 3
    assert isinstance(finish, Finish)
    assert finish.attempt == 1


def phase_of_a_new_pod(world: World) -> StartPhase:
    (phase,) = [command for command in world.running if isinstance(command, StartPhase)]
    return phase


def test_a_clip_whose_nodes_go_is_not_given_up_and_its_own_failures_still_count() -> None:
    world = ready_world()
    world.succeed(world.running[0])
    for attempt in range(1, 6):
        phase = phase_of_a_new_pod(world)
        assert phase.attempt == attempt, "late results of a lost attempt can still be told"
        world.lose(phase.slice.pod, blameless=True)
        world.join("pod")
    for attempt in (6, 7):
        world.fail(phase_of_a_new_pod(world))
        assert not world.ended, attempt
    world.fail(phase_of_a_new_pod(world))
    ((given_up,),) = world.ended.values()
    assert isinstance(given_up, GiveUp)
    assert given_up.attempt == 5 + 3
    again = Scheduler(world.scheduler.config)
    replay([json.loads(json.dumps(row)) for row in world.scheduler.log], again)
    assert again.books.closed == {"key1": False}


def test_a_sketch_and_a_decode_that_are_lost_with_their_node_are_pardoned_too() -> None:
    world = ready_world(max_attempts=1)
    for kind in ("sketch", "pod", "decode"):
        (command,) = world.running
        world.lose(command.slice.pod if isinstance(command, StartPhase) else command.worker, blameless=True)
        world.join(kind)
        world.succeed(world.running[0])
    (finish,) = world.ended["key1"]
    assert isinstance(finish, Finish)
    assert finish.attempt == 4


def test_a_clip_that_kills_its_node_is_given_up_in_the_end() -> None:
    world = ready_world()
    world.succeed(world.running[0])
    for _ in range(MAX_PARDONED + 3):
        assert not world.ended
        world.lose(phase_of_a_new_pod(world).slice.pod, blameless=True)
        world.join("pod")
    ((given_up,),) = world.ended.values()
    assert isinstance(given_up, GiveUp)
