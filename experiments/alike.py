"""Which two videos may be held against each other: same prompt id and seed, same text, same shape."""

from __future__ import annotations

from collections.abc import Hashable

from orchestrator.types import Record


def task_of(record: Record) -> Hashable:
    """Equal for videos that may be compared, whatever made them."""
    return record.prompt_id, record.seed, record.prompt, _shape(record)


def difference(ours: Record, theirs: Record, whose: str = "the base's") -> str:
    """Why two videos of one prompt id and seed are not the same task; empty when they are."""
    if ours.prompt != theirs.prompt:
        return "another text under the same prompt id"
    if _shape(ours) != _shape(theirs):
        return f"another shape: {shape_of(ours)}, {whose} {shape_of(theirs)}"
    return ""


def shape_of(record: Record) -> str:
    return "{} frames of {} x {}".format(*_shape(record))


def _shape(record: Record) -> tuple[int, int, int]:
    return record.num_frames, record.width, record.height
