"""HunyuanVideo's transformer (arXiv 2412.03603) over diffusers' weights, without the work that repeats from step to step.

The same function as ``HunyuanVideoTransformer3DModel.forward`` up to rounding, for one prompt whose padding was cut: no mask
is needed. What depends on the prompt alone is computed once per prompt, rotary tables once per grid. On a slice of ranks
each has some image and some text tokens; what comes before the blocks is small, and every rank does it whole.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from orchestrator.types import Grid
from parallel.groups import Group
from parallel.seam import Attention
from stages.accelerators.base import Boost
from stages.attention import opaque
from stages.compiling import maybe_compile
from stages.kernels import modulated_norm
from stages.models.base import Positions
from stages.models.hunyuan_block import (
    EPS,
    DualWeights,
    SingleWeights,
    StreamWeights,
    attend,
    dual_block,
    single_block,
)
from stages.models.hunyuan_trunk import Halves, trunk
from stages.models.joint import JointSeam, Share
from stages.models.layers import Bundle, Tables, kept, patches, per_layer, require_all
from stages.replay import Replay
from stages.token_sets import TokenSet

NUM_TABLES = 4
"""Rotary tables kept: the stages of one clip (59 MB at 115,200 tokens)."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """What follows from the prompt alone. ``tokens`` ``[1, L, D]`` are the refiner's input, ``found`` its first attention."""

    tokens: Tensor
    found: Tensor
    mean: Tensor
    """The refiner's summary of the text ``[1, D]``."""
    pooled: Tensor
    """CLIP's summary ``[1, D]``, for the time embedding."""


class HunyuanTransformer:
    """Callable ``(x, timestep, guidance, prompt) -> velocity``. ``seam`` is where a slice of ranks shares its tokens."""

    def __init__(
        self,
        weights: Any,
        attention: Attention = F.scaled_dot_product_attention,
        compile_blocks: bool = False,
        shard: Group | None = None,
    ) -> None:
        """``weights`` is a ``HunyuanVideoTransformer3DModel``, which loses its repeated blocks; ``attention`` is of one rank.

        With ``shard`` the weights, which may be on a CPU, go to the group's devices, the blocks' in shares.
        """
        config = weights.config
        self.weights = weights
        self.dtype: torch.dtype = weights.dtype
        self.patch: Grid = (config.patch_size_t, config.patch_size, config.patch_size)
        self.replaces_first = config.image_condition_type == "token_replace"
        self.first_modulation = None if shard is None else _first_modulation(weights.transformer_blocks[0], shard)
        self.duals = kept(_drained(weights.transformer_blocks, _dual_weights), shard)
        self.singles = kept(_drained(weights.single_transformer_blocks, _single_weights), shard)
        if shard is not None:
            weights.to(shard.device)
        self.seam = JointSeam(attention)
        constants: dict[str, Any] = {"head_dim": config.attention_head_dim, "attention": opaque(self.seam)}
        dual: Callable[..., tuple[Tensor, Tensor]] = functools.partial(dual_block, **constants)
        single: Callable[..., Tensor] = functools.partial(single_block, **constants)
        self.dual_block, self.single_block = maybe_compile(dual, compile_blocks), maybe_compile(single, compile_blocks)
        self.boost: Boost | None = None
        self.halves = Halves(constants, compile_blocks)
        self.replay = Replay(self._run, compile_blocks and shard is None)  # gathered weights lie elsewhere each time
        self._tables = functools.lru_cache(maxsize=NUM_TABLES)(self._make_tables)
        self._guide = functools.lru_cache(maxsize=NUM_TABLES)(self._make_guide)

    def remember(self, text: Tensor, pooled: Tensor) -> Prompt:
        """Of the encoded prompt ``[1, L, text channels]`` and CLIP's summary ``[1, channels]``, once for all steps."""
        refiner = self.weights.context_embedder
        text = text.to(self.dtype)
        tokens = refiner.proj_in(text)
        mean = refiner.time_text_embed.text_embedder(text.float().mean(dim=1).to(self.dtype))
        found = self._refiner_attention(refiner.token_refiner.refiner_blocks[0], tokens)
        return Prompt(tokens, found, mean, self.weights.time_text_embed.text_embedder(pooled.to(self.dtype)))

    def __call__(
        self,
        x: Tensor,
        timestep: float,
        guidance: float,
        prompt: Prompt,
        positions: Positions | None = None,
        mixed: TokenSet | None = None,
    ) -> Tensor:
        """Velocity ``[1, C, T, H, W]`` float32. Raises ValueError if the grid is no multiple of the patch."""
        grid = patches(x, self.patch)
        if self.boost is not None:
            mixed = self.boost.tokens(id(self), mixed)
        counts = mixed.num_tokens if mixed else math.prod(grid), prompt.tokens.shape[1]
        share = self.seam.share(*counts, mixed.unit if mixed else 1)
        time = self._embed_time(timestep, guidance, prompt)
        emb = F.silu(time)
        rope, first = self._placed(grid, share, x.device, positions, mixed)
        h, c = self._embed(x, share, mixed), share.text_rows(self._refine(timestep, prompt))
        num = h.shape[1]
        whole = functools.partial(self.replay if self.seam.instead is None else self.replay.live, (h, c, emb), (rope, first))
        h = whole() if self.boost is None else self.boost(trunk(self, whole, h, c, emb, rope, first, time, grid))
        scale, shift = self.weights.norm_out.linear(emb[0]).chunk(2)
        velocity = self.weights.proj_out(modulated_norm(h[:, :num], scale, shift, EPS))
        found = self.seam.join(velocity)
        return (mixed.lay(found, self._unpatch) if mixed else self._unpatch(found, grid)).float()

    def _run(self, h: Tensor, c: Tensor, emb: Tensor, rope: Tables, first: Tensor | None) -> Tensor:
        """All layers: of image and of text tokens, then of both in one row."""
        require_all(self.duals, self.seam.layout)
        num, num_duals = h.shape[1], len(self.duals)
        first_image = None if first is None else first[:num]
        for dual, table in zip(self.duals, rope[:num_duals], strict=True):
            h, c = self.dual_block(dual, h, c, emb, table[:num], first_image)
        h = torch.cat([h, c], dim=1)
        for single, table in zip(self.singles, rope[num_duals:], strict=True):
            h = self.single_block(single, h, emb, table, first)
        return h

    def _embed_time(self, timestep: float, guidance: float, prompt: Prompt) -> Tensor:
        """Time, guidance and pooled prompt ``[1, D]``; with token replacement a second row for timestep 0."""
        embedder = self.weights.time_text_embed
        device = prompt.pooled.device
        times = torch.full((1,), timestep, device=device)
        if self.replaces_first:
            times = torch.cat([times, times.new_zeros(1)])
        time: Tensor = embedder.timestep_embedder(embedder.time_proj(times).to(self.dtype)) + prompt.pooled
        if embedder.guidance_embedder is None:
            return time
        return torch.cat([time[:1] + self._guide(guidance, device), time[1:]])

    def _make_guide(self, guidance: float, device: torch.device) -> Tensor:
        embedder = self.weights.time_text_embed
        told = torch.full((1,), guidance, dtype=self.dtype, device=device) * 1000.0
        guide: Tensor = embedder.guidance_embedder(embedder.time_proj(told).to(self.dtype))
        return guide

    def _refine(self, timestep: float, prompt: Prompt) -> Tensor:
        """The text tokens as the blocks take them. Only the refiner's gates depend on the timestep."""
        refiner = self.weights.context_embedder
        embedder = refiner.time_text_embed
        waves = embedder.time_proj(torch.full((1,), timestep, device=prompt.tokens.device))
        emb = F.silu(embedder.timestep_embedder(waves.to(self.dtype)) + prompt.mean)
        c, found = prompt.tokens, prompt.found
        for index, block in enumerate(refiner.token_refiner.refiner_blocks):
            gate, mlp_gate = block.norm_out.linear(emb).chunk(2, dim=-1)
            c = c + (found if index == 0 else self._refiner_attention(block, c)) * gate
            c = c + block.ff(block.norm2(c)) * mlp_gate
        return c

    def _refiner_attention(self, block: Any, c: Tensor) -> Tensor:
        h, attn = block.norm1(c), block.attn
        q, k, v = (linear(h).unflatten(-1, (attn.heads, -1)) for linear in (attn.to_q, attn.to_k, attn.to_v))
        out: Tensor = attn.to_out[0](attend(q, k, v, F.scaled_dot_product_attention))
        return out

    def _placed(
        self, grid: Grid, share: Share, device: torch.device, positions: Positions | None, mixed: TokenSet | None
    ) -> tuple[Tables, Tensor | None]:
        if mixed is None:
            return self._tables(grid, share, device, positions)
        make = functools.partial(self._make_tables, grid, share, device, positions, mixed)
        found: tuple[Tables, Tensor | None] = mixed.once((id(self), share), make)
        return found

    def _make_tables(
        self, grid: Grid, share: Share, device: torch.device, positions: Positions | None, mixed: TokenSet | None = None
    ) -> tuple[Tables, Tensor | None]:
        """Each layer's cosines and sines ``[rows, head_dim / 2, 2]``, text standing still; the mark of the first frame's rows.

        For the rows of one share. Tables belong to it alone, so that they tell recordings apart.
        """

        def table(whole: Grid) -> Tensor:
            cells = [size * patch for size, patch in zip(whole, self.patch, strict=True)]
            cos, sin = self.weights.rope(torch.empty(1, 1, *cells, device=device))
            return torch.stack([cos[:, 0::2], sin[:, 0::2]], dim=-1)

        def mine(rows: Tensor) -> Tensor:
            image = rows[share.image.start : share.image.stop]
            ones = torch.ones(share.num_rows - len(image), image.shape[1], device=device)
            return torch.cat([image, torch.stack([ones, torch.zeros_like(ones)], dim=-1)])

        if mixed:
            mine_first = mixed.first_frame[share.image.start : share.image.stop].to(device)
            mark = F.pad(mine_first, (0, 0, 0, share.num_rows - len(share.image)))
        else:
            num_first = len(share.image[: max(grid[1] * grid[2] - share.image.start, 0)])
            mark = torch.arange(share.num_rows, device=device).unsqueeze(1) < num_first
        rope = per_layer(len(self.duals) + len(self.singles), grid, positions, table, mine, mixed)
        return rope, mark if self.replaces_first else None

    def _embed(self, x: Tensor, share: Share, mixed: TokenSet | None) -> Tensor:
        """``[1, c, (t pt), (h ph), (w pw)]`` to this rank's of ``[1, t h w, D]``: the patch convolution as one product."""
        proj = self.weights.x_embedder.proj
        rows = mixed.take(x, self._parts) if mixed else self._parts(x)
        return F.linear(rows[:, share.image.start : share.image.stop], proj.weight.flatten(1), proj.bias)

    def _parts(self, x: Tensor) -> Tensor:
        """What is in each patch, ``[1, t h w, (c pt ph pw)]``."""
        pt, ph, pw = self.patch
        t, h, w = patches(x, self.patch)
        parts = x.to(self.dtype).reshape(1, -1, t, pt, h, ph, w, pw).permute(0, 2, 4, 6, 1, 3, 5, 7)
        return parts.flatten(4).flatten(1, 3)

    def _unpatch(self, h: Tensor, grid: Grid) -> Tensor:
        """``[B, t h w, (c pt ph pw)]`` to ``[B, c, (t pt), (h ph), (w pw)]``."""
        out = h.view(len(h), *grid, -1, *self.patch).permute(0, 4, 1, 5, 2, 6, 3, 7)
        return out.flatten(6, 7).flatten(4, 5).flatten(2, 3)


def _first_modulation(block: Any, shard: Group) -> tuple[Tensor, Tensor]:
    """What makes shift and scale of the first block's image tokens, whole on every rank: caches look at them out of turn."""
    weight, bias = _pair(block.norm1.linear)
    return (
        weight.detach()[: len(weight) // 3].to(shard.device, copy=True),
        bias.detach()[: len(bias) // 3].to(shard.device, copy=True),
    )


def _drained(blocks: nn.ModuleList, bundle: Callable[[Any], Bundle]) -> Iterator[Bundle]:
    """Bundles of weights, one block after the other, each leaving the list: fused copies never double the memory."""
    while len(blocks):
        yield bundle(blocks.pop(0))


def _dual_weights(block: Any) -> DualWeights:
    a = block.attn
    image = _stream(block.norm1, (a.to_q, a.to_k, a.to_v), (a.norm_q, a.norm_k), a.to_out[0], block.ff)
    added = (a.add_q_proj, a.add_k_proj, a.add_v_proj), (a.norm_added_q, a.norm_added_k)
    return DualWeights(image, _stream(block.norm1_context, *added, a.to_add_out, block.ff_context))


def _stream(norm: Any, qkv: Sequence[nn.Linear], qk_norms: Sequence[Any], out: nn.Linear, ff: Any) -> StreamWeights:
    up, down = ff.net[0].proj, ff.net[2]
    norm_q, norm_k = (norm.weight for norm in qk_norms)
    return StreamWeights(*_pair(norm.linear), *_fuse(qkv), norm_q, norm_k, *_pair(out), *_pair(up), *_pair(down))


def _single_weights(block: Any) -> SingleWeights:
    a, dim = block.attn, block.attn.to_q.in_features
    out = block.proj_out
    norms = a.norm_q.weight, a.norm_k.weight
    parts = _static(out.weight[:, :dim]), _static(out.weight[:, dim:]), out.bias
    qkv = _fuse((a.to_q, a.to_k, a.to_v))
    return SingleWeights(*_pair(block.norm.linear), *qkv, *norms, *_pair(block.proj_mlp), *parts)


def _pair(linear: nn.Linear) -> tuple[Tensor, Tensor]:
    return linear.weight, linear.bias


def _fuse(linears: Sequence[nn.Linear]) -> tuple[Tensor, Tensor]:
    """The weights of several layers as one product."""
    weights, biases = ([getattr(linear, name) for linear in linears] for name in ("weight", "bias"))
    return _static(torch.cat(weights)), _static(torch.cat(biases))


def _static(weight: Tensor) -> Tensor:
    """As a parameter, whose sizes a compiler with dynamic shapes takes for constants."""
    return nn.Parameter(weight.detach(), requires_grad=False)
