"""What the studies on wan-mini share: variants of a run, clips to make, judging, intervals, tables."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from experiments.bench.common import facts
from experiments.bench.lockstep import Clips, Lockstep, Played
from experiments.embedded.captions import caption
from experiments.embedded.checker import ATTRIBUTES
from experiments.embedded.judging import first_frames, judge, says_direction
from experiments.embedded.scenes import Scene
from orchestrator.actions import DvgConfig
from orchestrator.geometry import model as geometry_of
from stages.models import embedded
from stages.planners import Planner, make_planner

GEOMETRY = geometry_of(embedded.NAME)
NUM_RESAMPLES = 2000
BATCH = 64
COLUMNS = ("colour", "shape", "direction", "speed", "background", "camera")
"""The checker's attributes in the tables; ``size`` and courses beyond directions stay in the rows."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """One way to make a video. ``reference`` names the variant whose video of the same prompt and seed it is compared with."""

    name: str
    what: str
    planner: str = "dvg"
    knobs: Mapping[str, Any] = field(default_factory=dict)
    reference: str = "full"
    with_image: bool = False
    weights: str = "shipped"
    """``earlier``: the weights before the training with images and transitions, where their folder is given."""

    def but(self, prefix: str, knobs: Mapping[str, Any] | None = None, what: str = "", **changes: Any) -> Variant:
        """The same under another name, with more knobs and other changes."""
        changes |= {"name": prefix + self.name, "what": what or self.what, "knobs": {**self.knobs, **(knobs or {})}}
        return dataclasses.replace(self, **changes)

    def make(self, budget: float, num_steps: int) -> Planner:
        asked = None if self.planner in ("full", "fixed") else budget
        config = DvgConfig.for_model(GEOMETRY, self.knobs)
        return make_planner(self.planner, GEOMETRY, GEOMETRY.default_shape, num_steps, asked, config)


@dataclass(frozen=True)
class Clip:
    """A scene whose caption is the prompt, and a seed."""

    number: int
    scene: Scene
    seed: int


def clips_of(scenes: Sequence[Scene], seeds: Sequence[int]) -> list[Clip]:
    """Every scene with every seed; no two clips share a noise."""
    return [Clip(i, scene, 1000 * seed + i) for seed in seeds for i, scene in enumerate(scenes)]


def batches(clips: Sequence[Clip]) -> Iterator[Sequence[Clip]]:
    return (clips[start : start + BATCH] for start in range(0, len(clips), BATCH))


class Deadline:
    """Stops a study between two parts when the next one, taking as long as the last, would end too late."""

    def __init__(self, minutes: float | None) -> None:
        self.end_s = None if minutes is None else time.monotonic() + 60 * minutes
        self.begun_s: float | None = None

    def reached(self) -> bool:
        now_s = time.monotonic()
        taken_s = 0.0 if self.begun_s is None else now_s - self.begun_s
        self.begun_s = now_s
        return self.end_s is not None and now_s + taken_s > self.end_s


def play(model: Lockstep, planner: Planner, clips: Sequence[Clip], with_image: bool) -> Played:
    images = first_frames([clip.scene for clip in clips]) if with_image else None
    return model.play(planner, Clips(tuple(caption(c.scene) for c in clips), tuple(c.seed for c in clips), images))


class Judges:
    """Processes that look at videos while the next ones are made; with none of them, this one looks at once."""

    def __init__(self, num_workers: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pool = ProcessPoolExecutor(num_workers, context, torch.set_num_threads, (1,)) if num_workers else None

    def submit(self, video: NDArray[np.uint8], scene: Scene, with_image: bool) -> Future[Row]:
        if self.pool:
            return self.pool.submit(verdict, video, scene, with_image)
        done: Future[Row] = Future()
        done.set_result(verdict(video, scene, with_image))
        return done

    def close(self) -> None:
        if self.pool:
            self.pool.shutdown()


def verdict(video: NDArray[np.uint8], scene: Scene, with_image: bool) -> Row:
    return {**judge(video, scene, with_image), "says_direction": says_direction(scene)}


def score(row: Row) -> float:
    """Share of the attributes that can be seen and are right."""
    seen = [bool(row[key]) for key in ATTRIBUTES if row[key] is not None]
    return sum(seen) / len(seen)


def attribute(row: Row, name: str) -> float | None:
    """1 or 0; None where there is nothing to see. A direction counts where the caption says one."""
    value = row.get(name)
    return None if value is None or (name == "direction" and not row["says_direction"]) else float(value)


def interval(values: Mapping[int, Sequence[float]], seed: int = 0) -> tuple[float, float, float]:
    """Mean and 95 % bootstrap interval of values by prompt; prompts are resampled, so that seeds of one stay together."""
    groups = [np.asarray(group, float) for group in values.values() if len(group)]
    sums, counts = np.array([group.sum() for group in groups]), np.array([len(group) for group in groups])
    picks = np.random.default_rng(seed).integers(len(groups), size=(NUM_RESAMPLES, len(groups)))
    means = sums[picks].sum(1) / counts[picks].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(sums.sum() / counts.sum()), float(low), float(high)


def by_prompt(rows: Sequence[Row], key: str) -> dict[int, list[float]]:
    """The values of one figure that are there, by prompt."""
    found: dict[int, list[float]] = {}
    for row in rows:
        if (value := _figure(row, key)) is not None:
            found.setdefault(row["prompt"], []).append(value)
    return found


def difference(rows: Sequence[Row], base: Sequence[Row], key: str) -> tuple[float, float, float] | None:
    """Paired by prompt and seed: mean and interval of ``rows`` minus ``base``; None where there is no pair."""
    known = {(row["prompt"], row["seed"]): _figure(row, key) for row in base}
    found: dict[int, list[float]] = {}
    for row in rows:
        ours, theirs = _figure(row, key), known.get((row["prompt"], row["seed"]))
        if ours is not None and theirs is not None:
            found.setdefault(row["prompt"], []).append(ours - theirs)
    return interval(found) if found else None


def _figure(row: Row, key: str) -> float | None:
    if key in ATTRIBUTES:
        return attribute(row, key)
    return None if row.get(key) is None else float(row[key])


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)]
    return "\n".join(lines) + "\n"


def save_rows(path: pathlib.Path, name: str, figures: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Figures with the facts of the run, then one short line a row."""
    head = json.dumps({"benchmark": name, **facts(), **figures}, indent=1)
    lines = ",\n".join(json.dumps(_rounded(row), separators=(",", ":")) for row in rows)
    write(path, f'{head[:-2]},\n "rows": [\n{lines}\n]}}\n')


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    return round(value, 4) if isinstance(value, float) else value


def write(path: pathlib.Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
