"""VGDFR's parts on a GPU: the same similarities, choices, velocities and restored frames as on the CPU, up to the arithmetic."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from orchestrator.dvg_config import DvgConfig
from orchestrator.types import Merged, VideoShape
from orchestrator.vgdfr import num_kept
from stages.denoise import run_stages, start
from stages.models.base import Model, Positions, Request, load
from stages.planners import make_planner
from stages.resize import nested_axes
from stages.restore import Motion, restored
from stages.sampling import NoiseLevel, initial_noise
from stages.similarity import likeness

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

NAME = "wan-mini"
DEVICES = ("cpu", "cuda")
SHAPE = VideoShape(41, 144, 144)


@pytest.fixture(scope="module")
def loaded() -> dict[str, Model]:
    """The model that ships, with the VAE's encoder."""
    parts = frozenset({"text", "transformer", "vae", "encoder"})
    return {device: load(NAME, None, device, parts) for device in DEVICES}


def test_a_clip_is_merged_alike(loaded: dict[str, Model]) -> None:
    ends = {}
    for device, own in loaded.items():
        settings = {"similarity_threshold": 0.75, "before_compression_steps": 3}
        planner = make_planner("vgdfr", own.geometry, SHAPE, 10, None, DvgConfig(), settings=settings)
        boundary = start(own, planner, own.encode(Request("a red circle moves left", SHAPE, 1.0)), 3)
        ends[device], _ = run_stages(own, planner, boundary, 2)
    cpu, gpu = (ends[device] for device in DEVICES)
    assert cpu.decision is not None
    assert gpu.decision is not None
    assert cpu.decision.merged == gpu.decision.merged
    assert cpu.decision.merged is not None
    torch.testing.assert_close(gpu.x.cpu(), cpu.x, atol=5e-2, rtol=5e-2)


def test_similarity_does_not_depend_on_the_device() -> None:
    video = torch.rand(1, 3, 9, 270, 480, generator=torch.Generator().manual_seed(0)) * 0.1 + 0.5
    for cpu, gpu in zip(likeness(video, 3), likeness(video.cuda(), 3), strict=True):
        assert gpu == pytest.approx(cpu, abs=1e-4)


def test_layers_are_told_the_same_places(loaded: dict[str, Model]) -> None:
    grid, told = (3, 8, 8), Positions((0, 4, 6), frozenset({1, 3}))
    found = {}
    for device, own in loaded.items():
        placed = own.place(own.encode(Request("a blue square", SHAPE, 1.0)), nested_axes((grid,))[0], "index")
        x = initial_noise(grid, own.geometry.latent_channels, seed=1).to(own.device)
        level = NoiseLevel(0.7, 700.0, 600.0)
        found[device] = own.denoise(x, level, dataclasses.replace(placed, positions=told)).cpu()
        assert (found[device] - own.denoise(x, level, placed).cpu()).abs().max() > 1e-3
    torch.testing.assert_close(found["cuda"], found["cpu"], atol=2e-3, rtol=2e-3)


def test_restored_frames_are_the_cpus_within_two_levels() -> None:
    merged = Merged(25, (1, 9), ())
    ramp = torch.arange(96).view(1, 1, 96) + 4 * torch.arange(num_kept(merged)).view(-1, 1, 1)
    frames = (ramp % 96 * 2).to(torch.uint8).expand(-1, 64, -1).unsqueeze(-1).repeat(1, 1, 1, 3).numpy()
    cpu, gpu = (next(iter(restored([frames], merged, Motion(), torch.device(device)))) for device in DEVICES)
    assert cpu.shape == (25, 64, 96, 3)
    assert abs(cpu.astype(int) - gpu.astype(int)).max() <= 2
