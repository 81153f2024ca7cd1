"""What counts as a model's weights: folders, repositories of a hub, and every way in which they can be wrong."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from orchestrator.geometry import MODELS, model
from stages.models import checkpoint as checkpoints
from stages.models.base import load
from stages.models.weights import check_weights, find_weights, fingerprint, repository
from tests.checkpoints import checkpoint, copied, edit_json
from tests.fakehub import COMMIT, serve

ROOT = Path(__file__).parents[2]
T2V, I2V, EXPERTS, HUNYUAN, HUNYUAN_I2V = "wan2.1-1.3b", "wan2.1-i2v-14b", "wan2.2-a14b", "hunyuanvideo", "hunyuanvideo-i2v"


def mistakes(name: str, folder: Path | str | None) -> list[str]:
    return check_weights(model(name), None if folder is None else str(folder))[1]


@pytest.mark.parametrize("name", [T2V, I2V, EXPERTS, "wan2.2-i2v-a14b", "wan2.2-ti2v-5b", HUNYUAN, HUNYUAN_I2V])
def test_a_tiny_checkpoint_is_its_own_model(name: str) -> None:
    assert mistakes(name, checkpoint(name)) == []
    assert find_weights(model(name), str(checkpoint(name))) == checkpoint(name)


@pytest.mark.parametrize(
    ("weights", "asked", "words"),
    [
        (T2V, I2V, ["WanPipeline", "WanImageToVideoPipeline", "image_encoder", "in_channels 16", "36"]),
        (I2V, T2V, ["WanImageToVideoPipeline", "in_channels 36", "16"]),
        (T2V, EXPERTS, ["'transformer_2'", "missing"]),
        (EXPERTS, T2V, ["transformer_2", "one expert"]),
        (
            T2V,
            HUNYUAN,
            ["WanPipeline", "HunyuanVideoPipeline", "text_encoder_2", "AutoencoderKLHunyuanVideo"],
        ),
        (HUNYUAN, HUNYUAN_I2V, ["HunyuanVideoImageToVideoPipeline", "image_condition_type", "token_replace", "image_processor"]),
        ("wan2.2-ti2v-5b", T2V, ["in_channels 48", "z_dim 48", "scale_factor_spatial 16"]),
    ],
)
def test_weights_of_another_model_are_refused_with_every_difference(weights: str, asked: str, words: list[str]) -> None:
    text = "\n".join(mistakes(asked, checkpoint(weights)))
    assert all(word in text for word in words), text


def test_weights_of_another_size_are_refused_and_those_of_no_models_size_are_for_tests(tmp_path: Path) -> None:
    folder = copied(T2V, tmp_path)
    edit_json(folder / "transformer" / "config.json", num_attention_heads=40, attention_head_dim=128, num_layers=40)
    (told,) = mistakes(T2V, folder)
    assert all(word in told for word in ("40 heads and 40 layers", "wan2.1-14b", "wan2.1-1.3b has 12 and 30"))
    assert mistakes("wan2.1-14b", folder) == []


@pytest.mark.parametrize("part", ["vae", "text_encoder", "transformer", "tokenizer"])
def test_a_missing_component_is_named(part: str, tmp_path: Path) -> None:
    folder = copied(T2V, tmp_path)
    (folder / part).rename(tmp_path / "elsewhere")
    assert any(part in line and "missing" in line for line in mistakes(T2V, folder))


def test_a_component_the_index_does_not_name_is_missing_even_if_its_folder_is_there(tmp_path: Path) -> None:
    folder = copied(EXPERTS, tmp_path)
    edit_json(folder / "model_index.json", transformer_2=[None, None])
    assert any("'transformer_2'" in line for line in mistakes(EXPERTS, folder))


def test_a_download_cut_short_is_told_by_file(tmp_path: Path) -> None:
    folder = copied(T2V, tmp_path)
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    (told,) = mistakes(T2V, folder)
    assert "vae/diffusion_pytorch_model.safetensors" in told
    assert "no complete safetensors file" in told


def test_a_missing_shard_is_told(tmp_path: Path) -> None:
    folder = copied(T2V, tmp_path)
    listing = {
        "weight_map": {"a": "diffusion_pytorch_model-00001-of-00002.safetensors", "b": "diffusion_pytorch_model.safetensors"}
    }
    (folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(listing))
    assert ["lacks 1 of its weight files" in line and "00001-of-00002" in line for line in mistakes(T2V, folder)] == [True]


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("tokenizer/tokenizer.json", None, ["tokenizer holds no vocabulary", "tokenizer.json"]),
        ("tokenizer/tokenizer.json", "{]", ["tokenizer/tokenizer.json", "cut short"]),
        ("transformer/config.json", {"num_layers": "many"}, ["num_layers 'many'", "whole number"]),
        ("transformer/config.json", {"num_attention_heads": None}, ["num_attention_heads None"]),
        ("transformer/config.json", {"patch_size": None}, ["patch_size ()", "(1, 2, 2)"]),
    ],
)
def test_small_files_that_are_torn_lost_or_odd_are_told(file: str, change: object, words: list[str], tmp_path: Path) -> None:
    folder = copied(T2V, tmp_path)
    if change is None:
        (folder / file).unlink()
    elif isinstance(change, dict):
        edit_json(folder / file, **change)
    else:
        (folder / file).write_text(str(change))
    (line,) = mistakes(T2V, str(folder))
    assert all(word in line for word in words), line


@pytest.mark.parametrize("component", ["text_encoder", "transformer", "vae"])
@pytest.mark.parametrize("name", [T2V, HUNYUAN, "hunyuanvideo-1.5"])
def test_a_tensor_that_is_missing_is_told_by_name_and_not_made_up(name: str, component: str, tmp_path: Path) -> None:
    folder = copied(name, tmp_path)
    (file,) = (folder / component).glob("*.safetensors")
    tensors = load_file(file)
    lost = min(tensors)
    save_file({key: tensor for key, tensor in tensors.items() if key != lost}, file, {"format": "pt"})
    with pytest.raises(ValueError, match=rf"{component}' lacks 1 tensors of a \w+, '.*{re.escape(lost)[-12:]}'"):
        load(name, str(folder))


def test_a_shift_that_is_none_is_not_taken_from_a_checkpoint(tmp_path: Path) -> None:
    folder = copied(HUNYUAN, tmp_path)
    for shift in (-1, 0, float("inf"), "many", None):
        edit_json(folder / checkpoints.SCHEDULER, shift=shift)
        assert checkpoints.schedule(folder).shift is None


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    folder = copied(T2V, tmp_path)
    edit_json(folder / "vae" / "config.json", z_dim=8)
    edit_json(folder / "transformer" / "config.json", patch_size=[1, 1, 1])
    (folder / "text_encoder" / "config.json").write_text("{")
    told = mistakes(T2V, folder)
    assert len(told) == 3
    for line, words in zip(
        told, (["text_encoder", "not valid JSON"], ["patch_size", "(1, 1, 1)"], ["z_dim 8", "16"]), strict=True
    ):
        assert all(word in line for word in (*words, str(folder))), line


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.mkdir(), ["has no model_index.json"]),
        (lambda path: path.write_bytes(b"x"), ["is a file"]),
        (lambda path: None, ["no folder"]),
        (lambda path: (path.mkdir(), (path / "model.pth").write_bytes(b"")), ["another format", "model.pth"]),
        (lambda path: (path.mkdir(), (path / "model_index.json").write_text("[]")), ["must hold a mapping"]),
    ],
)
def test_what_is_no_folder_in_diffusers_format_is_refused_with_the_rule(make: object, words: list[str], tmp_path: Path) -> None:
    make(tmp_path / "w")  # type: ignore[operator]
    (told,) = mistakes(T2V, tmp_path / "w")
    assert all(word in told for word in words), told
    assert "\n" not in told


def test_weights_that_are_not_given_name_the_published_ones() -> None:
    for name, geometry in MODELS.items():
        assert geometry.hub in mistakes(name, None)[0], name


def test_a_name_counts_as_a_repository_only_if_no_such_folder_is_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert str(repository("org/name@v1.0")) == "org/name@v1.0"
    assert repository("/an/absolute/path") is None
    assert repository("./a/b") is None
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert repository("org/name") is None


def test_the_scheduler_a_checkpoint_ships_with_can_be_read() -> None:
    assert checkpoints.schedule(checkpoint(HUNYUAN)) == checkpoints.Schedule("euler", 7.0)
    assert checkpoints.schedule(Path("/nowhere")) == checkpoints.Schedule()


def test_a_fingerprint_changes_with_the_files_and_not_with_the_place(tmp_path: Path) -> None:
    one, other = copied(T2V, tmp_path / "a"), copied(T2V, tmp_path / "b")
    assert fingerprint(one) == fingerprint(other)
    (one / "vae" / "more.txt").write_text("x")
    assert fingerprint(one) != fingerprint(other)
    assert fingerprint(one, ["transformer/*"]) == fingerprint(other, ["transformer/*"])


def test_weights_trained_on_in_place_have_another_fingerprint(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    prints = set()
    for seed in (1, 1, 2):
        file.write_bytes(random.Random(seed).randbytes(3 << 20))
        prints.add(fingerprint(tmp_path))
    assert len(prints) == 2


ASK = """
import os, sys
from orchestrator.geometry import model
from stages.models.weights import check_weights, find_weights
geometry = model("wan2.1-1.3b")
for weights in sys.argv[1:]:
    pinned, wrong = check_weights(geometry, weights)
    print(pinned, *wrong)
    assert "torch" not in sys.modules
    parts = frozenset(os.environ.get("ONLY_PART", "text transformer vae").split())
    print(find_weights(geometry, pinned, parts) if not wrong else "")
"""


def ask(home: Path, *weights: str, **environment: str) -> list[str]:
    """Both answers about each of ``weights``, in a process with a hub cache of its own."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    settings = {**clean, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1", **environment}
    command = [sys.executable, "-c", ASK, *weights]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=settings, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_repository_is_pinned_to_its_commit_downloaded_once_and_then_needs_no_hub(tmp_path: Path) -> None:
    with serve("me/tiny", checkpoint(T2V)) as hub:
        online = ask(tmp_path, "me/tiny", "me/other", HF_ENDPOINT=hub.endpoint, HF_TOKEN="sesame")
        asked = list(hub.asked)
        ask(tmp_path, "me/tiny", HF_ENDPOINT=hub.endpoint)
        assert hub.asked == asked
    assert online[0] == f"me/tiny@{COMMIT}"
    assert Path(online[1]).is_relative_to(tmp_path)
    assert "'me/other' is not on the hub" in online[2]
    assert "Wan-AI/Wan2.1-T2V-1.3B-Diffusers" in online[2]
    assert {name.split("/")[0] for name in asked} == {"model_index.json", "scheduler", *checkpoints.components(model(T2V))}
    assert "Bearer sesame" in hub.tokens
    assert not any(b"sesame" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert ask(tmp_path, "me/tiny", HF_HUB_OFFLINE="1") == online[:2]


def test_of_a_repository_only_the_weights_of_the_parts_that_are_loaded_are_fetched(tmp_path: Path) -> None:
    def weights() -> set[str]:
        return {name.split("/")[0] for name in hub.asked if name.endswith(".safetensors")}

    with serve("me/tiny", checkpoint(T2V)) as hub:
        ask(tmp_path, "me/tiny", HF_ENDPOINT=hub.endpoint, ONLY_PART="vae")
        assert weights() == {"vae"}
        ask(tmp_path, "me/tiny", HF_ENDPOINT=hub.endpoint, ONLY_PART="transformer")
        assert weights() == {"vae", "transformer"}
        ask(tmp_path, "me/tiny", HF_ENDPOINT=hub.endpoint)
        assert weights() == {"vae", "transformer", "text_encoder"}


@pytest.mark.parametrize("name", [T2V, "wan2.1-i2v-14b", "wan2.2-i2v-a14b", HUNYUAN, "hunyuanvideo-1.5-i2v"])
@pytest.mark.parametrize("part", ["text", "transformer", "encoder", "vae"])
def test_what_is_fetched_for_a_part_is_enough_to_load_it(name: str, part: str, tmp_path: Path) -> None:
    for pattern in checkpoints.patterns(model(name), {part}):
        for file in checkpoint(name).glob(pattern):
            (tmp_path / file.relative_to(checkpoint(name))).parent.mkdir(exist_ok=True)
            (tmp_path / file.relative_to(checkpoint(name))).symlink_to(file)
    assert load(name, str(tmp_path), parts=frozenset({part})).geometry.name == name


def test_without_a_hub_and_a_cache_one_line_says_how_to_fetch(tmp_path: Path) -> None:
    told = ask(tmp_path, "me/tiny", HF_HUB_OFFLINE="1")[0]
    assert "not in the local cache" in told
    assert "hf download me/tiny" in told
    assert "no folder 'me/tiny' is here either" in told
    assert "Wan-AI/Wan2.1-T2V-1.3B-Diffusers" in told


def test_a_repository_of_another_model_is_refused_before_its_weights_are_fetched(tmp_path: Path) -> None:
    with serve("me/tiny", checkpoint(HUNYUAN)) as hub:
        told = ask(tmp_path, "me/tiny", HF_ENDPOINT=hub.endpoint)[0]
    assert "HunyuanVideoPipeline" in told
    assert not [name for name in hub.asked if name.endswith(".safetensors")]
