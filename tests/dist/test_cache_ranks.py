"""Caches on 1, 2 and 4 ranks: the same steps are left out, and the same video comes of it."""

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
from parallel.layout import layout
from parallel.native import Native
from stages.accelerators.base import Now
from stages.accelerators.trunk import Trunk
from stages.models.base import Placed, load
from tests.checkpoints import checkpoint
from tests.dist.gang import Gang
from tests.dist.method_runs import CASE, Make, beside_text, drifting, guided_clip, joint_steps, maker, shifted
from tests.dist.test_wan import condition

SHAPE = VideoShape(17, 64, 96)
STEPS = 9
SETTINGS: Mapping[str, dict[str, Any]] = {
    "teacache": {"coefficients": (1.0, 0.0), "signal": "input", "threshold": 0.2},
    "adacache": {"codebook": "fast"},
    "magcache": {"ratios": ((0.98,) * STEPS, (0.93,) * STEPS)},
    "taylorseer": {"interval": 3},
    "delta-dit": {},
    "first-block": {"threshold": 0.3},
    "dbcache": {"threshold": 0.3, "fn_blocks": 1, "warmup": 2},
    "pab": {},
    "fastercache": {},
}
"""By which each leaves something out of a short clip, and not everything."""
Told = tuple[int, int, float]
"""Step, branch, share that was computed."""


class Watched:
    """An accelerator that tells what it does."""

    def __init__(self, inner: Any, told: list[Told]) -> None:
        self.inner, self.told = inner, told
        if hasattr(inner, "negative"):
            self.negative = inner.negative

    def forward(self, trunk: Trunk, now: Now) -> Tensor:
        out: Tensor = self.inner.forward(trunk, now)
        self.told.append((now.step, now.branch, round(sum(trunk.work), 6)))
        return out


def watched(name: str, told: list[Told]) -> Make:
    def make(geometry: ModelGeometry) -> Callable[[], Watched]:
        inner = maker(name, SETTINGS[name], geometry)
        return lambda: Watched(inner(), told)

    return make


def clip(
    groups: Groups, name: str, folder: str, width: int, num_branches: int = 1, planner: str = "full"
) -> tuple[Tensor, list[Told], float] | None:
    """A guided clip by the first ``width`` ranks: its latent, what each forward of this rank computed, the operations."""
    told: list[Told] = []
    boundary = guided_clip(groups, watched(name, told), folder, SHAPE, STEPS, width, num_branches, planner)
    return None if boundary is None else (boundary.x, told, boundary.past.tflops)


@functools.cache
def alone(gang: Gang, name: str, planner: str = "full") -> tuple[Tensor, list[Told], float]:
    found: tuple[Tensor, list[Told], float] = gang.run(clip, name, str(checkpoint(CASE.name)), 1, 1, planner)[0]
    return found


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_every_width_leaves_out_the_same_and_makes_the_same_video(gang: Gang, name: str) -> None:
    expected, told, tflops = alone(gang, name)
    shares = {work for _, _, work in told}
    assert len(shares) > 1, "something is left out, and something is not"
    for width in (2, 4):
        ranks = gang.run(clip, name, str(checkpoint(CASE.name)), width)[:width]
        for x, own, own_tflops in ranks:
            assert own == told
            assert own_tflops == pytest.approx(tflops)
            torch.testing.assert_close(x, expected, atol=1e-5, rtol=0)
            assert torch.equal(x, ranks[0][0])


@pytest.mark.parametrize("name", sorted(set(SETTINGS) - {"fastercache"}))
@pytest.mark.parametrize("width", [2, 4])
def test_with_guidance_split_each_half_leaves_out_what_its_branch_does(gang: Gang, name: str, width: int) -> None:
    expected, told, _ = alone(gang, name)
    for rank, (x, own, _) in enumerate(gang.run(clip, name, str(checkpoint(CASE.name)), width, 2)[:width]):
        branch = rank // (width // 2)
        assert own == [row for row in told if row[1] == branch]
        torch.testing.assert_close(x, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["teacache", "adacache", "magcache", "taylorseer"])
def test_a_clip_that_changes_its_grid_is_the_same_on_every_width(gang: Gang, name: str) -> None:
    expected, told, _ = alone(gang, name, "dvg")
    for width, num_branches in ((4, 1), (4, 2)):
        for x, own, _ in gang.run(clip, name, str(checkpoint(CASE.name)), width, num_branches, "dvg")[:width]:
            assert set(own) <= set(told)
            torch.testing.assert_close(x, expected, atol=1e-5, rtol=0)


JOINT_GRID: Grid = (3, 6, 10)


def joint(groups: Groups, model_name: str, folder: str, name: str, width: int) -> tuple[list[Tensor], list[Told]] | None:
    """Velocities of a few steps on drifting noise, by a model whose text tokens join the image's."""
    told: list[Told] = []
    ran = joint_steps(groups, watched(name, told), model_name, folder, JOINT_GRID, STEPS, width, shifted)
    return None if ran is None else (ran[0], told)


@pytest.mark.parametrize("name", ["teacache", "adacache", "first-block"])
@pytest.mark.parametrize("model_name", ["hunyuanvideo", "hunyuanvideo-1.5"])
def test_models_with_text_among_the_tokens_decide_alike_too(gang: Gang, model_name: str, name: str) -> None:
    folder = str(checkpoint(model_name))
    expected, told = gang.run(joint, model_name, folder, name, 1)[0]
    for width in (2, 4):
        for found, own in gang.run(joint, model_name, folder, name, width)[:width]:
            assert own == told
            for x, y in zip(found, expected, strict=True):
                torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-5)


SPREAD_GRID: Grid = (3, 10, 14)


def spread(groups: Groups, model_name: str, folder: str, name: str) -> tuple[list[Tensor], list[Told]]:
    """Velocities by weights spread over all ranks, guidance, if there is any, split between two halves."""
    model = _spread_model(groups, model_name, folder)
    told: list[Told] = []
    is_joint = model_name == "hunyuanvideo"
    model.attach(layout(groups, 0, 4, 1 if is_joint else 2), Native())
    placed = beside_text(model, model_name, SPREAD_GRID) if is_joint else Placed(condition(CASE))
    found = drifting(model, watched(name, told), placed, SPREAD_GRID, STEPS, lambda x, step: x * (1 + 0.05 * step), seed=3)
    model.attach(None, None)
    return found[0], told


_models: dict[str, Any] = {}


def _spread_model(groups: Groups, name: str, folder: str) -> Any:
    if folder not in _models:
        _models[folder] = load(name, folder, parts=frozenset({"transformer"}), shard=groups.slice(0, 4))
    return _models[folder]


@pytest.mark.parametrize("model_name", [CASE.name, "hunyuanvideo"])
@pytest.mark.parametrize("name", ["teacache", "magcache"])
def test_with_weights_spread_over_ranks_both_branches_leave_out_the_same_forwards(gang: Gang, name: str, model_name: str) -> None:
    """Layers are gathered by all ranks in turn: a half that computes alone would wait for ever."""
    per_rank = gang.run(spread, model_name, str(checkpoint(model_name)), name)
    steps = [[(step, work) for step, _, work in told] for _, told in per_rank]
    assert all(own == steps[0] for own in steps)
    assert {work for _, work in steps[0]} == {0.0, 1.0}
    for found, _ in per_rank[1:]:
        assert all(map(torch.equal, found, per_rank[0][0]))
