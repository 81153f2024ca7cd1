"""Attention by pattern on 1, 2 and 4 ranks: every head keeps the same pairs, and the same video comes of it.

A method of attention is a line of ``SETTINGS``; all tests run for it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from orchestrator.types import Attended, Grid, VideoShape
from parallel.groups import Groups
from stages.accelerators.attending import Here
from stages.accelerators.block_sparse import BlockSparse, SparseSettings
from stages.sparse.pattern import Pattern, in_a_row
from tests.checkpoints import checkpoint
from tests.dist.gang import Gang
from tests.dist.method_runs import CASE, Make, guided_clip, joint_steps, maker, shifted

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


def method(name: str) -> Make:
    if name == "toy":
        return lambda geometry: functools.partial(Toy, SparseSettings(**SETTINGS[name]), geometry)
    return functools.partial(maker, name, SETTINGS[name])


def clip(groups: Groups, name: str, folder: str, width: int, num_branches: int = 1, planner: str = "full") -> Found | None:
    """A guided clip by the first ``width`` ranks."""
    boundary = guided_clip(groups, method(name), folder, SHAPE, STEPS, width, num_branches, planner)
    return None if boundary is None else (boundary.x, boundary.past.attended, boundary.past.tflops)


def joint(groups: Groups, name: str, folder: str, width: int) -> Found | None:
    """The velocities of a few steps on drifting noise, by a model whose text tokens join the image's."""
    ran = joint_steps(groups, method(name), "hunyuanvideo", folder, JOINT_GRID, STEPS, width, shifted)
    return None if ran is None else (torch.stack(ran[0]), *ran[1:])


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
