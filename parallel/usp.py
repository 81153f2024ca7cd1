"""Sequence parallelism by xfuser's ``USP`` (arXiv 2405.07719): heads shared by neighbours, keys and values in a ring of these.

Of xfuser's and yunchang's paths, this is the one whose ring adds up: parts are merged by their row sums in float32. Yunchang's
classes merge sums that its torch kernels give as zeros (``TORCH_MATH``, ``TORCH_CUDNN``) or round to bfloat16
(``TORCH_FLASH``), and its ``UlyssesAttention`` with ``TORCH_FLASH`` rings over all ranks there are. ``USP`` reads its groups from
module globals that are meant to be set once per process; here they are set for each call, so that every slice of a pod can have
its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.backends import head_ranks
from parallel.groups import Group, Groups, aligned_ranks, told
from parallel.seam import Attention

KERNEL = "dvg"
"""Under which xfuser finds our kernels."""

Summed = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor | None]]
"""Attention, and the logarithms of its row sums ``[B, heads, tokens]``, without which a ring cannot merge."""


def cudnn_summed(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """cuDNN's kernel. On a Hopper GPU it is the fastest of torch's that tells the row sums."""
    out, sums, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, True)
    return out, sums.reshape(q.shape[:3])


@dataclass(frozen=True)
class _Part:
    """This rank's place in a slice, in the words of xfuser's globals."""

    processes: SimpleNamespace
    coordinator: SimpleNamespace


class Usp:
    """The exchange. Needs as many tokens on every rank."""

    name = "usp"

    def __init__(self, groups: Groups, summed: Summed = cudnn_summed) -> None:
        """``summed`` is the kernel of rings. All ranks of the pod make their rings here, in the same order."""
        from xfuser.core.distributed import attention_backend, parallel_state, runtime_state
        from xfuser.model_executor.layers import usp

        attention_backend.ATTENTION_FUNCTION_REGISTRY[KERNEL] = _attend
        runtime_state._RUNTIME = _runtime()
        self._usp, self._state = usp, parallel_state
        self._summed = summed
        self._groups = groups
        self._rings = _make_rings(groups)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, local: Attention, group: Group, counts: tuple[int, ...]) -> Tensor:
        """Raises ValueError where ranks have different numbers of tokens: the exchange would go wrong in silence."""
        if min(counts) < max(counts):
            raise ValueError(f"usp needs as many tokens on every rank, but they have {', '.join(map(str, counts))}")
        width = head_ranks(self.name, q.shape[1], group.size)
        part = self._part(group, width)
        self._usp.PROCESS_GROUP, self._state._SP = part.processes, part.coordinator
        kernel = self._summed if width < group.size else _without_sums(local)
        with told("exchanging tokens"):
            out: Tensor = self._usp.USP(q, k, v, combine_qkv_a2a=True, backend=KERNEL, attention_kwargs={"kernel": kernel})
        return out

    def _part(self, group: Group, width: int) -> _Part:
        """Of a slice whose heads are shared by ``width`` neighbours."""
        first = group.rank // width * width
        neighbours = self._groups.slice(group.ranks[first], width)
        ring = self._rings.get((group.ranks, width)) if 1 < width < group.size else group.handle
        processes = SimpleNamespace(ULYSSES_PG=neighbours.handle if neighbours else None, RING_PG=ring)
        coordinator = SimpleNamespace(
            world_size=group.size,
            rank_in_group=group.rank,
            ulysses_world_size=width,
            ulysses_rank=group.rank - first,
            ring_world_size=group.size // width,
            ring_rank=group.rank // width,
        )
        return _Part(processes, coordinator)


def _make_rings(groups: Groups) -> dict[tuple[range, int], Any]:
    """This rank's ring for each aligned slice and number of neighbours, where it is not the whole slice."""
    found = {}
    with told("meeting in rings"):
        for piece in aligned_ranks(groups.num_ranks):
            for width in (power for power in (2, 4, 8, 16) if power < len(piece)):
                for first in range(width):
                    ranks = piece[first::width]
                    handle = dist.new_group(list(ranks), timeout=groups.timeout)
                    if groups.rank in ranks:
                        found[piece, width] = handle
        for handle in found.values():
            _warm(handle, groups.device)
    return found


def _warm(handle: Any, device: torch.device) -> None:
    met = torch.ones(1, device=device)
    dist.all_reduce(met, group=handle)


def _runtime() -> SimpleNamespace:
    """What ``USP`` asks of xfuser's runtime: none of its additions."""
    return SimpleNamespace(
        fp8_comms=None, attention_backend=KERNEL, runtime_config=SimpleNamespace(use_spargeattn_head_balance=False)
    )


def _attend(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float, is_causal: bool, attention_kwargs: dict[str, Summed]
) -> tuple[Tensor, Tensor | None]:
    """xfuser's signature around the kernel of this call."""
    return attention_kwargs["kernel"](q, k, v)


def _without_sums(local: Attention) -> Summed:
    return lambda q, k, v: (local(q, k, v), None)
