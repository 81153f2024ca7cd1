"""What a person may ask of a schedule, and the actions that give it: a share of the tokens, a speedup, or GPU-seconds.

A density is DVG's own budget (arXiv 2605.21042, equations 6 to 8) and knows nothing of cost. A speedup or a number of seconds
filters the same schedules by predicted cost. Stage 1 depends on the budget b and runs before there is a plan, so one b is fixed
first, by :func:`density_for`, and all actions share the stage 1 of that b.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from orchestrator.actions import (
    ROUNDING,
    DvgConfig,
    InfeasibleBudget,
    action_list,
    candidates,
    first_stage,
    full_action,
    uniform_action,
)
from orchestrator.cost import CostModel, denoise_s, full_s
from orchestrator.model_geometry import ModelGeometry
from orchestrator.types import Action, Stage, VideoShape

Kind = Literal["density", "speedup", "gpu_seconds"]
KINDS: tuple[Kind, ...] = get_args(Kind)
FORMS = "a share of the full run's token-steps in (0, 1], speedup=3 or gpu_seconds=120"


class Target(BaseModel):
    """One budget. ``speedup`` counts against the full run with as many steps, ``gpu_seconds`` is denoising on one device."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind = "density"
    value: float

    @model_validator(mode="after")
    def _check(self) -> Self:
        rule, legal = {
            "density": ("in (0, 1]", 0 < self.value <= 1),
            "speedup": ("at least 1", 1 <= self.value < math.inf),
            "gpu_seconds": ("above 0", 0 < self.value < math.inf),
        }[self.kind]
        if not legal:
            name = "budget" if self.kind == "density" else self.kind
            raise ValueError(f"{name} must be {rule}, got {self.value:g}")
        return self

    def __str__(self) -> str:
        return f"{self.kind}={self.value:g}"


def parse_target(value: Any) -> Target:
    """From ``0.5``, ``"0.5"``, ``"speedup=3"``, ``{"speedup": 3}`` or a dumped Target. Raises ValueError, naming the forms."""
    if isinstance(value, Target):
        return value
    if isinstance(value, Mapping) and set(value) == set(Target.model_fields):
        kind, number = value["kind"], value["value"]
    elif isinstance(value, Mapping) and len(value) == 1:
        ((kind, number),) = value.items()
    elif isinstance(value, str) and "=" in value:
        kind, number = (part.strip() for part in value.split("=", 1))
    else:
        kind, number = "density", value
    if kind not in KINDS:
        raise ValueError(f"budget {kind!r} is not known; it must be {FORMS}")
    try:
        return Target(kind=kind, value=_number(number))
    except ValueError as error:
        raise ValueError(_reason(error)) from error


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"budget {value!r} is not a number; it must be {FORMS}")
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"budget {value!r} is not a number; it must be {FORMS}") from None


def _reason(error: ValueError) -> str:
    """The rule alone, without pydantic's frame around it."""
    if not isinstance(error, ValidationError):
        return str(error)
    return error.errors()[0]["msg"].removeprefix("Value error, ")


class InfeasibleTarget(ValueError):
    """No schedule's predicted cost comes near the target. ``possible`` holds the least and the most that can be asked."""

    def __init__(
        self, target: Target, costs: Sequence[tuple[float, Action]], full_run_s: float, tolerance: float, cost: CostModel
    ):
        self.target = target
        goal = seconds_of(target, full_run_s)
        options = {_in_kind(target, seconds, full_run_s): action for seconds, action in reversed(costs)}
        values = sorted(options)
        self.nearest = _apart(sorted(values, key=lambda value: abs(seconds_of(_like(target, value), full_run_s) - goal)))[:3]
        self.possible = (values[0], values[-1])
        rows = ", ".join(f"{value:.2f} with {options[value].name}" for value in self.nearest)
        hint = "; fewer steps or another shape change what a run costs" if target.kind == "gpu_seconds" else ""
        super().__init__(
            f"{target}: no schedule's predicted cost ({cost.label}, {cost.device}) comes within {tolerance:.0%} of it. "
            f"Nearest {target.kind}: {rows}. Possible: {values[0]:.2f} to {values[-1]:.2f}, and the full run at "
            f"{_in_kind(target, full_run_s, full_run_s):.2f}{hint}"
        )


def _like(target: Target, value: float) -> Target:
    return target.model_copy(update={"value": value})


def _apart(values: Iterable[float]) -> tuple[float, ...]:
    """The first of each run of values that print alike."""
    return tuple({f"{value:.2f}": value for value in reversed(list(values))}.values())[::-1]


def seconds_of(target: Target, full_run_s: float) -> float:
    """Denoising seconds that a speedup or a number of seconds asks for."""
    return full_run_s / target.value if target.kind == "speedup" else target.value


def _in_kind(target: Target, seconds: float, full_run_s: float) -> float:
    return full_run_s / seconds if target.kind == "speedup" else seconds


def actions_for(
    geometry: ModelGeometry, shape: VideoShape, num_steps: int, target: Target, config: DvgConfig, cost: CostModel | None
) -> tuple[Stage, tuple[Action, ...]]:
    """Stage 1 and every action that meets the target, nearest first. Pure: the same values give the same list everywhere.

    ``cost`` is read only for a speedup or seconds. Raises InfeasibleBudget or InfeasibleTarget when nothing meets the target.
    """
    if target.kind == "density":
        first = first_stage(geometry, shape, num_steps, target.value, config)
        return first, action_list(geometry, shape, num_steps, target.value, config)
    _, actions = _by_cost(geometry, shape, num_steps, target, config, _require(target, cost))
    return actions[0].stages[0], actions


def density_for(
    geometry: ModelGeometry, shape: VideoShape, num_steps: int, target: Target, config: DvgConfig, cost: CostModel | None
) -> float:
    """The budget b in DVG's own sense, which fixes stage 1; 1 for the full run.

    For a speedup or seconds: of b = 0.01, 0.02, .. 0.99, each with the actions within ``config.cost_tolerance`` of the asked
    seconds under its own stage 1, the one whose actions have b as their mean density, up to ``config.tolerance``; among those
    the one whose mean cost is nearest to what was asked. Raises as :func:`actions_for`.
    """
    if target.kind == "density":
        return target.value
    return _by_cost(geometry, shape, num_steps, target, config, _require(target, cost))[0]


def uniform_density_for(
    planner: str, geometry: ModelGeometry, shape: VideoShape, num_steps: int, target: Target, config: DvgConfig, cost: CostModel
) -> float:
    """The budget of ``temporal-only`` or ``spatial-only`` whose one schedule costs nearest to the target, in hundredths.

    Raises InfeasibleTarget when none is within ``config.cost_tolerance``.
    """
    full_run_s = full_s(geometry, shape, num_steps, cost)
    goal_s = seconds_of(target, full_run_s)
    priced: dict[float, tuple[float, Action]] = {}
    for b in (hundredths / 100 for hundredths in range(100, 0, -1)):
        with contextlib.suppress(InfeasibleBudget):
            action = uniform_action(planner, geometry, shape, num_steps, b, config)
            priced[b] = denoise_s(geometry, action, cost), action
    b = min(priced, key=lambda b: abs(priced[b][0] - min(goal_s, full_run_s)))
    if not _kept([priced[b]], min(goal_s, full_run_s), config):
        raise InfeasibleTarget(target, list(priced.values()), full_run_s, config.cost_tolerance, cost)
    return b


def _require(target: Target, cost: CostModel | None) -> CostModel:
    if cost is None:
        raise ValueError(f"{target} needs a cost model, and there is none")
    return cost


@functools.lru_cache(maxsize=64)
def _by_cost(
    geometry: ModelGeometry, shape: VideoShape, num_steps: int, target: Target, config: DvgConfig, cost: CostModel
) -> tuple[float, tuple[Action, ...]]:
    """(b, actions). What costs as much as the full run, or more, is the full run."""
    full_run_s = full_s(geometry, shape, num_steps, cost)
    goal_s = seconds_of(target, full_run_s)
    if goal_s >= full_run_s * (1 - ROUNDING):
        return 1.0, (full_action(geometry, shape, num_steps),)
    priced = _priced(geometry, shape, num_steps, config, cost)
    fitting = {b: kept for b, costs in priced.items() if (kept := _kept(costs, goal_s, config))}
    if not fitting:
        everything = [pair for costs in priced.values() for pair in costs]
        raise InfeasibleTarget(target, everything, full_run_s, config.cost_tolerance, cost)
    b = min(fitting, key=lambda b: _mismatch(b, fitting[b], goal_s, config))
    return b, tuple(action for _, action in sorted(fitting[b], key=lambda pair: _order(pair, goal_s)))


def _priced(
    geometry: ModelGeometry, shape: VideoShape, num_steps: int, config: DvgConfig, cost: CostModel
) -> dict[float, list[tuple[float, Action]]]:
    """For every b the schedules under its stage 1 with their seconds. Budgets that share a stage 1 share the list."""
    by_stage: dict[Stage, list[tuple[float, Action]]] = {}
    priced = {}
    for b in (hundredths / 100 for hundredths in range(1, 100)):
        first = first_stage(geometry, shape, num_steps, b, config)
        if first not in by_stage:
            options = candidates(geometry, shape, num_steps, b, config)
            by_stage[first] = [(denoise_s(geometry, action, cost), action) for action in options]
        priced[b] = by_stage[first]
    return priced


def _kept(costs: Iterable[tuple[float, Action]], goal_s: float, config: DvgConfig) -> list[tuple[float, Action]]:
    above = 0.0 if config.one_sided else config.cost_tolerance
    least, most = goal_s * (1 - config.cost_tolerance - ROUNDING), goal_s * (1 + above + ROUNDING)
    return [(seconds, action) for seconds, action in costs if least <= seconds <= most]


def _mismatch(
    b: float, kept: Sequence[tuple[float, Action]], goal_s: float, config: DvgConfig
) -> tuple[float, float, float, float]:
    gap = abs(sum(action.density for _, action in kept) / len(kept) - b)
    off = abs(sum(seconds for seconds, _ in kept) / len(kept) / goal_s - 1)
    return round(max(0.0, gap - config.tolerance), 9), round(off, 9), round(gap, 9), b


def _order(pair: tuple[float, Action], goal_s: float) -> tuple[float, float, float, int]:
    """Smallest gap first, then the larger density, s2 and f2, as in a list by density."""
    seconds, action = pair
    return round(abs(seconds / goal_s - 1), 12), -action.density, -(action.s2 or 0.0), -(action.f2 or 0)
