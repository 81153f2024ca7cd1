"""What is to come, as far as it is known: clips by cost class, what arms are expected to choose, and how far both are off.

Predictions come from the cost model of a :class:`orchestrator.policy.Sizing` and are corrected by what was seen. A policy that
knows no cost has no forecast: nothing that it starts is expected to end at any time.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from orchestrator import split
from orchestrator.allotment import Frontier, Option
from orchestrator.policy import ArmSizing, Policy, Sizing, decode_choices
from orchestrator.sizing import Choice, total_s
from orchestrator.types import Action

Lane = tuple[str, str, float, int]
"""Of clips that cost the same: arm, the action's name and density, stages done."""
NEWS = 0.1
"""Weight of what was just seen against all that was seen before."""
PRIOR = 3.0
"""So many clips' worth is the guess that an arm chooses each of its actions equally often."""


class Cut(NamedTuple):
    """The next phase of a clip on a slice, and all that is left of it on such slices, as predicted."""

    width: int
    stop: int
    seconds: float
    to_go_s: float


class ClipClass:
    """Clips that cost the same: what the stages that are left take on every width that is worth it."""

    def __init__(self, lane: Lane, stages: tuple[tuple[Choice, ...], ...]) -> None:
        self.lane = lane
        self.arm, self.first = lane[0], lane[3]
        self.stages = stages
        """Of each stage the widths, narrowest first, none slower than a narrower one."""
        self.ways = uniform(stages)
        """One for each width of a slice that takes all stages; on more ranks than a stage gains from, it leaves some out."""
        self.widths = tuple(max(way.widths) for way in self.ways.options)
        """The ranks of each, narrowest first."""
        self.reasons: dict[tuple[int, int], str] = {}
        """By width and stop, once they were asked for."""
        self._cuts: dict[tuple[int, float, bool], Cut] = {}

    @staticmethod
    def on(options: Sequence[Choice], width: int) -> Choice:
        """The widest choice of no more than ``width`` ranks; the narrowest when all are wider."""
        return next((c for c in reversed(options) if c.width <= width), options[0])

    def width_within(self, seconds: float) -> int:
        """The cheapest with which all stages take no longer; the fastest when none does."""
        return max(self.ways.within(seconds).widths)

    def efficient(self, least: float) -> int:
        """The widest that spends no more than 1 / ``least`` of the GPU-seconds of the cheapest."""
        cheap = self.ways.cheapest.gpu_s
        return max(width for width, way in zip(self.widths, self.ways.options, strict=True) if cheap >= least * way.gpu_s)

    def seconds_on(self, width: int, num_stages: int) -> float:
        return sum(self.on(options, width).stage_s for options in self.stages[:num_stages])

    def cut(self, width: int, min_phase_s: float, whole: bool) -> Cut:
        """The stages of one width; unless ``whole`` only the first of them, and more while it is shorter than ``min_phase_s``."""
        found = self._cuts.get((width, min_phase_s, whole))
        if found is None:
            found = self._cuts[width, min_phase_s, whole] = self._cut(width, min_phase_s, whole)
        return found

    def _cut(self, width: int, min_phase_s: float, whole: bool) -> Cut:
        chosen = [self.on(options, width) for options in self.stages]
        run = [chosen[0]]
        for choice in chosen[1:]:
            if choice.width != run[0].width or (not whole and total_s(run) >= min_phase_s):
                break
            run.append(choice)
        return Cut(run[0].width, self.first + len(run), total_s(run), total_s(chosen))


def uniform(stages: Sequence[Sequence[Choice]]) -> Frontier:
    """The frontier of ways that take all stages on slices of one width, as far as each stage gains from it."""
    found: list[Option] = []
    for width in sorted({choice.width for options in stages for choice in options}):
        chosen = [ClipClass.on(options, width) for options in stages]
        way = Option(tuple(c.width for c in chosen), total_s(chosen), sum(c.gpu_s for c in chosen))
        if not found or way.seconds < found[-1].seconds:
            found.append(way)
    return Frontier(tuple(found))


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
        self._typical: dict[tuple[str, int], tuple[int, ClipClass | None]] = {}
        """By arm and width: how many sketches were seen, and what they come to on average."""
        self._paces: dict[str, Running] = {}
        self._sketches_s: dict[str, Running] = {}
        self._decodes_s: dict[str, Running] = {}
        self._sketch_s = Running(0.0)
        self._decode_s = Running(0.0)

    # Clips

    def lane(self, arm: str, action: Action, first: int) -> Lane:
        lane = (arm, action.name, action.density, first)
        if lane not in self._actions:
            self._actions[lane] = action
        return lane

    def clip(self, lane: Lane, max_width: int) -> ClipClass:
        """Raises ValueError when no width fits, RuntimeError where nobody knows any costs."""
        if self.sizing is None:
            raise RuntimeError(f"clips of {lane[0]} have no cost")
        found = self._classes.get((lane, max_width))
        if found is None:
            stages = self.sizing.stages_left(lane[0], self._actions[lane], lane[3], max_width)
            found = self._classes[lane, max_width] = ClipClass(lane, stages)
        return found

    def expected(self, arm: str, max_width: int) -> ClipClass | None:
        """What stands for the items of an arm that are not sketched: of the classes they may come to the one nearest the mean."""
        seen = sum(self._chosen.get(arm, {}).values())
        found = self._typical.get((arm, max_width))
        if found is None or seen > 1.2 * found[0] + 1:
            found = self._typical[arm, max_width] = seen, self._nearest_mean(arm, max_width)
        return found[1]

    def _nearest_mean(self, arm: str, max_width: int) -> ClipClass | None:
        clips = [(self.clip(lane, max_width), share) for lane, share in self._shares(arm).items()]
        if not clips:
            return None
        mean = sum(share * clip.ways.cheapest.gpu_s for clip, share in clips) / sum(share for _, share in clips)
        return min(clips, key=lambda row: abs(row[0].ways.cheapest.gpu_s - mean))[0]

    def _shares(self, arm: str) -> dict[Lane, float]:
        actions = self.sizing.arms[arm].actions if self.sizing and arm in self.sizing.arms else ()
        shares = {self.lane(arm, action, action.num_sketched): PRIOR / len(actions) for action in actions}
        for lane, number in self._chosen.get(arm, {}).items():
            shares[lane] = shares.get(lane, 0.0) + number
        return shares

    # What was seen

    def saw_sketch(self, arm: str, lane: Lane, seconds: float) -> None:
        self._chosen.setdefault(arm, Counter())[lane] += 1
        self._sketches_s.setdefault(arm, Running(seconds)).see(seconds)
        self._sketch_s.see(seconds)

    def saw_phase(self, arm: str, expected_s: float | None, seconds: float) -> None:
        if expected_s:
            self._paces.setdefault(arm, Running(1.0)).see(seconds / expected_s)

    def saw_decode(self, arm: str, seconds: float) -> None:
        self._decodes_s.setdefault(arm, Running(seconds)).see(seconds)
        self._decode_s.see(seconds)

    def pace(self, arm: str) -> float:
        """Seconds that phases of an arm took over those that were predicted."""
        found = self._paces.get(arm)
        return found.value if found else 1.0

    def sketch_s(self, arm: str) -> float:
        """Seconds of a sketch of the arm: seen, else predicted, else of any arm."""
        seen = self._sketches_s.get(arm)
        if seen is not None:
            return seen.value
        known = self._known(arm)
        return split.sketch_s(known, known.actions[0]) if known else self.mean_sketch_s

    def decode_s(self, arm: str, width: int = 1) -> float:
        """Seconds of a decode of the arm: on one rank seen, else predicted, else of any arm."""
        seen, known = self._decodes_s.get(arm), self._known(arm)
        if known is None or (seen is not None and width == 1):
            return seen.value if seen else self.mean_decode_s
        options = decode_choices(known.cost, width)
        return options[-1].stage_s if options else split.decode_s(known, known.actions[0])

    @property
    def mean_sketch_s(self) -> float:
        """Of all arms, as seen; before, as predicted for each alike."""
        return self._sketch_s.value if self._sketch_s.number else self._mean(split.sketch_s)

    @property
    def mean_decode_s(self) -> float:
        """Of all arms, as seen; before, as predicted for each alike."""
        return self._decode_s.value if self._decode_s.number else self._mean(split.decode_s)

    def _known(self, arm: str) -> ArmSizing | None:
        """An arm whose actions are known before any is seen."""
        found = self.sizing.arms.get(arm) if self.sizing else None
        return found if found and found.actions else None

    def _mean(self, seconds: Callable[[ArmSizing, Action], float]) -> float:
        known = [arm for arm in self.sizing.arms.values() if arm.actions] if self.sizing else []
        return statistics.fmean(seconds(arm, arm.actions[0]) for arm in known) if known else 0.0
