"""VBench's official normalisation and weights (its ``scripts/constant.py`` and ``cal_final_score.py``).

A score counts as ``(raw - least) / (most - least) * weight``, not clipped. A group's total is the weighted mean of its
scores, and the whole total the weighted mean of its groups'.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.suites import I2V_DIMENSIONS, I2V_QUALITY_DIMENSIONS, QUALITY_DIMENSIONS, SEMANTIC_DIMENSIONS


@dataclass(frozen=True)
class Scale:
    """What raw score counts as 0 and as 1, and how much the dimension weighs in its group."""

    least: float = 0.0
    most: float = 1.0
    weight: float = 1.0

    def normalised(self, raw: float) -> float:
        return (raw - self.least) / (self.most - self.least)


_PLAIN = Scale()
_SCALES = {
    "subject_consistency": Scale(0.1462, 1.0),
    "background_consistency": Scale(0.2615, 1.0),
    "temporal_flickering": Scale(0.6293, 1.0),
    "motion_smoothness": Scale(0.706, 0.9975),
    "dynamic_degree": Scale(weight=0.5),
    "scene": Scale(0.0, 0.8222),
    "appearance_style": Scale(0.0009, 0.2855),
    "temporal_style": Scale(0.0, 0.364),
    "overall_consistency": Scale(0.0, 0.364),
    "camera_motion": Scale(weight=0.1),
    "i2v_subject": Scale(0.1462, 1.0),
    "i2v_background": Scale(0.2615, 1.0),
}
"""Those that are not 0 to 1 with weight 1."""


@dataclass(frozen=True)
class Scheme:
    """How one benchmark's dimensions make its totals. ``unweighted`` dimensions are evaluated but count in none."""

    name: str
    groups: Mapping[str, tuple[str, ...]]
    weights: Mapping[str, float]
    unweighted: tuple[str, ...] = ()

    @property
    def counted(self) -> tuple[str, ...]:
        return tuple(dim for dims in self.groups.values() for dim in dims)

    @property
    def dimensions(self) -> tuple[str, ...]:
        return self.counted + self.unweighted


T2V = Scheme("vbench", {"quality": QUALITY_DIMENSIONS, "semantic": SEMANTIC_DIMENSIONS}, {"quality": 4.0, "semantic": 1.0})
I2V = Scheme(
    "vbench-i2v",
    {"quality": I2V_QUALITY_DIMENSIONS, "i2v": I2V_DIMENSIONS},
    {"quality": 1.0, "i2v": 1.0},
    unweighted=("temporal_flickering",),
)
"""VBench-I2V evaluates temporal flickering, but no total counts it."""


def scale(dimension: str) -> Scale:
    return _SCALES.get(dimension, _PLAIN)
