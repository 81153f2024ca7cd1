"""The end of a worker: its process ends with it, whatever it was at, and what it would have fetched is told."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import pytest

from experiments.vbench import process
from experiments.vbench.evaluate import Evaluation, Session
from experiments.vbench.pool import LocalPool, Lost, Ready
from experiments.vbench.process import CHILD, Answer, Row, Runtime, Unavailable, VBenchWorker, Video
from experiments.vbench.shards import ShardStore, Task
from orchestrator.paths import RunPaths
from tests.fakevbench import text_run, write_environment, write_videos

FLICKERING = "temporal_flickering"


@pytest.fixture
def runtime(tmp_path: Path) -> Runtime:
    return write_environment(tmp_path / "env")


def children(of: int | None = None) -> list[psutil.Process]:
    """Processes of VBench's environment that a process started."""
    started = psutil.Process(of).children(recursive=True)
    return [found for found in started if str(CHILD) in _command(found)]


def _command(found: psutil.Process) -> list[str]:
    try:
        return [str(word) for word in found.cmdline()]
    except psutil.NoSuchProcess:
        return []


def until(found: Callable[[], bool]) -> None:
    """Raises TimeoutError after a minute."""
    for _ in range(1200):
        if found():
            return
        time.sleep(0.05)
    raise TimeoutError


def test_closing_a_worker_that_loads_ends_its_process(runtime: Runtime, tmp_path: Path) -> None:
    module = Path(runtime.package) / f"{FLICKERING}.py"
    module.write_text(module.read_text().replace("    pass\n", "    import time; time.sleep(60)\n"))
    worker = VBenchWorker(runtime)

    def close() -> None:
        until(lambda: bool(children()))
        worker.close()

    closing = threading.Thread(target=close)
    closing.start()
    with pytest.raises(process.Closed):
        worker.score(FLICKERING, write_videos(tmp_path / "a", ["0.5"]))
    closing.join()
    assert not children()


def test_an_interrupt_that_a_terminal_sends_to_all_is_no_end_of_a_workers_process(runtime: Runtime, tmp_path: Path) -> None:
    worker = VBenchWorker(runtime)
    videos = write_videos(tmp_path / "a", ["0.5"])
    worker.score(FLICKERING, videos)
    (child,) = children()
    child.send_signal(signal.SIGINT)
    assert worker.score(FLICKERING, videos).rows[0].failed is None
    assert [found.pid for found in children()] == [child.pid]
    worker.close()


def test_closing_a_worker_in_the_middle_of_a_shard_ends_its_process_and_starts_no_other(runtime: Runtime, tmp_path: Path) -> None:
    worker = VBenchWorker(runtime)
    raised: list[BaseException] = []

    def measure() -> None:
        try:
            worker.score(FLICKERING, write_videos(tmp_path / "a", ["hang", "0.5"]))
        except process.Closed as error:
            raised.append(error)

    thread = threading.Thread(target=measure)
    thread.start()
    until(lambda: bool((tmp_path / "env/log").exists()))
    worker.close()
    thread.join()
    assert isinstance(raised[0], process.Closed)
    assert not children()
    assert len((tmp_path / "env/log").read_text().splitlines()) == 1


def test_a_process_that_was_just_started_when_the_worker_closes_does_not_outlive_it(
    runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = VBenchWorker(runtime)
    start = process.Child.__init__

    def closing(self: process.Child, *arguments: object) -> None:
        worker.close()
        start(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(process.Child, "__init__", closing)
    with pytest.raises(process.Closed):
        worker.score(FLICKERING, write_videos(tmp_path / "a", ["0.5"]))
    assert not children()


INTERRUPTED = """
import dataclasses, sys
from pathlib import Path
from experiments.vbench import campaign
from experiments.vbench.campaign import Campaign, Options
from experiments.vbench.integrity import check_view
from orchestrator.paths import RunPaths
campaign.check_view = lambda view: dataclasses.replace(check_view(view), broken=(), wrong_frames=())
options = Options(dims="temporal_flickering", local=True, shard_size=1, python=sys.argv[2])
Campaign(RunPaths(Path(sys.argv[1])), options, print).run()
"""


def shards(paths: RunPaths) -> int:
    return len(list((paths.vbench_arm("custom", "full") / "shards" / FLICKERING).glob("*.json")))


def test_ctrl_c_ends_the_workers_of_this_machine_and_keeps_their_finished_shards(runtime: Runtime, tmp_path: Path) -> None:
    paths = text_run(tmp_path / "run", ["0.25", "0.5", "hang"])
    command = [sys.executable, "-c", INTERRUPTED, str(paths.root), runtime.python]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, cwd=Path(__file__).parents[2], start_new_session=True)
    try:
        until(lambda: shards(paths) == 2 and bool(children(running.pid)))
        theirs = children(running.pid)
        os.killpg(running.pid, signal.SIGINT)  # as a terminal does: to all that it started
        assert b"KeyboardInterrupt" in running.communicate(timeout=50)[1]
    finally:
        running.kill()
        running.wait()
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in theirs)
    assert shards(paths) == 2


@dataclasses.dataclass
class Raising:
    """A worker that raises on one video, which no worker should."""

    num_closed: list[int]

    def score(self, dimension: str, videos: Sequence[Video]) -> Answer:
        if any(video.path == "bad" for video in videos):
            raise KeyError("a mistake of ours")
        return Answer(tuple(Row({"video_results": 0.5}) for _ in videos))

    def close(self) -> None:
        self.num_closed.append(1)


def test_a_worker_of_this_process_that_raises_is_replaced_and_its_videos_are_named_while_the_others_are_measured(
    tmp_path: Path,
) -> None:
    closed: list[int] = []
    told: list[str] = []
    evaluation = Evaluation(lambda arm: ShardStore(tmp_path), told.append)
    evaluation.ask(FLICKERING, [Task("full", Video(name), name) for name in ("a", "bad", "b")])
    pool = LocalPool(lambda: Raising(closed), 1)
    Session(evaluation, pool, 1, {}).run()
    pool.close()
    assert [evaluation.rows[name].failed is None for name in ("a", "b")] == [True, True]
    assert "KeyError: 'a mistake of ours'" in str(evaluation.rows["bad"].failed)
    assert sum("a mistake of ours" in line for line in told) == 3
    assert len(closed) == 4


def test_a_worker_that_raises_is_told_and_stands_ready_again() -> None:
    pool = LocalPool(lambda: Raising([]), 1)
    assert pool.wait(1.0) == Ready(0)
    pool.start(0, FLICKERING, [Video("bad")])
    assert pool.wait(60.0) == Lost(0, "KeyError: 'a mistake of ours'")
    assert pool.wait(1.0) == Ready(0)
    pool.close()


FETCHES = {
    "urllib": "import urllib.request; urllib.request.urlopen('https://example.org/weights.pth')",
    "socket": "import socket; socket.create_connection(('192.0.2.1', 80), timeout=1)",
    "wget": "import subprocess; subprocess.run(['wget', 'https://example.org/weights.pth', '-P', 'x'])",
    "shell": "import os; os.system('wget https://example.org/weights.pth')",
}


@pytest.mark.parametrize("how", FETCHES)
def test_a_dimension_that_would_fetch_something_is_refused_with_what_it_wanted(
    how: str, runtime: Runtime, tmp_path: Path
) -> None:
    module = Path(runtime.package) / f"{FLICKERING}.py"
    module.write_text(module.read_text().replace("    pass\n", f"    {FETCHES[how]}\n"))
    assert FETCHES[how] in module.read_text()
    worker = VBenchWorker(runtime)
    with pytest.raises(Unavailable, match=r"(example\.org|192\.0\.2\.1).* nothing is fetched"):
        worker.score(FLICKERING, write_videos(tmp_path / "a", ["0.5"]))
    worker.close()


def test_this_machine_itself_may_be_talked_to(runtime: Runtime, tmp_path: Path) -> None:
    listens = "import socket; s = socket.create_server(('127.0.0.1', 0)); socket.create_connection(s.getsockname()).close()"
    module = Path(runtime.package) / f"{FLICKERING}.py"
    module.write_text(module.read_text().replace("    pass\n", f"    {listens}\n"))
    worker = VBenchWorker(runtime)
    assert json.loads(json.dumps([row.record for row in worker.score(FLICKERING, write_videos(tmp_path, ["0.5"])).rows]))
    worker.close()
