"""What a suite asks to be measured of each arm: the videos of a dimension, in VBench's order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.vbench.dimensions import STATIC_FILTER, known
from experiments.vbench.process import Video
from experiments.vbench.shards import Task, key_of
from experiments.vbench.view import CUSTOM, Line, View
from experiments.vbench.view import Video as Named
from experiments.vbench.weights import fingerprint, roots
from orchestrator.suites import NUM_VIDEOS

FLICKERING = "temporal_flickering"


@dataclass(frozen=True)
class Measuring:
    """What shapes a measurement beside its video."""

    version: str
    weights: Mapping[str, Sequence[Any]]
    """Fingerprints by dimension."""

    def key(self, arm: str, dimension: str, video: Video) -> str:
        return key_of(arm, dimension, self.version, self.weights.get(dimension, ()), video)


def measuring(version: str, dimensions: Sequence[str], environment: Mapping[str, str]) -> Measuring:
    found = {name: known(name) for name in (*dimensions, STATIC_FILTER)}
    where = roots(environment)
    return Measuring(version, {name: fingerprint(dim.weights, where) for name, dim in found.items() if dim is not None})


def tasks(view: View, dimension: str, measuring: Measuring) -> list[Task]:
    """The videos that are there: the first five of each prompt, as VBench takes them, or all of a run's own prompts."""
    return [
        _task(view, line, video, dimension, measuring)
        for line in view.of(dimension)
        for video in line.there
        if view.suite.name == CUSTOM or video.index < NUM_VIDEOS
    ]


def candidates(view: View, measuring: Measuring) -> list[Task]:
    """What the filter of static videos is to judge for temporal flickering."""
    return [
        _task(view, line, video, STATIC_FILTER, measuring)
        for line in view.of(FLICKERING)
        for video in line.there
        if line.entry.num_videos > NUM_VIDEOS
    ]


def static(view: View, measuring: Measuring, verdicts: Mapping[str, bool]) -> list[Task]:
    """For temporal flickering: the first five videos of each prompt that are static, by the verdicts on the candidates' keys.

    VBench's filter goes through the files in the order of their names, where 10 comes before 2. A candidate that nobody has
    judged yet may be static, and so is among them.
    """
    found: list[Task] = []
    for line in view.of(FLICKERING):
        in_turn = sorted(line.there, key=lambda video: video.name)
        judged = [v for v in in_turn if verdicts.get(_task(view, line, v, STATIC_FILTER, measuring).key, True)]
        kept = judged if line.entry.num_videos > NUM_VIDEOS else list(line.there)
        found += [_task(view, line, video, FLICKERING, measuring) for video in kept[:NUM_VIDEOS]]
    return found


def num_full(view: View, chosen: Sequence[Task]) -> int:
    """Prompts of temporal flickering with all five of their videos."""
    counts = Counter(task.video.prompt for task in chosen)
    return sum(counts[line.entry.prompt] >= NUM_VIDEOS for line in view.of(FLICKERING))


def missing(view: View, dimension: str) -> list[str]:
    """Names of the videos that a dimension asks for and nobody has made."""
    return [v.name for line in view.of(dimension) for v in line.videos if v.record is None]


def _task(view: View, line: Line, video: Named, dimension: str, measuring: Measuring) -> Task:
    """The suite's prompt, though the video may have been made from a longer form of it."""
    found = Video(str(video.link), line.entry.prompt, line.entry.auxiliary.get(dimension), video.sha256 or "")
    return Task(view.arm, found, measuring.key(view.arm, dimension, found))
