"""What the heavy ranks of a simulated sweep did at every moment, to the microsecond, and why those that idled did nothing."""

from __future__ import annotations

from collections import Counter

TICKS = 1_000_000
"""Ticks of the virtual clock in a second. Whole numbers, so that busy and idle time add up exactly."""

FILL = "fill"
"""Sketches still to come, and the pods were never full before."""
NO_SKETCH = "waiting_for_sketches"
"""The same once they have been."""
NO_SLICE = "waiting_for_a_slice"
"""Clips wait, and no free ranks lie so that one of them may start there."""
NO_DECODER = "waiting_for_decoders"
"""Clips wait because too many finished latents do."""
TAIL = "tail"
"""Every clip that is left is running."""
DRAIN = "last_decodes"
"""Everything is refined."""
DOWN = "pod_down"
"""Ranks of a pod that lost one, until it is back."""
CAUSES = (FILL, NO_SKETCH, NO_SLICE, NO_DECODER, TAIL, DRAIN, DOWN)


class Meter:
    """Counts ranks; the simulation tells it every change, and :meth:`advance` before the clock moves on."""

    def __init__(self, num_ranks: int, max_undecoded: int) -> None:
        self.num_ranks, self.max_undecoded = num_ranks, max_undecoded
        self.now = 0
        self.up = 0
        """Ranks of pods that take work."""
        self.busy = 0
        """Of those."""
        self.busy_down = 0
        """Ranks at work in pods that lost one."""
        self.unsketched = self.waiting = self.undecoded = 0
        self.was_full = False
        self.idle: Counter[str] = Counter()
        self.busy_ticks = 0

    def advance(self, now: int) -> None:
        passed = now - self.now
        if passed == 0:
            return
        self.now = now
        self.busy_ticks += passed * (self.busy + self.busy_down)
        if down := self.num_ranks - self.up - self.busy_down:
            self.idle[DOWN] += passed * down
        if idle := self.up - self.busy:
            self.idle[self._cause()] += passed * idle
        elif self.up:
            self.was_full = True

    def _cause(self) -> str:
        if self.waiting:
            return NO_DECODER if self.undecoded >= self.max_undecoded else NO_SLICE
        if self.unsketched:
            return NO_SKETCH if self.was_full else FILL
        return TAIL if self.busy or self.busy_down else DRAIN

    def idle_s(self) -> dict[str, float]:
        """GPU-seconds by cause, every cause named."""
        return {cause: self.idle[cause] / TICKS for cause in CAUSES}
