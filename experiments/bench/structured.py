"""Queries, keys and values with the structure that rules of sparse attention live on, from a recipe of a few numbers.

A token's query and key depend smoothly on its place (time, height, width), by random features whose length scales differ from
head to head (near by, within frames, along time, far), on a few objects that move, and on noise. Some heads attend sharply,
some broadly. From step to step a little of the noise is new, as in a clip's denoising.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from orchestrator.types import Grid

SCALES = ((0.15, 0.08, 0.08), (0.05, 0.3, 0.3), (0.6, 0.06, 0.06), (0.8, 0.8, 0.8))
"""Of (time, height, width), as shares of the grid: heads that look near by, within frames, along time, and at objects."""
Tensors = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Recipe:
    """All that the tensors depend on, beside grid, heads and device."""

    seed: int = 0
    num_objects: int = 6
    gains: tuple[float, ...] = (7.0, 10.0, 14.0)
    """Of the logits, by turns of four heads: broad to sharp."""
    object_weight: float = 0.5
    """Of objects, in heads that look at places; twice that in those that look at objects."""
    noise: float = 0.6
    """Length of a token's own part, beside about 1 of the shared one."""
    drift: float = 0.15
    """Share of that part which is new at each step."""
    mean_key: float = 1.0
    """Length of what all keys have in common."""


class Structured:
    """Of one layer of one clip."""

    def __init__(
        self, recipe: Recipe, grid: Grid, heads: int, head_dim: int, num_text: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.recipe, self.device, self.dtype = recipe, device, dtype
        self.head_dim, self.num_text = head_dim, num_text
        self._random = torch.Generator().manual_seed(recipe.seed)
        places = _places(grid).to(device)
        objects = _objects(recipe, places, self._random)
        found = [self._head(head, places, objects) for head in range(heads)]
        self._q, self._k, self._v = (torch.stack(parts).unsqueeze(0) for parts in zip(*found, strict=True))

    def at(self, step: int) -> Tensors:
        """``[1, heads, image tokens and text, head_dim]`` each. The same for the same step."""
        generator = torch.Generator(self.device).manual_seed(1 + step)
        gain = self._gains()
        return self._drifted(self._q, gain, generator), self._drifted(self._k, gain, generator), self._v

    def _drifted(self, x: Tensor, gain: Tensor, generator: torch.Generator) -> Tensor:
        fresh = torch.randn(x.shape, generator=generator, device=self.device, dtype=self.dtype)
        length = self.recipe.noise * self.recipe.drift / math.sqrt(self.head_dim)
        return x + fresh * (gain * length).to(self.dtype)

    def _gains(self) -> Tensor:
        """Of each head's queries and keys, ``[1, heads, 1, 1]``: the root of its logits', as these are divided by that of d."""
        gains = self.recipe.gains
        turns = [gains[head // len(SCALES) % len(gains)] for head in range(self._q.shape[1])]
        return torch.tensor([math.sqrt(gain * math.sqrt(self.head_dim)) for gain in turns], device=self.device).view(1, -1, 1, 1)

    def _head(self, head: int, places: Tensor, objects: Tensor) -> Tensors:
        recipe, kind = self.recipe, head % len(SCALES)
        gain = math.sqrt(recipe.gains[head // len(SCALES) % len(recipe.gains)] * math.sqrt(self.head_dim))
        waves = self._normal(3, self.head_dim) / torch.tensor(SCALES[kind], device=self.device).unsqueeze(1)
        shared = torch.cos(places @ waves + self._normal(self.head_dim) * math.pi) * math.sqrt(2 / self.head_dim)
        weight = recipe.object_weight * (2 if kind == len(SCALES) - 1 else 1)
        shared = shared + weight * objects @ self._unit(recipe.num_objects)
        own = math.sqrt(1 - recipe.drift**2) * recipe.noise
        q, k = shared + own * self._tokens(len(places)), shared + own * self._tokens(len(places))
        k = k + recipe.mean_key * self._unit(1)
        v = shared @ self._normal(self.head_dim, self.head_dim) + 0.5 * self._tokens(len(places)) * math.sqrt(self.head_dim)
        text = [self._tokens(self.num_text) for _ in range(3)]
        whole = [torch.cat([part, more]) for part, more in zip((gain * q, gain * k, v), text, strict=True)]
        return whole[0].to(self.dtype), whole[1].to(self.dtype), whole[2].to(self.dtype)

    def _tokens(self, num: int) -> Tensor:
        """Noise of length about 1 for each."""
        generator = torch.Generator(self.device).manual_seed(int(torch.randint(1 << 31, (), generator=self._random)))
        return torch.randn(num, self.head_dim, generator=generator, device=self.device) / math.sqrt(self.head_dim)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._random).to(self.device)

    def _unit(self, num: int) -> Tensor:
        return torch.nn.functional.normalize(self._normal(num, self.head_dim), dim=-1)


def _places(grid: Grid) -> Tensor:
    """Of every token, in [0, 1) along (time, height, width), ``[n, 3]``."""
    axes = torch.meshgrid(*(torch.arange(size) / size for size in grid), indexing="ij")
    return torch.stack(axes, dim=-1).view(-1, 3)


def _objects(recipe: Recipe, places: Tensor, random: torch.Generator) -> Tensor:
    """How much each token is of each moving object, ``[n, objects]`` in (0, 1]."""
    centre, way = torch.rand(2, recipe.num_objects, 2, generator=random).to(places.device)
    radius = (0.08 + 0.15 * torch.rand(recipe.num_objects, generator=random)).to(places.device)
    middle = centre + (way - 0.5) * places[:, :1].unsqueeze(1)
    distance = (places[:, 1:].unsqueeze(1) - middle).square().sum(-1)
    return torch.exp(-distance / (2 * radius.square()))
