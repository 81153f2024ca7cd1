"""``quality.jsonl``: what was measured of which file against which, one line at a time, and what its lines come to.

A row says whose it is (``IDENTITY``), holds one finite number per metric of ``names.METRICS`` that was measured, and under
``unavailable`` why others were not. Several lines of an item add up; a video made again, or compared with another, starts anew.
Loads no torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from experiments.alike import task_of
from experiments.metrics.names import METRICS
from orchestrator.files import append_whole
from orchestrator.paths import RunPaths
from orchestrator.types import Record

Row = dict[str, Any]

IDENTITY = ("item_key", "arm", "prompt_id", "seed", "sha256", "reference_arm", "reference_sha256")
"""The two files compared; the last two are None for a video that is compared with none."""
UNAVAILABLE = "unavailable"


def row_of(record: Record, reference: Record | None) -> Row:
    """A row in which nothing is measured yet."""
    return {
        "item_key": record.item_key,
        "arm": record.arm,
        "prompt_id": record.prompt_id,
        "seed": record.seed,
        "sha256": record.sha256,
        "reference_arm": reference.arm if reference else None,
        "reference_sha256": reference.sha256 if reference else None,
        UNAVAILABLE: {},
    }


def values_of(row: Mapping[str, Any]) -> dict[str, float]:
    """The metrics that a row holds, in the order of ``METRICS``."""
    return {name: float(row[name]) for name in METRICS if row.get(name) is not None}


def append(paths: RunPaths, row: Row) -> None:
    """One whole line, on disk when this returns."""
    append_whole(paths.quality, (json.dumps(row, allow_nan=False) + "\n").encode(), sync=True)


def load_quality(paths: RunPaths, against: str | None = None, strict: bool = False) -> list[Row]:
    """One row per item: what its lines come to, compared with ``against`` (None: with whatever it was compared with last).

    A line torn by a crash is left out, its video counts as not measured; so does a line that is no row, unless ``strict``, which
    raises ValueError for it. No file means no rows. See :func:`current` for videos made again since.
    """
    if not paths.quality.exists():
        return []
    lines = paths.quality.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    return folded((row for line in lines if line.endswith("}\n") and (row := _parsed(line, strict)) is not None), against)


def _parsed(line: str, strict: bool) -> Row | None:
    try:
        row: Row = json.loads(line)
        if not (isinstance(row, dict) and "item_key" in row and "sha256" in row):
            raise ValueError(f"{line.strip()[:80]!r} says of no video what it measures")
    except ValueError:
        if strict:
            raise
        return None
    return row


def folded(lines: Iterable[Row], against: str | None = None) -> list[Row]:
    rows: dict[str, Row] = {}
    for line in lines:
        row = line if None in (against, line.get("reference_arm")) or line["reference_arm"] == against else uncompared(line)
        held = rows.get(row["item_key"])
        rows[row["item_key"]] = row if held is None or held["sha256"] != row["sha256"] else merged(held, row)
    return list(rows.values())


def merged(held: Row, row: Row) -> Row:
    """Two rows of one file as one: the later has the last word."""
    if row.get("frames_ok") == 0.0:
        return row
    if row.get("reference_sha256") is None:
        row = {**row, **{name: held.get(name) for name in IDENTITY[-2:]}}
    elif any(held.get(name) != row[name] for name in IDENTITY[-2:]):
        held = uncompared(held)
    both = {**held, **row}
    unavailable = {**held.get(UNAVAILABLE, {}), **row.get(UNAVAILABLE, {})}
    return {**both, UNAVAILABLE: {name: why for name, why in unavailable.items() if name not in both}}


def uncompared(row: Row) -> Row:
    """A row without what was measured against a reference."""
    of_reference = {name for name, metric in METRICS.items() if metric.of_reference}
    unavailable = {name: why for name, why in row.get(UNAVAILABLE, {}).items() if name not in of_reference}
    kept = {name: value for name, value in row.items() if name not in of_reference}
    return {**kept, "reference_arm": None, "reference_sha256": None, UNAVAILABLE: unavailable}


def current(rows: Iterable[Row], records: Iterable[Record]) -> list[Row]:
    """The rows of these records' files: none of a video made again since, nothing measured against such a one."""
    by_key = {record.item_key: record for record in records}
    files = {(record.arm, record.prompt_id, record.seed, record.sha256) for record in by_key.values()}
    return [
        row if _compared_with(row) in files or row.get("reference_arm") is None else uncompared(row)
        for row in rows
        if row["item_key"] in by_key and by_key[row["item_key"]].sha256 == row["sha256"]
    ]


def _compared_with(row: Row) -> tuple[Any, ...]:
    return row.get("reference_arm"), row["prompt_id"], row["seed"], row.get("reference_sha256")


def partners(records: Iterable[Record], against: str | None) -> dict[str, Record]:
    """The video to compare each item's with: of the arm ``against``, of the same task."""
    records = list(records)
    references = {task_of(record): record for record in records if record.arm == against}
    return {r.item_key: references[task_of(r)] for r in records if r.arm != against and task_of(r) in references}
