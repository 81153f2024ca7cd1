"""The frozen values that travel between the parts of a sweep.

Units: pixels for ``VideoShape``, latent cells for ``Grid``, seconds for ``*_s``. Standard library only, so that the
scheduler, ``dvg plan`` and the workers share them without loading torch or Ray.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

Grid = tuple[int, int, int]
"""Latent cells along (time, height, width)."""


@dataclass(frozen=True)
class VideoShape:
    """What a viewer gets: frames at ``height`` x ``width`` pixels, played at ``fps``."""

    num_frames: int
    height: int
    width: int
    fps: int = 16


@dataclass(frozen=True)
class Stage:
    """``steps`` solver steps on one latent grid under one timestep shift."""

    grid: Grid
    steps: int
    shift: float
    window: int | None = None
    """Latent frames that a forward sees at most; None: all of them. A longer grid takes several forwards a step."""
    advance: int | None = None  # latent frames that it moves on, where they are fewer than it sees
    work: float = 1.0
    """Operations of all its forwards, over those of as many that attend to what they see alone."""
    in_flight: int | None = None
    """Of several forwards of a step how many are under way at once: more ranks find nothing to do. None: it does not matter."""

    @property
    def seen(self) -> Grid:
        """The most latent cells that a forward sees."""
        return self.grid if self.window is None else (min(self.window, self.grid[0]), *self.grid[1:])

    @property
    def passes(self) -> int:
        """Forwards of a step, of each branch of guidance."""
        return -(-self.grid[0] // min(self.seen[0], self.advance or self.seen[0]))


@dataclass(frozen=True)
class Action:
    """A schedule of stages. ``density`` is the share of the full grid's token-steps it spends (DVG eq. 7).

    ``s2`` is the spatial rate of stage 2 and ``f2`` the latent frames of stages 2 and 3; both None for a plain full run.
    """

    name: str
    stages: tuple[Stage, ...]
    density: float
    s2: float | None = None
    f2: int | None = None
    needs_sketch: bool = True
    """False: no content decides it, so its first stage too runs where the others do, as wide as it is worth."""

    @property
    def num_sketched(self) -> int:
        """Stages that the sketch runs: the first, which shows what to choose; none of a plain full run."""
        return min(1, len(self.stages) - 1) if self.needs_sketch else 0


@dataclass(frozen=True)
class Demand:
    """How much spatial detail and motion a sketch shows, both in [0, 1]; ``neutral`` when it could not be measured."""

    spatial: float
    temporal: float
    neutral: bool = False


@dataclass(frozen=True)
class Merged:
    """Frames that become one with their neighbours (VGDFR, arXiv 2504.12259, by ``orchestrator.vgdfr``).

    By the first frame of each window: four groups of two frames, or of four. The others stand alone.
    """

    num_frames: int
    """Of the whole video."""
    by_twos: tuple[int, ...] = ()
    by_fours: tuple[int, ...] = ()


@dataclass(frozen=True)
class Decision:
    """The chosen action and why, in one human line. ``demand`` and ``weights`` are None when nothing was measured."""

    action: Action
    why: str
    demand: Demand | None = None
    weights: tuple[float, float] | None = None
    merged: Merged | None = None
    """What the frames of the last stage's latent stand for; None: for themselves. Decoding restores the rest."""


@dataclass(frozen=True)
class Attended:
    """What attention kept in one solver step, means over layers and heads; seconds of this rank, summed."""

    step: int
    sparsity: float
    """Of all pairs of tokens, those that were left out; below 0 where more was done than dense attention does."""
    recall: float | None
    """Of dense attention's weights, what falls on the pairs kept, by some queries; None: not measured."""
    choose_s: float
    attend_s: float


@dataclass(frozen=True)
class Past:
    """What led to a boundary of a clip. It travels with the boundary, so that a checkpoint knows it without the scheduler."""

    timings_s: dict[str, float] = field(default_factory=dict)
    """By the names that records use; those of a name add up."""
    widths: tuple[int, ...] = ()
    """Ranks of every stage that was run after the sketch."""
    device_s: float = 0.0
    """Seconds of the work itself, times the ranks that did it."""
    began_s: float = 0.0
    """When the sketch began (Unix time); later for a clip that lay on disk between two runs."""
    tflops: float = 0.0
    """10^12 floating-point operations of the forwards so far, what was reused left out."""
    attended: tuple[Attended, ...] = ()
    """Of every step in which a method of attention ran, dense ones among them."""


@dataclass(frozen=True)
class Item:
    """One video to make: one prompt and seed under one arm. ``item_key`` identifies it across restarts."""

    item_key: str
    arm: str
    prompt_id: str
    prompt: str
    seed: int
    image: str | None = None
    """Path of the first frame; None: the text alone."""
    image_sha256: str = ""
    """Of that file's bytes; empty without an image."""
    deadline_s: float | None = None
    """From the start of its sketch to its video, where the sizing rule is ``deadline``; None: the rule's own."""


@dataclass(frozen=True)
class Slice:
    """``width`` adjacent ranks of one pod, from ``start`` (a multiple of ``width``)."""

    pod: str
    start: int
    width: int

    @property
    def ranks(self) -> range:
        return range(self.start, self.start + self.width)


@dataclass(frozen=True)
class Phase:
    """A run of stages on one slice: until ``stop`` stages of the clip are done (the sketch's included), on ``width`` ranks."""

    stop: int
    width: int
    why: str


@dataclass(frozen=True)
class Clip:
    """A finished video file. ``path`` is relative to the run folder."""

    path: str
    num_bytes: int
    sha256: str
    timings_s: dict[str, float] = field(default_factory=dict)
    tflops: float | None = None
    """10^12 floating-point operations that its denoising executed."""
    num_restored: int = 0
    """Frames that were made from their neighbours, after decoding."""
    restored_by: str = ""
    """How: ``motion`` or ``rife``; empty when none were."""
    attended: tuple[Attended, ...] = ()
    """What attention kept, step by step; empty where a method did not attend otherwise."""


@dataclass(frozen=True)
class Record:
    """Everything a reader of a run wants to know of one finished item, in one flat row of ``records.jsonl``."""

    item_key: str
    arm: str
    prompt_id: str
    prompt: str
    seed: int
    model: str
    planner: str
    budget: float | None
    num_steps: int
    guidance: float
    num_frames: int
    height: int
    width: int
    fps: int
    spatial_demand: float | None
    temporal_demand: float | None
    spatial_weight: float | None
    temporal_weight: float | None
    neutral_demand: bool
    action: str
    s2: float | None
    f2: int | None
    why: str
    density: float
    density_executed: float
    """Token-steps of the forwards that really ran, over those of a full run."""
    tokens_full: int
    stage_grids: str
    """For example ``4x8x8|7x14x14|7x18x18|11x18x18``."""
    stage_s: str
    """Seconds of each stage's steps, in the order of ``stage_grids``, joined by ``|``."""
    text_s: float
    sketch_s: float
    refine_s: float
    denoise_s: float
    """``sketch_s + refine_s``: every transformer step and transition, nothing else."""
    decode_s: float
    encode_s: float
    latency_s: float
    """From the start of the sketch to the video on disk, waiting included."""
    device_s: float
    """Device seconds held by this item: each phase's seconds times the ranks it held."""
    degree: int
    """Ranks of its widest phase."""
    attempts: int
    device: str
    host: str
    video: str
    num_bytes: int
    sha256: str
    finished_at: str
    """UTC, ISO 8601."""
    target: str = ""
    """The budget as it was asked for: ``density=0.5``, ``speedup=3`` or ``gpu_seconds=120``; empty without one."""
    predicted_s: float | None = None
    """What ``denoise_s`` was predicted to be, on one device of the kind that ``cost_device`` names."""
    cost_label: str = ""
    """``calibrated`` when that rests on measurements of the device, ``uncalibrated`` when on a roofline."""
    cost_device: str = ""
    image: str | None = None
    """The first frame it was made from."""
    solver: str = ""
    stage_degrees: str = ""
    """Ranks that each stage ran on, the sketch's first, joined by ``|``: for example ``1|2|2|8``."""
    sizing: str = ""
    """Why its widest phase was that wide."""
    accelerators: str = ""
    """What made its steps cheaper, joined by ``+``: for example ``teacache``; empty without any."""
    reconstructed: str = ""
    """Which of its planner and accelerators follow no released code, joined by ``+``."""
    tflops: float | None = None
    """10^12 floating-point operations that its denoising executed, both branches of guidance, what was reused left out. Of ranks
    that split guidance the branch with the prompt counts for both."""
    num_restored: int = 0
    """Frames made from their neighbours after decoding, of a planner that left them out."""
    restored_by: str = ""
    """How: ``motion``, compensated interpolation, or ``rife``, a network given to it; empty when none were."""
    restore_s: float = 0.0
    """Seconds of that."""
    sparsity: float | None = None
    """Of all pairs of tokens, those that attention left out, a mean over its steps, dense ones among them; None: nobody attended
    otherwise."""
    recall: float | None = None
    """Of dense attention's weights, what fell on the pairs kept, by some queries, a mean over the steps that measured it."""
    choose_s: float | None = None
    """Seconds of choosing what to keep, on the slice's first rank; part of ``denoise_s``."""
    attend_s: float | None = None
    """Seconds of attention itself, likewise."""
    attended: str = ""
    """The same of every step: ``step:sparsity:recall:choose_s:attend_s``, joined by ``|``."""


def as_row(record: Record) -> dict[str, Any]:
    """The record as a flat JSON-ready mapping, in field order."""
    return dict(vars(record))  # no field holds another value's fields


def record_from_row(row: dict[str, Any]) -> Record:
    """Inverse of :func:`as_row`; unknown keys of a newer version are ignored."""
    names = {f.name for f in dataclasses.fields(Record)}
    return Record(**{key: value for key, value in row.items() if key in names})
