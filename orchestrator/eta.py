"""When a sweep will be done: what is left by the cost model, corrected by how long things really took.

The correction is a median of real over predicted GPU-seconds, by arm and phase, so that a clip that stood still for once does not
count. Until a few were seen the estimate is the cost model's own word, and says that it is early.
"""

from __future__ import annotations

import statistics
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.events import Arrived, Command, Event, Finish, GiveUp, PhaseDone, Reached, Sketched, StartSketch
from orchestrator.policy import Policy, Sizing, stage_choices
from orchestrator.split import NOTHING, POOLS, DecodeOn, Load, Pool, decode_s, mean_load, sketch_s
from orchestrator.tally import Ended, Tally
from orchestrator.types import Action

KEPT = 31
"""Ratios of an arm and phase that its median is taken of: the latest."""
ENOUGH = 3
"""Ratios from which on an arm's own median counts, not that of all arms."""
EARLY = 5
"""Phases of a pool that must have ended before its pace counts as seen."""
LEAST_S = 1e-3
"""What is predicted at least of any phase, so that there is always something to correct."""
PHASE_OF: Mapping[Pool, str] = {"sketch": "sketch", "heavy": "refine", "decode": "decode"}
UNKNOWN = Load(LEAST_S, LEAST_S, LEAST_S)
"""Of an item whose policy knows no cost."""


@dataclass(frozen=True)
class Estimate:
    seconds: float
    early: bool
    """Most of it is predicted, little seen."""


@dataclass(frozen=True)
class Predicted:
    """GPU-seconds of one clip: each stage after the sketch on its cheapest slice."""

    load: Load
    stages: tuple[float, ...]
    num_sketched: int

    def refine_s(self, begin: int, stop: int) -> float:
        """Of the stages from ``begin`` on until ``stop`` are done."""
        return max(LEAST_S, sum(self.stages[max(0, begin - self.num_sketched) : max(0, stop - self.num_sketched)]))


class Eta:
    """Hears what the scheduler hears. ``decode_on``: who makes the videos."""

    def __init__(self, policy: Policy, decode_on: DecodeOn = "workers") -> None:
        self._sizing = policy if isinstance(policy, Sizing) else None
        decoders: dict[DecodeOn, Pool] = {"workers": "decode", "pod": "heavy", "sketchers": "sketch"}
        self._pool_of: dict[str, Pool] = {"sketch": "sketch", "refine": "heavy", "decode": decoders[decode_on]}
        self._arms: dict[str, str] = {}
        """Arm of each open item."""
        self._waiting: Counter[str] = Counter()
        """Unsketched items by arm."""
        self._left: dict[str, Load] = {}
        """What is left of each item that was sketched."""
        self._left_of: dict[str, Load] = {}
        """The same, summed by arm."""
        self._clips: dict[str, Predicted] = {}
        self._known: dict[tuple[str, str, float], Predicted] = {}
        self._means: dict[str, Load] = {}
        self._ratios: dict[tuple[str, str], deque[float]] = {}
        """By arm and phase, of those that were predicted."""
        self._seconds: dict[tuple[str, str], deque[float]] = {}
        """The same over :data:`LEAST_S`, of those of which nothing was known."""
        self.num_seen: Counter[str] = Counter()
        """Phases that ended with a result."""

    # What happens

    def take(self, event: Event, commands: Sequence[Command], ended: Iterable[Ended]) -> None:
        """``ended`` is what :meth:`orchestrator.tally.Tally.take` said of the same event."""
        if isinstance(event, Arrived):
            self._arms[event.item.item_key] = event.item.arm
            self._waiting[event.item.arm] += 1
        for job in ended:
            if job.done:
                self._see(job)
        if isinstance(event, Sketched):
            self._sketched(event.item_key, event.decision.action, event.decision.action.num_sketched)
        elif isinstance(event, Reached):
            self._sketched(event.item_key, event.decision.action, event.stop)
        elif isinstance(event, PhaseDone) and event.item_key in self._clips:
            self._reach(event.item_key, event.stop)
        for command in commands:
            if isinstance(command, Finish | GiveUp):
                self._close(command.item_key)
            elif isinstance(command, StartSketch) and command.item_key in self._clips:
                self._again(command.item_key)

    def _see(self, ended: Ended) -> None:
        job, arm = ended.job, self._arms.get(ended.job.item_key)
        if arm is None:
            return
        clip = self._clips.get(job.item_key)
        if job.phase == "refine" and clip is not None:
            predicted_s = clip.refine_s(job.begin, job.stop)
        else:
            load = clip.load if clip else self._mean(arm)
            predicted_s = load.sketch_s if job.phase == "sketch" else load.decode_s
        self.num_seen[job.phase] += 1
        known = self._ratios if predicted_s > LEAST_S else self._seconds
        known.setdefault((arm, job.phase), deque(maxlen=KEPT)).append(ended.gpu_s / max(LEAST_S, predicted_s))

    def _sketched(self, item_key: str, action: Action, stop: int) -> None:
        if item_key not in self._arms:
            return
        if item_key not in self._clips:
            self._waiting[self._arms[item_key]] -= 1
        self._clips[item_key] = self._predicted(self._arms[item_key], action)
        self._reach(item_key, stop)

    def _reach(self, item_key: str, stop: int) -> None:
        clip = self._clips[item_key]
        heavy_s = clip.refine_s(stop, len(clip.stages) + clip.num_sketched)
        self._put(item_key, Load(0.0, heavy_s if heavy_s > LEAST_S else 0.0, clip.load.decode_s))

    def _put(self, item_key: str, left: Load) -> None:
        arm = self._arms[item_key]
        before = self._left.get(item_key, NOTHING)
        self._left[item_key] = left
        self._left_of[arm] = self._left_of.get(arm, NOTHING) + left + before * -1.0

    def _again(self, item_key: str) -> None:
        """From the start: what was known of it is no more."""
        self._put(item_key, NOTHING)
        del self._left[item_key], self._clips[item_key]
        self._waiting[self._arms[item_key]] += 1

    def _close(self, item_key: str) -> None:
        if item_key in self._clips:
            self._put(item_key, NOTHING)
            del self._left[item_key], self._clips[item_key]
        elif item_key in self._arms:
            self._waiting[self._arms[item_key]] -= 1
        self._arms.pop(item_key, None)

    # What is predicted

    def _predicted(self, arm: str, action: Action) -> Predicted:
        key = arm, action.name, action.density
        if key not in self._known:
            self._known[key] = self._predict(arm, action)
        return self._known[key]

    def _predict(self, arm: str, action: Action) -> Predicted:
        sized = self._sizing.arms.get(arm) if self._sizing else None
        if sized is None:
            stages = [LEAST_S] * (len(action.stages) - action.num_sketched)
            return Predicted(Load(LEAST_S, sum(stages), LEAST_S), tuple(stages), action.num_sketched)
        options = stage_choices(sized, action, sized.limits.max_width)
        stages = [min(choice.gpu_s for choice in of_stage) for of_stage in options]
        load = Load(max(LEAST_S, sketch_s(sized, action)), sum(stages), max(LEAST_S, decode_s(sized, action)))
        return Predicted(load, tuple(stages), action.num_sketched)

    def _mean(self, arm: str) -> Load:
        """Of an item without a sketch: its arm's actions equally likely, or those seen of the arm where nobody knows them."""
        if arm not in self._means:
            sized = self._sizing.arms.get(arm) if self._sizing else None
            actions = sized.actions if sized else ()
            if not actions:
                seen = [clip.load for key, clip in self._known.items() if key[0] == arm]
                return mean_load((load, 1.0) for load in seen) if seen else UNKNOWN
            self._means[arm] = mean_load((self._predicted(arm, action).load, 1.0) for action in actions)
        return self._means[arm]

    # What is left

    def ratio(self, arm: str, phase: str) -> float:
        """Real over predicted GPU-seconds: the arm's own, of all arms while that has few, 1 before anything was seen."""
        known = self._seconds if (arm, phase) in self._seconds or not self._ratios else self._ratios
        own = known.get((arm, phase), ())
        if len(own) >= ENOUGH:
            return statistics.median(own)
        found = [ratio for (_, other), ratios in known.items() if other == phase for ratio in ratios]
        return statistics.median(found) if found else 1.0

    def work_left(self) -> dict[Pool, float]:
        """GPU-seconds by pool, corrected."""
        left: dict[Pool, float] = dict.fromkeys(POOLS, 0.0)
        for arm in {*self._waiting, *self._left_of}:
            load = self._left_of.get(arm, NOTHING)
            if self._waiting[arm] > 0:
                load += self._mean(arm) * self._waiting[arm]
            for pool in POOLS:
                left[self._pool_of[PHASE_OF[pool]]] += max(0.0, load.of(pool)) * self.ratio(arm, PHASE_OF[pool])
        return left

    def estimate(self, tally: Tally) -> Estimate | None:
        """From now on; None while a pool that has work has no worker, or when nothing is left to say.

        The pool with most to do sets the pace; nothing ends before the longest of what runs does.
        """
        left = self.work_left()
        spent: dict[Pool, float] = dict.fromkeys(POOLS, 0.0)
        longest_s = 0.0
        for job in tally.jobs.values():
            expected_s, gone_s = self._job_s(job.item_key, job.phase, job.begin, job.stop), tally.now_s - job.started_s
            spent[self._pool_of[job.phase]] += min(expected_s, gone_s * job.width)
            longest_s = max(longest_s, expected_s / job.width - gone_s)
        if any(left[pool] > 0 and not tally.pools[pool].size for pool in POOLS):
            return None
        paces_s = [(left[pool] - spent[pool]) / tally.pools[pool].size for pool in POOLS if tally.pools[pool].size]
        return Estimate(max(longest_s, *paces_s, 0.0), self.num_seen["refine"] < EARLY)

    def _job_s(self, item_key: str, phase: str, begin: int, stop: int) -> float:
        """GPU-seconds that a running job is expected to take in all."""
        arm, clip = self._arms.get(item_key, ""), self._clips.get(item_key)
        if phase == "refine" and clip is not None:
            return clip.refine_s(begin, stop) * self.ratio(arm, phase)
        load = clip.load if clip else self._mean(arm)
        return (load.sketch_s if phase == "sketch" else load.decode_s) * self.ratio(arm, phase)
