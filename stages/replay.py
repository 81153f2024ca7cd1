"""Small grids: all layers of a transformer replayed as one launch (a CUDA graph), as launching takes longer than running."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MOST_ELEMENTS = 1 << 23
"""Of the first input (tokens x width). Above it the GPU is slower than the host that launches: 4,096 tokens of width 2,048."""
NUM_KEPT = 6
"""Recordings kept, the least recently used leaves first. They share one pool of memory: what a single one needs."""


@dataclass
class _Recording:
    constants: tuple[Any, ...]
    """Kept alive: the recording reads them where they were."""
    graph: torch.cuda.CUDAGraph | None = None
    inputs: tuple[Tensor, ...] = ()
    output: Tensor | None = None


class Replay:
    """Callable ``(inputs, constants, ranks) -> Tensor`` around a function of the first two that returns one tensor.

    ``inputs`` are copied into place at every call; ``constants`` are objects that stay as they are, told apart by identity.
    ``ranks`` tells apart the groups whose collectives a recording holds (a seam's key). The first call with new shapes,
    constants or ranks just runs; the second records. The returned tensor is overwritten by the next call.
    """

    def __init__(self, fn: Callable[..., Tensor], enabled: bool, most_elements: int = MOST_ELEMENTS) -> None:
        self.fn = fn
        self.enabled = enabled
        self.most_elements = most_elements
        self._recordings: OrderedDict[tuple[Any, ...], _Recording] = OrderedDict()
        self._pool: Any = None

    def __call__(self, inputs: tuple[Tensor, ...], constants: tuple[Any, ...] = (), ranks: Hashable = None) -> Tensor:
        if not self.enabled or not inputs[0].is_cuda or inputs[0].numel() > self.most_elements:
            return self.fn(*inputs, *constants)
        key = (ranks, *((x.shape, x.dtype) for x in inputs), *map(id, constants))
        if key not in self._recordings:
            self._remember(key, constants)
            return self.fn(*inputs, *constants)
        self._recordings.move_to_end(key)
        return self._replay(self._recordings[key], inputs)

    def live(self, inputs: tuple[Tensor, ...], constants: tuple[Any, ...] = (), ranks: Hashable = None) -> Tensor:
        """Without recording or replaying: for what decides on the host within a forward."""
        return self.fn(*inputs, *constants)

    def _remember(self, key: tuple[Any, ...], constants: tuple[Any, ...]) -> None:
        self._recordings[key] = _Recording(constants)
        if len(self._recordings) > NUM_KEPT:
            self._recordings.popitem(last=False)

    def _replay(self, recording: _Recording, inputs: tuple[Tensor, ...]) -> Tensor:
        if recording.graph is None or recording.output is None:
            return self._record(recording, inputs)
        for place, x in zip(recording.inputs, inputs, strict=True):
            place.copy_(x)
        recording.graph.replay()
        return recording.output

    def _record(self, recording: _Recording, inputs: tuple[Tensor, ...]) -> Tensor:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        recording.inputs = tuple(x.clone() for x in inputs)
        recording.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(recording.graph, pool=self._pool, capture_error_mode="thread_local"):
            recording.output = self.fn(*recording.inputs, *recording.constants)
        recording.graph.replay()
        return recording.output
