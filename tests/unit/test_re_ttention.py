"""Re-ttention: a static window and sinks, scaled by the share of the weight that they had when everything was attended to."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from orchestrator.methods import find, read_settings
from orchestrator.types import Grid
from stages.accelerators.attending import Log
from stages.accelerators.re_ttention import window_and_sinks
from stages.sparse.kernel import by_blocks_with_sums, by_mask_with_sums
from stages.sparse.pattern import Pattern, in_a_row
from tests.unit.attention_calls import GEOMETRY, HEADS, dense, here, made, masked, qkv

GRID: Grid = (3, 5, 6)
TOKENS = math.prod(GRID)
CPU = torch.device("cpu")
SPARSE = {"sparsity": 0.6, "block": 16, "dense_steps": 0.0, "measure_recall": False}
"""Of 6 blocks 2 are kept: a sink and one's own."""


def seen(num_text: int) -> Tensor:
    """Token by token, by the rule."""
    num = TOKENS + num_text
    pairs = torch.zeros(1, num, num, dtype=torch.bool)
    for query in range(num):
        for key in range(num):
            pairs[0, query, key] = query >= TOKENS or key >= TOKENS or key < 16 or query // 16 == key // 16
    return pairs


def share_of(q: Tensor, k: Tensor, pairs: Tensor) -> Tensor:
    """Of each query's weight, what falls on some pairs, ``[1, heads, tokens, 1]``."""
    weights = torch.softmax(q @ k.transpose(2, 3) * q.shape[-1] ** -0.5, dim=-1)
    return (weights * pairs).sum(-1, keepdim=True)


def test_a_window_keeps_its_width_at_the_ends_and_sinks_are_seen_by_all() -> None:
    assert window_and_sinks(6, 3, 1, CPU).int().tolist() == [
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 0, 1, 1, 1, 0],
        [1, 0, 0, 1, 1, 1],
        [1, 0, 0, 1, 1, 1],
    ]


def test_of_many_blocks_the_share_is_kept_that_its_sparsity_says() -> None:
    method = made("re-ttention", block=16)
    x = torch.zeros(1, 1, 16 * 200, 8)
    pattern = method.choose(x, x, here((32, 10, 10), Log(1)))
    assert float(pattern.density) == pytest.approx(1 - 0.969, abs=0.002)


@pytest.mark.parametrize("num_text", [0, 7])
@pytest.mark.parametrize("residual", [False, True])
def test_sparse_steps_are_scaled_by_what_the_last_full_step_measured(num_text: int, residual: bool) -> None:
    method, log, pairs = made("re-ttention", **SPARSE, residual=residual, interval=3), Log(1), seen(num_text)
    steps = [qkv(TOKENS + num_text, seed) for seed in range(5)]
    found = [method.attend(*tensors, here(GRID, log, step), dense) for step, tensors in enumerate(steps)]
    for step, (q, k, v) in enumerate(steps):
        last = 3 * (step // 3)
        if step == last:
            torch.testing.assert_close(found[step], dense(q, k, v), atol=1e-5, rtol=0)
            continue
        share = share_of(*steps[last][:2], pairs)
        expected = share * masked(q, k, v, pairs)
        if residual:
            expected = expected + dense(*steps[last]) - share * masked(*steps[last], pairs)
        torch.testing.assert_close(found[step], expected, atol=1e-5, rtol=0)
    kept = float(pairs.double().mean())
    densities = [float(call.density) for call in log.calls]
    assert densities == pytest.approx([1, kept, kept, 1, kept])
    executed = [float(call.executed) for call in log.calls]
    assert executed[0] == executed[3] == executed[1] + 1, "a measurement costs both"
    assert executed[1] > kept, "in whole blocks, of which the last has empty slots"


def test_the_same_queries_and_keys_give_what_dense_attention_gives() -> None:
    method, log = made("re-ttention", **SPARSE), Log(1)
    q, k, v = qkv(TOKENS)
    for step in range(3):
        torch.testing.assert_close(method.attend(q, k, v, here(GRID, log, step), dense), dense(q, k, v), atol=1e-5, rtol=0)


def test_branches_layers_and_chunks_of_heads_are_measured_apart() -> None:
    method, log = made("re-ttention", **SPARSE), Log(2)
    places = [(branch, layer, head) for branch in (0, 1) for layer in (0, 1) for head in range(HEADS)]
    for step in (0, 1):
        for seed, (branch, layer, head) in enumerate(places):
            q, k, v = (x[:, head : head + 1] for x in qkv(TOKENS, seed))
            where = here(GRID, log, step, layer, branch, heads=range(head, head + 1))
            torch.testing.assert_close(method.attend(q, k, v, where, dense), dense(q, k, v), atol=1e-5, rtol=0)


def test_the_first_step_of_a_stage_is_full_and_so_are_dense_steps() -> None:
    q, k, v = qkv(TOKENS)
    for steps, dense_steps, full in ((range(4, 10), 0.1, [4, 9]), (range(10), 0.2, [0, 1, 2, 7])):
        method, log = made("re-ttention", **{**SPARSE, "dense_steps": dense_steps}), Log(1)
        for step in steps:
            method.attend(q, k, v, here(GRID, log, step, steps=steps), dense)
        assert [call.step for call in log.calls if float(call.density) == 1] == full


def test_the_first_step_of_a_clip_measures_and_every_layer_is_sparse_by_default() -> None:
    method, log = made("re-ttention", sparsity=0.6, block=16), Log(1)
    for step in range(6):
        method.attend(*qkv(TOKENS), here(GRID, log, step), dense)
    assert [float(call.executed) > 1 for call in log.calls] == [True, False, False, False, False, True]


@pytest.mark.parametrize("settings", [{"sparsity": 0.0}, {"dense_steps": 1.0}, {"dense_layers": 1.0}])
def test_with_nothing_left_out_it_is_dense_attention_bit_for_bit(settings: dict[str, float]) -> None:
    method, log = made("re-ttention", **{**SPARSE, **settings}), Log(1)
    for step in range(3):
        assert torch.equal(method.attend(*qkv(TOKENS, step), here(GRID, log, step), dense), dense(*qkv(TOKENS, step)))
    assert [call.density for call in log.calls] == [1.0] * 3


def test_what_it_keeps_is_told() -> None:
    method = find("re-ttention", "accelerator")
    kept = [method.kept_tensors(read_settings(method, {"residual": residual}), GEOMETRY) for residual in (True, False)]
    assert kept == [7 + 7 * 2 / 32, 7 * 2 / 32]
    assert method.kept_tensors(read_settings(method, {"sparsity": 0}), GEOMETRY) == 0


@pytest.mark.parametrize("num_text", [0, 7])
def test_sums_by_blocks_are_those_of_the_mask(num_text: int) -> None:
    blocks = in_a_row(90, 16, CPU)
    pattern = Pattern(blocks, blocks, window_and_sinks(6, 2, 1, CPU).expand(HEADS, -1, -1)).with_text(num_text)
    q, k, v = (torch.randn(1, HEADS, 90 + num_text, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
    found, sums = by_mask_with_sums(q, k, v, pattern)
    scores = (q @ k.transpose(2, 3) / 4).masked_fill(~pattern.pairs(), -torch.inf)
    torch.testing.assert_close(sums, scores.logsumexp(-1))
    torch.testing.assert_close(found, torch.softmax(scores, dim=-1) @ v)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is not compiled
        by_blocks = by_blocks_with_sums(q, k, v, pattern, run=flex_attention)
    torch.testing.assert_close(by_blocks[0], found, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(by_blocks[1], sums, atol=1e-5, rtol=1e-5)
