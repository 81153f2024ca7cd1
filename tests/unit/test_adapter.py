"""What the adapters of all families share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from orchestrator.geometry import model
from orchestrator.types import VideoShape
from stages.models.adapter import to_frames
from stages.models.base import Request, load
from stages.video import write_mp4
from tests.checkpoints import checkpoint, copied, first_frame

FAMILIES = ("wan2.1-1.3b", "hunyuanvideo", "hunyuanvideo-1.5")


def test_frames_are_the_nearest_bytes_height_before_width() -> None:
    video = torch.linspace(-1, 1, 3 * 2 * 4 * 5).reshape(1, 3, 2, 4, 5)
    frames = to_frames(video)
    assert frames.shape == (2, 4, 5, 3)
    for place in ((0, 0, 0, 0), (1, 3, 4, 2), (1, 0, 3, 1)):
        frame, row, column, colour = place
        assert abs(frames[place] - (float(video[0, colour, frame, row, column]) + 1) * 127.5) <= 0.5 + 1e-4


@pytest.mark.parametrize("name", FAMILIES)
def test_a_video_that_is_not_finite_is_refused_and_leaves_no_file(name: str, tmp_path: Path) -> None:
    folder = copied(name, tmp_path)
    (file,) = (folder / "vae").glob("*.safetensors")
    weights = load_file(file)
    weights[next(key for key in weights if key.startswith("decoder.conv_out") and key.endswith("bias"))][0] = torch.nan
    save_file(weights, file, metadata={"format": "pt"})
    channels = model(name).latent_channels
    broken = load(name, str(folder), parts=frozenset({"vae"}))
    with pytest.raises(RuntimeError, match="decoded video is not finite"):
        write_mp4(broken.decode(torch.zeros(1, channels, 2, 4, 4)), tmp_path / "a.mp4", 8)
    assert not list(tmp_path.glob("*a.mp4*"))


@pytest.mark.parametrize("name", ["wan2.1-i2v-14b", "hunyuanvideo-i2v", "hunyuanvideo-1.5-i2v"])
def test_an_image_is_seen_through_the_processors_on_pil(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are on torchvision where that is installed, and give other tokens."""
    for other in ("CLIPImageProcessor", "SiglipImageProcessor"):
        monkeypatch.setattr(transformers, other, None, raising=False)
    image = str(first_frame(tmp_path / "f.png"))
    seen = load(name, str(checkpoint(name)), parts=frozenset({"text"}))
    assert seen.encode(Request("a", VideoShape(5, 32, 32, 8), 1.0, image=image)).latent is not None
