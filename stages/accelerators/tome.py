"""ToMe, token merging (arXiv 2210.09461; for diffusion 2303.17604), reconstructed for video transformers.

In every block tokens of one window of a frame that are alike are one token in self-attention and its linear layers: the mean of
their hidden states, at the place of the one that they join. A key that stands for n tokens counts as n keys do (log n is added
to its logits). What attention finds is copied to all of them; the rest of a block is computed for every token, text as ever.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor

from orchestrator.geometry import ModelGeometry
from orchestrator.methods import Method, Request, Settings
from orchestrator.types import Grid
from parallel.seam import Attention
from parallel.shares import shares
from stages.accelerators.attending import Here
from stages.accelerators.base import Now
from stages.accelerators.trunk import Trunk
from stages.merging import CELL, Merge, Ordered, Windows, match
from stages.sparse.weighted import weighted

FEWEST_WINDOWS = 16
"""Of a grid that merges: two for each of eight ranks, so that none of them is left with no row or one, which a compiler takes for
constants. By the grid alone, so that the video is the same at every width."""


class TomeSettings(Settings):
    """``ratio: 0`` leaves everything as it is, bit for bit."""

    ratio: float = Field(0.5, ge=0, le=1 - 1 / CELL**2)
    """Share of a window's tokens that join others, rounded down to whole tokens; three quarters leave one of every 2 x 2."""
    window: tuple[int, int] = (4, 4)
    """Tokens along height and width among which they look for others, even numbers. Tokens at a frame's border that fill no
    window are never merged, nor are those of a grid with fewer than 16 windows."""
    shuffle: bool = True
    """Whether which token of a 2 x 2 cell the others may join changes from step to step, at random; otherwise it is the first."""
    proportional: bool = True
    """Whether a merged key counts as often as it has tokens. It needs a kernel that takes a number for each key (FlexAttention on
    a GPU), which is slower than the fastest dense one: without it the dense kernel runs, and merged regions weigh too little."""

    @field_validator("window")
    @classmethod
    def _check(cls, window: tuple[int, int]) -> tuple[int, int]:
        if any(size < CELL or size % CELL for size in window):
            raise ValueError(f"window is {list(window)}: both sides must be even numbers of tokens, as [4, 4]")
        return window

    @property
    def num_merged(self) -> int:
        """Of one window."""
        return int(self.ratio * self.window[0] * self.window[1] + 1e-9)


@dataclass(frozen=True)
class Place:
    """What a rank has of the windows, and what all ranks have in attention."""

    windows: slice
    counts: tuple[int, ...]


class Tome:
    """Of one stage: a new one has another grid. It chooses the order of tokens, merges, and attends."""

    work = 1.0

    def __init__(self, settings: TomeSettings, geometry: ModelGeometry) -> None:
        self.settings, self.geometry = settings, geometry
        self._windows: Windows | None = None
        self._ordered: Ordered | None = None
        self._destinations: Tensor | None = None
        self._log_sizes: Tensor | None = None

    def tokens(self, now: Now, grid: Grid) -> Ordered | None:
        """All of them, in windows; None where nothing is merged."""
        if self._windows is None:
            self._windows = Windows(grid, self.settings.window)
        if not self.settings.num_merged or self._windows.num < FEWEST_WINDOWS:
            return None
        if self._ordered is None:
            self._ordered = Ordered(self._windows.order(), grid, self._windows.area)
        return self._ordered

    def saw(self, x: Tensor, v: Tensor, now: Now) -> None:
        """Nothing is kept from step to step."""

    def forward(self, trunk: Trunk, now: Now) -> Tensor:
        windows = self._windows
        if self._ordered is None or windows is None:
            return trunk.compute()
        place, state = self._place(trunk, windows), trunk.inputs
        destinations = self._chosen(now, windows, state[0].device)[place.windows]
        share = self._share(windows.num * self.settings.num_merged, len(self._ordered.rows))
        for index in range(trunk.num_blocks):
            merge = match(state[0], destinations, self.settings.num_merged, windows.area)
            self._log_sizes = self._sizes(trunk, merge, place).log() if self.settings.proportional else None
            few = (merge.merged(state[0]), *state[1:])
            found = trunk.run_attend_on(index, few, merge.rows, place.counts, share)
            state = trunk.run_finish(index, state, (merge.spread(found[0]), *found[1:]))
        self._log_sizes = None
        return trunk.image(state)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, here: Here, dense: Attention) -> Tensor:
        if self._log_sizes is None:
            return dense(q, k, v)
        return weighted(q, k, v, F.pad(self._log_sizes, (0, k.shape[2] - len(self._log_sizes))))

    def _chosen(self, now: Now, windows: Windows, device: torch.device) -> Tensor:
        """Destinations of all windows, the same for both branches of guidance.

        Those of all steps go to the device at once, in the stage's first step: the host waits for every copy.
        """
        if self._destinations is None:
            steps = now.event.steps if self.settings.shuffle else (None,)
            self._destinations = torch.stack([windows.destinations(step) for step in steps]).to(device)
        return self._destinations[now.since if self.settings.shuffle else 0]

    def _place(self, trunk: Trunk, windows: Windows) -> Place:
        group, total = trunk.sequence, windows.tokens[0] * windows.tokens[1] * windows.tokens[2]
        counts = shares(total, 1 if group is None else group.size, unit=windows.area)
        ends = [min(sum(counts[: rank + 1]) // windows.area, windows.num) for rank in range(len(counts))]
        starts = [0, *ends[:-1]]
        merged = ((end - start) * self.settings.num_merged for start, end in zip(starts, ends, strict=True))
        fewer = tuple(count - less for count, less in zip(counts, merged, strict=True))
        rank = 0 if group is None else group.rank
        return Place(slice(starts[rank], ends[rank]), fewer)

    def _sizes(self, trunk: Trunk, merge: Merge, place: Place) -> Tensor:
        """Of the image tokens of all ranks, one rank's after the other's."""
        return merge.sizes if trunk.sequence is None else trunk.sequence.gather_rows(merge.sizes, place.counts)

    def _share(self, num_fewer: int, num_image: int) -> float:
        """Of the operations of self-attention and its linear layers with all tokens: what is left of them."""
        width, total = self.geometry.heads * self.geometry.head_dim, num_image + self.geometry.text_tokens

        def operations(num: int) -> float:
            return num * (8.0 * width * width + 4.0 * num * width)

        return operations(total - num_fewer) / operations(total)


def mistakes(settings: TomeSettings, request: Request) -> list[str]:
    grid, patch = request.geometry.latent_grid(request.shape), request.geometry.patch
    t, h, w = (cells // size for cells, size in zip(grid, patch, strict=True))
    lines = []
    if settings.ratio > 0 and settings.num_merged == 0:
        area = settings.window[0] * settings.window[1]
        lines.append(
            f"ratio is {settings.ratio:g}, which is no whole token of a window of {area}: take {1 / area:g} or more, a larger "
            "window, or 0"
        )
    if (num := Windows((t, h, w), settings.window).num) < FEWEST_WINDOWS:
        lines.append(
            f"window is {list(settings.window)} tokens and {t} frames of {h} x {w} have {num} windows; with fewer than "
            f"{FEWEST_WINDOWS} nothing is merged: take a smaller one, [{CELL}, {CELL}] at least, or a larger video"
        )
    return lines


METHODS = {
    "tome": Method(
        "tome", "accelerator", "tokens", "ToMe, token merging, arXiv 2210.09461 and 2303.17604",
        "tokens of a frame that are alike are one in self-attention", "reconstructed",
        make=Tome,
        settings=TomeSettings,
        mistakes=mistakes,
        whole_forwards=False,
        kept_tensors=lambda settings, geometry: 0.0,
    )
}  # fmt: skip
