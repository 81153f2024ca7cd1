"""``dvg submit`` and ``dvg stop``: a sweep as a job of a cluster somewhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from rich.console import Console

from orchestrator.carried import Carried, carried, look, needed
from orchestrator.config import SweepSpec, read_spec, read_yaml
from orchestrator.expansion import set_dotted
from orchestrator.following import LOST_S, Follower
from orchestrator.head import Dropped, Head
from orchestrator.mistakes import ConfigError, RunError, password_mistakes
from orchestrator.submission import (
    ENDED,
    INTERRUPTED,
    STOP_MARGIN_S,
    Submission,
    command_line,
    digest_of,
    exit_code,
    flags_of,
    new_tag,
    place_mistakes,
)

T = TypeVar("T")
POLL_S = 1.0
STARTING_S = 120.0
"""A head that has just started answers before its node can take a job."""


@dataclass(frozen=True)
class SubmitOptions:
    address: str
    out: str
    name: str | None = None
    working_dir: Path = Path()
    wait: bool = True
    dry_run: bool = False
    work: str | None = None
    limit: int | None = None
    force: bool = False
    """As of ``dvg sweep``, which gets them."""


def run_submit(spec: Path, overrides: Sequence[str], options: SubmitOptions) -> int:
    """Submit a sweep and follow it; what ``dvg sweep`` exits with. The same command again follows the job while it runs.

    Raises ConfigError, before anything is sent, for what would go wrong in the job; RunError without a cluster or token.
    """
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    job, outside = prepare(spec, overrides, options)
    line = command_line(job, options.address, {"RAY_AUTH_MODE": "token"})
    console.print(f"in {job.working_dir}:" + ("" if options.dry_run else f"\n  {line}"))
    for path in outside:
        console.print(f"every node must have {path}")
    if options.dry_run:
        print(line)
        return 0
    head = patiently(lambda: Head(options.address))
    job_id = patiently(lambda: running_twin(head.jobs(), job) or head.submit(job), STARTING_S)
    console.print(f"{'submitted' if job_id == job.job_id else 'already running'}: {job_id}")
    return follow(head, job_id, console) if options.wait else _say_how(head, job_id, console)


def prepare(path: Path, overrides: Sequence[str], options: SubmitOptions) -> tuple[Submission, list[str]]:
    """The job, and the absolute paths it needs. Raises ConfigError with every mistake that shows without the cluster."""
    given = [*overrides, *([f"name={options.name}"] if options.name else [])]
    root = options.working_dir.resolve()
    spec = spec_of(path, given)
    places = {"--out": options.out, **({"--work": options.work} if options.work is not None else {})}
    mistakes = [*place_mistakes(places), *password_mistakes(spec.model_dump(mode="json")), *_cluster_mistakes(spec)]
    files = carried(root)
    whole = path.resolve()
    if not whole.is_relative_to(root):
        raise ConfigError([*mistakes, f"spec {str(path)!r} is outside the working folder {str(root)!r}; give --working-dir"])
    relative = PurePosixPath(whole.relative_to(root).as_posix())
    mistakes += [*files.mistakes(), *_left_out(relative, files)]
    found = look(needed(spec, whole.parent), whole.parent, files)
    if mistakes := [*mistakes, *found.mistakes]:
        raise ConfigError(mistakes)
    flags = flags_of(options.work, options.limit, options.force)
    digest = digest_of(path.read_text(encoding="utf-8"), [*given, *flags])
    job = Submission(spec.name, relative, tuple(given), options.out, root, digest, spec.cluster.grace_s, new_tag(), flags)
    return job, found.outside


def spec_of(path: Path, overrides: Sequence[str]) -> SweepSpec:
    """The spec as far as it can be read without its weights. Raises ConfigError."""
    data = read_yaml(path)
    for override in overrides:
        set_dotted(data, override)
    return read_spec(data)


def _left_out(spec: PurePosixPath, files: Carried) -> list[str]:
    return [] if str(spec) in files.sizes else [f"spec {str(spec)!r} is left out by .gitignore or .rayignore"]


def _cluster_mistakes(spec: SweepSpec) -> list[str]:
    if spec.cluster.address in (None, "auto"):
        return []
    return [f"cluster.address: {spec.cluster.address!r} must be left out; a job runs in the cluster it is submitted to"]


def running_twin(jobs: Sequence[Any], wanted: Submission) -> str | None:
    """The job that makes this very sweep already. Raises ConfigError when another one writes its run folder."""
    for job in jobs:
        metadata = job.metadata or {}
        if job.status in ENDED or metadata.get("dvg_out") != wanted.out:
            continue
        if all(metadata.get(key) == value for key, value in wanted.metadata.items()):
            return str(job.submission_id)
        told = f"job {job.submission_id} writes {wanted.out!r} with another spec; `dvg stop {job.submission_id}` it first"
        raise ConfigError([f"{told}, or choose another --out"])
    return None


def patiently(ask: Callable[[], T], patience_s: float = 20.0) -> T:
    """Ask a head until it answers. Raises RunError when it does not in time."""
    deadline_s = time.monotonic() + patience_s
    while True:
        try:
            return ask()
        except Dropped as error:
            if time.monotonic() > deadline_s:
                told = "is it up, and forwarded here (`ray dashboard ray_cluster.yaml`)?"
                raise RunError(f"no head answers: {error}; {told}") from error
            time.sleep(POLL_S)


def follow(head: Head, job_id: str, console: Console) -> int:
    """Print the job's log until it ends; Ctrl-C leaves it running."""

    def write(text: str) -> None:
        print(text, end="", flush=True)

    try:
        job = Follower(head, job_id, write, lambda line: console.print(line)).follow()
    except KeyboardInterrupt:
        console.print("\ndetached; the job goes on")
        _say_how(head, job_id, console)
        return INTERRUPTED
    console.print(f"{job_id}: {job.status.lower()}" + (f", exit code {job.driver_exit_code}" if job.driver_exit_code else ""))
    if job.status == "FAILED" and job.driver_exit_code is None:
        console.print(str(job.message))
    return exit_code(job.status, job.driver_exit_code)


def _say_how(head: Head, job_id: str, console: Console) -> int:
    """How to go on; 0."""
    console.print(f"follow: the same dvg submit again, or ray job logs --follow --address {head.address} {job_id}")
    console.print(f"stop:   dvg stop {job_id} --address {head.address}")
    return 0


def run_stop(name_or_job: str, address: str) -> int:
    """Ask a sweep's job to finish what it does and end; Ray kills it when its grace period is over.

    Raises ConfigError unless exactly one running job is meant.
    """
    head = patiently(lambda: Head(address))
    job = the_job(patiently(head.jobs), name_or_job)
    wait_s = _grace_s(job)
    print(f"stopping {job.submission_id}; it has {wait_s:.0f} s to finish or checkpoint what it does", file=sys.stderr)
    patiently(lambda: head.stop(job.submission_id))
    ended = _wait_for_end(head, job.submission_id, wait_s + STOP_MARGIN_S)
    print(f"{job.submission_id}: {ended.status.lower()}; the same dvg submit goes on from here", file=sys.stderr)
    return 0


def the_job(jobs: Sequence[Any], name_or_job: str) -> Any:
    """The one running job of ours with that id or sweep name. Raises ConfigError for none, or several of one name."""
    running = [job for job in jobs if job.status not in ENDED and "dvg_sweep" in (job.metadata or {})]
    found = [job for job in running if job.submission_id == name_or_job]
    found = found or [job for job in running if job.metadata["dvg_sweep"] == name_or_job]
    if len(found) == 1:
        return found[0]
    listed = ", ".join(f"{job.submission_id} ({job.metadata['dvg_sweep']})" for job in found or running) or "none"
    told = f"{len(found)} running jobs are of sweep {name_or_job!r}; give the id of one" if found else "no such sweep runs"
    raise ConfigError([f"{name_or_job!r}: {told}; running: {listed}"])


def _grace_s(job: Any) -> float:
    environment = (job.runtime_env or {}).get("env_vars", {})
    return float(environment.get("RAY_JOB_STOP_WAIT_TIME_S", STOP_MARGIN_S))


def _wait_for_end(head: Head, job_id: str, limit_s: float) -> Any:
    """Raises RunError for a job that outlives its end."""
    deadline_s = time.monotonic() + limit_s
    while True:
        job = patiently(lambda: head.job(job_id), LOST_S)
        if job.status in ENDED:
            return job
        if time.monotonic() > deadline_s:
            raise RunError(f"{job_id} is still {job.status.lower()} after {limit_s:.0f} s; see its node with `dvg status`")
        time.sleep(POLL_S)
