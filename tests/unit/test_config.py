from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest

from orchestrator.arms import item_key
from orchestrator.cluster_config import ClusterConfig
from orchestrator.config import build_sweep, load_sweep
from orchestrator.mistakes import ConfigError
from orchestrator.resolve import resolve_arm
from orchestrator.resolve_sizing import sizing_mistakes, sizing_of
from orchestrator.sizing import SizingConfig
from parallel import backends

ROOT = pathlib.Path(__file__).parents[2]
PROMPTS = ["a red circle", "a blue square"]


def mistakes(data: dict[str, Any], base: pathlib.Path = ROOT) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        build_sweep(data, base)
    return list(caught.value.mistakes)


def spec(**changes: Any) -> dict[str, Any]:
    return {"prompts": list(PROMPTS), "arms": {"full": {"planner": "full"}, "dvg": {"budget": 0.5}}, **changes}


def test_the_demo_spec_has_sixteen_items_under_two_arms() -> None:
    sweep = load_sweep(ROOT / "experiments/specs/demo.yaml")
    assert [arm.name for arm in sweep.arms] == ["full", "dvg"]
    assert len(sweep.items) == 16
    assert sweep.reference == "full"


def test_item_keys_are_distinct_and_the_same_every_time() -> None:
    first, second = build_sweep(spec(seeds=[0, 1]), ROOT), build_sweep(spec(seeds=[0, 1]), ROOT)
    assert first.items == second.items
    assert len({item.item_key for item in first.items}) == 8


def test_anything_that_shapes_the_video_changes_the_key_and_the_workers_do_not() -> None:
    def keys(**changes: Any) -> set[str]:
        return {item.item_key for item in build_sweep(spec(**changes), ROOT).items}

    base = keys()
    assert keys(cluster={"sketch_workers": 2}) == base
    for changes in ({"steps": 40}, {"guidance": 3.0}, {"frames": 33}, {"dvg": {"sharpness": 1.0}}, {"fps": 8}):
        assert not keys(**changes) & {k for k in base if changes != {"dvg": {"sharpness": 1.0}}}, changes


def test_a_sweep_repeats_every_arm_for_every_combination_and_drops_points_that_mean_the_same() -> None:
    sweep = build_sweep(spec(sweep={"budget": [0.45, 0.5], "guidance": [1.0, 2.0]}), ROOT)
    assert [arm.name for arm in sweep.arms] == [
        "full-budget0.45-guidance1.0",
        "full-budget0.45-guidance2.0",
        "dvg-budget0.45-guidance1.0",
        "dvg-budget0.45-guidance2.0",
        "dvg-budget0.5-guidance1.0",
        "dvg-budget0.5-guidance2.0",
    ]


def test_nested_knobs_can_be_swept() -> None:
    arms = build_sweep(spec(arms={"dvg": {}}, sweep={"dvg.sharpness": [1.0, 2.6]}), ROOT).arms
    assert [arm.dvg.sharpness for arm in arms] == [1.0, 2.6]


def test_every_mistake_is_told_at_once_with_the_rule_and_the_choices() -> None:
    told = mistakes(spec(frames=40, height=100, prompts="nowhere.txt"))
    text = "\n".join(told)
    assert "nowhere.txt" in text
    assert "4k+1" in text
    assert "height" in text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bugdet": 0.5}, ["'bugdet'", "did you mean 'budget'", "planner"]),
        ({"arms": {"a": {"stepz": 3}}}, ["'stepz'", "did you mean 'steps'"]),
        ({"dvg": {"sharpnes": 1}}, ["sharpnes", "did you mean 'sharpness'"]),
        ({"budget": 1.5}, ["budget", "in (0, 1]", "1.5"]),
        ({"budget": 0}, ["budget", "in (0, 1]", "0"]),
        ({"budget": "speedup=0.5"}, ["speedup", "at least 1", "0.5"]),
        ({"model": "wan-mimi"}, ["wan-mimi", "wan-mini", "hunyuanvideo"]),
        ({"planner": "dgv"}, ["planner", "full, dvg", "did you mean 'dvg'", "dgv"]),
        ({"frames": 40}, ["40", "4k+1", "37", "41"]),
        ({"prompts": []}, ["at least one prompt"]),
        ({"prompts": [" "]}, ["must not be empty"]),
        ({"reference": "ful"}, ["'ful'", "full, dvg"]),
        ({"sweep": {"budgets": [1]}}, ["budgets", "did you mean 'budget'"]),
        ({"sweep": {"budget": []}}, ["at least one value"]),
        ({"model": "wan2.1-14b"}, ["ships no weights", "set weights"]),
        ({"model": "hunyuanvideo"}, ["hunyuanvideo", "hunyuanvideo-community/HunyuanVideo"]),
        ({"weights": "/nowhere"}, ["/nowhere", "model_index.json"]),
        ({"arms": {"a b/c": {}}}, ["a b/c", "letters"]),
        ({"arms": {"a": {"dvg": {"transition_rates": [0.5, 0.4]}}}}, ["transition_rates"]),
        ({"cluster": {"heavy_ranks": 0}}, ["cluster.heavy_ranks"]),
        ({"cluster": {"compile": "maybe"}}, ["cluster.compile: ", "'auto', True or False"]),
        ({"prompts": 3}, ["prompts: must be a list of prompts, or the path"]),
        ({"prompts": [{"prompt": "a", "imagee": "x.png"}]}, ["'prompts.0.imagee'", "did you mean 'image'"]),
        ({"prompts": ["a", {"prompt": "a", "image": 3}]}, ["prompts.1.image: ", "string"]),
        ({"prompts": [{"prompt": "a", "id": "a/b"}]}, ["prompts.0.id: ", "pattern"]),
        ({"prompts": [7]}, ["prompts.0: "]),
        ({"name": "../elsewhere"}, ["name: ", "run folder"]),
        ({"weights": ""}, ["weights: "]),
    ],
)
def test_bad_input_names_the_value_the_rule_and_the_choices(change: dict[str, Any], words: list[str]) -> None:
    (line,) = {told.removeprefix("arm full").removeprefix("arm dvg") for told in mistakes(spec(**change))}  # one for each arm
    assert "\n" not in line
    for word in words:
        assert word in line


def test_a_plain_run_is_the_same_whatever_dvg_does() -> None:
    arms = build_sweep(spec(arms={"full": {"planner": "full"}, "dvg": {}}, sweep={"dvg.sharpness": [1.0, 2.6]}), ROOT).arms
    assert [arm.planner for arm in arms] == ["full", "dvg", "dvg"]


def test_an_infeasible_budget_is_refused_before_anything_runs_and_names_feasible_ones() -> None:
    told = mistakes(spec(arms={"dvg": {"budget": 0.05}}))
    assert len(told) == 1
    assert "0.05" in told[0]
    assert "feasible" in told[0]


def test_prompts_come_from_text_and_jsonl_files_beside_the_spec(tmp_path: pathlib.Path) -> None:
    (tmp_path / "p.txt").write_text("# a comment\na red circle\n\na blue square\n")
    (tmp_path / "p.jsonl").write_text('{"prompt": "a red circle", "id": "one", "seed": 7}\n{"prompt": "x"}\n')
    assert [i.prompt for i in build_sweep(spec(prompts="p.txt", arms={}), tmp_path).items] == PROMPTS
    items = build_sweep(spec(prompts="p.jsonl", arms={}, seeds=[1, 2]), tmp_path).items
    assert [(i.prompt_id[:3], i.seed) for i in items] == [("one", 7), ("x-2", 1), ("x-2", 2)]


def test_a_bad_line_of_a_jsonl_file_is_named_by_its_number(tmp_path: pathlib.Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "x"}\n{"prompt": \n{"promt": "y"}\n')
    text = "\n".join(mistakes(spec(prompts="p.jsonl"), tmp_path))
    assert "p.jsonl:2 is not valid JSON" in text
    assert "p.jsonl:3" in text
    assert "did you mean 'prompt'" in text


def test_what_several_devices_would_cost_leaves_a_target_items_key_alone_and_what_one_costs_does_not() -> None:
    (arm,) = build_sweep(spec(arms={"dvg": {"budget": {"speedup": 2}, "device_name": "cpu"}}), ROOT).arms
    assert arm.cost is not None
    (one,) = arm.cost.forwards

    def key(**changes: Any) -> str:
        assert arm.cost is not None
        return item_key(arm.model_copy(update={"cost": arm.cost.model_copy(update=changes)}), "x", 0)

    two = one.model_copy(update={"degree": 2, "backend": "peer"})
    assert key(forwards=(one, two), split_decode_s=((2, 1.0),)) == key()
    assert len({key(), key(forwards=(one.model_copy(update={"points": ((891, 1.0),)}),))}) == 2


def test_overrides_reach_nested_keys_and_bad_ones_say_the_form(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("prompts: [a red circle]\n")
    sweep = load_sweep(path, ["arms.dvg.budget=0.45", "cluster.heavy_ranks=1", "seeds=[3]"])
    assert (sweep.arms[0].budget, sweep.cluster.heavy_ranks, sweep.items[0].seed) == (0.45, 1, 3)
    with pytest.raises(ConfigError, match="key=value"):
        load_sweep(path, ["budget"])


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "", "prompts: [a]\nsteps: 8\nsteps: 9"])
def test_a_spec_that_is_no_mapping_or_says_a_thing_twice_is_refused_in_one_line(tmp_path: pathlib.Path, text: str) -> None:
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_sweep(tmp_path / "s.yaml")
    assert len(caught.value.mistakes) == 1


def test_the_embedded_model_measures_in_pixels_unless_a_spec_asks_for_the_release() -> None:
    own, released = build_sweep(
        spec(arms={"a": {}, "b": {"dvg": {"demand_space": "latent", "spatial_demand": "fft"}}}), ROOT
    ).arms
    assert (own.dvg.demand_space, own.dvg.spatial_demand) == ("pixels", "highpass")
    assert (released.dvg.demand_space, released.dvg.spatial_demand, released.dvg.temporal_demand) == ("latent", "fft", "dense_lk")
    assert own.sketch_parts == {"vae"}
    assert not released.sketch_parts


def test_prompts_keep_every_character_that_is_no_line_end_of_the_file(tmp_path: pathlib.Path) -> None:
    odd = ["a red\u2028circle", "a blue\x0bsquare\x85here"]
    (tmp_path / "p.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(odd).encode())
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps({"prompt": p}, ensure_ascii=False) for p in odd), encoding="utf-8")
    for name in ("p.txt", "p.jsonl"):
        assert [item.prompt for item in build_sweep(spec(prompts=name, arms={}), tmp_path).items] == odd


def test_a_bad_line_after_blank_ones_is_named_by_the_number_an_editor_shows(tmp_path: pathlib.Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "x"}\n\n\n{"prompt": \n')
    assert any("p.jsonl:4" in line for line in mistakes(spec(prompts="p.jsonl"), tmp_path))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seeds": [3, 3]}, ["seed 3", "2 times"]),
        ({"prompts": [{"prompt": "x", "id": "p"}, {"prompt": "y", "id": "p", "seed": 0}]}, ["'p'", "seed 0", "2 times"]),
        ({"seeds": [2**64]}, ["seeds.0", "less than"]),
        ({"seeds": [-1]}, ["seeds.0", "greater than or equal to 0"]),
        ({"prompts": "a long sentence " * 40}, ["does not exist", "list of prompts"]),
    ],
)
def test_items_that_would_share_a_video_or_a_seed_no_generator_takes_are_refused(
    change: dict[str, Any], words: list[str]
) -> None:
    text = "\n".join(mistakes(spec(**change)))
    assert all(word in text for word in words), text


def test_a_password_never_gets_as_far_as_the_run_folder() -> None:
    (told,) = mistakes(spec(tracking={"uri": "https://me:secret@tracking.example"}))
    assert "MLFLOW_TRACKING_URI" in told
    assert "secret" not in told
    assert build_sweep(spec(tracking={"uri": "https://tracking.example:5000"}), ROOT).tracking.uri


def test_an_arm_swept_over_long_values_still_has_a_name_that_a_folder_can_have() -> None:
    prompts = ["a red circle " * n for n in (30, 31)]
    arms = build_sweep(spec(arms={"dvg": {}}, sweep={"negative": prompts}), ROOT).arms
    assert len({arm.name for arm in arms}) == 2
    assert all(len(arm.name) <= 60 for arm in arms)


def test_values_that_read_alike_in_a_file_name_still_make_arms_of_their_own() -> None:
    arms = build_sweep(spec(arms={"dvg": {}}, sweep={"negative": ["a,b", "a;b", "plain"]}), ROOT).arms
    assert len({arm.name for arm in arms}) == 3
    assert arms[2].name == "dvg-negativeplain"


POD = {"heavy_ranks": 8, "gpus_per_rank": 1}


@pytest.mark.parametrize(
    ("cluster", "words"),
    [
        ({"sizing": {"rule": "deadline"}}, ["cluster.sizing", "deadline_s"]),
        ({"sizing": {"rule": "fast"}}, ["cluster.sizing.rule", "'fastest'"]),
        ({"sizing": {"deadline_s": 3}}, ["only rule deadline reads"]),
        ({"backend": "ring"}, ["cluster.backend", "'native', 'peer', 'ulysses' or 'usp'"]),
        ({"backend": "usp"}, ["cluster.backend usp cannot run here"]),
        ({"heavy_ranks": 2, "gpus_per_rank": 0.5}, ["cluster.gpus_per_rank is 0.5", "a GPU each"]),
        ({"heavy_ranks": 3, "backend": "usp"}, ["cluster.heavy_ranks is 3: slices nest", "cluster.backend usp cannot run here"]),
        ({"collective_timeout_s": 0}, ["cluster.collective_timeout_s", "greater than 0"]),
    ],
)
def test_a_pod_that_cannot_be_is_refused(cluster: dict[str, Any], words: list[str]) -> None:
    text = "\n".join(mistakes(spec(cluster=cluster)))
    assert all(word in text for word in words), text


@pytest.mark.parametrize("gpus", [0, 1])
def test_pods_of_gpus_and_of_cpus_make_most_videos_per_hour_unless_another_rule_is_chosen(gpus: int) -> None:
    def chosen(**options: Any) -> str:
        return ClusterConfig.model_validate({"gpus_per_rank": gpus} | options).sizing.rule

    assert chosen() == chosen(sizing={"order": "longest"}) == chosen(sizing=SizingConfig()) == "throughput"
    assert chosen(sizing={"rule": "fastest"}) == chosen(sizing=SizingConfig(rule="fastest")) == "fastest"


def test_an_arm_that_no_slice_of_the_pod_can_run_is_refused_with_the_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "missing", lambda name: None)
    arm = resolve_arm("a", {"model": "wan-mini", "device_name": "NVIDIA H200"}, [])
    assert arm is not None
    large = arm.model_copy(update={"model": "wan2.2-a14b", "num_frames": 81, "height": 480, "width": 832})
    cost = large.cost.model_copy(update={"device": "NVIDIA RTX 4090"}) if large.cost else None
    one = ClusterConfig(heavy_ranks=1, gpus_per_rank=1)
    (memory,) = sizing_mistakes([large.model_copy(update={"cost": cost})], one)
    assert memory.startswith("arm a: wan2.2-a14b: width 1: 57.2 GB of weights")
    joint = large.model_copy(update={"model": "hunyuanvideo", "num_frames": 125, "height": 720, "width": 1280})
    (shares,) = sizing_mistakes([joint], ClusterConfig(**POD, backend="usp"))
    assert "width 4: usp needs equal shares: 115,455 tokens / 2 ranks" in shares
    assert sizing_mistakes([large, joint], ClusterConfig(**POD)) == []


def test_weights_that_one_gpu_cannot_hold_are_spread_over_two() -> None:
    arm = resolve_arm("a", {"model": "wan-mini", "device_name": "NVIDIA L40S"}, [])
    assert arm is not None
    large = arm.model_copy(update={"model": "wan2.2-a14b", "num_frames": 81, "height": 480, "width": 832})
    assert sizing_of([large], ClusterConfig(**POD)).arms["a"].least_width == 2
    assert sizing_of([large], ClusterConfig(heavy_ranks=8)).arms["a"].least_width == 1, "nobody knows a CPU's memory"


def test_a_gpu_that_a_sketch_does_not_fit_is_refused_though_the_pod_would_do() -> None:
    arm = resolve_arm("a", {"model": "wan-mini", "device_name": "NVIDIA RTX 4090"}, [])
    assert arm is not None
    large = arm.model_copy(update={"model": "wan2.1-14b", "num_frames": 81, "height": 480, "width": 832})
    (sketch,) = sizing_mistakes([large], ClusterConfig(**POD))
    assert sketch == (
        "arm a: wan2.1-14b: a sketch worker holds a whole transformer, 28.6 GB, and a GPU has 24 GB; "
        "the pod alone can spread it over its ranks"
    )
