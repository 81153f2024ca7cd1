"""How often what was kept may be used again, whatever is measured."""

from __future__ import annotations

from dataclasses import dataclass

from stages.accelerators.base import Now, StageEvent

LONGEST_IN_STAGES = 3
"""Steps in a row that may be reused inside a stage of several, unless it is said otherwise."""
WARM_UP_IN_STAGES = 2
"""Steps at most that a stage of several begins with computed."""
FORECAST_IN_STAGES = 2
"""Steps in a row that may be forecast there, unless it is said otherwise: there is no history for more."""


def spacing(given: int | None, published: int, event: StageEvent, longest: int = LONGEST_IN_STAGES) -> int:
    """From one computed step to the next: as given, or as published, and then ``longest`` between them at most in a stage of
    several."""
    if given is not None:
        return given
    return min(published, longest + 1) if event.in_stages else published


@dataclass(frozen=True)
class Pace:
    """Stages of a clip that changes its grid on the way are short (3 to 15 steps): what they reuse must not be old."""

    warmup: int = 1
    """Steps at the beginning that are computed."""
    longest: int | None = None
    """Steps in a row that may be reused; None: any number, or ``LONGEST_IN_STAGES`` in a stage of several."""

    def allows(self, now: Now, in_a_row: int) -> bool:
        """Whether this step may reuse, ``in_a_row`` before it having done so."""
        warmup, longest = self.warmup, self.longest
        if now.event.in_stages:
            warmup = min(warmup, WARM_UP_IN_STAGES)
            longest = LONGEST_IN_STAGES if longest is None else longest
        return not now.must_compute and now.since >= warmup and (longest is None or in_a_row < longest)
