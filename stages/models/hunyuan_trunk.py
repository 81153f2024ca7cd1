"""HunyuanVideo's blocks one by one, and in halves, for accelerators: blocks of two streams first, then of one."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from orchestrator.types import Grid
from stages.accelerators.trunk import State, Trunk
from stages.compiling import maybe_compile
from stages.kernels import modulated_norm
from stages.models.hunyuan_block import (
    EPS,
    DualWeights,
    SingleWeights,
    attend_dual,
    attend_single,
    finish_dual,
    finish_single,
    modulations,
)
from stages.models.layers import Tables, attended, branches_apart, deciding, every

if TYPE_CHECKING:
    from stages.models.hunyuan_transformer import HunyuanTransformer


class Halves:
    """Attention and the rest of both kinds of block, each compiled when it is first used."""

    def __init__(self, constants: Mapping[str, Any], compiled: bool) -> None:
        self.attend_dual: Callable[..., State] = maybe_compile(functools.partial(attend_dual, **constants), compiled)
        self.attend_single: Callable[..., Tensor] = maybe_compile(functools.partial(attend_single, **constants), compiled)
        self.finish_dual: Callable[..., State] = maybe_compile(finish_dual, compiled)
        self.finish_single: Callable[..., Tensor] = maybe_compile(finish_single, compiled)


@dataclass(frozen=True, eq=False)
class ForwardParts:
    """Blocks of one forward by their index. Between them image and text are apart, whichever kind they are of."""

    net: HunyuanTransformer
    num: int
    """Image tokens of this rank; text follows them."""
    num_text: int
    emb: Tensor
    rope: Tables
    first: Tensor | None
    """Which tokens are of a clean first frame."""

    def block(self, index: int, state: State) -> State:
        net = self.net
        if self._is_dual(index):
            return net.dual_block(self._dual(index), *state, self.emb, self.rope[index][: self.num], self._first_image)
        joined = torch.cat(state, dim=1)
        return self._split(net.single_block(self._single(index), joined, self.emb, self.rope[index], self.first))

    def attend(self, index: int, state: State) -> State:
        halves = self.net.halves
        if self._is_dual(index):
            return halves.attend_dual(self._dual(index), *state, self.emb, self.rope[index][: self.num], self._first_image)
        joined = torch.cat(state, dim=1)
        return self._split(halves.attend_single(self._single(index), joined, self.emb, self.rope[index], self.first))

    def attend_on(self, index: int, state: State, rows: Tensor, counts: tuple[int, ...]) -> State:
        halves, is_dual = self.net.halves, self._is_dual(index)
        text = torch.arange(self.num, self.num + self.num_text, device=rows.device)
        kept = rows if is_dual else torch.cat([rows, text])
        table, mark = self.rope[index][kept], None if self.first is None else self.first[kept]
        with self.net.seam.holding(counts):
            if is_dual:
                return halves.attend_dual(self._dual(index), *state, self.emb, table, mark)
            found = halves.attend_single(self._single(index), torch.cat(state, dim=1), self.emb, table, mark)
        return found[:, : len(rows)], found[:, len(rows) :]

    def finish(self, index: int, state: State, found: State) -> State:
        halves = self.net.halves
        if self._is_dual(index):
            return halves.finish_dual(self._dual(index), *state, *found, self.emb, self._first_image)
        joined = torch.cat(state, dim=1), torch.cat(found, dim=1)
        return self._split(halves.finish_single(self._single(index), *joined, self.emb, self.first))

    def gate(self, index: int) -> Tensor:
        if self._is_dual(index):
            image = self._dual(index).image
            return modulations(self.emb, image.modulate_w, image.modulate_b, 6, self._first_image)[2]
        single = self._single(index)
        return modulations(self.emb, single.modulate_w, single.modulate_b, 3, self._first_image)[2]

    def seen(self, h: Tensor) -> Tensor:
        """What block 0 sees of ``h``, modulated."""
        weight, bias = self.net.first_modulation or self._dual(0).image[:2]
        rows = 2 * h.shape[-1]
        shift, scale = modulations(self.emb, weight[:rows], bias[:rows], 2, self._first_image)
        return modulated_norm(h, scale, shift, EPS)

    @property
    def _first_image(self) -> Tensor | None:
        return None if self.first is None else self.first[: self.num]

    def _is_dual(self, index: int) -> bool:
        return index < len(self.net.duals)

    def _dual(self, index: int) -> DualWeights:
        return every(self.net.duals)[index]

    def _single(self, index: int) -> SingleWeights:
        return every(self.net.singles)[index - len(self.net.duals)]

    def _split(self, joined: Tensor) -> State:
        return joined[:, : self.num], joined[:, self.num :]


def trunk(
    net: HunyuanTransformer,
    whole: Callable[[], Tensor],
    h: Tensor,
    c: Tensor,
    emb: Tensor,
    rope: Tables,
    first: Tensor | None,
    time: Tensor,
    grid: Grid,
) -> Trunk:
    """One forward in parts."""
    num = h.shape[1]
    parts = ForwardParts(net, num, c.shape[1], emb, rope, first)
    signals = {"input": lambda: parts.seen(h), "time": lambda: time[:1], "modulation": lambda: emb[:1]}
    share = attended(h.shape[-1], math.prod(grid) + c.shape[1], int(net.weights.config.mlp_ratio * h.shape[-1]))
    return Trunk(
        (h, c), len(net.duals) + len(net.singles), lambda: whole()[:, :num], parts.block, parts.attend, parts.finish,
        lambda state: state[0], signals, share, id(net), deciding(net.duals, net.seam.layout),
        branches_apart(net.duals, net.seam.layout), grid[1] * grid[2], parts.gate, parts.attend_on,
    )  # fmt: skip
