"""How a sweep stands: its queues, its idle ranks and why they idle, and when it may be over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.books import Books, State
from orchestrator.horizon import Horizon


@dataclass(frozen=True)
class Outlook:
    horizon_s: float | None
    """Until the last video, if all goes as predicted; None where nobody knows what clips cost, or without a pod."""
    num_waiting: int
    """Clips that wait for a slice."""
    num_running: int
    """Items at work anywhere."""
    num_ranks: int
    """Of pods that take work."""
    num_idle: int
    """Ranks of these that nobody holds."""
    num_promised: int
    """Ranks, held or not, that are kept for clips that wait."""
    idle_by_size: Mapping[int, int]
    """Idle ranks by the number of ranks of their pod."""
    queues: Mapping[str, int]
    """Items that wait at each boundary: arrived, sketched, refined."""
    why_idle: str
    """One line; empty while no rank idles."""


def outlook(books: Books, horizon: Horizon | None, is_decoding_behind: bool, now_s: float) -> Outlook:
    """Takes longer the more pods there are: not for every event."""
    pool, idle = books.pool, Counter[int]()
    for pod in pool.pods.values():
        if not pod.draining and pod.free:
            idle[pod.num_ranks] += pod.free.bit_count()
    knows = horizon is not None and pool.num_ranks > 0 and books.num_open > 0
    if horizon is not None and knows:
        horizon.look(now_s)
    return Outlook(
        horizon_s=max(0.0, horizon.end_s - now_s) if horizon is not None and knows else None,
        num_waiting=len(books.queues[State.SKETCHED]),
        num_running=books.num_running,
        num_ranks=pool.num_ranks,
        num_idle=pool.num_idle,
        num_promised=pool.num_promised,
        idle_by_size=dict(idle),
        queues={str(state): len(queue) for state, queue in books.queues.items()},
        why_idle=_why_idle(books, is_decoding_behind) if pool.num_idle else "",
    )


def _why_idle(books: Books, is_decoding_behind: bool) -> str:
    num_waiting, num_left = len(books.queues[State.SKETCHED]), books.number(State.ARRIVED) + books.number(State.SKETCHING)
    if is_decoding_behind:
        return f"{len(books.queues[State.REFINED])} latents wait for a decoder"
    if num_waiting:
        return f"{num_waiting} clips wait for a slice that is wide enough"
    if num_left and not books.staff["sketch"]:
        return "no sketch worker"
    if num_left:
        return f"no sketch is ready, {books.number(State.SKETCHING)} are at work"
    return "nothing is left to refine but what is at work" if books.num_open else "everything is done"
