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
from experiments.vbench.board import Shard
from experiments.vbench.dimensions import GROUPS, STATIC_FILTER, chosen
from experiments.vbench.evaluate import Evaluation, Session
from experiments.vbench.integrity import Flaw, Integrity, check_view
from experiments.vbench.pool import LocalPool, Make, Pool, RayPool
from experiments.vbench.process import Row, Runtime, VBenchWorker
from experiments.vbench.reduce import SINGLE_PROCESS
from experiments.vbench.shards import ShardStore, Task
from experiments.vbench.view import CUSTOM, View, build_view
from orchestrator.config import read_yaml
from orchestrator.mistakes import ConfigError, unknown
from orchestrator.paths import RunPaths
from orchestrator.run_status import read_status

Tell = Callable[[str], None]
WEIGHT_VARIABLES = ("VBENCH_CACHE_DIR", "TORCH_HOME", "HF_HOME", "XDG_CACHE_HOME")
"""Where weights are: told to every worker, whatever its node's own environment says."""
STATUS_S = 5.0
"""How often a sweep that is followed is asked whether it is over."""
MAX_THREADS = 8
"""Of a worker with a GPU, which only decodes."""


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
        self.evaluation = Evaluation(lambda arm: ShardStore(paths.vbench_arm(self.suite, arm) / "shards"), tell)
        self.views: dict[str, View] = {}
        self.dimensions: tuple[str, ...] = ()
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
            return {arm: self._conclude(view) for arm, view in self.views.items()}

    def look(self) -> bool:
        """Bring the views up to date; whether anything is new. Raises ConfigError for unknown dimensions, or without a video."""
        num_bytes = self.paths.records.stat().st_size if self.paths.records.is_file() else 0
        if num_bytes == self._num_bytes:
            return False
        self._num_bytes = num_bytes
        records = finished_records(self.paths)
        there = {record.arm for record in records}
        self.views |= {arm: build_view(self.paths, self.suite, arm, records) for arm in self.arms if arm in there}
        if not self.views and not self.options.follow:
            raise ConfigError([f"{str(self.paths.root)!r} has no finished video of arm {', '.join(self.arms)}"])
        if self.views and not self.dimensions:
            self._choose(next(iter(self.views.values())))
        return True

    def _choose(self, view: View) -> None:
        """The dimensions, and what each that cannot run lacks."""
        self.dimensions = chosen(self.options.dims, view.suite.dimensions)
        asked = (*self.dimensions, *([STATIC_FILTER] if self._filters else []))
        self.evaluation.unavailable |= probe.unavailable(asked, self.found)
        self._measuring = work.measuring(self.found.version, view.suite.dimensions, os.environ)
        for dimension, why in self.evaluation.unavailable.items():
            self.tell(f"{dimension} is not available: {why}")

    @property
    def _filters(self) -> bool:
        suite = next(iter(self.views.values())).suite
        return suite.static_filter and work.FLICKERING in self.dimensions

    @property
    def _filtered(self) -> bool:
        """Whether temporal flickering waits for the verdicts of the filter."""
        return bool(self.views) and self._filters and STATIC_FILTER not in self.evaluation.unavailable

    def _more(self) -> bool:
        """Ask for what is there by now, of everything but filtered videos; whether more may come."""
        over = not self.options.follow or self._sweep_over()
        if self.look():
            for view in self.views.values():
                self._ask(view)
        return not over

    def _sweep_over(self) -> bool:
        if time.monotonic() - self._asked_s < STATUS_S:
            return False
        self._asked_s = time.monotonic()
        return sweep_over(self.paths)

    def _ask(self, view: View) -> None:
        flaws = () if self.options.follow else self._checked(view)
        self.unsound[view.arm] = {flaw.name: flaw.reason for flaw in flaws}
        for dimension in self.dimensions:
            if dimension != work.FLICKERING or not self._filtered:
                self._ask_sound(view, dimension, work.tasks(view, dimension, self._measuring))
        if self._filtered:
            self._ask_sound(view, STATIC_FILTER, work.candidates(view, self._measuring))

    def _checked(self, view: View) -> tuple[Flaw, ...]:
        """What is there and not whole. Of a sweep that goes on nothing is checked before its end."""
        found = self.integrity[view.arm] = check_view(view)
        if not found.ok or found.notes:
            for line in found.lines():
                self.tell(line)
        return (*found.broken, *found.wrong_frames)

    def _ask_sound(self, view: View, dimension: str, tasks: list[Task]) -> None:
        """What is not whole is not measured, and told with its reason."""
        flaws = self.unsound[view.arm]
        bad = {task: flaws[name] for task in tasks if (name := Path(task.video.path).name) in flaws}
        self.evaluation.ask(dimension, [task for task in tasks if task not in bad])
        if bad and dimension not in self.evaluation.unavailable:
            self.evaluation.keep(Shard(dimension, tuple(bad)), [Row(failed=why) for why in bad.values()], self.about)

    def _flickering(self) -> bool:
        """Ask for the videos that the filter found static."""
        if self._filtered:
            for view in self.views.values():
                self._ask_sound(view, work.FLICKERING, self._static(view))
        return False

    def _static(self, view: View) -> list[Task]:
        rows = self.evaluation.rows
        verdicts = {key: bool(row.record["video_results"]) for key, row in rows.items() if row.record is not None}
        return work.static(view, self._measuring, verdicts)

    def tasks_of(self, view: View, dimension: str) -> list[Task]:
        if dimension == work.FLICKERING and self._filtered:
            return self._static(view)
        return work.tasks(view, dimension, self._measuring)

    def _conclude(self, view: View) -> outcome.ArmOutcome:
        note, unjudged = self._static_note(view) if self._filters else ("", {})
        about = self.about | {"reduce": self.options.reduce}
        checked = self.integrity.get(view.arm) or check_view(view)
        found = outcome.of_arm(view, self.evaluation, self.dimensions, partial(self.tasks_of, view), about, note, unjudged)
        found = replace(found, integrity=checked.as_json())
        outcome.write(self.paths, found)
        return found

    def _static_note(self, view: View) -> tuple[str, dict[str, str]]:
        """What is to be known of the filter beside temporal flickering, and why videos could not be judged, by name."""
        if not self._filtered:
            return f"the first five videos of each prompt, static or not: {self.evaluation.unavailable[STATIC_FILTER]}", {}
        found = [(task, self.evaluation.rows.get(task.key)) for task in work.candidates(view, self._measuring)]
        failed = {Path(task.video.path).name: f"static filter: {row.failed}" for task, row in found if row and row.failed}
        number = len(view.of(work.FLICKERING))
        few = number - work.num_full(view, self._static(view))
        return (f"{few} of {number} prompts have fewer than five static videos" if few else ""), failed

    def _session(self, stack: contextlib.ExitStack) -> Session:
        pool = stack.enter_context(self._pool())
        return Session(self.evaluation, pool, self.options.shard_size, self.about)

    @contextlib.contextmanager
    def _pool(self) -> Iterator[Pool]:
        with self._local_pool() if self.options.local else self._ray_pool() as pool:
            try:
                yield pool
            finally:
                pool.close()

    @contextlib.contextmanager
    def _local_pool(self) -> Iterator[Pool]:
        number = self.options.workers or 1
        yield LocalPool(self._maker("cpu" if self.options.device == "auto" else self.options.device, 1), number)

    @contextlib.contextmanager
    def _ray_pool(self) -> Iterator[Pool]:
        from orchestrator.cluster import start_or_join

        workers, threads = self.options.workers, self.options.threads
        cpus = max(os.cpu_count() or 1, workers * (threads or 1)) if workers and not self.options.address else None
        cluster = start_or_join(self.options.address, cpus)
        try:
            device = self._device(cluster.num_gpus)
            number = workers or max(1, int(cluster.num_gpus if device == "cuda" else cluster.num_cpus // (threads or 1)))
            shared = min(MAX_THREADS, max(1, int(cluster.num_cpus) // number)) if device == "cuda" else 1
            make = self._maker(device, shared)
            wanted = {"GPU": 1.0} if device == "cuda" else {"CPU": float(threads or 1)}
            self.tell(f"{number} workers on {device}, {threads or shared} threads each")
            yield RayPool(make, number, wanted, [self.found.python, str(self.paths.root)])
        finally:
            cluster.leave()

    def _device(self, num_gpus: float) -> str:
        if self.options.device != "auto":
            return self.options.device
        return "cuda" if num_gpus and not self.found.torch.endswith("+cpu") else "cpu"

    def _maker(self, device: str, threads: int) -> Make:
        told = {name: os.environ[name] for name in WEIGHT_VARIABLES if name in os.environ}
        runtime = Runtime(self.found.python, self.found.package, device, self.options.threads or threads, told)
        self.about["device"] = device
        return partial(VBenchWorker, runtime)


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
