"""HunyuanVideo's blocks one by one, and in halves, for accelerators: blocks of two streams first, then of one."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from orchestrator.types import Grid
from stages.accelerators.trunk import State, Trunk
from stages.compiling import maybe_compile
from stages.kernels import modulated_norm
from stages.models.hunyuan_block import EPS, attend_dual, attend_single, finish_dual, finish_single, modulations
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
    """One forward in parts. Between blocks image and text are apart, whichever kind they are of."""
    num, num_duals = h.shape[1], len(net.duals)
    first_image = None if first is None else first[:num]

    def one(index: int, state: State) -> State:
        if index < num_duals:
            return net.dual_block(every(net.duals)[index], *state, emb, rope[index][:num], first_image)
        return split(net.single_block(every(net.singles)[index - num_duals], torch.cat(state, dim=1), emb, rope[index], first))

    def attend(index: int, state: State) -> State:
        if index < num_duals:
            return net.halves.attend_dual(every(net.duals)[index], *state, emb, rope[index][:num], first_image)
        weights = every(net.singles)[index - num_duals]
        return split(net.halves.attend_single(weights, torch.cat(state, dim=1), emb, rope[index], first))

    def attend_on(index: int, state: State, rows: Tensor, counts: tuple[int, ...]) -> State:
        text = torch.arange(num, num + c.shape[1], device=rows.device)
        kept = rows if index < num_duals else torch.cat([rows, text])
        table, mark = rope[index][kept], None if first is None else first[kept]
        with net.seam.holding(counts):
            if index < num_duals:
                return net.halves.attend_dual(every(net.duals)[index], *state, emb, table, mark)
            found = net.halves.attend_single(every(net.singles)[index - num_duals], torch.cat(state, dim=1), emb, table, mark)
        return found[:, : len(rows)], found[:, len(rows) :]

    def finish(index: int, state: State, found: State) -> State:
        if index < num_duals:
            return net.halves.finish_dual(every(net.duals)[index], *state, *found, emb, first_image)
        weights, joined = every(net.singles)[index - num_duals], (torch.cat(state, dim=1), torch.cat(found, dim=1))
        return split(net.halves.finish_single(weights, *joined, emb, first))

    def split(joined: Tensor) -> State:
        return joined[:, :num], joined[:, num:]

    def gate(index: int) -> Tensor:
        if index < num_duals:
            image = every(net.duals)[index].image
            return modulations(emb, image.modulate_w, image.modulate_b, 6, first_image)[2]
        single = every(net.singles)[index - num_duals]
        return modulations(emb, single.modulate_w, single.modulate_b, 3, first_image)[2]

    def seen() -> Tensor:
        weight, bias = net.first_modulation or every(net.duals)[0].image[:2]
        rows = 2 * h.shape[-1]
        shift, scale = modulations(emb, weight[:rows], bias[:rows], 2, first_image)
        return modulated_norm(h, scale, shift, EPS)

    signals = {"input": seen, "time": lambda: time[:1], "modulation": lambda: emb[:1]}
    share = attended(h.shape[-1], math.prod(grid) + c.shape[1], int(net.weights.config.mlp_ratio * h.shape[-1]))
    return Trunk(
        (h, c), num_duals + len(net.singles), lambda: whole()[:, :num], one, attend, finish, lambda state: state[0],
        signals, share, id(net), deciding(net.duals, net.seam.layout), branches_apart(net.duals, net.seam.layout),
        grid[1] * grid[2], gate, attend_on,
    )  # fmt: skip
