"""The arithmetic of ``experiments.bench.cluster``: what a run's heavy GPUs did, from its event log."""

from __future__ import annotations

from typing import Any

import pytest

from experiments.bench.cluster_timeline import figures, turns, waits

BEGAN = 1000.0
"""Of the workers' clock."""
STAGES = [{}, {}]


def phase(key: str, start: int, width: int = 1) -> dict[str, Any]:
    piece = {"pod": "pod-0", "start": start, "width": width}
    return {"type": "StartPhase", "item_key": key, "attempt": 1, "slice": piece, "begin": 1, "stop": 2}


def sketched(time_s: float, key: str, *commands: dict[str, Any]) -> dict[str, Any]:
    decision = {"action": {"stages": STAGES}}
    return {"type": "Sketched", "time_s": time_s, "item_key": key, "attempt": 1, "decision": decision, "timings_s": {}} | {
        "commands": list(commands)
    }


def done(time_s: float, key: str, from_s: float, to_s: float, *commands: dict[str, Any]) -> dict[str, Any]:
    timings_s = {"refine_from": BEGAN + from_s, "refine_to": BEGAN + to_s}
    row = {"type": "PhaseDone", "time_s": time_s, "item_key": key, "attempt": 1, "stop": 2, "timings_s": timings_s}
    return row | {"commands": list(commands)}


def decode(key: str) -> dict[str, Any]:
    return {"type": "StartDecode", "item_key": key, "attempt": 1, "worker": "decode-0", "slice": None}


def decoded(time_s: float, key: str) -> dict[str, Any]:
    clip = {"timings_s": {"decode_s": 1.0}}
    return {"type": "Decoded", "time_s": time_s, "item_key": key, "attempt": 1, "clip": clip, "commands": []}


JOINED = {"type": "WorkerJoined", "time_s": 0.0, "worker": "pod-0", "kind": "pod", "num_ranks": 2, "commands": []}
LOG = [
    JOINED,
    sketched(1.0, "a", phase("a", 0)),
    sketched(1.0, "b", phase("b", 1)),
    sketched(2.0, "c"),  # waits until a rank is free
    done(5.0, "a", 1.0, 5.0, decode("a")),
    done(6.0, "b", 1.0, 5.0, phase("c", 0, 2)),  # a second of it on the way back
    decoded(7.0, "a"),
    done(10.0, "c", 7.0, 10.0),  # a second on the way there
]


def test_seconds_at_work_are_the_workers_own() -> None:
    a, b, c = (turn for turn in turns(LOG, BEGAN) if turn.kind == "StartPhase")
    assert (a.handoff_s, b.handoff_s, c.handoff_s) == (0.0, 1.0, 1.0)
    assert c.ranks == (("pod-0", 0), ("pod-0", 1))


def test_what_is_not_work_is_told_apart_by_its_cause() -> None:
    found = figures(LOG, BEGAN, num_gpus=4)
    assert found["window_s"] == [1.0, 10.0]
    assert found["busy_backlogged"] == pytest.approx((4 + 4 + 2 * 3) / 18)
    assert found["handoff_share"] == pytest.approx((1 + 2) / 18)
    assert found["scheduling_share"] == pytest.approx(1 / 18), "rank 0 stood idle from 5 to 6, and c waited"
    assert found["starved_share"] == pytest.approx(0.0)
    assert sum(found[f"{part}"] for part in ("busy_backlogged", "handoff_share", "scheduling_share")) == pytest.approx(1.0)


def test_videos_count_by_all_gpus_and_by_the_heavy_ones() -> None:
    found = figures(LOG, BEGAN, num_gpus=4)
    assert found["videos_per_gpu_hour"] == pytest.approx(1 / (4 * 7 / 3600))
    assert found["videos_per_heavy_gpu_hour"] == 2 * found["videos_per_gpu_hour"]


def test_a_clip_waits_from_its_sketch_to_its_slice() -> None:
    assert waits(LOG) == [(2.0, 6.0)]
