"""The thread that writes finished items down."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from orchestrator.events import Finish
from orchestrator.ledger import Ledger, read_records
from orchestrator.mistakes import DiskFull
from orchestrator.paths import RunPaths
from orchestrator.pods import Place
from orchestrator.runbook import Runbook
from orchestrator.scribe import Scribe
from orchestrator.types import Action, Clip, Decision, Item, Record, Stage
from tests.arms import ARM

HERE = Place("cpu", "here")
DECISION = Decision(Action("plain", (Stage((4, 8, 8), 9, 7.0),), 1.0), "still")


class Slow(Ledger):
    """Waits before every record but those of which somebody said that they may be written."""

    may_write = threading.Event()
    full = False

    def finish(self, record: Record) -> None:
        assert self.may_write.wait(60)
        if self.full:
            raise DiskFull("no room")
        super().finish(record)


def finish(runbook: Runbook, number: int) -> Finish:
    item = Item(f"key{number}", ARM.name, f"p{number}", "a", number)
    path = runbook.staging(item, 1)
    assert isinstance(path, Path)
    path.write_bytes(b"video")
    return Finish(item.item_key, 1, item, DECISION, Clip(path.name, 5, "0"), {}, 1.0, 1.0, ())


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def runbook(tmp_path: Path, told: list[str]) -> Runbook:
    paths = RunPaths(tmp_path)

    def tell(record: Record) -> None:
        on_disk = {each.item_key for each in read_records(paths.records)}
        told.append(record.item_key if record.item_key in on_disk else "not on disk")

    ledger = Slow(paths)
    ledger.may_write = threading.Event()
    return Runbook(ledger, {ARM.name: ARM}, tell)


def may_write(runbook: Runbook) -> threading.Event:
    assert isinstance(runbook.ledger, Slow)
    return runbook.ledger.may_write


def test_nobody_hears_of_an_item_before_its_record_is_on_disk_and_the_order_is_kept(runbook: Runbook, told: list[str]) -> None:
    scribe = Scribe(runbook)
    for number in range(5):
        scribe.write(finish(runbook, number), HERE)
    scribe.look()
    assert (told, scribe.busy) == ([], True)
    may_write(runbook).set()
    while scribe.busy:
        scribe.look(10.0)
    assert told == [record.item_key for record in runbook.ledger.records()] == [f"key{number}" for number in range(5)]
    scribe.close()


def test_what_cannot_be_written_is_raised_to_the_driver(runbook: Runbook, told: list[str]) -> None:
    scribe = Scribe(runbook)
    assert isinstance(runbook.ledger, Slow)
    runbook.ledger.full = True
    may_write(runbook).set()
    scribe.write(finish(runbook, 0), HERE)
    with pytest.raises(DiskFull):
        scribe.look(10.0)
    scribe.close()
    assert told == []


def test_an_end_lets_what_is_being_written_be_whole_and_begins_nothing_more(runbook: Runbook, tmp_path: Path) -> None:
    scribe = Scribe(runbook)
    for number in range(3):
        scribe.write(finish(runbook, number), HERE)
    threading.Timer(0.2, may_write(runbook).set).start()
    scribe.close()
    assert len(read_records(RunPaths(tmp_path).records)) <= 1
