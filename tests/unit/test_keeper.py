"""Saving beside the work: nobody waits for the disk, and a disk that is full costs no item."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.checkpoints import Checkpoints
from orchestrator.keeper import MOST_WAITING, Keeper
from orchestrator.types import Action, Decision, Past

ROOT = Path(__file__).parents[2]


class Stage:
    """A boundary that says which it is."""

    def __init__(self, stop: int) -> None:
        self.stop = stop

    def pack(self) -> dict[str, Any]:
        return {"stage": self.stop}


class Whole:
    """A boundary with all that a checkpoint holds."""

    def pack(self) -> dict[str, Any]:
        return {"x": np.zeros(3), "stage": 1, "decision": Decision(Action("a", (), 0.5), ""), "past": Past()}


class Slow(Checkpoints):
    """A disk that takes as long as a test likes."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.saved: list[int] = []
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.problem: Exception | None = None

    def save(self, item_key: str, packed: dict[str, Any], made_by: Any = None) -> None:
        self.begun.set()
        self.go_on.wait()
        if self.problem is not None:
            raise self.problem
        self.saved.append(packed["stage"])


@pytest.fixture
def slow(tmp_path: Path) -> Slow:
    return Slow(tmp_path)


def test_nobody_waits_for_the_disk_and_the_newest_boundary_is_saved_last(slow: Slow) -> None:
    keeper = Keeper(slow)
    keeper.keep("key", Stage(1), {})
    slow.begun.wait()
    for stop in (2, 3, 4):
        keeper.keep("key", Stage(stop), {})
    assert slow.saved == []
    slow.go_on.set()
    keeper.settle()
    assert slow.saved == [1, 4], "one is being written and one may wait: what is older need not be kept"


def test_every_item_keeps_its_newest_boundary_in_the_order_in_which_they_came(slow: Slow) -> None:
    keeper = Keeper(slow)
    keeper.keep("first", Stage(1), {})
    slow.begun.wait()
    for key, stop in (("a", 2), ("b", 3), ("a", 4), ("c", 5)):
        keeper.keep(key, Stage(stop), {})
    slow.go_on.set()
    keeper.settle()
    assert slow.saved == [1, 4, 3, 5], "an item's boundary never takes the place of another's"


def test_no_more_than_a_few_items_wait_for_the_disk(slow: Slow) -> None:
    keeper = Keeper(slow)
    keeper.keep("first", Stage(0), {})
    slow.begun.wait()
    for number in range(1, MOST_WAITING + 1):
        keeper.keep(f"key{number}", Stage(number), {})
    kept = threading.Event()
    one_more = threading.Thread(target=lambda: (keeper.keep("last", Stage(9), {}), kept.set()), daemon=True)
    one_more.start()
    too_soon, num_waiting = kept.wait(0.1), len(keeper._next)
    slow.go_on.set()
    one_more.join()
    assert (too_soon, num_waiting) == (False, MOST_WAITING)
    keeper.settle()
    assert slow.saved == [0, *range(1, MOST_WAITING + 1), 9]


def test_a_mistake_with_one_boundary_is_told_though_later_ones_were_saved(slow: Slow) -> None:
    keeper = Keeper(slow)
    slow.go_on.set()
    slow.problem = KeyError("stage")
    keeper.keep("key", Stage(1), {})
    keeper._writer.submit(lambda: None).result()
    slow.problem = None
    with pytest.raises(KeyError):
        keeper.keep("other", Stage(2), {})


def test_a_full_disk_is_told_once_and_later_boundaries_are_saved_again(slow: Slow, caplog: pytest.LogCaptureFixture) -> None:
    keeper = Keeper(slow)
    slow.go_on.set()
    slow.problem = OSError(28, "No space left on device")
    for stop in (1, 2):
        keeper.keep("key", Stage(stop), {})
        keeper.settle()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "No space left on device" in caplog.text
    slow.problem = None
    keeper.keep("key", Stage(3), {})
    keeper.settle()
    assert slow.saved == [3]


def test_a_machine_that_does_not_see_the_run_folder_is_told_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keeper = Keeper(Checkpoints(tmp_path / "elsewhere"))
    keeper.keep("key", Whole(), {})
    keeper.settle()
    assert f"{tmp_path / 'elsewhere'} is not on this machine" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_that_is_not_the_disks_is_not_hidden(slow: Slow) -> None:
    keeper = Keeper(slow)
    slow.go_on.set()
    slow.problem = KeyError("stage")
    keeper.keep("key", Stage(1), {})
    with pytest.raises(KeyError):
        keeper.settle()


NO_ROOM = """
import logging, resource, sys
from pathlib import Path
import numpy
from orchestrator.checkpoints import Checkpoints
from orchestrator.keeper import Keeper
from orchestrator.types import Action, Decision, Past

class Boundary:
    def __init__(self, stage):
        self.stage = stage
    def pack(self):
        return {"x": numpy.zeros(1000), "stage": self.stage, "decision": Decision(Action("a", (), 0.5), ""), "past": Past()}

logging.basicConfig(format="%(message)s")
kept = Checkpoints(Path(sys.argv[1]))
kept.open([])
keeper = Keeper(kept)
keeper.keep("key", Boundary(1), {})
keeper.settle()
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
for stage in (2, 3):
    keeper.keep("key", Boundary(stage), {})
    keeper.settle()
assert kept.find("key").stop == 1
assert len(list(kept.root.iterdir())) == 1
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
keeper.keep("key", Boundary(3), {})
keeper.settle()
assert kept.find("key").stop == 3
"""


@pytest.mark.slow
def test_a_file_that_the_system_cuts_short_leaves_the_last_whole_one(tmp_path: Path) -> None:
    made = subprocess.run([sys.executable, "-c", NO_ROOM, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    assert made.stderr.count("clips go on without") == 1
