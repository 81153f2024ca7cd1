"""Pyramid Attention Broadcast (arXiv 2408.12588): what self-attention finds is used for several steps in the middle of sampling.

Covered is self-attention with its projections, of image and of text tokens where they are attended to together; all blocks attend
to all frames at once, so there is no spatial and temporal attention to tell apart. Attention to the prompt, which Wan has apart,
is computed at every step, as in diffusers unless told otherwise: it is a few percent of a block.
"""

from __future__ import annotations

from pydantic import Field, model_validator
from torch import Tensor

from orchestrator.geometry import ModelGeometry
from orchestrator.methods import Method, Settings
from stages.accelerators.base import Now
from stages.accelerators.trunk import State, Trunk


class PabSettings(Settings):
    """The defaults are diffusers'."""

    interval: int = Field(2, ge=1)
    """Self-attention is computed every so many steps, counted from the beginning of a stage; 1: at every step."""
    timesteps: tuple[float, float] = (100, 800)
    """Between these timesteps (1000 x noise level); outside it is computed at every step."""

    @model_validator(mode="after")
    def _check(self) -> PabSettings:
        low, high = self.timesteps
        if not 0 <= low < high <= 1000:
            raise ValueError(f"timesteps is {self.timesteps}: the first must be below the second, both within 0 and 1000")
        return self

    def reuses(self, since: int, timestep: float) -> bool:
        low, high = self.timesteps
        return since % self.interval != 0 and low < timestep < high


class Pab:
    """Of one stage."""

    def __init__(self, settings: PabSettings, geometry: ModelGeometry) -> None:
        self.settings = settings
        self._found: dict[int, list[State]] = {}

    def forward(self, trunk: Trunk, now: Now) -> Tensor:
        kept = None if now.must_compute else self._found.get(now.branch)
        if kept is None or not self.settings.reuses(now.since, now.level.timestep):
            return self._compute(trunk, now)
        state = trunk.inputs
        for index, found in enumerate(kept):
            state = trunk.run_finish(index, state, found)
        return trunk.image(state)

    def _compute(self, trunk: Trunk, now: Now) -> Tensor:
        """Attention is kept only where the next step will use it."""
        self._found.pop(now.branch, None)
        if not self.settings.reuses(now.since + 1, now.level.timestep_next):
            return trunk.compute()
        state, kept = trunk.inputs, self._found.setdefault(now.branch, [])
        for index in range(trunk.num_blocks):
            kept.append(trunk.run_attend(index, state))
            state = trunk.run_finish(index, state, kept[-1])
        return trunk.image(state)


METHODS = {
    "pab": Method(
        "pab", "accelerator", "cache", "Pyramid Attention Broadcast, arXiv 2408.12588",
        "what self-attention finds is used for two steps between timesteps 800 and 100", "release",
        make=Pab,
        settings=PabSettings,
        needs="memory for what every block's self-attention finds, a tensor of the tokens' size each for each branch of guidance",
        whole_forwards=False,
        kept_tensors=lambda settings, geometry: geometry.num_layers if settings.interval > 1 else 0,
    )
}  # fmt: skip
