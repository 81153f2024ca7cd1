"""The fastest exchange that works on a pod, found out before the first clip."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from parallel.groups import Group, Groups, aligned_ranks, told
from parallel.native import Native
from parallel.peer import Peer
from parallel.seam import Exchange
from parallel.shares import piece, shares

log = logging.getLogger(__name__)

HEADS_EACH, HEAD_DIM, SPARE_TOKENS = 2, 64, 5
CLOSE = 2e-2
"""Relative distance: rounding of bf16."""


def fastest(groups: Groups) -> Exchange:
    """Direct writes into the peers' memory where all GPUs of the pod can, otherwise collectives, and the log says why."""
    if groups.device.type != "cuda" or groups.num_ranks == 1:
        return Native()
    return passing(Peer(), groups)


def passing(exchange: Exchange, groups: Groups) -> Exchange:
    """``exchange`` if all ranks of the pod find with it what one rank finds, otherwise ``native`` on all of them.

    Ranks agree after each part of the trial, so that none waits on its GPU, where waits never end, for one that has given up.
    """
    group = _widest(groups)
    for part in (_allocate, _reserve, _attend):
        problem = None if group is None else _problem(part, exchange, group)
        if not _all(problem is None):
            log.warning(
                "exchange %s is not used on this pod, native is: %s", exchange.name, problem or "it failed on another rank"
            )
            return Native()
    return exchange


def _widest(groups: Groups) -> Group | None:
    """This rank's widest slice."""
    widest = max((ranks for ranks in aligned_ranks(groups.num_ranks) if groups.rank in ranks), key=len, default=None)
    return None if widest is None else groups.slice(widest.start, len(widest))


def _all(passed: bool) -> bool:
    """Whether it is so on all ranks of the pod. Never touches a GPU."""
    found = torch.tensor(int(passed))
    with told("agreeing on an exchange"):
        dist.all_reduce(found, dist.ReduceOp.MIN)
    return bool(found.item())


def _problem(part: Callable[[Exchange, Group], str | None], exchange: Exchange, group: Group) -> str | None:
    """What goes wrong on this rank, if anything."""
    try:
        return part(exchange, group)
    except (RuntimeError, ValueError, ImportError, AttributeError) as error:  # as a driver or a torch shows that cannot do it
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _allocate(exchange: Exchange, group: Group) -> None:
    """Memory that others could reach, on this rank alone."""
    if isinstance(exchange, Peer):
        exchange.allocate(group)


def _reserve(exchange: Exchange, group: Group) -> None:
    """The buffers of the next part, for which the hosts meet."""
    if isinstance(exchange, Peer):
        exchange.buffer(group, _dtype(group))


def _attend(exchange: Exchange, group: Group) -> str | None:
    distance = _distance(exchange, group)
    return None if distance < CLOSE else f"its attention is off by {distance:.0%}"


def _dtype(group: Group) -> torch.dtype:
    return torch.float32 if group.device.type == "cpu" else torch.bfloat16


def _distance(exchange: Exchange, group: Group) -> float:
    """From this rank's rows of one small attention as one rank finds them."""
    counts = shares(group.size * SPARE_TOKENS + 1, group.size)
    generator = torch.Generator().manual_seed(0)
    wide = [torch.randn(1, group.size * HEADS_EACH, sum(counts), HEAD_DIM, generator=generator) for _ in range(3)]
    q, k, v = (x.to(group.device, _dtype(group)) for x in wide)
    mine = piece(counts, group.rank)
    found: Tensor = exchange(q[:, :, mine], k[:, :, mine], v[:, :, mine], F.scaled_dot_product_attention, group, counts)
    expected = F.scaled_dot_product_attention(q, k, v)[:, :, mine].float()
    return float((found.float() - expected).norm() / expected.norm())
