"""HunyuanVideo on a slice of ranks equals one rank: any width, any number of image and text tokens, whole clips."""

from __future__ import annotations

import pytest
import torch

from orchestrator.types import Grid, VideoShape
from tests.checkpoints import checkpoint
from tests.dist.gang import Gang
from tests.dist.joint_runs import WIDTHS, clip, graphs, hunyuan_condition, resident, velocities, velocity

T2V, I2V = "hunyuanvideo", "hunyuanvideo-i2v"
GRIDS: tuple[Grid, ...] = ((37, 2, 2), (3, 6, 10), (5, 14, 22))
"""37, 45 and 385 image tokens: a prime, and counts that neither 2 nor 4 divides."""
NUM_TEXT = (1, 2, 3, 7, 60)
"""Fewer than the ranks at first, so that some have none."""


def work(name: str) -> list[tuple[dict[str, object], Grid]]:
    pairs = [(num, GRIDS[1]) for num in NUM_TEXT] + [(5, grid) for grid in GRIDS]
    return [(hunyuan_condition(name, num, grid).pack(), grid) for num, grid in pairs]


@pytest.mark.parametrize("name", [T2V, I2V])
def test_every_width_on_one_resident_model_equals_one_rank(gang: Gang, name: str) -> None:
    folder = str(checkpoint(name))
    expected = [velocity(resident(name, folder), *piece) for piece in work(name)]
    assert min(v.std() for v in expected) > 0.1
    for of_rank in gang.run(velocities, name, folder, work(name)):
        for of_width in of_rank:
            torch.testing.assert_close(of_width, expected, atol=1e-5, rtol=0)


def test_a_grid_of_fewer_tokens_than_ranks_equals_one_rank(gang: Gang) -> None:
    folder, grid = str(checkpoint(T2V)), (3, 2, 2)
    pieces = [(hunyuan_condition(T2V, num, grid).pack(), grid) for num in (1, 60)]
    expected = [velocity(resident(T2V, folder), *piece) for piece in pieces]
    for of_rank in gang.run(velocities, T2V, folder, pieces):
        for of_width in of_rank:
            torch.testing.assert_close(of_width, expected, atol=1e-5, rtol=0)


def test_attention_that_stays_on_its_rank_differs(gang: Gang) -> None:
    folder = str(checkpoint(T2V))
    piece = work(T2V)[-1]
    expected = velocity(resident(T2V, folder), *piece)
    found = gang.run(velocities, T2V, folder, [piece], 1, (2,), True)[0][0][0]
    assert (found - expected).abs().max() > 1e-2


def test_no_width_and_no_prompt_compiles_the_blocks_anew(gang: Gang) -> None:
    for of_rank in gang.run(graphs, I2V, str(checkpoint(I2V)), work(I2V), ("dual_block", "single_block")):
        assert of_rank == [2, *(0 for _ in WIDTHS[1:])]


@pytest.mark.parametrize("name", [T2V, I2V])
def test_a_clip_whose_first_stage_is_on_one_rank_and_the_rest_on_two_equals_one_rank(gang: Gang, name: str) -> None:
    folder, shape = str(checkpoint(name)), VideoShape(17, 96, 128)
    packed = hunyuan_condition(name, 3, (5, 12, 16)).pack()
    expected, num_stages = clip(None, name, folder, packed, shape, (1, 1))
    assert num_stages > 1
    assert expected.std() > 0.5
    for found, _ in gang.run(clip, name, folder, packed, shape, (1, 2)):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
