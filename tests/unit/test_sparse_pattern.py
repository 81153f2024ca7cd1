"""Patterns of blocks: what is attended to, counted, measured, and computed alike by mask and by blocks."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from stages.sparse.kernel import _listed, block_mask, by_blocks, by_mask, filled_up, kernel_options, recall, spread_rows
from stages.sparse.pattern import NO_TOKEN, Blocks, Pattern, _picked, in_a_row, in_order, in_tiles

CPU = torch.device("cpu")
SIZES = st.integers(1, 9)


def random_keep(heads: int, queries: Blocks, keys: Blocks, seed: int = 0) -> Tensor:
    keep = torch.rand(heads, queries.num, keys.num, generator=torch.Generator().manual_seed(seed)) < 0.4
    keep[:, :, 0] = True
    return keep


def per_head(num_tokens: int, size: int) -> Blocks:
    orders = [torch.randperm(num_tokens, generator=torch.Generator().manual_seed(head)) for head in range(2)]
    return in_order(torch.stack(orders), size)


LAYOUTS = {
    "row": in_a_row(90, 32, CPU),
    "tiles": in_tiles((2, 5, 9), (1, 2, 4), CPU),
    "heads": per_head(90, 16),
}


@given(grid=st.tuples(SIZES, SIZES, SIZES), tile=st.tuples(SIZES, SIZES, SIZES))
@settings(max_examples=60, deadline=None)
def test_every_token_has_one_slot_and_lies_in_its_own_tile(grid: tuple[int, int, int], tile: tuple[int, int, int]) -> None:
    blocks = in_tiles(grid, tile, CPU)
    assert sorted(slot for slot in blocks.slots[0].tolist() if slot != NO_TOKEN) == list(range(math.prod(grid)))
    for row in blocks.slots.view(blocks.num, -1).tolist():
        tokens = [token for token in row if token != NO_TOKEN]
        assert row[: len(tokens)] == tokens, "gaps come last"
        places = {
            (token // (grid[1] * grid[2]) // tile[0], token // grid[2] % grid[1] // tile[1], token % grid[2] // tile[2])
            for token in tokens
        }
        assert len(places) == 1


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("num_text", [0, 7])
def test_taking_and_putting_back_changes_nothing(name: str, num_text: int) -> None:
    blocks = LAYOUTS[name].followed_by(num_text) if num_text else LAYOUTS[name]
    x = torch.randn(1, 2, 90 + num_text, 3)
    assert torch.equal(blocks.put(blocks.take(x)), x)
    assert int(blocks.counts[0].sum()) == 90 + num_text
    empty = (blocks.slots == NO_TOKEN).expand(2, -1)
    assert not blocks.take(x)[0][empty].any()


def test_the_mean_of_a_block_is_that_of_its_tokens_alone() -> None:
    x = torch.arange(5.0).view(1, 1, 5, 1)
    assert in_a_row(5, 3, CPU).mean(x)[0, :, 0].tolist() == [1.0, 3.5]


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("num_text", [0, 7])
def test_pairs_density_and_rows_say_the_same(name: str, num_text: int) -> None:
    blocks = LAYOUTS[name]
    pattern = Pattern(blocks, blocks, random_keep(2, blocks, blocks)).with_text(num_text)
    pairs = pattern.pairs()
    assert pairs.shape == (2, 90 + num_text, 90 + num_text)
    assert float(pattern.density) == pytest.approx(float(pairs.double().mean()))
    rows = torch.tensor([0, 13, 89])
    assert torch.equal(pattern.seen_by(rows), pairs[:, rows])
    assert bool(pairs[:, 90:].all())
    assert bool(pairs[:, :, 90:].all())


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("num_text", [0, 7])
def test_slots_executed_are_those_of_kept_blocks_whole_where_keys_have_a_token(name: str, num_text: int) -> None:
    blocks = LAYOUTS[name]
    empty = torch.full((len(blocks.slots), blocks.size), NO_TOKEN)
    keys = Blocks(torch.cat([blocks.slots, empty], dim=1), blocks.size, 90)
    pattern = Pattern(blocks, keys, random_keep(2, blocks, keys)).with_text(num_text)
    counts = pattern.keys.counts.expand(2, -1).tolist()
    num = sum(
        keep and counts[head][place] > 0
        for head, rows in enumerate(pattern.keep.tolist())
        for row in rows
        for place, keep in enumerate(row)
    )
    assert float(pattern.executed) == pytest.approx(num * blocks.size**2 / 2 / (90 + num_text) ** 2)
    assert pattern.executed > pattern.density


def test_shares_are_counted_to_the_last_pair_where_there_are_many() -> None:
    blocks = in_a_row(70_001, 128, CPU)
    pattern = Pattern(blocks, blocks, torch.ones(1, blocks.num, blocks.num, dtype=torch.bool))
    assert float(pattern.density) == 1
    assert float(pattern.executed) == (blocks.num * 128) ** 2 / 70_001**2


def test_a_kept_pair_of_blocks_is_all_pairs_of_their_tokens_and_no_others() -> None:
    queries, keys = in_a_row(6, 2, CPU), in_order(torch.tensor([[5, 0, 3, 1, 2, 4]]), 3)
    keep = torch.tensor([[[True, False], [False, True], [True, True]]])
    assert Pattern(queries, keys, keep).pairs()[0].int().tolist() == [
        [1, 0, 0, 1, 0, 1],
        [1, 0, 0, 1, 0, 1],
        [0, 1, 1, 0, 1, 0],
        [0, 1, 1, 0, 1, 0],
        [1, 1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1, 1],
    ]


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("num_text", [0, 7])
def test_flex_attention_over_blocks_is_attention_under_the_mask(name: str, num_text: int) -> None:
    queries, keys = LAYOUTS[name], LAYOUTS["row"]
    pattern = Pattern(queries, keys, random_keep(2, queries, keys)).with_text(num_text)
    q, k, v = (torch.randn(1, 2, 90 + num_text, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is not compiled
        found = by_blocks(q, k, v, pattern, run=flex_attention)
    torch.testing.assert_close(found, by_mask(q, k, v, pattern), atol=1e-6, rtol=1e-5)


def test_a_block_mask_lists_whole_blocks_apart_from_those_with_empty_slots() -> None:
    blocks = in_a_row(70, 32, CPU)
    mask = block_mask(Pattern(blocks, blocks, torch.ones(1, 3, 3, dtype=torch.bool)))
    assert mask.kv_num_blocks[0, 0].tolist() == [1, 1, 1]
    assert mask.kv_indices[0, 0, :, 0].tolist() == [2, 2, 2]
    assert mask.full_kv_num_blocks is not None
    assert mask.full_kv_num_blocks[0, 0].tolist() == [2, 2, 2]


def test_a_block_of_keys_without_a_token_is_in_no_list() -> None:
    empty = torch.full((1, 32), NO_TOKEN)
    keys = Blocks(torch.cat([in_a_row(64, 32, CPU).slots, empty], dim=1), 32, 64)
    mask = block_mask(Pattern(in_a_row(64, 32, CPU), keys, torch.ones(1, 2, 3, dtype=torch.bool)))
    assert mask.kv_num_blocks[0, 0].tolist() == [0, 0]
    assert mask.full_kv_indices is not None
    assert mask.full_kv_indices[0, 0, :, :2].tolist() == [[0, 1], [0, 1]]


@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=4))
def test_kept_blocks_are_listed_in_order_the_others_count_for_nothing(rows: list[list[bool]]) -> None:
    counts, which = _listed(torch.tensor([rows]))
    for row, count, listed in zip(rows, counts[0, 0].tolist(), which[0, 0].tolist(), strict=True):  # of the one head
        assert listed[:count] == [place for place, kept in enumerate(row) if kept]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(st.integers(1, 40), st.integers(1, 40))
def test_tiles_of_the_kernel_divide_the_blocks(dtype: torch.dtype, queries: int, keys: int) -> None:
    query_block, key_block = 16 * queries, 16 * keys
    options = kernel_options(query_block, key_block, dtype)
    assert query_block % options.get("BLOCK_M", 128) == key_block % options.get("BLOCK_N", 128) == 0
    assert min(options.get("BLOCK_M", 128), options.get("BLOCK_N", 128)) >= 16


@pytest.mark.parametrize(("size", "filled"), [(128, 128), (192, 192), (64, 64), (96, 96), (32, 32), (7, 16), (100, 112)])
def test_blocks_are_filled_up_to_what_the_kernel_takes(size: int, filled: int) -> None:
    blocks = in_order(torch.randperm(200, generator=torch.Generator().manual_seed(0)).unsqueeze(0), size)
    found = filled_up(Pattern(blocks, blocks, torch.ones(1, blocks.num, blocks.num, dtype=torch.bool))).queries
    assert (found.size, found.num) == (filled, blocks.num)
    assert torch.equal(found.counts, blocks.counts)
    x = torch.randn(1, 2, 200, 3)
    assert torch.equal(found.put(found.take(x)), x)


@given(
    st.integers(0, 9), st.sampled_from([1, 3, 4, 8]), st.sampled_from([torch.bool, torch.bfloat16, torch.float32]), st.booleans()
)
def test_rows_are_the_same_however_they_are_copied(first: int, width: int, dtype: torch.dtype, per_head: bool) -> None:
    whole = torch.randn(1, 20, 2, 12, generator=torch.Generator().manual_seed(0)).to(dtype)
    x = whole[:, first:, :, first % 5 : first % 5 + width].transpose(1, 2)
    index = torch.randint(x.shape[2], (2 if per_head else 1, 7), generator=torch.Generator().manual_seed(1))
    expected = torch.stack([x[0, head, index[head % len(index)]] for head in range(2)]).unsqueeze(0)
    assert torch.equal(_picked(x, index), expected)


def test_recall_is_the_weight_on_kept_keys_and_1_where_all_are_kept() -> None:
    q, k = (torch.randn(1, 2, 90, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(2))
    blocks = LAYOUTS["row"]
    pattern = Pattern(blocks, blocks, random_keep(2, blocks, blocks))
    weights = torch.softmax(q[0] @ k[0].transpose(1, 2) / 4, dim=-1)
    assert float(recall(q, k, pattern, num_rows=90)) == pytest.approx(float((weights * pattern.pairs()).sum(-1).mean()), rel=1e-5)
    whole = Pattern(blocks, blocks, torch.ones(2, 3, 3, dtype=torch.bool))
    assert float(recall(q, k, whole)) == pytest.approx(1.0)


def test_the_queries_that_measure_are_spread_evenly() -> None:
    assert spread_rows(100, 4, CPU).tolist() == [12, 37, 62, 87]
    assert spread_rows(3, 64, CPU).tolist() == [0, 1, 2]
