"""Each metric as a property of frames: however they are cut, of identical videos, against a formula written down anew."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.metrics import latents, perceptual
from experiments.metrics.latents import LatentCosine
from experiments.metrics.likeness import FRAMES_AT_ONCE, PSNR_CAP_DB, Likeness, compare
from experiments.metrics.names import GROUPS, METRICS, resolve
from experiments.metrics.perceptual import Perceptual, distances, network
from experiments.metrics.steadiness import Flicker, Motion, Static
from orchestrator.metrics_config import MetricName
from tests.fakerun import moving_square


def fed(meter: Any, video: np.ndarray, reference: np.ndarray, cuts: list[int]) -> dict[str, float]:
    for begin, end in zip([0, *cuts], [*cuts, len(video)], strict=True):
        if end > begin:
            meter.add(video[begin:end], reference[begin:end])
    values: dict[str, float] = meter.values()
    return values


def piecewise_latent(video: Any) -> Any:
    return video.mean((3, 4)) + video[:, :, :1].std()


METERS: dict[str, Callable[[], Any]] = {
    "likeness": Likeness,
    "latent cosine": lambda: LatentCosine(piecewise_latent),
    "flicker": Flicker,
    "motion": lambda: Motion(16),
    "static": Static,
}


@pytest.mark.parametrize("name", METERS)
@settings(deadline=None, max_examples=10)
@given(data=st.data())
def test_a_video_measures_the_same_however_its_frames_are_cut(name: str, data: st.DataObject) -> None:
    num_frames = data.draw(st.integers(5, 37))
    cuts = sorted(data.draw(st.lists(st.integers(0, num_frames), max_size=6)))
    video, reference = moving_square(num_frames, 24, noise=20), moving_square(num_frames, 24)
    assert fed(METERS[name](), video, reference, cuts) == pytest.approx(fed(METERS[name](), video, reference, []), rel=1e-5)


def test_identical_videos_are_as_close_as_can_be() -> None:
    video = moving_square(noise=20)
    assert compare(video, video.copy()) == {"psnr": PSNR_CAP_DB, "ssim": pytest.approx(1.0, abs=1e-6)}
    assert fed(LatentCosine(piecewise_latent), video, video, []) == {"latent_cosine": pytest.approx(1.0)}


def test_psnr_of_a_constant_offset_is_its_closed_form() -> None:
    dark = np.full((3, 32, 32, 3), 100, np.uint8)
    assert compare(dark + 10, dark)["psnr"] == pytest.approx(20 * np.log10(255 / 10), abs=1e-3)


@settings(deadline=None, max_examples=10)
@given(st.integers(1, 20), st.integers(21, 60))
def test_more_noise_is_never_closer_to_the_reference(low: int, high: int) -> None:
    clean = moving_square(4)
    near, far = (compare(moving_square(4, noise=noise), clean) for noise in (low, high))
    assert near["psnr"] > far["psnr"]
    assert near["ssim"] > far["ssim"]


def test_figures_are_means_over_frames() -> None:
    clean, noisy = moving_square(2 * FRAMES_AT_ONCE + 1), moving_square(2 * FRAMES_AT_ONCE + 1, noise=30)
    frames = [compare(noisy[i : i + 1], clean[i : i + 1]) for i in range(len(clean))]
    for name, value in compare(noisy, clean).items():
        assert value == pytest.approx(np.mean([frame[name] for frame in frames]), abs=1e-4)


@pytest.mark.parametrize(
    "other",
    [moving_square(8), moving_square(9, size=32), moving_square(9).astype(np.float32), moving_square(9)[..., :1]],
)
def test_videos_that_cannot_be_compared_are_refused(other: np.ndarray) -> None:
    with pytest.raises(ValueError, match="both must be"):
        compare(other, moving_square(9) if other.shape[-1] == 3 else moving_square(9)[..., :1])


def vbench_flicker(frames: list[np.ndarray]) -> float:
    """What the package computes of one video, written down from its definition: float32 throughout, one mean per pair."""
    pairs = [np.mean(np.abs(np.float32(a) - np.float32(b))) for a, b in itertools.pairwise(frames)]
    return float((255.0 - np.mean(np.array(pairs)).item()) / 255.0)


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 12), st.integers(0, 200), st.integers(0, 2**31))
def test_flicker_is_vbench_temporal_flickering_to_the_last_bit(num_frames: int, noise: int, seed: int) -> None:
    video = moving_square(num_frames, 32, noise=noise, seed=seed)
    assert fed(Flicker(), video, video, [1])["flicker"] == vbench_flicker(list(video))


def test_a_frozen_video_neither_flickers_nor_moves_and_is_static() -> None:
    still = np.repeat(moving_square(1), 6, axis=0)
    values = [fed(meter(), still, still, []) for meter in (Flicker, METERS["motion"], Static)]
    assert values == [{"flicker": 1.0}, {"motion": 0.0}, {"static": 1.0}]


@pytest.mark.parametrize("shift", [1, 2, 3])
def test_motion_is_the_distance_that_the_picture_moves_a_second(shift: int) -> None:
    ramps = 8 * np.abs(np.arange(96) % 24 - 12)  # brightness changes by 8 a pixel, in one direction or the other
    frames = [np.roll(ramps, shift * number) for number in range(6)]
    video = np.stack([np.broadcast_to(frame[None, :, None], (48, 96, 3)) for frame in frames]).astype(np.uint8)
    assert fed(Motion(fps=16), video, video, [])["motion"] == pytest.approx(shift * 16 / 48, rel=0.1)


def test_a_codec_s_noise_leaves_a_clip_static_and_a_small_thing_that_moves_does_not() -> None:
    grain = np.random.default_rng(0).integers(-2, 3, (6, 48, 48, 3))
    still = (np.repeat(moving_square(1), 6, axis=0) + grain).clip(0, 255).astype(np.uint8)
    moved = still.copy()
    moved[5, 20:24, 20:24] = 255
    assert fed(Static(), still, still, []) == {"static": 1.0}
    assert fed(Static(), moved, moved, []) == {"static": 0.0}


def test_latents_are_encoded_in_pieces_of_whole_latent_frames_that_share_a_frame() -> None:
    seen: list[list[int]] = []

    def encode(video: Any) -> Any:
        seen.append([round(float(frame) * 127.5 + 127.5) for frame in video[0, 0, :, 0, 0]])
        return video

    numbered = np.arange(1, 44, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    fed(LatentCosine(encode), numbered, numbered, [5, 20])
    assert seen[::2] == [list(range(1, 18)), list(range(17, 34)), list(range(33, 42))]


@pytest.fixture
def backbone(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A random AlexNet as torchvision stores it, where LPIPS looks for it."""
    import torch

    torch.manual_seed(0)
    layers = perceptual.features()
    path = tmp_path / perceptual.BACKBONE
    torch.save({**{f"features.{k}": v for k, v in layers.state_dict().items()}, "classifier.1.bias": torch.zeros(3)}, path)
    monkeypatch.setenv(perceptual.FOLDER, str(tmp_path))
    return path


def test_lpips_is_that_of_torchmetrics_with_the_same_weights(backbone: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    import torchmetrics.functional.image.lpips as theirs

    layers, heads = network(backbone, "cpu")
    monkeypatch.setattr(theirs, "_get_tv_model_features", lambda net, pretrained: layers)
    stock = theirs._NoTrainLpips(net="alex")
    torch.manual_seed(1)
    a, b = torch.rand(3, 3, 64, 80), torch.rand(3, 3, 64, 80)
    expected = stock(a, b, normalize=True).squeeze()
    torch.testing.assert_close(distances(a, b, layers, heads), expected, rtol=1e-5, atol=1e-7)


def test_lpips_is_a_mean_over_frames_zero_for_identical_videos(backbone: Any) -> None:
    video, reference = moving_square(5, noise=40), moving_square(5)
    frames = [fed(Perceptual(), video[i : i + 1], reference[i : i + 1], [])["lpips"] for i in range(5)]
    assert fed(Perceptual(), video, reference, [2])["lpips"] == pytest.approx(np.mean(frames), rel=1e-5)
    assert min(frames) > 0
    assert fed(Perceptual(), video, video, []) == {"lpips": 0.0}
    assert perceptual.why_not() is None


def test_without_its_weights_lpips_says_where_they_belong_and_wrong_ones_are_named(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(perceptual.FOLDER, str(tmp_path))
    told = perceptual.why_not() or ""
    assert str(tmp_path / perceptual.BACKBONE) in told
    assert perceptual.SOURCE in told
    assert perceptual.FOLDER in told
    (tmp_path / perceptual.BACKBONE).write_bytes(b"an error page")
    with pytest.raises(ValueError, match="does not hold AlexNet's weights"):
        Perceptual()


def test_too_small_frames_are_refused_by_lpips(backbone: Any) -> None:
    with pytest.raises(ValueError, match="24x24 are too small"):
        fed(Perceptual(), moving_square(2, 24), moving_square(2, 24), [])


def test_the_embedded_model_s_vae_is_always_there_and_weights_that_are_not_are_named(tmp_path: Any) -> None:
    assert latents.why_not("wan-mini", None) is None
    assert "not on this machine" in (latents.why_not("wan2.1-1.3b", str(tmp_path / "nowhere")) or "")
    assert "not on this machine" in (latents.why_not("wan2.1-1.3b", "nobody/nothing") or "")
    assert "no whole VAE" in (latents.why_not("wan2.1-1.3b", str(tmp_path)) or "")


def test_the_embedded_model_s_latents_are_those_of_its_stock_vae() -> None:
    import torch
    from diffusers import AutoencoderKLWan

    from stages.models import embedded

    vae = AutoencoderKLWan.from_pretrained(embedded.FOLDER / "vae")
    video = torch.rand(1, 3, 5, 32, 32) * 2 - 1
    mean, std = (torch.tensor(rows).view(1, -1, 1, 1, 1) for rows in (vae.config.latents_mean, vae.config.latents_std))
    with torch.inference_mode():
        expected = (vae.encode(video).latent_dist.mode() - mean) / std
        torch.testing.assert_close(latents.encoder("wan-mini", None, "cpu")(video), expected, rtol=1e-3, atol=1e-3)


def test_names_of_the_spec_are_those_that_there_are() -> None:
    assert set(MetricName.__args__) == {*METRICS, *GROUPS}
    assert resolve(["flicker", "reference", "psnr"]) == ("psnr", "ssim", "lpips", "latent_cosine", "flicker")
    with pytest.raises(ValueError, match=r"'lpip' is not known; choices: all, reference, free, semantic, psnr"):
        resolve(["psnr", "lpip"])


@pytest.mark.parametrize("model", ["hunyuanvideo", "hunyuanvideo-1.5", "wan2.2-ti2v-5b"])
def test_latents_of_every_family_are_those_of_its_stock_vae(model: str) -> None:
    import diffusers
    import torch

    from orchestrator.geometry import model as geometry_of
    from stages.models.checkpoint import FAMILIES
    from tests.checkpoints import checkpoint

    folder = checkpoint(model)
    vae = getattr(diffusers, FAMILIES[geometry_of(model).family].vae).from_pretrained(folder / "vae")
    torch.manual_seed(0)
    video = torch.rand(1, 3, 5, 64, 64) * 2 - 1
    with torch.inference_mode():
        stock = vae.encode(video).latent_dist.mode()
        ours = latents.encoder(model, str(folder), "cpu")(video)
    assert ours.shape == stock.shape
    scale = getattr(vae.config, "scaling_factor", None)
    if scale is not None:
        torch.testing.assert_close(ours, stock * scale, rtol=1e-3, atol=1e-4)
    else:
        mean, std = (torch.tensor(rows).view(1, -1, 1, 1, 1) for rows in (vae.config.latents_mean, vae.config.latents_std))
        torch.testing.assert_close(ours, (stock - mean) / std, rtol=1e-3, atol=1e-3)
