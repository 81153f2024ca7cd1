"""W2SD, weak-to-strong diffusion with reflection (arXiv 2502.00473): a step forward by the strong, back by the weak, then on.

From a latent at level s the strong velocity leads to the next level, the weak one from there back to s. What is left of the two
is a shift of (strong - weak) times the step, to first order: towards what the strong one knows and the weak one does not. Strong
is the clip's own guidance here, weak a lower one, of the same weights.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from orchestrator.cost import num_branches
from orchestrator.methods import Method, Request, Settings
from orchestrator.model_geometry import ModelGeometry
from stages.accelerators.base import Now
from stages.accelerators.reflecting import Velocity
from stages.sampling import NoiseLevel


class W2sdSettings(Settings):
    """``steps: 0`` and ``strength: 0`` leave everything as it is, bit for bit."""

    steps: int = Field(3, ge=0)
    """The clip's first steps that are reflected, as many of them as the first stage has before its transition, and never the
    clip's last. Each costs two forwards more."""
    weak_guidance: float = Field(1.0, ge=0, allow_inf_nan=False)
    """Guidance of the way back: 1 goes by the prompt alone, 0 by the negative prompt alone."""
    strength: float = Field(1.0, ge=0, le=2, allow_inf_nan=False)
    """How much of the shift is taken: 1 is the published method, less is gentler."""


class W2sd:
    """Of one stage."""

    def __init__(self, settings: W2sdSettings, geometry: ModelGeometry) -> None:
        self.settings = settings

    def reflect(self, x: Tensor, now: Now, onward: NoiseLevel, velocity: Velocity) -> Tensor | None:
        """Both ways are Euler's, whatever the solver: they are one step long and leave no history."""
        own = self.settings
        if now.event.stage > 0 or now.step >= own.steps or own.strength == 0:
            return None
        length = onward.sigma - now.level.sigma
        there = x + length * velocity(x, now.level, None)
        back = there - length * velocity(there, onward, own.weak_guidance)
        return x + own.strength * (back - x)


def mistakes(settings: W2sdSettings, request: Request) -> list[str]:
    if num_branches(request.geometry, request.guidance) == 1:
        return [
            f"{_why_unguided(request)}, so there is no weaker guidance to step back by: take a model with guidance above 1 "
            "(wan-mini, Wan, HunyuanVideo-1.5 without distillation), or leave w2sd out"
        ]
    if settings.weak_guidance >= request.guidance:
        return [
            f"weak_guidance is {settings.weak_guidance:g} and guidance {request.guidance:g}: the way back must have less; "
            "1 goes by the prompt alone"
        ]
    return []


def _why_unguided(request: Request) -> str:
    name = request.geometry.name
    if request.geometry.meanflow:
        return f"{name} is distilled to mean velocities over its own steps and to one branch of guidance"
    if request.geometry.family == "hunyuan":
        return f"{name} has guidance distilled into its weights and makes one forward for a step"
    return f"guidance is {request.guidance:g}, so {name} makes one forward for a step"


METHODS = {
    "w2sd": Method(
        "w2sd", "accelerator", "reflection", "W2SD, arXiv 2502.00473",
        "quality at extra cost: first steps are taken, taken back under weaker guidance, and taken again", "reconstructed",
        make=W2sd,
        settings=W2sdSettings,
        mistakes=mistakes,
        needs="guidance above 1; two forwards more for each step it reflects",
        kept_tensors=lambda settings, geometry: 0.0,
    )
}  # fmt: skip
