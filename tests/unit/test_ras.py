"""RAS: which tokens a step computes, what stands in for the others, and what that saves."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from orchestrator.dvg_config import DvgConfig
from orchestrator.geometry import model as geometry_of
from orchestrator.methods import Request, find
from orchestrator.types import VideoShape
from parallel.native import chunks as chunks_of
from parallel.seam import Attention
from stages.accelerators.attending import Here, Log
from stages.accelerators.base import Now, StageEvent
from stages.accelerators.ras import Ras, RasSettings, computes_all, mistakes, num_computed
from stages.token_sets import All, Some
from tests.unit.test_caches_on_models import Nothing, plain, run
from tests.unit.test_trunk import counting, noise
from tests.unit.token_runs import FAMILIES, STILL, boosted, falling, forwards, now, reads_of

WAN = geometry_of("wan-mini")
TOKENS = (3, 4, 4)
NUM = 48


def ras(geometry: Any = WAN, **settings: Any) -> Ras:
    return Ras(RasSettings(**settings), geometry)


def rows_of(own: Ras, when: Now) -> list[int] | None:
    """The tokens of a step; None: all of them."""
    chosen = own.tokens(when, TOKENS)
    return chosen.rows.tolist() if isinstance(chosen, Some) else None


def patches_of(v: Tensor) -> list[list[float]]:
    """The velocity in each token's cells, one by one: a frame deep, two high, two wide."""
    found = []
    for t in range(3):
        for h in range(4):
            for w in range(4):
                found.append(v[0, :, t, 2 * h : 2 * h + 2, 2 * w : 2 * w + 2].flatten().tolist())
    return found


@pytest.mark.parametrize("metric", ["std", "l2"])
def test_the_liveliest_tokens_are_computed_and_those_left_out_count_more_each_time(metric: str) -> None:
    own = ras(metric=metric, sample_ratio=0.4, starvation_scale=0.6, dense_steps=1, reset_steps=(5,))
    missed, chosen, last = [0] * NUM, list[int](), torch.empty(0)
    for step in range(9):
        rows = rows_of(own, now(step))
        v = noise(1, 16, 3, 8, 8, seed=step) * (1 + torch.arange(8) / 4)
        if step not in (0, 5):
            measure = statistics.stdev if metric == "std" else lambda cells: math.hypot(*cells)
            urgency = [measure(cells) * math.exp(0.6 * count) for cells, count in zip(patches_of(last), missed, strict=True)]
            expected = sorted(sorted(range(NUM), key=lambda row: -urgency[row])[:19])
            assert rows == expected
            missed = [count + (row not in expected) for row, count in enumerate(missed)]
            chosen += expected
        else:
            assert rows is None
        own.saw(v, v, now(step))
        last = v
    assert set(chosen) == set(range(NUM)), "nobody starves"


def test_both_branches_of_a_step_have_the_same_tokens_and_are_counted_once() -> None:
    own = ras(dense_steps=1, reset_steps=(), starvation_scale=3.0)
    rows_of(own, now(0))
    own.saw(*[noise(1, 16, 3, 8, 8, seed=1)] * 2, now(0))
    first = [own.tokens(now(1, branch=branch), TOKENS) for branch in (0, 1)]
    assert first[0] is first[1]
    own.saw(*[torch.ones(1, 16, 3, 8, 8) + noise(1, 16, 3, 8, 8, seed=2) / 10] * 2, now(1))
    assert sorted([*first[0].rows.tolist(), *rows_of(own, now(2))]) == list(range(NUM)), "those left out before come next"


def whole_steps(settings: RasSettings, event: StageEvent) -> list[int]:
    return [step for step in event.steps if computes_all(settings, step, event)]


def test_the_first_four_steps_the_resets_and_the_ends_of_stages_compute_all() -> None:
    settings = RasSettings()
    assert whole_steps(settings, StageEvent((3, 8, 8), range(28), 28, 0, False)) == [0, 1, 2, 3, 12, 22, 27]
    assert whole_steps(settings, StageEvent((3, 8, 8), range(56), 56, 0, False)) == [0, 1, 2, 3, 24, 44, 55]
    assert whole_steps(settings, StageEvent((3, 8, 8), range(8, 17), 28, 1, True)) == [8, 12, 16]
    assert whole_steps(RasSettings(sample_ratio=1), StageEvent((3, 8, 8), range(9), 9, 0, False)) == list(range(9))


def test_all_tokens_are_listened_to_only_where_the_next_step_leaves_some_out() -> None:
    own, told = ras(), []
    for step in range(28):
        chosen = own.tokens(now(step), TOKENS)
        told.append("some" if isinstance(chosen, Some) else "all" if isinstance(chosen, All) else "")
        own.saw(*[noise(1, 16, 3, 8, 8, seed=step)] * 2, now(step))
    assert [step for step, what in enumerate(told) if what == ""] == [0, 1, 2, 27]
    assert [step for step, what in enumerate(told) if what == "all"] == [3, 12, 22]


def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.nn.functional.scaled_dot_product_attention(q, k, v)


def test_queries_see_the_newest_keys_and_values_of_every_token_and_of_all_text() -> None:
    """By branch, layer and heads, which are told apart."""
    own, num_text, seen = ras(dense_steps=1, reset_steps=()), 3, []
    kept: dict[tuple[int, int, int], Tensor] = {}

    def watched(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        seen.append((k, v))
        return dense(q, k, v)

    for step in range(4):
        for branch in (0, 1):
            rows = rows_of(own, now(step, branch=branch))
            places = [*(range(NUM) if rows is None else rows), *range(NUM, NUM + num_text)]
            for layer, first in ((0, 0), (0, 2), (1, 0)):
                where = Here(now(step, branch=branch), layer, 2, range(first, first + 2), TOKENS, len(places) - num_text, Log(2))
                q, k, v = torch.randn(3, 1, 2, len(places), 8)
                whole = kept.setdefault((branch, layer, first), torch.zeros(2, 1, 2, NUM + num_text, 8))
                whole[0, :, :, places], whole[1, :, :, places] = k, v
                found = own.attend(q, k, v, where, watched)
                assert found.shape == q.shape
                assert torch.equal(torch.stack(seen[-1]), whole)
        own.saw(*[noise(1, 16, 3, 8, 8, seed=step)] * 2, now(step))


@pytest.mark.parametrize("few", [(1, 2), (2, 1), (3, 2), (1, 4)], ids=str)
def test_heads_may_come_in_other_chunks_with_other_numbers_of_tokens(few: tuple[int, int]) -> None:
    """An exchange cuts long sequences only: here full steps, then those that leave tokens out, then a reset."""
    num_heads, num_chunks = 4, [few[0], few[1], few[1], few[1], few[0], few[0]]

    def attended(cuts: list[int]) -> list[Tensor]:
        own, found, draw = ras(dense_steps=1, reset_steps=(3,)), [], torch.Generator().manual_seed(1)
        for step, num in enumerate(cuts):
            rows = rows_of(own, now(step))
            q, k, v = torch.randn(3, 1, num_heads, NUM if rows is None else len(rows), 8, generator=draw)
            parts = []
            for part in chunks_of(num_heads, num):
                here = Here(now(step), 0, 2, range(8 + part.start, 8 + part.stop), TOKENS, q.shape[2], Log(2))
                parts.append(own.attend(q[:, part], k[:, part], v[:, part], here, dense))
            found.append(torch.cat(parts, dim=1))
            own.saw(*[noise(1, 16, 3, 8, 8, seed=step)] * 2, now(step))
        return found

    for found, expected in zip(attended(num_chunks), attended([1] * len(num_chunks)), strict=True):
        torch.testing.assert_close(found, expected)


def test_a_token_that_is_left_out_keeps_its_velocity_of_each_branch() -> None:
    own = ras(dense_steps=1, reset_steps=())
    last = {}
    for step in range(4):
        for branch in (0, 1):
            chosen = own.tokens(now(step, branch=branch), TOKENS)
            assert chosen is not None
            new = noise(2, 16, 3, 8, 8, seed=10 * step + branch)
            found = chosen.lay(torch.empty(2, chosen.num_tokens, 1), lambda tokens, grid, new=new: new)
            if isinstance(chosen, Some):
                new = torch.where(chosen.cells, new, last[branch])
            assert torch.equal(found, new)
            last[branch] = new
        own.saw(new[:1], new[:1], now(step))


@pytest.mark.parametrize("model", FAMILIES)
def test_where_nothing_changes_what_is_kept_is_exact(model: str) -> None:
    """The same latent at the same noise level, step after step: text, held first frames and both branches are in their place."""
    (expected,) = forwards(model, None, [STILL])
    boost = boosted(model, functools.partial(ras, dense_steps=1, reset_steps=()), 5)
    for velocity in forwards(model, boost, [STILL] * 5):
        torch.testing.assert_close(velocity, expected, atol=2e-5, rtol=1e-4)
    assert boost.share < 0.999


@pytest.mark.parametrize("model", ["wan2.2-ti2v-5b", "hunyuanvideo-i2v", "hunyuanvideo-1.5"])
def test_what_was_kept_is_used(model: str) -> None:
    """The control: at other noise levels it is not exact."""
    boost = boosted(model, functools.partial(ras, dense_steps=1, reset_steps=()), 4)
    found, expected = forwards(model, boost, falling(4)), forwards(model, None, falling(4))
    equal = [torch.equal(*pair) for pair in zip(found, expected, strict=True)]
    assert equal == [True, False, False, True]


@pytest.mark.parametrize("planner", ["full", "dvg"])
def test_with_all_tokens_it_changes_no_bit_and_with_half_it_saves_by_its_rule(planner: str) -> None:
    same = run(functools.partial(ras, sample_ratio=1.0), planner=planner)
    assert torch.equal(same.x, plain(planner).x)
    assert same.past.tflops == pytest.approx(plain(planner).past.tflops)
    found = run(ras, planner=planner)
    assert 0 < (found.x - plain(planner).x).abs().max() < plain(planner).x.std()
    assert found.past.tflops < plain(planner).past.tflops
    if planner == "full":  # of 12 steps 0-3, 5, 9 and 11 compute all; the others half of the queries among all keys
        assert found.past.tflops / plain("full").past.tflops == pytest.approx((7 + 5 * 0.5) / 12, rel=1e-6)


def test_nothing_of_one_stage_is_used_in_the_next() -> None:
    """A clip that is handed over at every transition is the same."""
    make = functools.partial(ras, dense_steps=1)
    assert torch.equal(run(make, planner="dvg", repack=True).x, run(make, planner="dvg").x)


@pytest.mark.parametrize("ratio", [1 / 3, 0.5])
def test_the_share_it_tells_is_that_of_torchs_own_count(ratio: float) -> None:
    make = functools.partial(ras, dense_steps=1, reset_steps=(), sample_ratio=ratio)
    forwards("wan-mini", None, [STILL])  # what a prompt alone decides is made once

    def flops(make: Callable[[Any], Any], *more: Callable[[], Any]) -> tuple[int, float]:
        boost = boosted("wan-mini", make, 6, *more)
        with counting() as counter:
            forwards("wan-mini", boost, [STILL] * 6)
        return counter.get_total_flops(), boost.share

    every = functools.partial(ras, sample_ratio=1.0)
    spent, whole = (flops(one)[0] - flops(one, Nothing)[0] for one in (make, every))
    assert flops(make)[1] == pytest.approx((2 + 4 * ratio) / 6)
    assert spent / whole == pytest.approx((2 + 4 * ratio) / 6, abs=0.02)


@pytest.mark.parametrize("model", ["wan-mini", "hunyuanvideo"])
def test_the_host_never_waits_for_the_device(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    forwards(model, None, [STILL])
    reads, sent, make = reads_of(monkeypatch), list[Any](), torch.tensor
    monkeypatch.setattr(torch, "tensor", lambda rows, **more: (sent.append(rows), make(rows, **more))[1])
    forwards(model, boosted(model, functools.partial(ras, dense_steps=1, reset_steps=()), 6), [STILL] * 6)
    assert (reads, sent) == ([], []), "what is read from a device, or written to it"


class Blind(Ras):
    """Sees the tokens computed only."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, here: Here, dense: Attention) -> Tensor:
        return dense(q, k, v)


def test_without_the_others_keys_it_would_not_be_exact() -> None:
    (expected,) = forwards("wan-mini", None, [STILL])
    boost = boosted("wan-mini", functools.partial(Blind, RasSettings(dense_steps=1, reset_steps=())), 3)
    assert (forwards("wan-mini", boost, [STILL] * 3)[1] - expected).abs().max() > 1e-3


def test_a_clip_that_would_compute_everything_is_refused_and_memory_is_told() -> None:
    def told(num_steps: int, **settings: Any) -> list[str]:
        return mistakes(RasSettings(**settings), Request(WAN, VideoShape(17, 64, 96), num_steps, 1.0, "full", DvgConfig()))

    assert told(6) == []
    assert "dense_steps is 4" in told(5)[0]
    assert told(5, sample_ratio=1.0) == []
    kept = find("ras", "accelerator").kept_tensors
    assert (kept(RasSettings(), WAN), kept(RasSettings(sample_ratio=1), WAN)) == (2 * WAN.num_layers, 0)
    assert num_computed(RasSettings(), 7) == 4
