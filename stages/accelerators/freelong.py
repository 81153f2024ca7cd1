"""FreeLong (arXiv 2407.19918): clips longer than a model was trained on, coarse content from all frames, detail from those near.

Where a stage has more latent frames than the training clips had, every layer attends twice: to all frames, and within a sliding
window of as many as there were in training. The answer has the low frequencies of what the first finds, over time, height and
width, and the high ones of what the second finds. It costs more than dense attention, and says so.
"""

from __future__ import annotations

from itertools import groupby

import torch
from pydantic import Field
from torch import Tensor

from orchestrator.methods import Method, Settings
from orchestrator.model_geometry import ModelGeometry
from orchestrator.types import Grid
from parallel.seam import Attention
from stages.accelerators.attending import Here, Stopwatch


class FreeLongSettings(Settings):
    """The cut-off is the paper's."""

    window: int | None = Field(None, ge=1)
    """Latent frames that a frame sees nearby, along time in tokens. None: those of the model's own length of clip."""
    cutoff: float = Field(0.25, gt=0, le=100)
    """Standard deviation of the Gaussian that low frequencies are weighted by; 1 is the highest frequency of an axis."""


class FreeLong:
    """Of one stage. With a window of all its frames it is dense attention, bit for bit."""

    def __init__(self, settings: FreeLongSettings, geometry: ModelGeometry) -> None:
        self.window = settings.window or trained_frames(geometry)
        self.cutoff = settings.cutoff
        self._weights: Tensor | None = None

    def attend(self, q: Tensor, k: Tensor, v: Tensor, here: Here, dense: Attention) -> Tensor:
        is_long = here.tokens[0] > self.window
        with Stopwatch(q.device) as attending:
            found = dense(q, k, v)
            if is_long:
                found = self._blended(found, self._nearby(q, k, v, here, dense), here)
        here.log.add(here, 1.0 + (self._more(q.shape[2], here) if is_long else 0.0), attending=attending)
        return found

    def _more(self, num_tokens: int, here: Here) -> float:
        """Pairs of the window, as a share of all pairs."""
        seen = self.window * here.tokens[1] * here.tokens[2] + num_tokens - here.num_image
        return here.num_image * seen / num_tokens**2

    def _nearby(self, q: Tensor, k: Tensor, v: Tensor, here: Here, dense: Attention) -> Tensor:
        """What image tokens find in their window and in the text."""
        per_frame, num = here.tokens[1] * here.tokens[2], here.num_image

        def seen(x: Tensor, first: int) -> Tensor:
            window = x[:, :, first * per_frame : (first + self.window) * per_frame]
            return window if x.shape[2] == num else torch.cat([window, x[:, :, num:]], dim=2)

        def found(first: int, frames: range) -> Tensor:
            return dense(q[:, :, frames[0] * per_frame : (frames[-1] + 1) * per_frame], seen(k, first), seen(v, first))

        return torch.cat([found(first, frames) for first, frames in windows(here.tokens[0], self.window)], dim=2)

    def _blended(self, whole: Tensor, nearby: Tensor, here: Here) -> Tensor:
        """Text keeps what it found among all. One head after the other: spectra are large."""
        if self._weights is None:
            self._weights = low_pass(here.tokens, self.cutoff, whole.device)
        num, out = here.num_image, whole.clone()
        for head in range(whole.shape[1]):
            more = whole[0, head, :num].float() - nearby[0, head].float()
            spectrum = torch.fft.rfftn(more.view(*here.tokens, -1), dim=(0, 1, 2)) * self._weights
            low = torch.fft.irfftn(spectrum, s=here.tokens, dim=(0, 1, 2))
            out[0, head, :num] = nearby[0, head].float() + low.flatten(0, 2)
        return out


def trained_frames(geometry: ModelGeometry) -> int:
    """Along time in tokens, of a clip of the model's own length."""
    return geometry.latent_grid(geometry.default_shape)[0] // geometry.patch[0]


def windows(num_frames: int, size: int) -> list[tuple[int, range]]:
    """The first frame of a window, and the frames that see it: those in its middle, at the clip's ends those beside it too."""
    starts = [min(max(frame - size // 2, 0), num_frames - size) for frame in range(num_frames)]
    grouped = [(first, list(frames)) for first, frames in groupby(range(num_frames), starts.__getitem__)]
    return [(first, range(frames[0], frames[-1] + 1)) for first, frames in grouped]


def low_pass(grid: Grid, cutoff: float, device: torch.device) -> Tensor:
    """A Gaussian around the mean, for the half spectrum that ``rfftn`` gives: ``[t, h, w // 2 + 1, 1]``."""
    t, h, w = grid
    along = (torch.fft.fftfreq(size, 0.5, device=device) for size in (t, h))
    squares = [axis.square() for axis in (*along, torch.fft.rfftfreq(w, 0.5, device=device))]
    distance = squares[0][:, None, None] + squares[1][None, :, None] + squares[2]
    return torch.exp(-distance / (2 * cutoff**2)).unsqueeze(-1)


METHODS = {
    "freelong": Method(
        "freelong", "accelerator", "attention", "FreeLong, arXiv 2407.19918",
        "longer clips than a model was trained on: all frames for coarse content, a window of the trained length for detail; "
        "costs more than dense attention", "reconstructed",
        make=FreeLong,
        settings=FreeLongSettings,
        kept_tensors=lambda settings, geometry: 0.0,
    )
}  # fmt: skip
