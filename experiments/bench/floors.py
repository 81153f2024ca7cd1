"""The least time of one forward: each matrix product and attention of it, timed alone at its own shape.

What a forward takes beyond that is element-wise work, launches and waiting.
"""

from __future__ import annotations

import functools
import itertools
import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from orchestrator.geometry import ModelGeometry
from parallel.seam import Attention

NUM_CALLS = 12
"""Calls per recording: gaps between launches are not part of a floor."""
LONG = 8_192
"""Rows from which fewer calls do."""
STEADY_S = 0.08
NUM_WEIGHTS = 3
"""Weights in turn, so that a product reads its own from memory as it does in a forward."""

Matmul = tuple[int, int, int]
"""Rows, outputs, inputs."""
Reach = tuple[int, int]
"""Queries and keys of an attention."""


@dataclass(frozen=True)
class Work:
    """What one forward must compute: how often each product and each attention occurs."""

    matmuls: Counter[Matmul]
    attentions: Counter[Reach]
    heads: int
    head_dim: int

    @property
    def matmul_flops(self) -> float:
        return sum(2.0 * count * rows * out * into for (rows, out, into), count in self.matmuls.items())

    @property
    def attention_flops(self) -> float:
        width = self.heads * self.head_dim
        return sum(4.0 * count * queries * keys * width for (queries, keys), count in self.attentions.items())


def work(geometry: ModelGeometry, num_image: int, num_text: int) -> Work:
    """Of ``num_image`` video tokens and ``num_text`` condition tokens. The few products outside the blocks are left out."""
    width = geometry.heads * geometry.head_dim
    matmuls: Counter[Matmul] = Counter()
    attentions: Counter[Reach] = Counter()
    if geometry.family == "wan":
        ffn = (geometry.linear_macs // geometry.num_layers - 6 * width**2) // (2 * width)
        rows = {
            (num_image, 3 * width, width): 1,
            (num_image, width, width): 3,
            (num_image, ffn, width): 1,
            (num_image, width, ffn): 1,
        }
        attentions.update({(num_image, num_image): geometry.num_layers, (num_image, num_text): geometry.num_layers})
        matmuls.update({shape: count * geometry.num_layers for shape, count in rows.items()})
        return Work(matmuls, attentions, geometry.heads, geometry.head_dim)
    num_single = 40 if geometry.family == "hunyuan" else 0
    num_dual = geometry.num_layers - num_single
    both = num_image + num_text
    for tokens in (num_image, num_text):
        matmuls.update(dict.fromkeys(_stream(tokens, width), num_dual))
    matmuls.update({(both, 3 * width, width): num_single, (both, 4 * width, width): num_single} if num_single else {})
    matmuls.update({(both, width, width): num_single, (both, width, 4 * width): num_single} if num_single else {})
    modulations = {(1, 6 * width, width): 2 * num_dual, (1, 3 * width, width): num_single}
    matmuls.update({shape: count for shape, count in modulations.items() if count})
    attentions.update({(both, both): geometry.num_layers})
    return Work(matmuls, attentions, geometry.heads, geometry.head_dim)


def _stream(tokens: int, width: int) -> tuple[Matmul, ...]:
    return (tokens, 3 * width, width), (tokens, width, width), (tokens, 4 * width, width), (tokens, width, 4 * width)


@dataclass(frozen=True)
class Floor:
    """Seconds of a forward's products and attentions, and the rates they ran at."""

    matmul_s: float
    attention_s: float
    matmul_tflops: float
    attention_tflops: float

    @property
    def total_s(self) -> float:
        return self.matmul_s + self.attention_s


def floor(work: Work, attention: Attention) -> Floor:
    """Measured now, on this GPU, with this attention kernel."""
    matmul_s = sum(count * matmul_s_of(shape) for shape, count in work.matmuls.items())
    attention_s = sum(count * _attention_s(reach, work, attention) for reach, count in work.attentions.items())
    return Floor(matmul_s, attention_s, work.matmul_flops / matmul_s / 1e12, work.attention_flops / attention_s / 1e12)


@functools.lru_cache(maxsize=256)
def matmul_s_of(shape: Matmul) -> float:
    """Seconds of one product with bias in bf16."""
    rows, out, into = shape
    x = _random(rows, into)
    weights = itertools.cycle([(_random(out, into), _random(out)) for _ in range(NUM_WEIGHTS)])
    return _recorded_s(lambda: F.linear(x, *next(weights)), rows)


def _attention_s(reach: Reach, work: Work, attention: Attention) -> float:
    queries, keys = (_random(1, tokens, work.heads, work.head_dim).transpose(1, 2) for tokens in reach)
    return _recorded_s(lambda: attention(queries, keys, keys), reach[0])


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16)


def _recorded_s(call: Callable[[], Tensor], num_rows: int) -> float:
    """Seconds of one call: the median round of a CUDA graph of several.

    Rounds go on for ``STEADY_S`` before those that count, because clocks fall under load: a floor at clocks that a whole
    forward cannot hold would be none.
    """
    num_calls = NUM_CALLS if num_rows < LONG else 3
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(num_calls):
            call()
    graph.replay()
    num_rounds = max(3, int(STEADY_S / event_s(graph.replay)))
    rounds = [event_s(graph.replay) for _ in range(2 * num_rounds)]
    return statistics.median(rounds[num_rounds:]) / num_calls


def event_s(call: Callable[[], object]) -> float:
    """Seconds on the device from before to after ``call``."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3
