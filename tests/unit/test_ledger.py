"""records.jsonl survives any crash: no torn line, no record twice, no finished video made again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.eventlog import starts
from orchestrator.files import write_atomic
from orchestrator.ledger import Ledger
from orchestrator.ownership import RunLock
from orchestrator.paths import RunPaths
from orchestrator.types import Item, Record
from tests.unit.records import make, row_item


class Crash(BaseException):
    """The process ends here."""


def fine(video: Path, num_frames: int) -> str | None:
    return None


def broken(video: Path, num_frames: int) -> str | None:
    return f"{video.name} does not decode"


def staged(paths: RunPaths, record: Record) -> Path:
    """A video as a decoder leaves it, with the record's own checksum."""
    path = paths.staging(record.arm, record.prompt_id, record.seed, record.attempts)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(f"video of {record.item_key}".encode())
    return path


def finish(ledger: Ledger, record: Record) -> None:
    staged(ledger.paths, record)
    ledger.finish(record)


def record(number: int) -> Record:
    content = f"video of key{number}".encode()
    return dataclasses.replace(make(number), num_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


@settings(max_examples=60, deadline=None)
@given(data=st.data(), num_records=st.integers(0, 4), text=st.text(max_size=20))
def test_truncation_at_any_byte_keeps_every_whole_record_and_the_ledger_goes_on(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, num_records: int, text: str
) -> None:
    paths = RunPaths(tmp_path_factory.mktemp("run"))
    ledger = Ledger(paths)
    written = [dataclasses.replace(record(number), prompt=text) for number in range(num_records)]
    ends = [0]
    for one in written:
        ledger.append(one)
        ends.append(paths.records.stat().st_size)
    cut = data.draw(st.integers(0, ends[-1]))
    os.truncate(paths.records, cut)
    with paths.records.open("ab") as file:  # after a power cut, a file may end in anything
        file.write(data.draw(st.binary(max_size=9)).replace(b"\n", b"\0"))

    again = Ledger(paths)
    whole = sum(end <= cut for end in ends[1:])
    assert again.records() == written[:whole]
    for one in written[whole:]:
        again.append(one)
    assert Ledger(paths).records() == written


@pytest.mark.parametrize("crash_after", ["staged", "sidecar", "video", "record"])
def test_a_crash_at_any_point_of_finishing_leaves_one_record_per_item_after_resuming(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash_after: str
) -> None:
    paths, one = RunPaths(tmp_path), record(1)
    ledger = Ledger(paths)
    staged(paths, one)
    steps = {"staged": "store.FolderStore.put", "sidecar": "store.FolderStore.move", "video": "ledger.append_whole"}
    if crash_after in steps:

        def crash(*args: object, **kwargs: object) -> None:
            raise Crash

        monkeypatch.setattr(f"orchestrator.{steps[crash_after]}", crash)
        with pytest.raises(Crash):
            ledger.finish(one)
        monkeypatch.undo()
    else:
        ledger.finish(one)

    again = Ledger(paths)
    todo, adopted = again.resume([row_item(one)], fine)
    finished_before = crash_after in ("video", "record")
    assert todo == ([] if finished_before else [row_item(one)])
    assert adopted == ([one] if crash_after == "video" else [])
    if todo:
        finish(again, one)
    assert Ledger(paths).records() == [one]
    assert [p.name for p in sorted((tmp_path / one.video).parent.iterdir())] == ["1.json", "1.mp4"]


def write_sidecar(paths: RunPaths, one: Record) -> None:
    write_atomic(paths.sidecar(one.arm, one.prompt_id, one.seed), json.dumps(dataclasses.asdict(one)))


def finished_without_record(paths: RunPaths, one: Record) -> None:
    finish(Ledger(paths), one)
    paths.records.write_bytes(b"")


def test_a_finished_video_without_its_record_is_adopted_and_counts_as_finished(tmp_path: Path) -> None:
    paths, one = RunPaths(tmp_path), record(1)
    finished_without_record(paths, one)
    assert Ledger(paths).resume([row_item(one)], fine) == ([], [one])
    assert Ledger(paths).finished == {"key1"}


@pytest.mark.parametrize("damage", ["video bytes", "video gone", "sidecar torn", "sidecar of another item", "does not decode"])
def test_a_video_that_cannot_be_trusted_is_made_again(tmp_path: Path, damage: str) -> None:
    paths, one = RunPaths(tmp_path), record(1)
    finished_without_record(paths, one)
    video, sidecar = tmp_path / one.video, paths.sidecar(one.arm, one.prompt_id, one.seed)
    if damage == "video bytes":
        video.write_bytes(video.read_bytes()[:-1])
    elif damage == "video gone":
        video.unlink()
    elif damage == "sidecar torn":
        sidecar.write_bytes(sidecar.read_bytes()[:50])
    elif damage == "sidecar of another item":
        write_sidecar(paths, dataclasses.replace(one, item_key="other settings"))
    verify = broken if damage == "does not decode" else fine
    assert Ledger(paths).resume([row_item(one)], verify) == ([row_item(one)], [])


def test_items_with_a_record_are_not_made_again_and_drafts_of_the_others_are_swept(tmp_path: Path) -> None:
    paths, done, missing = RunPaths(tmp_path), record(1), record(2)
    ledger = Ledger(paths)
    finish(ledger, done)
    draft = staged(paths, missing)
    assert ledger.resume([row_item(done), row_item(missing)], fine) == ([row_item(missing)], [])
    assert not draft.exists()


@pytest.mark.parametrize("draft", ["..1.2.mp4.x7.part", ".1.3.mp4", ".1.json.part"])
def test_what_a_killed_attempt_left_is_swept_even_beside_a_finished_video(tmp_path: Path, draft: str) -> None:
    paths, done = RunPaths(tmp_path), record(1)
    ledger, folder = Ledger(paths), (tmp_path / done.video).parent
    staged(paths, done)
    (folder / draft).touch()
    ledger.finish(done)
    assert {p.name for p in folder.iterdir()} == {"1.mp4", "1.json"}
    (folder / draft).touch()
    assert ledger.resume([row_item(done)], fine) == ([], [])
    assert {p.name for p in folder.iterdir()} == {"1.mp4", "1.json"}


def test_a_second_record_of_one_item_is_refused(tmp_path: Path) -> None:
    ledger = Ledger(RunPaths(tmp_path))
    ledger.append(record(1))
    with pytest.raises(ValueError, match="'key1' already has its record"):
        ledger.append(record(1))
    assert len(ledger.records()) == 1


@pytest.mark.parametrize("line, says", [(b"not json\n", "is no record"), (None, "a second time")])
def test_a_ledger_somebody_edited_is_refused_with_file_and_line(tmp_path: Path, line: bytes | None, says: str) -> None:
    paths = RunPaths(tmp_path)
    Ledger(paths).append(record(1))
    first = paths.records.read_bytes()
    paths.records.write_bytes(first + (line or first) + first)
    with pytest.raises(ValueError, match=rf"records\.jsonl:2 .*{says}"):
        Ledger(paths)


def test_a_failure_is_kept_with_its_story_until_the_item_finishes(tmp_path: Path) -> None:
    ledger, one = Ledger(RunPaths(tmp_path)), record(1)
    failure = ledger.fail(row_item(one), "ValueError: no", ("1.0s attempt 1: no",), 3)
    assert ledger.failures() == [failure]
    assert failure["attempts"] == 3
    assert failure["story"] == ["1.0s attempt 1: no"]
    assert ledger.resume([row_item(one)], fine)[0] == [row_item(one)], "a given-up item is tried again"
    ledger.append(one)
    assert ledger.failures() == []


def test_a_reader_never_sees_half_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "folder" / "a.json"
    write_atomic(path, "old")

    def crash(fd: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, "new and longer")
    assert path.read_text() == "old"


def test_two_drivers_never_hold_one_run_and_death_releases_it(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time; from pathlib import Path; from orchestrator.ownership import RunLock;"
            "from orchestrator.paths import RunPaths; lock = RunLock(RunPaths(Path(sys.argv[1])));"
            "lock.__enter__(); print('held', flush=True); time.sleep(600)",
            str(tmp_path),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    paths = RunPaths(tmp_path)
    with pytest.raises(ValueError, match=f"in use by process {holder.pid}"), RunLock(paths):
        pass
    holder.kill()
    holder.wait()
    assert paths.owner.exists()
    with RunLock(paths):
        pass
    assert not paths.owner.exists()


def test_events_are_whole_lines_in_order_and_every_start_of_a_run_can_be_told_apart(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    for first in (0, 3):
        ledger = Ledger(paths)
        for number in range(first, first + 3):
            ledger.write_event({"number": number})
    with paths.events.open("ab") as file:
        file.write(b'{"number": 6, "sta')
    Ledger(paths).write_event({"number": 6})
    rows = [json.loads(line) for line in paths.events.read_text().splitlines()]
    assert [[row["number"] for row in start] for start in starts(rows)] == [[0, 1, 2], [3, 4, 5], [6]]


def test_resume_takes_items_in_their_own_order(tmp_path: Path) -> None:
    items = [Item(f"k{n}", "dvg", "p", "x", n) for n in (3, 1, 2)]
    assert Ledger(RunPaths(tmp_path)).resume(items, fine) == (items, [])
