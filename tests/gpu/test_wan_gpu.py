"""The adapter on a GPU: the same function as on the CPU, up to the arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from orchestrator.types import Grid, VideoShape
from stages.models.base import Model, Request, load
from stages.resize import nested_axes
from stages.sampling import NoiseLevel, initial_noise
from tests import tiny

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

NAME = tiny.GEOMETRY.name
DEVICES = ("cpu", "cuda")


@pytest.fixture(scope="module")
def loaded() -> dict[str, Model]:
    return {device: load(NAME, str(tiny.checkpoint()), device) for device in DEVICES}


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("grid", [(3, 8, 8), (5, 12, 12), (11, 18, 18)])
def test_the_velocity_on_a_gpu_equals_the_cpus(loaded: dict[str, Model], grid: Grid, guidance: float) -> None:
    asked = Request("a red circle on a plain background", VideoShape(41, 144, 144), guidance, "blue square")
    found = {}
    for device, each in loaded.items():
        placed = each.place(each.encode(asked), nested_axes((grid,))[0], "index")
        noise = initial_noise(grid, each.geometry.latent_channels, seed=1).to(each.device)
        found[device] = each.denoise(noise, NoiseLevel(0.7, 700.0, 600.0), placed).cpu()
    torch.testing.assert_close(found["cuda"], found["cpu"], atol=2e-3, rtol=2e-3)


def test_the_decoded_frames_on_a_gpu_equal_the_cpus_within_two_levels(loaded: dict[str, Model]) -> None:
    latent = initial_noise((4, 8, 8), tiny.GEOMETRY.latent_channels, seed=1)
    cpu, gpu = (np.concatenate(list(loaded[device].decode(latent))).astype(int) for device in DEVICES)
    assert cpu.shape == gpu.shape == (13, 64, 64, 3)
    assert cpu.std() > 1
    assert abs(cpu - gpu).max() <= 2
