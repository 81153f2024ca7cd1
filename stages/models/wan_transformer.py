"""Wan's transformer (Wan 2.1, arXiv 2503.20314) over diffusers' weights, without the work that repeats from step to step.

The same function as ``WanTransformer3DModel.forward`` up to rounding; what differs is what is done once:
text keys and values per prompt, the zero rows after the text as one row, rotary tables per grid, one fused q-k-v product,
and modulation inside the layer norms.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from orchestrator.types import Grid
from stages.models.base import Attention, TextEmbedding


@dataclass(frozen=True, eq=False)
class TextMemory:
    """Cross-attention keys and values ``[1, heads, rows, head_dim]`` of one prompt, per layer, and a bias per row."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    bias: Tensor | None


class WanTransformer:
    """Callable ``(x, sigma, memory) -> velocity``. ``attention`` is the seam where a sequence-parallel group plugs in."""

    def __init__(self, weights: Any, attention: Attention = F.scaled_dot_product_attention) -> None:
        """``weights`` is a ``WanTransformer3DModel`` for text-to-video. Raises ValueError for an image-to-video one."""
        if weights.config.image_dim is not None or weights.config.added_kv_proj_dim is not None:
            raise ValueError("these Wan weights expect an image: only text-to-video weights are supported")
        self.weights = weights
        self.attention = attention
        self.patch: Grid = tuple(weights.config.patch_size)
        self.heads = weights.config.num_attention_heads
        self.eps = weights.config.eps
        self.dtype: torch.dtype = weights.dtype
        self._qkv = [_fuse((b.attn1.to_q, b.attn1.to_k, b.attn1.to_v)) for b in weights.blocks]
        self._tables = torch.stack([block.scale_shift_table[0] for block in weights.blocks])
        self._rope = functools.lru_cache(maxsize=16)(self._make_rope)

    def remember(self, text: TextEmbedding) -> TextMemory:
        """Keys and values of a prompt, once for all its steps.

        All zero rows after the text project to the same key and value, so softmax over n of them equals softmax over one
        whose logit is raised by log(n).
        """
        rows, bias = text.tokens.to(self.dtype), None
        if text.num_pads:
            rows = F.pad(rows, (0, 0, 0, 1))
            bias = rows.new_zeros(1, 1, 1, rows.shape[1])
            bias[..., -1] = math.log(text.num_pads)
        rows = self.weights.condition_embedder.text_embedder(rows)
        crosses = [block.attn2 for block in self.weights.blocks]
        keys = tuple(self._heads(cross.norm_k(cross.to_k(rows))).contiguous() for cross in crosses)
        values = tuple(self._heads(cross.to_v(rows)).contiguous() for cross in crosses)
        return TextMemory(keys, values, bias)

    def __call__(self, x: Tensor, sigma: float, memory: TextMemory) -> Tensor:
        """Velocity ``[1, C, T, H, W]`` float32. Raises ValueError if the grid is no multiple of the patch."""
        grid = self._patches(x)
        time, modulation = self._modulate(sigma, x.device)
        h = self.weights.patch_embedding(x.to(self.dtype)).flatten(2).transpose(1, 2).contiguous()
        rope = self._rope(grid)
        for index, block in enumerate(self.weights.blocks):
            shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = modulation[index]
            h.addcmul_(self._self_attend(index, self._norm(h, scale, shift), rope), gate)
            h.add_(self._cross_attend(index, self._norm(h, block.norm2.weight, block.norm2.bias), memory))
            h.addcmul_(block.ffn(self._norm(h, ffn_scale, ffn_shift)), ffn_gate)
        shift, scale = (self.weights.scale_shift_table[0] + time).unbind(0)
        velocity: Tensor = self.weights.proj_out(self._norm(h, 1 + scale, shift))
        return self._unpatch(velocity, grid).float()

    def _self_attend(self, index: int, h: Tensor, rope: Tensor) -> Tensor:
        block = self.weights.blocks[index].attn1
        q, k, v = F.linear(h, *self._qkv[index]).chunk(3, dim=-1)
        q, k = self._rotate(block.norm_q(q), rope), self._rotate(block.norm_k(k), rope)
        out: Tensor = block.to_out[0](self.attention(q, k, self._heads(v)).transpose(1, 2).flatten(2))
        return out

    def _cross_attend(self, index: int, h: Tensor, memory: TextMemory) -> Tensor:
        block = self.weights.blocks[index].attn2
        q = self._heads(block.norm_q(block.to_q(h)))
        found = F.scaled_dot_product_attention(q, memory.keys[index], memory.values[index], attn_mask=memory.bias)
        out: Tensor = block.to_out[0](found.transpose(1, 2).flatten(2))
        return out

    def _norm(self, h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Layer norm in float32; the modulation ``norm(h) * scale + shift`` is its affine part."""
        return F.layer_norm(h.float(), (h.shape[-1],), weight.float(), bias.float(), self.eps).to(h.dtype)

    def _heads(self, h: Tensor) -> Tensor:
        """``[B, N, heads * d]`` to ``[B, heads, N, d]``."""
        return h.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def _rotate(self, h: Tensor, rope: Tensor) -> Tensor:
        """Rotary positions, as a product of complex numbers; ``[B, N, heads * d]`` to ``[B, heads, N, d]``."""
        pairs = torch.view_as_complex(h.float().unflatten(2, (self.heads, -1, 2)))
        return torch.view_as_real(pairs * rope).flatten(3).to(h.dtype).transpose(1, 2)

    def _make_rope(self, grid: Grid) -> Tensor:
        """Unit complex numbers ``[1, tokens, 1, head_dim / 2]`` of a grid of patches."""
        cells = [size * patch for size, patch in zip(grid, self.patch, strict=True)]
        cos, sin = self.weights.rope(self._tables.new_empty(1, 1, *cells))
        return torch.complex(cos[..., 0::2].contiguous(), sin[..., 1::2].contiguous())

    def _modulate(self, sigma: float, device: torch.device) -> tuple[Tensor, Tensor]:
        """Time embedding ``[1, D]`` and, per layer, (shift, 1 + scale, gate) of attention and feed-forward ``[L, 6, D]``."""
        embedder = self.weights.condition_embedder
        timestep = torch.tensor([sigma], dtype=torch.float32, device=device) * 1000
        waves = embedder.timesteps_proj(timestep).to(embedder.time_embedder.linear_1.weight.dtype)
        time = embedder.time_embedder(waves).to(self.dtype)
        modulation = self._tables + embedder.time_proj(F.silu(time)).unflatten(1, (6, -1)).float()
        modulation[:, 1] += 1
        modulation[:, 4] += 1
        return time, modulation

    def _patches(self, x: Tensor) -> Grid:
        cells = x.shape[2:]
        if any(size % patch for size, patch in zip(cells, self.patch, strict=True)):
            raise ValueError(f"latent grid {tuple(cells)} is not a multiple of the patch {self.patch}")
        t, h, w = (size // patch for size, patch in zip(cells, self.patch, strict=True))
        return t, h, w

    def _unpatch(self, h: Tensor, grid: Grid) -> Tensor:
        """``[B, t h w, (pt ph pw c)]`` to ``[B, c, (t pt), (h ph), (w pw)]``."""
        out = h.unflatten(2, (*self.patch, -1)).unflatten(1, grid).permute(0, 7, 1, 4, 2, 5, 3, 6)
        return out.flatten(6, 7).flatten(4, 5).flatten(2, 3)


def _fuse(linears: Sequence[nn.Linear]) -> tuple[Tensor, Tensor]:
    """The weights of several layers as one product. The layers become views of it, so nothing is held twice."""
    weight = torch.cat([linear.weight.data for linear in linears])
    bias = torch.cat([linear.bias.data for linear in linears])
    for linear, w, b in zip(linears, weight.chunk(len(linears)), bias.chunk(len(linears)), strict=True):
        linear.weight.data, linear.bias.data = w, b
    return weight, bias
