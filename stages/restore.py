"""Frames that a planner left out, made from their neighbours after decoding (VGDFR, arXiv 2504.12259, section on restoration).

By a network that the user gives, or by motion-compensated interpolation: optical flow both ways, and both neighbours moved to
the time between (the flow there as in Super SloMo, arXiv 1712.00080, equation 4).
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from orchestrator.types import Merged
from orchestrator.vgdfr import kept_frames
from stages.flow import flow, moved
from stages.video import Frames

MULTIPLE = 64
"""Of height and width that RIFE takes."""
NEAR = 5
"""Cells a side over which two guesses are held against each other."""


class Interpolator(Protocol):
    """Makes frames between two."""

    name: str
    """As records tell it."""

    def between(self, before: Tensor, after: Tensor, ratios: Sequence[float]) -> Iterator[Tensor]:
        """Frames ``[1, 3, H, W]`` in [0, 1], at these shares of the time from ``before`` to ``after``."""
        ...


class Motion:
    """Motion-compensated interpolation."""

    name = "motion"

    def between(self, before: Tensor, after: Tensor, ratios: Sequence[float]) -> Iterator[Tensor]:
        there, back = flow(before, after), flow(after, before)
        for t in ratios:
            to_before = t * t * back - t * (1 - t) * there
            to_after = (1 - t) ** 2 * there - t * (1 - t) * back
            yield _mixed(moved(before, to_before), moved(after, to_after), before, after, t)


def _mixed(before: Tensor, after: Tensor, still_before: Tensor, still_after: Tensor, t: float) -> Tensor:
    """Both moved frames by their nearness in time; where moving made them less alike than they were, the unmoved ones."""

    def apart(a: Tensor, b: Tensor) -> Tensor:
        return F.avg_pool2d((a - b).abs().mean(1, keepdim=True), NEAR, 1, NEAR // 2, count_include_pad=False)

    mixed, still = (1 - t) * before + t * after, (1 - t) * still_before + t * still_after
    return torch.where(apart(before, after) <= apart(still_before, still_after), mixed, still)


class Rife:
    """A network for any time between two frames, as RIFE (arXiv 2011.06294), in TorchScript: ``(before, after, ratio)``."""

    name = "rife"

    def __init__(self, network: Any) -> None:
        self.network = network

    def between(self, before: Tensor, after: Tensor, ratios: Sequence[float]) -> Iterator[Tensor]:
        height, width = before.shape[2:]
        padding = (0, -width % MULTIPLE, 0, -height % MULTIPLE)
        padded = [F.pad(frame, padding) for frame in (before, after)]
        for ratio in ratios:
            yield self.network(*padded, ratio)[:, :, :height, :width].clamp(0, 1)


def load_network(path: str, device: torch.device) -> Any:
    """Raises ValueError for a file that is not there, or holds weights without their network."""
    if not Path(path).is_file():
        raise ValueError(f"rife {path!r} is no file; leave it out for motion-compensated interpolation")
    try:
        return torch.jit.load(path, map_location=device).eval()
    except RuntimeError as error:
        raise ValueError(
            f"rife {path!r} is no network in TorchScript. Weights alone (flownet.pkl) do not say which of RIFE's networks they "
            "are of: save the network itself by torch.jit.script(network).save(path), called (before, after, ratio); or leave "
            "rife out for motion-compensated interpolation"
        ) from error


@functools.lru_cache(maxsize=2)
def interpolator(path: str | None, sha256: str, device: torch.device) -> Interpolator:
    """What restores frames. Raises ValueError for a file that is not the one a run was planned with."""
    if path is None:
        return Motion()
    network = load_network(path, device)
    found = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    if sha256 not in ("", found):
        raise ValueError(f"rife {path!r} has changed since the run was planned: its SHA-256 is {found}, not {sha256}")
    return Rife(network)


def interpolator_of(settings: Mapping[str, Any], device: torch.device) -> Interpolator:
    """As a planner's settings name it; see :func:`interpolator`."""
    return interpolator(settings.get("rife"), settings.get("rife_sha256", ""), device)


@torch.inference_mode()
def restored(runs: Iterable[Frames], merged: Merged, made: Interpolator, device: torch.device) -> Iterator[Frames]:
    """The whole video of one whose frames are ``merged``, in runs: what was kept as it is, the rest made between its neighbours.

    Raises RuntimeError when other frames come than were kept.
    """
    places = iter(kept_frames(merged))
    last: tuple[int, Any] | None = None
    for run in runs:
        found: list[Any] = []
        for frame in run:
            place = next(places, None)
            if place is None:
                raise RuntimeError(f"more frames were decoded than the {len(kept_frames(merged))} that were kept")
            found += [] if last is None else _between(last, (place, frame), made, device)
            found.append(frame)
            last = place, frame
        yield np.stack(found)
    if last is None or last[0] != merged.num_frames - 1:
        raise RuntimeError(f"fewer frames were decoded than the {len(kept_frames(merged))} that were kept")


def _between(before: tuple[int, Any], after: tuple[int, Any], made: Interpolator, device: torch.device) -> list[Any]:
    """The frames between two places of the video."""
    gap = after[0] - before[0]
    if gap < 2:
        return []
    a, b = (_tensor(frame, device) for _, frame in (before, after))
    return [_frame(x) for x in made.between(a, b, [i / gap for i in range(1, gap)])]


def _tensor(frame: Any, device: torch.device) -> Tensor:
    return torch.from_numpy(frame).to(device).permute(2, 0, 1).unsqueeze(0) / 255


def _frame(x: Tensor) -> Any:
    return x[0].permute(1, 2, 0).mul(255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
