"""How much detail and motion a clean sketch shows: DVG's equations 3 and 4 (arXiv 2605.21042), by the measures' names.

Every measure takes a clean latent [B, C, T, H, W] and gives one number in [0, 1]; larger means more demand.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from orchestrator.dvg_config import DvgConfig, SpatialDemand, TemporalDemand
from orchestrator.types import Demand
from stages.detail import SPATIAL
from stages.motion import FLOW_HALF, TEMPORAL

__all__ = [
    "FLOW_HALF",
    "SPATIAL",
    "TEMPORAL",
    "DemandNotFinite",
    "Pixels",
    "brightness",
    "measure",
    "spatial_demand",
    "temporal_demand",
]

Pixels = Callable[[Tensor], Tensor]
"""Decodes a clean latent [1, C, T, H, W] to video [1, 3, F, H, W] in [-1, 1]."""


class DemandNotFinite(RuntimeError):
    """A demand that is no number, or was measured on values that are none."""


@torch.inference_mode()
def measure(x0: Tensor, config: DvgConfig) -> Demand:
    """Both demands of a clean latent [B, C, T, H, W]. One latent frame has no motion to compare: neutral, zero, zero.

    The host waits for the device once. Raises DemandNotFinite.
    """
    x0 = x0.float()
    neutral = x0.shape[2] < 2
    pair = (x0.new_zeros(()),) * 2 if neutral else (SPATIAL[config.spatial_demand](x0), TEMPORAL[config.temporal_demand](x0))
    finite, spatial, temporal = torch.stack((x0.isfinite().all().float(), *pair)).tolist()
    if not finite:
        raise DemandNotFinite("the sketch to be measured is not finite")
    if not (math.isfinite(spatial) and math.isfinite(temporal)):
        raise DemandNotFinite(f"the demand is not finite: detail {spatial}, motion {temporal}")
    return Demand(spatial, temporal, neutral)


def spatial_demand(x0: Tensor, method: SpatialDemand = "fft") -> float:
    """Spatial demand in [0, 1]; ``fft`` is the release: the share of energy beyond half the largest frequency."""
    return float(SPATIAL[method](x0.float()))


def temporal_demand(x0: Tensor, method: TemporalDemand = "global_lk") -> float:
    """Temporal demand in [0, 1] of at least two latent frames; ``global_lk`` is the release."""
    return float(TEMPORAL[method](x0.float()))


def brightness(video: Tensor) -> Tensor:
    """Video [B, 3, F, H, W] in [-1, 1] to its brightness [B, 1, F, H, W] in [0, 1] (Rec. 601)."""
    red, green, blue = video.float().add(1).div(2).unbind(1)
    return (0.299 * red + 0.587 * green + 0.114 * blue).unsqueeze(1)
