"""A sweep on real Ray processes: it finishes, and it survives deaths of every kind, charging only who was hit."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.exceptions import ObjectLostError, RayError

from orchestrator.cluster import Cluster
from orchestrator.cluster_config import ClusterConfig
from orchestrator.driver import run_on_ray
from orchestrator.events import Event, PhaseDone, Sketched, StartDecode, StartPhase, WorkerJoined
from orchestrator.jobs import failure_of
from orchestrator.ledger import Ledger
from orchestrator.paths import RunPaths
from orchestrator.runbook import Runbook
from orchestrator.scheduler import Scheduler, SchedulerConfig, replay
from orchestrator.types import Slice
from tests.ray.fakes import ARM, FakeWorkshop, born, calls, items, sweep

ONE_RANK = ClusterConfig(heavy_ranks=1)
"""Where it makes no difference: every rank takes seconds to start."""


class Run:
    """One sweep in a folder of its own, on the shared cluster."""

    def __init__(self, cluster: Cluster, root: Path) -> None:
        self.cluster = cluster
        self.paths = RunPaths(root / "run")
        self.folder = root / "calls"
        self.folder.mkdir()
        self.scheduler = Scheduler()

    def make(
        self,
        on_event: Callable[[Event, Any], None] = lambda event, commands: None,
        config: ClusterConfig | None = None,
        max_attempts: int = 3,
        broken: str = "",
        **prompts: str,
    ) -> Run:
        self.scheduler = Scheduler(SchedulerConfig(max_attempts=max_attempts))
        made = items(**prompts)

        def check(event: Event, commands: Any) -> None:
            self.scheduler.check()
            on_event(event, commands)

        run_on_ray(
            sweep(made, config),
            made,
            self.scheduler,
            Runbook(Ledger(self.paths), {"dvg": ARM}),
            check,
            FakeWorkshop(self.folder, os.getpid(), broken),
            self.cluster,
        )
        return self

    @property
    def attempts(self) -> dict[str, int]:
        """Attempts of every finished item."""
        return {record.item_key: record.attempts for record in Ledger(self.paths).records()}

    def log(self, kind: str) -> list[dict[str, Any]]:
        rows = [json.loads(line) for line in self.paths.events.read_text().splitlines()]
        return [row for row in rows if row["type"] == kind]


@pytest.fixture
def run(cluster: Cluster, tmp_path: Path) -> Run:
    return Run(cluster, tmp_path)


def test_a_sweep_makes_every_video_on_both_ranks_and_the_driver_never_opens_a_latent(run: Run) -> None:
    run.make(**{f"key{number}": "slow-refine-1" for number in range(4)})
    assert run.attempts == dict.fromkeys(["key0", "key1", "key2", "key3"], 1)
    for record in Ledger(run.paths).records():
        assert (run.paths.root / record.video).read_bytes() == f"video {record.seed}".encode()
        assert (record.sketch_s, record.refine_s, record.decode_s) == (0.5, 1.5, 0.25)
        assert record.device == "cpu"
    assert len({pid for _, pid in calls(run.folder, "refine")}) == 2, "one of the pod's ranks got no work"
    assert not (run.folder / "opened-in-the-driver").exists()
    replay([json.loads(line) for line in run.paths.events.read_text().splitlines()], Scheduler())


def test_a_killed_actor_is_replaced_and_its_item_alone_is_charged_and_goes_on_from_its_boundary(run: Run) -> None:
    run.make(key0="die-sketch-1", key1="die-refine-1", key2="die-decode-1", key3="", key4="slow-refine-1")
    assert run.attempts == {"key0": 2, "key1": 2, "key2": 2, "key3": 1, "key4": 1}
    lost = {row["worker"] for row in run.log("WorkerLost")}
    assert lost == {"sketch-0", "pod-0", "decode-0"}
    assert {f"{name}.1" for name in lost} <= {row["worker"] for row in run.log("WorkerJoined")}
    for key, hit in {"key0": "sketch", "key1": "refine", "key2": "decode"}.items():
        done = {phase: len(calls(run.folder, phase, key)) for phase in ("sketch", "refine", "decode")}
        assert done == {"sketch": 1, "refine": 1, "decode": 1} | {hit: 2}, "work before the boundary was done again"


def test_an_idle_actor_that_dies_is_replaced_at_no_items_expense(run: Run) -> None:
    def leave_word(event: Event, commands: Any) -> None:
        if isinstance(event, WorkerJoined):
            (run.folder / f"joined.{event.worker}").touch()

    run.make(leave_word, ONE_RANK, key0="murder-sketch-1", key1="")
    assert run.attempts == {"key0": 1, "key1": 1}
    assert [row["worker"] for row in run.log("WorkerLost")] == ["decode-0"]


def test_items_that_kill_or_fail_every_time_are_given_up_and_innocents_beside_them_lose_no_attempt(run: Run) -> None:
    run.make(
        key0="die-refine-99", key1="fail-decode-99", key2="slow-refine-9", key3="slow-refine-9 fail-sketch-1", max_attempts=2
    )
    assert run.attempts == {"key2": 1, "key3": 2}
    killer, failer = (json.loads(run.paths.failure(key).read_text()) for key in ("key0", "key1"))
    assert killer["attempts"] == failer["attempts"] == 2
    assert "ActorDiedError" in killer["error"]
    assert failer["error"] == "decoding failed: ArithmeticError: asked to fail"
    assert "fakes.py" in failer["story"][-1], "the remote traceback is missing from the story"


@pytest.mark.parametrize("command", [StartPhase("key0", 2, Slice("pod-0", 0, 1), 1, 2), StartDecode("key0", 2, "decode-0")])
def test_a_boundary_lost_with_its_node_is_made_again_from_the_sketch(command: StartPhase | StartDecode) -> None:
    lost = failure_of(1.0, command, ObjectLostError("00" * 28, "", ""))
    assert (lost.phase, lost.attempt, lost.item_key) == ("sketch", 2, "key0")
    own = failure_of(1.0, command, RayError("something else"))
    assert own.phase == ("refine" if isinstance(command, StartPhase) else "decode")


@pytest.mark.parametrize(
    "broken, says",
    [("raise", "cannot start: ValueError: weights 'nowhere' do not exist"), ("die", "failed 3 times in a row")],
)
def test_workers_that_cannot_start_stop_the_sweep_with_the_reason(run: Run, broken: str, says: str) -> None:
    with pytest.raises(RuntimeError, match=says):
        run.make(config=ONE_RANK, broken=broken, key0="")


def test_a_pod_that_fits_nowhere_is_refused_at_once_with_what_there_is(run: Run) -> None:
    with pytest.raises(RuntimeError, match=r"no single node offered 2 x .*'GPU': 1.* the cluster has 4 CPUs and 0 GPUs"):
        run.make(config=ClusterConfig(gpus_per_rank=1), key0="")


def test_an_interrupt_ends_the_sweeps_own_actors_and_no_others(run: Run) -> None:
    import ray

    @ray.remote(num_cpus=0)
    class Neighbour:
        def pid(self) -> int:
            return os.getpid()

    neighbour = Neighbour.remote()
    pid = ray.get(neighbour.pid.remote())

    def interrupt(event: Event, commands: Any) -> None:
        if isinstance(event, Sketched):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.make(interrupt, ONE_RANK, key0="slow-refine-1", key1="")
    workers = [psutil.Process(pid) for pid in born(run.folder) if psutil.pid_exists(pid)]
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert alive == []
    assert ray.get(neighbour.pid.remote()) == pid
    ray.kill(neighbour)
    run.make(config=ONE_RANK, key0="", key1="")
    assert set(run.attempts) == {"key0", "key1"}


def test_nothing_that_was_started_listens_beyond_this_machine(run: Run) -> None:
    listening: dict[int, set[str]] = {}

    def look(event: Event, commands: Any) -> None:
        if isinstance(event, PhaseDone):
            for process in psutil.Process().children(recursive=True):
                found = [entry.laddr.ip for entry in process.net_connections() if entry.status == psutil.CONN_LISTEN]
                listening.setdefault(process.pid, set()).update(found)

    run.make(look, key0="slow-refine-1")
    assert set().union(*listening.values()) <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
    ranks = {int(path.suffix[1:]) for path in run.folder.glob("born.transformer.*")}
    assert ranks <= listening.keys()
    assert all(listening[pid] for pid in ranks), "the ranks' own sockets were not looked at"
