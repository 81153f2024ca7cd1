"""LIPAR: which tokens are left out, what stands for them in attention and in the velocity, and what that saves."""

from __future__ import annotations

import functools
import statistics
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from orchestrator.dvg_config import DvgConfig
from orchestrator.flops import tokens_tflops
from orchestrator.geometry import model as geometry_of
from orchestrator.methods import Request
from orchestrator.types import VideoShape
from stages.accelerators.attending import Here, Log
from stages.accelerators.base import StageEvent
from stages.accelerators.lipar import Kept, Lipar, LiparSettings, Mask, computes_all, differences, kept, mistakes, num_pruned
from stages.sampling import clean_estimate
from stages.sparse.weighted import by_bias, by_scores, weighted
from stages.token_sets import in_cells
from tests.unit.test_caches_on_models import plain, run
from tests.unit.test_trunk import noise, placed, resident
from tests.unit.token_runs import FAMILIES, GRID, STILL, boosted, falling, forwards, now, reads_of

WAN = geometry_of("wan-mini")
TOKENS = (4, 3, 4)
NUM = 48
CELLS = (4, 6, 8)
SHORT = {"warmup": 1, "refresh": 3, "last_steps": 1}


def lipar(geometry: Any = WAN, **settings: Any) -> Lipar:
    return Lipar(LiparSettings(**settings), geometry)


def drifting(seed: int = 1) -> Tensor:
    """A latent whose frames differ more to the right."""
    x = noise(1, 16, 1, 6, 8, seed=seed) + 0.3 * noise(1, 16, *CELLS, seed=seed + 1) * torch.linspace(0, 2, 8)
    return x * torch.tensor([1.0, 2.0, 0.5, 1.0]).view(1, 1, -1, 1, 1)


def test_a_token_differs_by_its_mean_change_in_deviations_of_its_frame() -> None:
    x, found = drifting(), differences(drifting(), WAN.patch)
    assert found.shape == TOKENS
    assert bool(found[0].isinf().all()), "the first frame has nothing before it"
    for t in (1, 2, 3):
        spread = statistics.stdev(x[0, :, t].flatten().tolist())
        for h in range(3):
            for w in range(4):
                now_, before = (x[0, :, s, 2 * h : 2 * h + 2, 2 * w : 2 * w + 2].flatten().tolist() for s in (t, t - 1))
                mean = statistics.fmean(abs(a - b) for a, b in zip(now_, before, strict=True))
                assert float(found[t, h, w]) == pytest.approx(mean / spread, rel=1e-4)


def test_what_differs_by_less_than_the_threshold_is_pruned_or_a_share_of_all_that_differ_least() -> None:
    moved = torch.rand(5, 2, 3, generator=torch.Generator().manual_seed(1))
    moved[0] = torch.inf
    assert torch.equal(kept(moved, LiparSettings(threshold=0.3)), moved >= 0.3)
    by_share = kept(moved, LiparSettings(share=0.4))
    assert int((~by_share).sum()) == 12
    assert moved[~by_share].max() < moved[by_share].min()
    assert num_pruned(0.99, (5, 2, 3)) == 24, "never the first frame"


@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=6))
def test_the_last_token_kept_before_stands_for_those_pruned_after_it(rows: list[list[bool]]) -> None:
    keep = torch.tensor(rows).view(-1, 2, 3)
    keep[0] = True
    mask, stood_for = Mask(keep), torch.zeros(keep.shape, dtype=torch.int64)
    for t, h, w in keep.new_ones(keep.shape).nonzero().tolist():
        source = max(s for s in range(t + 1) if keep[s, h, w])
        assert int(mask.sources[t, h, w]) == source
        stood_for[source, h, w] += 1
    assert torch.equal(mask.num_stood_for, stood_for)
    assert torch.equal(stood_for > 0, keep)


@pytest.mark.parametrize("kernel", [weighted, by_bias, functools.partial(by_scores, run=flex_attention)])
def test_a_key_that_counts_n_times_is_seen_as_n_equal_keys(kernel: Any) -> None:
    q, k, v = torch.randn(3, 1, 2, 7, 16, generator=torch.Generator().manual_seed(1))
    counts = torch.tensor([1, 3, 1, 2, 5, 1, 1])
    expected = torch.nn.functional.scaled_dot_product_attention(q, *(x.repeat_interleave(counts, dim=2) for x in (k, v)))
    torch.testing.assert_close(kernel(q, k, v, counts.log()), expected, atol=1e-5, rtol=1e-5)


def started(x: Tensor, v: Tensor, **settings: Any) -> Lipar:
    """With a mask made at step 0."""
    own = lipar(**SHORT, **settings)
    assert own.tokens(now(0, 9, grid=CELLS), TOKENS) is None
    own.saw(x, v, now(0, 9, grid=CELLS))
    return own


def test_attention_counts_keys_by_what_they_stand_for_and_text_once() -> None:
    x = drifting()
    own = started(x, torch.zeros_like(x), threshold=0.4)
    chosen = own.tokens(now(1, 9, grid=CELLS), TOKENS)
    assert isinstance(chosen, Kept)
    mask = Mask(kept(differences(x, WAN.patch), LiparSettings(threshold=0.4)))
    assert chosen.rows.tolist() == mask.keep.flatten().nonzero().squeeze(1).tolist()
    assert 12 < chosen.num_tokens < NUM
    q, k, v = torch.randn(3, 1, 2, chosen.num_tokens + 3, 8, generator=torch.Generator().manual_seed(1))
    counts = torch.cat([mask.num_stood_for.flatten()[chosen.rows], torch.ones(3, dtype=torch.int64)])
    where = Here(now(1, 9), 0, 2, range(2), TOKENS, chosen.num_tokens, Log(2))
    dense = torch.nn.functional.scaled_dot_product_attention
    expected = dense(q, *(y.repeat_interleave(counts, dim=2) for y in (k, v)))
    torch.testing.assert_close(own.attend(q, k, v, where, dense), expected)


@pytest.mark.parametrize("is_held", [False, True])
@pytest.mark.parametrize("num_branches", [1, 2])
def test_a_pruned_token_moves_to_the_clean_estimate_of_what_stands_for_it(num_branches: int, is_held: bool) -> None:
    """A held first frame is its own, whatever was found for it."""
    before, x, v = drifting(), noise(1, 16, *CELLS, seed=7), noise(num_branches, 16, *CELLS, seed=8)
    guided = noise(1, 16, *CELLS, seed=9) * 1e-3
    guided[:, :, 0] *= not is_held
    own = started(before, guided, threshold=0.6)
    when = now(1, 9, sigma=0.8, grid=CELLS)
    chosen = own.tokens(when, TOKENS)
    assert isinstance(chosen, Kept)
    beside = torch.cat([x, noise(1, 5, *CELLS, seed=3)], dim=1)
    for latent in (beside, beside * 2):  # the condition may be asked for apart, after it
        chosen.take(latent, lambda x: torch.zeros(1, NUM, 1))
    found = chosen.lay(torch.zeros(num_branches, chosen.num_tokens, 1), lambda tokens, grid: v * chosen.cells)
    assert torch.equal(found * chosen.cells, v * chosen.cells)
    clean, own_clean = clean_estimate(x, found, 0.8), clean_estimate(x, v, 0.8)
    if is_held:
        own_clean[:, :, 0] = x[:, :, 0]
    keep = Mask(kept(differences(clean_estimate(before, guided, 0.5), WAN.patch), LiparSettings(threshold=0.6)))
    for t, h, w in (~keep.keep).nonzero().tolist():
        cells = (slice(2 * h, 2 * h + 2), slice(2 * w, 2 * w + 2))
        torch.testing.assert_close(clean[:, :, t, *cells], own_clean[:, :, int(keep.sources[t, h, w]), *cells])


def whole_steps(event: StageEvent, **settings: Any) -> list[int]:
    return [step for step in event.steps if computes_all(LiparSettings(**settings), step, event)]


def test_first_and_last_steps_those_that_make_a_mask_and_the_ends_of_stages_compute_all() -> None:
    assert whole_steps(StageEvent(CELLS, range(20), 20, 0, False)) == [0, 1, 2, 3, 4, 9, 14, 18, 19]
    assert whole_steps(StageEvent(CELLS, range(8, 17), 50, 1, True)) == [8, 13, 16]
    assert whole_steps(StageEvent(CELLS, range(3, 9), 50, 1, True), refresh=2, warmup=1) == [3, 5, 7, 8]
    for neutral in ({"threshold": 0}, {"share": 0}, {"refresh": 1}):
        assert whole_steps(StageEvent(CELLS, range(20), 20, 0, False), **neutral) == list(range(20))


@pytest.mark.parametrize("neutral", [{"threshold": 0}, {"threshold": 1e-9}, {"share": 0}, {"refresh": 1}], ids=str)
def test_what_prunes_nothing_changes_no_bit(neutral: dict[str, Any]) -> None:
    for planner in ("full", "dvg"):
        same = run(functools.partial(lipar, **{**SHORT, **neutral}), planner=planner)
        assert torch.equal(same.x, plain(planner).x)
        assert same.past.tflops == pytest.approx(plain(planner).past.tflops)


def test_executed_operations_fall_by_the_tokens_left_out() -> None:
    """Of 12 steps 0, 3, 6, 9 and 11 compute all 5 x 4 x 6 tokens, the others 84."""
    found = run(functools.partial(lipar, share=0.3, **SHORT))
    share = tokens_tflops(WAN, 84) / tokens_tflops(WAN, 120)
    assert found.past.tflops / plain("full").past.tflops == pytest.approx((5 + 7 * share) / 12, rel=1e-6)
    assert (found.x - plain("full").x).abs().max() > 0


def test_nothing_of_one_stage_is_used_in_the_next() -> None:
    make = functools.partial(lipar, share=0.3, **SHORT)
    found = run(make, planner="dvg")
    assert torch.equal(run(make, planner="dvg", repack=True).x, found.x)
    assert not torch.equal(found.x, plain("dvg").x)


@pytest.mark.parametrize("model", FAMILIES)
def test_every_family_carries_what_stands_for_a_token_into_its_place(model: str) -> None:
    """Guided: both branches, channels of a condition, held first frames and text are in their place."""
    cond, own = placed(model, GRID), resident(model)
    x, levels = cond.pin(noise(1, own.geometry.latent_channels, *GRID, seed=1)), falling(5)
    found = forwards(model, boosted(model, functools.partial(lipar, share=0.4, **SHORT), 5), levels, x, cond)
    expected = forwards(model, None, levels, x, cond)
    assert [torch.equal(*pair) for pair in zip(found, expected, strict=True)] == [True, False, False, True, True]
    mask = Mask(kept(differences(clean_estimate(x, found[0], levels[0].sigma), own.geometry.patch), LiparSettings(share=0.4)))
    assert not bool(mask.keep.all())
    clean = clean_estimate(x, found[1], levels[1].sigma)
    frames = in_cells(mask.sources, own.geometry.patch).expand_as(clean)  # a token is one frame deep
    torch.testing.assert_close(clean, torch.take_along_dim(clean, frames, dim=2))


def test_recovery_changes_what_the_tokens_left_find() -> None:
    """The control: without it the tokens that are left count once."""
    one, other = (
        forwards("wan-mini", boosted("wan-mini", functools.partial(lipar, share=0.4, recover=recover, **SHORT), 5), falling(3))
        for recover in (True, False)
    )
    assert torch.equal(one[0], other[0])
    assert (one[1] - other[1]).abs().max() > 1e-4


@pytest.mark.parametrize(("settings", "expected"), [({"share": 0.4}, []), ({"threshold": 10.0}, ["nonzero"] * 2)])
def test_the_host_waits_once_for_each_mask_that_goes_by_a_threshold(
    settings: dict[str, Any], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    forwards("wan-mini", None, [STILL])
    reads = reads_of(monkeypatch)
    forwards("wan-mini", boosted("wan-mini", functools.partial(lipar, **SHORT, **settings), 6), [STILL] * 6)
    assert reads == expected


def test_a_clip_of_which_nothing_would_be_pruned_is_refused() -> None:
    def told(num_steps: int, **settings: Any) -> list[str]:
        return mistakes(LiparSettings(**settings), Request(WAN, VideoShape(17, 64, 96), num_steps, 1.0, "full", DvgConfig()))

    assert told(8) == told(3, threshold=0) == told(4, warmup=1) == []
    assert "warmup is 5 and last_steps 2, and a clip has 7 steps" in told(7)[0]
