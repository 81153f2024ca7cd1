"""HunyuanVideo's adapter on reduced grids: DVG runs, the first frame holds, and wrong weights and images are refused."""

from __future__ import annotations

import dataclasses
import shutil
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from stages.compiling import maybe_compile, num_graphs
from stages.models.base import Condition, Request, load
from stages.models.hunyuan import HunyuanModel
from stages.models.hunyuan_vae import needs_tiles
from stages.resize import nested_axes
from stages.sampling import NoiseLevel
from tests.checkpoints import checkpoint, copied, edit_json
from tests.unit.hunyuan_runs import GUIDANCE, I2V, PROMPT, SHAPE, T2V, on_whole, photo, request, run, tiny

SMALL_GRID = (3, 6, 8)
LEVEL = NoiseLevel(0.9, 900.0, 800.0)


def noise(model: HunyuanModel, grid: tuple[int, int, int]) -> torch.Tensor:
    return torch.randn(1, model.geometry.latent_channels, *grid, generator=torch.Generator().manual_seed(0))


def small_axes(model: HunyuanModel) -> tuple[tuple[int, ...], ...]:
    return nested_axes((SMALL_GRID, model.geometry.latent_grid(SHAPE)))[0]


@pytest.mark.parametrize("name", [T2V, I2V])
def test_dvg_ends_on_the_full_grid_with_finite_latents(name: str) -> None:
    latent = run(tiny(name), request(name), "dvg", 0.5, 12)
    assert latent.shape[2:] == tiny(name).geometry.latent_grid(SHAPE)
    assert latent.isfinite().all()


@pytest.mark.parametrize("mode", ["index", "encode"])
def test_dvg_holds_the_first_frame_at_every_step_of_every_grid(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = tiny(I2V), []
    denoise = model.denoise

    def spy(x: torch.Tensor, level: NoiseLevel, placed: object) -> torch.Tensor:
        seen.append((x, placed))
        return denoise(x, level, placed)

    monkeypatch.setattr(model, "denoise", spy)
    latent = run(model, request(I2V), "dvg", 0.5, 12, image_condition=mode)
    assert len({x.shape for x, _ in seen}) > 2
    for x, placed in seen:
        assert placed.pinned.shape == x[:, :, :1].shape
        assert torch.equal(x[:, :, :1], placed.pinned)
    expected = model.encode(request(I2V)).latent
    assert torch.equal(latent[:, :, :1], expected)


def test_an_indexed_first_frame_is_the_full_one_at_the_stages_cells() -> None:
    model = tiny(I2V)
    condition, axes = model.encode(request(I2V)), small_axes(model)
    assert condition.latent is not None
    pinned = model.place(condition, axes, "index").pinned
    assert pinned is not None
    assert torch.equal(pinned, condition.latent[:, :, :, axes[1]][..., axes[2]])


def test_an_encoded_first_frame_is_the_image_at_the_stages_size() -> None:
    model = tiny(I2V)
    condition, axes = model.encode(request(I2V)), small_axes(model)
    indexed, encoded = (model.place(condition, axes, mode).pinned for mode in ("index", "encode"))
    assert indexed is not None
    assert encoded is not None
    assert encoded.shape == indexed.shape == (1, 16, 1, *SMALL_GRID[1:])
    assert not torch.allclose(indexed, encoded, atol=1e-3)
    assert torch.equal(encoded, model.place(condition, axes, "encode").pinned)


def test_both_modes_give_the_full_grid_the_same_first_frame() -> None:
    model = tiny(I2V)
    condition, axes = model.encode(request(I2V)), nested_axes((model.geometry.latent_grid(SHAPE),))[0]
    assert torch.equal(model.place(condition, axes, "index").pinned, model.place(condition, axes, "encode").pinned)


def test_image_to_video_starts_from_noise_with_a_trace_of_the_image_in_every_frame() -> None:
    model = tiny(I2V)
    placed = on_whole(model, request(I2V))
    drawn = noise(model, model.geometry.latent_grid(SHAPE))
    x = model.start(drawn, placed)
    assert placed.pinned is not None
    assert torch.equal(x[:, :, :1], placed.pinned)
    assert torch.allclose(x[:, :, 1:], 0.999 * drawn[:, :, 1:] + 0.001 * placed.pinned, atol=1e-6)
    assert torch.equal(tiny(T2V).start(drawn, on_whole(tiny(T2V), request(T2V))), drawn)


def test_a_condition_survives_the_way_to_another_process() -> None:
    for name in (T2V, I2V):
        model = tiny(name)
        condition = model.encode(request(name))
        arrived = Condition.unpack(condition.pack())
        x = noise(model, model.geometry.latent_grid(SHAPE))
        axes = nested_axes((model.geometry.latent_grid(SHAPE),))[0]
        here, there = (model.denoise(x, LEVEL, model.place(c, axes, "index")) for c in (condition, arrived))
        assert torch.equal(here, there)


def test_what_a_prompt_decides_is_computed_once_and_forgotten_with_it() -> None:
    model = tiny(T2V)
    placed = on_whole(model, request(T2V))
    x = noise(model, model.geometry.latent_grid(SHAPE))
    model.denoise(x, LEVEL, placed)
    memory = weakref.ref(model._prompts[placed.condition.positive])
    model.denoise(x, NoiseLevel(0.5, 500.0, 400.0), placed)
    assert model._prompts[placed.condition.positive] is memory()
    del placed
    assert memory() is None


def test_a_grid_that_is_no_multiple_of_the_patch_is_refused() -> None:
    with pytest.raises(ValueError, match="not a multiple of the patch"):
        tiny(T2V).denoise(noise(tiny(T2V), (3, 5, 8)), LEVEL, on_whole(tiny(T2V), request(T2V)))


@pytest.mark.parametrize("parts", [{"text"}, {"transformer"}, {"vae"}, {"transformer", "vae"}])
def test_a_worker_asked_for_a_part_it_did_not_load_says_so(parts: set[str]) -> None:
    model = load(I2V, str(checkpoint(I2V)), parts=frozenset(parts))
    whole = tiny(I2V)
    work = {
        "text": lambda: model.encode(request(I2V)),
        "transformer": lambda: model.denoise(noise(whole, (5, 12, 16)), LEVEL, on_whole(whole, request(I2V))),
        "vae": lambda: model.pixels(noise(whole, SMALL_GRID)),
    }
    for part, do in work.items():
        if part in parts:
            do()
        else:
            with pytest.raises(RuntimeError, match=f"without its '{part}' part"):
                do()


def test_an_image_must_be_given_to_one_model_and_must_not_to_the_other() -> None:
    with pytest.raises(ValueError, match="hunyuanvideo-i2v makes video from an image"):
        tiny(I2V).encode(Request(PROMPT, SHAPE, GUIDANCE))
    with pytest.raises(ValueError, match="hunyuanvideo take no image"):
        tiny(T2V).encode(Request(PROMPT, SHAPE, GUIDANCE, image=photo()))
    with pytest.raises(ValueError, match=r"'gone\.png' does not exist"):
        tiny(I2V).encode(Request(PROMPT, SHAPE, GUIDANCE, image="gone.png"))


def test_weights_of_the_other_task_are_refused_by_both_names() -> None:
    with pytest.raises(ValueError, match=r"image_condition_type None; hunyuanvideo-i2v needs token_replace"):
        load(I2V, str(checkpoint(T2V)))
    with pytest.raises(ValueError, match=r"image_condition_type token_replace; hunyuanvideo needs None"):
        load(T2V, str(checkpoint(I2V)))


@pytest.mark.parametrize(
    "part,key,value,message",
    [
        ("transformer", "in_channels", 8, "in_channels 8; hunyuanvideo needs 16"),
        ("transformer", "patch_size", 4, r"patch_size \(1, 4, 4\); hunyuanvideo needs \(1, 2, 2\)"),
        ("transformer", "_class_name", "WanTransformer3DModel", "needs HunyuanVideoTransformer3DModel"),
        ("vae", "latent_channels", 4, "latent_channels 4; hunyuanvideo needs 16"),
        ("vae", "spatial_compression_ratio", 16, "spatial_compression_ratio 16; hunyuanvideo needs 8"),
    ],
)
def test_weights_of_other_sizes_are_refused(tmp_path: Path, part: str, key: str, value: object, message: str) -> None:
    folder = copied(T2V, tmp_path)
    edit_json(folder / part / "config.json", **{key: value})
    with pytest.raises(ValueError, match=message):
        load(T2V, str(folder))


def test_a_missing_component_is_named(tmp_path: Path) -> None:
    folder = copied(T2V, tmp_path)
    shutil.rmtree(folder / "text_encoder_2")
    with pytest.raises(ValueError, match="text_encoder_2"):
        load(T2V, str(folder))


def test_a_tokenizer_that_does_not_fit_the_image_template_is_refused() -> None:
    text = tiny(I2V).parts.text
    wrong = dataclasses.replace(text, tokenizer=stray_tokenizer(text.tokenizer))  # type: ignore[union-attr, type-var]
    with pytest.raises(ValueError, match="where the template has the image"):
        wrong(PROMPT, None)


def stray_tokenizer(tokenizer: object) -> object:
    def shifted(texts: list[str], **options: object) -> object:
        return tokenizer([f"a {text}" for text in texts], **options)  # type: ignore[operator]

    return shifted


@pytest.mark.parametrize("name", [T2V, I2V])
def test_one_compiled_program_per_kind_of_block_serves_all_layers_grids_and_prompts(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny(name)
    work = []
    for prompt, grid in ((PROMPT, SMALL_GRID), ("dog", (5, 12, 16)), ("a dog runs", (4, 8, 12))):
        placed = model.place(model.encode(request(name, prompt)), nested_axes((grid,))[0], "index")
        work.append((noise(model, grid), LEVEL, placed))
    expected = [model.denoise(*step) for step in work]
    for kind in ("dual_block", "single_block"):
        plain = getattr(model.parts.transformer, kind)
        monkeypatch.setattr(model.parts.transformer, kind, maybe_compile(plain, True, backend="eager"))
    before = num_graphs()
    for step, velocity in zip(work, expected, strict=True):
        assert torch.allclose(model.denoise(*step), velocity, atol=1e-5)
    assert num_graphs() - before == 2


@pytest.mark.parametrize("device,free_gb,tiles", [("cpu", 0, False), ("cuda", 4, True), ("cuda", 100, False)])
def test_a_run_of_frames_is_cut_into_tiles_when_memory_is_short(
    device: str, free_gb: int, tiles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.models.hunyuan_vae.free_bytes", lambda device: free_gb * 10**9)
    decoder = tiny(T2V).parts.decoder
    assert decoder is not None
    assert needs_tiles(decoder.vae, SimpleNamespace(device=torch.device(device), shape=(1, 16, 5, 90, 160))) is tiles  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [T2V, I2V])
def test_no_prompt_has_more_tokens_than_the_catalogue_says(name: str) -> None:
    model = tiny(name)
    num = model.encode(request(name, "cat " * 400)).positive.tensors["text"].shape[1]
    assert 256 <= num <= model.geometry.text_tokens
