"""What must hold of a run after all that can be killed was: one record for each item, the same videos, books that balance."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from orchestrator import eventlog
from orchestrator.paths import RunPaths
from orchestrator.scheduler import Scheduler, replay

Row = Mapping[str, Any]
Mistakes = dict[str, list[str]]
"""By the name of a check; nothing is wrong where the list is empty."""

ALIKE = ("action", "s2", "f2", "why", "spatial_demand", "temporal_demand", "stage_grids", "stage_degrees", "density", "sha256")
"""What a disturbed run's records share with an undisturbed one's."""
STARTS = ("StartSketch", "StartPhase", "StartDecode")
RESULTS = ("Sketched", "PhaseDone", "Decoded", "Failed")


def rows_of(path: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def mistakes_of(
    paths: RunPaths,
    wanted: Iterable[str],
    undisturbed: Iterable[Row],
    fresh: Callable[[], Scheduler],
    verify: Callable[[Any, int], str | None] = lambda video, num_frames: None,
) -> Mistakes:
    """``wanted``: keys of the items that must be made. ``fresh``: a scheduler as the run's, ``verify`` as a ledger's."""
    records, events = rows_of(paths.records), rows_of(paths.events)
    return {
        "one record for each item": list(_counted(records, wanted)),
        "every video whole": list(_videos(paths, records, verify)),
        "decisions and videos as undisturbed": list(_unlike(records, undisturbed)),
        "books balance": list(_unbalanced(events, fresh)),
        "no stray file": list(_strays(paths, records)),
        "innocents lose no attempt": list(_charged(events)),
    }


def _counted(records: Iterable[Row], wanted: Iterable[str]) -> Iterator[str]:
    counts, keys = Counter(row["item_key"] for row in records), set(wanted)
    yield from (f"{key} has {number} records" for key, number in counts.items() if number != 1)
    yield from (f"{key} has no record" for key in sorted(keys - counts.keys()))
    yield from (f"{key} is no item" for key in sorted(counts.keys() - keys))


def _videos(paths: RunPaths, records: Iterable[Row], verify: Callable[[Any, int], str | None]) -> Iterator[str]:
    for row in records:
        video = paths.root / row["video"]
        if not video.is_file():
            yield f"{row['video']} is gone"
        elif hashlib.sha256(video.read_bytes()).hexdigest() != row["sha256"]:
            yield f"{row['video']} has other bytes than its record says"
        elif wrong := verify(video, row["num_frames"]):
            yield f"{row['video']}: {wrong}"


def _unlike(records: Iterable[Row], undisturbed: Iterable[Row]) -> Iterator[str]:
    known = {row["item_key"]: row for row in undisturbed}
    for row in records:
        other = known.get(row["item_key"], {})
        for name in ALIKE:
            if row[name] != other.get(name):
                yield f"{row['item_key']}: {name} is {row[name]!r}, undisturbed {other.get(name)!r}"


def _unbalanced(events: Iterable[dict[str, Any]], fresh: Callable[[], Scheduler]) -> Iterator[str]:
    """Every start had a scheduler of its own, which must answer its events again as it did."""
    for number, rows in enumerate(eventlog.starts(events), start=1):
        scheduler = fresh()
        try:
            replay(rows, scheduler)
            scheduler.check()
        except (RuntimeError, ValueError, KeyError) as error:
            yield f"start {number}: {type(error).__name__}: {error}"


def _strays(paths: RunPaths, records: Iterable[Row]) -> Iterator[str]:
    """Videos, their sidecars, and the run's own files; nothing half written, no latent of a clip that is done."""
    clips = {row["video"] for row in records}
    kept = clips | {clip.removesuffix(".mp4") + ".json" for clip in clips}
    there = {path.relative_to(paths.root).as_posix() for path in paths.videos.rglob("*") if path.is_file()}
    yield from (f"{name} belongs to no record" for name in sorted(there - kept))
    yield from (f"{path.name} was left in checkpoints" for path in sorted(paths.checkpoints.glob("*")))
    yield from (f"{path.name} is half written" for path in sorted(paths.root.rglob("*.part")))


def _charged(events: Iterable[Row]) -> Iterator[str]:
    """A clip on other ranks than those that died goes on under the same attempt."""
    for rows in eventlog.starts(dict(row) for row in events):
        running: dict[str, Row] = {}
        innocent: dict[str, int] = {}
        for row in rows:
            key = row.get("item_key", "")
            if row["type"] in RESULTS and key in running and running[key]["attempt"] == row["attempt"]:
                del running[key]
                innocent.pop(key, None)
            if row["type"] == "WorkerLost":
                lost = {key for key, command in running.items() if _hit(command, row)}
                innocent |= {k: c["attempt"] for k, c in running.items() if k not in lost and _beside(c, row)}
                for key in lost:
                    del running[key]
                    innocent.pop(key, None)
            for command in row["commands"]:
                key = command["item_key"]
                if command["type"] in STARTS:
                    if key in innocent and command["attempt"] != innocent[key]:
                        yield f"{key} lost attempt {innocent[key]} of start {row['start']}, though its ranks lived"
                    running[key] = command


def _hit(command: Row, lost: Row) -> bool:
    """Whether a command was at work on what was lost."""
    piece = command.get("slice")
    if piece is None:
        return bool(command.get("worker") == lost["worker"])
    ranks = set(range(piece["start"], piece["start"] + piece["width"]))
    return piece["pod"] == lost["worker"] and (not lost["ranks"] or bool(ranks & set(lost["ranks"])))


def _beside(command: Row, lost: Row) -> bool:
    """Whether it was at work on the same pod."""
    piece = command.get("slice")
    return piece is not None and piece["pod"] == lost["worker"]


def losses(events: Iterable[Row]) -> dict[str, Any]:
    """Workers lost by kind, clips that went with them, and the seconds of work that had to be done again."""
    lost_s, clips, kinds = 0.0, 0, Counter[str]()
    starts = 0
    for rows in eventlog.starts(dict(row) for row in events):
        starts += 1
        since: dict[str, tuple[Row, float]] = {}
        for row in rows:
            if row["type"] == "WorkerLost":
                kinds[row["worker"].partition("-")[0]] += 1
                for key in [key for key, (command, _) in since.items() if _hit(command, row)]:
                    lost_s, clips = lost_s + row["time_s"] - since.pop(key)[1], clips + 1
            if row["type"] in RESULTS:
                since.pop(row["item_key"], None)
            since |= {c["item_key"]: (c, row["time_s"]) for c in row["commands"] if c["type"] in STARTS}
        if rows:
            lost_s += sum(rows[-1]["time_s"] - began_s for _, began_s in since.values())
    return {"starts": starts, "workers_lost": dict(kinds), "clips_interrupted": clips, "work_lost_s": lost_s}
