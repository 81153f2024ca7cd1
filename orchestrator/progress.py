"""What a person sees while a sweep runs: a live view on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table

from orchestrator.cluster_config import ClusterConfig
from orchestrator.eta import Estimate, Eta
from orchestrator.events import Command, Event, Failed, WorkerLeaving, WorkerLost
from orchestrator.scheduler import Scheduler
from orchestrator.split import POOLS, Pool
from orchestrator.tally import Tally
from orchestrator.types import Record

FEW_ITEMS = 200
"""Up to so many, every finished item has a line of its own."""
LINE_S = 5.0
"""Between plain lines at first; later a hundredth of the time gone by, at most ``LONGEST_LINE_S``."""
LONGEST_LINE_S = 60.0
KEPT_FAILURES = 3
HOUR_S = 3600.0
BOUNDARIES: Mapping[Pool, str] = {"sketch": "arrived", "heavy": "sketched", "decode": "refined"}
"""Where items wait for each pool, as :meth:`Scheduler.counts` names it."""


class Progress:
    """Of the items of this start. ``on_event`` is for the shell, ``on_record`` and ``on_failure`` for the runbook.

    ``config`` says how many workers are to come, ``clock`` counts seconds. Any thread may look while the shell's one tells.
    """

    def __init__(
        self,
        console: Console,
        num_items: int,
        scheduler: Scheduler | None = None,
        config: ClusterConfig | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.console, self.num_items, self.num_ended = console, num_items, 0
        self.tally = Tally()
        self._scheduler = scheduler or Scheduler()
        self._config = config
        self._eta = Eta(self._scheduler.policy, config.decode_on if config else "workers")
        self._clock, self._started_s = clock, clock()
        self._ahead_s: float | None = None
        """Of the shell's clock, by which events are stamped, over ours; None before the first."""
        self._line_s = self._started_s
        self._told: tuple[Any, ...] = ()
        self._failures: deque[str] = deque(maxlen=KEPT_FAILURES)
        self._lock = threading.RLock()
        self._over = threading.Event()
        columns = (SpinnerColumn(), MofNCompleteColumn(), BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
        self._bar = Bar(*columns, console=console)
        self._task = self._bar.add_task("starting workers", total=num_items)
        self._live = Live(get_renderable=self.view, console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Progress:
        if self.console.is_terminal:
            self._live.start()
        else:
            self.console.print(f"making {self.num_items} videos")
            threading.Thread(target=self._tick_on, daemon=True, name="progress").start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._live.stop()

    # What happens

    def on_event(self, event: Event, commands: Sequence[Command]) -> None:
        with self._lock:
            self._ahead_s = event.time_s - self._clock()
            self._eta.take(event, commands, self.tally.take(event, commands))
        if isinstance(event, Failed):
            self._fail(f"[yellow]attempt {event.attempt} failed[/] in {event.phase}: {escape(event.error)}")
        elif isinstance(event, WorkerLost):
            self._fail(f"[yellow]lost[/] {event.worker}: {escape(event.reason)}")
        elif isinstance(event, WorkerLeaving):
            self._fail(f"[yellow]leaving[/] {event.worker}: {escape(event.reason)}")

    def on_record(self, record: Record) -> None:
        self._end()
        if self.num_items <= FEW_ITEMS:
            done = f"density {record.density:.2f} denoise {record.denoise_s:.1f} s decode {record.decode_s:.1f} s"
            left = "" if self.console.is_terminal else self._left()
            self._print(f"{self._where(vars(record))} {record.action} {done}{left}")

    def on_failure(self, failure: Mapping[str, Any]) -> None:
        self._end()
        self._fail(f"{self._where(failure)} [red]given up after {failure['attempts']} attempts[/]: {escape(failure['error'])}")

    def _end(self) -> None:
        self.num_ended += 1

    def _where(self, row: Mapping[str, Any]) -> str:
        where = escape(f"{row['arm']}/{row['prompt_id']}/{row['seed']}")
        return f"[bold]{self.num_ended}/{self.num_items}[/] {where}"

    def _fail(self, line: str) -> None:
        self._failures.append(line)
        self._print(line)

    def _print(self, line: str) -> None:
        self.console.print(line, highlight=False, soft_wrap=True)

    # Plain lines

    def _tick_on(self) -> None:
        while not self._over.wait(1.0):
            self.tick()

    def tick(self) -> None:
        """Print the line that is due, if anything changed since the last one or that was long ago; never on a terminal."""
        now_s = self._clock()
        waited_s, gone_s = now_s - self._line_s, now_s - self._started_s
        if self.console.is_terminal or waited_s < min(LONGEST_LINE_S, max(LINE_S, gone_s / 100)):
            return
        with self._lock:
            news = self.num_ended, self.tally.num_lost, tuple(self._scheduler.counts().items()), tuple(self.tally.jobs)
        if news != self._told or waited_s >= LONGEST_LINE_S:
            self._told, self._line_s = news, now_s
            self._print(self.line())

    def line(self) -> str:
        """All of it in one line."""
        with self._lock:
            counts = self._scheduler.counts()
            up = any(self.tally.pools[pool].size for pool in POOLS)
            pools = ", ".join(self._pool_line(pool, counts) for pool in POOLS) if up else "starting workers"
            rates = self._rates()
            lost = f", {self.tally.num_lost} workers lost" if self.tally.num_lost else ""
        return f"{self.num_ended}/{self.num_items}: {pools}{lost}{f'; {rates}' if rates else ''}{self._left()}"

    def _pool_line(self, pool: Pool, counts: Mapping[str, int]) -> str:
        time_of = self.tally.pools[pool]
        waiting = counts.get(BOUNDARIES[pool], 0)
        queue = f", {waiting} waiting" if waiting else ""
        return f"{pool} {time_of.busy}/{time_of.size} busy (idle {time_of.idle_share:.0%} so far{queue})"

    # What is known

    def estimate(self) -> Estimate | None:
        with self._lock:
            self._advance()
            return self._eta.estimate(self.tally)

    def _advance(self) -> None:
        if self._ahead_s is not None:
            self.tally.advance(self._clock() + self._ahead_s)

    def _left(self) -> str:
        """``, about 12 min left``; nothing at the end, when nobody can tell, or when a guess is proved wrong by the time gone."""
        found = self.estimate() if self.num_ended < self.num_items else None
        if found is None or found.seconds <= 0 or (found.early and found.seconds < self._clock() - self._started_s):
            return ""
        return f", about {about(found.seconds)} left{' (an early guess)' if found.early else ''}"

    def _rates(self) -> str:
        """Videos per hour of the clock and of GPUs at work."""
        if not self.tally.num_finished or self.tally.gpu_s <= 0 or self.tally.now_s <= 0:
            return ""
        per_hour, per_gpu_hour = (self.tally.num_finished * HOUR_S / s for s in (self.tally.now_s, self.tally.gpu_s))
        return f"{figure(per_hour)} videos an hour, {figure(per_gpu_hour)} per {self._unit}-hour"

    @property
    def _unit(self) -> str:
        return "GPU" if self._config and self._config.gpus_per_rank else "rank"

    # The live view

    def view(self) -> RenderableType:
        """What a terminal shows; safe to call from any thread."""
        with self._lock:
            self._advance()
            counts = self._scheduler.counts()
            started = any(self.tally.pools[pool].size for pool in POOLS)
            told = self._left().removeprefix(", ") or ("working" if started else "starting workers")
            self._bar.update(self._task, completed=self.num_ended, description=told)
            parts: list[RenderableType] = [self._bar, self._pool_table(counts), self._workers_line()]
            if rates := self._rates():
                parts.append(rates)
            return Group(*parts, *self._failures)

    def _pool_table(self, counts: Mapping[str, int]) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        for heading in ("pool", "busy", "idle so far", "of late", "waiting", "why idle"):
            table.add_column(heading, justify="left" if heading in ("pool", "why idle") else "right")
        for pool in POOLS:
            time_of = self.tally.pools[pool]
            busy = f"{time_of.busy}/{time_of.size}"
            shares = [f"{time_of.idle_share:.0%}", f"{1 - time_of.recent:.0%}"] if time_of.alive_s else ["", ""]
            table.add_row(pool, busy, *shares, str(counts.get(BOUNDARIES[pool], 0)), why_idle(pool, self.tally, counts))
        return table

    def _workers_line(self) -> str:
        pods = [worker for _, worker in self.tally.pods]
        going = sum(worker.going for worker in pods)
        asked = self._config.pods if self._config else len(pods)
        parts = [f"{len(pods) - going} up"]
        parts += [f"{starting} starting"] if (starting := asked - len(pods) + going) > 0 else []
        parts += [f"{going} going"] if going else []
        parts += [f"{self.tally.num_lost} workers lost so far"] if self.tally.num_lost else []
        return "pods: " + ", ".join(parts)


def why_idle(pool: Pool, tally: Tally, counts: Mapping[str, int]) -> str:
    """Why some of a pool has nothing to do just now; empty when all of it has."""
    time_of = tally.pools[pool]
    if not time_of.size:
        return "no worker is up"
    if time_of.busy >= time_of.size:
        return ""
    waiting, before = counts.get(BOUNDARIES[pool], 0), _before(pool, counts)
    if pool == "sketch":
        return "far enough ahead of the heavy pool" if waiting else "every item is sketched"
    if waiting:
        return "the next clips take more ranks than are free, or videos are behind" if pool == "heavy" else "just starting"
    return f"waits for {'sketches' if pool == 'heavy' else 'latents'}" if before else "nothing is left to begin"


def _before(pool: Pool, counts: Mapping[str, int]) -> int:
    """Items that are still to come to a pool."""
    earlier = {"sketch": (), "heavy": ("arrived", "sketching"), "decode": ("arrived", "sketching", "sketched", "refining")}
    return sum(counts.get(state, 0) for state in earlier[pool])


def figure(value: float) -> str:
    """Three digits: ``1,230``, ``52.1``, ``0.347``."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def about(seconds: float) -> str:
    """For people, two figures: ``40 s``, ``12 min``, ``3.5 h``, ``2.1 days``."""
    for name, length, most in (("s", 1.0, 90.0), ("min", 60.0, 90.0), ("h", HOUR_S, 48.0)):
        if seconds < most * length:
            return f"{seconds / length:.2g} {name}" if seconds / length < 10 else f"{seconds / length:.0f} {name}"
    return f"{seconds / 86400:.2g} days"
