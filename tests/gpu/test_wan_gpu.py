"""The adapter on a GPU: the same function as on the CPU, up to the arithmetic."""

from __future__ import annotations

import pytest
import torch

from orchestrator.geometry import model
from stages.models.base import load
from tests import tiny

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

GRIDS = [(3, 8, 8), (5, 12, 12), (11, 18, 18)]


@pytest.mark.parametrize("grid", GRIDS)
def test_the_velocity_on_a_gpu_equals_the_cpus(grid: tuple[int, int, int]) -> None:
    x = torch.randn(1, model("wan-mini").latent_channels, *grid, generator=torch.Generator().manual_seed(0))
    found = {}
    for device in ("cpu", "cuda"):
        loaded = load("wan-mini", str(tiny.checkpoint()), device)
        condition = loaded.encode_text("a red circle on a plain background", "", 1.0)
        found[device] = loaded.denoise(x.to(loaded.device), 0.7, condition).cpu()
    torch.testing.assert_close(found["cuda"], found["cpu"], atol=2e-3, rtol=2e-3)


def test_the_decoded_frames_on_a_gpu_equal_the_cpus_within_two_levels() -> None:
    latent = torch.randn(1, model("wan-mini").latent_channels, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    cpu, gpu = (load("wan-mini", str(tiny.checkpoint()), device).decode(latent).astype(int) for device in ("cpu", "cuda"))
    assert abs(cpu - gpu).max() <= 2
