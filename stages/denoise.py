"""The one transition engine: stages of solver steps on growing grids, whatever the planner (DVG, arXiv 2605.21042, sec. 3).

The last forward of a stage runs on the stage's grid, but its solver step is replaced by a transition: one-step clean
estimate, resize and re-noising at the next step's level on the next stage's schedule. Inside a stage the host never waits
for the device; it does so once at the stage's end, to see that all was finite, and where the plan is read.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from orchestrator.flops import tokens_tflops
from orchestrator.types import Decision, Grid, Past, Stage
from stages.accelerators.base import Boost, StageEvent
from stages.compiling import compile_seconds
from stages.demand import DemandNotFinite, Pixels
from stages.models.base import Condition, Model, Placed
from stages.planners.task import Crossing, Planner, Task
from stages.resize import Axes
from stages.sampling import NoiseLevel, Solver, clean_estimate, nearest_sigma


@dataclass(frozen=True, eq=False)
class Boundary:
    """A clip where work is handed over: latent ``x [1, C, T, H, W]`` before solver step ``step`` of stage ``stage``.

    At step 0 it is pure noise, with nothing of the image in it yet. ``decision`` is None until the sketch has chosen. There
    is no other state: a solver's history ends with its stage, and the condition is placed on every grid anew. ``past`` is told
    by workers and changes nothing.
    """

    x: Tensor
    step: int
    stage: int
    decision: Decision | None
    condition: Condition
    seed: int
    past: Past = field(default_factory=Past)

    def pack(self) -> dict[str, Any]:
        """For another process: numpy arrays, numbers and frozen values only."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**fields, "x": self.x.cpu().numpy(), "condition": self.condition.pack()}

    @staticmethod
    def unpack(packed: dict[str, Any]) -> Boundary:
        """Inverse of :meth:`pack`, on the CPU."""
        x = torch.from_numpy(np.array(packed["x"]))
        return Boundary(**{**packed, "x": x, "condition": Condition.unpack(packed["condition"])})


@dataclass(frozen=True)
class StepDone:
    """Told after every forward is under way. Counting starts at 0; ``num_stages`` is 0 until the action is chosen."""

    stage: int
    num_stages: int
    step: int
    num_steps: int
    grid: Grid
    sigma: float


OnStep = Callable[[StepDone], None]
OnBoundary = Callable[[Boundary, Mapping[str, float]], None]
"""Told at the end of every stage: the boundary there, and the seconds by name since the one that the run began at."""


def ignore(*told: Any) -> None:
    """The listener that does nothing."""


def start(model: Model, planner: Planner, condition: Condition, seed: int) -> Boundary:
    """Pure noise on the first stage's grid. A run without a sketch is decided here: there is nothing to measure."""
    first = planner.first()
    alone = first.steps == planner.task.num_steps or not planner.needs_sketch
    decision = planner.decide(None) if alone else None
    axes = planner.axes((first,), None)[0]
    return Boundary(planner.noise(axes, seed), 0, 0, decision, condition, seed)


@torch.inference_mode()
def run_stages(
    model: Model, planner: Planner, boundary: Boundary, stop: int, on_step: OnStep = ignore, on_boundary: OnBoundary = ignore
) -> tuple[Boundary, dict[str, float]]:
    """Run from ``boundary`` until ``stop`` stages of the clip are done.

    Returns the next boundary and seconds by stage (``stage1_s`` is the first), each with the transition that ended it; what
    the first clip of a process spends on compiling counts apart, as ``compile_s``.
    Raises RuntimeError, naming stage and step, when a latent or the demand is not finite.
    """
    timings_s: dict[str, float] = {}
    while boundary.stage < stop:
        started_s, warm_s = clock_s(model.device), compile_seconds()
        leg = planner.leg(model, boundary, on_step) or _Leg(model, planner, boundary, on_step)
        boundary = leg.run()
        compiled_s = compile_seconds() - warm_s
        timings_s[f"stage{boundary.stage}_s"] = clock_s(model.device) - started_s - compiled_s
        if compiled_s:
            timings_s["compile_s"] = timings_s.get("compile_s", 0.0) + compiled_s
        on_boundary(boundary, timings_s)
    return boundary, timings_s


class _Leg:
    """One stage of a clip, from its boundary to the next; used once."""

    def __init__(self, model: Model, planner: Planner, boundary: Boundary, on_step: OnStep) -> None:
        self.model, self.planner, self.boundary, self.on_step = model, planner, boundary, on_step
        task, decision = planner.task, boundary.decision
        stages = decision.action.stages if decision else (planner.first(),)
        self.stage = stages[boundary.stage]
        self.is_last = decision is not None and boundary.stage == len(stages) - 1
        self.end = sum(stage.steps for stage in stages[: boundary.stage + 1]) + (0 if self.is_last else 1)
        self.num_stages = len(stages) if decision else 0
        self.solver: Solver = task.solver(self.stage)
        self.levels = _told(self.solver, task, stages[0])
        placed = self._place(planner.axes(stages, decision)[boundary.stage])
        mixed = planner.mixture(boundary.x.to(model.device), boundary.stage)
        self.placed = dataclasses.replace(placed, positions=planner.positions(decision, boundary.stage), mixed=mixed)
        self.recent: list[Tensor] = []
        self.finite: list[Tensor] = []
        self.boost = Boost(task.accelerators, self._event(), model.geometry)

    def _event(self) -> StageEvent:
        steps = range(self.boundary.step, self.end)
        return StageEvent(self.stage.grid, steps, self.planner.task.num_steps, self.boundary.stage, not self.is_last)

    def _place(self, axes: Axes) -> Placed:
        return self.model.place(self.boundary.condition, axes, self.planner.task.config.image_condition)

    def run(self) -> Boundary:
        """Raises whatever an accelerator raises, and takes it off the model in any case."""
        self.model.accelerate(self.boost if self.boost.is_on else None)
        try:
            boundary = self._run()
            attended = (*boundary.past.attended, *self.boost.attended())
        finally:
            self.model.accelerate(None)
        past = dataclasses.replace(boundary.past, tflops=boundary.past.tflops + self._tflops(), attended=attended)
        return dataclasses.replace(boundary, past=past)

    def _tflops(self) -> float:
        """Executed in this stage, over all ranks, both branches of guidance taken for alike."""
        num_forwards = len(self.boost.event.steps) * (1 if self.boundary.condition.negative is None else 2)
        geometry, mixed = self.model.geometry, self.placed.mixed
        tokens = geometry.num_tokens(self.stage.grid) if mixed is None else mixed.num_tokens
        return self.boost.share * num_forwards * tokens_tflops(geometry, tokens)

    def _run(self) -> Boundary:
        x = self.boundary.x.to(self.model.device)
        if self.boundary.step == 0:
            x = self.model.start(x, self.placed)
        x = self.placed.pin(x)
        for step in range(self.boundary.step, self.end if self.is_last else self.end - 1):
            x = self._reflected(x, step)
            v = self._forward(x, step, self.levels[step])
            self._remember(x, v, step)
            x = self.placed.pin(self.solver.step(x, v, step))
            self._note(x, step)
        decision = self.boundary.decision
        if self.is_last:
            self._require_finite()
        else:
            decision, x = self._cross(x, self.end - 1)
        return dataclasses.replace(self.boundary, x=x, step=self.end, stage=self.boundary.stage + 1, decision=decision)

    def _reflected(self, x: Tensor, step: int) -> Tensor:
        """``x`` as a method that reflects has it, at the same level: inside a stage only, as a transition is no step of the loop.

        What a solver remembers leads to where ``x`` was, and UniPC would correct the way there again; so it begins anew.
        """
        if step + 1 == len(self.levels):
            return x
        self.boost.at(step, self.levels[step])
        moved = self.boost.reflected(x, self.levels[step + 1], self._aside)
        if moved is None:
            return x
        self.solver = self.planner.task.solver(self.stage)
        return self.placed.pin(moved)

    def _aside(self, x: Tensor, level: NoiseLevel, guidance: float | None) -> Tensor:
        """The velocity of a forward that is no step's own, under another guidance."""
        placed, condition = self.placed, self.placed.condition
        if guidance is not None:
            told = dataclasses.replace(condition, guidance=guidance, guidance_low=guidance)
            placed = dataclasses.replace(placed, condition=told)
        return self.model.denoise(placed.pin(x), level, placed)

    def _remember(self, x: Tensor, v: Tensor, step: int) -> None:
        """The clean estimate, for a planner that looks at the last ones."""
        if self.planner.remembers > 1 and not self.is_last:
            clean = self.placed.pin(clean_estimate(x, v, self.solver.levels[step].sigma))
            self.recent = [*self.recent, clean][1 - self.planner.remembers :]

    def _cross(self, x: Tensor, step: int) -> tuple[Decision, Tensor]:
        """Decide if nobody has yet, then carry the clean estimate to the next grid, at the level of the next step there."""
        x0, v = self._clean(x, step)
        self._note(x0, step)
        self._require_finite()
        pixels = _Once(self.planner.look(self.model))
        decision = self.boundary.decision or self._decide(x0, pixels)
        following = self.planner.task.solver(decision.action.stages[self.boundary.stage + 1])
        sigma = self.planner.sigma_after(step, self.solver, following)
        here = decision, self.boundary.stage, sigma, self.boundary.seed, self.model, v, pixels
        recent = (*self.recent, x0) if self.planner.remembers else ()
        crossing = Crossing(*here, lambda: self.placed.pin(self.solver.step(x, v, step)), recent, self.placed.mixed)
        return decision, self.planner.cross(x0, crossing)

    def _forward(self, x: Tensor, step: int, level: NoiseLevel) -> Tensor:
        self.boost.at(step, level)
        v = self.model.denoise(x, level, self.placed)
        self.boost.saw(x, v)
        return v

    def _clean(self, x: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """The clean estimate before step ``step``, and the velocity; MeanFlow's with second timestep 0 leads there exactly.

        A planner that lets the solver step on instead (``Crossing.onward``) steps by this very velocity: no second forward.
        """
        config, level = self.planner.task.config, self.levels[step]
        if config.meanflow_clean == "zero":
            level = dataclasses.replace(level, timestep_next=0.0)
        v = self._forward(x, step, level)
        own = self.planner.clean_sigma(step, self.boundary.stage, self.solver)
        sigma = nearest_sigma(self.solver.levels, level.timestep) if config.stale_timesteps else own
        return self.placed.pin(clean_estimate(x, v, sigma, config.extrapolation)), v

    def _decide(self, x0: Tensor, pixels: Pixels) -> Decision:
        try:
            return self.planner.decide(x0, pixels)
        except DemandNotFinite as problem:
            raise RuntimeError(f"{problem} at {self._place_name(self.end - 1)}") from problem

    def _note(self, x: Tensor, step: int) -> None:
        self.finite.append(x.isfinite().all())
        level = self.levels[step].sigma
        done = StepDone(self.boundary.stage, self.num_stages, step, self.planner.task.num_steps, self.stage.grid, level)
        self.on_step(done)

    def _require_finite(self) -> None:
        """The only wait of a stage for the device."""
        finite = torch.stack(self.finite).tolist()
        if not all(finite):
            where = self._place_name(self.boundary.step + finite.index(False))
            raise RuntimeError(f"the latent is not finite after {where}: the weights, the guidance or the shift are at fault")

    def _place_name(self, step: int) -> str:
        grid = "x".join(map(str, self.stage.grid))
        return f"stage {self.boundary.stage + 1} (grid {grid}), step {step + 1} of {self.planner.task.num_steps}"


class _Once:
    """A decoder that remembers the video of the last latent."""

    def __init__(self, pixels: Pixels) -> None:
        self._pixels = pixels
        self._seen: tuple[Tensor, Tensor] | None = None

    def __call__(self, latent: Tensor) -> Tensor:
        if self._seen is None or self._seen[0] is not latent:
            self._seen = latent, self._pixels(latent)
        return self._seen[1]


def _told(solver: Solver, task: Task, first: Stage) -> tuple[NoiseLevel, ...]:
    """The levels that the network is told: the solver's own, with the first stage's timesteps if they go stale."""
    if not task.config.stale_timesteps:
        return solver.levels
    pairs = zip(solver.levels, task.solver(first).levels, strict=True)
    return tuple(NoiseLevel(level.sigma, old.timestep, old.timestep_next) for level, old in pairs)


def clock_s(device: torch.device) -> float:
    """Now, once the device has done what it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
