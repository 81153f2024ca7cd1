"""Clusters that somebody else runs: a submitted job, and nodes that carry roles."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from orchestrator.cluster import LOCAL_ENVIRONMENT
from orchestrator.ledger import Ledger
from orchestrator.paths import RunPaths

ROOT = Path(__file__).parents[2]
RAY = [sys.executable, "-m", "ray.scripts.scripts"]


def environment(**extra: str) -> dict[str, str]:
    """A clean Ray environment on loopback."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    return kept | LOCAL_ENVIRONMENT | {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)} | extra


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@dataclass(frozen=True)
class Head:
    jobs: str
    """Where jobs are submitted."""
    address: str
    """Where drivers join."""
    pid: int

    def kill(self) -> None:
        """The head and everything it started, at once."""
        family = [psutil.Process(self.pid), *psutil.Process(self.pid).children(recursive=True)]
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(family, timeout=30)


@contextlib.contextmanager
def head() -> Iterator[Head]:
    """``ray start --head`` on this machine."""
    port, own, folder = free_port(), free_port(), tempfile.mkdtemp(prefix="r")
    command = [*RAY, "start", "--head", "--block", "--num-cpus=2", f"--port={own}", f"--dashboard-port={port}"]
    options = ["--node-ip-address=127.0.0.1", "--object-store-memory=100000000", f"--temp-dir={folder}"]
    agent = f"--dashboard-agent-listen-port={free_port()}"  # the usual one is taken while another cluster runs here
    started = subprocess.Popen([*command, *options, agent], env=environment(), stdout=subprocess.DEVNULL)
    made = Head(f"http://127.0.0.1:{port}", f"127.0.0.1:{own}", started.pid)
    try:
        wait_until_answers(started, f"{made.jobs}/api/version")
        yield made
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            made.kill()
        started.wait()
        shutil.rmtree(folder, ignore_errors=True)


def wait_until_answers(started: subprocess.Popen[bytes], url: str) -> None:
    while started.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(url):
            return
        time.sleep(0.2)
    raise RuntimeError(f"ray start ended with {started.returncode}")


def run_once_the_node_is_up(submit: list[str]) -> subprocess.CompletedProcess[str]:
    """The dashboard answers some seconds before the node can take a job, and says so."""
    while True:
        done = subprocess.run(submit, env=environment(), capture_output=True, text=True, check=False)
        if "No available agent" not in done.stdout + done.stderr:
            return done
        time.sleep(1.0)


@pytest.mark.slow
def test_a_submitted_job_joins_the_running_cluster_and_leaves_its_results_in_the_given_folder(tmp_path: Path) -> None:
    calls, run = tmp_path / "calls", tmp_path / "run"
    calls.mkdir()
    code = tmp_path / "code"
    code.mkdir()
    entry = [sys.executable, "-m", "tests.ray.drive", str(run), str(calls), "2"]
    with head() as joined:
        submit = [*RAY, "job", "submit", "--address", joined.jobs, "--working-dir", str(code), "--", *entry]
        done = run_once_the_node_is_up(submit)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(Ledger(RunPaths(run)).records()) == 2


@pytest.mark.slow
def test_workers_go_to_the_nodes_of_their_role(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.ray.roles", str(tmp_path)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told == {"records": 2, "roles": [["text-transformer", "sketch"], ["transformer", "heavy"], ["vae", "sketch"]]}
