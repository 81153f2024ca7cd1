"""Measures what a model's forwards, transitions and decodes cost on this device, for ``orchestrator.calibration``."""

from __future__ import annotations

import functools
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Literal

import torch
from PIL import Image

from experiments.calibrate_fit import About, compose
from orchestrator.actions import DvgConfig, candidates
from orchestrator.calibration import Calibration, DecodeRow, StepRow, device_name
from orchestrator.geometry import MODELS
from orchestrator.model_geometry import ModelGeometry
from orchestrator.schedules import stage_grids
from orchestrator.types import Grid, VideoShape
from stages import attention
from stages.denoise import clock_s
from stages.models.base import Condition, Model, Request
from stages.planners import passage
from stages.resize import nested_axes
from stages.sampling import NoiseLevel

LEVEL = NoiseLevel(0.5, 500.0, 450.0)
"""Any level costs the same."""
ENOUGH_S = 15.0
"""A forward that takes long varies little."""
BRIEF_S = 2.0
"""Forwards shorter than this warm up twice."""
Alike = Callable[[float], float]
"""This rank's seconds to the most of all ranks, so that they decide alike."""
PROMPT = "a red circle moves over a striped background"


@dataclass(frozen=True)
class Settings:
    """What to measure. ``grids`` are latent; the last two say how the model was loaded, to be recorded."""

    shape: VideoShape
    grids: tuple[Grid, ...]
    repeats: int = 5
    """At most: a grid is left after ``ENOUGH_S`` of timed forwards."""
    decode: bool = True
    attention: str = "auto"
    compiled: bool = False


def default_grids(geometry: ModelGeometry, shape: VideoShape) -> tuple[Grid, ...]:
    """Nine grids as DVG's stages have them, from a sketch's to the full one; fewest tokens first.

    Raises ValueError for a shape that the model does not take.
    """
    full = geometry.latent_grid(shape)
    rates = product((0.5, 0.7, 1.0), (0.25, 0.5, 1.0))
    grids = {stage_grids(geometry, full, (spatial, 1.0), (temporal, 1.0))[0] for spatial, temporal in rates}
    return tuple(sorted(grids, key=lambda grid: (geometry.num_tokens(grid), grid)))


def check_grids(geometry: ModelGeometry, shape: VideoShape, grids: Sequence[Grid]) -> None:
    """Raises ValueError, naming the grid and the rule, for one that the model cannot run or fewer than two sizes."""
    full = geometry.latent_grid(shape)
    for grid in grids:
        name = "x".join(map(str, grid))
        if any(side < 1 or side > most for side, most in zip(grid, full, strict=True)):
            raise ValueError(f"grid {name} is not within the full latent grid {'x'.join(map(str, full))} of the video")
        if any(side % multiple for side, multiple in zip(grid, geometry.patch, strict=True)):
            raise ValueError(f"grid {name}: {geometry.name} needs multiples of {'x'.join(map(str, geometry.patch))}")
    if len({geometry.num_tokens(grid) for grid in grids}) < 2:
        raise ValueError("at least two grids with different numbers of tokens are needed to fit a curve")


def measure(
    model: Model,
    settings: Settings,
    on_row: Callable[[StepRow], None] = lambda row: None,
    condition: Condition | None = None,
    weights: Literal["given", "random"] = "given",
) -> Calibration:
    """Runs the model with one branch of guidance, in this process alone. ``on_row`` hears of each grid as it is done.

    ``condition`` None: a prompt is encoded. Raises ValueError for grids that do not fit.
    """
    check_grids(model.geometry, settings.shape, settings.grids)
    rows, condition = [], condition or make_condition(model, settings.shape)
    for row in step_rows(model, condition, settings):
        on_row(row)
        rows.append(row)
    return compose(rows, about(model, condition, settings, weights), [decode_row(model, settings)] if settings.decode else [])


def about(model: Model, condition: Condition, settings: Settings, weights: Literal["given", "random"]) -> About:
    """What is measured here; the transitions are measured for it."""
    return About(
        model=model.geometry.name,
        weights=weights,
        device=_device(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
        attention=_attention(model, settings.attention),
        compiled=settings.compiled,
        num_threads=torch.get_num_threads() if model.device.type == "cpu" else None,
        torch=str(torch.__version__),
        transition_token_s=_transition_token_s(model, settings),
        num_sms=torch.cuda.get_device_properties(model.device).multi_processor_count if model.device.type == "cuda" else None,
        num_text=num_text(condition),
    )


def num_text(condition: Condition) -> int:
    """Tokens that encode its prompt, and its image where an encoder saw that."""
    return sum(rows.shape[1] for rows in condition.positive.tensors.values() if rows.ndim == 3)


def _own(seconds: float) -> float:
    return seconds


def step_rows(
    model: Model, condition: Condition, settings: Settings, degree: int = 1, backend: str = "native", alike: Alike = _own
) -> Iterator[StepRow]:
    """One per grid. With ``degree`` above 1 all ranks do this at once, the model being attached, and ``alike`` joins them."""
    for grid in settings.grids:
        seconds = _forward_seconds(model, condition, grid, settings, alike)
        tokens, median_s = model.geometry.num_tokens(grid), alike(statistics.median(seconds))
        yield StepRow(grid=grid, tokens=tokens, degree=degree, backend=backend, median_s=median_s, repeats=len(seconds))


def make_condition(model: Model, shape: VideoShape) -> Condition:
    """One branch, with a grey first frame where the model needs one."""
    if model.geometry.image != "required":
        return model.encode(Request(PROMPT, shape, guidance=1.0))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "grey.png"
        Image.new("RGB", (shape.width, shape.height), (128, 128, 128)).save(path)
        return model.encode(Request(PROMPT, shape, guidance=1.0, image=str(path)))


def _can_be_made(geometry: ModelGeometry) -> bool:
    """Whether its transformer is diffusers' default one of the family."""
    return geometry.family == "hunyuan15" or (geometry.image == "none" and geometry.heads in (24, 40))


def random_model(geometry: ModelGeometry, settings: Settings) -> tuple[Model, Condition]:
    """The model at its real size on the first GPU, with weights made there, and a made-up prompt.

    Raises ValueError without a GPU, and for a model whose size is not among those known to the benchmarks.
    """
    names = [other.name for other in MODELS.values() if _can_be_made(other)]
    if geometry.name not in names:
        raise ValueError(f"random weights are not made for {geometry.name}; they are for {', '.join(names)}")
    if not torch.cuda.is_available():
        raise ValueError("random weights of a real size need a GPU, and there is none here")
    from experiments.bench import single_gpu_models as real

    subject = real.Subject(geometry.name, settings.shape, geometry.default_steps, 1, 1)
    decoder = real.vae(geometry.family) if settings.decode else None
    model: Model = real.ours(subject, (real.transformer(subject),), decoder, settings.attention, settings.compiled)
    return model, real.condition(subject)


@torch.inference_mode()
def _forward_seconds(model: Model, condition: Condition, grid: Grid, settings: Settings, alike: Alike) -> list[float]:
    full = model.geometry.latent_grid(settings.shape)
    placed = model.place(condition, nested_axes((grid, full))[0], "index")
    x = model.start(_noise(model, grid), placed)
    forward = functools.partial(_seconds, model, lambda: model.denoise(x, LEVEL, placed))
    if alike(forward()) < BRIEF_S:
        forward()
    seconds = [forward()]
    while len(seconds) < settings.repeats and alike(sum(seconds)) < ENOUGH_S:
        seconds.append(forward())
    return seconds


def _noise(model: Model, grid: Grid) -> torch.Tensor:
    return torch.randn((1, model.geometry.latent_channels, *grid), generator=torch.Generator().manual_seed(0))


def _seconds(model: Model, work: Callable[[], object]) -> float:
    started_s = clock_s(model.device)
    work()
    return clock_s(model.device) - started_s


@torch.inference_mode()
def _transition_token_s(model: Model, settings: Settings) -> float:
    """Every transition of one schedule, over the tokens of the grids they enter; the second of two rounds."""
    geometry = model.geometry
    config = DvgConfig.for_model(geometry)
    action = next(candidates(geometry, settings.shape, max(geometry.default_steps, 5), 0.5, config))
    latents = [_noise(model, stage.grid).to(model.device) for stage in action.stages[:-1]]

    def cross() -> None:
        for index, x0 in enumerate(latents):
            passage.carry(x0, action, index, 0.5, 0, config)

    cross()
    return _seconds(model, cross) / sum(geometry.num_tokens(stage.grid) for stage in action.stages[1:])


@torch.inference_mode()
def decode_row(model: Model, settings: Settings, degree: int = 1, alike: Alike = _own) -> DecodeRow:
    """The faster of two decodes of the whole video; the first one may choose kernels."""
    latent, shape = _noise(model, model.geometry.latent_grid(settings.shape)).to(model.device), settings.shape
    seconds = min(alike(_seconds(model, lambda: [run.shape for run in model.decode(latent)])) for _ in range(2))
    return DecodeRow(num_frames=shape.num_frames, height=shape.height, width=shape.width, degree=degree, seconds=seconds)


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device_name(on_gpu=False)


def _attention(model: Model, name: str) -> str:
    """The kernels behind ``auto``, which may depend on the length; ``torch`` where torch chooses."""
    if name != attention.AUTO:
        return name
    if model.device.type != "cuda" or model.dtype == torch.float32:
        return "torch"
    chosen = attention.fastest(model.device, model.geometry.heads, model.geometry.head_dim, model.dtype)
    return ", ".join(dict.fromkeys(chosen.values()))
