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
    assert found["alignment_share"] == pytest.approx(1 / 18), "rank 0 stood idle from 5 to 6, as c goes to both ranks"
    assert (found["scheduling_share"], found["decoders_share"], found["starved_share"]) == (0.0, 0.0, 0.0)
    assert sum(found[part] for part in ("busy_backlogged", "handoff_share", "alignment_share")) == pytest.approx(1.0)
    assert found["orchestration_share"] == found["handoff_share"]


ALONE = [
    {**JOINED, "num_ranks": 1},
    sketched(1.0, "a", phase("a", 0)),
    sketched(2.0, "b"),
    done(5.0, "a", 1.0, 5.0),  # b waits, but nobody starts it
    {"type": "WorkerJoined", "time_s": 7.0, "worker": "decode-0", "kind": "decode", "commands": [decode("a"), phase("b", 0)]},
    done(9.0, "b", 7.0, 9.0, decode("b")),
    decoded(10.0, "b"),
    sketched(11.0, "c", phase("c", 0)),
    done(12.0, "c", 11.0, 12.0),
]


def test_a_rank_idles_for_latents_that_wait_for_a_decoder_or_for_want_of_a_sketch() -> None:
    found = figures(ALONE, BEGAN, num_gpus=1)
    assert found["window_s"] == [1.0, 12.0]
    assert found["decoders_share"] == pytest.approx(2 / 11)
    assert found["starved_share"] == pytest.approx(2 / 11)
    assert found["orchestration_share"] == 0.0


def test_a_clip_that_waits_beside_an_idle_rank_for_no_reason_is_the_schedulers() -> None:
    late = [{**ALONE[3], "commands": [decode("a")]}, {**ALONE[4], "commands": [phase("b", 0)]}]
    found = figures([*ALONE[:3], *late, *ALONE[5:]], BEGAN, num_gpus=1)
    assert found["scheduling_share"] == found["orchestration_share"] == pytest.approx(2 / 11)


def test_videos_count_by_all_gpus_and_by_the_heavy_ones() -> None:
    found = figures(LOG, BEGAN, num_gpus=4)
    assert found["videos_per_gpu_hour_held"] == pytest.approx(1 / (4 * 7 / 3600))
    assert found["videos_per_heavy_gpu_hour_held"] == 2 * found["videos_per_gpu_hour_held"]


def test_a_clip_waits_from_its_sketch_to_its_slice() -> None:
    assert waits(LOG) == [(2.0, 6.0)]
