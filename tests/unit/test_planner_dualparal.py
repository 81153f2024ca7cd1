"""Long videos by blocks: which block takes which step when, what a block attends to, and what of it grows with the video."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from orchestrator.arms import Arm
from orchestrator.config import ClusterConfig
from orchestrator.cost import CostModel, denoise_s, uncalibrated, with_degrees
from orchestrator.degrees import Limits
from orchestrator.dvg_config import DvgConfig
from orchestrator.geometry import model as geometry_of
from orchestrator.long_video import Pass, Queue, layers_of
from orchestrator.methods import ACCELERATORS, find
from orchestrator.policy import ArmSizing, stage_choices
from orchestrator.resolve import resolve_arm
from orchestrator.resolve_methods import conflicts
from orchestrator.resolve_sizing import sizing_mistakes, sizing_of
from orchestrator.types import Grid, VideoShape
from parallel.line import Line
from stages.accelerators.attending import Here, Log
from stages.accelerators.base import Now, StageEvent
from stages.block_queue import BlockLeg, Later, Share
from stages.denoise import Boundary, run_stages, start
from stages.models.base import Branch, Condition
from stages.planners import make_planner
from stages.planners.dualparal import DualParalSettings, queue_of
from stages.sampling import NoiseLevel
from tests.spies import SpyModel
from tests.unit.planner_runs import finished, made_for, refusals, wan_mini

STEPS = 4


def shape(num_latents: int) -> VideoShape:
    return VideoShape(4 * num_latents - 3, 32, 48)


@functools.cache
def asked() -> Condition:
    dim = wan_mini().parts.experts[0].weights.config.text_dim  # type: ignore[attr-defined]
    noise = torch.Generator().manual_seed(1)
    return Condition(*(Branch({"text": torch.randn(1, 4, dim, generator=noise)}, 20) for _ in range(2)), 3.0)


def clip(num_latents: int, **settings: Any) -> tuple[Boundary, BlockLeg]:
    """On the embedded model, and the leg that made it."""
    planner = made_for(shape(num_latents), "dualparal", STEPS, "wan-mini", settings)
    boundary = start(wan_mini(), planner, asked(), 5)
    leg = planner.leg(wan_mini(), boundary, lambda done: None)
    assert isinstance(leg, BlockLeg)
    with torch.inference_mode():
        return leg.run(), leg


queues = st.builds(
    Queue,
    num_frames=st.integers(1, 60),
    most=st.integers(1, 12),
    num_steps=st.integers(1, 12),
    in_flight=st.integers(1, 12),
    order=st.sampled_from(["noisiest", "cleanest"]),
)


@given(queues)
def test_every_block_takes_every_step_once_and_in_turn(queue: Queue) -> None:
    passes = list(queue.passes)
    assert len(passes) == queue.num_passes == len(set(passes))
    for block in range(queue.num_blocks):
        assert [one.step for one in passes if one.block == block] == list(range(queue.num_steps))


@given(queues)
def test_blocks_follow_each_other_without_a_stub(queue: Queue) -> None:
    assert [frame for block in queue.blocks for frame in block] == list(range(queue.num_frames))
    sizes = {len(block) for block in queue.blocks}
    assert max(sizes) <= queue.most
    assert max(sizes) - min(sizes) <= 1


@given(queues)
def test_no_more_are_in_flight_than_were_asked_for(queue: Queue) -> None:
    passes = list(queue.passes)
    for number in range(len(passes)):
        begun, ended = {one.block for one in passes[: number + 1]}, {one.block for one in passes[:number] if _is_last(one, queue)}
        assert len(begun - ended) <= queue.in_flight


slanted = st.builds(
    Queue,
    num_frames=st.integers(1, 60),
    most=st.integers(1, 12),
    num_steps=st.integers(1, 12),
    in_flight=st.integers(1, 12),
    order=st.sampled_from(["noisiest", "cleanest"]),
    overlap=st.integers(0, 6),
)


@given(slanted)
def test_every_frame_takes_every_step_once_and_all_that_a_pass_sees_are_at_its_level(queue: Queue) -> None:
    taken = [0] * queue.num_frames
    for one in queue.passes:
        seen, moved = queue.seen(one.block, one.step), queue.moved(one.block, one.step)
        assert {taken[frame] for frame in seen} == {one.step}
        assert moved.start == seen.start
        assert len(moved) <= len(seen) <= queue.num_seen
        for frame in moved:
            taken[frame] += 1
    assert taken == [queue.num_steps] * queue.num_frames


@given(slanted)
def test_frames_on_their_way_are_bounded_whatever_the_length(queue: Queue) -> None:
    taken: dict[int, int] = {}
    for one in queue.passes:
        taken |= {frame: taken.get(frame, 0) for frame in queue.seen(one.block, one.step)}
        assert len(taken) <= queue.in_flight * (queue.most + 1) + queue.overlap * (queue.num_steps + 1)
        for frame in queue.moved(one.block, one.step):
            taken[frame] = one.step + 1
        taken = {frame: steps for frame, steps in taken.items() if steps < queue.num_steps}


@given(slanted)
def test_what_a_block_sees_of_the_next_one_the_next_one_sees_at_that_step(queue: Queue) -> None:
    ahead: dict[int, range] = {}
    for one in queue.passes:
        seen, moved = queue.seen(one.block, one.step), queue.moved(one.block, one.step)
        if before := ahead.pop(one.step, None):
            assert seen.start == before.start
            assert seen.stop >= before.stop
        if moved.stop < seen.stop:
            ahead[one.step] = range(moved.stop, seen.stop)
    assert ahead == {}


@given(slanted)
def test_borders_of_one_step_are_inside_blocks_at_the_next(queue: Queue) -> None:
    if queue.is_slanted and queue.overlap % queue.most:
        for step in range(1, queue.num_steps):
            starts = [{block.start for block in _moved(queue, at) if block.start} for at in (step - 1, step)]
            assert not starts[0] & starts[1]


def _moved(queue: Queue, step: int) -> list[range]:
    return [moved for block in range(queue.num_blocks) if (moved := queue.moved(block, step))]


def test_a_block_sees_no_more_than_the_model_was_trained_on() -> None:
    for name, expected in {"wan-mini": (8, 3), "wan2.1-1.3b": (15, 6), "hunyuanvideo-1.5": (23, 8)}.items():
        geometry = geometry_of(name)
        queue = queue_of(DualParalSettings(), geometry, 200, 50)
        assert (queue.most, queue.overlap) == expected
        assert queue.num_seen == geometry.latent_grid(geometry.default_shape)[0]
    assert queue_of(DualParalSettings(context_frames=5), geometry_of("wan-mini"), 44, 15).most == 6


def _is_last(one: Pass, queue: Queue) -> bool:
    return one.step == queue.num_steps - 1


@given(queues)
def test_keys_kept_of_the_block_before_are_of_a_level_gap_less_one_ahead_or_its_last(queue: Queue) -> None:
    ahead = queue.gap - 1 if queue.order == "noisiest" else queue.gap
    latest: dict[int, int] = {}
    for one in queue.passes:
        if one.block:
            assert latest[one.block - 1] == min(one.step + ahead, queue.num_steps - 1)
        latest[one.block] = one.step


def test_with_as_many_in_flight_as_steps_the_order_is_the_published_one() -> None:
    queue = Queue(4, 1, 3, 3)
    rounds = [[(0, 0)], [(1, 0), (0, 1)], [(2, 0), (1, 1), (0, 2)], [(3, 0), (2, 1), (1, 2)], [(3, 1), (2, 2)], [(3, 2)]]
    assert [(one.block, one.step) for one in queue.passes] == [pair for one in rounds for pair in one]


def test_every_rank_has_adjacent_layers_and_one_at_least() -> None:
    assert [layers_of(rank, 4, 7) for rank in range(4)] == [range(1), range(1, 3), range(3, 5), range(5, 7)]
    with pytest.raises(ValueError, match=r"8 ranks would share 7 layers.*take at most 7 ranks"):
        layers_of(0, 8, 7)


@pytest.mark.parametrize("patches", [(3, 2, 3), (1, 4, 2)])
def test_a_later_block_is_rotated_as_in_a_table_of_the_whole_video(patches: Grid) -> None:
    def table(grid: Grid) -> Tensor:
        """Two pairs turn by the frame, one by the row, one by the column."""
        t, h, w = (torch.arange(size, dtype=torch.float64).reshape(-1, *[1] * (2 - axis)) for axis, size in enumerate(grid))
        angles = torch.stack(torch.broadcast_tensors(t, t * 0.1, h * 0.7, w * 0.3), dim=-1).flatten(0, 2)
        return torch.stack([angles.cos(), angles.sin()], dim=-1).float()

    first, (frames, *rest) = 200, patches
    whole = table((first + frames, *rest))
    torch.testing.assert_close(Later(first, patches).rotations(table), whole[-frames * rest[0] * rest[1] :], atol=2e-5, rtol=0)


def _here(branch: int, layer: int, num_image: int) -> Here:
    now = Now(0, NoiseLevel(1.0, 1000.0, 900.0), branch, StageEvent((2, 1, 2), range(2), 2, 0, False))
    return Here(now, layer, 3, range(2), (2, 1, 2), num_image, Log(3))


def test_a_block_attends_to_itself_and_to_the_end_of_the_one_before_by_layer_and_branch() -> None:
    share, seen = Share(Line(None, 1), context=1), list[tuple[Tensor, Tensor]]()

    def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        seen.append((k, v))
        return q

    def attend(block: int, branch: int, layer: int, is_followed: bool = True) -> Tensor:
        x = 100.0 * block + 10 * layer + branch + torch.arange(5) / 10  # two frames of two tokens, and one of text
        share.begin(block, 2, is_followed)
        rows = x.reshape(1, 1, 5, 1).expand(1, 2, 5, 4)
        share.attend(rows, rows, -rows, _here(branch, layer, 4), dense)
        return x

    own = {(branch, layer): attend(0, branch, layer) for branch in (0, 1) for layer in (1, 2)}
    assert all(k.shape[2] == 5 for k, _ in seen), "nothing is before the first block"
    for (branch, layer), before in own.items():
        x = attend(1, branch, layer, is_followed=False)
        k, v = seen[-1]
        assert torch.equal(k[0, 0, :, 0], torch.cat([x, before[2:4]])), "the last frame's, without text"
        assert torch.equal(v, -k)
    num_bytes = share.num_bytes
    assert num_bytes == 4 * 2 * (2 * 2 * 4) * 4, "of two branches and layers: keys and values of one frame of block 0 alone"
    share.drop(0)
    assert share.num_bytes == 0


def test_one_block_is_the_plain_run_on_the_same_noise() -> None:
    plain = made_for(shape(4), "full", STEPS, "wan-mini", {}, DvgConfig(initial_noise="coordinate"))
    expected = finished(wan_mini(), plain, asked())
    own, _ = clip(4, block_frames=4)
    assert torch.equal(own.x, expected.x)
    assert own.past.tflops == pytest.approx(expected.past.tflops)


def test_without_context_blocks_know_nothing_of_each_other() -> None:
    own, _ = clip(4, block_frames=2, overlap_frames=0)
    linked, _ = clip(4, block_frames=2, overlap_frames=0, context_frames=2)
    assert torch.equal(own.x[:, :, :2], linked.x[:, :, :2])
    assert not torch.allclose(own.x[:, :, 2:], linked.x[:, :, 2:], atol=1e-3)


@pytest.mark.parametrize("order", ["noisiest", "cleanest"])
def test_a_longer_video_begins_as_a_shorter_one_and_takes_no_more_memory(order: str) -> None:
    settings = {"block_frames": 2, "context_frames": 1, "in_flight": 2, "order": order}
    (short, one), (long, other) = clip(8, **settings), clip(14, **settings)
    assert torch.equal(long.x[:, :, :8], short.x)
    assert other.most_bytes == one.most_bytes > 0
    assert (other.flights, other.placed, other.share.num_bytes) == ({}, {}, 0), "nothing is left"


def test_with_an_overlap_a_longer_video_takes_no_more_memory_and_nothing_is_left() -> None:
    """And less than a clip's frames would."""
    settings = {"block_frames": 2, "overlap_frames": 1, "in_flight": 2}
    (_, one), (long, other) = clip(12, **settings), clip(20, **settings)
    per_frame = 4 * long.x[:, :, :1].nbytes  # the solver remembers three
    assert 0 < other.most_bytes == one.most_bytes < 12 * per_frame
    assert (other.flights, other.frames, other.ahead, other.placed) == ({}, {}, {}, {})


def test_frames_that_two_blocks_see_go_from_what_one_finds_to_what_the_other_does() -> None:
    _, leg = clip(4, block_frames=2, overlap_frames=1)
    leg.ahead[1] = torch.zeros(1, 1, 2, 1, 1)
    joined = leg._joined(torch.ones(1, 1, 5, 1, 1), 1)
    torch.testing.assert_close(joined.flatten(), torch.tensor([1 / 3, 2 / 3, 1.0, 1.0, 1.0]))
    assert torch.equal(leg._joined(joined, 1), joined), "used once"


def test_overlapping_blocks_move_frames_as_a_plain_run_does_where_these_do_not_see_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every frame gets every step, its own solver's, whichever blocks it is in."""
    plain = made_for(shape(13), "full", STEPS, "wan-mini", {}, DvgConfig(initial_noise="coordinate"))
    monkeypatch.setattr(type(wan_mini()), "denoise", lambda self, x, level, placed: torch.sin(3 * x) + level.sigma)
    expected = finished(wan_mini(), plain, asked())
    own, _ = clip(13, block_frames=3, overlap_frames=2, in_flight=2)
    torch.testing.assert_close(own.x, expected.x, atol=1e-5, rtol=0)


def test_going_by_the_cleanest_first_fewer_keys_are_kept() -> None:
    settings: dict[str, Any] = {"block_frames": 1, "context_frames": 1, "in_flight": 4}
    assert clip(5, **settings, order="cleanest")[1].most_bytes < clip(5, **settings)[1].most_bytes


def test_operations_and_seconds_grow_with_the_length_and_not_with_its_square() -> None:
    geometry = geometry_of("wan2.1-1.3b")
    cost = uncalibrated(geometry, "NVIDIA H100")
    published = {"block_frames": 8, "context_frames": 8}
    found = {}
    for blocks in (2, 4, 8):
        long = dataclasses.replace(geometry.default_shape, num_frames=4 * 8 * blocks - 3)
        planner = made_for(long, "dualparal", 50, geometry.name, published)
        found[blocks] = denoise_s(geometry, planner.decide(None).action, cost)
    assert found[8] - found[4] == pytest.approx(2 * (found[4] - found[2])), "the first block alone has no context"


def test_a_slice_is_no_wider_than_the_model_has_layers() -> None:
    mini = geometry_of("wan-mini")
    action = made_for(shape(8), "dualparal", STEPS, "wan-mini", {"block_frames": 2}).decide(None).action
    sizing = ArmSizing(model="wan-mini", cost=uncalibrated(mini, "CPU"), limits=Limits(max_width=1), least_width=1)
    wide = sizing.model_copy(update={"cost": _degrees(8), "limits": Limits(max_width=8)})
    assert max(choice.width for choice in stage_choices(wide, action, 8)[0]) == 4
    (one,) = stage_choices(sizing, action, 1)[0]
    assert one.num_tokens == mini.num_tokens((5, *action.stages[0].grid[1:])), "two frames, and three of the next block"
    assert action.stages[0].passes == 4


def _degrees(most: int) -> CostModel:
    mini = geometry_of("wan-mini")
    return with_degrees(mini, uncalibrated(mini, "CPU"), [1, 2, 4, most])


def test_what_it_cannot_do_is_refused_with_the_reason() -> None:
    assert refusals("dualparal") == refusals("dualparal", model="hunyuanvideo") == ""
    assert "two experts, and blocks at different steps would need both" in refusals("dualparal", model="wan2.2-a14b")
    assert "needs a first frame, and only two blocks would see it" in refusals("dualparal", model="wan2.1-i2v-14b")
    assert "block_frames" in refusals("dualparal", block_frames=0)
    assert "blocks that overlap keep no keys of each other" in refusals("dualparal", overlap_frames=1, context_frames=2)
    task = geometry_of("wan-mini"), shape(4), STEPS, None, DvgConfig()
    with pytest.raises(ValueError, match="cannot be combined with an accelerator"):
        make_planner("dualparal", *task, accelerators=(object,))  # type: ignore[arg-type]


def test_no_accelerator_goes_with_it() -> None:
    for name in ACCELERATORS:
        assert conflicts([find("dualparal", "planner"), find(name, "accelerator")]), name


def test_a_first_frame_is_refused() -> None:
    planner, spy = made_for(shape(4), "dualparal", STEPS, "wan-mini", {}), SpyModel()
    with_image = dataclasses.replace(asked(), latent=torch.zeros(1, 16, 1, 4, 6))
    boundary = start(spy, planner, with_image, 1)
    with pytest.raises(ValueError, match="only two blocks would see a first frame"):
        run_stages(spy, planner, boundary, 1)


def arm(**settings: Any) -> Arm:
    mistakes: list[str] = []
    asked = {"model": "wan-mini", "device_name": "NVIDIA H200", "planner": "dualparal", **settings}
    found = resolve_arm("long", asked, mistakes)
    assert mistakes == []
    assert found is not None
    return found


LARGE = {"model": "wan2.1-14b", "height": 480, "width": 832}


def test_an_arm_of_any_length_takes_the_memory_of_its_blocks() -> None:
    pod = ClusterConfig(heavy_ranks=4, gpus_per_rank=1, gpus_per_sketch=1)
    for frames in (81, 4097):
        arms = [
            arm(frames=frames, planner={"dualparal": {"block_frames": 8, "context_frames": 8, "in_flight": number}})
            for number in (1, 8)
        ]
        lean, wide = (one.model_copy(update=LARGE) for one in arms)
        sizing = sizing_of([lean], pod).arms["long"]
        assert [choice.width for choice in stage_choices(sizing, sizing.actions[0], 4)[0]] == [1]
        (line,) = sizing_mistakes([wide], pod)
        assert line.endswith("or dualparal with context_frames 0, order cleanest or fewer blocks in_flight, whose keys it keeps")


def test_a_width_beyond_the_layers_and_an_accelerator_are_refused_before_anything_runs() -> None:
    pod = ClusterConfig.model_validate({"heavy_ranks": 8, "sizing": {"rule": "fixed", "width": 8}})
    (line,) = sizing_mistakes([arm(frames=161)], pod)
    assert "cluster.sizing.width is 8, and planner dualparal gives every rank some of 7 layers" in line
    mistakes: list[str] = []
    resolve_arm("long", {"model": "wan-mini", "planner": "dualparal", "accelerators": ["adacache"]}, mistakes)
    assert "dualparal and adacache cannot be combined: blocks of one video are at different steps at once" in mistakes[0]
