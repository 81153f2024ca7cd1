"""Windows of a grid, who joins whom in them, and the way back; and shares that keep windows whole."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from parallel.seam import Seam
from parallel.shares import shares
from stages.merging import Merge, Ordered, Windows, match

GRIDS = st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9))
SIZES = st.tuples(st.sampled_from([2, 4]), st.sampled_from([2, 4, 6]))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_windows_come_one_after_the_other_and_what_fills_none_after_them() -> None:
    order = Windows((2, 3, 5), (2, 2)).order().tolist()
    first = [0, 1, 5, 6, 2, 3, 7, 8]
    assert order[:16] == [*first, *(index + 15 for index in first)]
    assert order[16:] == [4, 9, 10, 11, 12, 13, 14, 19, 24, 25, 26, 27, 28, 29]


@settings(deadline=None, max_examples=60)
@given(GRIDS, SIZES)
def test_every_token_has_one_place_and_a_window_lies_in_one_frame(grid: tuple[int, int, int], size: tuple[int, int]) -> None:
    windows = Windows(grid, size)
    order = windows.order()
    assert sorted(order.tolist()) == list(range(math.prod(grid)))
    inside = order[: windows.num * windows.area].view(windows.num, windows.area)
    frames, rows, columns = inside // (grid[1] * grid[2]), inside // grid[2] % grid[1], inside % grid[2]
    for places, length in ((frames, 1), (rows, size[0]), (columns, size[1])):
        extent = places.amax(1) - places.amin(1) if windows.num else torch.zeros(0)
        assert (extent == length - 1).all()


@pytest.mark.parametrize("step", [None, 0, 7])
def test_every_cell_of_two_by_two_has_one_destination(step: int | None) -> None:
    windows = Windows((3, 8, 12), (4, 6))
    chosen = windows.destinations(step)
    assert chosen.shape == (windows.num, windows.num_destinations)
    for places in chosen.tolist():
        cells = {(place // 6 // 2, place % 6 // 2) for place in places}
        assert len(cells) == windows.num_destinations == 6


def test_which_token_of_a_cell_it_is_goes_by_the_step_alone() -> None:
    windows = Windows((3, 8, 12), (4, 4))
    assert torch.equal(windows.destinations(3), windows.destinations(3))
    assert not torch.equal(windows.destinations(3), windows.destinations(4))
    assert windows.destinations(None)[0].tolist() == [0, 2, 8, 10]


def restated(window: Tensor, destinations: list[int], num_merged: int) -> dict[int, int]:
    """Who joins whom, token by token."""
    found = {}
    for token in set(range(len(window))) - set(destinations):
        likeness = [float(torch.cosine_similarity(window[token], window[other], dim=0)) for other in destinations]
        best = max(range(len(destinations)), key=lambda index: likeness[index])
        found[token] = (likeness[best], destinations[best])
    most = sorted(found, key=lambda token: -found[token][0])[:num_merged]
    return {token: found[token][1] for token in most}


@pytest.mark.parametrize("num_merged", [1, 5, 12])
def test_the_most_alike_join_the_destination_that_they_are_most_like(num_merged: int) -> None:
    windows = Windows((2, 4, 9), (4, 4))
    h, chosen = noise(1, 72, 5), windows.destinations(2)
    merge = match(h, chosen, num_merged, 16)
    merged, sizes = merge.merged(h)[0], merge.sizes.tolist()
    assert merged.shape[0] == len(sizes) == len(merge.rows) == 72 - windows.num * num_merged
    slot = 0
    for number, destinations in enumerate(chosen.tolist()):
        window = h[0, number * 16 : number * 16 + 16]
        joins = restated(window, destinations, num_merged)
        for token in sorted(set(range(16)) - set(joins)):
            own = [token, *(other for other, where in joins.items() if where == token)]
            assert merge.rows[slot] == number * 16 + token, "it keeps its own place"
            assert sizes[slot] == len(own)
            torch.testing.assert_close(merged[slot], window[own].mean(0))
            if len(own) == 1:
                assert torch.equal(merged[slot], window[token]), "bit for bit"
            slot += 1
    assert merge.rows[slot:].tolist() == [*range(64, 72)], "those in no window are left alone"
    assert torch.equal(merged[slot:], h[0, 64:])
    assert sizes[slot:] == [1.0] * 8


def test_the_way_back_gives_every_token_what_was_found_for_the_one_that_stands_for_it() -> None:
    windows, num_merged = Windows((1, 4, 8), (4, 4)), 6
    h = noise(1, 32, 3)
    merge = match(h, windows.destinations(0), num_merged, 16)
    found = torch.arange(20.0).view(1, 20, 1)
    back = merge.spread(found)[0, :, 0].long()
    assert torch.equal(torch.bincount(back, minlength=20).float(), merge.sizes)
    assert torch.equal(merge.spread(found)[0, merge.rows, 0], found[0, :, 0])
    means = merge.merged(h)[0]
    for token in range(32):
        group = [other for other in range(32) if back[other] == back[token]]
        torch.testing.assert_close(means[back[token]], h[0, group].mean(0))


def test_where_nobody_joins_all_stay_as_they_are() -> None:
    h = noise(1, 20, 3)
    merge = match(h, torch.tensor([[0, 2, 8, 10]]), 0, 16)
    assert torch.equal(merge.merged(h), h)
    assert torch.equal(merge.spread(h), h)
    assert merge.rows.tolist() == list(range(20))


def test_a_rank_without_a_window_has_its_loose_tokens_only() -> None:
    h = noise(1, 3, 4)
    merge = match(h, torch.zeros(0, 4, dtype=torch.int64), 5, 16)
    assert isinstance(merge, Merge)
    assert torch.equal(merge.spread(merge.merged(h)), h)


def test_tokens_in_another_order_are_laid_back_where_they_were() -> None:
    ordered = Ordered(Windows((2, 3, 5), (2, 2)).order(), (2, 3, 5), unit=4)
    x = noise(1, 30, 7)
    assert torch.equal(ordered.lay(ordered.take(x, lambda x: x), lambda tokens, grid: tokens), x)
    assert ordered.first_frame[:, 0].tolist() == [index < 15 for index in ordered.rows.tolist()]
    table = noise(30, 2)
    assert torch.equal(ordered.rotations(lambda grid: table), table[ordered.rows])


@settings(deadline=None)
@given(st.integers(0, 200), st.integers(1, 8), st.integers(1, 16), st.booleans())
def test_shares_keep_runs_whole_and_differ_by_one_run(num: int, degree: int, unit: int, spare_last: bool) -> None:
    counts = shares(num, degree, unit=unit, spare_last=spare_last)
    assert sum(counts) == num
    assert all(count % unit == 0 for count in counts[:-1])
    runs = [count // unit for count in counts]
    assert max(runs) - min(runs) <= 1
    if unit == 1:
        assert counts == shares(num, degree, spare_last=spare_last)


def test_attention_over_fewer_tokens_for_a_while_leaves_the_joining_of_rows_as_it_was() -> None:
    seen: list[tuple[int, ...]] = []

    class Told(Seam):
        def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            seen.append((*self._counts, *self._image_counts))
            return q

    seam, x = Told(torch.nn.functional.scaled_dot_product_attention), noise(1, 1, 2, 2)
    seam.cut(32, 5, unit=16)
    with seam.holding((20,)):
        seam(x, x, x)
    seam(x, x, x)
    assert seen == [(25, 20), (37, 32)]
