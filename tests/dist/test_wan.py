"""Wan on 1, 2, 4, 2 and 1 ranks of one resident model: any number of tokens, any condition, one branch or two."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from orchestrator.dvg_config import DvgConfig
from orchestrator.types import Grid, VideoShape
from parallel.groups import Groups
from parallel.layout import layout
from parallel.native import Native
from stages.compiling import maybe_compile, num_graphs
from stages.denoise import Boundary, run_stages, start
from stages.models import wan_transformer
from stages.models.base import Branch, Condition, Placed, load
from stages.models.tiny_wan import IMAGE_DIM, TEXT_DIM
from stages.models.wan import WanModel
from stages.planners.base import make_planner
from stages.sampling import NoiseLevel
from tests.checkpoints import checkpoint
from tests.dist.gang import Gang

WIDTHS = (1, 2, 4, 2, 1)
GRIDS: tuple[Grid, ...] = ((3, 4, 8), (3, 10, 14), (37, 2, 2))
"""Of 24, 105 and 37 tokens: a multiple of 4, odd, prime."""
FEW: tuple[Grid, ...] = ((1, 2, 2), (3, 2, 2))
"""Of 1 and 3 tokens: some ranks have none."""
CLIP = VideoShape(17, 64, 96)


@dataclass(frozen=True)
class Case:
    """A model and what it is asked for."""

    name: str
    timestep: float = 640.0
    is_guided: bool = False
    has_first: bool = False

    def __str__(self) -> str:
        said = (self.name, f"{self.timestep:.0f}", "guided" if self.is_guided else "", "first frame" if self.has_first else "")
        return " ".join(word for word in said if word)


@functools.cache
def resident(name: str, folder: str) -> WanModel:
    """One for all tests of a rank."""
    model = load(name, folder, parts=frozenset({"transformer"}))
    assert isinstance(model, WanModel)
    return model


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def condition(case: Case) -> Condition:
    def branch(seed: int) -> Branch:
        image = {"image": random(1, 17, IMAGE_DIM, seed=7)} if case.name == "wan2.1-i2v-14b" else {}
        return Branch({"text": random(1, 6, TEXT_DIM, seed=seed), **image}, 100)

    return Condition(branch(1), branch(2) if case.is_guided else None, 3.0, 2.0)


def velocity(model: WanModel, case: Case, grid: Grid) -> Tensor:
    """Of the same inputs on any rank."""
    channels = model.geometry.latent_channels
    beside = model.parts.experts[0].weights.config.in_channels - channels
    placed = Placed(
        condition(case),
        latent=random(1, beside, *grid, seed=4) if beside else None,
        pinned=random(1, channels, 1, *grid[1:], seed=5) if case.has_first else None,
    )
    level = NoiseLevel(case.timestep / 1000, case.timestep, 0.0)
    return model.denoise(placed.pin(random(1, channels, *grid, seed=3)), level, placed)


def shared(
    groups: Groups,
    case: Case,
    folder: str,
    width: int,
    num_branches: int = 1,
    is_control: bool = False,
    grids: tuple[Grid, ...] = GRIDS,
) -> list[Tensor] | None:
    """Velocities on some grids, by the first ``width`` ranks together."""
    if groups.rank >= width:
        return None
    model = resident(case.name, folder)
    model.attach(layout(groups, 0, width, num_branches), None if is_control else Native())
    found = [velocity(model, case, grid) for grid in grids]
    model.attach(None, None)
    return found


@pytest.mark.parametrize(
    ("case", "num_branches"),
    [
        (Case("wan-mini"), 1),
        (Case("wan2.1-1.3b"), 1),
        (Case("wan2.1-1.3b", is_guided=True), 1),
        (Case("wan2.1-1.3b", is_guided=True), 2),
        (Case("wan2.1-i2v-14b"), 1),
        (Case("wan2.1-i2v-14b", is_guided=True), 2),
        (Case("wan2.2-a14b", timestep=900.0), 1),
        (Case("wan2.2-a14b", timestep=500.0), 1),
        (Case("wan2.2-a14b", timestep=500.0, is_guided=True), 2),
        (Case("wan2.2-ti2v-5b"), 1),
        (Case("wan2.2-ti2v-5b", has_first=True), 1),
        (Case("wan2.2-ti2v-5b", has_first=True, is_guided=True), 2),
    ],
    ids=str,
)
def test_every_width_of_one_resident_model_equals_one_rank(gang: Gang, case: Case, num_branches: int) -> None:
    folder = str(checkpoint(case.name))
    found = [gang.run(shared, case, folder, width, num_branches)[:width] for width in WIDTHS]
    expected = found[0][0]
    for per_rank in found:
        for rank in per_rank:
            for velocity_, expected_ in zip(rank, expected, strict=True):
                torch.testing.assert_close(velocity_, expected_, atol=1e-5, rtol=0)
    assert all(map(torch.equal, found[-1][0], expected)), "detached, nothing is left of the groups"


@pytest.mark.parametrize(("width", "num_branches"), [(4, 1), (2, 2), (4, 2)])
def test_all_ranks_of_a_slice_hold_the_same_velocity_to_the_last_bit(gang: Gang, width: int, num_branches: int) -> None:
    case = Case("wan2.1-1.3b", is_guided=True)
    first, *others = gang.run(shared, case, str(checkpoint(case.name)), width, num_branches)[:width]
    assert all(torch.equal(x, y) for other in others for x, y in zip(other, first, strict=True))


@pytest.mark.parametrize("name", ["wan2.1-i2v-14b", "wan2.2-ti2v-5b"])
def test_fewer_tokens_than_ranks_equal_one_rank(gang: Gang, name: str) -> None:
    case, folder = Case(name, has_first="ti2v" in name), str(checkpoint(name))
    expected = gang.run(shared, case, folder, 1, 1, False, FEW)[0]
    for found in gang.run(shared, case, folder, 4, 1, False, FEW):
        for x, y in zip(found, expected, strict=True):
            torch.testing.assert_close(x, y, atol=1e-5, rtol=0)


@pytest.mark.parametrize("num_branches", [1, 2])
def test_attention_left_on_each_rank_differs(gang: Gang, num_branches: int) -> None:
    case, width = Case("wan2.1-1.3b", is_guided=True), 2 * num_branches
    folder = str(checkpoint(case.name))
    expected = gang.run(shared, case, folder, 1)[0]
    found = gang.run(shared, case, folder, width, num_branches, True)[0]
    for grid, x, y in zip(GRIDS, found, expected, strict=True):
        assert (x - y).abs().max() > 1e-2, grid


def test_a_slice_laid_out_for_two_branches_refuses_a_clip_of_one(gang: Gang) -> None:
    case = Case("wan2.1-1.3b")
    with pytest.raises(RuntimeError, match="this clip has one branch"):
        gang.run(shared, case, str(checkpoint(case.name)), 2, 2)


def leg(
    groups: Groups, case: Case, folder: str, width: int, num_branches: int, packed: dict[str, Any] | None, stop: int
) -> dict[str, Any]:
    """A clip until ``stop`` of its stages are done."""
    model = resident(case.name, folder)
    model.attach(layout(groups, 0, width, num_branches), Native())
    planner = make_planner("dvg", model.geometry, CLIP, 12, 0.5, DvgConfig(tolerance=0.2))
    boundary = start(model, planner, condition(case), 3) if packed is None else Boundary.unpack(packed)
    found = run_stages(model, planner, boundary, stop)[0].pack()
    model.attach(None, None)
    return found


def clip(gang: Gang, case: Case, num_branches: int, widths: tuple[int, ...]) -> Tensor:
    """The latent of a clip, each stage on as many ranks as ``widths`` says."""
    packed = None
    for stop, width in enumerate(widths, 1):
        packed, *others = gang.run(leg, case, str(checkpoint(case.name)), width, num_branches, packed, stop, ranks=range(width))
        assert packed is not None
        assert all((other["x"] == packed["x"]).all() for other in others)
    assert packed is not None
    assert len(packed["decision"].action.stages) == len(widths)
    return torch.from_numpy(packed["x"])


@pytest.mark.parametrize(("is_guided", "num_branches"), [(False, 1), (True, 2)])
def test_a_clip_may_run_each_stage_on_another_width(gang: Gang, is_guided: bool, num_branches: int) -> None:
    case = Case("wan2.1-1.3b", is_guided=is_guided)
    expected = clip(gang, case, num_branches, (1, 1, 1, 1))
    for widths in ((1, 2, 2, 2), (1, 2, 4, 2)):
        torch.testing.assert_close(clip(gang, case, num_branches, widths), expected, atol=1e-5, rtol=0)


def graphs(groups: Groups, folder: str) -> tuple[list[int], float]:
    """Graphs compiled up to each attaching, for both experts; the largest difference from the uncompiled model."""
    case, plain = Case("wan2.2-a14b", is_guided=True), resident("wan2.2-a14b", folder)
    torch._dynamo.reset()
    with patch.object(wan_transformer, "maybe_compile", functools.partial(maybe_compile, backend="eager")):
        model = load(case.name, folder, parts=frozenset({"transformer"}), compile_blocks=True)
    assert isinstance(model, WanModel)
    before, counts, worst = num_graphs(), [], 0.0
    for width, num_branches in ((1, 1), (2, 1), (1, 1), (2, 2), (2, 1)):
        model.attach(layout(groups, 0, width, num_branches), Native())
        for timestep in (900.0, 500.0):
            asked = Case(case.name, timestep, is_guided=True)
            for grid in GRIDS:
                worst = max(worst, float((velocity(model, asked, grid) - velocity(plain, asked, grid)).abs().max()))
        counts.append(num_graphs() - before)
    return counts, worst


def test_attaching_and_detaching_compile_nothing_anew(gang: Gang) -> None:
    for counts, worst in gang.run(graphs, str(checkpoint("wan2.2-a14b")), ranks=range(2)):
        assert counts == [1, 1, 1, 1, 1]
        assert worst < 1e-5
