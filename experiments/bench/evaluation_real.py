"""VBench's own dimensions on two workers against one, for ``experiments.bench.evaluation``.

Every worker has one thread, whoever is beside it. The figure that counts is of warm workers: the clock starts when each has
loaded the dimension and measured a video, as it is for all but the first seconds of an evaluation. A run of all dimensions from
cold workers, loading included, stands beside it. Records of every run must be the same.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from experiments.bench.evaluation_crew import Gathered, evaluated
from experiments.vbench.evaluate import Evaluation
from experiments.vbench.pool import RayPool
from experiments.vbench.probe import ask, interpreter
from experiments.vbench.process import CHILD, Runtime, VBenchWorker, Video

GOAL = 1.7
COUNTS = {"temporal_flickering": 150, "motion_smoothness": 36, "dynamic_degree": 24}
"""About as long for each."""
CLIPS = {"temporal_flickering": (33, 480), "motion_smoothness": (9, 192), "dynamic_degree": (5, 128)}
"""Frames and their size: large for flickering, which decodes; small for the networks."""
NUM_CONTENTS = 7

Work = Mapping[str, Sequence[Video]]


@dataclass(frozen=True)
class Timed:
    """Seconds of the clock; of the processors, in the workers; and the share of the machine that others took meanwhile."""

    wall_s: float
    cpu_s: float
    others: float


def with_vbench(repeats: int, scale: float) -> dict[str, Any]:
    """Raises RuntimeError when a video failed, or when the records of two runs differ."""
    python = interpreter()
    with tempfile.TemporaryDirectory() as folder:
        make = partial(VBenchWorker, prepared(python, Path(folder) / "cache"))
        work = clips(Path(folder) / "videos", scale)
        _start(2)
        records: list[dict[str, Any]] = []
        warm = [{number: _warm(make, number, work, records) for number in (1, 2)} for _ in range(repeats)]
        cold = {number: _cold(make, number, work, records) for number in (1, 2)}
        _leave()
    if any(found != records[0] for found in records):
        raise RuntimeError("one worker and two do not give the same records")
    counts = {name: len(videos) for name, videos in work.items()}
    told = {"vbench": ask(python).version, "threads_per_worker": 1, "num_videos": counts, "goal": GOAL}
    return {**told, **summary(warm), "loading_included": _against(cold[1].wall_s, cold[2].wall_s) | _all(cold)}


def summary(warm: Sequence[Mapping[int, Mapping[str, Timed]]]) -> dict[str, Any]:
    """By dimension, the median over the repeats counts; ``speedup`` is the least of the dimensions'.

    ``never_waiting``: what it would be if no worker ever waited, for the other or for anybody else's work, by processor seconds.
    """
    found: dict[str, Any] = {}
    for name in warm[0][1]:
        one, two = ([repeat[number][name] for repeat in warm] for number in (1, 2))
        figures = _against(*(statistics.median(timed.wall_s for timed in runs) for runs in (one, two)))
        cpu_s = [statistics.median(timed.cpu_s for timed in runs) for runs in (one, two)]
        figures["never_waiting"] = round(2 * cpu_s[0] / cpu_s[1], 3)
        found[name] = figures | {"one_worker": [asdict(timed) for timed in one], "two_workers": [asdict(timed) for timed in two]}
    return {"speedup": min(figures["speedup"] for figures in found.values()), "dimensions": found}


def _against(one_s: float, two_s: float) -> dict[str, float]:
    return {"one_worker_s": round(one_s, 2), "two_workers_s": round(two_s, 2), "speedup": round(one_s / two_s, 3)}


def _all(cold: Mapping[int, Timed]) -> dict[str, Any]:
    return {"one_worker": asdict(cold[1]), "two_workers": asdict(cold[2])}


def _warm(make: partial[VBenchWorker], number: int, work: Work, records: list[dict[str, Any]]) -> dict[str, Timed]:
    """Each dimension by itself, on a crew that has it loaded."""
    crew = Gathered(RayPool(make, number, {"CPU": 1.0}))
    found: dict[str, Timed] = {}
    rows: dict[str, Any] = {}
    try:
        for dimension, videos in work.items():
            crew.warm(dimension, videos[:1])
            with timing() as timed:
                evaluation = evaluated(crew, {dimension: videos})
            found[dimension] = timed[0]
            rows |= _records(evaluation)
    finally:
        crew.close()
    records.append(rows)
    return found


def _cold(make: partial[VBenchWorker], number: int, work: Work, records: list[dict[str, Any]]) -> Timed:
    """All dimensions at once, on a crew that stands ready and has nothing loaded."""
    crew = Gathered(RayPool(make, number, {"CPU": 1.0}))
    try:
        with timing() as timed:
            evaluation = evaluated(crew, work)
    finally:
        crew.close()
    records.append(_records(evaluation))
    return timed[0]


def _records(evaluation: Evaluation) -> dict[str, Any]:
    if failed := [row.failed for row in evaluation.rows.values() if row.record is None]:
        raise RuntimeError(f"{len(failed)} videos were not measured; the first: {failed[0]}")
    return {key: row.record and row.record["video_results"] for key, row in evaluation.rows.items()}


@contextmanager
def timing() -> Iterator[list[Timed]]:
    """One entry when the block is over."""
    found: list[Timed] = []
    start, workers_s, ours_s, all_s = time.monotonic(), _workers_s(), _ours_s(), _machine_s()
    yield found
    wall_s = time.monotonic() - start
    others_s = max(0.0, (_machine_s() - all_s) - (_ours_s() - ours_s))
    share = others_s / wall_s / (os.cpu_count() or 1)
    found.append(Timed(round(wall_s, 2), round(_workers_s() - workers_s, 2), round(share, 3)))


def _workers_s() -> float:
    """Processor seconds of VBench's processes, of those that their actors have replaced too."""
    living = sum(sum(times[:2]) for command, times in _processes() if str(CHILD) in command)
    return living + sum(sum(times[2:4]) for command, times in _processes() if command and command[0].startswith("ray::"))


def _ours_s() -> float:
    """Processor seconds of this process and of all that it started."""
    return float(sum(sum(times[:4]) for _, times in _processes()))


def _processes() -> Iterator[tuple[list[str], Any]]:
    """Commands and times: user, system, and the same of children that are gone."""
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):  # it ended while it was looked at
            yield process.cmdline(), process.cpu_times()


def _machine_s() -> float:
    """Of all processes."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system)


def _start(num_cpus: int) -> None:
    from orchestrator.cluster import start_or_join

    os.environ.pop("RAY_ADDRESS", None)
    start_or_join(num_cpus=num_cpus)


def _leave() -> None:
    import ray

    ray.shutdown()


def prepared(python: str, cache: Path) -> Runtime:
    """VBench with random weights in ``cache``, written as its tests write them."""
    from tests.vbench.rig import official

    os.environ["DVG_VBENCH_PYTHON"] = python
    official(cache, "weights", str(cache))
    return Runtime(python, ask(python).package, "cpu", 1, {"VBENCH_CACHE_DIR": str(cache)})


def clips(folder: Path, scale: float) -> dict[str, list[Video]]:
    """Videos for each dimension, a few contents taking turns."""
    work = {}
    for name, number in COUNTS.items():
        contents = [_content(folder / "contents" / f"{name}-{index}.mp4", index, *CLIPS[name]) for index in range(NUM_CONTENTS)]
        work[name] = [Video(str(folder / name / f"clip-{index}.mp4")) for index in range(max(2, round(number * scale)))]
        (folder / name).mkdir()
        for index, video in enumerate(work[name]):
            shutil.copy(contents[index % NUM_CONTENTS], video.path)
    return work


def _content(path: Path, index: int, num_frames: int, size: int) -> Path:
    from tests.fakerun import write_video
    from tests.vbench.rig import clip

    write_video(clip(index, num_frames, size), path)
    return path
