"""A warm process of VBench's environment, and what happens when it dies, hangs, or cannot load a dimension."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import queue
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

from experiments.vbench.dimensions import known, submodules
from experiments.vbench.surroundings import environment
from experiments.vbench.weights import missing, roots

CHILD = Path(__file__).with_name("child.py")
LOAD_TIMEOUT_S = 1800.0
VIDEO_TIMEOUT_S = 1800.0
"""For one video; a shard of a dimension that takes its videos at once has this for each of them."""
MAX_DEATHS = 2
"""A video that was being measured when the process ended so often is given up."""
TAIL_BYTES = 2000


@dataclass(frozen=True)
class Video:
    """One video of a dimension's work. ``path`` is the file under VBench's name; ``sha256`` of its bytes, if recorded."""

    path: str
    prompt: str = ""
    auxiliary: Any = None
    sha256: str = ""


@dataclass(frozen=True)
class Runtime:
    """Where VBench runs: its interpreter, the package's folder, the device and the threads of one worker."""

    python: str
    package: str
    device: str = "cpu"
    threads: int = 1
    environment: Mapping[str, str] = field(default_factory=dict)
    """Where weights are; the same on every node."""


@dataclass(frozen=True)
class Row:
    """What came of one video: VBench's own ``record`` of it, None where it leaves one out, or why it could not be measured."""

    record: dict[str, Any] | None = None
    failed: str | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Answer:
    """The rows of a shard, in its order; the seconds that it took, and before that the loading, if it loaded."""

    rows: tuple[Row, ...]
    work_s: float = 0.0
    load_s: float = 0.0


class Unavailable(RuntimeError):
    """The dimension cannot be loaded here; the message says why."""


class Died(RuntimeError):
    """The process ended, or was ended because it said nothing for too long."""


class Closed(RuntimeError):
    """The worker was closed while it measured; what it had begun is nobody's any more."""


class Worker(Protocol):
    """What measures shards: a process of VBench's environment, or something that stands in for one."""

    def score(self, dimension: str, videos: Sequence[Video]) -> Answer: ...

    def close(self) -> None: ...


class VBenchWorker:
    """Measures shards in a process that it starts, keeps while the dimension is the same, and replaces when it dies."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self._child: Child | None = None
        self._dimension = ""
        self._closed = False

    def score(self, dimension: str, videos: Sequence[Video]) -> Answer:
        """Raises Unavailable when the dimension cannot be loaded, Closed when another thread closes the worker meanwhile."""
        rows: dict[int, Row] = {}
        deaths: Counter[int] = Counter()
        start, load_s, together = time.monotonic(), 0.0, is_whole(dimension)
        while left := [index for index in range(len(videos)) if index not in rows]:
            load_s += self._load(dimension)
            try:
                self._measure(videos, left if together or not is_whole(dimension) else left[:1], rows)
            except Died as error:
                self._end_child()
                if together and len(left) > 1:  # which one it was shows one by one
                    together = False
                    continue
                culprit = next(index for index in left if index not in rows)
                deaths[culprit] += 1
                if deaths[culprit] >= MAX_DEATHS:
                    rows[culprit] = Row(failed=f"{error} ({MAX_DEATHS} times)")
        return Answer(tuple(rows[index] for index in range(len(videos))), time.monotonic() - start - load_s, load_s)

    def _measure(self, videos: Sequence[Video], left: Sequence[int], rows: dict[int, Row]) -> None:
        if (child := self._child) is None:
            raise Closed("the worker was closed")
        child.send({"score": [asdict(videos[index]) for index in left]})
        patience_s = VIDEO_TIMEOUT_S * (len(left) if is_whole(self._dimension) else 1)
        while "done" not in (said := child.read(patience_s)):
            if "row" in said:
                rows[left[said["row"]]] = Row(said.get("record"), said.get("failed"), said["seconds"])

    def _load(self, dimension: str) -> float:
        """Seconds it took; 0 when the process has it."""
        if self._child is not None and self._dimension == dimension:
            return 0.0
        self._end_child()
        start, job = time.monotonic(), job_of(dimension, self.runtime)
        child = self._started(dimension)
        try:
            child.send({"load": job})
            said = child.read(LOAD_TIMEOUT_S)
        except Died as error:
            self._end_child()
            self._go_on()
            raise Unavailable(f"loading it ended the process: {error}") from error
        if "unavailable" in said:
            self._end_child()
            raise Unavailable(str(said["unavailable"]))
        return time.monotonic() - start

    def _started(self, dimension: str) -> Child:
        """Raises Closed. The closing looks for a process after it has said so, and here it is asked again once there is one."""
        self._go_on()
        self._child, self._dimension = child, _ = Child(self.runtime, dimension), dimension
        self._go_on()
        return child

    def _go_on(self) -> None:
        if self._closed:
            self._end_child()
            raise Closed("the worker was closed")

    def _end_child(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.close()

    def close(self) -> None:
        """For good, from any thread: its process ends at once."""
        self._closed = True
        self._end_child()


def is_whole(dimension: str) -> bool:
    """Whether its function loads its model at every call."""
    found = known(dimension)
    return found is not None and found.whole


def job_of(dimension: str, runtime: Runtime) -> dict[str, Any]:
    """What the process is told to load. Raises Unavailable for what the package cannot measure, or this node lacks files of."""
    found, where = known(dimension), roots({**os.environ, **runtime.environment})
    if found is None:
        raise Unavailable(f"VBench's package does not measure {dimension}")
    if lacks := missing(found.weights, where):
        raise Unavailable(f"{platform.node()} has {'; '.join(lacks)}")
    return {
        "dimension": dimension,
        "function": found.function,
        "submodules": submodules(dimension, where, Path(runtime.package)),
        "device": runtime.device,
        "threads": runtime.threads,
        "takes_prompts": found.takes_prompts,
        "whole": found.whole,
    }


class Child:
    """One process, its lines read by a thread so that a reader can lose patience."""

    def __init__(self, runtime: Runtime, dimension: str) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as the process)
        try:
            self._process = subprocess.Popen(
                [runtime.python, "-P", str(CHILD)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                env=environment(runtime, dimension, os.environ),
            )
        except OSError as error:
            raise Unavailable(f"{runtime.python} cannot be run on {platform.node()}: {error.strerror or error}") from error
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=_pump, args=(self._process.stdout, self._lines), daemon=True).start()

    def send(self, request: Mapping[str, Any]) -> None:
        """Raises Died."""
        try:
            self._stdin.write(json.dumps(request) + "\n")
            self._stdin.flush()
        except (OSError, ValueError) as error:  # the process is gone, or was closed
            raise Died(self._story()) from error

    def read(self, timeout_s: float) -> dict[str, Any]:
        """The next line. Raises Died when there is none."""
        try:
            line = self._lines.get(timeout=timeout_s)
        except queue.Empty as error:
            raise Died(f"it said nothing for {timeout_s:.0f} s") from error
        if not line:
            raise Died(self._story())
        said: dict[str, Any] = json.loads(line)
        return said

    @property
    def _stdin(self) -> IO[str]:
        if self._process.stdin is None:
            raise RuntimeError("the process was started without an input")
        return self._process.stdin

    def _story(self) -> str:
        """How it ended, and the last thing it wrote."""
        code = self._process.wait(timeout=30)
        if self._errors.closed:
            return "the process was ended"
        self._errors.seek(max(0, self._errors.seek(0, os.SEEK_END) - TAIL_BYTES))
        last = self._errors.read().decode(errors="replace").strip().splitlines()[-1:]
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return f"the process ended with {how}" + (f": {last[0].strip()[:200]}" if last else "")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(OSError):  # what was not sent has nobody to go to
            self._stdin.close()
        self._errors.close()


def _pump(source: IO[str] | None, lines: queue.Queue[str]) -> None:
    for line in source or ():
        lines.put(line)
    lines.put("")
