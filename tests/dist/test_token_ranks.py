"""Chosen tokens on 1, 2 and 4 ranks: every rank chooses the same ones, and the same video comes of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from orchestrator.dvg_config import DvgConfig
from orchestrator.methods import find, read_settings
from orchestrator.types import Grid, VideoShape
from parallel.groups import Groups
from parallel.layout import layout
from parallel.native import Native
from stages.accelerators.base import Boost, Now, StageEvent
from stages.denoise import run_stages, start
from stages.planners import make_planner
from stages.sampling import NoiseLevel
from stages.token_sets import Some, TokenSet
from tests.checkpoints import checkpoint
from tests.dist.gang import Gang
from tests.dist.joint_runs import hunyuan15_condition, hunyuan_condition
from tests.dist.joint_runs import resident as joint_resident
from tests.dist.test_wan import Case, condition, random, resident

SETTINGS: Mapping[str, dict[str, Any]] = {
    "ras": {"dense_steps": 1, "reset_steps": (4,)},
    "lipar": {"threshold": 1.1, "warmup": 1, "refresh": 3, "last_steps": 1},
}
"""By which each leaves tokens out of a short clip."""
SHAPE = VideoShape(17, 64, 96)
"""Of 5 x 4 x 6 tokens on wan-mini, of which no 2 or 4 ranks have as many when some are left out."""
CASE = Case("wan-mini", is_guided=True)
STEPS = 7
JOINT_GRID: Grid = (3, 6, 10)
Told = list[tuple[int, list[int]]]
"""Step, rows."""


class Watched:
    """A method that tells which tokens it has chosen."""

    def __init__(self, inner: Any, told: Told) -> None:
        self.inner, self.told = inner, told
        self.attend, self.saw = inner.attend, inner.saw

    @property
    def work(self) -> float:
        return float(self.inner.work)

    def tokens(self, now: Now, grid: Grid) -> TokenSet | None:
        found: TokenSet | None = self.inner.tokens(now, grid)
        if isinstance(found, Some):
            self.told.append((now.step, found.rows.tolist()))
        return found


def maker(name: str, told: Told, geometry: Any) -> Callable[[], Any]:
    method = find(name, "accelerator")
    return lambda: Watched(method.make(read_settings(method, SETTINGS[name]), geometry), told)


def clip(
    groups: Groups, name: str, folder: str, width: int, num_branches: int = 1, planner: str = "full"
) -> tuple[Tensor, Told, float] | None:
    """A guided clip by the first ``width`` ranks: its latent, what this rank chose, the operations."""
    if groups.rank >= width:
        return None
    model, told = resident(CASE.name, folder), Told()
    model.attach(layout(groups, 0, width, num_branches), Native())
    budget, steps = (0.5, 12) if planner == "dvg" else (None, STEPS)
    makers = (maker(name, told, model.geometry),)
    plan = make_planner(planner, model.geometry, SHAPE, steps, budget, DvgConfig(tolerance=0.2), accelerators=makers)
    boundary = start(model, plan, condition(CASE), 3)
    while boundary.decision is None or boundary.stage < len(boundary.decision.action.stages):
        boundary, _ = run_stages(model, plan, boundary, boundary.stage + 1)
    model.attach(None, None)
    return boundary.x, told, boundary.past.tflops


def joint(groups: Groups, model_name: str, folder: str, name: str, width: int) -> tuple[Tensor, Told, float] | None:
    """Velocities of a few steps on drifting noise, by a model whose text tokens join the image's."""
    if groups.rank >= width:
        return None
    own, told = joint_resident(model_name, folder), Told()
    own.attach(layout(groups, 0, width, 1), Native())
    make = hunyuan15_condition if "1.5" in model_name else hunyuan_condition
    placed = own.place(make(model_name, 7, JOINT_GRID), tuple(tuple(range(n)) for n in JOINT_GRID), "index")
    event = StageEvent(JOINT_GRID, range(STEPS), STEPS, 0, False)
    boost = Boost((maker(name, told, own.geometry),), event, own.geometry)
    own.accelerate(boost)
    found, x = [], random(1, own.geometry.latent_channels, *JOINT_GRID, seed=1)
    for step in range(STEPS):
        level = NoiseLevel(1 - step / 20, 1000 - 50.0 * step, 950 - 50.0 * step)
        boost.at(step, level)
        found.append(own.denoise(x * (1 + 0.02 * step), level, placed))
        boost.saw(x, found[-1])
    own.accelerate(None)
    own.attach(None, None)
    return torch.stack(found), told, boost.share


@functools.cache
def alone(gang: Gang, name: str, planner: str = "full") -> tuple[Tensor, Told, float]:
    found: tuple[Tensor, Told, float] = gang.run(clip, name, str(checkpoint(CASE.name)), 1, 1, planner)[0]
    return found


def compare(ranks: list[tuple[Tensor, Told, float]], expected: tuple[Tensor, Told, float]) -> None:
    for x, told, work in ranks:
        assert dict(told) == dict(expected[1])
        assert work == pytest.approx(expected[2])
        torch.testing.assert_close(x, expected[0], atol=1e-5, rtol=0)
        assert torch.equal(x, ranks[0][0])


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_every_width_chooses_the_same_tokens_and_makes_the_same_video(gang: Gang, name: str) -> None:
    expected = alone(gang, name)
    assert {step for step, rows in expected[1] if len(rows) < 5 * 4 * 6} >= {2, 5}
    for width, num_branches in ((2, 1), (4, 1), (2, 2), (4, 2)):
        compare(gang.run(clip, name, str(checkpoint(CASE.name)), width, num_branches)[:width], expected)


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_a_clip_that_changes_its_grid_is_the_same_on_every_width(gang: Gang, name: str) -> None:
    expected = alone(gang, name, "dvg")
    assert len({max(rows) for _, rows in expected[1]}) > 1, "tokens of several grids"
    compare(gang.run(clip, name, str(checkpoint(CASE.name)), 4, 2, "dvg"), expected)


@pytest.mark.parametrize("name", sorted(SETTINGS))
@pytest.mark.parametrize("model_name", ["hunyuanvideo", "hunyuanvideo-1.5"])
def test_with_text_among_the_tokens_too(gang: Gang, model_name: str, name: str) -> None:
    folder = str(checkpoint(model_name))
    expected = gang.run(joint, model_name, folder, name, 1)[0]
    assert expected[1]
    for width in (2, 4):
        compare(gang.run(joint, model_name, folder, name, width)[:width], expected)
