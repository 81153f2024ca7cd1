"""A sweep submitted to a real cluster that asks for a token: followed, asked about, stopped, and cleaned up after."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.ledger import Ledger
from orchestrator.paths import RunPaths
from tests import tiny
from tests.ray.heads import BIN, ROOT, Head, Proxy, token_head

pytestmark = pytest.mark.slow

PROMPTS = ["a red circle on a plain background", "a blue square; moving `fast` on $(bricks)"]
SPEC = {
    "name": "submitted",
    "prompts": PROMPTS,
    "frames": 9,
    "height": 48,
    "width": 48,
    "steps": 4,
    "planner": "full",
    "cluster": {"heavy_ranks": 1, "grace_s": 5},
    "tracking": {"enabled": False},
}


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with token_head("--num-cpus=2", "--num-gpus=4") as started:
        yield started


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What goes to the cluster: a spec and nothing else."""
    made = tmp_path / "project"
    made.mkdir()
    (made / "spec.yaml").write_text(yaml.safe_dump({**SPEC, "weights": str(tiny.checkpoint())}))
    return made


def submit(head: Head, folder: Path, address: str, out: Path, *more: str) -> subprocess.Popen[str]:
    command = [str(BIN / "dvg"), "submit", "spec.yaml", *more, "--out", str(out), "--address", address]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=head.environment(), stdout=pipe, stderr=pipe, text=True)


def status(head: Head) -> Any:
    told = head.dvg("status", "--json", "--address", head.address)
    assert told.returncode == 0, told.stderr
    return json.loads(told.stdout)


def test_a_submitted_sweep_is_followed_over_a_cut_connection_and_its_log_comes_once(
    head: Head, folder: Path, tmp_path: Path
) -> None:
    out, proxy = tmp_path / "run", Proxy(int(head.address.rpartition(":")[2]))
    proxy.mend()
    client = submit(head, folder, f"http://127.0.0.1:{proxy.port}", out)
    assert client.stdout
    log = ""
    while "making 2 videos" not in log and (line := client.stdout.readline()):
        log += line
    proxy.cut()
    time.sleep(4)  # the client tries in vain
    running = status(head)
    proxy.mend()
    rest, told = client.communicate()
    proxy.cut()
    log += rest
    assert client.returncode == 0, log + told
    assert "lost" in told
    assert "connected again" in told
    assert log.count("making 2 videos") == 1
    assert [log.count(f"{number}/2 full/") for number in (1, 2)] == [1, 1]
    assert {record.prompt for record in Ledger(RunPaths(out)).records()} == set(PROMPTS)
    assert [(job["sweep"], job["out"], job["status"]) for job in running["jobs"]] == [("submitted", str(out), "RUNNING")]
    assert [(node["role"], node["gpus"]) for node in running["nodes"]] == [("-", 4.0)]
    assert {one["sweep"] for one in running["held"]} <= {"submitted"}


def test_a_running_sweep_is_not_submitted_twice_and_is_stopped_by_its_name_alone(
    head: Head, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    long = ["steps=1000", "name=long"]
    first = submit(head, folder, head.address, out, *long, "--no-wait")
    assert first.wait() == 0, first.stderr and first.stderr.read()
    wait_for_workers(head, "long")
    again = submit(head, folder, head.address, out, *long, "--no-wait")
    _, told = again.communicate()
    assert "already running: dvg-long-" in told
    refused = submit(head, folder, head.address, out, "steps=1001", "name=long", "--no-wait")
    assert "with another spec" in refused.communicate()[1]
    assert refused.returncode == 2
    owned = json.loads(head.dvg("status", str(out), "--json").stdout)
    assert (owned["name"], owned["num_items"], owned["owner_alive"]) == ("long", 2, True)
    assert head.dvg("stop", "lon", "--address", head.address).returncode == 2
    stopped = head.dvg("stop", "long", "--address", head.address)
    assert stopped.returncode == 0, stopped.stderr
    wait_for_workers(head, "long", gone=True)
    assert json.loads(head.dvg("status", str(out), "--json").stdout)["owner"] is None, "the driver was killed, not ended"
    assert [job["status"] for job in status(head)["jobs"] if job["sweep"] == "long"] == ["STOPPED"]


def wait_for_workers(head: Head, sweep: str, gone: bool = False) -> None:
    """Until a sweep that runs holds something, or nothing any more."""
    while True:
        now = status(head)
        if any(one["sweep"] == sweep for one in now["held"]) is not gone:
            return
        running = [job["status"] for job in now["jobs"] if job["sweep"] == sweep]
        assert gone or running[0] in ("PENDING", "RUNNING"), now
        time.sleep(0.5)


def leaver(head: Head, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.ray.leaver", head.gcs, *words]
    started = subprocess.Popen(command, cwd=ROOT, env=head.environment(), stdout=subprocess.PIPE, text=True)
    assert started.stdout
    assert started.stdout.readline() == "held\n"
    return started


def left(head: Head, *words: str) -> set[tuple[str, str]]:
    told = head.dvg("gc", *words, "--json", "--address", head.address)
    assert told.returncode == 0, told.stderr
    return {(one["sweep"], one["what"]) for one in json.loads(told.stdout)}


def test_what_a_killed_driver_left_is_removed_and_what_a_living_one_holds_is_not(head: Head) -> None:
    gone, alive = leaver(head, "gone-pod-0", "detached"), leaver(head, "alive", "detached")
    try:
        gone.kill()
        gone.wait()
        while not (found := left(head)):
            time.sleep(0.5)
        assert found == {("gone-pod-0", "actor"), ("gone-pod-0", "placement group")}
        assert left(head, "gone") == set(), "another sweep's name begins with this one"
        removed = head.dvg("gc", "gone-pod-0", "--yes", "--address", head.address)
        assert removed.returncode == 0, removed.stdout + removed.stderr
        assert {one["sweep"] for one in status(head)["held"]} == {"alive"}
    finally:
        alive.kill()
        alive.wait()


def test_without_the_token_nothing_is_told_and_the_way_to_it_is(head: Head, folder: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("0" * 64)
    for environment in (head.environment(wrong), head.environment(tmp_path / "none") | {"RAY_AUTH_MODE": "disabled"}):
        command = [str(BIN / "dvg"), "submit", "spec.yaml", "--out", "/shared/run", "--address", head.address]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert "RAY_AUTH_TOKEN_PATH" in done.stderr
        assert "Traceback" not in done.stderr
        assert head.token.read_text() not in done.stdout + done.stderr
