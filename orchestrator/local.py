"""The shell that runs everything in this process, one thing after the other: breakpoints work, no Ray is needed."""

from __future__ import annotations

import platform
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from orchestrator import eventlog
from orchestrator.checkpoints import Saved, load
from orchestrator.events import (
    Command,
    Decoded,
    Event,
    Failed,
    Finish,
    GiveUp,
    PhaseDone,
    Sketched,
    StartDecode,
    StartPhase,
    StartSketch,
    WorkerJoined,
)
from orchestrator.mistakes import RunError
from orchestrator.runbook import Runbook
from orchestrator.scheduler import Scheduler
from orchestrator.store import staged
from orchestrator.types import Item
from orchestrator.work import Worker, failed

OnEvent = Callable[[Event, Sequence[Command]], None]

PHASE_OF = {StartSketch: "sketch", StartPhase: "refine", StartDecode: "decode"}


def run_local(
    items: Iterable[Item],
    worker: Worker,
    scheduler: Scheduler,
    runbook: Runbook,
    on_event: OnEvent = lambda event, commands: None,
    device: str = "cpu",
) -> None:
    """Make every item with one worker. The same events and commands as on Ray, so the logs compare."""
    LocalShell({item.item_key: item for item in items}, worker, scheduler, runbook, on_event, device).run()


class LocalShell:
    """One sketch worker, one pod of one rank and one decode worker, all of them the same object in this process."""

    def __init__(
        self,
        items: dict[str, Item],
        worker: Worker,
        scheduler: Scheduler,
        runbook: Runbook,
        on_event: OnEvent,
        device: str = "cpu",
    ) -> None:
        self.items = items
        self.worker = worker
        self.scheduler = scheduler
        self.runbook = runbook
        self.on_event = on_event
        self.device = device
        self._started_s = time.monotonic()
        self._todo: deque[Command] = deque()

    def run(self) -> None:
        for item in self.items.values():
            for event in self.runbook.arrived(item, self._now_s()):
                self._tell(event)
        for kind in ("sketch", "pod", "decode"):
            self._tell(WorkerJoined(self._now_s(), kind, f"{kind}-0"))
        while self._todo:
            self._carry_out(self._todo.popleft())
        if not self.scheduler.finished:
            raise RunError(f"nothing is left to do, yet not every item is done: {_told(self.scheduler.counts())}")

    def _now_s(self) -> float:
        return time.monotonic() - self._started_s

    def _tell(self, event: Event) -> None:
        commands = self.scheduler.handle(event)
        self.runbook.ledger.write_event(eventlog.row(event, commands))
        self._todo.extend(commands)
        self.on_event(event, commands)

    def _carry_out(self, command: Command) -> None:
        if isinstance(command, Finish):
            self.runbook.on_record(self.runbook.finish(command, self.device, platform.node()))
        elif isinstance(command, GiveUp):
            self.runbook.give_up(command)
        else:
            event = self._attempt(command)
            if isinstance(event, Failed) and event.phase == PHASE_OF[type(command)]:  # else it is the checkpoint that is lost
                self._tell_reached(event)
            self._tell(event)

    def _tell_reached(self, event: Failed) -> None:
        if reached := self.runbook.reached(event.item_key, event.attempt, event.time_s):
            self._tell(reached)

    def _attempt(self, command: Command) -> Event:
        try:
            return self._work(command)
        except RunError:  # the machine is at fault, and the next item would fare no better
            raise
        except Exception as error:  # noqa: BLE001 - whatever a worker raises is one attempt's failure
            return failed(self._now_s(), command.item_key, command.attempt, PHASE_OF[type(command)], error)

    def _work(self, command: Command) -> Event:
        item, key, attempt = self.items[command.item_key], command.item_key, command.attempt
        if isinstance(command, StartSketch):
            decision, timings_s, boundary = self.worker.sketch(item)
            return Sketched(self._now_s(), key, attempt, decision, timings_s, boundary)
        if isinstance(command, StartPhase):
            boundary, timings_s = self.worker.refine(item, opened(command.handle), stop=command.stop)
            return PhaseDone(self._now_s(), key, attempt, command.stop, timings_s, boundary)
        if isinstance(command, StartDecode):
            with staged(self.runbook.staging(item, attempt)) as path:
                clip = self.worker.decode(item, opened(command.handle), path)
            return Decoded(self._now_s(), key, attempt, clip)
        raise ValueError(f"{type(command).__name__} is no command of orchestrator.events")


def _told(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {state}" for state, number in counts.items())


def opened(handle: Any) -> Any:
    """The boundary behind a handle: most are boundaries, some lie on disk. Raises CheckpointLost for one that is gone."""
    if not isinstance(handle, Saved):
        return handle
    from stages.denoise import Boundary

    return Boundary.unpack(load(handle))
