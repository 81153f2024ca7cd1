"""``dvg evaluate`` from a run folder to its results: which videos of which arms for which dimensions, on which workers."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from experiments.vbench import outcome, probe, work
from experiments.vbench.arm_videos import finished_records
from experiments.vbench.dimensions import GROUPS, STATIC_FILTER, chosen
from experiments.vbench.evaluate import Evaluation, Session
from experiments.vbench.flickering import Judged, judged
from experiments.vbench.hiring import crew
from experiments.vbench.integrity import Integrity, check_view, flaws_of
from experiments.vbench.reduce import SINGLE_PROCESS
from experiments.vbench.shards import ShardStore, Task
from experiments.vbench.view import CUSTOM, View, bare, build_view, plan_view
from orchestrator.config import read_yaml
from orchestrator.mistakes import ConfigError, unknown
from orchestrator.paths import RunPaths
from orchestrator.run_status import read_status

Tell = Callable[[str], None]
STATUS_S = 5.0
"""How often a sweep that is followed is asked whether it is over."""


@dataclass(frozen=True)
class Options:
    suite: str | None = None
    """None: the run's own, else ``custom``."""
    dims: str = "all"
    arms: tuple[str, ...] = ()
    workers: int | None = None
    shard_size: int = 25
    reduce: str = SINGLE_PROCESS
    device: str = "auto"
    threads: int | None = None
    local: bool = False
    follow: bool = False
    address: str | None = None
    python: str | None = None


class Campaign:
    """One evaluation of one run."""

    def __init__(self, paths: RunPaths, options: Options, tell: Tell) -> None:
        self.paths, self.options, self.tell = paths, options, tell
        chosen(options.dims, GROUPS["all"])  # a wrong word is told before anything is looked at
        spec = read_yaml(paths.config)
        self.suite = options.suite or (spec.get("suite") or {}).get("name") or CUSTOM
        self.arms = _arms(spec, options.arms)
        self.found = probe.ask(probe.interpreter(options.python))
        self.evaluation = Evaluation(lambda arm: ShardStore(paths.vbench_arm(bare(self.suite), arm) / "shards"), tell)
        self.views: dict[str, View] = {}
        self.news: dict[str, View] = {}
        """What the last look found that the one before did not."""
        self.absent: dict[str, View] = {}
        """Of arms without any finished video."""
        self.dimensions: tuple[str, ...] = ()
        self._filters = False
        """Whether the suite measures temporal flickering on static videos alone."""
        self._measuring = work.measuring(self.found.version, (), os.environ)
        self.integrity: dict[str, Integrity] = {}
        """What was found of each arm's videos before anything was measured."""
        self.unsound: dict[str, dict[str, str]] = {}
        """Why, by arm and name in its view, a video must not be measured."""
        self._asked_s = -STATUS_S
        self._num_bytes = -1
        """Of the records, when they were last looked at."""
        self.about = {"vbench": self.found.version, "torch": self.found.torch}

    def run(self) -> dict[str, outcome.ArmOutcome]:
        """Measure what is missing and write each arm's results. Raises ConfigError before anything starts, RunError later."""
        with only_one(self.paths), contextlib.ExitStack() as stack:
            session: Session | None = None
            for more in (self._more, self._flickering):
                waiting = more()
                if self.evaluation.num_waiting or waiting:
                    session = session or self._session(stack)
                    session.run(more)
            every = self.views | self.absent
            return {arm: self._conclude(every[arm]) for arm in self.arms}

    def look(self) -> bool:
        """Bring the views up to date; whether anything is new. Raises ConfigError for unknown dimensions, or without a video."""
        num_bytes = self.paths.records.stat().st_size if self.paths.records.is_file() else 0
        if num_bytes == self._num_bytes:
            return False
        self._num_bytes = num_bytes
        records = finished_records(self.paths)
        there = {record.arm for record in records}
        if not there & set(self.arms) and not self.options.follow:
            raise ConfigError([f"{str(self.paths.root)!r} has no finished video of arm {', '.join(self.arms)}"])
        before, here = self.views, [arm for arm in self.arms if arm in there]
        self.views = {arm: build_view(self.paths, self.suite, arm, records, before.get(arm)) for arm in here}
        self.news = {arm: view.since(before.get(arm)) for arm, view in self.views.items()}
        self.absent = {
            arm: plan_view(self.paths, self.suite, arm, records, may_be_empty=True) for arm in self.arms if arm not in there
        }
        self._prepare()
        return True

    def _prepare(self) -> None:
        """Once: the dimensions, what each that cannot run lacks, and the arms that cannot be measured."""
        if self.dimensions:
            return
        suite = next(iter((self.views | self.absent).values())).suite
        self.dimensions = chosen(self.options.dims, suite.dimensions)
        self._filters = suite.static_filter
        asked = (*self.dimensions, *([STATIC_FILTER] if self._filters and work.FLICKERING in self.dimensions else []))
        self.evaluation.unavailable |= probe.unavailable(asked, self.found)
        self._measuring = work.measuring(self.found.version, suite.dimensions, os.environ)
        self.evaluation.weights = self._measuring.weights
        for dimension, why in self.evaluation.unavailable.items():
            self.tell(f"{dimension} is not available: {why}")
        for arm in self.absent if not self.options.follow else ():
            self.tell(f"arm {arm} has no finished video")

    def _more(self) -> bool:
        """Ask for what is there by now, of everything but filtered videos; whether more may come."""
        over = not self.options.follow or self._sweep_over()
        if self.look():
            for view in self.news.values():
                self._ask(view)
        return not over

    def _sweep_over(self) -> bool:
        if time.monotonic() - self._asked_s < STATUS_S:
            return False
        self._asked_s = time.monotonic()
        return sweep_over(self.paths)

    def _ask(self, news: View) -> None:
        """Ask for videos that were not there at the last look."""
        if self.options.follow:
            self.unsound.setdefault(news.arm, {}).update({flaw.name: flaw.reason for flaw in flaws_of(news.videos.values())})
        else:
            self.check(self.views[news.arm])
        for dimension in self.dimensions:
            if dimension != work.FLICKERING or not self._filters:
                self._ask_sound(news.arm, dimension, work.tasks(news, dimension, self._measuring))
            elif STATIC_FILTER not in self.evaluation.unavailable:
                self._ask_sound(news.arm, STATIC_FILTER, work.candidates(news, self._measuring))

    def check(self, view: View) -> Mapping[str, str]:
        """Why videos that are there must not be measured, by name; told with what is missing."""
        found = self.integrity[view.arm] = check_view(view)
        if not found.ok or found.notes:
            for line in found.lines():
                self.tell(line)
        self.unsound[view.arm] = {flaw.name: flaw.reason for flaw in found.flaws}
        return self.unsound[view.arm]

    def judge(self) -> None:
        """Have the static filter alone judge its candidates: ``tasks_of`` knows temporal flickering's videos afterwards."""
        if not self._filters or work.FLICKERING not in self.dimensions:
            return
        for view in self.views.values():
            if view.arm not in self.unsound:
                self.check(view)
            self._ask_sound(view.arm, STATIC_FILTER, work.candidates(view, self._measuring))
        if self.evaluation.num_waiting:
            with contextlib.ExitStack() as stack:
                self._session(stack).run()

    def _ask_sound(self, arm: str, dimension: str, tasks: list[Task]) -> None:
        """What is not whole is not measured, and told with its reason."""
        flaws = self.unsound[arm]
        bad = {task: flaws[name] for task in tasks if (name := Path(task.video.path).name) in flaws}
        self.evaluation.reject(dimension, bad, self.about)
        self.evaluation.ask(dimension, [task for task in tasks if task not in bad])

    def _flickering(self) -> bool:
        """Ask for the videos that the filter found static, or for the first five where it could not be had after all."""
        if self._filters and work.FLICKERING in self.dimensions:
            for view in self.views.values():
                self._ask_sound(view.arm, work.FLICKERING, self.tasks_of(view, work.FLICKERING))
        return False

    def tasks_of(self, view: View, dimension: str) -> list[Task]:
        if dimension == work.FLICKERING and self._filters:
            return self.judged(view).tasks
        return work.tasks(view, dimension, self._measuring)

    def judged(self, view: View) -> Judged:
        """What the filter of static videos left of temporal flickering, for a suite that has one."""
        return judged(view, self.evaluation, self._measuring, work.FLICKERING in self.dimensions)

    def _conclude(self, view: View) -> outcome.ArmOutcome:
        filtered = self.judged(view) if self._filters else None
        about = self.about | {"reduce": self.options.reduce}
        checked = self.integrity.get(view.arm) or check_view(view)
        found = outcome.of_arm(view, self.evaluation, self.dimensions, partial(self.tasks_of, view), about, filtered)
        found = replace(found, integrity=checked.as_json())
        outcome.write(self.paths, found)
        return found

    def _session(self, stack: contextlib.ExitStack) -> Session:
        pool, self.about["device"] = stack.enter_context(crew(self.options, self.found, self.paths.root, self.tell))
        return Session(self.evaluation, pool, self.options.shard_size, self.about)


def _arms(spec: Mapping[str, Any], wanted: tuple[str, ...]) -> tuple[str, ...]:
    """Raises ConfigError for an arm that the run does not have."""
    there = [str(arm["name"]) for arm in spec.get("arms") or []]
    if mistakes := [unknown("--arms", arm, there) for arm in wanted if arm not in there]:
        raise ConfigError(mistakes)
    return wanted or tuple(there)


def sweep_over(paths: RunPaths) -> bool:
    """Whether no further video comes: all were made or given up, or nobody makes them now."""
    status = read_status(str(paths.root))
    return status.num_left == 0 or not status.owner_alive


@contextlib.contextmanager
def only_one(paths: RunPaths) -> Iterator[None]:
    """One process at a time evaluates a run. Raises ConfigError while another does."""
    paths.vbench.mkdir(parents=True, exist_ok=True)
    with (paths.vbench / ".lock").open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError([f"another process evaluates {str(paths.root)!r}; wait for it, or stop it"]) from error
        yield
