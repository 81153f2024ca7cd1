"""HunyuanVideo-1.5's transformer (arXiv 2511.18870) over diffusers' weights, without the work that repeats from step to step.

The same function as ``HunyuanVideo15Transformer3DModel.forward`` at batch 1 up to rounding. What differs: no padded text and no
mask (the stock model's mask hides padding from every valid token, so cutting it changes nothing), what depends on the prompt
alone is done once, modulation of all layers is one product, rotary tables are kept per grid, and zero channels are not read.
On a slice of ranks each has some image and some text tokens; what comes before the blocks is small, and every rank does it whole.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from orchestrator.types import Grid
from parallel.groups import Group
from parallel.seam import Attention
from parallel.sharding import empty
from stages.accelerators.base import Boost
from stages.accelerators.trunk import State, Trunk
from stages.attention import opaque
from stages.compiling import maybe_compile
from stages.kernels import modulated_norm
from stages.models.base import Positions
from stages.models.hunyuan15_block import EPS, StreamWeights, attend_part, block, bundle, finish_part
from stages.models.joint import JointSeam, Share
from stages.models.layers import Tables, attended, branches_apart, deciding, every, fuse, kept, per_layer, require_all
from stages.replay import Replay
from stages.sampling import NoiseLevel
from stages.token_sets import TokenSet

TEXT, GLYPHS, IMAGE = range(3)
"""Rows of the embedding that tells the kinds of condition tokens apart."""


@dataclass(frozen=True, eq=False)
class PromptMemory:
    """What a prompt alone decides: image and glyph tokens ``fixed [1, n, D]``; text ``rows [1, m, D]`` and ``pooled [1, D]``."""

    fixed: Tensor
    rows: Tensor
    pooled: Tensor


@dataclass(frozen=True, eq=False)
class TimeState:
    """What a noise level alone decides, for all branches of guidance.

    ``modulation [layers, 2, 6, D]`` of the blocks, ``last [2, D]`` scale and shift of the output, ``text [1, D]`` of the refiner,
    ``time [1, D]`` what they were made of.
    """

    modulation: Tensor
    last: Tensor
    text: Tensor
    time: Tensor


class Hunyuan15Transformer:
    """Callable ``(x, condition, time, memory) -> velocity``. ``seam`` is where a slice of ranks shares its tokens."""

    def __init__(
        self,
        weights: Any,
        attention: Attention = F.scaled_dot_product_attention,
        compiled: bool = False,
        shard: Group | None = None,
    ) -> None:
        """``weights`` is a ``HunyuanVideo15Transformer3DModel``; ``attention`` is of image and text together, on one rank.

        With ``shard`` the weights, which may be on a CPU, go to the group's devices, the blocks' in shares but for modulation.
        """
        self.weights = weights
        self.seam = JointSeam(attention)
        self.boost: Boost | None = None
        self.block = maybe_compile(functools.partial(block, attention=opaque(self.seam)), compiled)
        self.attend = maybe_compile(functools.partial(attend_part, attention=opaque(self.seam)), compiled)
        self.finish = maybe_compile(finish_part, compiled)
        self.dtype: torch.dtype = weights.dtype
        self.meanflow: bool = weights.config.use_meanflow
        self.num_latent_channels: int = weights.config.out_channels
        blocks = weights.transformer_blocks
        self._blocks = kept(_drained(blocks) if shard else map(bundle, blocks), shard)
        if shard is not None:
            weights.to(shard.device)
        norms = [norm for module in weights.transformer_blocks for norm in (module.norm1, module.norm1_context)]
        self._modulation = fuse([norm.linear for norm in norms])
        self._embed = weights.x_embedder.proj.weight.detach().flatten(1)
        self.replay = Replay(self._run, compiled and shard is None)  # gathered weights lie elsewhere each time
        self._rope = functools.lru_cache(maxsize=8)(self._make_rope)

    def remember(self, tensors: Mapping[str, Tensor]) -> PromptMemory:
        """A prompt's projections, once for all its steps; ``tensors`` are those of ``Hunyuan15Encoders``."""
        weights, device = self.weights, self._embed.device
        kinds = weights.cond_type_embed.weight
        text, glyphs = (tensors[name].to(device, self.dtype) for name in ("text", "glyphs"))
        fixed = weights.context_embedder_2(glyphs) + kinds[GLYPHS]
        if "image" in tensors:
            fixed = torch.cat([weights.image_embedder(tensors["image"].to(device, self.dtype)) + kinds[IMAGE], fixed], dim=1)
        pooled = text.float().mean(dim=1).to(self.dtype)
        refiner = weights.context_embedder
        return PromptMemory(fixed, refiner.proj_in(text), refiner.time_text_embed.text_embedder(pooled))

    def time(self, level: NoiseLevel) -> TimeState:
        """Both timesteps of a level, embedded; the second one counts for MeanFlow weights only."""
        weights = self.weights
        time = self._embedded(weights.time_embed.time_proj, weights.time_embed.timestep_embedder, level.timestep)
        if self.meanflow:
            embed = weights.time_embed
            time = time + self._embedded(embed.time_proj_r, embed.timestep_embedder_r, level.timestep_next)
        active = F.silu(time)
        modulation = F.linear(active, *self._modulation).view(len(self._blocks), 2, 6, -1)
        last = weights.norm_out.linear(active).view(2, -1)
        text = weights.context_embedder.time_text_embed
        return TimeState(modulation, last, self._embedded(text.time_proj, text.timestep_embedder, level.timestep), time)

    def __call__(
        self,
        x: Tensor,
        condition: Tensor | None,
        time: TimeState,
        memory: PromptMemory,
        positions: Positions | None = None,
        mixed: TokenSet | None = None,
    ) -> Tensor:
        """Velocity ``[branches, C, T, H, W]`` float32: of one, or of both where the ranks of a slice have one each.

        ``condition [1, C + 1, T, H, W]``: image latent and mask; None means zeros.
        """
        c, grid = self._text(memory, time), (x.shape[2], x.shape[3], x.shape[4])
        if self.boost is not None:
            mixed = self.boost.tokens(id(self), mixed)
        counts = mixed.num_tokens if mixed else math.prod(grid), c.shape[1]
        share = self.seam.share(*counts, mixed.unit if mixed else 1)
        h, rope = self._tokens(x, condition, share, mixed), self._rotations(grid, share.image, positions, mixed)
        inputs = (h, share.text_rows(c), time.modulation), (rope, share)
        whole = functools.partial(self.replay if self.seam.instead is None else self.replay.live, *inputs)
        h = whole() if self.boost is None else self.boost(self._trunk(whole, *inputs[0], inputs[1][0], time, grid))
        scale, shift = time.last.float()
        rows = self.seam.join(self.weights.proj_out(modulated_norm(h, scale, shift, EPS)))
        return (mixed.lay(rows, _laid) if mixed else _laid(rows, grid)).float()

    def _run(self, h: Tensor, c: Tensor, modulation: Tensor, rope: Tables, share: Share) -> Tensor:
        """All layers; what they make of the condition tokens is not used. ``share`` only tells recordings apart."""
        require_all(self._blocks, self.seam.layout)
        for (image, text), rows, table in zip(self._blocks, modulation, rope, strict=True):
            h, c = self.block(image, text, rows, h, c, table)
        return h

    def _trunk(
        self, whole: Callable[[], Tensor], h: Tensor, c: Tensor, modulation: Tensor, rope: Tables, time: TimeState, grid: Grid
    ) -> Trunk:
        """The same forward in parts."""

        def one(index: int, state: State) -> State:
            return self.block(*every(self._blocks)[index], modulation[index], *state, rope[index])

        def attend(index: int, state: State) -> State:
            return self.attend(*every(self._blocks)[index], modulation[index], *state, rope[index])

        def attend_on(index: int, state: State, rows: Tensor, counts: tuple[int, ...]) -> State:
            with self.seam.holding(counts):
                return self.attend(*every(self._blocks)[index], modulation[index], *state, rope[index][rows])

        def finish(index: int, state: State, found: State) -> State:
            return self.finish(*every(self._blocks)[index], modulation[index], *state, *found)

        def seen() -> Tensor:
            shift, scale = modulation[0, 0, :2]
            return modulated_norm(h, scale, shift, EPS)

        signals = {"input": seen, "time": lambda: time.time, "modulation": lambda: modulation[0]}
        share = attended(h.shape[-1], math.prod(grid) + c.shape[1], 4 * h.shape[-1])
        return Trunk(
            (h, c), len(self._blocks), whole, one, attend, finish, lambda state: state[0], signals,
            share, id(self), deciding(self._blocks, self.seam.layout), branches_apart(self._blocks, self.seam.layout),
            grid[1] * grid[2], lambda index: modulation[index, 0, 2], attend_on,
        )  # fmt: skip

    def _tokens(self, x: Tensor, condition: Tensor | None, share: Share, mixed: TokenSet | None) -> Tensor:
        """One token per latent cell, this rank's of ``[1, N, D]``."""
        channels, mine = self.num_latent_channels, slice(share.image.start, share.image.stop)

        def rows(x: Tensor) -> Tensor:
            return (mixed.take(x, _rows) if mixed else _rows(x)).to(self.dtype)[:, mine]

        h = F.linear(rows(x), self._embed[:, :channels], self.weights.x_embedder.proj.bias)
        return h if condition is None else h + F.linear(rows(condition), self._embed[:, channels:])

    def _text(self, memory: PromptMemory, time: TimeState) -> Tensor:
        """Condition tokens ``[1, n, D]``: image, glyphs, then the text, refined for this noise level."""
        h, active = memory.rows, F.silu(time.text + memory.pooled)
        for refiner in self.weights.context_embedder.token_refiner.refiner_blocks:
            gate, gate_ff = refiner.norm_out.linear(active).chunk(2, dim=1)
            h = torch.addcmul(h, self._refiner_attend(refiner.attn, refiner.norm1(h)), gate)
            h = torch.addcmul(h, refiner.ff(refiner.norm2(h)), gate_ff)
        return torch.cat([memory.fixed, h + self.weights.cond_type_embed.weight[TEXT]], dim=1)

    def _refiner_attend(self, attn: Any, h: Tensor) -> Tensor:
        q, k, v = (project(h).unflatten(2, (attn.heads, -1)).transpose(1, 2) for project in (attn.to_q, attn.to_k, attn.to_v))
        out: Tensor = attn.to_out[0](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return out

    def _embedded(self, waves: Any, embedder: Any, timestep: float) -> Tensor:
        """``[1, D]``. The timestep is filled in on the device, so the host never waits."""
        steps = torch.full((1,), timestep, dtype=torch.float32, device=self._embed.device)
        out: Tensor = embedder(waves(steps).to(self.dtype))
        return out

    def _rotations(self, grid: Grid, image: range, positions: Positions | None, mixed: TokenSet | None) -> Tables:
        if mixed is None:
            return self._rope(grid, image, positions)
        return mixed.once((id(self), image), functools.partial(self._make_rope, grid, image, positions, mixed))

    def _make_rope(self, grid: Grid, image: range, positions: Positions | None, mixed: TokenSet | None = None) -> Tables:
        """Each layer's cosines and sines ``[n, head_dim / 2, 2]`` of some of a grid's cells."""

        def table(whole: Grid) -> Tensor:
            cos, sin = self.weights.rope(self._embed.new_empty(1, 1, *whole))
            return torch.stack([cos[:, 0::2], sin[:, 0::2]], dim=-1)

        def mine(rows: Tensor) -> Tensor:
            return rows[image.start : image.stop].contiguous()

        return per_layer(len(self._blocks), grid, positions, table, mine, mixed)


def _drained(blocks: Iterable[Any]) -> Iterator[tuple[StreamWeights, StreamWeights]]:
    """Each block's weights; whoever takes the next has put these elsewhere, so nothing else may hold on to them."""
    for module in blocks:
        yield bundle(module)
        empty(module.attn.parameters())


def _rows(x: Tensor) -> Tensor:
    """``[1, C, T, H, W]`` to ``[1, T H W, C]``."""
    return x.flatten(2).transpose(1, 2)


def _laid(rows: Tensor, grid: Grid) -> Tensor:
    """``[B, T H W, C]`` to ``[B, C, T, H, W]``."""
    return rows.transpose(1, 2).unflatten(2, grid)
