"""FasterCache (arXiv 2410.19355): attention carried on from the last two computed, and the branch without the prompt reckoned.

As in diffusers, but for two things of the paper: attention is carried on with a weight that rises over the clip, and from steps
that were computed only. What is covered of attention is as for ``pab``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from pydantic import Field
from torch import Tensor

from orchestrator.cost import num_branches
from orchestrator.geometry import ModelGeometry
from orchestrator.methods import Method, Request, Settings
from stages.accelerators.base import Now, StageEvent
from stages.accelerators.pace import spacing
from stages.accelerators.trunk import State, Trunk

PUBLISHED_NEGATIVE_INTERVAL = 5
FREQUENCY_DIVISOR = 5
"""Of the shorter side of a frame: frequencies of at most this share of it are low."""


class FasterCacheSettings(Settings):
    """The defaults are diffusers'."""

    interval: int = Field(2, ge=1)
    """Self-attention is computed every so many steps, counted from the beginning of a stage; 1: at every step."""
    below: float = Field(681, ge=0, le=1000)
    """At timesteps (1000 x noise level) below this; above it is computed at every step."""
    weight: float | None = Field(None, ge=0, le=1)
    """How far attention is carried on, as a share of its last change. None: rising from 0 to 1 over the clip, as in the paper;
    diffusers takes 0.5."""
    negative_interval: int | None = Field(None, ge=1)
    """The branch without the prompt is computed every so many steps and reckoned from the other between, and attention is carried
    on at reckoned steps only; 1: computed at every step. None: 5, and 4 where the clip changes its grid on the way, where there
    are two branches, else 1."""
    negative_below: float = Field(641, ge=0, le=1000)
    """At timesteps below this."""
    low_growth: float = Field(1.1, ge=0, allow_inf_nan=False)
    """At every reckoned step the branches' difference in low frequencies grows by this, between timesteps 901 and 99."""
    high_growth: float = Field(1.1, ge=0, allow_inf_nan=False)
    """Likewise in high frequencies, below timestep 301."""

    def reuses(self, since: int, timestep: float) -> bool:
        return since % self.interval != 0 and timestep < self.below

    def negative_spacing(self, event: StageEvent) -> int:
        return spacing(self.negative_interval, PUBLISHED_NEGATIVE_INTERVAL, event)

    def reckons(self, event: StageEvent, since: int, timestep: float) -> bool:
        return since % self.negative_spacing(event) != 0 and timestep < self.negative_below


@dataclass
class Found:
    """What the attention of all blocks found at the last two computed steps; one at first."""

    rows: list[list[State]] = field(default_factory=list)

    def begin(self) -> list[State]:
        """Room for another step's; the oldest leaves before it is filled."""
        self.rows = [*self.rows[-1:], []]
        return self.rows[-1]

    def ahead(self, index: int, weight: float) -> State:
        """Of a block: the last, and a share of how it differs from the one before."""
        first, last = (row[index] for row in (self.rows[0], self.rows[-1]))
        return tuple(torch.lerp(was, x, 1 + weight) for was, x in zip(first, last, strict=True))


@dataclass
class Difference:
    """Of the velocities without and with the prompt, in low and in high frequencies."""

    low: Tensor
    high: Tensor

    def grow(self, settings: FasterCacheSettings, timestep: float) -> None:
        self.low = self.low * settings.low_growth if 99 < timestep < 901 else self.low
        self.high = self.high * settings.high_growth if timestep < 301 else self.high


class FasterCache:
    """Of one stage."""

    def __init__(self, settings: FasterCacheSettings, geometry: ModelGeometry) -> None:
        self.settings = settings
        self._found: dict[int, Found] = {}
        self._difference: Difference | None = None

    def forward(self, trunk: Trunk, now: Now) -> Tensor:
        found = self._found.get(now.branch)
        if found is not None and not now.must_compute and self._reuses(now, 0, now.level.timestep):
            return _finished(trunk, lambda index, state: found.ahead(index, self._weight(now)))
        if not self._is_reuse_near(now):
            self._found.pop(now.branch, None)
            return trunk.compute()
        row = self._found.setdefault(now.branch, Found()).begin()

        def attend(index: int, state: State) -> State:
            row.append(trunk.run_attend(index, state))
            return row[-1]

        return _finished(trunk, attend)

    def negative(self, v: Tensor, now: Now, forward: Callable[[], Tensor]) -> Tensor:
        """The paper's equations 9 to 11, on the velocities, frame by frame."""
        if (
            self._difference is not None
            and not now.must_compute
            and self.settings.reckons(now.event, now.since, now.level.timestep)
        ):
            self._difference.grow(self.settings, now.level.timestep)
            return v + self._difference.low + self._difference.high
        plain = forward()
        if self.settings.negative_spacing(now.event) > 1:
            low = low_frequencies(plain - v)
            self._difference = Difference(low, plain - v - low)
        return plain

    def _reuses(self, now: Now, ahead: int, timestep: float) -> bool:
        """Whether attention is carried on so many steps from now. Where both branches are computed their difference is measured,
        and what one of them reuses would be part of it."""
        since, settings = now.since + ahead, self.settings
        is_alone = settings.negative_spacing(now.event) == 1 or (now.branch == 0 and settings.reckons(now.event, since, timestep))
        return is_alone and settings.reuses(since, timestep)

    def _is_reuse_near(self, now: Now) -> bool:
        """Whether what attention finds now is of use: as the last computed, or as the one before it.

        Only the next step's level is known; those after it are taken to fall twice as fast at most.
        """
        fall = now.level.timestep - now.level.timestep_next
        reach = min(self.settings.interval, now.event.last - now.step - 1)
        return any(self._reuses(now, k, now.level.timestep_next - 2 * (k - 1) * fall) for k in range(1, reach + 1))

    def _weight(self, now: Now) -> float:
        return now.step / max(now.event.num_steps - 1, 1) if self.settings.weight is None else self.settings.weight


def _finished(trunk: Trunk, attend: Callable[[int, State], State]) -> Tensor:
    """All blocks, given how each comes to what its attention finds."""
    state = trunk.inputs
    for index in range(trunk.num_blocks):
        state = trunk.run_finish(index, state, attend(index, state))
    return trunk.image(state)


def low_frequencies(x: Tensor) -> Tensor:
    """Of every frame of ``[..., H, W]``: frequencies within a circle of a fifth of the shorter side, in cycles per frame."""
    height, width = x.shape[-2:]
    rows = torch.fft.fftfreq(height, 1 / height, device=x.device)
    columns = torch.fft.rfftfreq(width, 1 / width, device=x.device)
    within = rows[:, None] ** 2 + columns**2 <= (min(height, width) // FREQUENCY_DIVISOR) ** 2
    low: Tensor = torch.fft.irfft2(torch.fft.rfft2(x.float()) * within, s=(height, width))
    return low.to(x.dtype)


def _resolve(settings: FasterCacheSettings, request: Request) -> FasterCacheSettings:
    if num_branches(request.geometry, request.guidance) > 1:
        return settings
    if settings.negative_interval is not None and settings.negative_interval > 1:
        raise ValueError(
            f"fastercache: negative_interval is {settings.negative_interval}, but {request.geometry.name} under guidance "
            f"{request.guidance:g} has no branch without the prompt: leave it out, or set it to 1, for attention alone"
        )
    return settings.model_copy(update={"negative_interval": 1})


def _together(settings: FasterCacheSettings, request: Request) -> str:
    if settings.negative_interval == 1:
        return ""
    return "fastercache reckons the branch without the prompt from the other: set negative_interval to 1, or keep clips on 1 rank"


METHODS = {
    "fastercache": Method(
        "fastercache", "accelerator", "cache", "FasterCache, arXiv 2410.19355",
        "self-attention carried on from the last two computed; the branch without the prompt reckoned from the other", "paper",
        make=FasterCache,
        settings=FasterCacheSettings,
        resolve=_resolve,
        needs="memory for twice what every block's self-attention finds, for each branch of guidance",
        whole_forwards=False,
        kept_tensors=lambda settings, geometry: 2 * geometry.num_layers if settings.interval > 1 else 0,
        together=_together,
    )
}  # fmt: skip
