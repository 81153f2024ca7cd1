"""A Ray head of our own on loopback that asks for a token, and a proxy in front of its dashboard that can be cut."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from orchestrator.cluster import LOCAL_ENVIRONMENT

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@dataclass(frozen=True)
class Head:
    address: str
    """Of its dashboard."""
    gcs: str
    token: Path

    def environment(self, token: Path | None = None) -> dict[str, str]:
        """Of a client; ``token`` None: the right one."""
        return clean() | {"RAY_AUTH_TOKEN_PATH": str(token or self.token), "RAY_AUTH_MODE": "token"}

    def dvg(self, *words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
        command = [str(BIN / "dvg"), *words]
        return subprocess.run(command, cwd=cwd, env=self.environment(), capture_output=True, text=True, check=False)


def clean() -> dict[str, str]:
    """An environment in which this project is found, and Ray keeps to loopback."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "MLFLOW_"))}
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    return kept | LOCAL_ENVIRONMENT | {"PYTHONPATH": str(ROOT), "PATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


@contextlib.contextmanager
def token_head(*options: str) -> Iterator[Head]:
    """``ray start --head`` with ``options``; all of its processes end with the context."""
    folder, dashboard, gcs = Path(tempfile.mkdtemp(prefix="r")), free_port(), free_port()
    head = Head(f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{gcs}", folder / "token")
    head.token.write_text(secrets.token_hex(32))
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={gcs}", *options]
    command += [f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={free_port()}", f"--temp-dir={folder}"]
    command += ["--node-ip-address=127.0.0.1", "--object-store-memory=100000000"]
    started = subprocess.Popen(command, env=head.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_until_it_asks_for_a_token(started, head)
        yield head
    finally:
        family = [psutil.Process(started.pid), *psutil.Process(started.pid).children(recursive=True)]
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(family, timeout=30)
        shutil.rmtree(folder, ignore_errors=True)


def _wait_until_it_asks_for_a_token(started: subprocess.Popen[bytes], head: Head) -> None:
    while started.poll() is None:
        try:
            urllib.request.urlopen(f"{head.address}/api/version").close()
        except urllib.error.HTTPError as refusal:
            if refusal.code == 401:
                return
            raise
        except OSError:
            time.sleep(0.2)
        else:
            raise RuntimeError("the dashboard answered without a token")
    raise RuntimeError(f"ray start ended with {started.returncode}")


@dataclass
class Proxy:
    """Passes TCP connections on to ``target``; :meth:`cut` ends them all and refuses new ones until :meth:`mend`."""

    target: int
    port: int = field(default_factory=free_port)
    num_connections: int = 0
    _listener: socket.socket | None = None
    _open: list[socket.socket] = field(default_factory=list)

    def mend(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=[self._listener], daemon=True).start()

    def cut(self) -> None:
        for one in [self._listener, *self._open]:
            if one is not None:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
                one.close()
        self._open.clear()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", self.target))
                self.num_connections += 1
                self._open += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._pass_on, args=[source, sink], daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
