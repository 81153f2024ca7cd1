"""One trace per video, a span per stage, at the times that the run's event log has: where a clip worked and where it waited."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.mlflow_rows import milliseconds
from experiments.mlflow_runs import Runs
from orchestrator.types import Record

PAGE = 500
NS_PER_S = 1_000_000_000
Events = Mapping[str, Sequence[Mapping[str, Any]]]
"""Rows of the event log by item key."""


@dataclass(frozen=True)
class Part:
    """A span. Seconds from the video's end, so never above 0."""

    name: str
    start_s: float
    end_s: float


def parts_of(record: Record, events: Sequence[Mapping[str, Any]]) -> list[Part]:
    """Text, each stage, decode, restored frames, mp4. Without the events of the attempt that made it: as if it never waited."""
    mine = _of_last_attempt(record, events)
    done_s = next((row["time_s"] for row in reversed(mine) if row["type"] == "Decoded"), None)
    if done_s is None or not any(row["type"] == "Sketched" for row in mine):
        return _ending_at(0.0, _durations(record))
    grids = record.stage_grids.split("|")
    found: list[Part] = []
    for row in mine:
        timings_s = row.get("timings_s") or (row.get("clip") or {}).get("timings_s") or {}
        found += _ending_at(row["time_s"] - done_s, _told(timings_s, grids))
    return found


def _of_last_attempt(record: Record, events: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    starts = [row.get("start", 1) for row in events if row["type"] == "Decoded"]
    last = max(starts, default=0)
    return [row for row in events if row.get("start", 1) == last and row.get("attempt") == record.attempts]


def _told(timings_s: Mapping[str, float], grids: Sequence[str]) -> list[tuple[str, float]]:
    """What an event says took how long, in the order in which it was done."""
    stages = [(f"stage {k} {grid}", timings_s[f"stage{k}_s"]) for k, grid in enumerate(grids, 1) if f"stage{k}_s" in timings_s]
    ends = [(name, timings_s[f"{name}_s"]) for name in ("decode", "restore", "encode") if f"{name}_s" in timings_s]
    return [*([("text", timings_s["text_s"])] if "text_s" in timings_s else []), *stages, *ends]


def _durations(record: Record) -> list[tuple[str, float]]:
    both = zip(record.stage_grids.split("|"), record.stage_s.split("|"), strict=False)
    stages = [(f"stage {k} {grid}", float(seconds or 0)) for k, (grid, seconds) in enumerate(both, 1)]
    restored = [("restore", record.restore_s)] if record.restore_s else []
    return [("text", record.text_s), *stages, ("decode", record.decode_s), *restored, ("encode", record.encode_s)]


def _ending_at(end_s: float, durations: Sequence[tuple[str, float]]) -> list[Part]:
    start_s = end_s - sum(seconds for _, seconds in durations)
    found: list[Part] = []
    for name, seconds in durations:
        found.append(Part(name, start_s, start_s + seconds))
        start_s += seconds
    return found


def read_events(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The rows that say what took how long, by item key."""
    found: dict[str, list[dict[str, Any]]] = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n") and line.startswith(('{"type": "Sketched"', '{"type": "PhaseDone"', '{"type": "Decoded"')):
                row = json.loads(line)
                found.setdefault(row["item_key"], []).append(row)
    return found


def put_traces(runs: Runs, records: Iterable[Record], events: Path) -> list[str]:
    """Make the traces that are not there yet; what went wrong. Raises what MLflow raises."""
    there = _there(runs)
    missing = [record for record in records if (record.item_key, record.sha256) not in there]
    if not missing:
        return []
    found = read_events(events)
    with _tracing_to(runs.client.tracking_uri):
        for record in missing:
            _put(runs, record, parts_of(record, found.get(record.item_key, ())))
    num_lost = len({(record.item_key, record.sha256) for record in missing} - _there(runs))
    return [f"{num_lost} of {len(missing)} traces were not written; `dvg track` tries again"] if num_lost else []


def _put(runs: Runs, record: Record, parts: Sequence[Part]) -> None:
    import mlflow

    end_ns = milliseconds(record.finished_at) * 1_000_000
    start_s = min([part.start_s for part in parts], default=-record.latency_s)
    run = runs.known.get(record.item_key) or runs.known[f"arm:{record.arm}"]
    root = mlflow.start_span_no_context(
        name=f"{record.arm}/{record.prompt_id}/{record.seed}",
        inputs={"prompt": record.prompt, "seed": record.seed, "arm": record.arm},
        tags={"sweep_key": runs.sweep_key, "item_key": record.item_key, "sha256": record.sha256, "arm": record.arm},
        metadata={"mlflow.sourceRun": run.run_id},
        experiment_id=runs.experiment_id,
        start_time_ns=end_ns + int(start_s * NS_PER_S),
    )
    for part in parts:
        span = mlflow.start_span_no_context(name=part.name, parent_span=root, start_time_ns=end_ns + int(part.start_s * NS_PER_S))
        span.end(end_time_ns=end_ns + int(part.end_s * NS_PER_S))
    root.set_outputs({"action": record.action, "why": record.why, "video": record.video})
    root.end(end_time_ns=end_ns)


def _there(runs: Runs) -> set[tuple[str, str]]:
    found: set[tuple[str, str]] = set()
    token: str | None = None
    while True:
        mine = f"tags.sweep_key = '{runs.sweep_key}'"
        page = runs.client.search_traces(
            locations=[runs.experiment_id], filter_string=mine, max_results=PAGE, page_token=token, include_spans=False
        )
        found |= {(trace.info.tags.get("item_key", ""), trace.info.tags.get("sha256", "")) for trace in page}
        token = page.token
        if not token:
            return found


@contextlib.contextmanager
def _tracing_to(uri: str) -> Iterator[None]:
    """MLflow's tracing goes where the whole process tracks to, and is sent in the background: until all of it is there."""
    import mlflow

    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    try:
        yield
        mlflow.flush_trace_async_logging()
    finally:
        mlflow.set_tracking_uri(before or "")
        if before is None:
            os.environ.pop("MLFLOW_TRACKING_URI", None)
