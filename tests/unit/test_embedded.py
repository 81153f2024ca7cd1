"""The model that ships with the project: what its folder says agrees with what the planners assume, and it runs as stock."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from experiments.embedded import captions
from experiments.embedded.captions import EXAMPLE
from experiments.embedded.sampling import Sampler
from orchestrator.actions import DvgConfig
from orchestrator.geometry import model as geometry_of
from orchestrator.types import VideoShape
from stages.denoise import run_stages, start
from stages.models.base import Request, load
from stages.models.embedded import FOLDER, NAME
from stages.planners.base import make_planner
from stages.vocabulary import unknown_words, vocabulary

pytestmark = pytest.mark.skipif(not (FOLDER / "model_index.json").is_file(), reason="a checkout without the embedded weights")
GEOMETRY = geometry_of(NAME)


def config_of(part: str, file: str = "config.json") -> dict[str, Any]:
    config: dict[str, Any] = json.loads((FOLDER / part / file).read_text())
    return config


def test_the_geometry_is_the_checkpoints() -> None:
    transformer, vae = config_of("transformer"), config_of("vae")
    assert (transformer["num_attention_heads"], transformer["attention_head_dim"]) == (GEOMETRY.heads, GEOMETRY.head_dim)
    assert transformer["num_layers"] == GEOMETRY.num_layers
    assert (transformer["in_channels"], vae["z_dim"]) == (GEOMETRY.latent_channels, GEOMETRY.latent_channels)
    assert config_of("scheduler", "scheduler_config.json")["shift"] == GEOMETRY.full_shift


def test_it_takes_no_more_room_than_promised() -> None:
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) <= 24_000_000


def test_it_shows_every_word_that_its_captions_use() -> None:
    assert set(vocabulary(FOLDER)) == set(captions.vocabulary()) - {","}


def test_its_example_uses_known_words_only() -> None:
    assert unknown_words(EXAMPLE, FOLDER) == ()


def test_it_runs_as_the_stock_pipeline_does() -> None:
    from diffusers import WanPipeline

    stock, shape = WanPipeline.from_pretrained(FOLDER, torch_dtype=torch.float32), VideoShape(17, 64, 64)
    stock.set_progress_bar_config(disable=True)
    stock.text_encoder.float()
    expected = stock(
        EXAMPLE,
        height=64,
        width=64,
        num_frames=17,
        num_inference_steps=6,
        guidance_scale=GEOMETRY.default_guidance,
        generator=torch.Generator().manual_seed(3),
        output_type="latent",
    ).frames
    ours = load(NAME, None)
    planner = make_planner("full", GEOMETRY, shape, 6, None, DvgConfig())
    condition = ours.encode(Request(EXAMPLE, shape, GEOMETRY.default_guidance))
    boundary, _ = run_stages(ours, planner, start(ours, planner, condition, seed=3), 1)
    assert (boundary.x - expected).abs().max() < 5e-5


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_what_training_looks_at_is_what_the_product_makes(guidance: float) -> None:
    prompts = (EXAMPLE, "a small blue square is still on noise")
    batched = Sampler.from_folder(FOLDER, "cpu").latents(prompts, (3, 8), seed=3, guidance=guidance, steps=4)
    shape = VideoShape(9, 64, 64)
    ours, planner = load(NAME, None), make_planner("full", GEOMETRY, shape, 4, None, DvgConfig())
    for number, prompt in enumerate(prompts):
        condition = ours.encode(Request(prompt, shape, guidance))
        boundary, _ = run_stages(ours, planner, start(ours, planner, condition, seed=3 + number), 1)
        torch.testing.assert_close(batched[number : number + 1], boundary.x, atol=1e-4, rtol=1e-4)
