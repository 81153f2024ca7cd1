"""Wan's compiled layers spread over 2 GPUs, over NCCL: the whole model's velocity in half the memory, nothing compiled anew."""

from __future__ import annotations

import copy
import gc
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as multiprocessing
from torch import Tensor

from orchestrator.types import Grid
from parallel.groups import Group, Groups
from parallel.layout import layout
from parallel.native import Native
from parallel.seam import Seam
from parallel.sharding import Sharded
from stages.attention import choose
from stages.compiling import num_graphs
from stages.models.base import Branch
from stages.models.wan_transformer import WanTransformer
from tests.dist.gang import free_port, met

NUM_GPUS = torch.cuda.device_count()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(NUM_GPUS < 2, reason=f"needs 2 GPUs, there are {NUM_GPUS}")]

HEADS, HEAD_DIM, CHANNELS, TEXT_DIM, NUM_LAYERS = 16, 128, 16, 64, 16
GRIDS: tuple[Grid, ...] = ((3, 20, 28), (5, 60, 90))
"""Of 420 and 6,750 tokens."""
NUM_CALLS = 3
TIMEOUT = timedelta(seconds=300)
CLOSE = 1e-2
"""Relative distance: rounding of bf16, whose sums run in another order where attention is split."""


@dataclass
class Story:
    """What one rank saw."""

    distances: list[float] = field(default_factory=list)
    graphs: list[int] = field(default_factory=list)
    """After each grid."""
    whole_bytes: int = 0
    kept_bytes: int = 0
    whole_extra_bytes: int = 0
    """What the last forward of the whole model took on top of what lay there before it."""
    extra_bytes: int = 0
    """The same of the spread one."""


def make_weights(dtype: torch.dtype) -> Any:
    """On the CPU."""
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    weights: Any = WanTransformer3DModel(
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_DIM,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        text_dim=TEXT_DIM,
        ffn_dim=4 * HEADS * HEAD_DIM,
        num_layers=NUM_LAYERS,
    )
    return weights.to(dtype).requires_grad_(False)


def network(weights: Any, device: torch.device, shard: Group | None) -> WanTransformer:
    seam = Seam(choose("auto", device, HEADS, HEAD_DIM, weights.dtype))
    return WanTransformer(weights, seam, compiled=device.type == "cuda", shard=shard)


def random(device: torch.device, *shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device)


@torch.inference_mode()
def velocity(model: WanTransformer, branch: Branch, grid: Grid) -> Tensor:
    t, h, w = (size * patch for size, patch in zip(grid, model.patch, strict=True))
    for _ in range(NUM_CALLS):
        found = model(random(model.device, 1, CHANNELS, t, h, w, seed=3), 640.0, branch).clone()
    return found


def extra_bytes(model: WanTransformer, branch: Branch) -> int:
    """Of one forward of the last grid, whose tables and programs are there by now."""
    if model.device.type != "cuda":
        return 0
    torch.cuda.synchronize(model.device)
    torch.cuda.reset_peak_memory_stats(model.device)
    before = torch.cuda.memory_allocated(model.device)
    velocity(model, branch, GRIDS[-1])
    return torch.cuda.max_memory_allocated(model.device) - before


def walk(groups: Groups, device: torch.device) -> Story:
    """The whole model on this GPU alone, then its layers spread over both."""
    branch = Branch({"text": random(device, 1, 9, TEXT_DIM, seed=1)}, 503)
    weights, story = make_weights(torch.bfloat16 if device.type == "cuda" else torch.float32), Story()
    model = network(copy.deepcopy(weights).to(device), device, None)
    exact = [velocity(model, branch, grid) for grid in GRIDS]
    story.whole_bytes = sum(weight.nbytes for layer in model.layers for weight in layer)
    story.whole_extra_bytes = extra_bytes(model, branch)
    del model
    gc.collect()
    spread = network(weights, device, groups.slice(0, 2))
    assert isinstance(spread.layers, Sharded)
    story.kept_bytes = spread.layers.num_bytes
    spread.seam.attach(layout(groups, 0, 2, 1), Native())
    for grid, expected in zip(GRIDS, exact, strict=True):
        found = velocity(spread, branch, grid)
        story.distances.append(float((found - expected).norm() / expected.norm()))
        story.graphs.append(num_graphs())
    story.extra_bytes = extra_bytes(spread, branch)
    return story


def rank(index: int, port: int, folder: Path, kind: str) -> None:
    device = torch.device(kind, index if kind == "cuda" else None)
    groups = met(index, 2, port, device, TIMEOUT)
    torch.save(walk(groups, device).__dict__, folder / f"{index}.pt")
    groups.close()


def stories(folder: Path, kind: str = "cuda") -> list[Story]:
    multiprocessing.spawn(rank, (free_port(), folder, kind), nprocs=2)
    return [Story(**torch.load(folder / f"{index}.pt")) for index in range(2)]


def test_spread_layers_on_two_gpus_equal_the_whole_model_in_half_the_memory(tmp_path: Path) -> None:
    for story in stories(tmp_path):
        assert max(story.distances) < CLOSE
        assert story.kept_bytes == pytest.approx(story.whole_bytes / 2, rel=0.01)
        assert story.graphs[1:] == story.graphs[:-1], "another grid compiled the layers anew"
        at_once = (story.extra_bytes - story.whole_extra_bytes) / (story.whole_bytes / NUM_LAYERS)
        assert at_once < NUM_LAYERS / 2, f"{at_once:.1f} of {NUM_LAYERS} layers were there at once"
