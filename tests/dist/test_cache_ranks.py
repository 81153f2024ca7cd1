"""Caches on 1, 2 and 4 ranks: the same steps are left out, and the same video comes of it."""

from __future__ import annotations

import functools
from collections.abc import Mapping
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
from stages.accelerators.trunk import Trunk
from stages.denoise import run_stages, start
from stages.models.base import Placed, load
from stages.planners import make_planner
from stages.sampling import NoiseLevel
from tests.checkpoints import checkpoint
from tests.dist.gang import Gang
from tests.dist.joint_runs import hunyuan15_condition, hunyuan_condition
from tests.dist.joint_runs import resident as joint_resident
from tests.dist.test_wan import Case, condition, random, resident

SHAPE = VideoShape(17, 64, 96)
CASE = Case("wan-mini", is_guided=True)
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


def made(name: str, told: list[Told], geometry: Any) -> Watched:
    method = find(name, "accelerator")
    return Watched(method.make(read_settings(method, SETTINGS[name]), geometry), told)


def clip(
    groups: Groups, name: str, folder: str, width: int, num_branches: int = 1, planner: str = "full"
) -> tuple[Tensor, list[Told], float] | None:
    """A guided clip by the first ``width`` ranks: its latent, what each forward of this rank computed, the operations."""
    if groups.rank >= width:
        return None
    model, told = resident(CASE.name, folder), list[Told]()
    model.attach(layout(groups, 0, width, num_branches), Native())
    budget, steps = (0.5, 12) if planner == "dvg" else (None, STEPS)
    makers = (functools.partial(made, name, told, model.geometry),)
    plan = make_planner(planner, model.geometry, SHAPE, steps, budget, DvgConfig(tolerance=0.2), accelerators=makers)
    boundary = start(model, plan, condition(CASE), 3)
    while boundary.decision is None or boundary.stage < len(boundary.decision.action.stages):
        boundary, _ = run_stages(model, plan, boundary, boundary.stage + 1)
    model.attach(None, None)
    return boundary.x, told, boundary.past.tflops


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
    if groups.rank >= width:
        return None
    own, told = joint_resident(model_name, folder), list[Told]()
    own.attach(layout(groups, 0, width, 1), Native())
    make = hunyuan15_condition if "1.5" in model_name else hunyuan_condition
    placed = own.place(make(model_name, 7, JOINT_GRID), tuple(tuple(range(n)) for n in JOINT_GRID), "index")
    boost = Boost((functools.partial(made, name, told, own.geometry),), StageEvent(JOINT_GRID, range(STEPS), STEPS, 0, False))
    own.accelerate(boost)
    found, x = [], random(1, own.geometry.latent_channels, *JOINT_GRID, seed=1)
    for step in range(STEPS):
        level = NoiseLevel(1 - step / 20, 1000 - 50.0 * step, 950 - 50.0 * step)
        boost.at(step, level)
        found.append(own.denoise(x + 0.02 * step, level, placed))
    own.accelerate(None)
    own.attach(None, None)
    return found, told


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
    axes = tuple(tuple(range(size)) for size in SPREAD_GRID)
    make = hunyuan_condition(model_name, 7, SPREAD_GRID) if is_joint else condition(CASE)
    placed = model.place(make, axes, "index") if is_joint else Placed(make)
    event = StageEvent(SPREAD_GRID, range(STEPS), STEPS, 0, False)
    boost = Boost((functools.partial(made, name, told, model.geometry),), event)
    model.accelerate(boost)
    found, x = [], random(1, model.geometry.latent_channels, *SPREAD_GRID, seed=3)
    for step in range(STEPS):
        level = NoiseLevel(1 - step / 20, 1000 - 50.0 * step, 950 - 50.0 * step)
        boost.at(step, level)
        found.append(model.denoise(x * (1 + 0.05 * step), level, placed))
    model.accelerate(None)
    model.attach(None, None)
    return found, told


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
