"""What accelerators ask of the ranks that share a clip, refused or kept before anything is started; and methods that a model,
a size or a number of steps does not go with."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest

from orchestrator.arms import Arm
from orchestrator.config import ClusterConfig, build_sweep
from orchestrator.methods import available, find
from orchestrator.mistakes import ConfigError
from orchestrator.policy import stage_choices
from orchestrator.resolve import resolve_arm
from orchestrator.resolve_sizing import sizing_mistakes, sizing_of
from orchestrator.types import Decision, Item

LARGE = {"model": "wan2.2-a14b", "num_frames": 81, "height": 480, "width": 832}
SMALL = {"model": "wan2.1-1.3b"}
FITTED = {"teacache", "magcache"}
"""Rest on a fit, which the model has none of."""
ON_GPUS: dict[str, Any] = {"heavy_ranks": 4, "gpus_per_rank": 1, "gpus_per_sketch": 1}


def arm(device: str = "NVIDIA H200", **settings: Any) -> Arm:
    """Of a model that does not fit on one L40S and fits on one H200; two branches of guidance."""
    found = resolve_arm(settings.pop("name", "a"), {"model": "wan-mini", "device_name": device, **settings}, [])
    assert found is not None
    return found.model_copy(update=LARGE)


def test_a_cache_that_computes_parts_of_a_forward_is_refused_where_weights_are_spread() -> None:
    (line,) = sizing_mistakes([arm("NVIDIA L40S", accelerators=["first-block"])], ClusterConfig(**ON_GPUS))
    assert line.startswith("arm a: the weights of wan2.2-a14b and what goes beside them are too much for one GPU, so 2")
    assert "first-block computes parts of a forward" in line
    assert line.endswith("take GPUs that hold the model whole, or an accelerator that leaves out whole forwards "
                         "(teacache, magcache, taylorseer)")  # fmt: skip
    assert sizing_mistakes([arm(accelerators=["first-block"])], ClusterConfig(**ON_GPUS)) == []


@pytest.mark.parametrize("name", sorted(set(available("accelerator")) - FITTED))
def test_every_cache_is_refused_or_served_there_as_it_says_itself(name: str) -> None:
    method = find(name, "accelerator")
    wrong = sizing_mistakes([arm("NVIDIA L40S", accelerators=[name])], ClusterConfig(**ON_GPUS))
    assert (wrong == []) == method.leaves_whole_forwards(method.settings())


def test_settings_decide_whether_a_cache_leaves_out_whole_forwards() -> None:
    lite, blocks = (arm("NVIDIA L40S", accelerators=[{"taylorseer": {"mode": mode}}]) for mode in ("lite", "blocks"))
    assert sizing_mistakes([lite], ClusterConfig(**ON_GPUS)) == []
    (line,) = sizing_mistakes([blocks], ClusterConfig(**ON_GPUS))
    assert "taylorseer computes parts of a forward" in line


def test_weights_that_another_arm_has_spread_are_spread_for_a_cache_too() -> None:
    small = arm("NVIDIA A100 80GB", name="small", accelerators=["first-block"]).model_copy(update={"num_frames": 5})
    large = arm("NVIDIA A100 80GB", name="large").model_copy(update={"height": 1440, "width": 2496})
    pod = ClusterConfig(**ON_GPUS)
    assert sizing_mistakes([small], pod) == sizing_mistakes([large], pod) == []
    assert sizing_of([large], pod).arms["large"].least_width > 1
    (line,) = sizing_mistakes([small, large], pod)
    assert line.startswith("arm small: the weights of wan2.2-a14b")
    with pytest.raises(ValueError, match="arm small: the weights"):
        sizing_of([small, large], pod)


def test_a_cache_that_reckons_one_branch_from_the_other_stays_on_one_rank_and_says_so() -> None:
    kept, free = arm(accelerators=["fastercache"]), arm(accelerators=[{"fastercache": {"negative_interval": 1}}])
    sizing = sizing_of([kept.model_copy(update={"name": "kept"}), free], ClusterConfig(**ON_GPUS, sizing={"rule": "fastest"}))
    decided = {name: Decision(sizing.arms[name].actions[0], "") for name in ("kept", "a")}
    items = {name: Item(name, name, "p", "a red circle", 0) for name in decided}
    assert all(len(options) == 1 for options in stage_choices(sizing.arms["kept"], decided["kept"].action, 4))
    (phase,) = sizing.phases(items["kept"], decided["kept"], 4)
    assert phase.width == 1
    assert phase.why.endswith("set negative_interval to 1, or keep clips on 1 rank")
    assert max(phase.width for phase in sizing.phases(items["a"], decided["a"], 4)) > 1


def test_it_is_refused_where_one_rank_is_too_few_or_more_were_asked_for() -> None:
    cached = arm("NVIDIA L40S", accelerators=["fastercache"])
    (memory,) = sizing_mistakes([cached], ClusterConfig(**ON_GPUS))
    assert "width 1: 57.2 GB of weights" in memory
    assert "fastercache reckons the branch without the prompt from the other: set negative_interval to 1" in memory
    (width,) = sizing_mistakes(
        [arm(accelerators=["fastercache"])], ClusterConfig(**ON_GPUS, sizing={"rule": "fixed", "width": 2})
    )
    assert width.startswith("arm a: cluster.sizing.width is 2, and more than 1 rank would split guidance: fastercache")
    one_branch = arm(accelerators=["fastercache"], guidance=1.0)
    assert sizing_mistakes([one_branch], ClusterConfig(**ON_GPUS, sizing={"rule": "fixed", "width": 2})) == []


REFUSED = {
    "no fit of the model": (
        {"model": "wan2.2-a14b", "accelerators": ["magcache"]},
        ["wan2.2-a14b", "calibrate-cache", "adacache"],
    ),
    "no coefficients": ({"model": "wan2.2-a14b", "accelerators": ["teacache"]}, ["wan2.2-a14b", "calibrate-cache", "taylorseer"]),
    "two caches": ({"accelerators": ["adacache", "taylorseer"]}, ["adacache and taylorseer", "both are a cache", "one of them"]),
    "too few frames": ({"planner": "vgdfr", "frames": 5}, ["vgdfr: num_frames is 5", "at least"]),
    "too few steps": ({"planner": "spectral", "steps": 2}, ["spectral: with 2 steps", "planner full"]),
    "rates that do not end": ({"planner": {"jenga-prores": {"rates": [1, 0.5]}}}, ["jenga-prores: ", "the last"]),
    "more steps": ({"planner": {"fewer-steps": {"steps": 40}}}, ["fewer-steps: steps is 40", "30", "raise the arm's"]),
    "a bias on text": ({"planner": {"jenga-prores": {"text_boost": 1.0}}}, ["text_boost is 1", "wan-mini", "leave it 0"]),
    "a predicted budget": ({"budget": "speedup=2", "accelerators": ["adacache"]}, ["speedup=2", "adacache", "token-steps"]),
    "a setting": ({"accelerators": [{"adacache": {"codebok": 1}}]}, ["'adacache.codebok'", "did you mean 'codebook'", "warmup"]),
    "settings of none": ({"planner": {"full": {"rates": [1]}}}, ["unknown key", "'full.rates'"]),
}


@pytest.mark.parametrize(("settings", "words"), REFUSED.values(), ids=REFUSED)
def test_what_a_model_a_size_or_a_setting_does_not_serve_is_refused_with_value_rule_and_choices(
    settings: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as refused:
        build_sweep(
            {"model": "wan-mini", "prompts": ["a red circle"], "arms": {"a": settings}}, pathlib.Path(), with_weights=False
        )
    (line,) = refused.value.mistakes
    assert line.startswith("arm a: ")
    assert all(word in line for word in words), line


BIG = {"model": "wan2.1-14b", "num_frames": 81, "height": 720, "width": 1280}


def big(*accelerators: Any, **settings: Any) -> Arm:
    """28.6 GB of weights on 80 GB: all of it on one rank, with two branches of guidance of 75,600 tokens."""
    return arm("NVIDIA H100", accelerators=list(accelerators), **settings).model_copy(update=BIG)


def test_what_a_cache_keeps_counts_as_memory() -> None:
    one, four = ClusterConfig(heavy_ranks=1, gpus_per_rank=1, gpus_per_sketch=1), ClusterConfig(**ON_GPUS)
    assert sizing_mistakes([big()], one) == sizing_mistakes([big("adacache")], one) == []
    (line,) = sizing_mistakes([big("pab")], one)
    assert "28.6 GB of weights + 17.2 GB of working memory + 61.9 GB that its cache keeps" in line
    assert "pab keeps 40 tensors of every token for each branch of guidance; teacache, magcache, taylorseer keep few" in line
    assert sizing_mistakes([big({"pab": {"interval": 1}})], one) == []
    assert "so 2 ranks share them" in sizing_mistakes([big("pab")], four)[0]


def test_a_history_of_every_block_counts_as_memory_and_a_sum_of_all_hardly() -> None:
    one = ClusterConfig(heavy_ranks=1, gpus_per_rank=1, gpus_per_sketch=1)
    assert sizing_mistakes([big("taylorseer")], one) == []
    assert "cache keeps" in sizing_mistakes([big({"taylorseer": {"mode": "blocks"}})], one)[0]


def test_only_widths_that_an_arm_may_come_to_are_asked_about() -> None:
    """Four ranks of usp form a ring, two do not."""

    def refused(guidance: float = 1.0, *names: str, **sizing: Any) -> list[str]:
        pod = ClusterConfig(**ON_GPUS, backend="usp", sizing=sizing or {"rule": "fastest"})
        asked = arm(guidance=guidance, accelerators=["svg", *names]).model_copy(update=SMALL)
        return [line for line in sizing_mistakes([asked], pod) if "round a ring" in line]

    assert refused()
    assert refused(rule="fixed", width=4)
    for width in (1, 2):
        assert refused(rule="fixed", width=width) == []
    assert refused(5.0, "fastercache") == [], "its clips stay on one rank"
