"""Sequence parallelism by DeepSpeed's own ``DistributedAttention`` (DeepSpeed-Ulysses, arXiv 2309.14509), for any token count.

It wants as many tokens on every rank. So a rank that has fewer pads its own by zero rows: by one at most, or, where runs of
tokens stay together, by as many as shares then differ, which makes it slower. Between the exchanges, where all tokens are
together, the pads are cut away before the local kernel and put back after it. No token ever sees a pad.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from parallel.groups import Group, told
from parallel.seam import Attention


class Ulysses:
    """The exchange. Must be made after the pod's groups, as DeepSpeed takes over what has been initialised."""

    name = "ulysses"

    def __init__(self) -> None:
        _initialise()
        self._attentions: dict[range, Any] = {}

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, local: Attention, group: Group, counts: tuple[int, ...]) -> Tensor:
        pads = max(counts) - counts[group.rank]
        tokens_first = [F.pad(x, (0, 0, 0, pads)).transpose(1, 2) if pads else x.transpose(1, 2) for x in (q, k, v)]
        with told("exchanging tokens"):
            out: Tensor = self._attention(group)(*tokens_first, 0, local=local, counts=counts)
        return out[:, : counts[group.rank]].transpose(1, 2)

    def _attention(self, group: Group) -> Any:
        """DeepSpeed's module over a group, made once."""
        if group.ranks not in self._attentions:
            from deepspeed.sequence.layer import DistributedAttention

            self._attentions[group.ranks] = DistributedAttention(_attend, group.handle, scatter_idx=2, gather_idx=1)
        return self._attentions[group.ranks]


def _initialise() -> None:
    """DeepSpeed's handle on the groups there are.

    The first use would compile an operator for CPUs (20 s), and a process that dies while it does leaves a lock for which all
    later ones wait: it is not needed here.
    """
    import deepspeed
    from deepspeed.ops import __compatible_ops__

    __compatible_ops__["deepspeed_shm_comm"] = False
    if not deepspeed.comm.is_initialized():
        deepspeed.comm.init_distributed(auto_mpi_discovery=False, verbose=False)


def _attend(q: Tensor, k: Tensor, v: Tensor, local: Attention, counts: tuple[int, ...]) -> Tensor:
    """``[1, ranks * max(counts), heads, head_dim]``, each rank's tokens followed by its pads, to the same."""
    most = max(counts)
    if min(counts) == most:
        return local(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)
    q, k, v = (_trimmed(x, counts).transpose(1, 2) for x in (q, k, v))
    parts = local(q, k, v).transpose(1, 2).split_with_sizes(counts, 1)
    return torch.cat([F.pad(part, (0, 0, 0, 0, 0, most - count)) for part, count in zip(parts, counts, strict=True)], 1)


def _trimmed(x: Tensor, counts: tuple[int, ...]) -> Tensor:
    parts = x.chunk(len(counts), 1)
    return torch.cat([part[:, :count] for part, count in zip(parts, counts, strict=True)], 1)
