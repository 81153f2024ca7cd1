"""What the heavy GPUs of a run did and when, read from its event log: how busy they were, and why they were not."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
Rank = tuple[str, int]
"""Pod and place in it."""
Window = tuple[float, float]
ENDS = {"StartSketch": "Sketched", "StartPhase": "PhaseDone", "StartDecode": "Decoded"}


@dataclass(frozen=True)
class Turn:
    """A command that came to its end. Seconds since the start of the run; from ``from_s`` to ``to_s`` the worker was at work."""

    kind: str
    item_key: str
    ranks: tuple[Rank, ...]
    told_s: float
    answered_s: float
    from_s: float
    to_s: float
    timings_s: dict[str, float]

    def shares(self, other: Turn, rank: Rank) -> bool:
        """Whether another turn ran on ranks of this one's slice, beside ``rank``."""
        return rank not in other.ranks and bool(set(self.ranks) & set(other.ranks))

    @property
    def handoff_s(self) -> float:
        """Of each rank: until the latent is there, and until its answer is."""
        return (self.answered_s - self.told_s) - (self.to_s - self.from_s)


def turns(rows: Iterable[Row], began: float) -> list[Turn]:
    """Every one that succeeded, in the order of their ends. ``began``: the run's start by the workers' clock."""
    told: dict[tuple[str, int], tuple[Row, float]] = {}
    found = []
    for row in rows:
        key = (row.get("item_key", ""), row.get("attempt", 0))
        if key in told and row["type"] == ENDS[told[key][0]["type"]]:
            found.append(_turn(*told.pop(key), row, began))
        for command in row["commands"]:
            if command["type"] in ENDS:
                told[command["item_key"], command["attempt"]] = command, row["time_s"]
    return found


def _turn(command: Row, told_s: float, row: Row, began: float) -> Turn:
    timings_s = row.get("timings_s") or row["clip"]["timings_s"]
    name = {"StartSketch": "sketch", "StartPhase": "refine"}.get(command["type"], "decode")
    from_s = timings_s.get(f"{name}_from", began + told_s) - began
    to_s = timings_s.get(f"{name}_to", began + row["time_s"]) - began
    piece = command.get("slice")
    ranks = tuple((piece["pod"], piece["start"] + k) for k in range(piece["width"])) if piece else ((command["worker"], 0),)
    return Turn(command["type"], row["item_key"], ranks, told_s, row["time_s"], from_s, to_s, timings_s)


def heavy_ranks(rows: Iterable[Row]) -> list[Rank]:
    joined = [(row["worker"], row["num_ranks"]) for row in rows if row["type"] == "WorkerJoined" and row["kind"] == "pod"]
    return [(pod, rank) for pod, num in joined for rank in range(num)]


def backlogged(heavy: Sequence[Turn], ranks: Sequence[Rank]) -> Window:
    """From the first start until one rank has nothing left to do."""
    last = {rank: max((turn.to_s for turn in heavy if rank in turn.ranks), default=0.0) for rank in ranks}
    return min(turn.from_s for turn in heavy), min(last.values())


def figures(rows: Sequence[Row], began: float, num_gpus: float) -> Row:
    """One run. Raises ValueError for one without a phase on a pod."""
    found, ranks = turns(rows, began), heavy_ranks(rows)
    heavy = [turn for turn in found if turn.ranks[0] in ranks]
    if not heavy:
        raise ValueError("no phase ran on a pod")
    ends = [row["time_s"] for row in rows if row["type"] == "Decoded"]
    makespan_s, whole = max(ends), (min(turn.from_s for turn in heavy), max(turn.to_s for turn in heavy))
    window = backlogged(heavy, ranks)
    idle = _idle(heavy, ranks, window, rows)
    gpu_s = (window[1] - window[0]) * len(ranks)
    heavy_gpu_s = sum(len(turn.ranks) * (turn.to_s - turn.from_s) for turn in heavy)
    checkpoint_s = sum(len(turn.ranks) * turn.timings_s.get("checkpoint_s", 0.0) for turn in heavy)
    return {
        "videos": len(ends),
        "makespan_s": makespan_s,
        "heavy_gpu_s": heavy_gpu_s,
        "refined_s": whole[1],
        "busy_backlogged": busy_s(heavy, window) / gpu_s,
        "busy_whole": busy_s(heavy, whole) / ((whole[1] - whole[0]) * len(ranks)),
        "handoff_share": idle["handoff_s"] / gpu_s,
        "alignment_share": idle["alignment_s"] / gpu_s,
        "decoders_share": idle["decoders_s"] / gpu_s,
        "checkpoint_share": checkpoint_s / heavy_gpu_s,
        "scheduling_share": idle["scheduling_s"] / gpu_s,
        "starved_share": idle["starved_s"] / gpu_s,
        "orchestration_share": (idle["handoff_s"] + idle["scheduling_s"]) / gpu_s + checkpoint_s / heavy_gpu_s,
        "window_s": list(window),
        "widths": _widths(heavy),
        "handoff_s_each": _mean([turn.handoff_s for turn in heavy]),
        "sketch_s": _mean([turn.answered_s - turn.told_s for turn in found if turn.kind == "StartSketch"]),
        "decode_s": _mean([turn.answered_s - turn.told_s for turn in found if turn.kind == "StartDecode"]),
        "videos_per_gpu_hour_held": len(ends) / (num_gpus * makespan_s / 3600),
        "videos_per_heavy_gpu_hour_held": len(ends) / (len(ranks) * makespan_s / 3600),
    }


def busy_s(heavy: Iterable[Turn], window: Window) -> float:
    """GPU-seconds at work within the window, by the workers' own clocks."""
    return sum(len(turn.ranks) * overlap_s((turn.from_s, turn.to_s), window) for turn in heavy)


def overlap_s(one: Window, other: Window) -> float:
    return max(0.0, min(one[1], other[1]) - max(one[0], other[0]))


def _idle(heavy: Sequence[Turn], ranks: Sequence[Rank], window: Window, log: Sequence[Row]) -> dict[str, float]:
    """GPU-seconds within the window that were not work, by cause.

    handoff: a clip in hand, its latent on the way. alignment: the rank waits for its neighbours, to start a wider slice with
    them. decoders: latents wait to be decoded, and no more are made. scheduling: a clip waits all the same. starved: none does.
    """
    found = dict.fromkeys(("handoff_s", "alignment_s", "decoders_s", "scheduling_s", "starved_s"), 0.0)
    waiting, full = waits(log), undecoded(log)
    for rank in ranks:
        mine = sorted((turn for turn in heavy if rank in turn.ranks), key=lambda turn: turn.told_s)
        for turn in mine:
            told, worked = (turn.told_s, turn.answered_s), (turn.from_s, turn.to_s)
            found["handoff_s"] += overlap_s(told, window) - overlap_s(worked, window)
        for gap, following in _gaps(mine, window):
            low, high = max(gap[0], window[0]), min(gap[1], window[1])
            aligned = max([low, *(t.answered_s for t in heavy if t.answered_s <= high and following.shares(t, rank))])
            waited_s = _within(waiting, (aligned, high))
            decoders_s = _within(full, (aligned, high)) if waited_s else 0.0
            found["alignment_s"] += aligned - low
            found["decoders_s"] += min(decoders_s, waited_s)
            found["scheduling_s"] += waited_s - min(decoders_s, waited_s)
            found["starved_s"] += max(high - aligned, 0.0) - waited_s
    return found


def _within(windows: Iterable[Window], window: Window) -> float:
    return sum(overlap_s(one, window) for one in windows)


def _gaps(mine: Sequence[Turn], window: Window) -> Iterator[tuple[Window, Turn]]:
    """Before each turn of one rank, within the window; the turn."""
    ends = [window[0], *(turn.answered_s for turn in mine)]
    for since_s, turn in zip(ends, mine, strict=False):
        if since_s < turn.told_s and turn.told_s > window[0] and since_s < window[1]:
            yield (since_s, turn.told_s), turn


def waits(log: Iterable[Row]) -> list[Window]:
    """Disjoint times in which at least one clip waited for a slice."""
    return _waits(log, "StartPhase")


def undecoded(log: Iterable[Row]) -> list[Window]:
    """Disjoint times in which at least one latent waited for a decoder."""
    return _waits(log, "StartDecode")


def _waits(log: Iterable[Row], start: str) -> list[Window]:
    found: list[Window] = []
    stages: dict[str, int] = {}
    waiting: set[str] = set()
    since = 0.0
    for row in log:
        before, key = bool(waiting), row.get("item_key", "")
        if row["type"] in ("Sketched", "Reached"):
            stages[key] = len(row["decision"]["action"]["stages"])
        if row["type"] in ("Sketched", "Reached", "PhaseDone"):
            is_done = row.get("stop", 1) >= stages[key]
            waiting |= {key} if is_done == (start == "StartDecode") else set()
        waiting -= {command["item_key"] for command in row["commands"] if command["type"] == start}
        if waiting and not before:
            since = row["time_s"]
        if before and not waiting:
            found.append((since, row["time_s"]))
    return found


def _widths(heavy: Iterable[Turn]) -> dict[str, int]:
    widths = sorted(len(turn.ranks) for turn in heavy)
    return {str(width): len(list(group)) for width, group in itertools.groupby(widths)}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
