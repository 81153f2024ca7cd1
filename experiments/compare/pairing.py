"""Which videos of an arm may be held against the base's: same prompt and seed, same text, same model and shape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from experiments.compare.arms import Arm, Key
from orchestrator.types import Record


@dataclass(frozen=True)
class Pairing:
    """``refused``: why prompts and seeds that both have are not compared, and how many of them."""

    keys: frozenset[Key]
    num_common: int
    refused: Mapping[str, int]

    @property
    def alike(self) -> bool:
        """Whether nothing that both have had to be left out."""
        return not self.refused


def pair(arm: Arm, base: Arm) -> Pairing:
    common = arm.records.keys() & base.records.keys()
    unlike = {key: why for key in common if (why := difference(arm.records[key], base.records[key]))}
    return Pairing(frozenset(common - unlike.keys()), len(common), dict(Counter(unlike.values())))


def difference(ours: Record, theirs: Record) -> str:
    """Why two videos of one prompt id and seed are not the same task; empty when they are."""
    if ours.prompt != theirs.prompt:
        return "another text under the same prompt id"
    if shape_of(ours) != shape_of(theirs):
        return f"another shape: {shape_of(ours)}, the base's {shape_of(theirs)}"
    return ""


def shape_of(record: Record) -> str:
    return f"{record.num_frames} frames of {record.width} x {record.height}"
