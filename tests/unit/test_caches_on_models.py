"""Caches on tiny checkpoints of every family: neutral settings, operations, what is reused, stages."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from orchestrator.dvg_config import DvgConfig
from orchestrator.methods import find, read_settings
from orchestrator.types import VideoShape
from stages.accelerators.base import Boost, Now, StageEvent
from stages.accelerators.trunk import Trunk
from stages.denoise import Boundary, run_stages, start
from stages.models.base import Placed
from stages.models.layers import attended
from stages.planners import make_planner
from stages.sampling import NoiseLevel, make_solver
from tests.dist.test_wan import Case, condition
from tests.unit.test_trunk import counting, noise, placed, resident

SHAPE = VideoShape(17, 64, 96)
GRID = (3, 4, 6)
NEUTRAL: Mapping[str, dict[str, Any]] = {
    "taylorseer": {"interval": 1, "mode": "blocks"},
    "delta-dit": {"interval": 1},
    "first-block": {"threshold": 0},
    "dbcache": {"threshold": 0},
    "pab": {"interval": 1},
    "fastercache": {"interval": 1, "negative_interval": 1},
}
EAGER: Mapping[str, dict[str, Any]] = {
    "taylorseer": {},
    "delta-dit": {},
    "first-block": {"threshold": 10},
    "dbcache": {"threshold": 10, "fn_blocks": 1, "warmup": 1},
    "pab": {},
    "fastercache": {"negative_interval": 5},
}
"""As published, with the tolerance of those that measure so wide that they reuse wherever they may."""


def maker(name: str, settings: Mapping[str, Any], model: str = "wan-mini") -> Callable[[], Any]:
    method = find(name, "accelerator")
    return functools.partial(method.make, read_settings(method, settings), resident(model).geometry)


def run(*makers: Callable[[], Any], planner: str = "full", num_steps: int = 12, repack: bool = False) -> Boundary:
    """A guided clip of the tiny wan-mini, stage by stage."""
    own, budget = resident("wan-mini"), 0.5 if planner == "dvg" else None
    plan = make_planner(planner, own.geometry, SHAPE, num_steps, budget, DvgConfig(), accelerators=makers)
    boundary = start(own, plan, condition(Case("wan-mini", is_guided=True)), 3)
    while boundary.decision is None or boundary.stage < len(boundary.decision.action.stages):
        boundary = Boundary.unpack(boundary.pack()) if repack else boundary
        boundary, _ = run_stages(own, plan, boundary, boundary.stage + 1)
    return boundary


@functools.cache
def plain(planner: str, num_steps: int = 12) -> Boundary:
    return run(planner=planner, num_steps=num_steps)


@pytest.mark.parametrize("name", NEUTRAL)
def test_at_its_neutral_setting_a_cache_changes_no_bit(name: str) -> None:
    for planner in ("full", "dvg"):
        found = run(maker(name, NEUTRAL[name]), planner=planner)
        assert torch.equal(found.x, plain(planner).x), planner
        assert found.past.tflops == pytest.approx(plain(planner).past.tflops)


@pytest.mark.parametrize("name", EAGER)
def test_at_its_published_setting_it_changes_little_and_spares_something(name: str) -> None:
    """The control of the test above."""
    found = run(maker(name, EAGER[name]))
    change = (found.x - plain("full").x).abs().max()
    assert 0 < change < 0.5 * plain("full").x.std()
    assert found.past.tflops < 0.9 * plain("full").past.tflops


NUM_STEPS = 20
TIMES = [level.timestep for level in make_solver("euler", NUM_STEPS, 3.0, "training").levels]
HALF = 0.5
"""Each of the two blocks of the tiny checkpoint."""


def attention_share() -> float:
    config = resident("wan-mini").parts.experts[0].weights.config
    dim = config.num_attention_heads * config.attention_head_dim
    return attended(dim, 5 * 4 * 6, config.ffn_dim, cross=True)


def odd(low: float, high: float) -> list[int]:
    """Steps that those who compute every other one leave out, but for the last."""
    return [step for step, time in enumerate(TIMES) if step % 2 and low < time < high and step < NUM_STEPS - 1]


def spared(name: str) -> float:
    """Forwards of both branches, by each rule alone."""
    if name == "taylorseer":
        return 2.0 * (NUM_STEPS - NUM_STEPS / 5)
    if name == "delta-dit":
        return 2.0 * HALF * len(odd(-1, 1001))
    if name == "pab":
        return 2.0 * attention_share() * len(odd(100, 800))
    if name == "fastercache":
        left_out = [step for step, time in enumerate(TIMES) if step % 5 and time < 641 and step < NUM_STEPS - 1]
        return len(left_out) + attention_share() * len([step for step in odd(-1, 681) if step in left_out])
    return 2.0 * HALF * (NUM_STEPS - 2)


@pytest.mark.parametrize("name", EAGER)
def test_its_executed_operations_fall_by_what_its_rule_says(name: str) -> None:
    found = run(maker(name, EAGER[name]), num_steps=NUM_STEPS).past.tflops
    whole = plain("full", NUM_STEPS).past.tflops
    assert found / whole == pytest.approx(1 - spared(name) / (2 * NUM_STEPS), rel=0.05)


class Nothing:
    """Computes no block."""

    def forward(self, trunk: Trunk, now: Now) -> Tensor:
        return trunk.inputs[0]


def forwards(model: str, boost: Boost | None, cond: Placed, levels: Sequence[NoiseLevel]) -> list[Tensor]:
    """Velocities of one latent at some noise levels, a step each."""
    own, grid = resident(model), GRID
    x, found = cond.pin(noise(1, own.geometry.latent_channels, *grid, seed=1)), []
    own.accelerate(boost)
    for step, level in enumerate(levels):
        if boost is not None:
            boost.at(step, level)
        found.append(own.denoise(x, level, cond))
    own.accelerate(None)
    return found


@pytest.mark.parametrize("name", EAGER)
def test_the_share_it_tells_is_that_of_torchs_own_count(name: str) -> None:
    cond, event = placed("wan-mini", GRID), StageEvent(GRID, range(8), 8, 0, crosses=False)
    levels = [NoiseLevel(0.6 - 0.05 * step, 600.0 - 50 * step, 550.0 - 50 * step) for step in range(8)]
    forwards("wan-mini", None, cond, levels[:1])  # the prompt's keys and values are made once

    def flops(boost: Boost | None) -> int:
        with counting() as counter:
            forwards("wan-mini", boost, cond, levels)
        return counter.get_total_flops()

    boost, beside = Boost((maker(name, EAGER[name]),), event), flops(Boost((Nothing,), event))
    assert (flops(boost) - beside) / (flops(None) - beside) == pytest.approx(boost.share, abs=0.05)
    assert boost.share < 0.95


STILL: Mapping[str, dict[str, Any]] = {**{name: {} for name in EAGER}, "fastercache": {"low_growth": 1, "high_growth": 1}}
"""Nothing grows by itself."""


@pytest.mark.parametrize(("name", "more"), [*STILL.items(), ("taylorseer", {"mode": "blocks"})])
@pytest.mark.parametrize("model", ["wan2.2-ti2v-5b", "hunyuanvideo-i2v", "hunyuanvideo", "hunyuanvideo-1.5"])
def test_where_nothing_changes_what_is_reused_is_exact(model: str, name: str, more: dict[str, Any]) -> None:
    """The same latent at the same noise level, step after step: text tokens, gates and clean first frames are in their place."""
    cond, event = placed(model, GRID), StageEvent(GRID, range(5), 5, 0, crosses=False)
    levels = [NoiseLevel(0.5, 500.0, 500.0)] * 5
    boost = Boost((maker(name, EAGER[name] | more, model),), event)
    (expected,) = forwards(model, None, cond, levels[:1])
    assert expected.abs().max() > 0.1
    for velocity in forwards(model, boost, cond, levels):
        torch.testing.assert_close(velocity, expected, atol=2e-5, rtol=1e-4)
    assert boost.share < 0.95


class Gated:
    """Computes everything, and holds each block's gate against what its attention is multiplied by."""

    def forward(self, trunk: Trunk, now: Now) -> Tensor:
        state = trunk.inputs
        for index in range(trunk.num_blocks):
            found = trunk.run_attend(index, state)
            after, none = trunk.run_finish(index, state, found), (torch.zeros_like(found[0]), *found[1:])
            added = trunk.gate(index) * found[0]
            before, within = trunk.run_finish(index, (state[0] + added, *state[1:]), none), trunk.run_finish(index, state, none)
            ways = (before[0], within[0] + added)  # attention comes before the feed-forward, or beside it
            assert added.abs().max() > 1e-3
            assert min(float((way - after[0]).abs().max()) for way in ways) < 1e-5, index
            state = after
        return trunk.image(state)


@pytest.mark.parametrize("model", ["wan-mini", "wan2.2-ti2v-5b", "hunyuanvideo", "hunyuanvideo-i2v", "hunyuanvideo-1.5"])
def test_a_gate_is_what_a_blocks_attention_is_multiplied_by(model: str) -> None:
    event = StageEvent(GRID, range(1), 1, 0, crosses=False)
    (velocity,) = forwards(model, Boost((Gated,), event), placed(model, GRID), [NoiseLevel(0.5, 500.0, 500.0)])
    assert velocity.isfinite().all()


@pytest.mark.parametrize("name", EAGER)
def test_the_host_waits_for_a_value_only_where_a_decision_needs_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that decide by the step alone never; the others once for each step that may reuse, of each branch."""
    cond, event = placed("wan-mini", GRID), StageEvent(GRID, range(8), 8, 0, crosses=False)
    levels = [NoiseLevel(0.5, 500.0, 500.0)] * 8
    forwards("wan-mini", None, cond, levels[:1])
    reads: list[str] = []
    for read in ("item", "tolist", "__bool__", "__float__", "__int__", "numpy"):
        real = getattr(Tensor, read)
        monkeypatch.setattr(Tensor, read, lambda x, *a, real=real, read=read: (reads.append(read), real(x, *a))[1])
    forwards("wan-mini", Boost((maker(name, EAGER[name]),), event), cond, levels)
    assert reads == ["tolist"] * (6 * 2 if name in ("first-block", "dbcache") else 0)


@pytest.mark.parametrize("name", EAGER)
def test_between_stages_nothing_is_left_of_a_cache(name: str) -> None:
    """By value: a clip that is handed over at every transition is the same. By life: every cache goes with its stage."""
    lived: list[weakref.ref[Any]] = []

    def left() -> int:
        return sum(one() is not None for one in lived)

    def watched() -> Any:
        assert left() == 0
        accelerator = maker(name, EAGER[name])()
        lived.append(weakref.ref(accelerator))
        return accelerator

    at_once = run(watched, planner="dvg")
    assert left() == 0, "decoding needs the memory"
    assert at_once.decision is not None
    assert len(lived) == len(at_once.decision.action.stages) > 1
    assert torch.equal(run(maker(name, EAGER[name]), planner="dvg", repack=True).x, at_once.x)
    assert not torch.equal(at_once.x, plain("dvg").x)
