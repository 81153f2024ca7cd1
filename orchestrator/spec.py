"""What a sweep's YAML may say: every key with its meaning. ``dvg schema`` makes docs/spec.md and the schema for editors of it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from orchestrator.cluster_config import ClusterConfig
from orchestrator.geometry import SolverName
from orchestrator.metrics_config import AFTERWARDS, MetricsConfig
from orchestrator.options import (
    AcceleratorOption,
    ArmName,
    ArmNames,
    BudgetOption,
    LoraOption,
    PlannerOption,
    PromptsOption,
    SweepName,
)
from orchestrator.presets import PresetName
from orchestrator.prompts import Seed
from orchestrator.tracking_config import TrackingConfig


class ArmOptions(BaseModel):
    """What an arm may say. None: inherited from the spec, then from the model's defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    model: str | None = None
    """A name that ``dvg models`` lists; None: ``wan-mini``."""
    weights: str | None = Field(None, min_length=1)
    """A folder in diffusers format, or a repository of the hub: ``org/name`` or ``org/name@revision``."""
    lora: list[LoraOption] | None = None
    """Low-rank adapters merged into the transformer, each ``{path, scale, expert}`` or ``PATH[:SCALE][:EXPERT]``."""
    image: str | None = Field(None, min_length=1)
    """First frame for the prompts that have none of their own."""
    preset: PresetName | None = None
    """A planner with its budget and accelerators under one word, as ``dvg methods`` lists them. What is given beside it stands,
    but another planner is refused; an arm's own planner leaves nothing of the spec's preset."""
    planner: PlannerOption | None = None
    """Which grid each step runs on: a planner's name, or ``{name: {setting: value}}``. None: ``dvg``, by content. full: the stock
    run, every step on the full grid. temporal-only, spatial-only, fixed: every step but those of the last stage on one smaller
    grid. ``dvg methods`` lists them all."""
    accelerators: list[AcceleratorOption] | None = None
    """What makes the steps on a grid cheaper: names, or ``{name: {setting: value}}``, which ``dvg methods`` lists."""
    budget: BudgetOption | None = None
    """A share of the full run's token-steps in (0, 1], ``speedup=3`` or ``gpu_seconds=120``. Under a planner
    that has none: refused of an arm, idle of the spec."""
    calibration: str | None = Field(None, min_length=1)
    """A calibration file; None: the one that fits model and device, of ``dvg calibrate``."""
    device_name: str | None = Field(None, min_length=1)
    """What the GPU that the run is for calls itself, to predict its cost; None: this machine's."""
    steps: int | None = Field(None, ge=1)
    """Solver steps; None: the model's."""
    solver: SolverName | None = None
    """None: the one that the weights ship with."""
    shift: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Timestep shift of a plain full-grid run; None: the one that the weights ship with."""
    guidance: float | None = Field(None, ge=0, allow_inf_nan=False)
    """Guidance scale; 1: one branch, half the work. None: the model's."""
    guidance_low: float | None = Field(None, ge=0, allow_inf_nan=False)
    """Guidance of the low-noise expert, of models with two; None: as ``guidance`` if that is given."""
    negative: str | None = None
    """Negative prompt, which counts above guidance 1."""
    frames: int | None = Field(None, ge=1)
    """Frames of the video, 4k + 1; None: the model's, as of ``height``, ``width`` and ``fps``."""
    height: int | None = Field(None, ge=1)
    """Pixels."""
    width: int | None = Field(None, ge=1)
    """Pixels."""
    fps: int | None = Field(None, ge=1, le=1000)
    """Frames per second of the file."""
    dvg: dict[str, Any] = Field(default_factory=dict)
    """Knobs of :class:`orchestrator.dvg_config.DvgConfig`; those not given have the model's or the released value.
    What a planner does not read is refused of an arm, idle of the spec."""


class SweepSpec(ArmOptions):
    """One YAML file: what to make, with which arms, on which workers."""

    name: SweepName = "sweep"
    """Of the run folder, ``runs/<name>``, unless ``--out`` says where."""
    prompts: PromptsOption
    """A list; the path of a text file (one prompt a line) or a JSONL file (``{"prompt": ..., "id": ..., "seed": ...,
    "image": ...}``); or a suite: ``vbench``, ``vbench-i2v``, ``vbench-quality``, ``vbench-100`` and so on."""
    extended: str | None = Field(None, min_length=1)
    """Longer forms of the prompts, which the videos are made of: a text file with a line for each of them in their order, or a
    JSONL file of ``{"original": ..., "prompt": ...}``. Evaluation goes by the originals."""
    seeds: list[Seed] | None = Field(None, min_length=1)
    """None: 0, or as many from 0 as a prompt asks for (``num_videos``), which those of suites do."""
    arms: dict[ArmName, ArmOptions] = Field(default_factory=dict)
    """Named partial settings; without any, one arm named after the planner."""
    only: ArmNames | None = Field(None, min_length=1)
    """Of ``arms`` these alone, as they are named there; also ``a,b``. The others are not even looked at. None: all."""
    sweep: dict[str, list[Any]] = Field(default_factory=dict)
    """Knob (dotted for nested ones) to values: every arm is repeated for every combination."""
    reference: str | None = None
    """The arm that quality and speedup are measured against; None: the first arm whose planner is ``full``."""
    max_attempts: int = Field(3, ge=1)
    """Attempts of an item before it is given up."""
    cluster: ClusterConfig = ClusterConfig()
    """On which workers."""
    tracking: TrackingConfig = TrackingConfig()
    """What of it goes to MLflow."""
    metrics: MetricsConfig = AFTERWARDS
    """Which metrics are measured. Without this key: PSNR and SSIM, when the sweep has ended."""
