"""From predicted seconds to widths: on how many ranks each stage of a clip runs, and the line that says why."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from orchestrator.cost import CostModel, split
from orchestrator.types import Phase

Rule = Literal["throughput", "latency", "deadline", "efficient", "narrowest", "fastest", "fixed"]
Order = Literal["arrival", "longest"]


class SizingConfig(BaseModel):
    """How many ranks a clip is given, stage by stage. No rule takes a wider slice that is slower."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    rule: Rule = "throughput"
    """throughput: most videos per hour; narrow slices while the backlog fills the ranks, wider ones where ranks would idle.
    latency: shortest first, each as fast as others that wait allow. deadline: the fewest GPU-seconds that meet ``deadline_s``.
    Clip by clip: efficient, the widest slice whose efficiency is at least ``min_efficiency``; narrowest, one rank unless memory
    asks for more; fastest, the least seconds; fixed, ``width`` ranks."""
    min_efficiency: float = Field(0.85, gt=0, le=1)
    """Seconds on one rank over (ranks x seconds on them)."""
    deadline_s: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Under the rule of that name: of what ``deadline_of`` says. A prompt may have one of its own."""
    deadline_of: Literal["item", "sweep"] = "item"
    """item: from the start of its sketch to its video. sweep: from the start of the sweep to its last video."""
    width: int | None = Field(None, ge=1)
    """Of every slice, under rule ``fixed``."""
    min_phase_s: float = Field(0.5, ge=0, allow_inf_nan=False)
    """A stage shorter than this joins a neighbour's width, if it stays that short: a hand-over costs tens of milliseconds."""
    order: Order = "arrival"
    """arrival: the order of the spec, so that the arms of a prompt finish together. longest: most work first, which shortens the
    tail of the last items."""

    @model_validator(mode="after")
    def _deadline_is_whole(self) -> Self:
        if self.rule == "deadline" and self.deadline_s is None:
            raise ValueError("rule deadline needs deadline_s, the seconds that a clip's stages may take")
        if self.rule != "deadline" and self.deadline_s is not None:
            raise ValueError(f"deadline_s is {self.deadline_s:g}, which only rule deadline reads, and rule is {self.rule}")
        if self.rule == "fixed" and self.width is None:
            raise ValueError("rule fixed needs width, the ranks of every slice")
        if self.rule != "fixed" and self.width is not None:
            raise ValueError(f"width is {self.width}, which only rule fixed reads, and rule is {self.rule}")
        return self


@dataclass(frozen=True)
class Choice:
    """A stage on a slice of ``width`` ranks."""

    width: int
    num_tokens: int
    step_s: float
    stage_s: float
    efficiency: float
    """Against the narrowest slice it may run on."""
    predicted: bool
    """Nobody measured so many ranks."""

    @property
    def gpu_s(self) -> float:
        return self.width * self.stage_s


def choices(
    cost: CostModel, widths: Sequence[int], num_tokens: int, num_forwards: int, extra_s: float = 0.0, work: float = 1.0
) -> tuple[Choice, ...]:
    """The stage on each of ``widths``, narrowest first. ``extra_s`` is spent on any of them, as on a transition.

    ``work``: as :attr:`orchestrator.types.Stage.work`.
    """
    least_s = min(widths) * work * cost.step_s(num_tokens, min(widths))
    found = []
    for width in sorted(widths):
        step_s = work * cost.step_s(num_tokens, width)
        share = least_s / (width * step_s)
        found.append(Choice(width, num_tokens, step_s, num_forwards * step_s + extra_s, share, cost.is_predicted(width)))
    return tuple(found)


def faster(options: Sequence[Choice]) -> tuple[Choice, ...]:
    """Those that every narrower one is slower than."""
    return tuple(c for c in options if all(c.step_s < other.step_s for other in options if other.width < c.width))


def choose(config: SizingConfig, stages: Sequence[Sequence[Choice]]) -> tuple[Choice, ...]:
    """One of each stage's options, narrowest first, of which no wider one is slower (:func:`faster`)."""
    if config.rule == "deadline":
        return _in_time(stages, config.deadline_s or math.inf)
    return tuple(one(config, options) for options in stages)


def one(config: SizingConfig, options: Sequence[Choice]) -> Choice:
    """For a stage by itself; a deadline, which is the whole clip's, makes it hurry."""
    if config.rule in ("fastest", "deadline"):
        return options[-1]
    if config.rule in ("narrowest", "throughput"):
        return options[0]
    if config.rule == "fixed":
        return [c for c in options if c.width <= (config.width or 1) or c is options[0]][-1]
    return [c for c in options if c.efficiency >= config.min_efficiency or c is options[0]][-1]


def _in_time(stages: Sequence[Sequence[Choice]], deadline_s: float) -> tuple[Choice, ...]:
    """The fewest GPU-seconds within the deadline; the fastest when nothing is."""
    fastest = tuple(options[-1] for options in stages)
    meeting = [clip for clip in itertools.product(*stages) if total_s(clip) <= deadline_s]
    return min(meeting, key=lambda clip: (sum(c.gpu_s for c in clip), total_s(clip)), default=fastest)


def total_s(clip: Iterable[Choice]) -> float:
    return sum(choice.stage_s for choice in clip)


def join_short(clip: Sequence[Choice], stages: Sequence[Sequence[Choice]], min_phase_s: float) -> tuple[Choice, ...]:
    """Phases shorter than ``min_phase_s`` take a neighbour's width, the shortest first, where they stay as short on it."""
    clip = tuple(clip)
    while joined := _join_one(clip, stages, min_phase_s):
        clip = joined
    return clip


def _join_one(clip: tuple[Choice, ...], stages: Sequence[Sequence[Choice]], min_phase_s: float) -> tuple[Choice, ...] | None:
    runs = _runs(clip)
    found = []
    for index, run in enumerate(runs):
        for neighbour in (*runs[max(index - 1, 0) : index], *runs[index + 1 : index + 2]):
            moved = _moved(stages[run], clip[neighbour.start].width)
            if moved and max(total_s(clip[run]), total_s(moved)) < min_phase_s:
                found.append((total_s(clip[run]), total_s(moved), (*clip[: run.start], *moved, *clip[run.stop :])))
    return min(found, key=lambda row: row[:2])[2] if found else None


def _runs(clip: Sequence[Choice]) -> list[slice]:
    """Stages that follow each other on one width."""
    runs, start = [], 0
    for _, group in itertools.groupby(clip, key=lambda choice: choice.width):
        stop = start + len(list(group))
        runs.append(slice(start, stop))
        start = stop
    return runs


def _moved(stages: Sequence[Sequence[Choice]], width: int) -> tuple[Choice, ...]:
    """All of them on another width; nothing when one of them cannot be."""
    found = [next((c for c in options if c.width == width), None) for options in stages]
    return tuple(c for c in found if c) if all(found) else ()


@dataclass(frozen=True)
class Voice:
    """How a reason is put into words."""

    unit: str = "GPU"
    num_branches: int = 1
    remark: str = ""
    """At its end."""

    def slice(self, width: int) -> str:
        side_by_side, degree = split(width, self.num_branches)
        parts = f" (2 x {degree})" if side_by_side > 1 else ""
        return f"{width} {self.unit}{'s' if width > 1 else ''}{parts}"


def phases(clip: Sequence[Choice], stages: Sequence[Sequence[Choice]], num_before: int, voice: Voice) -> tuple[Phase, ...]:
    """``stages`` hold every option, slower ones too; ``num_before`` stages of the clip come before them.

    A phase's reason is that of its largest stage.
    """
    found = []
    for run in _runs(clip):
        largest = max(range(run.start, run.stop), key=lambda index: clip[index].num_tokens)
        why = reason(clip[largest], stages[largest], voice)
        found.append(Phase(num_before + run.stop, clip[run.start].width, why))
    return tuple(found)


def reason(chosen: Choice, options: Sequence[Choice], voice: Voice) -> str:
    """``11,440 tokens: 4 GPUs, 0.24 s/step (86 %); 8 would save 0.09 s/step at 71 %``."""
    share = "" if chosen.width == options[0].width else f" ({chosen.efficiency:.0%})".replace("%", " %")
    line = f"{chosen.num_tokens:,} tokens: {voice.slice(chosen.width)}, {chosen.step_s:.2g} s/step{share}"
    wider = next((c for c in options if c.width > chosen.width), None)
    if wider is not None:
        line += f"; {_against(chosen, wider)}"
    guessed = chosen.predicted or (wider is not None and wider.predicted)
    return f"{line}{' (uncalibrated)' if guessed else ''}{voice.remark}"


def _against(chosen: Choice, wider: Choice) -> str:
    saved_s = chosen.step_s - wider.step_s
    if saved_s <= 0:
        return f"{wider.width} would take {-saved_s:.2g} s/step more"
    return f"{wider.width} would save {saved_s:.2g} s/step at {wider.efficiency * 100:.0f} %"


def with_remark(voice: Voice, config: SizingConfig, clip: Sequence[Choice]) -> Voice:
    """What the deadline came to."""
    if config.deadline_s is None:
        return voice
    took = f"{total_s(clip):.3g} s of the {config.deadline_s:g} s allowed"
    late = "" if total_s(clip) <= config.deadline_s else ", the fastest there is"
    return replace(voice, remark=f"{voice.remark}; {took}{late}")
