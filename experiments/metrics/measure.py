"""One video measured: its file read once, frame by frame, beside the reference's where there is one. Runs on any node."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from experiments.metrics import latents, perceptual, semantic
from experiments.metrics.latents import LatentCosine
from experiments.metrics.likeness import FRAMES_AT_ONCE, Likeness
from experiments.metrics.names import METRICS, SEMANTIC
from experiments.metrics.perceptual import Perceptual
from experiments.metrics.quality import UNAVAILABLE, Row, row_of
from experiments.metrics.semantic import Semantic
from experiments.metrics.steadiness import Flicker, Motion, Static
from orchestrator.store import Destination, fetched
from orchestrator.types import Record
from stages.video import Frames, read_frames

PIXELS_AT_ONCE = 2_000_000
"""Of one video as floats; a 720p clip is compared two frames at a time."""


class Meter(Protocol):
    """Takes a video in runs of frames ``[n, H, W, 3]`` uint8, however it is cut, and the reference's beside them.

    Either method raises ValueError where the metrics cannot be had of this video.
    """

    @property
    def names(self) -> tuple[str, ...]: ...

    def add(self, frames: Frames, reference: Frames) -> None: ...

    def values(self) -> dict[str, float]: ...


@dataclass(frozen=True)
class Job:
    """One video, and what is to be measured of it."""

    record: Record
    reference: Record | None
    names: tuple[str, ...]
    video: Destination
    reference_video: Destination | None = None
    weights: str | None = None
    """Those of the arm, as in the resolved spec."""
    device: str = "cpu"

    @property
    def compares(self) -> bool:
        return any(METRICS[name].of_reference for name in self.names)


class Unreadable(ValueError):
    """A file that is not the video on record."""


@dataclass
class _Sitting:
    """The meters still in play, and why others are not."""

    meters: list[Meter] = field(default_factory=list)
    unavailable: dict[str, str] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)

    def sit(self, names: tuple[str, ...], make: Callable[[], Meter]) -> None:
        try:
            self.meters.append(make())
        except ValueError as error:
            self.unavailable |= dict.fromkeys(names, str(error))

    def add(self, frames: Frames, reference: Frames | None) -> None:
        for meter in list(self.meters):
            try:
                meter.add(frames, frames if reference is None else reference)
            except ValueError as error:
                self.dismiss(str(error), [meter])

    def finish(self) -> None:
        for meter in list(self.meters):
            try:
                self.values |= meter.values()
            except ValueError as error:
                self.dismiss(str(error), [meter])

    def dismiss(self, why: str, meters: list[Meter]) -> None:
        for meter in meters:
            self.meters.remove(meter)
            self.unavailable |= dict.fromkeys(meter.names, why)

    @property
    def comparing(self) -> list[Meter]:
        return [meter for meter in self.meters if METRICS[meter.names[0]].of_reference]


def measure(job: Job) -> Row:
    """A row of ``quality.jsonl`` with what of ``job.names`` could be measured, and why the rest could not.

    ``frames_ok`` is 0 in the row of a video that is missing, torn or not what its record says, and then there is nothing else.
    Memory does not depend on the number of frames. Raises RunError for a store that cannot be reached, OSError for a file that
    cannot be read.
    """
    sitting = _Sitting(unavailable=obstacles(job))
    wanted = [name for name in job.names if name not in sitting.unavailable]
    for names, make in _makers(job, wanted):
        sitting.sit(names, make)
    if not sitting.meters and "frames_ok" not in wanted:
        return _row(job, sitting.values, sitting.unavailable)
    try:
        _watch(job, sitting)
    except Unreadable as error:
        lost = dict.fromkeys([name for name in wanted if name != "frames_ok"], str(error))
        return _row(job, {"frames_ok": 0.0}, sitting.unavailable | lost)
    sitting.finish()
    seen = {"frames_ok": 1.0} if "frames_ok" in wanted else {}
    return _row(job, sitting.values | seen, sitting.unavailable)


def _row(job: Job, values: dict[str, float], unavailable: dict[str, str]) -> Row:
    row, odd = row_of(job.record, job.reference), [name for name, value in values.items() if not math.isfinite(value)]
    why = unavailable | dict.fromkeys(odd, "it came to no finite number")
    return {**row, **{name: value for name, value in values.items() if name not in odd}, UNAVAILABLE: why}


def obstacles(job: Job) -> dict[str, str]:
    """What of ``job.names`` cannot be had on this machine, or at all, before any file is opened; and why."""
    record, found = job.record, dict[str, str]()
    if job.reference is None:
        none = f"no video to compare with of prompt {record.prompt_id}, seed {record.seed} and this shape"
        found |= {name: none for name in job.names if METRICS[name].of_reference}
    if record.num_frames < 2:
        found |= dict.fromkeys(("flicker", "motion", "static"), "a single frame does not move")
    if "lpips" in job.names and (why := perceptual.why_not()):
        found.setdefault("lpips", why)
    if "latent_cosine" in job.names and (why := latents.why_not(record.model, job.weights)):
        found.setdefault("latent_cosine", why)
    if any(name in SEMANTIC for name in job.names):
        blind = semantic.why_not(record.model, record.prompt, record.num_frames)
        found |= {f"semantic_{attribute}": why for attribute, why in blind.items()}
    return {name: why for name, why in found.items() if name in job.names}


def _makers(job: Job, names: list[str]) -> Iterator[tuple[tuple[str, ...], Callable[[], Meter]]]:
    """The metrics that share a meter, and how that one is made."""
    record, device = job.record, job.device
    attributes = [name.removeprefix("semantic_") for name in names if name in SEMANTIC]
    makers: dict[tuple[str, ...], Callable[[], Meter]] = {
        ("psnr", "ssim"): lambda: Likeness(names, device),
        ("lpips",): lambda: Perceptual(device),
        ("latent_cosine",): lambda: LatentCosine(latents.encoder(record.model, job.weights, device)),
        ("flicker",): Flicker,
        ("motion",): lambda: Motion(record.fps),
        ("static",): Static,
        SEMANTIC: lambda: Semantic(attributes, record.prompt, record.num_frames),
    }
    for group, make in makers.items():
        if wanted := tuple(name for name in group if name in names):
            yield wanted, make


def _watch(job: Job, sitting: _Sitting) -> None:
    """Show the meters the whole video. Raises Unreadable for one that is not what its record says."""
    with contextlib.ExitStack() as files:
        frames = _checked(files, job.video, job.record)
        theirs: Iterator[Frames] | None = None
        if sitting.comparing and job.reference is not None and job.reference_video is not None:
            theirs = _checked(files, job.reference_video, job.reference)
        for run in _runs(frames, _run_length(job.record)):
            beside = None
            if theirs is not None:
                beside, theirs = _beside(theirs, len(run), sitting)
            sitting.add(run, beside)
        if theirs is not None:
            _beside(theirs, 1, sitting)


def _beside(theirs: Iterator[Frames], num_frames: int, sitting: _Sitting) -> tuple[Frames | None, Iterator[Frames] | None]:
    """The reference's next frames and the rest of it; without either, and without what needs it, once it proves unreadable."""
    try:
        taken = list(itertools.islice(theirs, num_frames))
    except Unreadable as error:
        sitting.dismiss(f"of the reference: {error}", sitting.comparing)
        return None, None
    return (np.stack(taken) if taken else None), theirs


def _checked(files: contextlib.ExitStack, place: Destination, record: Record) -> Iterator[Frames]:
    """The frames of the video of a record. Raises Unreadable where it is not what the record says, at its end at the latest."""
    try:
        path = files.enter_context(fetched(place))
    except FileNotFoundError as error:
        raise Unreadable(f"{record.video} is not there") from error
    num_frames, frames = 0, read_frames(path)
    while (frame := _next(frames, path, record)) is not None:
        if frame.shape != (record.height, record.width, 3):
            raise Unreadable(f"{record.video} is {frame.shape[1]}x{frame.shape[0]}, not {record.width}x{record.height}")
        num_frames += 1
        if num_frames <= record.num_frames:
            yield frame
    if num_frames != record.num_frames:
        raise Unreadable(f"{record.video} has {num_frames} frames, not {record.num_frames}")


def _next(frames: Iterator[Frames], path: Path, record: Record) -> Frames | None:
    try:
        return next(frames, None)
    except ValueError as error:
        if isinstance(error.__cause__, OSError):  # the disk's, or the file system's: nothing is said of the video
            raise error.__cause__ from error
        raise Unreadable(str(error).replace(str(path), record.video)) from error


def _runs(frames: Iterator[Frames], length: int) -> Iterator[Frames]:
    while run := list(itertools.islice(frames, length)):
        yield np.stack(run)


def _run_length(record: Record) -> int:
    return max(1, min(FRAMES_AT_ONCE, PIXELS_AT_ONCE // (record.height * record.width)))
