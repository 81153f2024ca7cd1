"""What a model's shape means: grids, tokens, legal sizes. The facts themselves are in ``orchestrator.catalogue``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from orchestrator.types import Grid, VideoShape

Shifts = tuple[float, float, float, float]
SolverName = Literal["euler", "unipc"]
LevelSpacing = Literal["uniform", "training"]

NUM_STAGES = 4
DVG_SHIFT_PATTERN: Shifts = (7.0, 9.0, 11.0, 11.0)


def shifts_from(full_shift: float) -> Shifts:
    """Shift per stage for a model the DVG release does not cover: its own shift times (7, 9, 11, 11) / 7."""
    a, b, c, d = (full_shift * value / DVG_SHIFT_PATTERN[0] for value in DVG_SHIFT_PATTERN)
    return a, b, c, d


def shifted_sigma(step: int, num_steps: int, shift: float) -> float:
    """Ideal noise level of solver step ``step`` of ``num_steps`` (the last, ``step == num_steps``, is 0).

    Rectified flow with timestep shift S: S u / (1 + (S - 1) u), u = 1 - step / num_steps (SD3, Esser et al. 2024).
    This is how DVG's release and Wan's UniPC space their steps, the latter up to the fourth decimal. What runs here is
    ``stages.sampling.sigmas``, which spaces u down to nearly 0 at the last step.
    """
    u = 1.0 - step / num_steps
    return shift * u / (1.0 + (shift - 1.0) * u)


@dataclass(frozen=True)
class ModelGeometry:
    """One model's fixed sizes. ``vae_stride`` and ``patch`` are (time, height, width)."""

    name: str
    heads: int
    head_dim: int
    num_layers: int
    vae_stride: tuple[int, int, int]
    latent_channels: int
    patch: tuple[int, int, int]
    default_shape: VideoShape
    default_steps: int
    default_guidance: float
    full_shift: float
    """Timestep shift of a plain full-grid run."""
    stage_shifts: Shifts
    """Timestep shift of each of DVG's stages."""
    linear_macs: int
    """Multiply-accumulates of one token in all linear layers, for cost estimates."""
    num_params: int
    """Of one transformer: what a GPU must hold, twice for a model with two experts."""
    shifts_follow: bool = True
    """False: the DVG release fixes ``stage_shifts``, whatever the shift of a plain run."""
    family: Literal["wan", "hunyuan", "hunyuan15"] = "wan"
    """Which adapter in ``stages.models`` runs it."""
    image: Literal["none", "optional", "required"] = "none"
    """Whether a first frame can or must be given."""
    solver: SolverName = "euler"
    """The solver that the checkpoint ships with."""
    level_spacing: LevelSpacing = "training"
    """``uniform``: 1 - i / N before the shift; ``training``: down to the scheduler's smallest training level."""
    default_guidance_low: float | None = None
    """Guidance of the low-noise expert, of models with two."""
    boundary: float | None = None
    """Of models with two experts: the noise level, before rounding of the timestep, from which the high-noise one works."""
    meanflow: bool = False
    """The network is told the next step's timestep too (MeanFlow distillation)."""
    text_tokens: int = 0
    """Text tokens that take part in self-attention, at most."""
    hub: str = ""
    """Repository of the weights in diffusers format, by those who published them."""
    dvg_defaults: tuple[tuple[str, str | float | tuple[float, ...]], ...] = ()
    """Knobs of ``DvgConfig`` whose released value does not suit this model, with the value that does."""
    pixel_planner: bool = False
    """Stage sizes are rounded in pixels, not in latent cells (DVG's release does so for HunyuanVideo)."""

    def with_shift(self, full_shift: float) -> ModelGeometry:
        """The same model under another timestep shift, as some of its checkpoints ship; stage shifts keep their ratio to it."""
        a, b, c, d = self.stage_shifts
        ratio = full_shift / self.full_shift if self.shifts_follow else 1.0
        return replace(self, full_shift=full_shift, stage_shifts=(a * ratio, b * ratio, c * ratio, d * ratio))

    @property
    def pixel_multiple(self) -> tuple[int, int]:
        """Height and width in pixels must be multiples of these."""
        return self.vae_stride[1] * self.patch[1], self.vae_stride[2] * self.patch[2]

    def latent_grid(self, shape: VideoShape) -> Grid:
        """Latent cells of a video. Raises ValueError with every broken rule of :meth:`shape_mistakes`."""
        if mistakes := self.shape_mistakes(shape):
            raise ValueError("; ".join(mistakes))
        stride_t, stride_h, stride_w = self.vae_stride
        return (shape.num_frames - 1) // stride_t + 1, shape.height // stride_h, shape.width // stride_w

    def num_tokens(self, grid: Grid) -> int:
        """Transformer tokens of a latent grid."""
        return (grid[0] // self.patch[0]) * (grid[1] // self.patch[1]) * (grid[2] // self.patch[2])

    def shape_mistakes(self, shape: VideoShape) -> list[str]:
        """Every rule the shape breaks, one line each, with the nearest legal values; empty when it is fine."""
        rows = [_frames_mistake(self.name, shape.num_frames, self.vae_stride[0])]
        sizes = zip(("height", "width"), (shape.height, shape.width), self.pixel_multiple, strict=True)
        rows += [_size_mistake(self.name, *size) for size in sizes]
        if shape.fps <= 0:
            rows.append(f"fps is {shape.fps}: it must be at least 1")
        return [row for row in rows if row]


def _frames_mistake(model_name: str, num_frames: int, stride: int) -> str:
    if num_frames > 0 and (num_frames - 1) % stride == 0:
        return ""
    below = max(1, (num_frames - 1) // stride * stride + 1)
    return f"num_frames is {num_frames}: {model_name} needs {stride}k+1 frames, the nearest are {below} and {below + stride}"


def _size_mistake(model_name: str, side: str, size: int, multiple: int) -> str:
    if size > 0 and size % multiple == 0:
        return ""
    below = max(multiple, size // multiple * multiple)
    return f"{side} is {size} pixels: {model_name} needs a multiple of {multiple}, the nearest are {below} and {below + multiple}"
