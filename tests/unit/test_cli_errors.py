"""Bad input as a person meets it: the real command, its exit code, one line for each mistake, nothing heavy started."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.checkpoints import checkpoint, copied, first_frame
from tests.unit.test_cli import ROOT, dvg, errors, imported

T2V, I2V = "wan2.1-1.3b", "wan2.1-i2v-14b"
SMALL = ("--frames", "17", "--height", "64", "--width", "96", "--steps", "8")


def generate(model: str, folder: Path, *options: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    return dvg("generate", "a red circle", "--model", model, *SMALL, *options, "--out", folder / "v.mp4", **env)


def refused(done: subprocess.CompletedProcess[str], folder: Path, *words: Sequence[str]) -> None:
    """Exit 2 with one line for each group of words, before torch was loaded."""
    assert done.returncode == 2, done.stderr[-2000:]
    lines = errors(done)
    assert len(lines) == len(words), lines
    for line, group in zip(lines, words, strict=True):
        assert line.startswith("error: ")
        assert all(word in line for word in group), line
    assert not {"torch", "ray"} & imported(done)
    assert not (folder / "v.mp4").exists()


def test_weights_in_another_format(tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "model.safetensors").write_bytes(b"")
    words = ["model.safetensors", "diffusers format", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"]
    refused(generate(T2V, tmp_path, "--weights", tmp_path / "w"), tmp_path, words)


def test_a_missing_component_and_weights_of_another_task(tmp_path: Path) -> None:
    folder = copied(T2V, tmp_path)
    (folder / "vae").rename(tmp_path / "elsewhere")
    vae = [f"'{folder}'", "vae/config.json is missing"]
    refused(generate(T2V, tmp_path, "--weights", folder), tmp_path, vae, ["vae", "no weights"])
    frame = first_frame(tmp_path / "f.png")
    done = generate(I2V, tmp_path, "--weights", checkpoint(T2V), "--image", frame)
    words = (["WanImageToVideoPipeline"], ["in_channels 16", "36"], ["'image_encoder'"], ["'image_processor'"])
    refused(done, tmp_path, *words)


def test_no_weights_at_all(tmp_path: Path) -> None:
    refused(generate("hunyuanvideo-1.5", tmp_path), tmp_path, ["ships no weights", "HunyuanVideo-1.5-Diffusers-480p_t2v"])


def test_an_image_that_is_missing_unwanted_or_broken(tmp_path: Path) -> None:
    weights = ("--weights", checkpoint(I2V))
    refused(generate(I2V, tmp_path, *weights), tmp_path, ["first frame", "--image"])
    refused(generate(I2V, tmp_path, *weights, "--image", "gone.png"), tmp_path, ["'gone.png'", "does not exist"])
    frame = first_frame(tmp_path / "f.png")
    (tmp_path / "torn.png").write_bytes(frame.read_bytes()[:150])
    refused(generate(I2V, tmp_path, *weights, "--image", tmp_path / "torn.png"), tmp_path, ["torn.png", "cannot be read"])
    done = generate(T2V, tmp_path, "--weights", checkpoint(T2V), "--image", frame)
    refused(done, tmp_path, ["takes no image", I2V])


def test_all_mistakes_at_once(tmp_path: Path) -> None:
    options = ("--weights", "/nowhere", "--steps", "2", "--image", "gone.png", "--lora", "gone.safetensors:0.5")
    words = (["'/nowhere'"], ["steps is 2", "at least 3"], ["'gone.safetensors'"], ["'gone.png'"])
    refused(generate(I2V, tmp_path, *options), tmp_path, *words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--budget", "0.5", "--speedup", "3"), ["--budget", "--speedup"]),
        (("--attention", "flsh"), ["'flsh'", "did you mean 'flash'"]),
        (("--solver", "unipcc"), ["unipcc", "'unipc'"]),
        (("--planner", "dgv"), ["dgv", "did you mean 'dvg'", "temporal-only"]),
        (("--planner", "full", "--budget", "0.5"), ["planner full spends"]),
        (("--planner", "fixed", "--speedup", "2"), ["planner fixed spends"]),
    ],
)
def test_options_that_are_not_known_or_do_not_go_together(options: tuple[str, ...], words: list[str], tmp_path: Path) -> None:
    refused(generate(T2V, tmp_path, "--weights", checkpoint(T2V), *options), tmp_path, words)


def test_a_device_that_is_not_here_is_refused_before_the_model_is_loaded(tmp_path: Path) -> None:
    done = dvg("generate", "a red circle", "--device", "cuda:99", "--out", tmp_path / "v.mp4")
    assert done.returncode == 2
    assert "'cuda:99' is not here" in errors(done)[0]
    assert "diffusers" not in imported(done)


def adapter(file: Path, layer: str) -> Path:
    """Of a transformer that is 3 wide."""
    save_file({f"{layer}.lora_A.weight": torch.ones(1, 3), f"{layer}.lora_B.weight": torch.ones(3, 1)}, file)
    return file


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    file = adapter(tmp_path / "a.safetensors", "transformer.blocks.0.attn1.to_q")
    done = generate(T2V, tmp_path, "--weights", checkpoint(T2V), "--lora", file)
    refused(done, tmp_path, ["a.safetensors", "'blocks.0.attn1.to_q' is 48 x 48", "3 x 3"])


def test_what_shows_only_on_loading_fails_the_run_in_one_line_below_a_traceback_on_request(tmp_path: Path) -> None:
    """An adapter in another trainer's names, which diffusers translates."""
    file = adapter(tmp_path / "a.safetensors", "diffusion_model.blocks.0.self_attn.q")
    done = generate(T2V, tmp_path, "--weights", checkpoint(T2V), "--lora", file, DVG_TRACEBACK="1")
    assert done.returncode == 1
    told = [line for line in errors(done) if line.startswith("error: ")]
    assert len(told) == 1
    assert "a.safetensors" in told[0]
    assert "Traceback" in done.stderr


OUT_OF_MEMORY = """
import sys, torch
from stages.models.wan import WanModel
def denoise(*arguments):
    total = "GPU 0 has a total capacity of 79.11 GiB of which 3.00 GiB is free."
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. " + total)
WanModel.denoise = denoise
from orchestrator.cli import main
sys.argv = ["dvg", *sys.argv[1:]]
main()
"""


def test_too_little_memory_fails_the_run_in_one_line(tmp_path: Path) -> None:
    options = ["--model", T2V, "--weights", checkpoint(T2V), *SMALL, "--out", tmp_path / "v.mp4"]
    done = subprocess.run(
        [sys.executable, "-c", OUT_OF_MEMORY, "generate", "a red circle", *map(str, options)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 1, done.stderr[-2000:]
    told = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(told) == 1
    words = ("out of GPU memory while denoising", T2V, "20.00 GiB more was needed", "3.00 GiB of 79.11 GiB was free", "--frames")
    assert all(word in told[0] for word in words), told
    assert "Traceback" not in done.stderr


def test_build_tiny_writes_a_checkpoint_that_is_the_model_and_only_to_an_empty_folder(tmp_path: Path) -> None:
    done = dvg("models", "build-tiny", T2V, tmp_path / "new")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "--weights" in done.stdout
    again = dvg("models", "build-tiny", T2V, tmp_path / "new")
    assert again.returncode == 2
    assert "not empty" in errors(again)[-1]
    other = dvg("models", "build-tiny", "wan2.1-1.3c", tmp_path / "other")
    assert other.returncode == 2
    assert "did you mean 'wan2.1-1.3b'" in errors(other)[-1]
