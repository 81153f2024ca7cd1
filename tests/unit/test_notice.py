"""The notice that a machine is taken away reaches the workers on it, and nobody else."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from orchestrator import notice
from orchestrator.mistakes import ConfigError

ACTOR = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(print("told", flush=True)))
print("up", flush=True)
time.sleep(60)
"""


@contextlib.contextmanager
def process(title: str) -> Iterator[subprocess.Popen[str]]:
    """A process with a title like Ray's, that notes SIGTERM."""
    started = subprocess.Popen([title, "-c", ACTOR], executable=sys.executable, stdout=subprocess.PIPE, text=True)
    try:
        assert started.stdout
        started.stdout.readline()
        yield started
    finally:
        started.kill()
        started.communicate()


@pytest.fixture
def only_ours(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sees only the processes of this test: other sweeps may run on this machine."""
    kept: list[int] = []
    everybody = notice.psutil.process_iter
    monkeypatch.setattr(notice.psutil, "process_iter", lambda fields: (p for p in everybody(fields) if p.pid in kept))
    return kept


def test_every_worker_is_told_and_no_other_process(only_ours: list[int]) -> None:
    with (
        process("ray::PodRank.refine") as rank,
        process("ray::dvg-s-sketch-0:SketchActor") as sketch,
        process("ray::IDLE") as other,
    ):
        only_ours += [rank.pid, sketch.pid, other.pid]
        assert notice.give_notice(wait_s=30) == 2
        assert [told.stdout and told.stdout.read() for told in (rank, sketch)] == ["told\n", "told\n"]
        assert other.poll() is None


class Cloud(BaseHTTPRequestHandler):
    """The answers of both clouds; ``quiet`` more questions are answered with no news."""

    quiet = 0

    def do_PUT(self) -> None:
        self._answer(200, "token")

    def do_GET(self) -> None:
        Cloud.quiet -= 1
        if self.path.startswith("/computeMetadata"):
            known = self.headers["Metadata-Flavor"] == "Google"
            self._answer(200 if known else 403, "FALSE" if Cloud.quiet >= 0 else "TRUE")
        else:
            known = self.headers["X-aws-ec2-metadata-token"] == "token"
            self._answer(401 if not known else 404 if Cloud.quiet >= 0 else 200, "{}")

    def _answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *arguments: object) -> None:
        return


@pytest.fixture
def cloud() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Cloud) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("name", ["aws", "gcp"])
def test_a_cloud_is_asked_until_it_takes_the_machine_away(
    name: str, cloud: str, only_ours: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    Cloud.quiet = 3
    monkeypatch.setitem(notice.CLOUDS, name, lambda: getattr(notice, name)(cloud))
    assert notice.watch(name, wait_s=1, poll_s=0) == 0
    assert Cloud.quiet == -1


def test_a_cloud_that_does_not_answer_has_announced_nothing() -> None:
    assert not notice.announced(lambda: notice.aws("http://127.0.0.1:9"))


def test_an_unknown_cloud_is_refused_with_the_choices() -> None:
    with pytest.raises(ConfigError, match="choices: aws, gcp"):
        notice.watch("azur", 1)
