"""AdaSpa: exact sums by blocks, what heads keep of them, when it searches, and that nothing changes between searches."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from orchestrator.types import Grid
from stages.accelerators.adaspa import AdaSpa, graded, settled
from stages.accelerators.attending import Log
from stages.accelerators.base import StageEvent
from stages.sparse.choosing import block_sums, num_passes
from stages.sparse.pattern import Pattern, in_a_row, in_tiles
from tests.unit.scripted_attention import dense, here, method, noise, stage, within

GRID: Grid = (3, 5, 7)
"""105 tokens: 7 blocks of 16, the last of 9."""
BLOCK = 16
NUM = 7
CPU = torch.device("cpu")
SEARCH = 2.0
"""What a search does here, of dense attention's operations: itself, and a pass for up to 8 blocks with heads as wide."""


def sums_by_hand(q: Tensor, k: Tensor) -> Tensor:
    weights = torch.softmax(q[0] @ k[0].transpose(1, 2) / math.sqrt(q.shape[-1]), dim=-1)
    parts = [range(start, min(start + BLOCK, 105)) for start in range(0, 105, BLOCK)]
    return torch.stack([torch.stack([weights[:, row][:, :, column].sum((1, 2)) for column in parts], 1) for row in parts], 1)


@pytest.mark.parametrize(("head_dim", "passes"), [(8, 1), (16, 1), (4, 2), (2, 4)])
def test_sums_by_blocks_are_those_of_dense_attention_in_as_many_passes_as_are_needed(head_dim: int, passes: int) -> None:
    q, k, _ = noise(GRID, head_dim=head_dim)
    blocks = in_a_row(105, BLOCK, CPU)
    found = block_sums(q, k, blocks, dense)
    assert num_passes(blocks, head_dim) == passes
    torch.testing.assert_close(found, sums_by_hand(q, k))
    torch.testing.assert_close(found.sum((1, 2)), torch.full((2,), 105.0))


def test_sums_by_blocks_hold_for_tiles_and_beside_text() -> None:
    q, k, _ = noise(GRID, num_text=4)
    tiles = in_tiles(GRID, (1, 2, 4), CPU)
    weights = torch.softmax(q[0] @ k[0].transpose(1, 2) / math.sqrt(q.shape[-1]), dim=-1)[:, :105, :105]
    belongs = torch.nn.functional.one_hot(tiles.places[0] // tiles.size).float()
    torch.testing.assert_close(block_sums(q, k, tiles, dense), belongs.T @ weights @ belongs)


def by_the_rule(sums: Tensor, sparsity: float, trusted: float) -> Tensor:
    """Which blocks the heads of a layer keep, ``[heads, n, n]``."""
    heads, num = len(sums), sums.shape[-1]

    def largest(head: int, count: int) -> set[int]:
        sink = [i * num for i in range(num)]
        others = [place for place in range(num * num) if place % num]
        values = sums[head].flatten().tolist()
        return set((sink + sorted(others, key=lambda place: -values[place]))[:count])

    usual = round((1 - sparsity) * num * num)
    change = usual - usual // 2
    recalls = [float(sums[head].flatten()[sorted(largest(head, usual))].sum() / sums[head].sum()) for head in range(heads)]
    order = sorted(range(heads), key=lambda head: -recalls[head])
    moved = min(sum(recall >= trusted for recall in recalls), heads // 2)
    counts = dict.fromkeys(order[:moved], usual - change)
    counts |= dict.fromkeys(order[moved : heads - moved], usual) | dict.fromkeys(order[heads - moved :], usual + change)
    keep = torch.zeros(heads, num * num, dtype=torch.bool)
    for head in range(heads):
        keep[head, sorted(largest(head, counts[head]))] = True
    return keep.view(heads, num, num)


def pointed(heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Heads from one that looks everywhere to one that looks at few tokens."""
    q, k, v = noise(GRID, heads=heads, head_dim=16)
    return q * torch.linspace(0.05, 2.5, heads).view(1, heads, 1, 1), k, v


def searched(spa: AdaSpa, steps: Sequence[int], event: StageEvent, qkv: Any, log: Log | None = None) -> list[Tensor]:
    q, k, v = qkv
    heads = range(q.shape[1])
    return [spa.attend(q, k, v, here(GRID, event, step, heads=heads, log=log), dense) for step in steps]


@pytest.mark.parametrize("trusted", [0.0, 0.61, 1.0])
def test_heads_keep_what_the_rule_says_and_their_mean_is_what_was_asked_for(trusted: float) -> None:
    q, k, v = pointed(6)
    spa = method("adaspa", sparsity=0.6, trusted_recall=trusted, block=BLOCK)
    first, second = searched(spa, (2, 3), stage(), (q, k, v))
    keep = by_the_rule(sums_by_hand(q, k), 0.6, trusted)
    pattern = spa.choose(q, k, here(GRID, step=4, heads=range(6)))
    assert torch.equal(pattern.keep, keep)
    assert int(keep.sum()) == 6 * round(0.4 * NUM * NUM)
    assert torch.equal(first, dense(q, k, v))
    torch.testing.assert_close(second, within(q, k, v, pattern.pairs()))


def test_it_matters_which_heads_are_trusted() -> None:
    """The control: here some heads are moved, and not all."""
    q, k, _ = pointed(6)
    sums = sums_by_hand(q, k)
    counts = [sorted({int(head.sum()) for head in by_the_rule(sums, 0.6, trusted)}) for trusted in (0.0, 0.61, 1.0)]
    assert counts == [[10, 30], [10, 20, 30], [20]]


@pytest.mark.parametrize(
    ("recall", "trusted", "levels"),
    [
        ([0.9, 0.5, 0.7, 0.95], 0.8, [0, 2, 2, 0]),
        ([0.9, 0.5, 0.7, 0.6], 0.8, [0, 2, 1, 1]),
        ([0.9, 0.95, 0.85, 0.99, 0.97], 0.8, [2, 1, 2, 0, 0]),
        ([0.1, 0.2], 0.8, [1, 1]),
        ([0.9], 0.8, [1]),
    ],
)
def test_as_many_heads_are_sparser_as_are_less_sparse(recall: list[float], trusted: float, levels: list[int]) -> None:
    assert settled(torch.tensor(recall), trusted).tolist() == levels


@pytest.mark.parametrize("sparsity", [0.0, 0.2, 0.5, 0.8, 0.95])
def test_the_three_sparsities_of_a_head_are_evenly_apart_and_each_row_keeps_the_sink(sparsity: float) -> None:
    sums = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(3))
    levels = graded(sums, sparsity)
    sizes = [int((levels[0] <= level).sum()) for level in range(3)]
    assert sizes[1] == max(8, round((1 - sparsity) * 64))
    assert sizes[1] - sizes[0] == sizes[2] - sizes[1]
    assert bool((levels[:, :, 0] == 0).all())


def test_what_a_search_found_is_used_until_the_next_one_which_finds_anew() -> None:
    event, log = stage(), Log(7)
    one, other = noise(GRID, seed=1), noise(GRID, seed=2)
    spa = method("adaspa", sparsity=0.6, block=BLOCK)
    searched(spa, (0, 1, 2), event, one, log)
    later = searched(spa, (3, 5), event, other, log)
    kept = within(*other, method_pattern(one).pairs())
    for found in later:
        torch.testing.assert_close(found, kept)
    searched(spa, (6, 7), event, other, log)
    torch.testing.assert_close(searched(spa, (8,), event, other)[0], within(*other, method_pattern(other).pairs()))
    told = [(call.step, float(call.density), float(call.executed)) for call in log.calls]
    assert [row for row in told if row[1] == 1] == [(0, 1, 1), (1, 1, 1), (2, 1, SEARCH), (6, 1, SEARCH)]
    assert all(density < 0.6 for step, density, _ in told if step in (3, 5, 7))


def method_pattern(qkv: Any) -> Any:
    spa = method("adaspa", sparsity=0.6, block=BLOCK)
    searched(spa, (2,), stage(), qkv)
    return spa.choose(*qkv[:2], here(GRID, step=3))


def searches(steps: Sequence[int], event: StageEvent, head_dim: int = 8, **settings: Any) -> list[int]:
    log = Log(7)
    searched(method("adaspa", block=BLOCK, **settings), steps, event, noise(GRID, head_dim=head_dim), log)
    return [call.step for call in log.calls if float(call.executed) >= SEARCH]


def test_of_50_steps_the_10th_and_the_30th_search() -> None:
    event = stage(num_steps=50)
    assert searches(range(50), event) == [10, 30]
    assert searches([*range(9), 12, 28, 33, 34], event) == [12, 33], "as soon as there is a forward"


def test_every_stage_searches_at_its_first_step_or_as_many_later_as_is_set_but_not_at_its_last() -> None:
    second = stage(1, 4, num_steps=5)
    assert searches(second.steps, second) == [5]
    assert searches(second.steps, second, first_search=1) == [6]
    assert searches(second.steps, second, first_search=4) == []
    third = stage(2, 4, num_steps=5)
    assert searches(third.steps, third) == [10], "60 % of the clip's 20 steps are done, and its own search is too near"


@pytest.mark.parametrize(("grid", "num_text"), [((4, 4, 8), 0), (GRID, 0), (GRID, 4)])
@pytest.mark.parametrize("head_dim", [8, 2, 1])
def test_no_stage_computes_more_than_dense_attention_would(head_dim: int, grid: Grid, num_text: int) -> None:
    """Wherever it lies in a clip: a pass or four or eight are what a search costs, and of whole blocks fewer are spared."""
    q, k, v = noise(grid, heads=1, head_dim=head_dim, num_text=num_text)
    for first, num in itertools.product((0, 8, 16, 23, 27, 31), (1, 2, 5, 8, 9, 13, 20, 50)):
        event, log = StageEvent((1, 1, 1), range(first, first + num), 50, 0, False), Log(7)
        spa = method("adaspa", sparsity=0.75, trusted_recall=1, dense_steps=0, block=BLOCK, search_again=(0.4, 0.6))
        for step in event.steps:
            spa.attend(q, k, v, here(grid, event, step, heads=range(1), log=log), dense)
        assert sum(float(call.executed) for call in log.calls) <= num, (first, num)


@pytest.mark.parametrize("num_text", [0, 4, 40])
def test_what_a_step_spares_is_known_before_a_search(num_text: int) -> None:
    q, k, v = noise(GRID, num_text=num_text)
    spa, log = method("adaspa", sparsity=0.6, block=BLOCK, trusted_recall=1), Log(7)
    searched(spa, (5, 8), stage(num_steps=20), (q, k, v), log)
    assert [float(call.executed) for call in log.calls] == pytest.approx([SEARCH, 1 - spa._spared(q, here(GRID))])


@pytest.mark.parametrize(("num_steps", "head_dim", "pays"), [(2, 8, False), (3, 8, True), (6, 2, False), (7, 2, True)])
def test_a_stage_too_short_to_spare_what_a_search_costs_stays_dense(num_steps: int, head_dim: int, pays: bool) -> None:
    """A search is a pass of heads 8 wide, and four of heads 2 wide; a step spares 0.8."""
    second = stage(1, 4, num_steps)
    assert searches(second.steps, second, head_dim, search_again=()) == [num_steps] * pays


def test_branches_and_layers_and_chunks_of_heads_are_kept_apart() -> None:
    spa, event = method("adaspa", sparsity=0.6, trusted_recall=0.61, block=BLOCK), stage()
    whole = method("adaspa", sparsity=0.6, trusted_recall=0.61, block=BLOCK)
    cases = [(branch, layer, pointed(6)) for branch in (0, 1) for layer in (0, 3)]
    for step in (2, 3):
        for branch, layer, (q, k, v) in cases:
            q = q * (1 + branch + layer)
            wanted = whole.attend(q, k, v, here(GRID, event, step, layer, range(6), branch=branch), dense)
            parts = []
            for part in (slice(0, 2), slice(2, 6)):
                told = here(GRID, event, step, layer, range(6)[part], branch=branch)
                parts.append(spa.attend(q[:, part], k[:, part], v[:, part], told, dense))
            torch.testing.assert_close(torch.cat(parts, dim=1), wanted)


def test_at_a_sparsity_of_0_it_is_dense_bit_for_bit_and_searches_never() -> None:
    log = Log(7)
    qkv = noise(GRID, num_text=4)
    found = searched(method("adaspa", sparsity=0, block=BLOCK), (4, 5), stage(), qkv, log)
    assert all(torch.equal(x, dense(*qkv)) for x in found)
    assert [call.density for call in log.calls] == [1.0, 1.0]


def test_text_has_its_share_of_the_weights_is_attended_to_by_all_and_attends_to_all() -> None:
    q, k, v = noise(GRID, num_text=4)
    spa = method("adaspa", sparsity=0.6, block=BLOCK, trusted_recall=1)
    found = searched(spa, (2, 3), stage(), (q, k, v))[1]
    blocks = in_a_row(105, BLOCK, CPU)
    keep = by_the_rule(block_sums(q, k, blocks, dense), 0.6, 1.0)
    torch.testing.assert_close(found, within(q, k, v, Pattern(blocks, blocks, keep).with_text(4).pairs()))
