"""How evaluation scales: fake dimensions of known cost on a simulated cluster, and VBench's own with two workers against one.

``python -m experiments.bench.evaluation [--part cluster] [--part real] [--out experiments/results/evaluation_202611.json]``

``cluster`` asks for eight nodes of one worker each on this machine. Their work is sleep, in VBench's proportions, so that what is
measured is the handing out: models loaded, shards cut, results written. Ideal: the seconds of work over the workers, from the
moment that the crew is there. ``real`` needs VBench's environment (``make vbench-env``); checkpoints have random weights, loading
them counts, and every worker has one thread in both runs. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from experiments.bench.common import ROOT, save
from experiments.vbench.dimensions import TABLE
from experiments.vbench.evaluate import Evaluation, Session
from experiments.vbench.pool import Event, Pool, RayPool, Ready
from experiments.vbench.probe import ask, interpreter
from experiments.vbench.process import Answer, Row, Runtime, VBenchWorker, Video
from experiments.vbench.shards import ShardStore, Task
from orchestrator.packing import Node
from orchestrator.suites import DIMENSIONS

NUM_NODES = 8
NUM_PROMPTS = 94
"""Videos of each fake dimension; VBench asks for five of about as many prompts."""
WORK_S = 160.0
"""Of one worker for all fake dimensions: 20 s on eight."""
LOAD_S = 0.3
CLUSTER_GOAL, REAL_GOAL = 0.90, 1.7
REAL_COUNTS = {"temporal_flickering": 200, "motion_smoothness": 48, "dynamic_degree": 48}
"""About as long for each."""
STORE_BYTES = 80 * 2**20


@dataclass
class Sleeper:
    """A worker whose videos take exactly their seconds, as loading a model does."""

    seconds: Mapping[str, float]
    _loaded: str = ""

    def score(self, dimension: str, videos: Sequence[Video]) -> Answer:
        load_s = 0.0 if self._loaded == dimension else LOAD_S
        self._loaded = dimension
        work_s = self.seconds[dimension] * len(videos)
        time.sleep(load_s + work_s)
        return Answer(tuple(Row({"video_results": 0.5}, None, self.seconds[dimension]) for _ in videos), work_s, load_s)

    def close(self) -> None:
        """Nothing is open."""


class Gathered:
    """A pool whose whole crew is there before the first shard goes out."""

    def __init__(self, pool: Pool) -> None:
        self.pool, self.num_workers = pool, pool.num_workers
        self._ready: list[Event] = []
        while len(self._ready) < pool.num_workers:
            event = pool.wait(1.0)
            if event is not None and not isinstance(event, Ready):
                raise RuntimeError(f"a worker did not start: {event}")
            self._ready += [event] if event is not None else []

    def start(self, worker: int, dimension: str, videos: Sequence[Video]) -> None:
        self.pool.start(worker, dimension, videos)

    def wait(self, timeout_s: float) -> Event | None:
        return self._ready.pop() if self._ready else self.pool.wait(timeout_s)

    def close(self) -> None:
        self.pool.close()


def measured_s(pool: Pool, work: Mapping[str, Sequence[Video]]) -> tuple[float, Evaluation]:
    """Seconds from a ready crew to the last shard on disk."""
    with tempfile.TemporaryDirectory() as folder:
        evaluation = Evaluation(lambda arm: ShardStore(Path(folder)), lambda line: None)
        for dimension, videos in work.items():
            evaluation.ask(dimension, [Task("arm", video, f"{dimension}/{video.path}") for video in videos])
        crew = Gathered(pool)
        start = time.monotonic()
        try:
            Session(evaluation, crew, 25, {}).run()
            return time.monotonic() - start, evaluation
        finally:
            crew.close()


def on_cluster() -> dict[str, Any]:
    """Eight simulated nodes, sixteen dimensions in VBench's proportions."""
    from ray.cluster_utils import Cluster

    total = sum(TABLE[name].video_s for name in DIMENSIONS)
    seconds = {name: TABLE[name].video_s / total * WORK_S / NUM_PROMPTS for name in DIMENSIONS}
    videos = [Video(f"{index}.mp4") for index in range(NUM_PROMPTS)]
    cluster = Cluster()
    try:
        cluster.add_node(num_cpus=0, include_dashboard=False, object_store_memory=STORE_BYTES)
        for _ in range(NUM_NODES):
            cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
        joined = _join(cluster.address)
        pool = RayPool(partial(Sleeper, seconds), NUM_NODES, {"CPU": 1.0})
        took_s, evaluation = measured_s(pool, dict.fromkeys(DIMENSIONS, videos))
        _leave()
    finally:
        cluster.shutdown()
    if len(evaluation.rows) != NUM_PROMPTS * len(DIMENSIONS):
        raise RuntimeError("not every video was measured")
    ideal_s = WORK_S / NUM_NODES
    return {
        "num_nodes": sum(node.resources.get("CPU", 0) > 0 for node in joined),
        "num_dimensions": len(DIMENSIONS),
        "num_videos": NUM_PROMPTS,
        "load_s": LOAD_S,
        "ideal_s": ideal_s,
        "took_s": round(took_s, 3),
        "share_of_ideal": round(ideal_s / took_s, 4),
        "goal": CLUSTER_GOAL,
    }


def _join(address: str | None) -> Sequence[Node]:
    from orchestrator.cluster import start_or_join

    return start_or_join(address).nodes


def _leave() -> None:
    import ray

    ray.shutdown()


def with_vbench(repeats: int, scale: float) -> dict[str, Any]:
    """Two workers against one, each with one thread, on VBench's own functions."""
    python = interpreter()
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"
        runtime = prepared(python, cache)
        work = clips(Path(folder) / "videos", scale)
        runs: dict[int, list[float]] = {1: [], 2: []}
        scores: list[dict[str, Any]] = []
        _start(2)
        for _ in range(repeats):
            for number in runs:
                pool = RayPool(partial(VBenchWorker, runtime), number, {"CPU": 1.0})
                took_s, evaluation = measured_s(pool, work)
                runs[number].append(round(took_s, 2))
                scores.append({key: row.record and row.record["video_results"] for key, row in evaluation.rows.items()})
        _leave()
    if any(found != scores[0] for found in scores):
        raise RuntimeError("one worker and two do not give the same records")
    one, two = (statistics.median(runs[number]) for number in (1, 2))
    counts = {name: len(videos) for name, videos in work.items()}
    told = {"vbench": ask(python).version, "threads": 1, "num_videos": counts, "load_included": True}
    return {**told, "one_worker_s": runs[1], "two_workers_s": runs[2], "speedup": round(one / two, 3), "goal": REAL_GOAL}


def _start(num_cpus: int) -> None:
    from orchestrator.cluster import start_or_join

    os.environ.pop("RAY_ADDRESS", None)
    start_or_join(num_cpus=num_cpus)


def prepared(python: str, cache: Path) -> Runtime:
    """VBench with random weights in ``cache``, written as its tests write them."""
    from tests.vbench.rig import official

    os.environ["DVG_VBENCH_PYTHON"] = python
    official(cache, "weights", str(cache))
    return Runtime(python, ask(python).package, "cpu", 1, {"VBENCH_CACHE_DIR": str(cache)})


def clips(folder: Path, scale: float) -> dict[str, list[Video]]:
    """Small videos for each real dimension: large frames for flickering, which decodes; few for the networks."""
    from tests.fakerun import write_video
    from tests.vbench.rig import clip

    sizes = {"temporal_flickering": (33, 480), "motion_smoothness": (9, 192), "dynamic_degree": (5, 128)}
    work: dict[str, list[Video]] = {}
    for name, number in REAL_COUNTS.items():
        num_frames, size = sizes[name]
        work[name] = [Video(str(folder / name / f"clip-{index}.mp4")) for index in range(max(1, round(number * scale)))]
        for index, video in enumerate(work[name]):
            write_video(clip(index % 7, num_frames, size), Path(video.path))
    return work


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=("cluster", "real"), help="default: both")
    parser.add_argument("--repeats", type=int, default=2, help="of the real dimensions; the median counts")
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of real videos")
    parser.add_argument("--out", type=Path, default=ROOT / "experiments" / "results" / "evaluation_202611.json")
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    if "cluster" in (options.part or ["cluster"]):
        figures["cluster"] = on_cluster()
        print(figures["cluster"])
    if "real" in (options.part or ["real"]):
        figures["real"] = with_vbench(options.repeats, options.scale)
        print(figures["real"])
    save(options.out, "evaluation", figures)
    met = [found["share_of_ideal" if part == "cluster" else "speedup"] >= found["goal"] for part, found in figures.items()]
    return 0 if all(met) else 1


if __name__ == "__main__":
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    sys.exit(main())
