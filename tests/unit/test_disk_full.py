"""A full disk loses no item, tears no file and ends the run with one clear line; with room, the same command goes on."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.events import StartDecode
from orchestrator.files import append_whole, size, write_atomic
from orchestrator.jobs import failure_of
from orchestrator.ledger import Ledger
from orchestrator.mistakes import DiskFull, RunError
from orchestrator.paths import RunPaths
from stages.video import verify
from tests import fakesweep
from tests.unit.records import row_item
from tests.unit.test_ledger import record, staged

NUM_ITEMS = 4
LIMITED = """
import resource, sys
from pathlib import Path
from orchestrator.files import append_whole, write_atomic
from orchestrator.mistakes import DiskFull, RunError
path, write, limit = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    write_atomic(path, "x" * 50) if write == "whole" else append_whole(path, b"x" * 49 + b"\\n", sync=True)
except DiskFull as error:
    print(error)
"""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("no file system may be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path, spare: int) -> None:
    """Take all room but so many bytes; a disk hands out pages."""
    (disk / "filling").unlink(missing_ok=True)
    room = os.statvfs(disk)
    (disk / "filling").write_bytes(b"x" * max(0, room.f_bavail * room.f_frsize - spare))


@pytest.mark.parametrize("write", ["whole", "line"])
@pytest.mark.parametrize("limit", [0, 1, 59, 99])
def test_a_file_that_may_not_grow_is_left_as_it_was(tmp_path: Path, write: str, limit: int) -> None:
    """The kernel takes the part of a write that fits, without an error."""
    path = tmp_path / "f"
    path.write_bytes(b"y" * 49 + b"\n")
    before = path.read_bytes()
    whole = write == "whole" and limit > 50
    done = subprocess.run([sys.executable, "-c", LIMITED, str(path), write, str(limit)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert path.read_bytes() == (b"x" * 50 if whole else before)
    assert [p.name for p in tmp_path.iterdir()] == ["f"]
    if not whole:
        assert re.search(r"no room for '.*/f' on \S+ \(File too large\): it needs 50 bytes; its disk has .* free", done.stdout)


def test_a_line_or_a_file_without_room_leaves_the_disk_as_it_was(disk: Path) -> None:
    path = disk / "lines"
    append_whole(path, b"x" * 4000 + b"\n", sync=True)
    fill(disk, spare=0)
    for write in (lambda: append_whole(path, b"y" * 9000 + b"\n", sync=True), lambda: write_atomic(path, b"z" * 9000)):
        with pytest.raises(DiskFull, match=r"No space left on device\): it needs 9 kB; its disk has 0 bytes of 262 kB free"):
            write()
    assert path.read_bytes() == b"x" * 4000 + b"\n"
    assert {p.name for p in disk.iterdir()} == {"lines", "filling"}


def test_a_record_without_room_is_adopted_from_its_sidecar_later(disk: Path) -> None:
    paths, one = RunPaths(disk), record(1)
    ledger = Ledger(paths)
    staged(paths, one)
    paths.records.write_bytes(b"\n" * 4096)  # so that the next byte needs a page of its own
    fill(disk, spare=4096)  # the sidecar's
    with pytest.raises(DiskFull, match=r"records\.jsonl"):
        ledger.finish(one)
    assert ledger.finished == frozenset()
    assert paths.records.read_bytes() == b"\n" * 4096
    paths.records.write_bytes(b"")
    (disk / "filling").unlink()
    assert Ledger(paths).resume([row_item(one)], lambda video, frames: None) == ([], [one])


def test_wherever_a_run_finds_no_room_it_ends_with_one_line_and_goes_on_when_there_is_some(disk: Path) -> None:
    """The owner's file, the event log, a video, a sidecar, a record: page by page, each is the first to find none."""
    fakesweep.sweep(disk / "whole", 1)
    needed = sum(path.stat().st_size // 4096 + 1 for path in (disk / "whole").rglob("*") if path.is_file())
    without: set[str] = set()
    for pages in range(needed):
        run = disk / "run"
        run.mkdir()
        fill(disk, spare=4096 * pages)
        try:
            fakesweep.sweep(run, 1)
        except DiskFull as error:
            without |= set(re.findall(r"no room for '\S+/(\S+)' on \S+ \(No space left", str(error)))
        assert not list(RunPaths(run).failures.glob("*")), "no item is given up for a full disk"
        (disk / "filling").unlink()
        finished_well(run, 1)
        shutil.rmtree(run)
    assert {".owner.json", "events.jsonl", ".0.1.mp4", "0.json"} <= without


@pytest.mark.parametrize("limit", [2500, 6000])
def test_a_run_whose_files_may_not_grow_ends_with_exit_code_1_and_one_line(tmp_path: Path, limit: int) -> None:
    """A limit on the size of a file stands for a quota."""
    code, told = fakesweep.run(tmp_path, NUM_ITEMS, "--limit", limit)
    assert code == 1, told
    assert re.search(r"^error: no room for '.*' on \S+ \(File too large\): .*\n\Z", told, re.M), told
    assert "Traceback" not in told
    assert not list(RunPaths(tmp_path).failures.glob("*"))
    finished_well(tmp_path, NUM_ITEMS)


def finished_well(run: Path, num_items: int) -> None:
    fakesweep.sweep(run, num_items)
    paths = RunPaths(run)
    records = Ledger(paths).records()
    assert sorted(record.item_key for record in records) == [f"key{n}" for n in range(num_items)]
    assert [verify(run / record.video, record.num_frames) for record in records] == [None] * num_items
    assert {path.suffix for path in paths.videos.rglob("*") if path.is_file()} == {".mp4", ".json"}
    for line in paths.events.read_text().splitlines():
        json.loads(line)


@pytest.mark.parametrize(("num_bytes", "told"), [(0, "0 bytes"), (999, "999 bytes"), (12_345, "12.3 kB"), (5e12, "5 TB")])
def test_sizes_are_told_for_people(num_bytes: float, told: str) -> None:
    assert size(num_bytes) == told


def test_a_worker_of_ray_without_room_ends_the_sweep_and_costs_no_attempt() -> None:
    """As Ray hands a worker's exception over: pickled, and wrapped."""
    wrapped = RuntimeError("a worker's traceback")
    wrapped.cause = pickle.loads(pickle.dumps(DiskFull("no room for 'v.mp4'")))  # type: ignore[attr-defined]
    with pytest.raises(RunError, match=r"no room for 'v\.mp4'"):
        failure_of(1.0, StartDecode("key", 1, "decode-0", None), wrapped)
