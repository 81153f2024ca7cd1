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
    idle = _idle(heavy, ranks, window, waits(rows))
    gpu_s = (window[1] - window[0]) * len(ranks)
    heavy_gpu_s = sum(len(turn.ranks) * (turn.to_s - turn.from_s) for turn in heavy)
    checkpoint_s = sum(len(turn.ranks) * turn.timings_s.get("checkpoint_s", 0.0) for turn in heavy)
    return {
        "videos": len(ends),
        "makespan_s": makespan_s,
        "heavy_gpu_s": heavy_gpu_s,
        "busy_backlogged": busy_s(heavy, window) / gpu_s,
        "busy_whole": busy_s(heavy, whole) / ((whole[1] - whole[0]) * len(ranks)),
        "handoff_share": idle["handoff_s"] / gpu_s,
        "checkpoint_share": checkpoint_s / heavy_gpu_s,
        "scheduling_share": idle["scheduling_s"] / gpu_s,
        "starved_share": idle["starved_s"] / gpu_s,
        "window_s": list(window),
        "widths": _widths(heavy),
        "handoff_s_each": _mean([turn.handoff_s for turn in heavy]),
        "sketch_s": _mean([turn.answered_s - turn.told_s for turn in found if turn.kind == "StartSketch"]),
        "decode_s": _mean([turn.answered_s - turn.told_s for turn in found if turn.kind == "StartDecode"]),
        "videos_per_gpu_hour": len(ends) / (num_gpus * makespan_s / 3600),
        "videos_per_heavy_gpu_hour": len(ends) / (len(ranks) * makespan_s / 3600),
    }


def busy_s(heavy: Iterable[Turn], window: Window) -> float:
    """GPU-seconds at work within the window, by the workers' own clocks."""
    return sum(len(turn.ranks) * overlap_s((turn.from_s, turn.to_s), window) for turn in heavy)


def overlap_s(one: Window, other: Window) -> float:
    return max(0.0, min(one[1], other[1]) - max(one[0], other[0]))


def _idle(heavy: Sequence[Turn], ranks: Sequence[Rank], window: Window, waiting: Sequence[Window]) -> dict[str, float]:
    """GPU-seconds within the window that were not work: with a clip in hand, with one waiting for the rank, with none waiting."""
    handoff_s = scheduling_s = starved_s = 0.0
    for rank in ranks:
        mine = sorted((turn for turn in heavy if rank in turn.ranks), key=lambda turn: turn.told_s)
        for turn in mine:
            handoff_s += overlap_s((turn.told_s, turn.answered_s), window) - overlap_s((turn.from_s, turn.to_s), window)
        for gap in _gaps(mine, window):
            lost_s = overlap_s(gap, window)
            waited_s = sum(overlap_s(part, (max(gap[0], window[0]), min(gap[1], window[1]))) for part in waiting)
            scheduling_s, starved_s = scheduling_s + waited_s, starved_s + lost_s - waited_s
    return {"handoff_s": handoff_s, "scheduling_s": scheduling_s, "starved_s": starved_s}


def _gaps(mine: Sequence[Turn], window: Window) -> Iterator[Window]:
    """Between the turns of one rank."""
    if mine:
        yield window[0], mine[0].told_s
    for before, after in itertools.pairwise(mine):
        yield before.answered_s, after.told_s


def waits(rows: Iterable[Row]) -> list[Window]:
    """Disjoint times in which at least one clip waited for a slice."""
    found: list[Window] = []
    stages: dict[str, int] = {}
    waiting: set[str] = set()
    since = 0.0
    for row in rows:
        before = bool(waiting)
        if row["type"] in ("Sketched", "Reached"):
            stages[row["item_key"]] = len(row["decision"]["action"]["stages"])
        if row["type"] in ("Sketched", "Reached", "PhaseDone") and row.get("stop", 1) < stages[row["item_key"]]:
            waiting.add(row["item_key"])
        waiting -= {command["item_key"] for command in row["commands"] if command["type"] == "StartPhase"}
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
