"""Chosen tokens on 1, 2 and 4 ranks: every rank chooses the same ones, and the same video comes of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from orchestrator.model_geometry import ModelGeometry
from orchestrator.types import Grid, VideoShape
from parallel.groups import Groups
from stages.accelerators.base import Now
from stages.token_sets import Some, TokenSet
from tests.checkpoints import checkpoint
from tests.dist.gang import Gang
from tests.dist.method_runs import CASE, Make, guided_clip, joint_steps, maker

SETTINGS: Mapping[str, dict[str, Any]] = {
    "ras": {"dense_steps": 1, "reset_steps": (4,)},
    "lipar": {"threshold": 1.1, "warmup": 1, "refresh": 3, "last_steps": 1},
}
"""By which each leaves tokens out of a short clip."""
SHAPE = VideoShape(17, 64, 96)
"""Of 5 x 4 x 6 tokens on wan-mini, of which no 2 or 4 ranks have as many when some are left out."""
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


def watched(name: str, told: Told) -> Make:
    def make(geometry: ModelGeometry) -> Callable[[], Watched]:
        inner = maker(name, SETTINGS[name], geometry)
        return lambda: Watched(inner(), told)

    return make


def clip(
    groups: Groups, name: str, folder: str, width: int, num_branches: int = 1, planner: str = "full"
) -> tuple[Tensor, Told, float] | None:
    """A guided clip by the first ``width`` ranks: its latent, what this rank chose, the operations."""
    told = Told()
    boundary = guided_clip(groups, watched(name, told), folder, SHAPE, STEPS, width, num_branches, planner)
    return None if boundary is None else (boundary.x, told, boundary.past.tflops)


def joint(groups: Groups, model_name: str, folder: str, name: str, width: int) -> tuple[Tensor, Told, float] | None:
    """Velocities of a few steps on drifting noise, by a model whose text tokens join the image's."""
    told = Told()
    ran = joint_steps(groups, watched(name, told), model_name, folder, JOINT_GRID, STEPS, width)
    return None if ran is None else (torch.stack(ran[0]), told, ran[2])


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
