"""HunyuanVideo-1.5 on a slice of ranks equals one rank, whether they share the tokens, the branches of guidance or both."""

from __future__ import annotations

import pytest
import torch

from orchestrator.types import Grid, VideoShape
from tests.checkpoints import checkpoint
from tests.dist.gang import Gang
from tests.dist.joint_runs import WIDTHS, clip, graphs, hunyuan15_condition, resident, velocities, velocity

T2V, I2V = "hunyuanvideo-1.5", "hunyuanvideo-1.5-i2v"
DISTILLED, STEP_DISTILLED = "hunyuanvideo-1.5-distilled", "hunyuanvideo-1.5-i2v-step-distilled"
GRIDS: tuple[Grid, ...] = ((37, 1, 1), (3, 3, 5), (5, 7, 11))
"""37, 45 and 385 image tokens: a prime, and counts that neither 2 nor 4 divides."""
NUM_TEXT = (1, 2, 3, 7, 60)
"""Fewer than the ranks at first, so that some have none; the negative prompt has one token."""


def work(name: str) -> list[tuple[dict[str, object], Grid]]:
    pairs = [(num, GRIDS[1]) for num in NUM_TEXT] + [(5, grid) for grid in GRIDS]
    return [(hunyuan15_condition(name, num, grid).pack(), grid) for num, grid in pairs]


@pytest.mark.parametrize(("name", "num_branches"), [(T2V, 1), (T2V, 2), (I2V, 1), (I2V, 2), (DISTILLED, 1), (STEP_DISTILLED, 1)])
def test_every_width_on_one_resident_model_equals_one_rank(gang: Gang, name: str, num_branches: int) -> None:
    folder = str(checkpoint(name))
    expected = [velocity(resident(name, folder), *piece) for piece in work(name)]
    assert min(v.std() for v in expected) > 0.1
    for of_rank in gang.run(velocities, name, folder, work(name), num_branches):
        for of_width in of_rank:
            torch.testing.assert_close(of_width, expected, atol=1e-5, rtol=0)


def test_a_grid_of_fewer_tokens_than_ranks_equals_one_rank(gang: Gang) -> None:
    folder, grid = str(checkpoint(T2V)), (3, 1, 1)
    pieces = [(hunyuan15_condition(T2V, num, grid).pack(), grid) for num in (1, 60)]
    expected = [velocity(resident(T2V, folder), *piece) for piece in pieces]
    for of_rank in gang.run(velocities, T2V, folder, pieces):
        for of_width in of_rank:
            torch.testing.assert_close(of_width, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("width", "num_branches"), [(2, 1), (4, 2)])
def test_attention_that_stays_on_its_rank_differs(gang: Gang, width: int, num_branches: int) -> None:
    folder = str(checkpoint(T2V))
    piece = work(T2V)[-1]
    expected = velocity(resident(T2V, folder), *piece)
    found = gang.run(velocities, T2V, folder, [piece], num_branches, (width,), True)[0][0][0]
    assert (found - expected).abs().max() > 1e-2


def test_split_guidance_of_a_clip_without_it_is_refused(gang: Gang) -> None:
    name = DISTILLED
    outcomes = gang.outcomes(velocities, name, str(checkpoint(name)), work(name)[:1], 2, (2,))
    assert all("one branch" in str(outcome) for outcome in outcomes)


def test_no_width_and_no_prompt_compiles_the_blocks_anew(gang: Gang) -> None:
    for of_rank in gang.run(graphs, T2V, str(checkpoint(T2V)), work(T2V), ("block",)):
        assert of_rank == [1, *(0 for _ in WIDTHS[1:])]


@pytest.mark.parametrize(("name", "num_branches"), [(T2V, 1), (T2V, 2), (STEP_DISTILLED, 1)])
def test_a_clip_whose_first_stage_is_on_one_rank_and_the_rest_on_two_equals_one_rank(
    gang: Gang, name: str, num_branches: int
) -> None:
    folder, shape = str(checkpoint(name)), VideoShape(33, 96, 160, 24)
    packed = hunyuan15_condition(name, 3, (9, 6, 10)).pack()
    expected, num_stages = clip(None, name, folder, packed, shape, (1, 1))
    assert num_stages > 1
    assert expected.std() > 0.5
    for found, _ in gang.run(clip, name, folder, packed, shape, (1, 2), num_branches):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
