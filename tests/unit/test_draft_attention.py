"""DraftAttention: tiles of frames, and which pairs of them a head keeps."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from orchestrator.types import Grid
from stages.accelerators.attending import Log
from stages.accelerators.draft_attention import DraftSettings, fitting
from tests.unit.scripted_attention import dense, here, method, noise, within

TILE = (2, 8)
GRIDS: list[Grid] = [(3, 4, 16), (2, 5, 11), (3, 3, 9)]
"""The first holds whole tiles only."""


def tiles_of(grid: Grid) -> list[list[int]]:
    """Frame by frame and row by row, the tokens of each."""
    rows, columns = (-(-size // side) for size, side in zip(grid[1:], TILE, strict=True))
    found: dict[tuple[int, int, int], list[int]] = {
        (t, y, x): [] for t in range(grid[0]) for y in range(rows) for x in range(columns)
    }
    for token in range(math.prod(grid)):
        t, y, x = token // (grid[1] * grid[2]), token // grid[2] % grid[1], token % grid[2]
        found[t, y // TILE[0], x // TILE[1]].append(token)
    return list(found.values())


def by_the_rule(q: Tensor, k: Tensor, grid: Grid, sparsity: float) -> Tensor:
    tiles, num = tiles_of(grid), math.prod(grid)
    seen = torch.zeros(q.shape[1], num, num, dtype=torch.bool)
    for head in range(q.shape[1]):
        queries = torch.stack([q[0, head, tokens].mean(0) for tokens in tiles])
        keys = torch.stack([k[0, head, tokens].mean(0) for tokens in tiles])
        draft = torch.softmax(queries @ keys.T / math.sqrt(q.shape[-1]), dim=1).tolist()
        best = sorted(((score, i, j) for i, row in enumerate(draft) for j, score in enumerate(row)), reverse=True)
        kept = {(i, j) for _, i, j in best[: round((1 - sparsity) * len(best))]}
        kept |= {(i, row.index(max(row))) for i, row in enumerate(draft)}
        for i, j in kept:
            seen[head, torch.tensor(tiles[i]).unsqueeze(1), torch.tensor(tiles[j])] = True
    return seen


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("sparsity", [0.5, 0.9])
def test_a_head_keeps_the_largest_entries_of_its_draft_and_every_row_its_largest(grid: Grid, sparsity: float) -> None:
    q, k, v = noise(grid)
    log = Log(7)
    draft = method("draft-attention", sparsity=sparsity, tile=TILE)
    found = draft.attend(q, k, v, here(grid, log=log), dense)
    seen = by_the_rule(q, k, grid, sparsity)
    assert torch.equal(draft.choose(q, k, here(grid)).pairs(), seen)
    torch.testing.assert_close(found, within(q, k, v, seen))
    assert float(log.calls[0].density) == pytest.approx(float(seen.double().mean()))


def test_on_a_grid_of_whole_tiles_density_is_one_minus_sparsity() -> None:
    grid = (3, 4, 16)
    q, k, _ = noise(grid)
    pattern = method("draft-attention", sparsity=0.5, tile=TILE).choose(q, k, here(grid))
    num = len(tiles_of(grid))
    assert 0.5 <= float(pattern.density) <= 0.5 + 1 / num


HALVED = {(45, 80): (8, 16), (30, 53): (8, 16), (9, 9): (4, 8), (8, 16): (8, 8), (4, 6): (4, 4), (1, 1): (4, 4)}


@pytest.mark.parametrize(("frame", "tile"), HALVED.items())
def test_a_tile_is_halved_until_it_is_half_of_a_frame_or_of_16_tokens(frame: tuple[int, int], tile: tuple[int, int]) -> None:
    assert fitting((8, 16), (5, *frame)) == tile


@given(
    st.sampled_from([(40, 16), (5, 128), (25, 128), (16, 40), (8, 16), (3, 256), (16, 1)]),
    st.tuples(st.integers(1, 90), st.integers(1, 90)),
)
def test_a_tile_that_fits_is_made_of_sixteens_of_tokens(given_tile: tuple[int, int], frame: tuple[int, int]) -> None:
    assert DraftSettings(tile=given_tile)
    height, width = fitting(given_tile, (5, *frame))
    assert height * width % 16 == 0


def test_at_a_sparsity_of_0_it_is_dense_bit_for_bit() -> None:
    grid, log = (2, 5, 7), Log(7)
    q, k, v = noise(grid, num_text=4)
    found = method("draft-attention", sparsity=0).attend(q, k, v, here(grid, log=log), dense)
    assert torch.equal(found, dense(q, k, v))
    assert log.calls[0].density == 1.0


@pytest.mark.parametrize(("step", "layer", "is_dense"), [(0, 6, True), (1, 0, True), (1, 1, False), (9, 6, False)])
def test_the_first_tenth_of_the_steps_and_the_first_layer_are_dense(step: int, layer: int, is_dense: bool) -> None:
    assert method("draft-attention").is_dense(here((3, 4, 8), step=step, layer=layer)) == is_dense


def test_the_published_sparsity_and_tile_are_the_defaults() -> None:
    settings = DraftSettings()
    assert (settings.sparsity, settings.tile) == (0.9, (8, 16))


@pytest.mark.parametrize("tile", [(2, 4), (8, 12), (5, 5)])
def test_tiles_that_no_gpus_kernel_takes_are_refused(tile: tuple[int, int]) -> None:
    with pytest.raises(ValidationError, match="a block is of 16, 32 or 64 tokens, or of a multiple of 128"):
        DraftSettings(tile=tile)
