"""Video decoded by all GPUs of a host over NCCL: that of one GPU."""

from __future__ import annotations

import gc
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.multiprocessing as multiprocessing

from orchestrator.geometry import model
from parallel.groups import Groups
from parallel.halo import Borders
from parallel.layout import layout
from stages.models.base import Loading
from stages.models.families import load_family
from stages.sampling import initial_noise
from tests.checkpoints import checkpoint
from tests.dist.gang import free_port, met

NUM_GPUS = torch.cuda.device_count()
WIDTH = 1 << max(NUM_GPUS, 1).bit_length() - 1
"""The widest slice."""
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(NUM_GPUS < 2, reason=f"needs 2 GPUs, there are {NUM_GPUS}")]

GRIDS = {
    "wan2.1-1.3b": (6, 11, 13),
    "wan2.2-ti2v-5b": (5, 13, 9),
    "hunyuanvideo-1.5": (6, 7, 11),
    "hunyuanvideo": (17, 6, 8),
}
"""Nothing divides."""
CLOSE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""Relative distance."""
TIMEOUT = timedelta(seconds=300)

Distances = dict[tuple[str, torch.dtype, bool], float]


@torch.inference_mode()
def distances(groups: Groups, device: torch.device, folders: dict[str, Path]) -> Distances:
    """Of this rank's whole video to the one it decodes alone, by model, type, and whether the strips were kept apart."""
    found: Distances = {}
    for name, grid in GRIDS.items():
        latent = initial_noise(grid, model(name).latent_channels, seed=1) * 0.3
        for dtype in CLOSE:
            loaded = load_family(model(name), folders[name], Loading(frozenset({"vae"}), device, dtype))
            alone = loaded.pixels(latent)
            loaded.attach(layout(groups, 0, WIDTH, 1), None)
            for is_control in (False, True):
                with mock.patch.object(Borders, "slots", return_value=()) if is_control else nullcontext():
                    video = loaded.pixels(latent)
                found[name, dtype, is_control] = float((video - alone).norm() / alone.norm())
    return found


def rank(index: int, port: int, told: Path, folders: dict[str, Path], kind: str) -> None:
    device = torch.device(kind, index) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    groups = met(index, WIDTH, port, device, TIMEOUT)
    torch.save(distances(groups, device, folders), told / f"{index}.pt")
    gc.collect()
    groups.close()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, kind: str = "cuda") -> list[Distances]:
    told, folders = tmp_path_factory.mktemp("ranks"), {name: checkpoint(name) for name in GRIDS}
    multiprocessing.spawn(rank, (free_port(), told, folders, kind), nprocs=WIDTH)
    return [torch.load(told / f"{index}.pt", weights_only=False) for index in range(WIDTH)]


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("name", GRIDS)
def test_every_rank_has_the_video_of_one_gpu(name: str, dtype: torch.dtype, found: list[Distances]) -> None:
    assert max(each[name, dtype, False] for each in found) < CLOSE[dtype]


@pytest.mark.parametrize("name", [name for name in GRIDS if name != "hunyuanvideo"])
def test_strips_that_know_only_themselves_differ(name: str, found: list[Distances]) -> None:
    assert min(each[name, torch.float32, True] for each in found) > 10 * CLOSE[torch.float32]
