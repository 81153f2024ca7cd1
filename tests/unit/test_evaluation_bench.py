"""The benchmark of evaluation: what counts as its figure, and when its clock may start."""

from __future__ import annotations

import time

import pytest

from experiments.bench.evaluation_crew import Gathered, evaluated
from experiments.bench.evaluation_real import Timed, summary, timing
from experiments.vbench.pool import LocalPool
from experiments.vbench.process import Answer, Row, Unavailable, Video

FLICKERING, MOTION = "temporal_flickering", "motion_smoothness"


class Counting:
    """A worker that tells what it was asked for."""

    def __init__(self, asked: list[tuple[str, int]]) -> None:
        self.asked = asked

    def score(self, dimension: str, videos: list[Video]) -> Answer:
        if dimension == MOTION:
            raise Unavailable("no AMT-S")
        self.asked.append((dimension, len(videos)))
        return Answer(tuple(Row({"video_results": 1.0}) for _ in videos))

    def close(self) -> None:
        """Nothing is open."""


def timed(wall_s: float, cpu_s: float) -> Timed:
    return Timed(wall_s, cpu_s, 0.0)


def test_the_slowest_dimensions_speedup_is_the_figure_and_medians_over_the_repeats_count() -> None:
    walls = [((10.0, 5.0), (12.0, 8.0)), ((10.0, 5.0), (14.0, 7.0)), ((10.0, 50.0), (16.0, 8.0))]
    repeats = [
        {number: {FLICKERING: timed(a[number - 1], 10.0), MOTION: timed(b[number - 1], 10.0)} for number in (1, 2)}
        for a, b in walls
    ]
    found = summary(repeats)
    assert found["dimensions"][FLICKERING]["speedup"] == 2.0
    assert found["speedup"] == found["dimensions"][MOTION]["speedup"] == 1.75
    assert found["dimensions"][MOTION]["never_waiting"] == 2.0


def test_every_worker_is_warm_before_the_clock_starts_and_serves_several_evaluations() -> None:
    asked: list[tuple[str, int]] = []
    crew = Gathered(LocalPool(lambda: Counting(asked), 2))  # type: ignore[arg-type,return-value]
    videos = [Video(f"{index}.mp4") for index in range(6)]
    crew.warm(FLICKERING, videos[:1])
    assert asked == [(FLICKERING, 1)] * 2
    for _ in range(2):
        assert len(evaluated(crew, {FLICKERING: videos}).rows) == 6
    with pytest.raises(RuntimeError, match="no AMT-S"):
        crew.warm(MOTION, videos[:1])
    crew.close()


def test_processor_seconds_of_this_process_are_not_anybody_elses() -> None:
    with timing() as found:
        end = time.process_time() + 0.3
        while time.process_time() < end:
            pass
    assert found[0].wall_s >= 0.29
    assert found[0].cpu_s == 0.0
