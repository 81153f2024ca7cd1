"""One traced call: how long kernels ran, how long the exchanges among them, and how much of these nothing hid."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

Span = tuple[float, float]
"""Start and end."""
OF_EXCHANGES = ("nccl", "barrier", "direct_copy", "memcpy")
"""In the names of kernels that send, wait for others, or lay out what has come."""


def merged(spans: Iterable[Span]) -> list[Span]:
    """The same time, without overlaps, in order."""
    out: list[Span] = []
    for start, end in sorted(spans):
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], end))
        else:
            out.append((start, end))
    return out


def length(spans: Iterable[Span]) -> float:
    """Time covered."""
    return sum(end - start for start, end in merged(spans))


def uncovered(spans: Sequence[Span], others: Sequence[Span]) -> float:
    """Time of ``spans`` in which none of ``others`` ran."""
    return length([*spans, *others]) - length(others)


def traced(call: Callable[[], object], is_cuda: bool) -> dict[str, Any]:
    """Seconds of one call's kernels: all, those that exchange, and these alone. On a CPU there are none."""
    activity = torch.profiler.ProfilerActivity.CUDA if is_cuda else torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[activity]) as record:
        call()
        if is_cuda:
            torch.cuda.synchronize()
    events = record.events() or []
    kernels = [
        (event.name, (event.time_range.start / 1e6, event.time_range.end / 1e6))
        for event in events
        if event.device_type == torch.autograd.DeviceType.CUDA  # type: ignore[attr-defined]
    ]
    shared = [span for name, span in kernels if any(word in name.lower() for word in OF_EXCHANGES)]
    rest = [span for name, span in kernels if not any(word in name.lower() for word in OF_EXCHANGES)]
    whole = [*shared, *rest]
    return {
        "span_s": max((end for _, end in whole), default=0.0) - min((start for start, _ in whole), default=0.0),
        "busy_s": length(whole),
        "nccl_s": length(span for name, span in kernels if "nccl" in name.lower()),
        "exchange_s": length(shared),
        "exposed_s": uncovered(shared, rest),
        "num_kernels": len(whole),
        "longest": _longest(kernels),
    }


def _longest(kernels: Iterable[tuple[str, Span]], num: int = 8) -> dict[str, float]:
    """Seconds of the kernels that take most, by the start of their names."""
    totals: dict[str, float] = {}
    for name, (start, end) in kernels:
        totals[name[:60]] = totals.get(name[:60], 0.0) + end - start
    return dict(sorted(totals.items(), key=lambda item: -item[1])[:num])
