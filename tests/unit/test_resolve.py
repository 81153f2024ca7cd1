"""What an arm means once models, weights, images and adapters are known, and what is refused before any device is touched."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from orchestrator.actions import full_action
from orchestrator.cluster_config import ClusterConfig
from orchestrator.config import Sweep, build_sweep
from orchestrator.geometry import MODELS
from orchestrator.mistakes import ConfigError
from orchestrator.options import AttentionName
from stages.attention import names
from tests.checkpoints import checkpoint, copied, first_frame

T2V, I2V, TI2V, EXPERTS = "wan2.1-1.3b", "wan2.1-i2v-14b", "wan2.2-ti2v-5b", "wan2.2-a14b"
SMALL = {"frames": 17, "height": 64, "width": 96, "steps": 8}


def arm(model: str, **settings: Any) -> dict[str, Any]:
    return {"model": model, "weights": str(checkpoint(model)), **settings}


def sweep(base: Path, arms: dict[str, Any], **spec: Any) -> Sweep:
    return build_sweep({"prompts": ["a red circle"], **SMALL, "arms": arms, **spec}, base)


def mistakes(base: Path, arms: dict[str, Any], **spec: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        sweep(base, arms, **spec)
    assert all("\n" not in line for line in caught.value.mistakes)
    return list(caught.value.mistakes)


def test_an_arm_holds_its_models_solver_guidance_and_a_fingerprint_of_its_weights(tmp_path: Path) -> None:
    (found,) = sweep(tmp_path, {"a": arm(EXPERTS)}).arms
    assert (found.solver, found.guidance, found.guidance_low) == ("unipc", 4.0, 3.0)
    assert len(found.revision) == 12
    (other,) = sweep(tmp_path, {"a": arm(EXPERTS, solver="euler", guidance=2.0)}).arms
    assert (other.solver, other.guidance, other.guidance_low) == ("euler", 2.0, None)
    (third,) = sweep(tmp_path, {"a": arm(EXPERTS, guidance_low=1.5)}).arms
    assert (third.guidance, third.guidance_low) == (4.0, 1.5)


def test_a_step_costs_two_branches_if_there_is_guidance_at_all(tmp_path: Path) -> None:
    guidances = {"none": (1.0, 1.0), "high": (4.0, 1.0), "both": (4.0, 3.0)}
    arms = {name: arm(EXPERTS, guidance=high, guidance_low=low) for name, (high, low) in guidances.items()}
    assert [found.cost and found.cost.num_branches for found in sweep(tmp_path, arms).arms] == [1, 2, 2]


@pytest.mark.parametrize(
    ("model", "settings", "words"),
    [
        (T2V, {"guidance_low": 2.0}, ["guidance_low is 2.0", "one expert"]),
        (EXPERTS, {"guidance": 1.0, "guidance_low": 3.0}, ["guidance_low is 3 and guidance 1", "second branch"]),
        ("hunyuanvideo", {"negative": "blurry"}, ["negative", "built in"]),
        (T2V, {"negative": "blurry", "guidance": 1.0}, ["negative", "guidance is 1"]),
        (T2V, {"steps": 2}, ["steps is 2", "dvg needs at least 3"]),
        (T2V, {"steps": 1, "planner": "fixed"}, ["steps is 1", "fixed needs at least 3"]),
        (T2V, {"solver": "heun"}, ["solver", "'euler'", "'unipc'", "heun"]),
        (T2V, {"lora": ["nowhere.safetensors:0.5"]}, ["'nowhere.safetensors'", "is not there"]),
        (T2V, {"lora": [{"path": "x", "scal": 1}]}, ["scal", "scale"]),
        (T2V, {"weights": "/nowhere"}, ["/nowhere", "model_index.json", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"]),
        (I2V, {"weights": f"of {T2V}", "image": "f.png"}, ["WanPipeline", "WanImageToVideoPipeline"]),
    ],
)
def test_bad_settings_are_refused_with_the_rule(model: str, settings: dict[str, Any], words: list[str], tmp_path: Path) -> None:
    first_frame(tmp_path / "f.png")
    other = settings.get("weights", "").removeprefix("of ")
    weights = {"weights": str(checkpoint(other))} if other in MODELS else {}
    text = "\n".join(mistakes(tmp_path, {"a": {**arm(model), **settings, **weights}}))
    assert all(word in text for word in words), text


def test_values_of_a_sweep_are_checked_like_any_others(tmp_path: Path) -> None:
    text = "\n".join(mistakes(tmp_path, {"a": arm(T2V)}, sweep={"steps": [8, 0], "solver": ["euler", "heun"]}))
    assert "greater than or equal to 1" in text
    assert "heun" in text


def test_a_first_frame_comes_from_the_prompt_or_else_the_arm_and_its_bytes_make_the_key(tmp_path: Path) -> None:
    shared, own = first_frame(tmp_path / "shared.png"), first_frame(tmp_path / "own.png", 64)
    prompts = ["a red circle", {"prompt": "a red circle", "image": "own.png"}]
    made = sweep(tmp_path, {"i2v": arm(I2V, image="shared.png")}, prompts=prompts)
    assert [item.image for item in made.items] == [str(shared), str(own)]
    assert [item.image_sha256 for item in made.items] == [hashlib.sha256(p.read_bytes()).hexdigest() for p in (shared, own)]
    assert len({item.prompt_id for item in made.items}) == 2
    assert made.resolved()["prompts"][1]["images"] == {"i2v": str(own)}
    first_frame(shared, 70)
    again = sweep(tmp_path, {"i2v": arm(I2V, image="shared.png")}, prompts=prompts)
    assert [a.item_key == b.item_key for a, b in zip(made.items, again.items, strict=True)] == [False, True]


def test_one_sweep_holds_arms_with_and_without_a_first_frame(tmp_path: Path) -> None:
    first_frame(tmp_path / "f.png")
    arms = {"t2v": arm(T2V), "i2v": arm(I2V, image="f.png"), "t": arm(TI2V), "ti": arm(TI2V, image="f.png")}
    made = sweep(tmp_path, arms)
    assert [(item.arm, item.image is not None) for item in made.items] == [("t2v", 0), ("i2v", 1), ("t", 0), ("ti", 1)]


def test_prompts_without_a_first_frame_are_told_in_one_line_for_each_arm(tmp_path: Path) -> None:
    told = mistakes(tmp_path, {"a": arm(I2V), "b": arm(I2V), "c": arm(T2V)}, prompts=["one", "two", "three"], seeds=[0, 1])
    assert [line.partition(":")[0] for line in told] == ["arm a", "arm b"]
    assert all("3 prompts have" in line and "'one-" in line for line in told)


def test_a_jsonl_file_names_images_beside_the_spec(tmp_path: Path) -> None:
    first_frame(tmp_path / "f.png")
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "a red circle", "image": "f.png"}))
    (item,) = sweep(tmp_path, {"a": arm(I2V)}, prompts="p.jsonl").items
    assert item.image == str(tmp_path / "f.png")


def test_every_broken_image_is_told_at_once_and_so_is_whatever_else_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "torn.png").write_bytes(first_frame(tmp_path / "f.png").read_bytes()[:150])
    prompts = [{"prompt": "x", "image": name} for name in ("gone.png", "text.png", "torn.png")]
    told = mistakes(tmp_path, {"a": arm(I2V)}, prompts=[*prompts, "no image"], reference="b")
    for words in (["gone.png", "does not exist"], ["text.png", "no image"], ["torn.png", "cannot be read"], ["none", "--image"]):
        assert [all(word in line for word in words) for line in told].count(True) == 1, (words, told)
    assert any("reference" in line for line in told)


def test_an_image_for_a_model_that_takes_none_is_refused_and_names_those_that_do(tmp_path: Path) -> None:
    first_frame(tmp_path / "f.png")
    for change in ({"image": "f.png"}, {"prompts": [{"prompt": "x", "image": "f.png"}]}):
        (told,) = mistakes(tmp_path, {"a": arm(T2V)}, **change)
        assert "takes no image" in told
        assert I2V in told
        assert T2V not in told.split("models that do")[1]


def test_a_folder_of_weights_is_known_by_what_is_loaded_from_it(tmp_path: Path) -> None:
    def keys(folder: Path) -> set[str]:
        return {item.item_key for item in sweep(tmp_path, {"a": {"model": T2V, "weights": str(folder)}}).items}

    folder = copied(T2V, tmp_path)
    first = keys(folder)
    (folder / "README.md").write_text("notes")
    (folder / "samples").mkdir()
    (folder / "samples" / "one.mp4").write_bytes(b"video")
    assert keys(folder) == keys(folder / "vae" / "..") == keys(checkpoint(T2V)) == first
    (weights,) = (folder / "transformer").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    assert keys(folder) != first


def lora(path: Path, value: float = 1.0) -> Path:
    layer = "transformer.blocks.0.attn1.to_q"
    save_file({f"{layer}.lora_A.weight": torch.full((1, 48), value), f"{layer}.lora_B.weight": torch.ones(48, 1)}, path)
    return path


def test_adapters_are_read_from_text_or_fields_and_their_bytes_are_part_of_the_revision(tmp_path: Path) -> None:
    path = str(lora(tmp_path / "a.safetensors"))
    options = [path, f"{path}:0.5", f"{path}:-2:low", f"{path}:high", {"path": path, "scale": 3, "expert": "both"}]
    (found,) = sweep(tmp_path, {"a": arm(EXPERTS, lora=options)}).arms
    expected = [(1.0, "both"), (0.5, "both"), (-2.0, "low"), (1.0, "high"), (3.0, "both")]
    assert [(spec.scale, spec.expert) for spec in found.lora] == expected
    assert {spec.path for spec in found.lora} == {path}
    lora(tmp_path / "a.safetensors", 2.0)
    (changed,) = sweep(tmp_path, {"a": arm(EXPERTS, lora=options)}).arms
    assert changed.revision.split("+")[0] == found.revision.split("+")[0]
    assert changed.revision != found.revision
    told = mistakes(tmp_path, {"a": arm(T2V, lora=[f"{path}:1:low"])})
    assert "one expert" in told[0]


def test_every_attention_kernel_there_is_can_be_asked_for() -> None:
    assert AttentionName.__args__ == names()  # type: ignore[attr-defined]


def test_compile_is_automatic_on_or_off() -> None:
    assert [ClusterConfig(compile=value).compile_blocks for value in ("auto", True, False)] == [None, True, False]


def test_every_model_can_be_resolved_with_its_own_defaults(tmp_path: Path) -> None:
    first_frame(tmp_path / "f.png")
    for name, model in MODELS.items():
        image = {"image": "f.png"} if model.image == "required" else {}
        (found,) = build_sweep({"prompts": ["x"], "arms": {"a": arm(name, **image)}}, tmp_path).arms
        assert (found.model, found.num_steps, found.solver) == (name, model.default_steps, model.solver)


def test_solver_and_shift_are_those_of_the_checkpoint_unless_asked_otherwise(tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    shutil.copytree(checkpoint(T2V), folder)
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "flow_shift": 3.0}))
    options = {"model": T2V, "weights": str(folder), "planner": "full"}
    shipped, asked = sweep(tmp_path, {"a": options, "b": {**options, "shift": 8.0, "solver": "euler"}}).arms
    assert (shipped.solver, shipped.shift) == ("unipc", 3.0)
    assert (asked.solver, asked.shift) == ("euler", 8.0)
    assert full_action(shipped.under_its_shift(MODELS[T2V]), shipped.shape, shipped.num_steps).stages[0].shift == 3.0
