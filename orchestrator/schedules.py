"""Steps, stage sizes and densities of a schedule: the arithmetic under DVG's actions.

``steps`` of a stage counts solver steps as DVG's equation 7 does (arXiv 2605.21042). The step with index
``steps_1 + ... + steps_k`` is the transition out of stage k, and its forward still runs on the grid it leaves, so the
forwards that really run are shifted by one: :func:`forwards_per_stage`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from orchestrator.geometry import NUM_STAGES, ModelGeometry
from orchestrator.types import Action, Grid


def transition_steps(num_steps: int, rates: Sequence[float]) -> tuple[int, ...]:
    """Indices of the steps that are transitions, int(N * rate); fewer than ``rates`` when steps are too few.

    A transition needs a step before it and one after it, so legal indices are 1 .. N - 2. Rates that meet on one index
    share it. Up to 4 steps there is room for a sketch and the full grid only.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}: it must be at least 1")
    cuts = [max(1, int(num_steps * rate)) for rate in rates]
    if num_steps <= NUM_STAGES:
        cuts = cuts[:1]
    return tuple(cut for cut in sorted(set(cuts)) if cut < num_steps - 1)


def steps_per_stage(num_steps: int, rates: Sequence[float]) -> tuple[int, ...]:
    """Solver steps of each stage as the density counts them; one stage per transition, and the full grid."""
    edges = (0, *transition_steps(num_steps, rates), num_steps)
    return tuple(after - before for before, after in itertools.pairwise(edges))


def forwards_per_stage(steps: Sequence[int]) -> tuple[int, ...]:
    """Transformer calls on each stage's grid: a transition's call still runs on the grid it leaves."""
    if len(steps) == 1:
        return tuple(steps)
    return (steps[0] + 1, *steps[1:-1], steps[-1] - 1)


def stage_shapes(
    geometry: ModelGeometry, full_grid: Grid, spatial_rates: Sequence[float], temporal_rates: Sequence[float]
) -> tuple[Grid, ...]:
    """Stage sizes in the planner's units (pixels or latent cells along height and width), never shrinking.

    Rounds half to even, then aligns down to the patch; the last stage is the full size.
    """
    unit = geometry.vae_stride if geometry.pixel_planner else (1, 1, 1)
    full = (full_grid[0], full_grid[1] * unit[1], full_grid[2] * unit[2])
    multiples = (1, 1, 1) if geometry.pixel_planner else geometry.patch
    shape: Grid = (min(full[0], multiples[0]), min(full[1], multiples[1]), min(full[2], multiples[2]))
    shapes: list[Grid] = []
    for spatial, temporal in list(zip(spatial_rates, temporal_rates, strict=True))[:-1]:
        sizes = zip(full, (temporal, spatial, spatial), multiples, shape, strict=True)
        t, h, w = (_stage_size(size, rate, multiple, before) for size, rate, multiple, before in sizes)
        shape = (t, h, w)
        shapes.append(shape)
    return (*shapes, full)


def _stage_size(full: int, rate: float, multiple: int, before: int) -> int:
    size = min(max(round(full * rate), 1), full)
    return max(size // multiple * multiple, before)


def stage_grids(
    geometry: ModelGeometry, full_grid: Grid, spatial_rates: Sequence[float], temporal_rates: Sequence[float]
) -> tuple[Grid, ...]:
    """Latent grids of the stages; the last is ``full_grid``. Rates are per linear axis."""
    shapes = stage_shapes(geometry, full_grid, spatial_rates, temporal_rates)
    return tuple(_latent_grid(geometry, shape) for shape in shapes)


def _latent_grid(geometry: ModelGeometry, shape: Grid) -> Grid:
    """A planner shape as latent cells; pixels are cut to whole patches."""
    if not geometry.pixel_planner:
        return shape
    t, h, w = shape
    multiple_h, multiple_w = geometry.pixel_multiple
    _, patch_h, patch_w = geometry.patch
    return t, max(1, h // multiple_h) * patch_h, max(1, w // multiple_w) * patch_w


def density(shapes: Sequence[Grid], steps: Sequence[int], full_steps: int | None = None) -> float:
    """Share of the full run's cell-steps that a schedule spends (eq. 7). The largest shape is the full one.

    ``full_steps`` are the full run's; None: as many as the schedule has.
    """
    sizes = [math.prod(shape) for shape in shapes]
    spent = sum(size * num for size, num in zip(sizes, steps, strict=True))
    return spent / (max(sizes) * (full_steps or sum(steps)))


def density_executed(geometry: ModelGeometry, action: Action, full_steps: int | None = None) -> float:
    """Share of the full run's token-forwards that really run, transitions counted on the grid they leave.

    ``full_steps`` as of :func:`density`.
    """
    tokens = [geometry.num_tokens(stage.grid) for stage in action.stages]
    steps = [stage.steps for stage in action.stages]
    spent = sum(count * num for count, num in zip(tokens, forwards_per_stage(steps), strict=True))
    return spent / (max(tokens) * (full_steps or sum(steps)))
