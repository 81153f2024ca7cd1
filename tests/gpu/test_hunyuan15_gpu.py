"""HunyuanVideo-1.5 on a GPU: the same function as on the CPU, up to the arithmetic."""

from __future__ import annotations

import pytest
import torch

from orchestrator.geometry import model
from orchestrator.types import VideoShape
from stages.models import hunyuan15_vae
from stages.models.base import Loading, Request
from stages.models.hunyuan15 import Hunyuan15Model, load_hunyuan15
from stages.resize import nested_axes
from stages.sampling import NoiseLevel, initial_noise
from tests.checkpoints import checkpoint

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

NAME = "hunyuanvideo-1.5"


@pytest.fixture(scope="module")
def loaded() -> dict[str, Hunyuan15Model]:
    devices = (torch.device("cpu"), torch.device("cuda"))
    return {on.type: load_hunyuan15(model(NAME), checkpoint(NAME), Loading(device=on)) for on in devices}


@pytest.mark.parametrize("channels", [8, 128, 1024])
@pytest.mark.parametrize("has_tail", [False, True])
@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_convolution_reads_equals_the_cpus(channels: int, has_tail: bool, norms: bool, dtype: torch.dtype) -> None:
    x = torch.randn(1, channels, 3, 5, 37, dtype=dtype).contiguous(memory_format=hunyuan15_vae.LAYOUT)
    gamma = torch.randn(channels, 1, 1, 1, dtype=dtype) if norms else None
    tail = torch.randn(1, channels, 2, 7, 39, dtype=dtype) if has_tail else None
    expected = hunyuan15_vae.ready(x.float(), gamma if gamma is None else gamma.float(), tail if tail is None else tail.float())
    found = hunyuan15_vae.ready(x.cuda(), gamma if gamma is None else gamma.cuda(), tail if tail is None else tail.cuda())
    assert found.dtype == dtype
    close = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(found.cpu().float(), expected, atol=close, rtol=close)


def test_the_decoded_video_equals_the_cpus(loaded: dict[str, Hunyuan15Model], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hunyuan15_vae, "MAX_CHUNK_PIXELS", 2 * 4 * 48 * 80)
    latent = initial_noise((7, 3, 5), 32, seed=1)
    cpu, gpu = (loaded[device].pixels(latent).cpu() for device in ("cpu", "cuda"))
    torch.testing.assert_close(gpu, cpu, atol=5e-3, rtol=5e-3)


def test_the_velocity_equals_the_cpus(loaded: dict[str, Hunyuan15Model]) -> None:
    grid, found = (3, 4, 6), {}
    condition = loaded["cpu"].encode(Request('a sign says "open"', VideoShape(9, 64, 96, 24), 6.0, "dull"))
    for device, each in loaded.items():
        placed = each.place(condition, nested_axes((grid,))[0], "index")
        noise = initial_noise(grid, 32, seed=1).to(each.device)
        found[device] = each.denoise(noise, NoiseLevel(0.64, 640.0, 512.0), placed).cpu()
    torch.testing.assert_close(found["cuda"], found["cpu"], atol=2e-3, rtol=2e-3)
