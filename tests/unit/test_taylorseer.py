"""TaylorSeer on scripted trunks: which steps are computed, and what the others are forecast from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.geometry import model
from stages.accelerators.base import Now
from stages.accelerators.taylorseer import METHODS, Differences, TaylorSeer, TaylorSeerSettings
from stages.accelerators.trunk import State, Trunk
from stages.sampling import NoiseLevel
from tests.unit.scripted import PATTERN, Script, computed, drive, event

GEOMETRY = model("wan-mini")


def made(**settings: Any) -> TaylorSeer:
    return TaylorSeer(TaylorSeerSettings(**settings), GEOMETRY)


def flat(block: int, step: int) -> float:
    return block + 1.0


def test_as_released_fifty_steps_take_ten_forwards() -> None:
    forwards = drive(made(), Script(flat), event(50))
    assert computed(forwards) == list(range(0, 50, 5))
    assert sum(forward.work for forward in forwards) == 10
    assert {forward.work for forward in forwards} == {0.0, 1.0}


@pytest.mark.parametrize("mode", ["lite", "blocks"])
def test_at_an_interval_of_one_every_forward_is_whole(mode: str) -> None:
    assert [forward.calls for forward in drive(made(interval=1, mode=mode), Script(flat), event(6))] == [("all",)] * 6


def test_the_interval_counts_from_the_last_computed_step() -> None:
    assert computed(drive(made(interval=4, first_enhance=3), Script(flat), event(16))) == [0, 1, 2, 6, 10, 14]


def test_the_clips_last_step_is_computed_if_asked() -> None:
    assert computed(drive(made(compute_last=True), Script(flat), event(12))) == [0, 5, 10, 11]


@pytest.mark.parametrize(("stage", "steps"), [(0, [0, 3, 6, 8]), (1, [9, 12, 14]), (2, [15, 18, 21])])
def test_inside_a_stage_no_step_is_forecast_for_more_than_two_in_a_row_and_transitions_are_computed(
    stage: int, steps: list[int]
) -> None:
    assert computed(drive(made(), Script(flat), event(23, (9, 6, 8), stage))) == steps


def test_an_interval_that_is_given_stands_inside_a_stage_too() -> None:
    assert computed(drive(made(interval=5), Script(flat), event(23, (12, 11), 0))) == [0, 5, 10, 11]


@pytest.mark.parametrize("mode", ["lite", "blocks"])
@pytest.mark.parametrize("order", [0, 1, 2])
def test_what_changes_by_a_line_is_forecast_exactly_from_order_one_on(mode: str, order: int) -> None:
    """Once enough steps are computed: order m needs m + 1."""
    script = Script(lambda block, step: 2.0 * block - 0.5 * step, rest=lambda block, step: 0.25 * step)
    forwards = drive(made(mode=mode, interval=3, max_order=order), script, event(15), h=lambda step: 0.1 * step)
    late = [forward for forward in forwards if forward.step > 6 and not forward.is_whole]
    assert len(late) == 6
    exact = [torch.allclose(forward.out, script.answer(forward.step, 0.1 * forward.step)) for forward in late]
    assert all(exact) == (order > 0)


def test_uneven_distances_count_as_they_are() -> None:
    """After three steps in a row and then a gap, a line is still a line."""
    script = Script(lambda block, step: 3.0 * step)
    forwards = drive(made(interval=4, first_enhance=3), script, event(12))
    for forward in forwards[3:]:
        assert torch.allclose(forward.out, script.answer(forward.step))


def test_until_there_is_a_difference_the_last_value_stands() -> None:
    script = Script(lambda block, step: float(step + 1))
    forwards = drive(made(), script, event(10))
    assert all(torch.equal(forward.out, script.answer(0)) for forward in forwards[:5])


@given(
    values=st.lists(st.floats(-4, 4), min_size=3, max_size=3),
    gaps=st.lists(st.integers(1, 4), min_size=2, max_size=2),
    ahead=st.integers(1, 3),
)
def test_differences_are_the_recursion_of_the_paper(values: list[float], gaps: list[int], ahead: int) -> None:
    steps = [0, gaps[0], sum(gaps)]
    differences = Differences(2)
    for step, value in zip(steps, values, strict=True):
        differences.update(PATTERN * value, step)
    first = (values[1] - values[0]) / gaps[0]
    second = (values[2] - values[1]) / gaps[1]
    expected = values[2] + second * ahead + (second - first) / gaps[1] * ahead**2 / 2
    torch.testing.assert_close(differences.at(steps[2] + ahead), PATTERN * expected)
    torch.testing.assert_close(differences.at(steps[2]), PATTERN * values[2])


def test_in_blocks_attention_is_multiplied_by_the_gates_of_the_step_at_hand() -> None:
    """Attention that stays as it is under gates that bend is exact; the whole's residual forecast from them is not."""
    script = Script(flat, rest=lambda block, step: 0.5, gate=lambda block, step: float((step + 1) ** 2))
    for mode, is_exact in (("blocks", True), ("lite", False)):
        forwards = drive(made(mode=mode, interval=3), script, event(9))
        skipped = [forward for forward in forwards if not forward.is_whole]
        assert len(skipped) == 6
        assert all(torch.allclose(forward.out, script.answer(forward.step)) for forward in skipped) == is_exact, mode


@pytest.mark.parametrize("mode", ["lite", "blocks"])
def test_branches_of_guidance_do_not_meet(mode: str) -> None:
    scripts = Script(lambda block, step: 1.0 * step), Script(lambda block, step: -7.0 * step)
    together = drive(made(mode=mode, interval=3), scripts, event(9))
    for branch, script in enumerate(scripts):
        alone = drive(made(mode=mode, interval=3), script, event(9))
        mine = [forward for forward in together if forward.branch == branch]
        assert all(torch.equal(a.out, b.out) for a, b in zip(mine, alone, strict=True))


def test_in_bfloat16_a_forecast_rounds_once_and_not_at_every_block() -> None:
    """Sixty blocks that find the same at every step: forecast is what was computed, to the last place or the one before it."""
    generator = torch.Generator().manual_seed(0)
    found = torch.randn(60, 1, 32, 16, generator=generator).bfloat16()
    gates = torch.randn(60, 16, generator=generator).bfloat16()
    h = torch.randn(1, 32, 16, generator=generator).bfloat16()

    def trunk() -> Trunk:
        def finish(index: int, state: State, kept: State) -> State:
            return (state[0] + gates[index] * kept[0],)

        return Trunk(
            (h,), 60, lambda: h, lambda index, state: state, lambda index, state: (found[index],), finish,
            lambda state: state[0], {}, 0.5, "script", gate=lambda index: gates[index],
        )  # fmt: skip

    accelerator, where = made(mode="blocks"), event(5)
    computed, *others = (accelerator.forward(trunk(), Now(step, NoiseLevel(0.5, 500.0, 0.0), 0, where)) for step in range(5))
    assert len(others) == 4
    for forecast in others:
        torch.testing.assert_close(forecast, computed, rtol=2**-7, atol=2**-10)


def test_only_blocks_takes_forwards_apart() -> None:
    method = METHODS["taylorseer"]
    assert method.leaves_whole_forwards(TaylorSeerSettings())
    assert not method.leaves_whole_forwards(TaylorSeerSettings(mode="blocks"))
