"""Wan's compiled, replayed forward on 1 and 2 GPUs in turn, over NCCL: the same velocity, nothing compiled anew."""

from __future__ import annotations

import gc
import math
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as multiprocessing
from torch import Tensor

from orchestrator.types import Grid
from parallel.groups import Groups
from parallel.layout import layout
from parallel.native import Native
from parallel.seam import Seam
from stages.attention import choose
from stages.compiling import num_graphs
from stages.models.base import Branch
from stages.models.wan_transformer import WanTransformer
from tests.dist.gang import free_port, met

NUM_GPUS = torch.cuda.device_count()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(NUM_GPUS < 2, reason=f"needs 2 GPUs, there are {NUM_GPUS}")]

HEADS, HEAD_DIM, CHANNELS, TEXT_DIM = 8, 128, 16, 64
LAYOUTS = ((1, 1), (2, 1), (1, 1), (2, 2), (2, 1))
"""Ranks, and branches side by side, in the order in which one resident model is attached to them."""
GRIDS: tuple[Grid, ...] = ((3, 20, 28), (5, 30, 46), (37, 2, 2))
"""Of 420, 1,725 and 37 tokens: even, odd, prime."""
NUM_CALLS = 3
"""The first runs, the second records, the third replays."""
TIMEOUT = timedelta(seconds=300)
CLOSE = 2e-2
"""Relative distance: rounding of bf16."""


@dataclass
class Story:
    """What one rank saw, for each layout."""

    graphs: list[int]
    recordings: list[int]
    distances: list[float]


def network(device: torch.device) -> WanTransformer:
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    weights: Any = WanTransformer3DModel(
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_DIM,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        text_dim=TEXT_DIM,
        ffn_dim=2048,
        num_layers=3,
    )
    is_gpu = device.type == "cuda"
    weights = weights.to(device, torch.bfloat16 if is_gpu else torch.float32).requires_grad_(False)
    return WanTransformer(weights, Seam(choose("auto", device, HEADS, HEAD_DIM, weights.dtype)), compiled=is_gpu)


def random(device: torch.device, *shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device)


def recordings(model: WanTransformer, branches: tuple[Branch, Branch]) -> int:
    kept = (recording for branch in branches for recording in model._replay(branch)._recordings.values())
    return sum(recording.graph is not None for recording in kept)


@torch.inference_mode()
def walk(groups: Groups, model: WanTransformer, device: torch.device) -> Story:
    """All layouts one after the other, each compared with this GPU alone."""
    branches = tuple(Branch({"text": random(device, 1, 9, TEXT_DIM, seed=seed)}, 503) for seed in (1, 2))
    positive, negative = branches
    latents = [random(device, 1, CHANNELS, *grid, seed=3) for grid in GRIDS]
    exact: list[Tensor] = []
    story = Story([], [], [])
    for width, num_branches in LAYOUTS:
        place = layout(groups, 0, width, num_branches)
        model.seam.attach(place, Native())
        asked = branches if place is None or place.branch is None else (branches[place.branch],)
        found = [torch.cat([model(x, 640.0, branch) for branch in asked]) for x in latents for _ in range(NUM_CALLS)]
        exact = exact or found
        story.distances.append(max(float((a - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True)))
        story.graphs.append(num_graphs())
        story.recordings.append(recordings(model, (positive, negative)))
    return story


def rank(index: int, port: int, folder: Path, kind: str) -> None:
    device = torch.device(kind, index) if kind == "cuda" else torch.device(kind)
    groups = met(index, 2, port, device, TIMEOUT)
    torch.save(walk(groups, network(device), device).__dict__, folder / f"{index}.pt")
    gc.collect()  # recordings hold the groups' collectives, and the groups cannot end before them
    groups.close()


def stories(folder: Path, kind: str = "cuda") -> list[Story]:
    multiprocessing.spawn(rank, (free_port(), folder, kind), nprocs=2)
    return [Story(**torch.load(folder / f"{index}.pt")) for index in range(2)]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[Story]:
    return stories(tmp_path_factory.mktemp("ranks"))


def test_every_layout_of_two_gpus_equals_one_run_recorded_or_replayed(told: list[Story]) -> None:
    for story in told:
        assert all(math.isfinite(distance) and distance < CLOSE for distance in story.distances), story


def test_attaching_compiles_nothing_anew(told: list[Story]) -> None:
    for story in told:
        assert len(set(story.graphs)) == 1, story


def test_recordings_of_a_group_are_kept_apart_from_those_of_one_gpu(told: list[Story]) -> None:
    """Of three grids and a branch each; those of one GPU are found again, and so are those of the first group."""
    for story in told:
        assert story.recordings[0] == 6, story
        assert story.recordings[1] == 12, story
        assert story.recordings[2] == 12, story
