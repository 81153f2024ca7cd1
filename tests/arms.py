"""One arm and its two stages, for tests that need any."""

from __future__ import annotations

from orchestrator.arms import Arm
from orchestrator.types import Stage

STAGES = (Stage((4, 8, 8), 9, 7.0), Stage((11, 18, 18), 21, 11.0))
ARM = Arm(
    name="dvg",
    model="wan-mini",
    planner="dvg",
    budget=0.5,
    num_steps=30,
    guidance=1.0,
    num_frames=41,
    height=144,
    width=144,
    fps=16,
)
