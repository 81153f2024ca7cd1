"""Caches of what self-attention finds, on scripted trunks: Pyramid Attention Broadcast and FasterCache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from orchestrator.dvg_config import DvgConfig
from orchestrator.geometry import model
from orchestrator.methods import Request, find, read_settings
from stages.accelerators.base import Boost, Guided, Now, StageEvent
from stages.accelerators.fastercache import FasterCache, low_frequencies
from stages.sampling import NoiseLevel
from tests.unit.scripted import PATTERN, Forward, Script, drive, event

GEOMETRY = model("wan-mini")


def made(name: str, **settings: Any) -> Any:
    method = find(name, "accelerator")
    return method.make(read_settings(method, settings), GEOMETRY)


def by_step(block: int, step: int) -> float:
    return 1.0 + block + step


def rest(block: int, step: int) -> float:
    return 100.0 * step


def reused(forwards: Sequence[Forward]) -> list[int]:
    """Steps that computed the rest of every block and no attention."""
    found = [forward for forward in forwards if all(call.startswith("f") for call in forward.calls)]
    assert all(len(forward.calls) == 4 for forward in found)
    return [forward.step for forward in found]


def test_between_its_timesteps_attention_is_computed_every_other_step() -> None:
    """Timesteps fall by 50: 800 and 100 themselves are outside, and the last step is computed."""
    forwards = drive(made("pab"), Script(by_step, rest), event(20))
    assert reused(forwards) == [5, 7, 9, 11, 13, 15, 17]
    assert [forward.step for forward in forwards if forward.calls[0] == "a0"] == [4, 6, 8, 10, 12, 14, 16]
    assert all(forward.calls == ("all",) for forward in forwards if forward.step < 4 or forward.step > 17)


def test_its_first_and_last_timesteps_are_outside() -> None:
    """Here steps that would reuse fall on 800 and on 100."""
    forwards = drive(made("pab"), Script(by_step, rest), event(24), lambda step: 1050.0 - 50 * step)
    assert reused(forwards) == [7, 9, 11, 13, 15, 17]


def test_the_last_step_is_computed_though_attention_was_just_found() -> None:
    assert reused(drive(made("pab", timesteps=(0, 1000)), Script(by_step, rest), event(8))) == [1, 3, 5]


def test_an_interval_of_three_reuses_twice() -> None:
    forwards = drive(made("pab", interval=3, timesteps=(0, 1000)), Script(by_step, rest), event(10))
    assert reused(forwards) == [1, 2, 4, 5, 7, 8]


def test_what_attention_found_is_used_and_all_else_is_of_the_step_at_hand() -> None:
    forwards = drive(made("pab", timesteps=(0, 1000)), Script(by_step, rest), event(8), h=lambda step: 1000.0 * step)
    found = sum(by_step(block, 2) for block in range(4))
    torch.testing.assert_close(forwards[3].out, PATTERN * (3000 + found + 4 * rest(0, 3)))


def test_broadcasting_costs_what_its_rule_says() -> None:
    forwards = drive(made("pab"), Script(by_step, rest, attention_share=0.4), event(50))
    inside = [step for step in range(50) if 100 < 1000 * (1 - step / 50) < 800]
    spared = 0.4 * len([step for step in inside if step % 2])
    assert sum(forward.work for forward in forwards) == pytest.approx(50 - spared)
    assert len(inside) == 34


def test_steps_are_counted_from_the_beginning_of_a_stage() -> None:
    for stage, steps in enumerate(([1, 3], [6, 8], [11, 13])):
        where = event(15, (5, 5, 5), stage)
        assert reused(drive(made("pab", timesteps=(0, 1000)), Script(by_step, rest), where)) == steps


@pytest.mark.parametrize(("name", "settings"), [("pab", {}), ("fastercache", {"below": 1000, "negative_interval": 1})])
def test_branches_of_guidance_keep_their_own(name: str, settings: dict[str, Any]) -> None:
    scripts = Script(by_step, rest), Script(lambda block, step: -3.0 * step, rest)
    together = drive(made(name, **settings), scripts, event(20))
    for branch, script in enumerate(scripts):
        alone = drive(made(name, **settings), script, event(20))
        mine = [forward for forward in together if forward.branch == branch]
        assert all(torch.equal(a.out, b.out) for a, b in zip(mine, alone, strict=True))


@pytest.mark.parametrize("name", ["pab", "fastercache"])
def test_at_every_step_is_the_whole_forward(name: str) -> None:
    forwards = drive(made(name, interval=1), Script(by_step, rest), event(6))
    assert [forward.calls for forward in forwards] == [("all",)] * 6


@pytest.mark.parametrize("timesteps", [(800, 100), (100, 1001), (-1, 800)])
def test_ranges_that_hold_no_timestep_are_refused(timesteps: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="the first must be below the second, both within 0 and 1000"):
        made("pab", timesteps=timesteps)


def test_attention_is_carried_on_along_its_last_change() -> None:
    """What changes by a line is exact two steps after one computed, if it is carried on by all of half its change."""
    script = Script(by_step, rest)
    forwards = drive(made("fastercache", negative_interval=1, below=1000, weight=0.5), script, event(12))
    assert reused(forwards) == [1, 3, 5, 7, 9]
    for step in (3, 5, 7, 9):
        torch.testing.assert_close(forwards[step].out, script.answer(step))
    torch.testing.assert_close(forwards[1].out, script.answer(1) - PATTERN * 4, msg="at first there is one to go by")


def test_by_itself_the_weight_rises_over_the_clip() -> None:
    script = Script(by_step, rest)
    forwards = drive(made("fastercache", negative_interval=1, below=1000), script, event(12))
    for step in (3, 9):
        carried = sum(by_step(block, step - 1) for block in range(4)) + 4 * 2 * step / 11
        torch.testing.assert_close(forwards[step].out, PATTERN * (carried + 4 * rest(0, step)))


def test_above_its_timestep_attention_is_computed_at_every_step() -> None:
    assert reused(drive(made("fastercache", negative_interval=1), Script(by_step, rest), event(20))) == [7, 9, 11, 13, 15, 17]


class Guide:
    """Drives the branch without the prompt; velocities are frames of noise, moved by the step."""

    def __init__(self, accelerator: FasterCache, plain: Callable[[int], Tensor], v: Callable[[int], Tensor]) -> None:
        self.accelerator, self.plain, self.v = accelerator, plain, v
        self.computed: list[int] = []

    def run(self, num_steps: int, where: StageEvent | None = None) -> list[Tensor]:
        where, found = where or event(num_steps), []
        for step in where.steps:
            time = 1000 * (1 - step / num_steps)
            level = NoiseLevel(time / 1000, time, 0.0)
            found.append(
                self.accelerator.negative(self.v(step), Now(step, level, 1, where), lambda step=step: self.forward(step))
            )
        return found

    def forward(self, step: int) -> Tensor:
        self.computed.append(step)
        return self.plain(step)


def frames(seed: int) -> Tensor:
    return torch.randn(1, 2, 3, 10, 14, generator=torch.Generator().manual_seed(seed))


def test_the_branch_without_the_prompt_is_computed_every_fifth_step_below_its_timestep() -> None:
    guide = Guide(made("fastercache", negative_interval=5), frames, lambda step: frames(99))
    guide.run(25)
    assert guide.computed == [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 15, 20, 24]


@pytest.mark.parametrize(("given", "steps"), [({}, [0, 4, 8, 11]), ({"negative_interval": 6}, [0, 6, 11])])
def test_in_a_stage_of_several_that_branch_is_reckoned_three_times_in_a_row_unless_told_otherwise(
    given: dict[str, int], steps: list[int]
) -> None:
    guide = Guide(made("fastercache", negative_below=1000, **given), frames, lambda step: frames(99))
    guide.run(30, event(30, (12, 18), stage=0))
    assert guide.computed == steps


def test_reckoned_it_differs_from_the_other_as_it_did_with_bands_that_grow() -> None:
    """From step 13 (timestep 350) low frequencies grow; from 300 on the high ones do too; below 99 the low ones stay."""
    settings = {"negative_interval": 10, "low_growth": 1.5, "high_growth": 2.0}
    guide = Guide(made("fastercache", **settings), lambda step: frames(step), lambda step: frames(1000 + step))
    found = guide.run(20)
    assert guide.computed == [*range(8), 10, 19]
    low = low_frequencies(frames(10) - frames(1010))
    high = frames(10) - frames(1010) - low
    for step, (grown_low, grown_high) in {11: (1, 0), 13: (3, 0), 14: (4, 1), 17: (7, 4), 18: (8, 5)}.items():
        expected = frames(1000 + step) + low * 1.5**grown_low + high * 2.0**grown_high
        torch.testing.assert_close(found[step], expected, atol=1e-4, rtol=1e-4)


def test_at_the_very_end_low_frequencies_differ_as_before() -> None:
    """Timesteps fall by 25; from 75 on, below 99, only the high ones grow."""
    settings = {"negative_interval": 10, "low_growth": 1.5, "high_growth": 1.25}
    guide = Guide(made("fastercache", **settings), lambda step: frames(step), lambda step: frames(1000 + step))
    found = guide.run(40)
    low = low_frequencies(frames(30) - frames(1030))
    high = frames(30) - frames(1030) - low
    torch.testing.assert_close(found[38], frames(1038) + low * 1.5**6 + high * 1.25**8, atol=1e-3, rtol=1e-4)


def test_low_frequencies_are_a_circle_of_a_fifth_of_a_frame() -> None:
    """Of 10 x 14: up to 2 cycles along each side; the corner (2, 2) is outside the circle."""
    rows, columns = (torch.arange(size) / size * 2 * torch.pi for size in (10, 14))
    for cycles, is_low in [((0, 0), True), ((2, 0), True), ((0, 2), True), ((1, 1), True), ((2, 2), False), ((3, 0), False)]:
        wave = torch.cos(cycles[0] * rows)[:, None] * torch.cos(cycles[1] * columns)
        torch.testing.assert_close(low_frequencies(wave), wave if is_low else torch.zeros(10, 14), atol=1e-5, rtol=0)


def kinds(forwards: Sequence[Forward]) -> str:
    """A letter a step: whole, by halves, or the rest only."""
    return "".join({"all": "w", "a0": "h", "f0": "r"}[forward.calls[0]] for forward in forwards)


def test_only_what_a_step_soon_after_will_use_is_computed_by_halves_and_kept() -> None:
    """Timesteps fall by 50: from 650 on attention is carried on, at first from the two steps before it."""
    accelerator, where = made("fastercache", negative_interval=1), event(20)
    assert kinds(drive(accelerator, Script(by_step, rest), where)) == "wwwww" + "hh" + "rh" * 5 + "r" + "ww"
    assert not accelerator._found, "nothing is kept at the end"
    two = drive(made("fastercache", negative_interval=1), Script(by_step, rest), where)[7]
    carried = sum(by_step(block, 6) for block in range(4)) + 4 * 7 / 19
    torch.testing.assert_close(two.out, PATTERN * (carried + 4 * rest(0, 7)))


def test_where_the_branches_difference_is_measured_both_are_computed_in_full() -> None:
    """Reckoned from timestep 641 on, every fifth step apart: 8 is the first; 10 and 15 measure, odd or not."""
    script = Script(by_step, rest)
    forwards = drive(made("fastercache", negative_interval=5), (script, script), event(20))
    of = [[forward for forward in forwards if forward.branch == branch] for branch in (0, 1)]
    assert reused(of[0]) == [9, 11, 13, 17]
    assert kinds(of[1]) == "w" * 20, "the branch that is reckoned at other steps reuses nothing, and keeps nothing"


def test_a_reckoned_branch_counts_as_a_forward_of_no_operations() -> None:
    class Halves:
        def forward(self, trunk: Any, now: Now) -> Tensor:
            out: Tensor = trunk.compute()
            return out

        def negative(self, v: Tensor, now: Now, forward: Callable[[], Tensor]) -> Tensor:
            assert now.branch == 1
            return v if now.step % 2 else forward()

    boost, script = Boost((Halves,), event(4)), Script(by_step)
    assert isinstance(Halves(), Guided)
    for step in range(4):
        boost.at(step, NoiseLevel(0.5, 500.0, 0.0))
        boost.branch = 0
        v = boost(script.trunk(step))
        boost.negative(v, lambda step=step: boost(script.trunk(step)))
    assert boost.share == pytest.approx(0.75)


def asked(name: str, guidance: float) -> Request:
    geometry = model(name)
    return Request(geometry, geometry.default_shape, 30, guidance, "full", DvgConfig())


@pytest.mark.parametrize(
    ("name", "guidance", "interval"),
    [("wan-mini", 2.0, 5), ("wan-mini", 1.0, 1), ("hunyuanvideo", 6.0, 1), ("hunyuanvideo-1.5", 6.0, 5)],
)
def test_the_branch_without_the_prompt_is_reckoned_where_there_is_one(name: str, guidance: float, interval: int) -> None:
    method = find("fastercache", "accelerator")
    settings = method.resolve(read_settings(method, {}), asked(name, guidance))
    assert settings.negative_spacing(event(20)) == interval
    reason = method.together(settings, asked(name, guidance))
    assert ("set negative_interval to 1" in reason) == (interval > 1)


def test_reckoning_a_branch_that_is_not_there_is_refused() -> None:
    method = find("fastercache", "accelerator")
    settings = read_settings(method, {"negative_interval": 3})
    with pytest.raises(ValueError, match=r"hunyuanvideo under guidance 6 has no branch without the prompt: leave it out"):
        method.resolve(settings, asked("hunyuanvideo", 6.0))
    assert method.resolve(settings, asked("wan-mini", 2.0)) == settings
