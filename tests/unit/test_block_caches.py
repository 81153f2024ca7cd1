"""Caches of runs of blocks on scripted trunks: Delta-DiT, FirstBlockCache, DBCache."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from orchestrator.dvg_config import DvgConfig
from orchestrator.geometry import model
from orchestrator.methods import Request, find, read_settings
from stages.accelerators.delta_dit import DeltaDitSettings, left_out
from stages.accelerators.pace import LONGEST_IN_STAGES
from tests.unit.scripted import Forward, Script, computed, drive, event

GEOMETRY = model("wan-mini")


def made(name: str, **settings: Any) -> Any:
    method = find(name, "accelerator")
    return method.make(read_settings(method, settings), GEOMETRY)


def request(name: str = "wan-mini", **changes: Any) -> Request:
    geometry = model(name)
    asked = Request(geometry, geometry.default_shape, 30, 2.0, "full", DvgConfig())
    return dataclasses.replace(asked, **changes)


def calls(forwards: Sequence[Forward]) -> list[tuple[str, ...]]:
    return [forward.calls for forward in forwards]


def rising(block: int, step: int) -> float:
    return 1.0 + block + 0.1 * step


def test_delta_dit_leaves_out_rear_blocks_first_and_front_blocks_after_the_boundary() -> None:
    """Of four blocks three, every other step; the boundary begins anew, and the last step is computed whole."""
    forwards = drive(made("delta-dit"), Script(rising), event(12))
    whole, rear, front = ("0", "1", "2", "3"), ("0",), ("3",)
    assert calls(forwards) == [whole, rear] * 3 + [whole, front] * 2 + [whole, ("all",)]


def test_what_one_side_added_is_never_taken_for_the_others() -> None:
    """The boundary falls between two computed steps."""
    forwards = drive(made("delta-dit", interval=4), Script(rising), event(12))
    whole, rear, front = ("0", "1", "2", "3"), ("0",), ("3",)
    assert calls(forwards) == [whole, rear, rear, rear, whole, rear, whole, front, front, front, whole, ("all",)]


def test_what_delta_dit_reuses_is_what_those_blocks_added_when_they_were_last_computed() -> None:
    script = Script(rising)
    forwards = drive(made("delta-dit"), script, event(12), h=lambda step: float(step))
    pattern = script.answer(0) / sum(rising(block, 0) for block in range(4))
    expected = {
        1: 1 + rising(0, 1) + sum(rising(block, 0) for block in (1, 2, 3)),
        7: 7 + sum(rising(block, 6) for block in (0, 1, 2)) + rising(3, 7),
    }
    for step, value in expected.items():
        torch.testing.assert_close(forwards[step].out, pattern * value)


def test_with_stages_delta_dit_leaves_out_the_front_in_the_last_and_the_rear_before_it() -> None:
    whole, rear, front = ("0", "1", "2", "3"), ("0",), ("3",)
    lengths = (5, 4, 4)
    first, second, third = (drive(made("delta-dit"), Script(rising), event(13, lengths, stage)) for stage in range(3))
    assert calls(first) == [whole, rear, whole, rear, ("all",)]
    assert calls(second) == [whole, rear, whole, ("all",)]
    assert calls(third) == [whole, front, whole, ("all",)]


@pytest.mark.parametrize(("steps", "factor"), [(20, "1.51x"), (50, "1.56x")])
def test_delta_dit_spends_what_its_rule_says_and_no_less_than_its_settings_claim(steps: int, factor: str) -> None:
    """Three quarters of the blocks at every other step would be 1.6x; the last step is computed."""
    forwards = drive(made("delta-dit"), Script(rising, num_blocks=28), event(steps))
    spent = sum(forward.work for forward in forwards)
    assert spent == pytest.approx(steps * (1 - 0.75 / 2) + 0.75)
    assert f"{steps / spent:.2f}x" == factor
    assert factor in (DeltaDitSettings.__doc__ or "")


@pytest.mark.parametrize(("share", "num", "left"), [(0.75, 28, 21), (0.01, 7, 1), (0.99, 7, 6), (0.5, 2, 1)])
def test_some_block_is_left_out_and_some_never(share: float, num: int, left: int) -> None:
    settings = DeltaDitSettings(blocks=share)
    assert left_out(settings, "front", num) == (0, left)
    assert left_out(settings, "rear", num) == (num - left, num)


JUMPS = {0: 1.0, 1: 1.04, 2: 1.06, 3: 1.08, 4: 1.20, 5: 1.20, 6: 1.20, 7: 1.31, 8: 1.31, 9: 1.31}
"""What block 0 adds, by step. Over 5 % from the last computed: 2 (6 % of 1.0), 4 (13 % of 1.06), 7 (9 % of 1.2)."""


def by_jumps(block: int, step: int) -> float:
    return JUMPS[step] if block == 0 else 5.0 + step


def test_the_first_block_decides_by_its_change_since_all_were_computed() -> None:
    forwards = drive(made("first-block"), Script(by_jumps), event(10))
    assert computed(forwards) == [0, 2, 4, 7, 9]
    assert all(forward.calls == ("0",) for forward in forwards if not forward.is_whole)
    assert forwards[-1].calls == ("all",)


def test_what_is_added_again_is_what_the_other_blocks_added() -> None:
    script = Script(by_jumps)
    forwards = drive(made("first-block"), script, event(10))
    pattern = script.answer(0) / sum(by_jumps(block, 0) for block in range(4))
    torch.testing.assert_close(forwards[3].out, pattern * (JUMPS[3] + 3 * (5.0 + 2)))


def test_branches_of_guidance_decide_apart() -> None:
    steady = Script(lambda block, step: 1.0)
    forwards = drive(made("first-block"), (Script(by_jumps), steady), event(10))
    assert computed([forward for forward in forwards if forward.branch == 0]) == [0, 2, 4, 7, 9]
    assert computed([forward for forward in forwards if forward.branch == 1]) == [0, 9]


@pytest.mark.parametrize("name", ["first-block", "dbcache"])
def test_without_tolerance_every_step_is_whole_and_nothing_is_measured(name: str) -> None:
    forwards = drive(made(name, threshold=0), Script(lambda block, step: 1.0), event(6))
    assert calls(forwards) == [("all",)] * 6


@pytest.mark.parametrize("value", [math.inf, math.nan, -1.0])
@pytest.mark.parametrize(
    ("name", "setting"),
    [("first-block", "threshold"), ("dbcache", "threshold"), ("fastercache", "low_growth"), ("fastercache", "high_growth")],
)
def test_a_tolerance_or_growth_without_bound_is_refused(name: str, setting: str, value: float) -> None:
    with pytest.raises(ValueError, match=setting):
        made(name, **{setting: value})


def test_dbcache_warms_up_and_computes_its_first_and_last_blocks() -> None:
    """Everything stays as it is, so all after the warm-up is reused, to the last step."""
    accelerator = made("dbcache", fn_blocks=2, bn_blocks=1, warmup=3)
    forwards = drive(accelerator, Script(lambda block, step: 1.0, num_blocks=6), event(8))
    assert computed(forwards) == [0, 1, 2, 7]
    assert {forward.calls for forward in forwards if not forward.is_whole} == {("0", "1", "5")}


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"max_continuous": 2}, [0, 3, 6, 9, 11]),
        ({"max_cached": 4}, [0, 5, 6, 7, 8, 9, 10, 11]),
        ({"max_cached": 0}, [*range(12)]),
    ],
)
def test_dbcache_reuses_no_more_than_it_may(settings: dict[str, int], steps: list[int]) -> None:
    accelerator = made("dbcache", fn_blocks=1, warmup=1, **settings)
    assert computed(drive(accelerator, Script(lambda block, step: 1.0), event(12))) == steps


def test_in_a_stage_of_several_warm_ups_and_runs_are_short() -> None:
    steady = Script(lambda block, step: 1.0)
    accelerator = made("dbcache", fn_blocks=1, warmup=8)
    assert computed(drive(accelerator, steady, event(20, (10, 10), stage=1))) == [10, 11, 15, 19]
    assert computed(drive(made("first-block"), steady, event(20, (10, 10), stage=0))) == [0, 4, 8, 9]


def test_a_run_that_is_given_stands_in_a_stage_of_several() -> None:
    accelerator = made("dbcache", fn_blocks=1, warmup=1, max_continuous=5)
    assert computed(drive(accelerator, Script(lambda block, step: 1.0), event(24, (14, 10), stage=0))) == [0, 6, 12, 13]


@pytest.mark.parametrize("name", ["taylorseer", "delta-dit", "first-block", "dbcache", "pab", "fastercache"])
def test_by_itself_no_cache_reuses_for_long_in_a_stage_of_several(name: str) -> None:
    """Where nothing changes at all."""
    forwards = drive(made(name), Script(lambda block, step: 1.0), event(40, (20, 20), stage=1))
    runs = "".join(" " if forward.is_whole else "." for forward in forwards).split()
    assert runs
    assert max(map(len, runs)) <= LONGEST_IN_STAGES


@pytest.mark.parametrize(
    ("name", "first"), [("wan-mini", 1), ("wan2.1-14b", 5), ("hunyuanvideo", 8), ("hunyuanvideo-1.5", 7), ("wan2.1-1.3b", 4)]
)
def test_dbcache_computes_eight_blocks_or_a_seventh_of_all(name: str, first: int) -> None:
    method = find("dbcache", "accelerator")
    assert method.resolve(read_settings(method, {}), request(name)).fn_blocks == first


def test_blocks_that_leave_none_between_are_refused_with_the_numbers() -> None:
    method = find("dbcache", "accelerator")
    settings = read_settings(method, {"fn_blocks": 4, "bn_blocks": 3})
    (line,) = method.mistakes(settings, request())
    assert "the first 4 and the last 3" in line
    assert "wan-mini has 7 in all" in line
    assert method.mistakes(read_settings(method, {"fn_blocks": 4, "bn_blocks": 2}), request()) == []
