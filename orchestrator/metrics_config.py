"""Which metrics a sweep measures of its videos, against which arm, and when."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

MetricName = Literal[
    "all", "reference", "free", "semantic",
    "psnr", "ssim", "lpips", "latent_cosine", "flicker", "motion", "static", "frames_ok",
    "semantic_colour", "semantic_shape", "semantic_size", "semantic_direction", "semantic_speed", "semantic_background",
    "semantic_camera",
]  # fmt: skip
"""A metric, or one of the first four for several: as in ``experiments.metrics.names``, which says what each is."""


class MetricsConfig(BaseModel):
    """What is measured of the finished videos; see docs/metrics.md."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    names: list[MetricName] = ["psnr", "ssim"]
    """Metrics or groups of them; an empty list: none. What needs weights that are not there is left out, with the reason."""
    against: str | None = None
    """The arm that the others are compared with; None: the sweep's reference."""
    during: bool = True
    """Measure on the nodes while the sweep goes on, with the time that nobody else wants; False: when it has ended."""
    tasks_per_node: int = Field(1, ge=1)
    """Videos measured at a time on each node while the sweep goes on."""


AFTERWARDS = MetricsConfig(during=False)
"""Of a spec that says nothing about metrics."""


def against_mistakes(config: MetricsConfig, arms: Collection[str]) -> list[str]:
    """``against`` must be an arm."""
    if config.against is None or config.against in arms or not arms:
        return []
    return [f"metrics.against: {config.against!r} is not an arm; arms: {', '.join(arms)}"]
