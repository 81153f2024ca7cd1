"""Where an item goes on after a failure, an interrupt or a loss of its file: from the last boundary on disk that is whole."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from orchestrator.arms import Arm, make_item
from orchestrator.checkpoints import CheckpointLost, Checkpoints, Saved
from orchestrator.events import Command, Event, Failed, PhaseDone, Reached, Sketched, StartPhase, StartSketch
from orchestrator.keeper import Keeper
from orchestrator.ledger import Ledger
from orchestrator.local import run_local
from orchestrator.paths import RunPaths
from orchestrator.runbook import Runbook
from orchestrator.scheduler import Scheduler, SchedulerConfig, replay
from orchestrator.types import Item, Record
from stages import decode
from stages.worker import ClipWorker
from tests.spies import SpyModel, SpyPlanner
from tests.unit.test_worker import arm

ARM: Arm = arm("dvg", "dvg", 0.5)
ITEM: Item = make_item(ARM, "p", "a red circle", 7)
FORWARDS = (9, 7, 6, 8)
"""Of each stage, the one that its passage to the next needs included."""


class Model(SpyModel):
    """With a video to decode."""

    def decode(self, latent: Tensor) -> Iterator[np.ndarray[Any, np.dtype[np.uint8]]]:
        yield np.full((25, 96, 96, 3), int(latent.abs().sum().item()) % 251, np.uint8)


class Run:
    """A run folder, every start of which has a model of its own that breaks at the forward it is told to."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.paths, self.monkeypatch = RunPaths(root), monkeypatch
        self.kept = Checkpoints(self.paths.checkpoints)
        self.events: list[Event] = []
        self.commands: list[Command] = []

    def start(self, break_at_call: int = -1, interrupt_after: type[Event] | None = None, max_attempts: int = 3) -> Model:
        model = Model(break_at_call=break_at_call)
        worker = ClipWorker({"dvg": ARM}, keeper=Keeper(self.kept))
        self.monkeypatch.setattr(worker, "_model", lambda arm: model)
        self.monkeypatch.setattr(worker, "_planner", lambda arm: SpyPlanner())
        self.events, self.commands = [], []

        def on_event(event: Event, commands: Any) -> None:
            self.events.append(event)
            self.commands += commands
            if interrupt_after is not None and isinstance(event, interrupt_after):
                worker.settle()
                raise KeyboardInterrupt

        ledger = Ledger(self.paths)
        todo, _ = ledger.resume([ITEM], lambda video, num_frames: None)
        found = self.kept.open(item.item_key for item in todo)
        scheduler = Scheduler(SchedulerConfig(max_attempts=max_attempts))
        runbook = Runbook(ledger, {"dvg": ARM}, checkpoints=self.kept, found=found)
        try:
            run_local(todo, worker, scheduler, runbook, on_event)
        except KeyboardInterrupt:
            return model
        scheduler.check()
        replay(scheduler.log, Scheduler(SchedulerConfig(max_attempts=max_attempts)))
        return model

    @property
    def record(self) -> Record:
        (found,) = Ledger(self.paths).records()
        return found

    @property
    def begins(self) -> list[int]:
        """Where each phase began; -1 for a sketch."""
        starts = [c for c in self.commands if isinstance(c, StartSketch | StartPhase)]
        return [c.begin if isinstance(c, StartPhase) else -1 for c in starts]

    def reached(self) -> list[int]:
        return [event.stop for event in self.events if isinstance(event, Reached)]

    def break_file(self) -> None:
        (path,) = self.kept.root.iterdir()
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    return Run(tmp_path / "run", monkeypatch)


@pytest.fixture
def undisturbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Record:
    alone = Run(tmp_path / "alone", monkeypatch)
    model = alone.start()
    assert len(model.levels) == sum(FORWARDS)
    assert alone.reached() == []
    return alone.record


def test_a_retry_goes_on_from_the_last_boundary_inside_the_phase_that_failed(run: Run, undisturbed: Record) -> None:
    model = run.start(break_at_call=sum(FORWARDS[:2]) + 4)
    assert run.reached() == [2]
    assert run.begins[:2] == [-1, 1]
    assert 2 in run.begins
    assert len(model.levels) == sum(FORWARDS) + FORWARDS[2], "of the stage that failed, and of no other, there were two"
    assert run.record.sha256 == undisturbed.sha256
    assert run.record.attempts == 2
    assert list(run.kept.root.iterdir()) == []


def test_an_interrupted_run_goes_on_from_its_last_boundary(run: Run, undisturbed: Record) -> None:
    run.start(interrupt_after=Sketched)
    model = run.start(interrupt_after=PhaseDone)
    assert run.reached() == [1]
    assert -1 not in run.begins
    again = run.start()
    assert -1 not in run.begins
    assert len(model.levels) + len(again.levels) == sum(FORWARDS[1:])
    assert run.record.sha256 == undisturbed.sha256


def test_an_item_given_up_keeps_its_boundary_for_the_next_start(run: Run, undisturbed: Record) -> None:
    run.start(break_at_call=sum(FORWARDS[:3]) + 2, max_attempts=1)
    assert len(Ledger(run.paths).failures()) == 1
    model = run.start(max_attempts=1)
    assert run.reached() == [3]
    assert len(model.levels) == FORWARDS[3]
    assert run.record.sha256 == undisturbed.sha256
    assert Ledger(run.paths).failures() == []


def test_a_corrupt_file_is_told_and_the_item_is_made_from_the_start(
    run: Run, undisturbed: Record, caplog: pytest.LogCaptureFixture
) -> None:
    run.start(break_at_call=sum(FORWARDS[:3]) + 2, max_attempts=1)
    run.break_file()
    with caplog.at_level(logging.WARNING):
        model = run.start(max_attempts=1)
    assert caplog.text.count("is not whole") == 1
    assert run.reached() == []
    assert len(model.levels) == sum(FORWARDS)
    assert run.record.sha256 == undisturbed.sha256
    assert run.record.attempts == 1


def test_a_file_that_is_lost_after_the_start_costs_an_attempt_and_no_more(
    run: Run, undisturbed: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.start(break_at_call=sum(FORWARDS[:3]) + 2, max_attempts=1)
    opened = Checkpoints.open

    def open_and_lose(self: Checkpoints, wanted: Any) -> Any:
        found = opened(self, wanted)
        if found:
            run.break_file()
        return found

    monkeypatch.setattr(Checkpoints, "open", open_and_lose)
    model = run.start(max_attempts=2)
    assert run.reached() == [3]
    assert [event.phase for event in run.events if isinstance(event, Failed)] == ["sketch"]
    assert len(model.levels) == sum(FORWARDS)
    assert run.record.sha256 == undisturbed.sha256
    assert run.record.attempts == 2


def test_a_file_that_the_worker_cannot_see_costs_one_attempt_however_well_the_driver_sees_it(
    run: Run, undisturbed: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.start(break_at_call=sum(FORWARDS[:3]) + 2, max_attempts=1)

    def load(saved: Saved) -> Any:
        raise CheckpointLost(f"{saved.path} is not on this machine")

    monkeypatch.setattr("orchestrator.local.load", load)
    run.start(max_attempts=2)
    assert run.begins[:2] == [3, -1]
    assert run.record.sha256 == undisturbed.sha256
    assert run.record.attempts == 2


def test_a_failed_decode_needs_no_stage_again(run: Run, undisturbed: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, calls = decode.decode, []

    def once_broken(*given: Any) -> Any:
        calls.append(given)
        if len(calls) == 1:
            raise ArithmeticError("asked to fail")
        return whole(*given)

    monkeypatch.setattr(decode, "decode", once_broken)
    model = run.start()
    assert run.record.attempts == 2
    assert len(model.levels) == sum(FORWARDS)
    assert run.record.sha256 == undisturbed.sha256


def test_without_checkpoints_a_failed_phase_begins_again_and_nothing_is_written(tmp_path: Path, run: Run) -> None:
    ledger = Ledger(run.paths)
    runbook = Runbook(ledger, {"dvg": ARM})
    model, events = Model(break_at_call=sum(FORWARDS[:2]) + 4), []
    worker = ClipWorker({"dvg": ARM})
    run.monkeypatch.setattr(worker, "_model", lambda arm: model)
    run.monkeypatch.setattr(worker, "_planner", lambda arm: SpyPlanner())
    run_local([ITEM], worker, Scheduler(), runbook, lambda event, commands: events.append(event))
    assert not any(isinstance(event, Reached) for event in events)
    assert len(ledger.records()) == 1
    assert not run.paths.checkpoints.exists()
