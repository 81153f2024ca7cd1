"""Attention by pattern on 1, 2 and 4 ranks: every head keeps the same pairs, and the same video comes of it.

A method of attention is a line of ``SETTINGS``; all tests run for it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from orchestrator.dvg_config import DvgConfig
from orchestrator.methods import find, read_settings
from orchestrator.types import Attended, Grid, VideoShape
from parallel.groups import Groups
from parallel.layout import layout
from parallel.native import Native
from stages.accelerators.attending import Here
from stages.accelerators.base import Boost, StageEvent
from stages.accelerators.block_sparse import BlockSparse, SparseSettings
from stages.denoise import run_stages, start
from stages.planners import make_planner
from stages.sampling import NoiseLevel
from stages.sparse.pattern import Pattern, in_a_row
from tests.checkpoints import checkpoint
from tests.dist.gang import Gang
from tests.dist.joint_runs import hunyuan_condition
from tests.dist.joint_runs import resident as joint_resident
from tests.dist.test_wan import Case, condition, random, resident

SETTINGS: Mapping[str, dict[str, Any]] = {
    "toy": {"dense_steps": 0.25, "dense_layers": 0.0},
    "attencarve": {"block": 32},
    "draft-attention": {"dense_layers": 0.0, "tile": (2, 8)},
    "adaspa": {"dense_steps": 0.0, "block": 32, "sparsity": 0.7, "trusted_recall": 0.0},
    "spargeattn": {"topk": 0.4},
    "svg": {"dense_steps": 0.25, "dense_layers": 0.0, "density": 0.1},
    "svg2": {"dense_steps": 0.5, "dense_layers": 0.0, "query_clusters": 3, "key_clusters": 6, "at_tokens": 400, "top_p": 0.5},
    "freelong": {"window": 3},
    "re-ttention": {"dense_steps": 0.0, "block": 32, "sparsity": 0.8},
    "sparse-vdit": {
        "dense_steps": 0.0,
        "block": 32,
        "heads": (("diagonal:0.5", "full", "skip", "multi-diagonal:0.1"), ("stripe:0.2", "skip", "full", "full")) * 2,
    },
}
"""By which each leaves something out of a clip of ``STEPS`` steps on ``SHAPE``, not everything. Tiny models have two layers."""
SHAPE = VideoShape(17, 128, 160)
"""Of 5 x 8 x 10 tokens on wan-mini."""
CASE = Case("wan-mini", is_guided=True)
STEPS = 4
JOINT_GRID: Grid = (5, 16, 20)
"""Of as many tokens on HunyuanVideo, and 7 of text."""
Found = tuple[Tensor, tuple[Attended, ...], float]
"""The latent, what attention kept, the operations."""


class Toy(BlockSparse):
    """Every head keeps its own share of the blocks, those with the largest keys."""

    def choose(self, q: Tensor, k: Tensor, here: Here) -> Pattern:
        blocks = in_a_row(here.num_image, 40, q.device)
        large = blocks.mean(k).square().sum(-1)
        num_kept = 1 + torch.tensor(here.heads).unsqueeze(1) % blocks.num
        keep = large.argsort(descending=True).argsort() < num_kept
        return Pattern(blocks, blocks, keep.unsqueeze(1).expand(-1, blocks.num, -1))


def maker(name: str, geometry: Any) -> Callable[[], Any]:
    if name == "toy":
        return functools.partial(Toy, SparseSettings(**SETTINGS[name]), geometry)
    method = find(name, "accelerator")
    return functools.partial(method.make, read_settings(method, SETTINGS[name]), geometry)


def clip(groups: Groups, name: str, folder: str, width: int, num_branches: int = 1, planner: str = "full") -> Found | None:
    """A guided clip by the first ``width`` ranks."""
    if groups.rank >= width:
        return None
    model = resident(CASE.name, folder)
    model.attach(layout(groups, 0, width, num_branches), Native())
    budget, steps = (0.5, 12) if planner == "dvg" else (None, STEPS)
    makers = (maker(name, model.geometry),)
    plan = make_planner(planner, model.geometry, SHAPE, steps, budget, DvgConfig(tolerance=0.2), accelerators=makers)
    boundary = start(model, plan, condition(CASE), 3)
    while boundary.decision is None or boundary.stage < len(boundary.decision.action.stages):
        boundary, _ = run_stages(model, plan, boundary, boundary.stage + 1)
    model.attach(None, None)
    return boundary.x, boundary.past.attended, boundary.past.tflops


def joint(groups: Groups, name: str, folder: str, width: int) -> Found | None:
    """The velocities of a few steps on drifting noise, by a model whose text tokens join the image's."""
    if groups.rank >= width:
        return None
    own = joint_resident("hunyuanvideo", folder)
    own.attach(layout(groups, 0, width, 1), Native())
    given = hunyuan_condition("hunyuanvideo", 7, JOINT_GRID)
    placed = own.place(given, tuple(tuple(range(n)) for n in JOINT_GRID), "index")
    event = StageEvent(JOINT_GRID, range(STEPS), STEPS, 0, False)
    boost = Boost((maker(name, own.geometry),), event, own.geometry)
    own.accelerate(boost)
    found, x = [], random(1, own.geometry.latent_channels, *JOINT_GRID, seed=1)
    for step in range(STEPS):
        level = NoiseLevel(1 - step / 20, 1000 - 50.0 * step, 950 - 50.0 * step)
        boost.at(step, level)
        found.append(own.denoise(x + 0.02 * step, level, placed))
    attended = boost.attended()
    own.accelerate(None)
    own.attach(None, None)
    return torch.stack(found), attended, boost.share


def compare(ranks: list[Found], expected: Found) -> None:
    x, attended, work = expected
    for own_x, own_attended, own_work in ranks:
        torch.testing.assert_close(own_x, x, atol=1e-5, rtol=0)
        assert torch.equal(own_x, ranks[0][0])
        assert [row.step for row in own_attended] == [row.step for row in attended]
        assert [row.sparsity for row in own_attended] == pytest.approx([row.sparsity for row in attended], abs=1e-9)
        assert own_work == pytest.approx(work)


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_every_width_keeps_the_same_pairs_and_makes_the_same_video(gang: Gang, name: str) -> None:
    folder = str(checkpoint(CASE.name))
    expected = gang.run(clip, name, folder, 1)[0]
    most = max(row.sparsity for row in expected[1])
    assert most < 0 if name == "freelong" else 0 < most < 1, "something is left out, and something is not"
    for width in (2, 4):
        compare(gang.run(clip, name, folder, width)[:width], expected)
    compare(gang.run(clip, name, folder, 4, 2), expected)


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_text_among_the_tokens_is_attended_to_alike_on_every_width(gang: Gang, name: str) -> None:
    folder = str(checkpoint("hunyuanvideo"))
    expected = gang.run(joint, name, folder, 1)[0]
    assert max(row.sparsity for row in expected[1]) != 0
    for width in (2, 4):
        compare(gang.run(joint, name, folder, width)[:width], expected)


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_a_clip_that_changes_its_grid_is_the_same_on_every_width(gang: Gang, name: str) -> None:
    """Nothing of one stage fits the next: its numbers of tokens differ."""
    folder = str(checkpoint(CASE.name))
    expected = gang.run(clip, name, folder, 1, 1, "dvg")[0]
    compare(gang.run(clip, name, folder, 4, 1, "dvg"), expected)
