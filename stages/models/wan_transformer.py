"""Wan's transformer (Wan 2.1, arXiv 2503.20314) over diffusers' weights, without the work that repeats from step to step.

The same function as ``WanTransformer3DModel.forward`` up to rounding; what differs is what is done once: text keys and
values per prompt, rotary tables per grid, one fused q-k-v product, one modulation per timestep instead of one per token. On
several ranks each embeds, transforms and projects its own rows of the tokens; the velocity is joined on all of them.
"""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from orchestrator.types import Grid
from parallel.groups import Group
from parallel.seam import Seam
from parallel.sharding import Sharded, empty
from stages.accelerators.base import Boost
from stages.accelerators.trunk import State, Trunk
from stages.attention import in_blocks
from stages.compiling import maybe_compile
from stages.kernels import modulated_norm
from stages.models.base import Branch, Positions
from stages.models.layers import Tables, attended, branches_apart, deciding, every, kept, patches, per_layer, require_all
from stages.models.wan_block import (
    BlockWeights,
    CrossMemory,
    attend_part,
    block,
    block_weights,
    finish_part,
    per_token,
    split_heads,
)
from stages.replay import Replay
from stages.token_sets import TokenSet

ON_CPU = ("cpu",)
"""Devices where complex products and a bias on the logits are the faster forms."""

TextMemory = tuple[CrossMemory, ...]
"""Cross-attention keys and values of one prompt, per layer."""


class WanTransformer:
    """Callable ``(x, timestep, branch, clean_first) -> velocity``, on the ranks that the seam is attached to."""

    def __init__(self, weights: Any, seam: Seam | None = None, compiled: bool = False, shard: Group | None = None) -> None:
        """``weights`` is a ``WanTransformer3DModel``. Attention to the prompt is by the seam's kernel alone; None: torch's.

        With ``shard`` the weights, which may be on a CPU, go to the group's devices, the layers' in shares.
        Raises ValueError for weights without a norm before cross-attention.
        """
        if not weights.config.cross_attn_norm:
            raise ValueError("these Wan weights have cross_attn_norm false: every published Wan model has it true")
        self.weights = weights
        self.patch: Grid = tuple(weights.config.patch_size)
        self.heads = weights.config.num_attention_heads
        self.eps = weights.config.eps
        self.dtype: torch.dtype = weights.dtype
        self._tables = torch.stack([layer.scale_shift_table.data[0].float() for layer in weights.blocks])
        self.layers = kept(_drained(weights.blocks) if shard else map(block_weights, weights.blocks), shard)
        if shard is not None:
            weights.to(shard.device)
            self._tables = self._tables.to(shard.device)
        self.device: torch.device = weights.device
        self.seam = seam or Seam(F.scaled_dot_product_attention)
        self.compiled = compiled
        self.boost: Boost | None = None
        attention, local = (in_blocks(kernel, self.device, compiled) for kernel in (self.seam, self.seam.local))
        sizes = {"heads": self.heads, "eps": self.eps}
        self.block = maybe_compile(functools.partial(block, **sizes, attention=attention, local=local), compiled)
        self.attend = maybe_compile(functools.partial(attend_part, **sizes, attention=attention), compiled)
        self.finish = maybe_compile(functools.partial(finish_part, **sizes, local=local), compiled)
        self._rope = functools.lru_cache(maxsize=16)(self._make_rope)
        self._first = functools.lru_cache(maxsize=16)(self._first_frame)
        self._replays: weakref.WeakKeyDictionary[Branch, Replay] = weakref.WeakKeyDictionary()
        self._memories: weakref.WeakKeyDictionary[Branch, TextMemory] = weakref.WeakKeyDictionary()

    def remember(self, branch: Branch) -> TextMemory:
        """Keys and values of a prompt, kept as long as the branch they came from."""
        if branch not in self._memories:
            self._memories[branch] = self._make_memory(branch)
        return self._memories[branch]

    def __call__(
        self,
        x: Tensor,
        timestep: float,
        branch: Branch,
        clean_first: bool = False,
        positions: Positions | None = None,
        mixed: TokenSet | None = None,
    ) -> Tensor:
        """Velocity ``[1, C, T, H, W]`` float32 of the noisy latent with its condition's channels, ``[1, C + ..., T, H, W]``.

        Where ranks split guidance, it is ``[2, C, T, H, W]``: of both branches, each from the ranks whose ``branch`` it is.
        With ``clean_first`` the first latent frame is told timestep 0. Raises ValueError if the grid is no multiple of the patch.
        """
        grid, memory = patches(x, self.patch), self.remember(branch)
        if self.boost is not None:
            mixed = self.boost.tokens(id(self), mixed)
        rows, _ = self.seam.cut(mixed.num_tokens if mixed else math.prod(grid), unit=mixed.unit if mixed else 1)
        rope = self._rotations(grid, rows, positions, mixed)
        is_first = self._is_first(grid, rows, mixed) if clean_first else None
        time, modulations = self._embed_time((0.0, timestep) if clean_first else (timestep,))
        inputs = (self._embed(x, rows, mixed), modulations), (is_first, rope, memory), self.seam.key
        replay = self._replay(branch)
        whole = functools.partial(replay if self.seam.instead is None else replay.live, *inputs)
        h = whole() if self.boost is None else self.boost(self._trunk(whole, *inputs[0], *inputs[1], time, grid))
        table = self.weights.scale_shift_table[0] + time.unsqueeze(-2)
        shift, scale = (per_token(row, is_first) for row in table.float().unbind(-2))
        velocity: Tensor = self.weights.proj_out(modulated_norm(h, scale, shift, self.eps))
        found = self.seam.join(velocity)
        return (mixed.lay(found, self._unpatch) if mixed else self._unpatch(found, grid)).float()

    def _run(self, h: Tensor, modulations: Tensor, is_first: Tensor | None, rope: Tables, memory: TextMemory) -> Tensor:
        """All layers."""
        require_all(self.layers, self.seam.layout)
        for layer, modulation, table, seen in zip(self.layers, modulations, rope, memory, strict=True):
            h = self.block(layer, h, modulation, is_first, table, seen)
        return h

    def _trunk(
        self,
        whole: Callable[[], Tensor],
        h: Tensor,
        modulations: Tensor,
        is_first: Tensor | None,
        rope: Tables,
        memory: TextMemory,
        time: Tensor,
        grid: Grid,
    ) -> Trunk:
        """The same forward in parts."""
        layers = self.layers

        def one(index: int, state: State) -> State:
            return (self.block(every(layers)[index], state[0], modulations[index], is_first, rope[index], memory[index]),)

        def attend(index: int, state: State) -> State:
            return (self.attend(every(layers)[index], state[0], modulations[index], is_first, rope[index]),)

        def attend_on(index: int, state: State, rows: Tensor, counts: tuple[int, ...]) -> State:
            mark = None if is_first is None else is_first[rows]
            with self.seam.holding(counts):
                return (self.attend(every(layers)[index], state[0], modulations[index], mark, rope[index][rows]),)

        def finish(index: int, state: State, found: State) -> State:
            return (self.finish(every(layers)[index], state[0], found[0], modulations[index], is_first, memory[index]),)

        def gate(index: int) -> Tensor:
            return per_token(modulations[index].unbind(-2)[2], is_first)

        def seen() -> Tensor:
            shift, scale = (per_token(row, is_first) for row in modulations[0].unbind(-2)[:2])
            return modulated_norm(h, scale, shift, self.eps)

        def noisy(rows: Tensor, num_dims: int) -> Tensor:
            """Without the row of a clean first frame, which is told the same at every step."""
            return rows if rows.ndim == num_dims else rows[-1]

        signals = {
            "input": seen,
            "time": lambda: noisy(time, 1),
            "modulation": lambda: noisy(modulations[0] - self._tables[0], 2),
        }
        share = attended(h.shape[-1], math.prod(grid), self.weights.config.ffn_dim, cross=True)
        return Trunk(
            (h,), len(layers), whole, one, attend, finish, lambda state: state[0], signals,
            share, id(self), deciding(layers, self.seam.layout), branches_apart(layers, self.seam.layout),
            grid[1] * grid[2], gate, attend_on,
        )  # fmt: skip

    def _replay(self, branch: Branch) -> Replay:
        """Recordings read a prompt's keys and values, so they live as long as these. Gathered layers lie elsewhere each time."""
        if branch not in self._replays:
            self._replays[branch] = Replay(self._run, self.compiled and not isinstance(self.layers, Sharded))
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

    def _rotations(self, grid: Grid, rows: slice, positions: Positions | None, mixed: TokenSet | None) -> Tables:
        if mixed is None:
            return self._rope(grid, rows.start, rows.stop, positions)
        make = functools.partial(self._make_rope, grid, rows.start, rows.stop, positions, mixed)
        return mixed.once((id(self), rows.start, rows.stop), make)

    def _make_rope(self, grid: Grid, start: int, stop: int, positions: Positions | None, mixed: TokenSet | None = None) -> Tables:
        """For each layer cosines and sines of a grid's tokens ``start`` to ``stop``, ``[n, head_dim / 2, 2]``.

        On a CPU complex, without the 2. Memory of its own, which compiled code takes as it is.
        """

        def table(whole: Grid) -> Tensor:
            cells = [size * patch for size, patch in zip(whole, self.patch, strict=True)]
            cos, sin = self.weights.rope(torch.empty(1, 1, *cells, device=self.device))
            return torch.stack((cos[0, :, 0, 0::2], sin[0, :, 0, 1::2]), dim=-1).float()

        def mine(rows: Tensor) -> Tensor:
            rows = rows[start:stop].contiguous()
            return torch.view_as_complex(rows) if self.device.type in ON_CPU else rows

        return per_layer(len(self.layers), grid, positions, table, mine, mixed)

    def _is_first(self, grid: Grid, rows: slice, mixed: TokenSet | None) -> Tensor:
        if mixed is None:
            return self._first(grid, rows.start, rows.stop)
        found: Tensor = mixed.once(("first", id(self), rows.start, rows.stop), lambda: mixed.first_frame[rows].to(self.device))
        return found

    def _first_frame(self, grid: Grid, start: int, stop: int) -> Tensor:
        """Which of the tokens ``start`` to ``stop`` are of the first frame, ``[n, 1]``."""
        return (torch.arange(start, stop, device=self.device) < grid[1] * grid[2]).unsqueeze(-1)

    def _embed(self, x: Tensor, rows: slice, mixed: TokenSet | None) -> Tensor:
        """``[1, c, (t pt), (h ph), (w pw)]`` to ``rows`` of ``[1, t h w, D]``: the patch convolution as one product."""
        proj = self.weights.patch_embedding
        parts = mixed.take(x, self._parts) if mixed else self._parts(x)
        return F.linear(parts[:, rows], proj.weight.flatten(1), proj.bias)

    def _parts(self, x: Tensor) -> Tensor:
        """What is in each patch, ``[1, t h w, (c pt ph pw)]``."""
        (t, h, w), (pt, ph, pw) = patches(x, self.patch), self.patch
        parts = x.to(self.dtype).reshape(1, -1, t, pt, h, ph, w, pw).permute(0, 2, 4, 6, 1, 3, 5, 7)
        return parts.flatten(4).flatten(1, 3)

    def _unpatch(self, h: Tensor, grid: Grid) -> Tensor:
        """``[B, t h w, (pt ph pw c)]`` to ``[B, c, (t pt), (h ph), (w pw)]``."""
        out = h.reshape(-1, *grid, *self.patch, h.shape[-1] // math.prod(self.patch)).permute(0, 7, 1, 4, 2, 5, 3, 6)
        return out.flatten(6, 7).flatten(4, 5).flatten(2, 3)


def _drained(layers: Iterable[Any]) -> Iterator[BlockWeights]:
    """Each layer's weights; whoever takes the next has put these elsewhere, so nothing else may hold on to them.

    Keys and values of the prompt stay: ranks ask for them at different times, so that they could not be gathered.
    """
    for layer in layers:
        yield block_weights(layer)
        empty(layer.attn1.parameters())
