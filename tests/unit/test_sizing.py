"""Widths by rule: properties on any measured grids, and what recorded actions get at real sizes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from experiments.calibrate_fit import About, compose
from orchestrator.actions import DvgConfig, candidates
from orchestrator.calibration import StepRow
from orchestrator.cost import CostModel, uncalibrated, with_degrees
from orchestrator.degrees import Limits
from orchestrator.geometry import model
from orchestrator.policy import ArmSizing, Sizing, stage_choices
from orchestrator.sizing import Rule, SizingConfig, join_short
from orchestrator.types import Action, Decision, Item, Stage

WAN = model("wan2.2-a14b")
MEASURED = {
    32_760: (3.265, 1.852, 0.939, 0.477),
    18_480: (1.493, 0.828, 0.429, 0.222),
    11_440: (0.819, 0.462, 0.238, 0.144),
    3_900: (0.240, 0.148, 0.098, 0.120),
    960: (0.066, 0.093, 0.115, 0.154),
}
"""Seconds of one forward of Wan-14B on 1, 2, 4 and 8 H200s, by tokens: of a stack whose small grids get slower with every GPU."""
GRIDS = {32_760: (21, 60, 104), 18_480: (21, 44, 80), 11_440: (10, 44, 104), 3_900: (10, 30, 52), 960: (6, 20, 32)}
ITEM = Item("key", "dvg", "p", "a red circle", 0)
RECORDED = Path(__file__).parents[2] / "experiments" / "results" / "ablation_wan_mini_202611.json"
ABOUT = About("wan2.2-a14b", "NVIDIA H200", "bfloat16", "cudnn", "2.11")


def step_rows(seconds: dict[int, tuple[float, ...]]) -> list[StepRow]:
    return [
        StepRow(grid=GRIDS.get(tokens, (1, 2, 2 * tokens)), tokens=tokens, degree=2**power, median_s=value, repeats=1)
        for tokens, row in seconds.items()
        for power, value in enumerate(row)
    ]


def measured_cost(seconds: dict[int, tuple[float, ...]], num_branches: int = 1) -> CostModel:
    forwards = compose(step_rows(seconds), ABOUT).forwards()
    cost = CostModel(label="calibrated", device="NVIDIA H200", forwards=forwards, num_branches=num_branches, decode_s=1.7)
    return with_degrees(WAN, cost, (1, 2, 4, 8))


def arm(cost: CostModel, **limits: object) -> ArmSizing:
    return ArmSizing(model=WAN.name, cost=cost, limits=Limits.model_validate(limits))


def sizing(cost: CostModel, rule: Rule = "efficient", **options: float) -> Sizing:
    config = SizingConfig.model_validate({"rule": rule, "min_phase_s": 0.0, **options})
    return Sizing(config=config, arms={"dvg": arm(cost)})


def decision(*tokens: int, steps: int = 10) -> Decision:
    """A sketch, and a stage for each number of tokens."""
    stages = [Stage(GRIDS.get(count, (1, 2, 2 * count)), steps, 7.0) for count in (960, *tokens)]
    return Decision(Action("made", tuple(stages), 0.5), "because")


def widths(policy: Sizing, *tokens: int) -> list[int]:
    """Of each stage."""
    phases, found = policy.phases(ITEM, decision(*tokens), 8), []
    for phase in phases:
        found += [phase.width] * (phase.stop - 1 - len(found))
    return found


seconds_of_a_grid = st.tuples(*[st.floats(1e-3, 10.0)] * 4)
tables = st.dictionaries(st.integers(100, 50_000), seconds_of_a_grid, min_size=2, max_size=6)


@settings(deadline=None, max_examples=50)
@given(tables, st.data(), st.integers(1, 2))
def test_fastest_is_never_slower_than_any_narrower_width_on_any_measured_grid(
    table: dict[int, tuple[float, ...]], data: st.DataObject, branches: int
) -> None:
    cost = measured_cost(table, branches)
    tokens = data.draw(st.sampled_from(sorted(table)))
    (width,) = widths(sizing(cost, "fastest"), tokens)
    measured_s = [branches * table[tokens][0], *(table[tokens] if branches == 2 else table[tokens][1:])]
    took = {2**power: seconds for power, seconds in enumerate(measured_s)}
    assert all(took[width] <= took[narrower] * (1 + 1e-9) for narrower in took if narrower <= width)
    assert took[width] == pytest.approx(min(took[w] for w in (1, 2, 4, 8)))


@settings(deadline=None, max_examples=50)
@given(tables, st.lists(st.integers(50, 60_000), min_size=1, max_size=3), st.floats(0.2, 1.0))
def test_efficient_keeps_the_bound_or_stays_narrowest_and_no_rule_takes_a_wider_slice_that_is_slower(
    table: dict[int, tuple[float, ...]], tokens: list[int], bound: float
) -> None:
    cost = measured_cost(table)
    for rule in ("efficient", "throughput", "narrowest", "fastest"):
        policy = sizing(cost, rule, min_efficiency=bound)  # type: ignore[arg-type]
        for num, width in zip(tokens, widths(policy, *tokens), strict=True):
            assert width in (1, 2, 4, 8)
            narrower = [cost.step_s(num, w) for w in (1, 2, 4) if w < width]
            assert all(cost.step_s(num, width) < other for other in narrower)
            if rule == "efficient" and width > 1:
                assert cost.step_s(num, 1) / (width * cost.step_s(num, width)) >= bound - 1e-9


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from(sorted(MEASURED)), min_size=1, max_size=3), st.floats(0.5, 200.0))
def test_a_deadline_takes_the_fewest_gpu_seconds_that_meet_it_and_else_the_fastest(tokens: list[int], deadline_s: float) -> None:
    cost = measured_cost(MEASURED)
    policy = sizing(cost, "deadline", deadline_s=deadline_s)
    made = decision(*tokens)
    stages = stage_choices(policy.arms["dvg"], made.action, 8)
    clip = policy.clip(stages)
    least_s = sum(min(option.stage_s for option in options) for options in stages)
    took_s = sum(choice.stage_s for choice in clip)
    if least_s <= deadline_s:
        assert took_s <= deadline_s
        for index, options in enumerate(stages):  # no stage alone could be cheaper
            for other in options:
                changed_s = took_s - clip[index].stage_s + other.stage_s
                assert changed_s > deadline_s or other.gpu_s >= clip[index].gpu_s - 1e-9
    else:
        assert took_s == pytest.approx(least_s)
        assert "the fastest there is" in policy.phases(ITEM, made, 8)[0].why


def test_narrowest_is_one_gpu_unless_memory_asks_for_more() -> None:
    cost = measured_cost(MEASURED)
    assert widths(sizing(cost, "narrowest"), 960, 11_440, 32_760) == [1, 1, 1]
    short = ArmSizing(model=WAN.name, cost=cost, limits=Limits(memory_gb=40), least_width=2)
    policy = Sizing(config=SizingConfig(rule="narrowest"), arms={"dvg": short})
    assert widths(policy, 960, 32_760) == [2, 2]
    roomy = short.model_copy(update={"limits": Limits()})
    assert widths(policy.model_copy(update={"arms": {"dvg": roomy}}), 960) == [2], "weights stay spread for a small grid too"
    with pytest.raises(ValueError, match="no slice of a pod of 1; its weights take 2 ranks"):
        policy.phases(ITEM, decision(32_760), 1)


def test_the_measured_table_gives_small_grids_narrow_slices_and_large_ones_wide() -> None:
    cost = measured_cost(MEASURED)
    assert widths(sizing(cost), 960, 11_440, 32_760) == [1, 4, 8]
    assert widths(sizing(cost, "fastest"), 960, 3_900, 32_760) == [1, 4, 8]
    assert widths(sizing(cost, "throughput"), 960, 11_440, 32_760) == [1, 1, 1]
    guided = measured_cost(MEASURED, num_branches=2)
    assert widths(sizing(guided), 960, 3_900, 11_440) == [2, 2, 8]


def test_the_reason_is_one_line_with_seconds_efficiency_and_what_more_gpus_would_save() -> None:
    (phase,) = sizing(measured_cost(MEASURED)).phases(ITEM, decision(11_440), 8)
    assert phase.why == "11,440 tokens: 4 GPUs, 0.24 s/step (86 %); 8 would save 0.094 s/step at 71 %"
    (small,) = sizing(measured_cost(MEASURED)).phases(ITEM, decision(960), 8)
    assert small.why == "960 tokens: 1 GPU, 0.066 s/step; 2 would take 0.027 s/step more"
    (guided,) = sizing(measured_cost(MEASURED, 2)).phases(ITEM, decision(11_440), 8)
    assert guided.why == "11,440 tokens: 8 GPUs (2 x 4), 0.24 s/step (86 %)"
    (timely,) = sizing(measured_cost(MEASURED), "deadline", deadline_s=3.0).phases(ITEM, decision(11_440), 8)
    assert timely.why.endswith("at 71 %; 2.14 s of the 3 s allowed"), "nine forwards: the transition's is the sketch's"


def test_without_measurements_of_more_gpus_the_reason_says_so() -> None:
    cost = with_degrees(WAN, uncalibrated(WAN, "NVIDIA H200"), (1, 2, 4, 8))
    (phase,) = sizing(cost).phases(ITEM, decision(32_760), 8)
    assert phase.width > 1
    assert phase.why.endswith("(uncalibrated)")


def test_neighbours_of_one_width_are_one_phase_and_the_last_phase_ends_the_clip() -> None:
    phases = sizing(measured_cost(MEASURED)).phases(ITEM, decision(960, 11_440, 11_440), 8)
    assert [(phase.stop, phase.width) for phase in phases] == [(2, 1), (4, 4)]
    alone = Decision(Action("full", (Stage(GRIDS[32_760], 20, 5.0),), 1.0), "the plain run")
    assert [(phase.stop, phase.width) for phase in sizing(measured_cost(MEASURED)).phases(ITEM, alone, 8)] == [(1, 8)]


def test_a_pod_of_one_rank_runs_everything_on_it() -> None:
    (phase,) = sizing(measured_cost(MEASURED), "fastest").phases(ITEM, decision(960, 32_760), 1)
    assert (phase.stop, phase.width) == (3, 1)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from(sorted(MEASURED)), min_size=1, max_size=3), st.integers(1, 30), st.floats(0, 20))
def test_a_stage_that_is_short_joins_a_neighbour_where_it_stays_short(tokens: list[int], steps: int, min_phase_s: float) -> None:
    policy = sizing(measured_cost(MEASURED))
    stages = stage_choices(policy.arms["dvg"], decision(*tokens, steps=steps).action, 8)
    before = policy.clip(stages)
    after = join_short(before, stages, min_phase_s)
    assert len(after) == len(before)
    for old, new in zip(before, after, strict=True):
        assert new.width in {choice.width for choice in before}
        assert new == old or new.stage_s < min_phase_s
    assert join_short(before, stages, 0.0) == before


def test_recorded_actions_at_real_sizes_get_at_least_three_widths() -> None:
    """What wan-mini chose in every video of its ablation, as stages of Wan2.2-A14B at 480p, one branch."""
    recorded = Counter(row["action"] for row in json.loads(RECORDED.read_text())["rows"])
    made = candidates(WAN, WAN.default_shape, WAN.default_steps, 0.5, DvgConfig.for_model(WAN))
    options = {(f"{option.s2:.2f}", option.f2): option for option in made}
    policy = Sizing(config=SizingConfig(rule="efficient"), arms={"dvg": arm(measured_cost(MEASURED))})
    found: Counter[int] = Counter()
    for name, times in recorded.items():
        action = options.get((name[1:5], round(int(name.split("f")[-1]) / 11 * 21))) if name.startswith("s") else None
        for phase in policy.phases(ITEM, Decision(action, "recorded"), 8) if action else ():
            found[phase.width] += times
    assert len(found) >= 3, found
    assert min(found.values()) >= 30, found


def test_a_decode_is_split_as_measured_and_by_a_guess_without() -> None:
    cost = measured_cost(MEASURED)
    assert sizing(cost, "narrowest").decode_width(ITEM, 8) == 1
    assert sizing(cost, "fastest").decode_width(ITEM, 8) == 8
    assert sizing(cost, "efficient").decode_width(ITEM, 8) == 2
    measured = cost.model_copy(update={"split_decode_s": ((2, 0.9), (4, 0.45), (8, 0.5))})
    assert sizing(measured, "efficient").decode_width(ITEM, 8) == 4
    assert sizing(measured, "fastest").decode_width(ITEM, 8) == 4, "eight are slower"
    assert sizing(cost.model_copy(update={"decode_s": None})).decode_width(ITEM, 8) == 1


def test_a_deadline_and_its_rule_go_together() -> None:
    with pytest.raises(ValidationError, match="rule deadline needs deadline_s"):
        SizingConfig(rule="deadline")
    with pytest.raises(ValidationError, match="only rule deadline reads"):
        SizingConfig(deadline_s=20)
