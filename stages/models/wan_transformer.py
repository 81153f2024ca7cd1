"""Wan's transformer (Wan 2.1, arXiv 2503.20314) over diffusers' weights, without the work that repeats from step to step.

The same function as ``WanTransformer3DModel.forward`` up to rounding; what differs is what is done once: text keys and
values per prompt, rotary tables per grid, one fused q-k-v product, one modulation per timestep instead of one per token.
"""

from __future__ import annotations

import functools
import math
import weakref
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from orchestrator.types import Grid
from stages.compiling import maybe_compile
from stages.kernels import modulated_norm
from stages.models.base import Attention, Branch
from stages.models.layers import patches
from stages.models.wan_block import CrossMemory, block, block_weights, per_token, split_heads
from stages.replay import Replay

ON_CPU = ("cpu",)
"""Devices where complex products and a bias on the logits are the faster forms."""

TextMemory = tuple[CrossMemory, ...]
"""Cross-attention keys and values of one prompt, per layer."""


class WanTransformer:
    """Callable ``(x, timestep, branch, clean_first) -> velocity``. ``attention`` is the seam for kernels and parallel groups."""

    def __init__(
        self,
        weights: Any,
        attention: Attention = F.scaled_dot_product_attention,
        local: Attention = F.scaled_dot_product_attention,
        compiled: bool = False,
    ) -> None:
        """``weights`` is a ``WanTransformer3DModel``; ``local`` is the kernel for attention to the prompt.

        Raises ValueError for weights without a norm before cross-attention.
        """
        if not weights.config.cross_attn_norm:
            raise ValueError("these Wan weights have cross_attn_norm false: every published Wan model has it true")
        self.weights = weights
        self.patch: Grid = tuple(weights.config.patch_size)
        self.heads = weights.config.num_attention_heads
        self.eps = weights.config.eps
        self.dtype: torch.dtype = weights.dtype
        self.device: torch.device = weights.device
        self.layers = tuple(block_weights(layer) for layer in weights.blocks)
        constants = {"heads": self.heads, "eps": self.eps, "attention": attention, "local": local}
        self.compiled = compiled
        self.block = maybe_compile(functools.partial(block, **constants), compiled)
        self._tables = torch.stack([layer.scale_shift_table.data[0].float() for layer in weights.blocks])
        self._rope = functools.lru_cache(maxsize=16)(self._make_rope)
        self._first = functools.lru_cache(maxsize=16)(self._first_frame)
        self._replays: weakref.WeakKeyDictionary[Branch, Replay] = weakref.WeakKeyDictionary()
        self._memories: weakref.WeakKeyDictionary[Branch, TextMemory] = weakref.WeakKeyDictionary()

    def remember(self, branch: Branch) -> TextMemory:
        """Keys and values of a prompt, kept as long as the branch they came from."""
        if branch not in self._memories:
            self._memories[branch] = self._make_memory(branch)
        return self._memories[branch]

    def __call__(self, x: Tensor, timestep: float, branch: Branch, clean_first: bool = False) -> Tensor:
        """Velocity ``[1, C, T, H, W]`` float32 of the noisy latent with its condition's channels, ``[1, C + ..., T, H, W]``.

        With ``clean_first`` the first latent frame is told timestep 0. Raises ValueError if the grid is no multiple of the patch.
        """
        grid, memory = patches(x, self.patch), self.remember(branch)
        is_first = self._first(grid) if clean_first else None
        time, modulations = self._embed_time((0.0, timestep) if clean_first else (timestep,))
        h = self.weights.patch_embedding(x.to(self.dtype)).flatten(2).transpose(1, 2).contiguous()
        h = self._replay(branch)((h, modulations), (is_first, self._rope(grid), memory))
        rows = self.weights.scale_shift_table[0] + time.unsqueeze(-2)
        shift, scale = (per_token(row, is_first) for row in rows.float().unbind(-2))
        velocity: Tensor = self.weights.proj_out(modulated_norm(h, scale, shift, self.eps))
        return self._unpatch(velocity, grid).float()

    def _run(self, h: Tensor, modulations: Tensor, is_first: Tensor | None, rope: Tensor, memory: TextMemory) -> Tensor:
        """All layers."""
        for layer, modulation, seen in zip(self.layers, modulations, memory, strict=True):
            h = self.block(layer, h, modulation, is_first, rope, seen)
        return h

    def _replay(self, branch: Branch) -> Replay:
        """Recordings read a prompt's keys and values, so they live as long as these."""
        if branch not in self._replays:
            self._replays[branch] = Replay(self._run, self.compiled)
        return self._replays[branch]

    def _embed_time(self, timesteps: tuple[float, ...]) -> tuple[Tensor, Tensor]:
        """Time embedding ``[D]`` and modulations ``[layers, 6, D]`` float32; ``[2, D]``, ``[layers, 2, 6, D]`` for two times."""
        embedder = self.weights.condition_embedder
        told = torch.cat([torch.full((1,), t, dtype=torch.float32, device=self.device) for t in timesteps])
        waves = embedder.timesteps_proj(told).to(embedder.time_embedder.linear_1.weight.dtype)
        time = embedder.time_embedder(waves).to(self.dtype)
        rows = embedder.time_proj(F.silu(time)).unflatten(1, (6, -1)).float()
        if len(timesteps) > 1:
            return time, self._tables.unsqueeze(1) + rows
        return time[0], self._tables + rows

    def _make_memory(self, branch: Branch) -> TextMemory:
        """On a CPU the zero rows after the text are folded into one; GPU kernels are faster without a bias.

        All zero rows project to the same key and value, so softmax over n of them equals softmax over one whose logit is
        raised by log(n).
        """
        rows, bias = branch.tensors["text"].to(self.device, self.dtype), None
        if branch.num_pads and self.device.type in ON_CPU:
            rows = F.pad(rows, (0, 0, 0, 1))
            bias = rows.new_zeros(1, 1, 1, rows.shape[1])
            bias[..., -1] = math.log(branch.num_pads)
        elif branch.num_pads:
            rows = F.pad(rows, (0, 0, 0, branch.num_pads))
        rows = self.weights.condition_embedder.text_embedder(rows)
        image = branch.tensors.get("image")
        if image is not None:
            image = self.weights.condition_embedder.image_embedder(image.to(self.device, self.dtype))
        return tuple(self._layer_memory(layer.attn2, rows, bias, image) for layer in self.weights.blocks)

    def _layer_memory(self, cross: Any, rows: Tensor, bias: Tensor | None, image: Tensor | None) -> CrossMemory:
        def heads(x: Tensor) -> Tensor:
            return split_heads(x, self.heads).contiguous()

        text = heads(cross.norm_k(cross.to_k(rows))), heads(cross.to_v(rows))
        if image is None:
            return CrossMemory(*text, bias)
        return CrossMemory(*text, bias, heads(cross.norm_added_k(cross.add_k_proj(image))), heads(cross.add_v_proj(image)))

    def _make_rope(self, grid: Grid) -> Tensor:
        """Cosines and sines of a grid: complex ``[N, head_dim / 2]`` on a CPU, real ``[N, head_dim / 2, 2]`` elsewhere."""
        cells = [size * patch for size, patch in zip(grid, self.patch, strict=True)]
        cos, sin = self.weights.rope(torch.empty(1, 1, *cells, device=self.device))
        table = torch.stack((cos[0, :, 0, 0::2], sin[0, :, 0, 1::2]), dim=-1).float().contiguous()
        return torch.view_as_complex(table) if self.device.type in ON_CPU else table

    def _first_frame(self, grid: Grid) -> Tensor:
        """Which tokens are of the first frame, ``[N, 1]``."""
        return (torch.arange(math.prod(grid), device=self.device) < grid[1] * grid[2]).unsqueeze(-1)

    def _unpatch(self, h: Tensor, grid: Grid) -> Tensor:
        """``[B, t h w, (pt ph pw c)]`` to ``[B, c, (t pt), (h ph), (w pw)]``."""
        out = h.unflatten(2, (*self.patch, -1)).unflatten(1, grid).permute(0, 7, 1, 4, 2, 5, 3, 6)
        return out.flatten(6, 7).flatten(4, 5).flatten(2, 3)
