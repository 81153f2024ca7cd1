"""What a long video by blocks is predicted to take: by the operations of its forwards, on ranks that it keeps busy."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.actions import full_action
from orchestrator.cost import denoise_s, uncalibrated
from orchestrator.degrees import Limits
from orchestrator.events import StartPhase
from orchestrator.flops import tokens_tflops
from orchestrator.geometry import model
from orchestrator.long_video import Queue, blockwise, passes_tflops
from orchestrator.patience import Patience, PatienceConfig
from orchestrator.policy import Sizing, stage_choices
from orchestrator.resolve_sizing import sizing_on
from orchestrator.types import Action, Decision, Item, Slice, VideoShape

STEPS = 10
WAN = model("wan2.1-14b")
COST = uncalibrated(WAN, "NVIDIA H200")
SHAPE = VideoShape(641, 480, 832)
queues = st.builds(
    Queue,
    num_frames=st.just(WAN.latent_grid(SHAPE)[0]),
    most=st.integers(6, 40),
    num_steps=st.just(STEPS),
    in_flight=st.integers(1, 12),
)


def action(queue: Queue, context: int) -> Action:
    return blockwise(WAN, full_action(WAN, SHAPE, STEPS), queue, context)


def queue_of(most: int = 8, in_flight: int = 8) -> Queue:
    return Queue(WAN.latent_grid(SHAPE)[0], most, STEPS, in_flight)


@given(queues, st.integers(0, 40))
def test_seconds_go_by_the_operations_that_all_passes_execute(queue: Queue, context: int) -> None:
    found = action(queue, context)
    (stage,) = found.stages
    tokens = WAN.num_tokens(stage.seen)
    rate = COST.forward_s(tokens) / tokens_tflops(WAN, tokens)
    assert denoise_s(WAN, found, COST) == pytest.approx(rate * passes_tflops(WAN, stage.grid, queue, context))


def test_the_seconds_of_every_width_have_the_context_in_them() -> None:
    """Operations of 21 blocks of 7 or 8 frames by hand: 541,557 TFLOP against 447,255 of 21 blocks of 8 without context."""
    arm = sizing_on(Limits(max_width=4), WAN, dataclasses.replace(SHAPE, num_frames=29), COST)
    found = action(queue_of(), 8)
    (stage,) = found.stages
    assert stage.work == pytest.approx(541_557 / 447_255, rel=1e-4)
    for choice in stage_choices(arm, found, 4)[0]:
        plain_s = arm.cost.step_s(WAN.num_tokens(stage.seen), choice.width)
        assert choice.step_s == pytest.approx(stage.work * plain_s)
        assert choice.stage_s == pytest.approx(21 * STEPS * choice.step_s)


@pytest.mark.parametrize(("most", "in_flight", "widths"), [(8, 8, [1, 2, 4, 8]), (8, 3, [1, 2]), (8, 1, [1]), (81, 8, [1, 2])])
def test_a_slice_is_no_wider_than_blocks_are_on_their_way(most: int, in_flight: int, widths: list[int]) -> None:
    arm = sizing_on(Limits(max_width=8), WAN, dataclasses.replace(SHAPE, num_frames=29), COST)
    (options,) = stage_choices(arm, action(queue_of(most, in_flight), 8), 8)
    assert [choice.width for choice in options] == widths


def test_a_plain_run_is_as_wide_and_as_dear_as_ever() -> None:
    plain = full_action(WAN, SHAPE, STEPS)
    arm = sizing_on(Limits(max_width=8), WAN, SHAPE, COST)
    (options,) = stage_choices(arm, plain, 8)
    assert [choice.width for choice in options] == [1, 2, 4, 8]
    assert denoise_s(WAN, plain, COST) == STEPS * COST.forward_s(WAN.num_tokens(plain.stages[0].grid))


def test_a_step_is_waited_for_as_long_as_its_context_takes() -> None:
    def patience_s(context: int) -> float:
        arm = sizing_on(Limits(), WAN, dataclasses.replace(SHAPE, num_frames=29), COST)
        known = Patience(PatienceConfig(least_step_s=1e-6), Sizing(arms={"long": arm}), 1e6)
        decision = Decision(action(queue_of(), context), "")
        return known.step_s(StartPhase("key1", 1, Slice("pod-0", 0, 1), 0, 1), Item("key1", "long", "p", "x", 1), decision)

    assert patience_s(8) > 1.1 * patience_s(0)
