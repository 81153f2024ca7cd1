"""How near videos come to what their captions, and their first frames, say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from experiments.embedded.checker import ATTRIBUTES, check
from experiments.embedded.render import render
from experiments.embedded.scenes import Scene
from experiments.metrics.likeness import compare
from orchestrator.geometry import model as geometry_of
from stages.models import embedded

SHAPE = geometry_of(embedded.NAME).default_shape
NUM_FIRST = 5
"""Frames compared with the given image: itself and what the first moving latent frame covers."""


def first_frames(scenes: Sequence[Scene], height: int = SHAPE.height, width: int = SHAPE.width) -> Tensor:
    """The rendered first frames [B, 3, H, W] in [-1, 1], in whole pixel values as an image file holds them."""
    images = render(scenes, 5, height, width)[:, :, 0]
    return images.add(1).mul(127.5).round().div(127.5).sub(1)


def shares(rows: Sequence[Mapping[str, Any]], scenes: Sequence[Scene]) -> dict[str, float]:
    """Share of videos that show each attribute, over those in which it can be seen."""
    seen = {key: [row[key] for row in rows if row[key] is not None] for key in ATTRIBUTES}
    seen["course"] = seen["direction"]
    seen["direction"] = [row["direction"] for row, scene in zip(rows, scenes, strict=True) if says_direction(scene)]
    return {key: sum(map(bool, values)) / max(1, len(values)) for key, values in seen.items()}


def says_direction(scene: Scene) -> bool:
    """The caption holds left, right, up or down of a thing."""
    return any(thing.direction != "none" for thing in scene.things)


def judge(video: NDArray[np.uint8], scene: Scene, with_image: bool) -> dict[str, Any]:
    """What of its scene a video [F, H, W, 3] shows, and how near it comes to the scene where it was given its first frame."""
    return {**check(video, scene), **(likeness_of(video, scene) if with_image else {})}


def medians(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Median PSNR (dB) and SSIM of `judge`'s rows."""
    return {key: float(np.median([row[key] for row in rows])) for key in rows[0] if key.endswith(("_psnr", "_ssim"))}


def likeness_of(video: NDArray[np.uint8], scene: Scene) -> dict[str, float]:
    """One video against the image it was given, at its first frame and the next few, and against the whole rendered scene."""
    truth = pixels(render([scene], SHAPE.num_frames, SHAPE.height, SHAPE.width)[0])
    still = truth[:1].repeat(NUM_FIRST - 1, 0)
    compared = {"first": (video[:1], truth[:1]), "next": (video[1:NUM_FIRST], still), "scene": (video, truth)}
    return {f"{name}_{key}": value for name, pair in compared.items() for key, value in compare(*pair).items()}


def pixels(video: Tensor) -> NDArray[np.uint8]:
    """A video [3, F, H, W] in [-1, 1] as uint8 [F, H, W, 3]."""
    return video.clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8).permute(1, 2, 3, 0).cpu().numpy()
