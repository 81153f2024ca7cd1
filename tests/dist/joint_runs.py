"""What the ranks of a gang do with tiny HunyuanVideo and HunyuanVideo-1.5 checkpoints, and conditions made of noise."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from orchestrator.dvg_config import DvgConfig
from orchestrator.geometry import model
from orchestrator.types import Grid, VideoShape
from parallel.groups import Groups
from parallel.layout import layout
from parallel.native import Native
from stages.compiling import maybe_compile, num_graphs
from stages.denoise import Boundary, run_stages
from stages.models.base import Branch, Condition, load
from stages.planners import make_planner
from stages.resize import nested_axes
from stages.sampling import NoiseLevel, initial_noise

Work = tuple[dict[str, Any], Grid]
"""A packed condition and the grid of its latent."""
WIDTHS = (1, 2, 4, 2, 1)
LEVEL = NoiseLevel(0.64, 640.0, 512.0)


@functools.cache
def resident(name: str, folder: str) -> Any:
    """One model per process for all tests."""
    return load(name, folder, parts=frozenset({"transformer"}))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def hunyuan_condition(name: str, num_text: int, grid: Grid) -> Condition:
    """A prompt of ``num_text`` tokens, with the latent of a first frame where the model takes one."""
    branch = Branch({"text": noise(1, num_text, 32, seed=num_text), "pooled": noise(1, 16)})
    return Condition(branch, None, 6.0, latent=_latent(name, 16, grid))


def hunyuan15_condition(name: str, num_text: int, grid: Grid) -> Condition:
    """The same for HunyuanVideo-1.5, with glyphs and image tokens; the negative prompt is one token."""
    image = {"image": noise(1, 5, 20)} if model(name).image == "required" else {}
    positive = Branch({"text": noise(1, num_text, 32, seed=num_text), "glyphs": noise(1, num_text // 3, 24), **image})
    negative = Branch({"text": noise(1, 1, 32, seed=9), "glyphs": noise(1, 0, 24), **image})
    guidance = model(name).default_guidance
    return Condition(positive, negative if guidance > 1 else None, guidance, latent=_latent(name, 32, grid))


def _latent(name: str, channels: int, grid: Grid) -> Tensor | None:
    return noise(1, channels, 1, *grid[1:], seed=5) if model(name).image == "required" else None


def velocity(resident: Any, packed: dict[str, Any], grid: Grid) -> Tensor:
    """One guided forward."""
    placed = resident.place(Condition.unpack(packed), nested_axes((grid,))[0], "index")
    found: Tensor = resident.denoise(noise(1, resident.geometry.latent_channels, *grid, seed=1), LEVEL, placed)
    return found


def attach(groups: Groups, resident: Any, width: int, num_branches: int = 1, is_control: bool = False) -> None:
    """This rank's slice of ``width``: all slices of the gang work side by side."""
    found = layout(groups, groups.rank // width * width, width, num_branches)
    resident.attach(found, None if is_control or found is None else Native())


def velocities(
    groups: Groups,
    name: str,
    folder: str,
    work: Sequence[Work],
    num_branches: int = 1,
    widths: Sequence[int] = WIDTHS,
    is_control: bool = False,
) -> list[list[Tensor]]:
    """By width, then by piece of work: every width on one resident model."""
    own = resident(name, folder)
    found = []
    for width in widths:
        attach(groups, own, width, num_branches, is_control)
        found.append([velocity(own, *piece) for piece in work])
    own.attach(None, None)
    return found


def graphs(groups: Groups, name: str, folder: str, work: Sequence[Work], kinds: Sequence[str]) -> list[int]:
    """Programs that each width compiles, of blocks compiled anew."""
    own = resident(name, folder)
    transformer = own.parts.transformer
    plain = {kind: getattr(transformer, kind) for kind in kinds}
    vars(transformer).update({kind: maybe_compile(block, True, backend="eager") for kind, block in plain.items()})
    before, found = num_graphs(), []
    for width in WIDTHS:
        attach(groups, own, width)
        for piece in work:
            velocity(own, *piece)
        found.append(num_graphs() - before)
        before = num_graphs()
    vars(transformer).update(plain)
    own.attach(None, None)
    return found


def clip(
    groups: Groups | None,
    name: str,
    folder: str,
    packed: dict[str, Any],
    shape: VideoShape,
    widths: Sequence[int],
    num_branches: int = 1,
) -> tuple[Tensor, int]:
    """The final latent of a whole DVG run and its stages: the first on ``widths[0]`` ranks, the others on ``widths[1]``."""
    own = resident(name, folder)
    planner = make_planner("dvg", own.geometry, shape, 12, 0.5, DvgConfig(image_condition="index"))
    first = planner.first().grid
    boundary = Boundary(initial_noise(first, own.geometry.latent_channels, 3), 0, 0, None, Condition.unpack(packed), 3)
    num_stages = 1
    for width in widths:
        if groups is not None:
            attach(groups, own, width, num_branches)
        boundary, _ = run_stages(own, planner, boundary, num_stages)
        assert boundary.decision is not None
        num_stages = len(boundary.decision.action.stages)
    own.attach(None, None)
    return boundary.x, num_stages
