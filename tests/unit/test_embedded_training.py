"""What the embedded model is trained on: a given first frame, and latents that have just crossed to a larger grid."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from PIL import Image

from experiments.embedded import text, transformer
from experiments.embedded.crossing import cross, crossing_of, levels
from experiments.embedded.judging import first_frames, pixels
from experiments.embedded.latents import CROSSINGS, KINDS
from experiments.embedded.scenes import held_out_scenes
from experiments.embedded.train_transformer import give
from orchestrator.actions import DvgConfig
from orchestrator.geometry import model as geometry_of
from orchestrator.types import VideoShape
from stages.denoise import run_stages, start
from stages.models.base import Request, load
from stages.models.embedded import FOLDER, NAME
from stages.planners import make_planner
from stages.resize import nested_axes

needs_weights = pytest.mark.skipif(not (FOLDER / "model_index.json").is_file(), reason="a checkout without the embedded weights")


def test_a_clean_first_frame_is_the_stock_networks_per_token_timestep() -> None:
    torch.manual_seed(0)
    model, x = transformer.build(num_layers=1), torch.randn(2, 16, 3, 4, 6)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    rows, sigma = torch.randn(2, 5, text.TEXT_DIM), torch.tensor([0.7, 0.2])
    timesteps = (1000 * sigma)[:, None].repeat(1, 3 * 2 * 3)
    timesteps[:, : 2 * 3] = 0
    stock = model(hidden_states=x, timestep=timesteps, encoder_hidden_states=rows, return_dict=False)[0]
    ours = transformer.velocity(model, x, sigma, rows, torch.zeros(2, 1, 1, 5), first_sigma=torch.zeros(2))
    assert (ours - stock).abs().max() < 1e-4 * stock.abs().max()


def test_a_given_frame_replaces_only_the_first_and_only_where_given() -> None:
    x, clean = torch.zeros(2, 1, 3, 2, 2), torch.ones(2, 1, 3, 2, 2)
    seen = give(x, clean, torch.tensor([True, False]))
    assert seen[0, 0, 0].eq(1).all()
    assert seen.sum() == 4


def test_every_crossing_leads_to_a_grid_that_holds_the_smaller_one() -> None:
    pairs = KINDS["crossing"][1]
    assert sum(share for share, _ in KINDS.values()) == pytest.approx(1)
    for small, large in pairs:
        nested_axes(((small[0], small[1], small[1]), (large[0], large[1], large[1])))
    assert [crossing_of(group[0]) for group in CROSSINGS] == [0, 1, 2]


@pytest.mark.parametrize("crossing", [0, 1, 2])
def test_noise_levels_around_a_crossing_fall_from_its_start(crossing: int) -> None:
    before, begin, now = levels(crossing, 500, "cpu")
    assert ((now <= begin + 1e-6) & (now > 0)).all()
    assert ((before > 0) & (before < 1)).all()
    assert now.max() > begin.min() > now.min()


@pytest.mark.parametrize("crossing", [0, 1, 2])
def test_clips_of_one_crossing_set_out_from_one_place_to_their_clean_latents(crossing: int) -> None:
    """x(now) = clean + now v, and clean + begin v is the re-noised small clip, whatever is clean."""
    small, clean = torch.randn(3, 4, 2, 4, 4), torch.randn(2, 3, 4, 3, 6, 6)
    ways = []
    for target in clean:
        torch.manual_seed(1)
        random.seed(1)
        ways.append(cross(small, target, crossing, lambda x, sigma: small))
    (x, now, v), (_, _, other) = ways
    torch.testing.assert_close(x - now.view(-1, 1, 1, 1, 1) * v, clean[0], atol=1e-4, rtol=1e-4)
    begin = ((clean[0] - clean[1]) / (other - v)).flatten(1)
    torch.testing.assert_close(begin, begin[:, :1].expand_as(begin), atol=1e-3, rtol=1e-3)
    assert (now <= begin[:, 0] + 1e-4).all()


@needs_weights
def test_a_given_first_frame_runs_as_in_the_stock_pipeline(tmp_path: Path) -> None:
    from diffusers import WanImageToVideoPipeline, WanPipeline

    geometry, shape = geometry_of(NAME), VideoShape(9, 64, 64)
    frame = pixels(first_frames(held_out_scenes()[:1], 64, 64).transpose(0, 1))[0]
    Image.fromarray(frame).save(tmp_path / "first.png")
    parts = WanPipeline.from_pretrained(FOLDER, torch_dtype=torch.float32).components
    stock = WanImageToVideoPipeline(
        **{name: parts[name] for name in ("tokenizer", "text_encoder", "vae", "scheduler", "transformer")}, expand_timesteps=True
    )
    stock.set_progress_bar_config(disable=True)
    stock.text_encoder.float()
    expected = stock(
        Image.open(tmp_path / "first.png"),
        "a small blue square is still on noise",
        height=64,
        width=64,
        num_frames=9,
        num_inference_steps=4,
        guidance_scale=geometry.default_guidance,
        generator=torch.Generator().manual_seed(3),
        output_type="latent",
    ).frames
    ours, planner = load(NAME, None), make_planner("full", geometry, shape, 4, None, DvgConfig())
    request = Request(
        "a small blue square is still on noise", shape, geometry.default_guidance, image=str(tmp_path / "first.png")
    )
    boundary, _ = run_stages(ours, planner, start(ours, planner, ours.encode(request), seed=3), 1)
    assert (boundary.x - expected).abs().max() < 1e-4
