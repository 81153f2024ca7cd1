"""A transformer's forward in parts, and what an accelerator between model and engine may and may not change."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from orchestrator.dvg_config import DvgConfig
from orchestrator.flops import forward_tflops
from orchestrator.geometry import model as geometry_of
from orchestrator.types import Grid, VideoShape
from stages.accelerators.base import Boost, Now, StageEvent
from stages.accelerators.trunk import Trunk
from stages.denoise import Boundary, run_stages, start
from stages.models import embedded
from stages.models.base import Branch, Condition, Placed, load
from stages.planners import make_planner
from stages.sampling import NoiseLevel
from tests.checkpoints import checkpoint
from tests.dist.joint_runs import hunyuan15_condition, hunyuan_condition
from tests.dist.test_wan import Case, condition

LEVEL = NoiseLevel(0.64, 640.0, 512.0)
WAN = ("wan-mini", "wan2.1-i2v-14b", "wan2.2-ti2v-5b")
JOINT = ("hunyuanvideo", "hunyuanvideo-i2v", "hunyuanvideo-1.5", "hunyuanvideo-1.5-i2v")
LONG: tuple[tuple[str, Grid], ...] = (("hunyuanvideo", (5, 16, 24)), ("hunyuanvideo-1.5", (5, 12, 16)))
"""Grids of so many tokens that what is left out of the count is as little as at true sizes."""
EMBEDDED = "embedded"
"""The wan-mini that ships, of its true size; the others are tiny checkpoints."""
GRID: Grid = (3, 4, 6)
WORD_DIM = 128
EVENT = StageEvent(GRID, range(4), 4, 0, crosses=False)


class Whole:
    """Computes everything at once."""

    def forward(self, trunk: Trunk, now: Now) -> Tensor:
        return trunk.compute()


class Blocks:
    """Computes everything, block by block."""

    def forward(self, trunk: Trunk, now: Now) -> Tensor:
        return trunk.image(trunk.run(trunk.inputs, 0, trunk.num_blocks))


class Parts:
    """Computes everything, half a block at a time."""

    def forward(self, trunk: Trunk, now: Now) -> Tensor:
        state = trunk.inputs
        for index in range(trunk.num_blocks):
            state = trunk.run_finish(index, state, trunk.run_attend(index, state))
        return trunk.image(state)


@functools.cache
def resident(name: str) -> Any:
    folder = embedded.FOLDER if name == EMBEDDED else checkpoint(name)
    return load("wan-mini" if name == EMBEDDED else name, str(folder), parts=frozenset({"transformer"}))


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def placed(name: str, grid: Grid, num_text: int = 7) -> Placed:
    """What the model sees beside noise; the image of those that take one, and a held first frame of Wan's TI2V."""
    if name in JOINT:
        make = hunyuan15_condition if "1.5" in name else hunyuan_condition
        axes = tuple(tuple(range(size)) for size in grid)
        found: Placed = resident(name).place(make(name, num_text, grid), axes, "index")
        return found
    if name == EMBEDDED:
        return Placed(Condition(Branch({"text": noise(1, 12, WORD_DIM, seed=1)}, 100), None, 1.0))
    channels = geometry_of(name).latent_channels
    beside = resident(name).parts.experts[0].weights.config.in_channels - channels
    latent = noise(1, beside, *grid, seed=4) if beside else None
    pinned = noise(1, channels, 1, *grid[1:], seed=5) if "ti2v" in name else None
    return Placed(condition(Case(name, is_guided=True)), latent=latent, pinned=pinned)


def velocity(name: str, make: Callable[[], Any] | None, grid: Grid = GRID, cond: Placed | None = None) -> Tensor:
    """Of the same inputs, with an accelerator or without."""
    own, cond = resident(name), cond or placed(name, grid)
    boost = None if make is None else Boost((make,), replace(EVENT, grid=grid))
    if boost is not None:
        boost.at(0, LEVEL)
    own.accelerate(boost)
    try:
        found: Tensor = own.denoise(cond.pin(noise(1, own.geometry.latent_channels, *grid, seed=1)), LEVEL, cond)
    finally:
        own.accelerate(None)
    return found


@pytest.mark.parametrize("name", [*WAN, *JOINT])
def test_all_blocks_and_all_halves_in_turn_are_the_whole_forward(name: str) -> None:
    plain = velocity(name, None)
    assert plain.abs().max() > 0.1
    assert torch.equal(velocity(name, Whole), plain), "an accelerator that computes changes no bit"
    torch.testing.assert_close(velocity(name, Blocks), plain, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(velocity(name, Parts), plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["wan-mini", "hunyuanvideo", "hunyuanvideo-1.5"])
def test_leaving_out_a_block_or_a_half_is_not_the_whole_forward(name: str) -> None:
    """The control of the test above."""

    class Missing:
        def __init__(self, part: str) -> None:
            self.part = part

        def forward(self, trunk: Trunk, now: Now) -> Tensor:
            state = trunk.run(trunk.inputs, 0, trunk.num_blocks - 1)
            if self.part == "block":
                return trunk.image(state)
            found = tuple(torch.zeros_like(row) for row in trunk.run_attend(trunk.num_blocks - 1, state))
            return trunk.image(trunk.run_finish(trunk.num_blocks - 1, state, found))

    plain = velocity(name, None)
    for part in ("block", "half"):
        assert (velocity(name, functools.partial(Missing, part)) - plain).abs().max() > 1e-3, part


def counting() -> FlopCounterMode:
    """Torch's count of all products, and of attention where it goes by an operator that torch has no count for."""

    def attention(q: Any, k: Any, v: Any, *args: Any, **more: Any) -> int:
        return int(sdpa_flop_count(q, k, v))  # type: ignore[no-untyped-call]

    names = (torch.ops.aten._scaled_dot_product_flash_attention_for_cpu, torch.ops.dvg.attend)
    return FlopCounterMode(display=False, custom_mapping=dict.fromkeys(names, attention))


@dataclass
class Counted:
    """Operations of each call by torch's own count, beside what the trunk noted."""

    flops: list[float]
    work: list[float]

    def forward(self, trunk: Trunk, now: Now) -> Tensor:
        out, state = trunk.compute(), trunk.inputs
        for index in range(trunk.num_blocks):
            with counting() as attending:
                found = trunk.run_attend(index, state)
            with counting() as finishing:
                state = trunk.run_finish(index, state, found)
            self.flops += [attending.get_total_flops(), finishing.get_total_flops()]
        self.work += trunk.work[1:]
        return out


@pytest.mark.parametrize(("name", "grid"), [(EMBEDDED, (11, 18, 18)), *LONG])
def test_the_shares_that_a_trunk_notes_are_those_of_torchs_own_count(name: str, grid: Grid) -> None:
    counted = Counted([], [])
    velocity(name, lambda: counted, grid, replace(placed(name, grid), condition=one_branch(name, grid)))
    total = sum(counted.flops)
    assert sum(counted.work) == pytest.approx(1)
    for index in (0, 1):
        ours, torchs = sum(counted.work[index::2]), sum(counted.flops[index::2]) / total
        assert ours == pytest.approx(torchs, rel=0.05), ("attention", "the rest")[index]


def one_branch(name: str, grid: Grid) -> Condition:
    return replace(placed(name, grid, num_text=256).condition, negative=None)


@pytest.mark.parametrize("grid", [(4, 10, 10), (11, 18, 18)])
def test_the_operations_of_a_forward_are_those_of_torchs_own_count(grid: Grid) -> None:
    cond = placed(EMBEDDED, grid)
    velocity(EMBEDDED, None, grid, cond)  # keys and values of the text are made once per prompt
    with counting() as counter:
        velocity(EMBEDDED, None, grid, cond)
    assert forward_tflops(geometry_of("wan-mini"), grid) == pytest.approx(counter.get_total_flops() / 1e12, rel=0.05)


@pytest.mark.parametrize(("name", "grid"), LONG)
def test_the_operations_of_a_joint_forward_are_those_of_torchs_own_count(name: str, grid: Grid) -> None:
    """On the tiny checkpoint, whose sizes stand in for the published ones."""
    own = resident(name)
    weights = own.parts.transformer.weights
    dim = weights.config.num_attention_heads * weights.config.attention_head_dim
    num_layers = weights.config.num_layers + getattr(weights.config, "num_single_layers", 0)
    macs = num_layers * (4 + 2 * weights.config.mlp_ratio) * dim * dim
    cond = replace(placed(name, grid), condition=one_branch(name, grid))
    tiny = replace(
        own.geometry, heads=weights.config.num_attention_heads, head_dim=weights.config.attention_head_dim, num_layers=num_layers,
        linear_macs=macs, text_tokens=256 + (256 // 3 if "1.5" in name else 0),
    )  # fmt: skip
    counted = Counted([], [])
    velocity(name, lambda: counted, grid, cond)
    assert forward_tflops(tiny, grid) == pytest.approx(sum(counted.flops) / 1e12, rel=0.05)


def small(planner: str = "full", *makers: Callable[[], Any], num_steps: int = 6, shape: VideoShape | None = None) -> Boundary:
    """A short clip of the tiny wan-mini."""
    own, budget = resident("wan-mini"), 0.5 if planner == "dvg" else None
    plan = make_planner(
        planner, own.geometry, shape or VideoShape(9, 64, 64), num_steps, budget, DvgConfig(), accelerators=makers
    )
    boundary = start(own, plan, condition(Case("wan-mini", is_guided=True)), 3)
    while boundary.decision is None or boundary.stage < len(boundary.decision.action.stages):
        boundary, _ = run_stages(own, plan, boundary, boundary.stage + 1)
    return boundary


def test_an_accelerator_that_always_computes_gives_the_bits_and_the_operations_of_none() -> None:
    for planner, num_steps, shape in (("full", 4, VideoShape(9, 64, 64)), ("dvg", 12, VideoShape(17, 64, 96))):
        plain = small(planner, num_steps=num_steps, shape=shape)
        same = small(planner, Whole, num_steps=num_steps, shape=shape)
        assert torch.equal(same.x, plain.x), planner
        assert same.past.tflops == pytest.approx(plain.past.tflops)
        assert plain.past.tflops > 0


def test_only_what_was_executed_counts() -> None:
    class Half:
        def __init__(self) -> None:
            self.kept: dict[int, Tensor] = {}

        def forward(self, trunk: Trunk, now: Now) -> Tensor:
            if now.step % 2 == 0:
                self.kept[now.branch] = trunk.compute() - trunk.inputs[0]
            return trunk.inputs[0] + self.kept[now.branch]

    assert small("full", Half).past.tflops == pytest.approx(small("full").past.tflops / 2)


def test_every_stage_gets_a_new_accelerator_told_where_it_is() -> None:
    made: list[Spy] = []

    class Spy:
        def __init__(self) -> None:
            self.told: list[Now] = []
            self.shapes: set[torch.Size] = set()
            made.append(self)

        def forward(self, trunk: Trunk, now: Now) -> Tensor:
            self.told.append(now)
            self.shapes.add(trunk.inputs[0].shape)
            return trunk.compute()

    boundary = small("dvg", Spy, num_steps=12, shape=VideoShape(17, 64, 96))
    assert boundary.decision is not None
    stages = boundary.decision.action.stages
    assert len(made) == len(stages) > 1
    assert all(len(spy.shapes) == 1 for spy in made)
    steps = [[now.step for now in spy.told if now.branch == 0] for spy in made]
    assert [step for run in steps for step in run] == list(range(12)), "every step once, in order"
    for spy, stage, run in zip(made, stages, steps, strict=True):
        event = spy.told[0].event
        assert (event.grid, list(event.steps), event.num_steps) == (stage.grid, run, 12)
        assert {now.branch for now in spy.told} == {0, 1}
        computed = [now.step for now in spy.told if now.branch == 0 and now.must_compute]
        assert computed == sorted({run[0], run[-1]}), "the first step of a stage, and its transition"
    assert [spy.told[0].event.crosses for spy in made] == [True] * (len(made) - 1) + [False]


def test_another_expert_begins_anew_and_what_the_other_left_is_let_go() -> None:
    made: list[Remembers] = []

    class Remembers:
        def __init__(self) -> None:
            self.owners: set[Any] = set()
            self.since: list[int] = []
            made.append(self)

        def forward(self, trunk: Trunk, now: Now) -> Tensor:
            self.owners.add(trunk.owner)
            if now.branch == 0:
                self.since.append(now.since)
            return trunk.compute()

    own, cond = resident("wan2.2-a14b"), condition(Case("wan2.2-a14b"))
    boost = Boost((Remembers,), EVENT)
    own.accelerate(boost)
    for step, timestep in enumerate((990.0, 900.0, 500.0, 100.0)):
        level = NoiseLevel(timestep / 1000, timestep, 0.0)
        boost.at(step, level)
        own.denoise(noise(1, 16, *GRID, seed=1), level, Placed(cond))
    own.accelerate(None)
    assert [len(each.owners) for each in made] == [1, 1]
    assert made[0].owners != made[1].owners
    assert [each.since for each in made] == [[0, 1], [0, 1]], "steps are counted from where the expert began"


def test_an_answer_of_another_grid_is_an_error_and_not_a_broken_picture() -> None:
    class Stale:
        def forward(self, trunk: Trunk, now: Now) -> Tensor:
            return trunk.compute()[:, 1:]

    with pytest.raises(RuntimeError, match=r"a cache answered \(1, 17, 48\) on a grid that needs \(1, 18, 48\)"):
        velocity("wan-mini", Stale)


def test_two_caches_at_once_are_refused() -> None:
    with pytest.raises(ValueError, match="2 caches"):
        Boost((Whole, Whole), EVENT)


def test_a_failing_accelerator_leaves_the_model_without_it() -> None:
    class Fails:
        def forward(self, trunk: Trunk, now: Now) -> Tensor:
            raise RuntimeError("no more memory")

    plain = small("full")
    with pytest.raises(RuntimeError, match="no more memory"):
        small("full", Fails)
    assert resident("wan-mini").boost is None
    assert torch.equal(small("full").x, plain.x)
