"""How evaluation scales: fake dimensions of known cost on a simulated cluster, and VBench's own with two workers against one.

``python -m experiments.bench.evaluation [--part cluster] [--part real] [--out experiments/results/evaluation_202611.json]``

``cluster`` asks for eight nodes of one worker each on this machine. Their work is sleep, in VBench's proportions, so that what is
measured is the handing out: models loaded, shards cut, results written. Ideal: the seconds of work over the workers, from the
moment that the crew is there. ``real`` needs VBench's environment (``make vbench-env``); its checkpoints have random weights
(``evaluation_real``). Run it on a quiet machine: ``others`` says how much of it was taken by somebody else.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from experiments.bench.common import ROOT, save
from experiments.bench.evaluation_crew import Gathered, evaluated
from experiments.bench.evaluation_real import with_vbench
from experiments.vbench.dimensions import TABLE
from experiments.vbench.pool import RayPool
from experiments.vbench.process import Answer, Row, Video
from orchestrator.packing import Node
from orchestrator.suites import DIMENSIONS

NUM_NODES = 8
NUM_PROMPTS = 94
"""Videos of each fake dimension; VBench asks for five of about as many prompts."""
WORK_S = 160.0
"""Of one worker for all fake dimensions: 20 s on eight."""
LOAD_S = 0.3
CLUSTER_GOAL = 0.90
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
        crew = Gathered(RayPool(partial(Sleeper, seconds), NUM_NODES, {"CPU": 1.0}))
        start = time.monotonic()
        evaluation = evaluated(crew, dict.fromkeys(DIMENSIONS, videos))
        took_s = time.monotonic() - start
        crew.close()
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
