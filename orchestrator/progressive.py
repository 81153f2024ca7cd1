"""Schedules that grow, or shrink and grow again, in height and width at fixed steps: what other methods than DVG decide.

No content decides them, so grids, steps, shifts and densities are arithmetic alone. A stage's last forward is its transition,
which in terms of :mod:`orchestrator.schedules` is the step with the index where the next stage begins, less one forward.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence

from orchestrator.model_geometry import ModelGeometry
from orchestrator.schedules import density
from orchestrator.types import Action, Grid, Stage

SLACK = 1e-9
"""On products of shares and whole numbers, so that 0.7 of 30 is 21."""


def grid_at(geometry: ModelGeometry, full_grid: Grid, rate: float) -> Grid:
    """Latent cells at ``rate`` of the full height and width, cut to whole patches, one at least; all frames."""
    (t, h, w), (_, patch_h, patch_w) = full_grid, geometry.patch
    return t, _cut(h * rate, patch_h), _cut(w * rate, patch_w)


def _cut(size: float, patch: int) -> int:
    return max(int(size + SLACK) // patch, 1) * patch


def part_of(num_steps: int, share: float) -> int:
    """Whole steps in a share of all of them."""
    return int(num_steps * share + SLACK)


def grid_schedule(
    geometry: ModelGeometry,
    full_grid: Grid,
    rates: Sequence[float],
    transitions: Sequence[int],
    shifts: Sequence[float],
    num_steps: int,
    full_steps: int | None = None,
) -> Action:
    """One stage for each rate of height and width, the last being 1, with its timestep shift.

    ``transitions`` are the indices of the steps that leave each stage but the last. ``full_steps`` are those of the full run,
    which the density is a share of; None: ``num_steps``. Raises ValueError when a stage would get no step of its own, or as
    :func:`require_steps`.
    """
    require_steps(num_steps, full_steps or num_steps)
    edges = (0, *transitions, num_steps)
    steps = [after - before for before, after in itertools.pairwise(edges)]
    if min(steps) < 1 or (transitions and transitions[-1] > num_steps - 2):
        told = ", ".join(str(index + 1) for index in transitions)
        own = num_steps if full_steps in (None, num_steps) else f"its own {num_steps} of the arm's {full_steps}"
        setting = "" if full_steps is None else " (setting steps)"
        raise ValueError(
            f"with {own} steps{setting} its grids would change in step {told}: every grid needs a step before its change and the "
            "last one a step after it. Take more steps, fewer rates, or planner full"
        )
    grids = [grid_at(geometry, full_grid, rate) for rate in rates]
    stages = tuple(map(Stage, grids, steps, shifts))
    name = "r" + "-".join(f"{rate:g}" for rate in rates)
    return Action(name, stages, density(grids, steps, full_steps), needs_sketch=False)


def require_steps(num_steps: int, full_steps: int) -> None:
    """Raises ValueError for more solver steps than the full run has."""
    if num_steps > full_steps:
        raise ValueError(f"steps is {num_steps}, and the arm's steps are {full_steps}: take at most those, or raise the arm's")


def own_steps(geometry: ModelGeometry, full_steps: int, share: float) -> int:
    """Solver steps of a method that takes fewer; all of a step-distilled model's, which has none to spare."""
    return full_steps if geometry.meanflow else max(1, round(full_steps * share))


def relative_shifts(geometry: ModelGeometry, pattern: Sequence[float]) -> tuple[float, ...]:
    """A pattern that was published for HunyuanVideo, whose own shift is 7, for a model with another shift."""
    return tuple(geometry.full_shift * value / PATTERN_SHIFT for value in pattern)


def default_shifts(geometry: ModelGeometry, rates: Sequence[float], patterns: Mapping[int, Sequence[float]]) -> tuple[float, ...]:
    """Of stages whose user gave none: the pattern for as many rates, and the model's own shift for one.

    Raises ValueError for a number of rates that has no pattern.
    """
    if len(rates) == 1:
        return (geometry.full_shift,)
    if len(rates) not in patterns:
        known = " or ".join(map(str, sorted(patterns)))
        raise ValueError(f"rates is {list(rates)}: give shifts for other than {known} rates, one each")
    return relative_shifts(geometry, patterns[len(rates)])


PATTERN_SHIFT = 7.0


def matched_shift(full_grid: Grid, grid: Grid, shift: float) -> float:
    """The shift under which a smaller grid's levels say as much of its cells as ``shift`` says of the full grid's.

    A cosine's coefficient grows with the root of the number of cells, white noise has none to gain, so at equal
    sigma the smaller grid has the lower signal (SD3, Esser et al. 2024, section 5.3.2, has the same factor).
    """
    return shift * math.sqrt(math.prod(grid[1:]) / math.prod(full_grid[1:]))


def level_of_band(full_grid: Grid, rate: float, threshold: float, decay: float) -> float:
    """The noise level, on the full grid, at which a detail just beyond the band of ``rate`` begins to be told from noise.

    There its power is ``threshold`` times the noise's. Powers are taken to fall as frequency^-decay, with a mean of 1 over
    all of a frame's cosines but the constant.
    """
    power = rate**-decay / _mean_power(full_grid[1], full_grid[2], decay)
    return 1 / (1 + math.sqrt(threshold / power))


@functools.lru_cache(maxsize=64)
def _mean_power(height: int, width: int, decay: float) -> float:
    """Of frequencies in (0, sqrt 2], 1 being the finest along one axis."""
    waves = ((i / height, j / width) for i in range(height) for j in range(width) if i or j)
    powers = [(f * f + g * g) ** (-decay / 2) for f, g in waves]
    return sum(powers) / len(powers) if powers else 1.0


def step_below(level: float, num_steps: int, shift: float) -> int:
    """The first step whose level (``orchestrator.model_geometry.shifted_sigma``) is at or below ``level``."""
    left = level / (shift - (shift - 1) * level)
    return math.ceil(num_steps * (1 - left) - SLACK)
