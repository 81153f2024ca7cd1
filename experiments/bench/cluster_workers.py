"""Workers of real size without a checkpoint: random weights, a made-up prompt, and demands that another model showed.

Everything else is the workers' own: stage 1 runs and is measured before the injected demand decides, stages run on slices,
latents are handed over, and the autoencoder makes a video of them.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.bench import single_gpu_models as real
from experiments.calibrate import Settings, about, step_rows
from orchestrator.arms import Arm
from orchestrator.geometry import ModelGeometry, model
from orchestrator.matching import decide
from orchestrator.pods import ClipWorkshop
from orchestrator.types import Action, Decision, Demand, Grid, Item, Stage
from orchestrator.work import Worker
from stages.demand import Pixels
from stages.denoise import Boundary, OnStep, ignore
from stages.models.base import Condition
from stages.planners.task import BasePlanner, Planner, Task
from stages.worker import ClipWorker, Keeper, Team

CALIBRATION = "calibration"
"""Items of this prompt measure forwards where others refine; their decode is that of any clip."""
ROW = "row_"
"""How their timings are called, followed by the grid."""


@dataclass(frozen=True)
class RandomWorkshop(ClipWorkshop):
    """Travels to every actor. ``demands`` by prompt id; ``grids`` are those that calibrations measure."""

    demands: Mapping[str, Demand] = field(default_factory=dict)
    grids: tuple[Grid, ...] = ()
    folder: Path = Path()
    """Where each worker leaves word of its device."""
    is_tiny: bool = False
    """Checkpoints of the arms instead of random weights of real size, for a rehearsal."""

    def make(self, parts: frozenset[str], device: str, num_threads: int, groups: Any = None) -> Worker:
        worker = super().make(parts, device, num_threads, groups)
        rank = "" if groups is None else groups.rank
        (self.folder / f"{'-'.join(sorted(parts))}.{rank}.{device.rpartition(':')[2]}").touch()
        return worker

    def worker_class(self) -> type[ClipWorker]:
        return type("Bound", (RandomWorker,), {"workshop": self})


class TimedKeeper:
    """Counts what a rank spends on checkpoints before it goes on."""

    def __init__(self, keeper: Keeper) -> None:
        self.keeper, self.spent_s = keeper, 0.0

    def keep(self, item_key: str, boundary: Any, made_by: Mapping[str, str]) -> None:
        began_s = time.perf_counter()
        self.keeper.keep(item_key, boundary, made_by)
        self.spent_s += time.perf_counter() - began_s

    def settle(self) -> None:
        self.keeper.settle()


class RandomWorker(ClipWorker):
    """See the module."""

    workshop: RandomWorkshop
    _told: Demand | None = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        if self.keeper is not None:
            self.keeper = TimedKeeper(self.keeper)

    @property
    def _checkpoint_s(self) -> float:
        return self.keeper.spent_s if isinstance(self.keeper, TimedKeeper) else 0.0

    def sketch(self, item: Item, on_step: OnStep = ignore) -> tuple[Decision, dict[str, float], Boundary]:
        self._told = self.workshop.demands.get(item.prompt_id)
        began = time.time()
        decision, timings_s, boundary = super().sketch(item, on_step)
        return decision, {**timings_s, "sketch_from": began, "sketch_to": time.time()}, boundary

    def refine(
        self, item: Item, boundary: Boundary, on_step: OnStep = ignore, *, stop: int | None = None, team: Team | None = None
    ) -> tuple[Boundary, dict[str, float]]:
        """As of any worker, with when it was at work, by the clock that the host's processes share."""
        began, kept_s = time.time(), self._checkpoint_s
        if item.prompt == CALIBRATION:
            boundary, timings_s = self._calibrate(item, boundary, team)
        else:
            boundary, timings_s = super().refine(item, boundary, on_step, stop=stop, team=team)
        spent = {"refine_from": began, "refine_to": time.time(), "checkpoint_s": self._checkpoint_s - kept_s}
        return boundary, {**timings_s, **spent}

    def _calibrate(self, item: Item, boundary: Boundary, team: Team | None) -> tuple[Boundary, dict[str, float]]:
        """Seconds of one branch's forward on every grid, and a finished latent of noise."""
        arm, loaded = self._arm(item), self._model(self._arm(item))
        condition = dataclasses.replace(boundary.condition, negative=None)
        settings = Settings(arm.shape, self.workshop.grids, repeats=3, decode=False)
        layout = None if team is None else team.layout(1)
        loaded.attach(layout, None if team is None or layout is None else team.exchange)
        try:
            degree = 1 if team is None else team.width
            alike = _own if layout is None else _Most(layout.whole)
            rows = {ROW + name(row.grid): row.median_s for row in step_rows(loaded, condition, settings, degree, "", alike)}
        finally:
            loaded.attach(None, None)
        transition_token_s = about(loaded, condition, settings, "random").transition_token_s
        x = torch.randn(1, loaded.geometry.latent_channels, *loaded.geometry.latent_grid(arm.shape))
        stages = len(boundary.decision.action.stages) if boundary.decision else 0
        return dataclasses.replace(boundary, x=x, stage=stages), {**rows, "transition_token_s": transition_token_s}

    def _planner(self, arm: Arm) -> Planner:
        planner = super()._planner(arm)
        return planner if self._told is None else AsTold(planner, self._told)

    def _model(self, arm: Arm) -> Any:
        if self.workshop.is_tiny:
            return super()._model(arm)
        key = (arm.model, arm.weights, arm.lora)
        if key not in self._models:
            self._models[key] = random_model(arm, self._parts(key), self.device, self.attention, self.compile_blocks is not False)
        return self._models[key]


def _own(seconds: float) -> float:
    return seconds


@dataclass(frozen=True)
class _Most:
    """Of all ranks of a group, so that they decide alike."""

    group: Any

    def __call__(self, seconds: float) -> float:
        told = torch.tensor([seconds], dtype=torch.float64, device=self.group.device)
        return float(self.group.gather_rows(told, (1,) * self.group.size).max())


class AsTold(BasePlanner):
    """A planner that measures the sketch, and then decides by another one's demand."""

    def __init__(self, planner: Any, demand: Demand) -> None:
        self._planner, self._demand = planner, demand
        self.task: Task = planner.task

    def first(self) -> Stage:
        return self._planner.first()  # type: ignore[no-any-return]

    def decide(self, x0: Tensor | None, pixels: Pixels | None = None) -> Decision:
        measured: Decision = self._planner.decide(x0, pixels)
        actions = getattr(self._planner, "actions", ())
        return decide(actions, self._demand, self.task.config) if x0 is not None and actions else measured

    def carry(self, x0: Tensor, action: Action, stage_index: int, sigma: float, seed: int) -> Tensor:
        return self._planner.carry(x0, action, stage_index, sigma, seed)  # type: ignore[no-any-return]


def name(grid: Grid) -> str:
    return "x".join(map(str, grid))


def grid_of(row: str) -> Grid:
    """Inverse of ``ROW + name(grid)``."""
    time_, height, width = map(int, row.removeprefix(ROW).split("x"))
    return time_, height, width


def random_model(arm: Arm, parts: frozenset[str], device: str, attention: str, compiled: bool) -> Any:
    """The adapter with what ``parts`` need, the same on every GPU; it encodes any prompt as the same made-up one."""
    real.DEVICE = device
    geometry = model(arm.model)
    subject = real.Subject(arm.model, arm.shape, arm.num_steps, 1, 2 if arm.guidance > 1 else 1)
    torch.manual_seed(0)
    num_experts = 2 if geometry.boundary else 1
    modules = tuple(real.transformer(subject) for _ in range(num_experts)) if "transformer" in parts else ()
    decoder = real.vae(geometry.family) if "vae" in parts else None
    if not modules:
        return decoding_model(geometry, decoder, device)
    made = real.ours(subject, modules, decoder, attention, compiled)
    condition: Condition = real.condition(subject)
    made.encode = lambda request: condition
    return made


def decoding_model(geometry: ModelGeometry, decoder: Any, device: str) -> Any:
    """An adapter that can decode and nothing else. Raises ValueError for a family that the benchmark does not make."""
    place = torch.device(device)
    if geometry.family == "hunyuan15":
        from stages.models.hunyuan15 import Hunyuan15Model, Parts
        from stages.models.hunyuan15_vae import Hunyuan15Decoder

        return Hunyuan15Model(geometry, place, real.BF16, Parts(decoder=Hunyuan15Decoder(decoder)))
    if geometry.family == "wan":
        from stages.models.wan import WanModel, WanParts
        from stages.models.wan_decoder import WanDecoder
        from stages.models.wan_parts import Index

        index = Index(frozenset(), geometry.boundary, False)
        return WanModel(geometry, place, real.BF16, index, WanParts(decoder=WanDecoder(decoder)))
    raise ValueError(f"{geometry.name} is not made here; the benchmark has hunyuanvideo-1.5 and wan2.2-a14b")
