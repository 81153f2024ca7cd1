"""What is to come, as far as it is known: clips by cost class, what arms are expected to choose, and how far both are off.

Predictions come from the cost model of a :class:`orchestrator.policy.Sizing` and are corrected by what was seen. A policy that
knows no cost has no forecast: nothing that it starts is expected to end at any time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from orchestrator.allotment import Frontier, frontier
from orchestrator.policy import Policy, Sizing
from orchestrator.sizing import Choice
from orchestrator.types import Action

Lane = tuple[str, str, float, int]
"""Of clips that cost the same: arm, the action's name and density, stages done."""
NEWS = 0.1
"""Weight of what was just seen against all that was seen before."""
PRIOR = 3.0
"""So many clips' worth is the guess that an arm chooses each of its actions equally often."""


@dataclass(frozen=True, eq=False)
class ClipClass:
    """Clips that cost the same: what the stages that are left take on every width that is worth it."""

    lane: Lane
    stages: tuple[tuple[Choice, ...], ...]
    """Narrowest first, none slower than a narrower one."""

    @cached_property
    def ways(self) -> Frontier:
        return frontier(self.stages)

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """Those that every stage can run on, narrowest first."""
        return tuple(sorted(set.intersection(*({c.width for c in options} for options in self.stages))))

    @cached_property
    def seconds(self) -> dict[int, tuple[float, ...]]:
        """Of each stage on each of :attr:`widths`."""
        table = [{c.width: c.stage_s for c in options} for options in self.stages]
        return {width: tuple(of_stage[width] for of_stage in table) for width in self.widths}

    @property
    def first(self) -> int:
        """Stages that are done."""
        return self.lane[3]

    @property
    def length_s(self) -> float:
        return self.ways.cheapest.seconds


class Running:
    """A mean that follows what is seen; the first value stands for itself."""

    def __init__(self, value: float, number: int = 0) -> None:
        self.value = value
        self.number = number

    def see(self, value: float) -> None:
        self.number += 1
        self.value += (value - self.value) * max(NEWS, 1 / self.number)


class Forecast:
    def __init__(self, policy: Policy) -> None:
        self.sizing = policy if isinstance(policy, Sizing) else None
        self._classes: dict[tuple[Lane, int], ClipClass] = {}
        self._actions: dict[Lane, Action] = {}
        self._chosen: dict[str, Counter[Lane]] = {}
        """By arm: what its sketches came to."""
        self._paces: dict[str, Running] = {}
        self._sketches_s: dict[str, Running] = {}
        self._decodes_s: dict[str, Running] = {}
        self.sketch_s = Running(0.0)
        """Of any arm, as seen."""

    # Clips

    def lane(self, arm: str, action: Action, first: int) -> Lane:
        lane = (arm, action.name, action.density, first)
        if lane not in self._actions:
            self._actions[lane] = action
        return lane

    def clip(self, lane: Lane, max_width: int) -> ClipClass | None:
        """None without costs. Raises ValueError when no width fits."""
        if self.sizing is None:
            return None
        found = self._classes.get((lane, max_width))
        if found is None:
            stages = self.sizing.stages_left(lane[0], self._actions[lane], lane[3], max_width)
            found = self._classes[lane, max_width] = ClipClass(lane, stages)
        return found

    def expected(self, arm: str, max_width: int) -> Iterator[tuple[ClipClass, float]]:
        """What an item of an arm may come to, with shares that sum to 1."""
        shares = self._shares(arm)
        total = sum(shares.values())
        for lane, number in shares.items():
            clip = self.clip(lane, max_width)
            if clip is not None and clip.stages:
                yield clip, number / total

    def _shares(self, arm: str) -> dict[Lane, float]:
        actions = self.sizing.arms[arm].actions if self.sizing and arm in self.sizing.arms else ()
        shares = {self.lane(arm, action, action.num_sketched): PRIOR / len(actions) for action in actions}
        for lane, number in self._chosen.get(arm, {}).items():
            shares[lane] = shares.get(lane, 0.0) + number
        return shares

    def length_s(self, arm: str, max_width: int) -> float:
        """Cheapest GPU-seconds that an item of the arm is expected to take after its sketch; 0 when nothing is known."""
        return self.pace(arm) * sum(share * clip.ways.cheapest.gpu_s for clip, share in self.expected(arm, max_width))

    # What was seen

    def saw_sketch(self, arm: str, lane: Lane, seconds: float) -> None:
        self._chosen.setdefault(arm, Counter())[lane] += 1
        self._sketches_s.setdefault(arm, Running(seconds)).see(seconds)
        self.sketch_s.see(seconds)

    def saw_phase(self, arm: str, expected_s: float | None, seconds: float) -> None:
        if expected_s:
            self._paces.setdefault(arm, Running(1.0)).see(seconds / expected_s)

    def saw_decode(self, arm: str, seconds: float) -> None:
        self._decodes_s.setdefault(arm, Running(seconds)).see(seconds)

    def pace(self, arm: str) -> float:
        """Seconds that phases of an arm took over those that were predicted."""
        found = self._paces.get(arm)
        return found.value if found else 1.0

    def sketch_of(self, arm: str) -> float:
        """Seconds of a sketch of the arm: seen, else predicted, else of any arm."""
        found = self._sketches_s.get(arm)
        if found is None:
            predicted_s = self.sizing.sketch_s(arm) if self.sizing else None
            return predicted_s if predicted_s is not None else self.sketch_s.value
        return found.value

    def decode_of(self, arm: str, width: int) -> float | None:
        """Seconds of a decode of the arm: predicted, else seen."""
        predicted_s = self.sizing.decode_s(arm, width) if self.sizing else None
        seen = self._decodes_s.get(arm)
        return predicted_s if predicted_s is not None else seen.value if seen and self.sizing else None
