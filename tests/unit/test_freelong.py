"""FreeLong: windows of the trained length, blended with all frames by frequency, where a stage is longer than training clips."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
from torch import Tensor

from orchestrator.geometry import model
from orchestrator.types import Grid
from stages.accelerators.attending import Log
from stages.accelerators.freelong import low_pass, trained_frames, windows
from tests.unit.attention_calls import GEOMETRY, HEADS, dense, here, made, masked, qkv

LONG: Grid = (7, 3, 4)
TOKENS = math.prod(LONG)
CPU = torch.device("cpu")


def attended(num_text: int = 0, grid: Grid = LONG, **settings: float) -> tuple[Tensor, Log]:
    log = Log(1)
    q, k, v = qkv(math.prod(grid) + num_text)
    return made("freelong", **settings).attend(q, k, v, here(grid, log), dense), log


def test_a_frame_is_in_the_middle_of_its_window_and_at_the_ends_windows_stay_inside() -> None:
    assert windows(7, 3) == [(0, range(2)), (1, range(2, 3)), (2, range(3, 4)), (3, range(4, 5)), (4, range(5, 7))]
    for num, size in itertools.product(range(2, 12), range(1, 12)):
        if size >= num:
            continue
        frames = [(frame, first) for first, group in windows(num, size) for frame in group]
        assert [frame for frame, _ in frames] == list(range(num))
        assert all(first <= frame < first + size and 0 <= first <= num - size for frame, first in frames)


def test_the_window_is_the_length_of_the_models_own_clips() -> None:
    assert trained_frames(GEOMETRY) == 11
    assert trained_frames(model("wan2.1-1.3b")) == 21
    assert made("freelong").window == 11
    assert made("freelong", window=4).window == 4


@pytest.mark.parametrize("grid", [(11, 2, 3), (3, 2, 2)])
def test_within_the_trained_length_nothing_happens(grid: Grid) -> None:
    found, log = attended(grid=grid)
    assert torch.equal(found, dense(*qkv(math.prod(grid))))
    assert log.calls[0].density == 1.0


def pairs_nearby(num_text: int, size: int) -> Tensor:
    """Token by token: which key a query's window holds."""
    per_frame, num = LONG[1] * LONG[2], TOKENS + num_text
    seen = torch.zeros(1, num, num, dtype=torch.bool)
    for query, key in itertools.product(range(num), range(num)):
        first = min(max(query // per_frame - size // 2, 0), LONG[0] - size)
        seen[0, query, key] = query >= TOKENS or key >= TOKENS or first <= key // per_frame < first + size
    return seen


def filtered(x: Tensor, cutoff: float) -> Tensor:
    """``[t, h, w]`` by the Gaussian, with the transform written out as matrices."""
    for_each = []
    spectrum = x.to(torch.complex128)
    for dim, size in enumerate(x.shape):
        places = torch.arange(size, dtype=torch.float64)
        waves = torch.exp(-2j * math.pi * places[:, None] * places[None, :] / size)
        spectrum = torch.movedim(torch.tensordot(waves, spectrum, ([1], [dim])), 0, dim)
        for_each.append(torch.tensor([min(f, size - f) / size * 2 for f in range(size)], dtype=torch.float64))
    d = for_each[0][:, None, None] ** 2 + for_each[1][None, :, None] ** 2 + for_each[2] ** 2
    spectrum = spectrum * torch.exp(-d / (2 * cutoff**2))
    for dim, size in enumerate(x.shape):
        places = torch.arange(size, dtype=torch.float64)
        waves = torch.exp(2j * math.pi * places[:, None] * places[None, :] / size) / size
        spectrum = torch.movedim(torch.tensordot(waves, spectrum, ([1], [dim])), 0, dim)
    return spectrum.real


@pytest.mark.parametrize("num_text", [0, 5])
def test_low_frequencies_are_of_all_frames_and_high_ones_of_the_window(num_text: int) -> None:
    found, _ = attended(num_text, window=3)
    q, k, v = qkv(TOKENS + num_text)
    whole, nearby = dense(q, k, v).double(), masked(q, k, v, pairs_nearby(num_text, 3)).double()
    torch.testing.assert_close(found[:, :, TOKENS:].double(), whole[:, :, TOKENS:], atol=0, rtol=0)
    for head, channel in itertools.product(range(HEADS), (0, 5)):
        of_all, of_window = (x[0, head, :TOKENS, channel].view(LONG) for x in (whole, nearby))
        expected = filtered(of_all, 0.25) + of_window - filtered(of_window, 0.25)
        torch.testing.assert_close(found[0, head, :TOKENS, channel].view(LONG).double(), expected, atol=1e-5, rtol=0)


def test_a_wide_cut_off_leaves_dense_attention_and_a_narrow_one_the_windows_mean_free_detail() -> None:
    q, k, v = qkv(TOKENS)
    torch.testing.assert_close(attended(window=3, cutoff=100)[0], dense(q, k, v), atol=1e-4, rtol=0)
    nearby = masked(q, k, v, pairs_nearby(0, 3))
    means = (dense(q, k, v) - nearby).mean(dim=2, keepdim=True)
    torch.testing.assert_close(attended(window=3, cutoff=0.01)[0], nearby + means, atol=1e-5, rtol=0)


def test_the_weights_of_frequencies_are_those_of_both_halves_of_the_spectrum() -> None:
    weights = low_pass((4, 3, 6), 0.25, CPU)
    assert weights.shape == (4, 3, 4, 1)
    assert float(weights[0, 0, 0]) == 1.0
    assert float(weights[1, 0, 0]) == float(weights[3, 0, 0]) == pytest.approx(math.exp(-(0.5**2) / (2 * 0.25**2)))
    assert float(weights[0, 0, 3]) == pytest.approx(math.exp(-1 / (2 * 0.25**2)))


@pytest.mark.parametrize("num_text", [0, 5])
def test_it_counts_as_more_than_dense_by_the_pairs_of_its_windows(num_text: int) -> None:
    _, log = attended(num_text, window=3)
    nearby = pairs_nearby(num_text, 3)[:, :TOKENS].sum() / (TOKENS + num_text) ** 2
    assert log.calls[0].density == pytest.approx(1 + float(nearby))
    saved, (step,) = log.settle(None)
    assert saved == pytest.approx(-float(nearby))
    assert step.sparsity < 0


def test_a_head_finds_the_same_alone_as_beside_others() -> None:
    log, freelong = Log(1), made("freelong", window=3)
    q, k, v = qkv(TOKENS)
    both = freelong.attend(q, k, v, here(LONG, log), dense)
    for head in range(HEADS):
        where = dataclasses.replace(here(LONG, log), heads=range(head, head + 1))
        alone = freelong.attend(*(x[:, head : head + 1] for x in (q, k, v)), where, dense)
        torch.testing.assert_close(alone, both[:, head : head + 1], atol=1e-6, rtol=0)
