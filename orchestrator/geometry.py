"""Shapes of every supported model: heads, strides, patches and timestep shifts. The one home of these facts."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from orchestrator.types import Grid, VideoShape

Shifts = tuple[float, float, float, float]

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
    dvg_defaults: tuple[tuple[str, str | float], ...] = ()
    """Knobs of ``DvgConfig`` whose released value does not suit this model, with the value that does."""
    pixel_planner: bool = False
    """Stage sizes are rounded in pixels, not in latent cells (DVG's release does so for HunyuanVideo)."""

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

    def legal_degrees(self, max_ranks: int) -> tuple[int, ...]:
        """Sequence-parallel degrees up to ``max_ranks``: powers of two (slices nest) that divide the heads."""
        degrees = (1 << i for i in range(max(max_ranks, 1).bit_length()))
        return tuple(degree for degree in degrees if self.heads % degree == 0)


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


WAN_MINI_SHIFT = 3.0
WAN_MINI_CHANNELS = 16
WAN_MINI_DVG = (
    ("demand_space", "pixels"),
    ("spatial_demand", "highpass"),
    ("temporal_demand", "dense_lk"),
    ("sharpness", 4.0),
)
"""Its latent cells each hold a whole texture period, so the released measures on the latent follow the content too little
(``experiments/LOG.md`` has the figures)."""
WAN_480P = VideoShape(81, 480, 832, 16)


def _wan(
    name: str,
    heads: int,
    num_layers: int,
    default_steps: int,
    default_guidance: float,
    full_shift: float,
    stage_shifts: Shifts,
    *,
    head_dim: int = 128,
    stride: int = 8,
    latent_channels: int = 16,
    default_shape: VideoShape = WAN_480P,
    dvg_defaults: tuple[tuple[str, str | float], ...] = (),
) -> ModelGeometry:
    """A model of the Wan family: one transformer layout, patch 1 x 2 x 2, four-fold temporal compression."""
    return ModelGeometry(
        name=name,
        heads=heads,
        head_dim=head_dim,
        num_layers=num_layers,
        vae_stride=(4, stride, stride),
        latent_channels=latent_channels,
        patch=(1, 2, 2),
        default_shape=default_shape,
        default_steps=default_steps,
        default_guidance=default_guidance,
        full_shift=full_shift,
        stage_shifts=stage_shifts,
        dvg_defaults=dvg_defaults,
    )


def _constant(shift: float) -> Shifts:
    return shift, shift, shift, shift


_ALL = (
    ModelGeometry(
        name="hunyuanvideo",
        heads=24,
        head_dim=128,
        num_layers=60,
        vae_stride=(4, 8, 8),
        latent_channels=16,
        patch=(1, 2, 2),
        default_shape=VideoShape(125, 720, 1280, 24),
        default_steps=50,
        default_guidance=6.0,
        full_shift=7.0,
        stage_shifts=DVG_SHIFT_PATTERN,
        pixel_planner=True,
    ),
    ModelGeometry(
        name="hunyuanvideo-1.5",
        heads=16,
        head_dim=128,
        num_layers=54,
        vae_stride=(4, 16, 16),
        latent_channels=32,
        patch=(1, 1, 1),
        default_shape=VideoShape(121, 480, 848, 24),
        default_steps=50,
        default_guidance=6.0,
        full_shift=5.0,  # the 480p checkpoints; 720p text-to-video was made for 9
        stage_shifts=DVG_SHIFT_PATTERN,
    ),
    _wan("wan2.1-1.3b", 12, 30, 50, 5.0, 5.0, _constant(5.0)),
    _wan("wan2.1-14b", 40, 40, 50, 5.0, 5.0, shifts_from(5.0)),
    _wan("wan2.2-a14b", 40, 40, 40, 4.0, 12.0, (5.0, 9.0, 11.0, 11.0)),
    _wan(
        "wan2.2-ti2v-5b",
        24,
        30,
        50,
        5.0,
        5.0,
        shifts_from(5.0),
        stride=16,
        latent_channels=48,
        default_shape=VideoShape(121, 704, 1280, 24),
    ),
    _wan(
        "wan-mini",
        8,
        7,
        30,
        2.0,
        WAN_MINI_SHIFT,
        _constant(WAN_MINI_SHIFT),  # so that a full run and a reduced one share one schedule
        head_dim=32,
        latent_channels=WAN_MINI_CHANNELS,
        dvg_defaults=WAN_MINI_DVG,
        default_shape=VideoShape(41, 144, 144, 16),
    ),
)

MODELS: dict[str, ModelGeometry] = {geometry.name: geometry for geometry in _ALL}

RUNNABLE = ("wan-mini", "wan2.1-1.3b", "wan2.1-14b")
"""Models with an adapter in ``stages.models``; the others can be planned."""


def model(name: str) -> ModelGeometry:
    """Geometry of a model by name. Raises ValueError with the choices and the nearest name."""
    if name in MODELS:
        return MODELS[name]
    nearest = difflib.get_close_matches(name.lower(), MODELS, n=1, cutoff=0.4)
    hint = f", did you mean {nearest[0]!r}?" if nearest else "."
    raise ValueError(f"model {name!r} is not known{hint} Choices: {', '.join(MODELS)}")
