"""Weights of a transformer's layers spread over adjacent ranks, for a GPU that cannot hold them all (FSDP2, arXiv 2304.11277).

Each rank keeps its share of every layer. A layer is gathered just before it runs and let go after it, while the next one is on
its way. All ranks of the group must so run the same layers at the same time: no slice is narrower than the group.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor, nn

from parallel.groups import Group, told
from parallel.layout import Layout

Bundle = TypeVar("Bundle", bound=tuple[Any, ...])
"""The weights of one layer, often a named tuple: ``nn.Parameter``, or further such tuples of them."""


class Sharded(Generic[Bundle]):
    """Layers in turn, each whole while it is its turn, and no longer."""

    def __init__(self, shells: list[Any], like: list[Bundle], group: Group) -> None:
        self._shells = shells
        self._like = like
        self.group = group

    def __len__(self) -> int:
        return len(self._shells)

    def __iter__(self) -> Iterator[Bundle]:
        """To be gone through to the end, by all ranks of the group."""
        coming = [_gather(shell) for shell in self._shells[:1]]
        for index, (shell, like) in enumerate(zip(self._shells, self._like, strict=True)):
            with told("gathering a layer's weights"):
                coming.pop().wait()
            coming += [_gather(after) for after in self._shells[index + 1 : index + 2]]
            try:
                yield cast(Bundle, _refilled(like, iter(shell.weights)))
            finally:
                shell.reshard()

    def require(self, layout: Layout | None) -> None:
        """Raises ValueError where not all ranks of the group are about to run the layers: the others would be waited for."""
        ranks = range(0) if layout is None else layout.whole.ranks
        if not set(self.group.ranks) <= set(ranks):
            raise ValueError(
                f"the weights are spread over {self.group.size} ranks, {self.group.ranks.start} to {self.group.ranks.stop - 1}: "
                f"a slice of {max(len(ranks), 1)} cannot run them"
            )

    @property
    def num_bytes(self) -> int:
        """Of weights that this rank keeps."""
        kept = (weight.to_local() for shell in self._shells for weight in shell.weights)
        return sum(weight.untyped_storage().nbytes() for weight in kept)


class _Shell(nn.Module):
    """A layer's weights as FSDP wants them. Nothing is called: the blocks are functions."""

    def __init__(self, weights: Iterable[nn.Parameter]) -> None:
        super().__init__()
        self.weights = nn.ParameterList(weights)


def shard(layers: Iterable[Bundle], group: Group) -> Sharded[Bundle]:
    """Keep this rank's share of each layer's weights, on the group's device. The tensors in ``layers`` are emptied.

    Layers are taken one by one, so they may be made as they are asked for, on a CPU. Raises ValueError for a weight that is no
    ``nn.Parameter``.
    """
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import fully_shard

    mesh = DeviceMesh.from_group(group.handle, group.device.type)
    shells, like = [], []
    for layer in layers:
        weights = list(_leaves(layer))
        shell = _Shell(weight if weight.is_contiguous() else _compact(weight) for weight in weights)
        with nullcontext() if group.device.type == "cpu" else torch.cuda.device(group.device):
            fully_shard(shell, mesh=mesh)
        empty(weights)
        shells.append(shell)
        like.append(layer)
    return Sharded(shells, like, group)


def empty(weights: Iterable[Tensor]) -> None:
    """Let go of what the tensors hold; views of it must be emptied too before it is freed."""
    for weight in weights:
        weight.data = weight.data.new_empty(0)


def _gather(shell: Any) -> Any:
    with told("gathering a layer's weights"):
        return shell.unshard(async_op=True)


def _leaves(layer: Any) -> Iterator[nn.Parameter]:
    for weight in layer:
        if isinstance(weight, tuple):
            yield from _leaves(weight)
        elif isinstance(weight, nn.Parameter):
            yield weight
        else:
            raise ValueError(f"only nn.Parameter can be sharded, not {type(weight).__name__}")


def _compact(weight: nn.Parameter) -> nn.Parameter:
    """Of a part of a larger weight, which FSDP refuses."""
    return nn.Parameter(weight.data.contiguous(), requires_grad=False)


def _refilled(like: Any, weights: Iterator[Tensor]) -> Any:
    """A tuple of the same kind with other weights."""
    make = getattr(type(like), "_make", tuple)
    return make(_refilled(weight, weights) if isinstance(weight, tuple) else next(weights) for weight in like)
