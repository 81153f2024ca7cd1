"""HunyuanVideo's and HunyuanVideo-1.5's compiled, replayed forwards on 1 and 2 GPUs in turn, over NCCL."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
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
from stages.attention import choose
from stages.compiling import num_graphs
from stages.models.hunyuan15_transformer import Hunyuan15Transformer
from stages.models.hunyuan_transformer import HunyuanTransformer
from stages.sampling import NoiseLevel
from tests.dist.gang import free_port, met

NUM_GPUS = torch.cuda.device_count()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(NUM_GPUS < 2, reason=f"needs 2 GPUs, there are {NUM_GPUS}")]

HEADS, HEAD_DIM, TEXT_DIM = 8, 128, 64
ROPE_DIMS = (16, 56, 56)
LAYOUTS = ((1, 1), (2, 1), (1, 1), (2, 2), (2, 1))
"""Ranks, and branches side by side, in the order in which one resident model is attached to them."""
GRIDS: tuple[Grid, ...] = ((3, 20, 28), (5, 30, 46), (37, 2, 2))
NUM_TEXT = (1, 4, 5)
"""Of each prompt. On two ranks the first leaves one of them none; of the others, rank 0 has 2 each, rank 1 has 2 and 3."""
NUM_CALLS = 3
"""The first runs, the second records, the third replays."""
TIMEOUT = timedelta(seconds=300)
CLOSE = 2e-2
"""Relative distance: rounding of bf16."""

Forward = Callable[[Tensor, int], Tensor]
"""Of a latent and the number of a prompt."""


@dataclass
class Story:
    """What one rank saw, for each layout."""

    graphs: list[int]
    distances: list[float]
    num_recorded: int = 0


def random(device: torch.device, *shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device)


def on(device: torch.device, weights: Any) -> tuple[Any, Any, bool]:
    is_gpu = device.type == "cuda"
    weights = weights.to(device, torch.bfloat16 if is_gpu else torch.float32).requires_grad_(False)
    return weights, choose("auto", device, HEADS, HEAD_DIM, weights.dtype), is_gpu


def hunyuan(device: torch.device) -> tuple[HunyuanTransformer, Forward]:
    from diffusers import HunyuanVideoTransformer3DModel

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"num_layers": 2, "num_single_layers": 2, "num_refiner_layers": 1, "text_embed_dim": TEXT_DIM}
    network = HunyuanTransformer(
        *on(
            device,
            HunyuanVideoTransformer3DModel(
                num_attention_heads=HEADS,
                attention_head_dim=HEAD_DIM,
                pooled_projection_dim=32,
                rope_axes_dim=ROPE_DIMS,
                image_condition_type="token_replace",
                **sizes,
            ),
        )
    )
    pooled = random(device, 1, 32, seed=2)
    prompts = [network.remember(random(device, 1, num, TEXT_DIM, seed=num), pooled) for num in NUM_TEXT]
    return network, lambda x, prompt: network(x[:, :16], 640.0, 6.0, prompts[prompt])


def hunyuan15(device: torch.device) -> tuple[Hunyuan15Transformer, Forward]:
    from diffusers import HunyuanVideo15Transformer3DModel

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"num_layers": 3, "num_refiner_layers": 1, "text_embed_dim": TEXT_DIM, "text_embed_2_dim": 32}
    network = Hunyuan15Transformer(
        *on(
            device,
            HunyuanVideo15Transformer3DModel(
                num_attention_heads=HEADS, attention_head_dim=HEAD_DIM, image_embed_dim=32, rope_axes_dim=ROPE_DIMS, **sizes
            ),
        )
    )
    glyphs = torch.zeros(1, 0, 32, device=device)
    prompts = [network.remember({"text": random(device, 1, num, TEXT_DIM, seed=num), "glyphs": glyphs}) for num in NUM_TEXT]
    level = NoiseLevel(0.64, 640.0, 512.0)
    return network, lambda x, prompt: network(x, None, network.time(level), prompts[prompt])


@torch.inference_mode()
def walk(groups: Groups, make: Callable[[torch.device], tuple[Any, Forward]], device: torch.device) -> Story:
    """All layouts one after the other, each compared with this GPU alone. With guidance split, of two prompts."""
    network, forward = make(device)
    latents = [random(device, 1, 32, *grid, seed=3) for grid in GRIDS]
    exact: list[Tensor] = []
    before, story = num_graphs(), Story([], [])
    for width, num_branches in LAYOUTS:
        place = layout(groups, 0, width, num_branches)
        network.seam.attach(place, Native())
        split = place is not None and place.branch is not None
        asked = (1 + place.branch,) if split else range(len(NUM_TEXT))  # type: ignore[union-attr, operator]
        found = [torch.cat([forward(x, prompt) for prompt in asked]) for x in latents for _ in range(NUM_CALLS)]
        exact = exact or found
        wanted = [x[1:] for x in exact] if split else exact
        story.distances.append(max(float((a - b).norm() / b.norm()) for a, b in zip(found, wanted, strict=True)))
        story.graphs.append(num_graphs() - before)
    story.num_recorded = sum(recording.graph is not None for recording in network.replay._recordings.values())
    return story


def rank(index: int, port: int, folder: Path, kind: str) -> None:
    device = torch.device(kind, index) if kind == "cuda" else torch.device(kind)
    groups = met(index, 2, port, device, TIMEOUT)
    torch.save({make.__name__: walk(groups, make, device).__dict__ for make in (hunyuan, hunyuan15)}, folder / f"{index}.pt")
    gc.collect()  # recordings hold the groups' collectives, and the groups cannot end before them
    groups.close()


def stories(folder: Path, kind: str = "cuda") -> list[dict[str, Story]]:
    multiprocessing.spawn(rank, (free_port(), folder, kind), nprocs=2)
    return [{name: Story(**told) for name, told in torch.load(folder / f"{index}.pt").items()} for index in range(2)]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Story]]:
    return stories(tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize(("name", "num_kinds"), [("hunyuan", 2), ("hunyuan15", 1)])
def test_every_layout_of_two_gpus_equals_one_and_compiles_nothing_anew(
    told: list[dict[str, Story]], name: str, num_kinds: int
) -> None:
    """Prompts of which a rank has equal parts, and the other has not, are replayed apart."""
    for of_rank in told:
        story = of_rank[name]
        assert all(math.isfinite(distance) and distance < CLOSE for distance in story.distances), story
        assert story.graphs == [num_kinds] * len(LAYOUTS), story
        assert story.num_recorded > 0, story
