"""ToMe: what is merged in a block and comes back, by all families; what it costs; where it is refused."""

from __future__ import annotations

import functools
import itertools
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from orchestrator.resolve import resolve_arm
from orchestrator.types import Grid, VideoShape
from parallel.groups import Group
from stages.accelerators import makers
from stages.accelerators.attending import Here
from stages.accelerators.base import Boost, Now
from stages.accelerators.tome import Tome, TomeSettings
from stages.accelerators.trunk import State, Trunk
from stages.merging import Ordered, Windows, match
from tests.unit.test_trunk import EMBEDDED, EVENT, JOINT, LEVEL, WAN, counting, noise, placed, resident, small, velocity

GRID: Grid = (3, 8, 12)
NOW = Now(0, LEVEL, 0, EVENT)


def merging(name: str, grid: Grid = GRID, **settings: Any) -> tuple[Tensor, float]:
    """The velocity, and the operations as a share of the whole forward's."""
    own, cond = resident(name), placed(name, grid)
    boost = Boost((lambda: Tome(TomeSettings(**settings), own.geometry),), replace(EVENT, grid=grid), own.geometry)
    boost.at(0, LEVEL)
    own.accelerate(boost)
    try:
        found = own.denoise(cond.pin(noise(1, own.geometry.latent_channels, *grid, seed=1)), LEVEL, cond)
    finally:
        own.accelerate(None)
    return found, boost.share


@pytest.mark.parametrize("name", [*WAN, *JOINT])
def test_where_nothing_merges_no_bit_changes_and_otherwise_the_velocity_stays_near(name: str) -> None:
    plain = velocity(name, None, GRID)
    for neutral in ({"ratio": 0.0}, {"window": (10, 4)}):
        found, share = merging(name, **neutral)
        assert torch.equal(found, plain)
        assert share == pytest.approx(1)
    found, share = merging(name, ratio=0.5, window=(2, 2))
    assert share < 0.99
    change = float((found - plain).abs().mean() / plain.abs().mean())
    assert 1e-3 < change < 0.15
    if "ti2v" in name:
        assert found[:, :, 0].abs().max() == 0, "the clean frame does not move"


class InWindows:
    """All tokens in another order; of blocks, halves are computed on the rows that there are, which are all."""

    work = 1.0

    def __init__(self) -> None:
        self._ordered: Ordered | None = None

    def tokens(self, now: Now, grid: Grid) -> Ordered:
        self._ordered = self._ordered or Ordered(Windows(grid, (4, 2)).order(), grid, 8)
        return self._ordered

    def saw(self, x: Tensor, v: Tensor, now: Now) -> None:
        """Nothing."""

    def forward(self, trunk: Trunk, now: Now) -> Tensor:
        state, num = trunk.inputs, trunk.inputs[0].shape[1]
        for index in range(trunk.num_blocks):
            found = trunk.run_attend_on(index, state, torch.arange(num), (num,), 1.0)
            state = trunk.run_finish(index, state, found)
        assert sum(trunk.work) == pytest.approx(1)
        return trunk.image(state)


@pytest.mark.parametrize("name", [*WAN, *JOINT])
def test_the_order_of_tokens_and_attention_on_given_rows_change_nothing_by_themselves(name: str) -> None:
    """With the borders of frames in no window, and a clean first frame."""
    own, cond, grid = resident(name), placed(name, (3, 6, 10)), (3, 6, 10)
    plain = velocity(name, None, grid)
    boost = Boost((InWindows,), replace(EVENT, grid=grid), own.geometry)
    boost.at(0, LEVEL)
    own.accelerate(boost)
    found = own.denoise(cond.pin(noise(1, own.geometry.latent_channels, *grid, seed=1)), LEVEL, cond)
    own.accelerate(None)
    torch.testing.assert_close(found, plain, atol=1e-5, rtol=1e-5)


def never(*given: Any) -> Any:
    raise AssertionError("everything was computed")


def trunk_of(h: Tensor) -> Trunk:
    """Two blocks that do nothing."""

    def attend_on(index: int, state: State, rows: Tensor, counts: tuple[int, ...]) -> State:
        return state

    def finish(index: int, state: State, found: State) -> State:
        return (state[0] + found[0],)

    return Trunk((h,), 2, never, never, never, finish, lambda state: state[0], {}, 0.5, "net", attend_on=attend_on)


def test_a_block_attends_with_means_and_adds_what_they_find_to_every_token() -> None:
    """Text goes by as it is."""
    grid, tome = (16, 4, 6), Tome(TomeSettings(ratio=0.5, window=(4, 4), shuffle=False), resident("wan-mini").geometry)
    h, text, seen = noise(1, 16 * 24, 3, seed=1), noise(1, 2, 3, seed=2), list[Tensor]()

    def attend_on(index: int, state: State, rows: Tensor, counts: tuple[int, ...]) -> State:
        seen.append(state[0])
        assert counts == (16 * 16,)
        assert torch.equal(state[1], text)
        return state[0] * 2, state[1] * 3

    def finish(index: int, state: State, found: State) -> State:
        return state[0] + found[0], found[1]

    trunk = Trunk((h, text), 1, never, never, never, finish, lambda state: state[0], {}, 0.5, "net", attend_on=attend_on)
    assert tome.tokens(NOW, grid) is not None
    out = tome.forward(trunk, NOW)
    merge = match(h, torch.tensor([[0, 2, 8, 10]]).expand(16, -1), 8, 16)
    torch.testing.assert_close(seen[0], merge.merged(h))
    torch.testing.assert_close(out, h + merge.spread(2 * merge.merged(h)))


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_stage_tells_the_device_its_destinations_at_once(shuffle: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy to the device is waited for: one in a stage, none in a step. Tensors on "meta" stand for those on a device."""
    own, crossing = Tome(TomeSettings(shuffle=shuffle), resident("wan-mini").geometry), list[str]()

    def to(x: Tensor, device: Any, *given: Any, **more: Any) -> Tensor:
        if isinstance(device, torch.device) and device != x.device:
            crossing.append(str(tuple(x.shape)))
        return real(x, device, *given, **more)

    real = Tensor.to
    monkeypatch.setattr(Tensor, "to", to)
    tokens, event = (4, 8, 8), replace(EVENT, grid=(4, 16, 16))
    h = torch.empty(1, 4 * 8 * 8, 3, device="meta")
    for step in event.steps:
        for branch in (0, 1):
            assert own.tokens(Now(step, LEVEL, branch, event), tokens) is not None
            own.forward(trunk_of(h), Now(step, LEVEL, branch, event))
    assert len(crossing) == 1, crossing
    assert len(event.steps) > 1


@pytest.mark.parametrize("shuffle", [True, False])
def test_destinations_of_a_step_are_those_drawn_for_it_wherever_the_stage_begins(shuffle: bool) -> None:
    windows = Windows((4, 8, 8), (4, 4))
    for start in (0, 2):
        event, own = replace(EVENT, steps=range(start, 6)), Tome(TomeSettings(shuffle=shuffle), resident("wan-mini").geometry)
        own.tokens(Now(start, LEVEL, 0, event), (4, 8, 8))
        for step in event.steps:
            found = own._chosen(Now(step, LEVEL, 0, event), windows, torch.device("cpu"))
            assert torch.equal(found, windows.destinations(step if shuffle else None))


@pytest.mark.parametrize("name", ["wan2.2-ti2v-5b", "hunyuanvideo-i2v"])
def test_where_a_clean_first_frame_lies_is_found_once_for_a_stage(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes from the host."""
    found, real = list[int](), Ordered.first_frame

    def watched(ordered: Ordered) -> Tensor:
        found.append(1)
        return real.fget(ordered)  # type: ignore[attr-defined, no-any-return]

    monkeypatch.setattr(Ordered, "first_frame", property(watched))
    own, cond, grid = resident(name), placed(name, GRID), GRID
    boost = Boost((InWindows,), replace(EVENT, grid=grid), own.geometry)
    own.accelerate(boost)
    for step in range(3):
        boost.at(step, LEVEL)
        own.denoise(cond.pin(noise(1, own.geometry.latent_channels, *grid, seed=1)), LEVEL, cond)
    own.accelerate(None)
    assert len(found) == 1


def test_a_key_of_many_tokens_counts_as_so_many_keys_and_text_as_one() -> None:
    tome = Tome(TomeSettings(), resident("wan-mini").geometry)
    q, k, v = noise(3, 1, 2, 7, 8, seed=3)
    sizes = torch.tensor([1, 3, 2, 1, 4])
    tome._log_sizes = sizes.log()
    repeated = torch.cat([torch.arange(5).repeat_interleave(sizes), torch.tensor([5, 6])])
    here: Here = None  # type: ignore[assignment]
    found = tome.attend(q, k, v, here, F.scaled_dot_product_attention)
    torch.testing.assert_close(found, F.scaled_dot_product_attention(q, k[:, :, repeated], v[:, :, repeated]))
    tome._log_sizes = None
    assert torch.equal(tome.attend(q, k, v, here, F.scaled_dot_product_attention), F.scaled_dot_product_attention(q, k, v))


@pytest.mark.parametrize("ratio", [0.25, 0.75])
def test_the_operations_that_are_counted_are_those_of_torchs_own_count(ratio: float) -> None:
    """Fewer tokens in self-attention and its linear layers."""
    grid = (3, 24, 24)
    for _ in range(2):  # keys and values of the text are made once per prompt
        with counting() as plain:
            velocity(EMBEDDED, None, grid)
    with counting() as counted:
        _, share = merging(EMBEDDED, grid, ratio=ratio, proportional=False)
    assert share == pytest.approx(counted.get_total_flops() / plain.get_total_flops(), abs=0.02)
    assert share < 1 - 0.3 * ratio


def arm(*accelerators: Any, **more: Any) -> tuple[Any, list[str]]:
    mistakes: list[str] = []
    given = {"model": "wan-mini", "planner": "full", "steps": 6, "frames": 17, "height": 64, "width": 96}
    return resolve_arm("merged", {**given, "accelerators": [*accelerators], **more}, mistakes), mistakes


@pytest.mark.parametrize(
    ("accelerators", "more", "words"),
    [
        ([{"tome": {"ratio": 0.8}}], {}, ["ratio", "0.75"]),
        ([{"tome": {"window": [3, 4]}}], {}, ["window is [3, 4]", "even"]),
        ([{"tome": {"window": [8, 8]}}], {}, ["window is [8, 8]", "4 x 6", "[2, 2]"]),
        (["tome"], {}, ["window is [4, 4]", "5 windows", "16", "[2, 2]"]),
        ([{"tome": {"ratio": 0.05}}], {}, ["ratio is 0.05", "0.0625"]),
        (["tome", "taylorseer"], {}, ["tome and taylorseer cannot be combined"]),
        (["tome"], {"planner": "fresco"}, ["fresco", "tome", "cannot be combined"]),
    ],
)
def test_what_cannot_be_merged_is_refused_with_what_can(accelerators: list[Any], more: dict[str, Any], words: list[str]) -> None:
    try:
        found, mistakes = arm(*accelerators, **more)
    except ValueError as error:
        found, mistakes = None, [str(error)]
    assert found is None
    assert all(word in "; ".join(mistakes) for word in words), mistakes


def test_a_clip_named_in_a_spec_merges_on_every_grid_that_holds_a_window_and_nothing_is_kept_between_stages() -> None:
    own, mistakes = arm({"tome": {"window": [2, 2]}}, planner="dvg", budget=0.5, steps=12)
    assert own is not None, mistakes
    made: list[Tome] = []
    (make,) = makers(own, resident("wan-mini").geometry)

    def kept() -> Any:
        made.append(make())  # type: ignore[arg-type]
        return made[-1]

    shape = VideoShape(17, 64, 96)
    plain = functools.partial(small, "dvg", num_steps=12, shape=shape)
    found, whole = plain(kept), plain()
    assert found.x.isfinite().all()
    assert found.past.tflops < 0.95 * whole.past.tflops
    assert found.decision is not None
    assert [tome._windows and tome._windows.tokens for tome in made] == [
        (t, h // 2, w // 2) for t, h, w in (stage.grid for stage in found.decision.action.stages)
    ]


@pytest.mark.parametrize("window", [(2, 2), (2, 4), (4, 4), (6, 2)])
@pytest.mark.parametrize("num_ranks", [1, 2, 4, 8])
def test_every_rank_has_two_rows_at_least_of_a_grid_that_merges(window: tuple[int, int], num_ranks: int) -> None:
    """Compiled blocks take no and one row for constants. Which grids merge is the same at every width."""
    trunk: Any = SimpleNamespace(sequence=Group(range(num_ranks), 0, None, torch.device("cpu")))
    tried = 0
    for grid in itertools.product(range(1, 6), range(2, 9), range(2, 12, 2)):
        own = Tome(TomeSettings(ratio=0.75, window=window), resident("wan-mini").geometry)
        windows, does_merge = Windows(grid, window), own.tokens(NOW, grid) is not None
        assert does_merge == (windows.num >= 16)
        if does_merge:
            assert min(own._place(trunk, windows).counts) >= 2
            tried += 1
    assert tried


def test_the_forwards_of_a_method_that_reflects_are_whole() -> None:
    reflecting, mistakes = arm({"tome": {"window": [2, 2]}}, {"w2sd": {"steps": 1}}, steps=3, guidance=3.0)
    assert reflecting is not None, mistakes
    found = small("full", *makers(reflecting, resident("wan-mini").geometry), num_steps=3)
    whole = small("full", num_steps=3)
    merged = small("full", makers(reflecting, resident("wan-mini").geometry)[0], num_steps=3)
    assert found.past.tflops == pytest.approx(merged.past.tflops + whole.past.tflops * 2 / 3)
