"""What the answers of a slice's ranks mean: who is lost, who is to blame, and where."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.doing import AHEAD, Doing, Pace
from orchestrator.events import StartDecode, StartPhase
from orchestrator.jobs import Job, blame
from orchestrator.types import Slice
from parallel.errors import GroupError, GroupMismatch
from tests.unit.worlds import item

PAIR = Slice("pod-0", 2, 2)
APART, MISMATCH, OWN = GroupError("timed out"), GroupMismatch("different work"), MemoryError("no room")


def job(answers: dict[int, Any], stop: int = 4) -> Job:
    unit: Any = None
    return Job(StartPhase("key1", 1, PAIR, 1, stop), item(1), unit, (2, 3), answers=answers)


@pytest.mark.parametrize(
    "answers, lost",
    [
        ({2: OWN, 3: OWN}, set()),
        ({2: MISMATCH, 3: MISMATCH}, set()),
        ({2: APART, 3: APART}, {2, 3}),
        ({2: APART}, {2, 3}),
        ({3: OWN}, {2}),
        ({2: APART, 3: OWN}, {2}),
        ({2: {"refine_s": 1.0}, 3: OWN}, set()),
    ],
)
def test_ranks_are_lost_that_are_silent_or_whose_groups_came_apart(answers: dict[int, Any], lost: set[int]) -> None:
    assert job(answers).lost == lost


@pytest.mark.parametrize(
    "answers, says",
    [
        ({3: OWN}, "rank 3: MemoryError: no room"),
        ({2: APART, 3: OWN}, "rank 3: MemoryError: no room"),
        ({2: APART}, "rank 3 does not answer (rank 2: GroupError: timed out)"),
        ({2: APART, 3: APART}, "rank 2: GroupError: timed out; rank 3: GroupError: timed out"),
    ],
)
def test_a_ranks_own_mistake_is_told_before_silence_and_silence_before_what_it_led_to(answers: dict[int, Any], says: str) -> None:
    one = job(answers)
    assert blame(one.lost, one.problems) == says


def test_a_job_says_which_clip_and_which_stages() -> None:
    assert job({}).clip == "clip p1 (key1)"
    assert job({}).stages == "stages 2-4"
    assert job({}, stop=2).stages == "stage 2"
    unit: Any = None
    assert Job(StartDecode("key1", 1, "pod-0", PAIR), item(1), unit, (2, 3)).stages == "decode"


def test_a_rank_that_says_anything_new_has_moved_and_nothing_else_counts() -> None:
    one = job({})
    one.moved_s = 0.0
    for nothing in (None, MemoryError("gone"), Doing("another", 2, 1)):
        one.hear(nothing)
        assert (one.doing, one.moved_s) == (None, 0.0)
    one.hear(Doing("key1", 2, 1))
    moved_s = one.moved_s
    assert moved_s > 0
    one.hear(Doing("key1", 2, 1))
    assert one.moved_s == moved_s
    assert str(one.doing) == "stage 2, step 1"
    assert str(Doing("key1", 0)) == "decoding"


def test_a_host_runs_no_more_than_a_few_steps_ahead_of_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: list[Event] = []
    waited: list[Event] = []

    class Event:
        def record(self) -> None:
            recorded.append(self)

        def synchronize(self) -> None:
            waited.append(self)

    monkeypatch.setattr("torch.cuda.Event", Event)
    pace = Pace("cuda:1")
    for _ in range(10):
        pace.step()
        assert len(recorded) - len(waited) <= AHEAD
    assert waited == recorded[: 10 - AHEAD]
    Pace("cpu").step()
    assert len(recorded) == 10
