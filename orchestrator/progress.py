"""What a person sees while a sweep runs: a live bar on a terminal, one plain line per finished item elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import rich.progress
from rich.console import Console
from rich.markup import escape

from orchestrator.events import Command, Event, Failed, StartDecode, StartPhase, StartSketch, WorkerLost
from orchestrator.types import Record

PHASES = {StartSketch: "sketch", StartPhase: "refine", StartDecode: "decode"}


class Progress:
    """Counts items of this start. ``on_event`` is for the shell, ``on_record`` and ``on_failure`` for the runbook."""

    def __init__(self, console: Console, num_items: int) -> None:
        self.console, self.num_items, self.num_ended = console, num_items, 0
        self._phase: dict[str, str] = {}
        self._started_s = time.monotonic()
        self._bar = rich.progress.Progress(
            rich.progress.SpinnerColumn(),
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TimeElapsedColumn(),
            rich.progress.TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task("starting workers", total=num_items)

    def __enter__(self) -> Progress:
        if self.console.is_terminal:
            self._bar.start()
        else:
            self.console.print(f"making {self.num_items} videos")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()

    def on_event(self, event: Event, commands: Sequence[Command]) -> None:
        if isinstance(event, Failed):
            self._print(f"[yellow]attempt {event.attempt} failed[/] in {event.phase}: {escape(event.error)}")
        if isinstance(event, WorkerLost):
            self._print(f"[yellow]lost[/] {event.worker}: {escape(event.reason)}")
        for command in commands:
            if type(command) in PHASES:
                self._phase[command.item_key] = PHASES[type(command)]
        counts = [f"{n} {name}" for name in PHASES.values() if (n := list(self._phase.values()).count(name))]
        self._bar.update(self._task, description=", ".join(counts) or "working")

    def on_record(self, record: Record) -> None:
        self._end(record.item_key)
        self._print(
            f"{self._where(vars(record))} {record.action} density {record.density:.2f} "
            f"denoise {record.denoise_s:.1f} s decode {record.decode_s:.1f} s{self._eta()}"
        )

    def on_failure(self, failure: Mapping[str, Any]) -> None:
        self._end(failure["item_key"])
        self._print(f"{self._where(failure)} [red]given up after {failure['attempts']} attempts[/]: {escape(failure['error'])}")

    def _end(self, item_key: str) -> None:
        self._phase.pop(item_key, None)
        self.num_ended += 1
        self._bar.update(self._task, completed=self.num_ended)

    def _where(self, row: Mapping[str, Any]) -> str:
        return f"[bold]{self.num_ended}/{self.num_items}[/] {row['arm']}/{row['prompt_id']}/{row['seed']}"

    def _eta(self) -> str:
        """Seconds left at the pace so far; the bar shows its own on a terminal."""
        if self.console.is_terminal or self.num_ended == self.num_items:
            return ""
        pace_s = (time.monotonic() - self._started_s) / self.num_ended
        return f", about {pace_s * (self.num_items - self.num_ended):.0f} s left"

    def _print(self, line: str) -> None:
        self.console.print(line, highlight=False, soft_wrap=True)
