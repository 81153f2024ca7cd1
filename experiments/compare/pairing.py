"""Which videos of an arm are held against the base's: those of the same task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from experiments.alike import difference
from experiments.compare.arms import Arm, Key


@dataclass(frozen=True)
class Pairing:
    """``refused``: why prompts and seeds that both have are not compared, and how many of them."""

    keys: frozenset[Key]
    num_common: int
    refused: Mapping[str, int]


def pair(arm: Arm, base: Arm) -> Pairing:
    common = arm.records.keys() & base.records.keys()
    unlike = {key: why for key in common if (why := difference(arm.records[key], base.records[key]))}
    return Pairing(frozenset(common - unlike.keys()), len(common), dict(Counter(unlike.values())))
