"""``dvg status``: a run folder, or a cluster as its sweeps use it."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from orchestrator.cli_cluster import patiently
from orchestrator.head import Head
from orchestrator.leftovers import Held, Nodes, held, nodes_by_role
from orchestrator.run_status import RunStatus, read_status
from orchestrator.submission import ENDED


def run_status(run: str | None, address: str | None, as_json: bool) -> None:
    """Of a run if one is given, else of the cluster. Raises ConfigError for no run, RunError without a cluster."""
    from orchestrator.cli import print_json
    from orchestrator.head import address_of

    console = Console(highlight=False, soft_wrap=True)
    if run is not None:
        status = read_status(run)
        print_json(dataclasses.asdict(status)) if as_json else _tell_run(status, console)
        return
    cluster = read_cluster(patiently(lambda: Head(address_of(address))))
    print_json(dataclasses.asdict(cluster)) if as_json else _tell_cluster(cluster, console)


def _tell_run(status: RunStatus, console: Console) -> None:
    failed = f", [red]{status.num_failed} given up[/]" if status.num_failed else ""
    console.print(f"{escape(status.name)}: {status.num_finished} of {status.num_items} finished{failed}, {status.num_left} left")
    if status.owner is None:
        console.print("nobody works on it" + ("; the same dvg sweep goes on" if status.num_left else ""))
    else:
        told = "worked on by" if status.owner_alive else "[yellow]abandoned[/] by"
        console.print(f"{told} {escape(status.owner)}")
    if status.videos_per_hour is not None:
        left = f", about {timedelta(seconds=round(status.left_s))} left" if status.left_s is not None else ""
        console.print(f"{status.videos_per_hour:.1f} videos an hour in this start{left}")
    if status.gpu_s_per_video is not None:
        console.print(f"{status.gpu_s_per_video:.1f} device seconds a video; the last one at {status.last_finished_at}")


@dataclasses.dataclass(frozen=True)
class SweepJob:
    """A job of ours, running or ended."""

    job: str
    sweep: str
    out: str
    status: str
    started_at: str
    exit_code: int | None


@dataclasses.dataclass(frozen=True)
class ClusterStatus:
    jobs: list[SweepJob]
    held: list[Held]
    nodes: list[Nodes]


def read_cluster(head: Head) -> ClusterStatus:
    """What the dashboard says now, of our jobs and workers and of everybody's GPUs."""

    def ask() -> ClusterStatus:
        actors, groups = head.rows("actors"), head.rows("placement_groups")
        ours = [job for job in head.jobs() if "dvg_sweep" in (job.metadata or {})]
        return ClusterStatus(
            [_job(job) for job in ours],
            held(actors, groups, head.rows("jobs")),
            nodes_by_role(head.rows("nodes"), actors, groups),
        )

    return patiently(ask)


def _job(job: Any) -> SweepJob:
    started = datetime.fromtimestamp((job.start_time or 0) / 1000, UTC).isoformat(timespec="seconds")
    metadata = job.metadata
    status = str(getattr(job.status, "value", job.status))
    return SweepJob(job.submission_id, metadata["dvg_sweep"], metadata.get("dvg_out", ""), status, started, job.driver_exit_code)


def _tell_cluster(cluster: ClusterStatus, console: Console) -> None:
    console.print(_table("jobs", ("job", "sweep", "status", "started, UTC", "out"), _job_rows(cluster.jobs)))
    console.print(_table("held by sweeps", ("sweep", "what", "number", "GPUs", "driver"), _held_rows(cluster.held)))
    rows = [(one.role, str(one.count), f"{one.gpus:g}", f"{one.gpus_busy:g}") for one in cluster.nodes]
    console.print(_table("nodes", ("role", "nodes", "GPUs", "reserved"), rows))
    if any(not one.alive for one in cluster.held):
        console.print("[yellow]some of it is left behind[/]: dvg gc lists and removes it")


def _job_rows(jobs: Sequence[SweepJob]) -> list[tuple[str, ...]]:
    running_first = sorted(jobs, key=lambda job: job.status in ENDED)
    return [(job.job, job.sweep, job.status.lower(), job.started_at[:16].replace("T", " "), job.out) for job in running_first]


def _held_rows(found: Sequence[Held]) -> list[tuple[str, ...]]:
    """One row for each sweep, kind and state. A pod's GPUs are its placement group's; its ranks' are not counted again."""
    numbers: Counter[tuple[str, str, str]] = Counter()
    gpus: dict[tuple[str, str, str], float] = defaultdict(float)
    for one in found:
        key = (one.sweep, f"{one.kind} {one.what}s, {one.state.lower()}", "runs" if one.alive else "gone")
        numbers[key] += 1
        gpus[key] += one.gpus
    return [
        (sweep, what, str(numbers[key]), f"{gpus[key]:g}", driver) for key in sorted(numbers) for sweep, what, driver in [key]
    ]


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")  # so that an id can be copied whole
    for row in rows or [["none", *[""] * (len(columns) - 1)]]:
        table.add_row(*(escape(cell) for cell in row))
    return table
