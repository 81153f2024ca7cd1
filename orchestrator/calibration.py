"""Calibration files: measured step seconds of one model on one kind of device, and which file serves an arm.

``dvg calibrate`` writes them; planning reads them without torch. Files of the user's folder come before those that ship with the
project, and a newer one before an older.
"""

from __future__ import annotations

import functools
import os
import platform
import re
import shutil
import statistics
import subprocess
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from orchestrator.cost import CostModel, ForwardCost, num_branches, uncalibrated
from orchestrator.files import write_atomic
from orchestrator.geometry import MODELS
from orchestrator.mistakes import read_model
from orchestrator.model_geometry import ModelGeometry
from orchestrator.types import Grid, VideoShape

FOLDER_VARIABLE = "DVG_CALIBRATION_DIR"
SHIPPED = Path(__file__).parent / "calibrations"


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StepRow(_Row):
    """The median forward of one branch on one latent grid (time, height, width)."""

    grid: Grid
    tokens: int = Field(ge=1)
    degree: int = Field(1, ge=1)
    """GPUs that share its tokens."""
    backend: str = "native"
    """How they exchange them."""
    median_s: float = Field(gt=0, allow_inf_nan=False)
    repeats: int = Field(ge=1)


class DecodeRow(_Row):
    """One decode of a whole video, frames in pixels."""

    num_frames: int = Field(ge=1)
    height: int = Field(ge=1)
    width: int = Field(ge=1)
    degree: int = Field(1, ge=1)
    """GPUs among which it was split."""
    seconds: float = Field(ge=0, allow_inf_nan=False)

    @property
    def num_pixels(self) -> int:
        return self.num_frames * self.height * self.width


class Calibration(_Row):
    """One file."""

    format: Literal[1] = 1
    model: str
    weights: Literal["given", "random"] = "given"
    """Random weights of the real size cost what trained ones do."""
    device: str
    dtype: str
    attention: str
    """The attention kernel; as the worker chose it."""
    compiled: bool = False
    num_threads: int | None = None
    """Torch threads, on a CPU."""
    torch: str
    commit: str | None
    measured_at: datetime
    steps: tuple[StepRow, ...] = Field(min_length=2)
    fits: tuple[ForwardCost, ...] = Field(min_length=1)
    fit_error: float = Field(ge=0, allow_inf_nan=False)
    """Largest relative difference between a fit's polynomial and its rows."""
    held_out_error: float | None = Field(None, ge=0, allow_inf_nan=False)
    """Largest relative error with which a row is predicted from the others, of rows that are not the smallest or the largest of
    their degree; None with too few rows."""
    transition_token_s: float = Field(0.0, ge=0, allow_inf_nan=False)
    decodes: tuple[DecodeRow, ...] = ()

    def decode_s(self, shape: VideoShape, degree: int = 1) -> float | None:
        """Of the row nearest in size, scaled by pixels; None without rows."""
        pixels = shape.num_frames * shape.height * shape.width
        rows = [row for row in self.decodes if row.degree == degree]
        row = min(rows, key=lambda row: abs(row.num_pixels - pixels), default=None)
        return row.seconds * pixels / row.num_pixels if row else None

    def split_decode_s(self, shape: VideoShape) -> tuple[tuple[int, float], ...]:
        """(GPUs, seconds) of a decode that is split."""
        degrees = sorted({row.degree for row in self.decodes if row.degree > 1})
        return tuple((degree, seconds) for degree in degrees if (seconds := self.decode_s(shape, degree)) is not None)

    def forwards(self) -> tuple[ForwardCost, ...]:
        """The fits, each bent through its rows; one GPU first."""
        found = [fit.model_copy(update={"points": points(self.rows_of(fit.degree, fit.backend))}) for fit in self.fits]
        return tuple(sorted(found, key=lambda fit: fit.degree))

    def rows_of(self, degree: int, backend: str) -> tuple[StepRow, ...]:
        return tuple(row for row in self.steps if (row.degree, row.backend) == (degree, backend))


def points(rows: Iterable[StepRow]) -> tuple[tuple[int, float], ...]:
    """(Tokens, seconds), fewest first; of grids with as many tokens the geometric mean."""
    by_tokens: dict[int, list[float]] = {}
    for row in rows:
        by_tokens.setdefault(row.tokens, []).append(row.median_s)
    return tuple((tokens, statistics.geometric_mean(seconds)) for tokens, seconds in sorted(by_tokens.items()))


def user_folder() -> Path:
    """Where ``dvg calibrate`` writes: DVG_CALIBRATION_DIR if set, otherwise in the user's cache."""
    if chosen := os.environ.get(FOLDER_VARIABLE):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dvg" / "calibrations"


def file_name(calibration: Calibration) -> str:
    device = re.sub(r"[^a-z0-9.]+", "-", calibration.device.lower()).strip("-")
    return f"{calibration.model}_{device}_{calibration.dtype}.json"


def save(calibration: Calibration, path: Path | None = None) -> Path:
    """Written whole or not at all; None: into :func:`user_folder`, replacing the file of the same model, device and dtype.

    Raises ValueError when it cannot be written.
    """
    path = path or user_folder() / file_name(calibration)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, calibration.model_dump_json(indent=2) + "\n")
    except OSError as error:
        raise ValueError(f"calibration file {str(path)!r} cannot be written: {error.strerror or error}") from error
    return path


def load(path: Path) -> Calibration:
    """Raises ValueError, naming the file and what to do, when it is missing or no calibration."""
    return read_model(Calibration, path, "calibration file", "dvg calibrate")


def find(geometry: ModelGeometry, device: str) -> Calibration | None:
    """The file for this device and this model, or one of the same size in every respect that costs time.

    The user's folder comes first, then the model's own files, then the newest. Raises ValueError for a broken file.
    """
    matching = [
        (folder == user_folder(), calibration.model == geometry.name, calibration.measured_at.timestamp(), calibration)
        for folder, calibration in _all()
        if calibration.device == device and _costs_alike(calibration.model, geometry)
    ]
    return max(matching, key=lambda row: row[:3], default=(0, 0, 0, None))[3]


def _all() -> Iterator[tuple[Path, Calibration]]:
    for folder in dict.fromkeys((user_folder(), SHIPPED)):
        for path in sorted(folder.glob("*.json")):
            yield folder, load(path)


def _costs_alike(name: str, geometry: ModelGeometry) -> bool:
    other = MODELS.get(name)
    return other is not None and _size(other) == _size(geometry)


def _size(model: ModelGeometry) -> tuple[object, ...]:
    """Everything that a forward and a decode cost time for."""
    transformer = (model.family, model.heads, model.head_dim, model.num_layers, model.patch, model.linear_macs, model.text_tokens)
    return (*transformer, model.vae_stride, model.latent_channels)


def cost_model(
    geometry: ModelGeometry, shape: VideoShape, guidance: float, device: str | None = None, file: Path | None = None
) -> CostModel:
    """What ``geometry`` costs on ``device`` (None: this machine's): from ``file``, from the file found, or the roofline.

    Raises ValueError for a broken file, or one of another model.
    """
    calibration = load(file) if file else find(geometry, device or device_name())
    if calibration is None:
        cost = uncalibrated(geometry, device or device_name())
    elif not _costs_alike(calibration.model, geometry):
        raise ValueError(f"calibration file {str(file)!r} is of {calibration.model}, which is not of the size of {geometry.name}")
    else:
        cost = CostModel(
            label="calibrated",
            device=calibration.device,
            forwards=calibration.forwards(),
            transition_token_s=calibration.transition_token_s,
            decode_s=calibration.decode_s(shape),
            split_decode_s=calibration.split_decode_s(shape),
        )
    return cost.model_copy(update={"num_branches": num_branches(geometry, guidance)})


def device_name(on_gpu: bool | None = None) -> str:
    """This machine's first GPU, as its driver names it, or ``CPU`` with the processor's name. None: a GPU if there is one.

    Loads no torch.
    """
    gpu = None if on_gpu is False else _gpu_name()
    return gpu or f"CPU {_cpu_name()}"


@functools.cache
def _gpu_name() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.strip().splitlines()
    return lines[0].strip() if done.returncode == 0 and lines else None


@functools.cache
def _cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()
