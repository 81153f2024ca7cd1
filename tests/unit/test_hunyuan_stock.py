"""HunyuanVideo's adapter is the stock pipelines, only cheaper per step; in float32 on tiny checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoTransformer3DModel
from PIL import Image
from safetensors.torch import save_file

from stages.models.base import Loading, Lora, Placed
from stages.models.hunyuan import load_hunyuan
from stages.sampling import NoiseLevel, initial_noise
from tests.checkpoints import checkpoint
from tests.unit.hunyuan_runs import GUIDANCE, I2V, PROMPT, SEED, SHAPE, T2V, on_whole, photo, request, run, stock, stock_run, tiny

LONG = "a red circle moves left over the blue square and " * 80
ADAPTED = ("transformer_blocks.0.attn.to_q", "transformer_blocks.1.ff_context.net.2", "single_transformer_blocks.1.proj_mlp")
TINY_DIFFERENCE = 1e-5


@pytest.mark.parametrize("name", [T2V, I2V])
@pytest.mark.parametrize("prompt", [PROMPT, "", LONG], ids=["short", "empty", "longer than the text window"])
def test_a_full_run_equals_the_stock_pipeline(name: str, prompt: str) -> None:
    asked = request(name, prompt)
    assert (run(tiny(name), asked) - stock_run(name, asked)).abs().max() < TINY_DIFFERENCE


@pytest.mark.parametrize("name", [T2V, I2V])
def test_any_guidance_equals_the_stock_pipeline(name: str) -> None:
    asked = request(name, guidance=1.0)
    assert (run(tiny(name), asked) - stock_run(name, asked)).abs().max() < TINY_DIFFERENCE


@pytest.mark.parametrize("name", [T2V, I2V])
def test_the_encoded_prompt_is_the_stock_pipelines_without_its_padding(name: str) -> None:
    asked, pipeline = request(name), stock(name)
    options = {} if name == T2V else {"image": Image.open(photo()).convert("RGB"), "image_embed_interleave": 4}
    with torch.no_grad():
        tokens, pooled, mask = pipeline.encode_prompt(prompt=asked.prompt, **options)
    branch = tiny(name).encode(asked).positive
    assert mask.sum() < mask.shape[1]
    assert torch.allclose(branch.tensors["text"], tokens[:, mask[0].bool()], atol=1e-5)
    assert torch.allclose(branch.tensors["pooled"], pooled, atol=1e-6)


def test_the_prompt_the_image_and_the_guidance_all_matter_and_the_negative_prompt_does_not() -> None:
    model, base = tiny(I2V), run(tiny(I2V), request(I2V))
    assert not torch.allclose(run(model, request(I2V, "dog")), base, atol=1e-3)
    assert not torch.allclose(run(model, request(I2V, guidance=1.0)), base, atol=1e-3)
    assert not torch.allclose(run(tiny(T2V), request(T2V)), run(tiny(T2V), request(T2V, guidance=1.0)), atol=1e-3)
    assert torch.equal(run(model, request(I2V, negative="slow green square")), base)


@pytest.mark.parametrize("name", [T2V, I2V])
@torch.inference_mode()
def test_in_bfloat16_a_forward_is_as_close_to_float32_as_the_stock_one(name: str) -> None:
    placed = on_whole(tiny(name), request(name))
    x = placed.pin(initial_noise(tiny(name).geometry.latent_grid(SHAPE), 16, SEED))
    exact = tiny(name).denoise(x, NoiseLevel(0.7, 700.0, 650.0), placed)
    loading = Loading(frozenset({"transformer"}), dtype=torch.bfloat16)
    found = load_hunyuan(tiny(name).geometry, checkpoint(name), loading).denoise(x, NoiseLevel(0.7, 700.0, 650.0), placed)
    assert found.dtype == torch.float32
    stock_v = placed.pin(_stock_forward(name, x, 700.0, placed))
    assert (found - exact)[:, :, 1:].norm() < 1.1 * (stock_v - exact)[:, :, 1:].norm()


def _stock_forward(name: str, x: torch.Tensor, timestep: float, placed: Placed) -> torch.Tensor:
    """diffusers' own forward in bfloat16."""
    half = torch.bfloat16
    weights = HunyuanVideoTransformer3DModel.from_pretrained(checkpoint(name) / "transformer", torch_dtype=half)
    text, pooled = (placed.condition.positive.tensors[key].to(half) for key in ("text", "pooled"))
    guidance = torch.tensor([GUIDANCE], dtype=half) * 1000 if weights.config.guidance_embeds else None
    told = x.to(half), torch.tensor([timestep]), text, torch.ones(text.shape[:2], dtype=torch.long), pooled
    return weights(*told, guidance=guidance, return_dict=False)[0].float()


@pytest.mark.parametrize("num_frames", [1, 2, 4, 5, 9], ids=lambda n: f"{n} latent frames")
@torch.no_grad()
def test_decoding_equals_the_stock_autoencoder(num_frames: int) -> None:
    vae = AutoencoderKLHunyuanVideo.from_pretrained(checkpoint(T2V) / "vae")
    latent = torch.randn(1, 16, num_frames, 4, 6, generator=torch.Generator().manual_seed(1)) * 0.3
    expected = vae.decode(latent / vae.config.scaling_factor).sample.clamp(-1, 1)
    assert expected.std() > 0.1
    assert torch.allclose(tiny(T2V).pixels(latent), expected, atol=1e-5)
    frames = torch.cat([torch.from_numpy(frames) for frames in tiny(T2V).decode(latent)])
    assert frames.shape == (4 * (num_frames - 1) + 1, 32, 48, 3)
    assert (frames.float() - (expected[0].permute(1, 2, 3, 0) + 1) * 127.5).abs().max() < 0.51


@pytest.mark.parametrize("chunk", [1, 3000, 8000], ids=lambda n: f"{n} pixels at once")
def test_convolutions_give_the_same_however_many_frames_they_take_at_once(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    latent = torch.randn(1, 16, 5, 4, 6, generator=torch.Generator().manual_seed(1)) * 0.3
    whole = tiny(T2V).pixels(latent)
    monkeypatch.setattr("stages.models.hunyuan_vae.CHUNK_PIXELS", chunk)
    assert torch.allclose(tiny(T2V).pixels(latent), whole, atol=1e-5)


@torch.no_grad()
def test_decoding_in_tiles_equals_the_stock_autoencoder_with_tiling(monkeypatch: pytest.MonkeyPatch) -> None:
    vae = AutoencoderKLHunyuanVideo.from_pretrained(checkpoint(T2V) / "vae")
    vae.enable_tiling()
    latent = torch.randn(1, 16, 2, 2, 34, generator=torch.Generator().manual_seed(1)) * 0.3
    expected = vae.decode(latent / vae.config.scaling_factor).sample.clamp(-1, 1)
    whole = tiny(T2V).pixels(latent)
    monkeypatch.setattr("stages.models.hunyuan_vae.needs_tiles", lambda vae, z: True)
    assert torch.allclose(tiny(T2V).pixels(latent), expected, atol=1e-5)
    assert not torch.allclose(whole, expected, atol=1e-2)


def test_a_low_rank_adapter_equals_the_stock_pipelines(tmp_path: Path) -> None:
    transformer = HunyuanVideoTransformer3DModel.from_pretrained(checkpoint(T2V) / "transformer")
    draw = torch.Generator().manual_seed(0)
    state = {}
    for layer in (
        "transformer_blocks.0.attn.to_q",
        "transformer_blocks.1.ff_context.net.2",
        "single_transformer_blocks.1.proj_mlp",
    ):
        rows, columns = transformer.get_submodule(layer).weight.shape
        state[f"transformer.{layer}.lora_A.weight"] = torch.randn(2, columns, generator=draw) * 0.3
        state[f"transformer.{layer}.lora_B.weight"] = torch.randn(rows, 2, generator=draw) * 0.3
    save_file(state, tmp_path / "adapter.safetensors")
    asked, pipeline = request(T2V), stock(T2V)
    plain = stock_run(T2V, asked)
    pipeline.load_lora_weights(str(tmp_path), weight_name="adapter.safetensors", adapter_name="a")
    try:
        pipeline.set_adapters("a", 0.7)
        expected = stock_run(T2V, asked)
    finally:
        pipeline.unload_lora_weights()
    ours = run(tiny(T2V, Lora(str(tmp_path / "adapter.safetensors"), 0.7)), asked)
    assert (expected - plain).abs().max() > 1e-2
    assert (ours - expected).abs().max() < TINY_DIFFERENCE
