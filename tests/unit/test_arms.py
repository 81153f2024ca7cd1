"""The key of an item changes with everything that shapes its video, and with nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from orchestrator.arms import Arm, LoraSpec, item_key, make_item
from orchestrator.dvg_config import DvgConfig
from tests.arms import ARM

CHANGES = [
    {"model": "wan2.1-1.3b"},
    {"revision": "abc"},
    {"lora": (LoraSpec(path="a"),)},
    {"lora": (LoraSpec(path="a", scale=0.5),)},
    {"lora": (LoraSpec(path="a", expert="low"),)},
    {"planner": "fixed"},
    {"budget": 0.6},
    {"num_steps": 29},
    {"solver": "unipc"},
    {"guidance": 1.5},
    {"guidance_low": 2.0},
    {"negative_prompt": "blurred"},
    {"num_frames": 37},
    {"dvg": DvgConfig(image_condition="index")},
    {"dvg": DvgConfig(initial_noise="coordinate")},
    {"dvg": DvgConfig(meanflow_clean="zero")},
    {"dvg": DvgConfig(stale_timesteps=True)},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_every_setting_that_shapes_the_video_changes_the_key(change: dict[str, object]) -> None:
    assert item_key(ARM.model_copy(update=change), "a cat", 1) != item_key(ARM, "a cat", 1)


@given(st.text(), st.integers(0, 2**64), st.sampled_from(["", "ab", "cd"]))
def test_prompt_seed_and_image_change_the_key_and_repetition_does_not(prompt: str, seed: int, sha256: str) -> None:
    key = item_key(ARM, prompt, seed, sha256)
    assert key == item_key(ARM, prompt, seed, sha256)
    assert len(key) == 16
    assert key not in {item_key(ARM, prompt + "!", seed, sha256), item_key(ARM, prompt, seed + 1, sha256)}
    assert key != item_key(ARM, prompt, seed, sha256 + "e")


def test_an_image_counts_by_its_bytes_and_not_by_its_path() -> None:
    first, moved, other = (make_item(ARM, "p", "a cat", 1, path, sha) for path, sha in [("a", "12"), ("b", "12"), ("a", "34")])
    assert first.item_key == moved.item_key != other.item_key
    assert (moved.image, moved.image_sha256) == ("b", "12")


def test_weights_and_adapters_count_by_their_revision_and_not_by_where_they_lie() -> None:
    lora = LoraSpec(path="a", scale=0.5)
    one = ARM.model_copy(update={"weights": "/here", "lora": (lora,), "revision": "12+34"})
    moved = one.model_copy(update={"weights": "/there", "lora": (lora.model_copy(update={"path": "b"}),)})
    assert item_key(one, "a cat", 1) == item_key(moved, "a cat", 1)
    assert item_key(one, "a cat", 1) != item_key(one.model_copy(update={"revision": "12+56"}), "a cat", 1)


@pytest.mark.parametrize("image,sha256", [("a.png", ""), (None, "ab12")])
def test_an_image_and_its_hash_belong_together(image: str | None, sha256: str) -> None:
    with pytest.raises(ValueError, match="give both or neither"):
        make_item(ARM, "p", "a cat", 1, image, sha256)


def test_an_arm_survives_json() -> None:
    arm = ARM.model_copy(update={"lora": (LoraSpec(path="a", scale=0.5),), "guidance_low": 3.0, "solver": "unipc"})
    assert Arm.model_validate_json(arm.model_dump_json()) == arm


@pytest.mark.parametrize("bad", [{"path": ""}, {"path": "a", "scale": float("nan")}, {"path": "a", "expert": "middle"}], ids=str)
def test_a_bad_lora_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        LoraSpec.model_validate(bad)


@pytest.mark.parametrize(
    ("name", "planner", "mode", "parts"),
    [
        ("wan2.2-ti2v-5b", "dvg", "encode", {"encoder"}),
        ("hunyuanvideo-i2v", "fixed", "encode", {"encoder"}),
        ("hunyuanvideo-i2v", "dvg", "index", set()),
        ("hunyuanvideo-i2v", "full", "encode", set()),
        ("hunyuanvideo", "dvg", "encode", set()),
    ],
)
def test_later_stages_load_the_vaes_encoder_where_an_image_is_encoded_again(
    name: str, planner: str, mode: str, parts: set[str]
) -> None:
    arm = ARM.model_copy(update={"model": name, "planner": planner, "dvg": DvgConfig.model_validate({"image_condition": mode})})
    assert arm.refine_parts == parts
