"""What was measured, durably: one file for each finished shard, so that the same command goes on where it stopped.

A row is found by a key of everything that shapes it, whatever the size of the shards, and so a video that was made again, or a
measurement with other weights, is never mistaken for it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.vbench.process import Row, Video
from orchestrator.files import write_atomic


@dataclass(frozen=True, eq=False)
class Task:
    """One video of one arm, for one dimension."""

    arm: str
    video: Video
    key: str


def key_of(arm: str, dimension: str, version: str, weights: Iterable[Any], video: Video) -> str:
    """Of the arm, the dimension, VBench's version, its weights, and the video: its bytes, its name, its prompt."""
    name = Path(video.path).name
    about = [arm, dimension, version, list(weights)]
    facts = [*about, name, video.prompt, video.auxiliary, video.sha256 or _touched(Path(video.path))]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:24]


def _touched(path: Path) -> list[int]:
    """What tells a file from another of its name where no digest was recorded."""
    try:
        found = path.stat()
    except OSError:
        return []
    return [found.st_size, found.st_mtime_ns]


class ShardStore:
    """The folder of one arm's finished shards."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, dimension: str, tasks: Sequence[Task], rows: Sequence[Row], **about: Any) -> None:
        """On disk, whole, when this returns. Raises DiskFull."""
        lines = [_line(task, row) for task, row in zip(tasks, rows, strict=True)]
        name = hashlib.sha256("".join(task.key for task in tasks).encode()).hexdigest()[:16]
        content = {"dimension": dimension, **about, "rows": lines}
        write_atomic(self.root / dimension / f"{name}.json", json.dumps(content, indent=1, allow_nan=False))

    def rows(self, dimension: str) -> dict[str, Row]:
        """By key; one that was measured before one that failed. A file that a person damaged is measured again."""
        found: dict[str, Row] = {}
        for path in sorted((self.root / dimension).glob("*.json")):
            for line in _lines(path):
                row = Row(line.get("record"), line.get("failed"), line.get("seconds", 0.0))
                if line["key"] not in found or row.failed is None:
                    found[line["key"]] = row
        return found

    def earlier(self, dimension: str, tasks: Sequence[Task]) -> tuple[dict[str, Row], str] | None:
        """Rows of these very videos by their keys of now, with what measured them: the latest version and weights that have them
        all. None: no version and weights have, or there is no video.
        """
        stored = self.rows(dimension)
        for version, weights in self._measured_with(dimension) if tasks else []:
            rows = {task.key: stored.get(key_of(task.arm, dimension, version, weights, task.video)) for task in tasks}
            found = {key: row for key, row in rows.items() if row is not None}
            if len(found) == len(rows):
                return found, f"VBench {version}{''.join(f', {name} {mark}' for name, _, mark in weights)}"
        return None

    def _measured_with(self, dimension: str) -> list[tuple[str, list[Any]]]:
        """VBench's versions and weights that the shards of a dimension were measured with, the latest first."""
        found: list[tuple[str, list[Any]]] = []
        for path in sorted((self.root / dimension).glob("*.json"), key=lambda path: path.stat().st_mtime_ns, reverse=True):
            told = _content(path)
            if "vbench" in told and "weights" in told and (told["vbench"], told["weights"]) not in found:
                found.append((told["vbench"], told["weights"]))
        return found


def _line(task: Task, row: Row) -> dict[str, Any]:
    told: dict[str, Any] = {"failed": row.failed} if row.failed is not None else {"record": _without_path(row.record)}
    return {"key": task.key, "video": Path(task.video.path).name, **told, "seconds": round(row.seconds, 4)}


def _without_path(record: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A run folder may be moved."""
    return None if record is None else {name: value for name, value in record.items() if name != "video_path"}


def with_path(record: Mapping[str, Any], path: str) -> dict[str, Any]:
    """A stored record as VBench has it."""
    return {"video_path": path, **record}


def _lines(path: Path) -> list[dict[str, Any]]:
    lines = _content(path).get("rows")
    return [line for line in lines if isinstance(line, dict) and "key" in line] if isinstance(lines, list) else []


def _content(path: Path) -> dict[str, Any]:
    """Empty for a file that a person damaged."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}
