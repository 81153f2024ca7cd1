"""Names of what a sweep holds in a Ray cluster, so that it can be told from what others hold there."""

from __future__ import annotations

import re
from dataclasses import dataclass

PREFIX = "dvg-"
"""Everything of ours begins with it: actors, placement groups and submitted jobs."""

_NAME = re.compile(r"dvg-(?P<sweep>.+)-(?P<kind>sketch|pod|decode)-(?P<slot>\d+)(\.(?P<generation>\d+))?(/(?P<rank>\d+))?", re.S)


@dataclass(frozen=True)
class Holding:
    """What one actor or placement group is for. ``generation`` counts the replacements of a unit, ``rank`` those of a pod."""

    sweep: str
    kind: str
    slot: int
    generation: int = 0
    rank: int | None = None

    @property
    def name(self) -> str:
        """``dvg-<sweep>-<kind>-<slot>[.<generation>][/<rank>]``; :func:`holding` reads it back."""
        renewed = f".{self.generation}" if self.generation else ""
        return f"{PREFIX}{self.sweep}-{self.kind}-{self.slot}{renewed}" + (f"/{self.rank}" if self.rank is not None else "")


def holding(name: str | None) -> Holding | None:
    """What a name of ours says; None for a name that is not. Read from the right: a sweep's own name may hold dashes."""
    found = _NAME.fullmatch(name or "")
    if found is None:
        return None
    generation, rank = found["generation"], found["rank"]
    return Holding(found["sweep"], found["kind"], int(found["slot"]), int(generation or 0), None if rank is None else int(rank))
