"""A run folder, opened: locked, brought up to date, checked against what is asked of it, and mirrored where it goes to a URL."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestrator.config import Sweep, read_yaml
from orchestrator.files import write_atomic
from orchestrator.ledger import Ledger
from orchestrator.mirror import Mirror, restore
from orchestrator.mistakes import ConfigError
from orchestrator.ownership import RunLock
from orchestrator.paths import RunPaths, slug
from orchestrator.store import Destination, Store, UrlStore, open_store, parse_place
from orchestrator.types import Record

Tell = Callable[[str], None]
RAY_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""In the environment of what `ray job submit` starts."""
GONE = re.compile(r"does not exist|cannot be read|No such file|not a folder|no folder|neither a folder|is not there")
"""How mistakes about a file that is not there are told."""


@dataclass(frozen=True)
class RunFolder:
    """One start of one run, which nobody else writes meanwhile."""

    paths: RunPaths
    ledger: Ledger

    @property
    def store(self) -> Store:
        return self.ledger.store


@contextlib.contextmanager
def open_folder(
    out: str | Path, work: Path | None = None, tell: Tell = lambda line: None, must_exist: bool = False
) -> Iterator[RunFolder]:
    """``out``: a folder, a URL, or the working folder of a URL's run. ``work``: the working folder of a URL.

    Raises ConfigError when it cannot be written, is in use, holds no run though it ``must_exist``, or holds records that nobody
    can read; at the end, RunError when the URL cannot be brought up to date.
    """
    place, work = _resolve(parse_place(str(out)), work)
    store = None if isinstance(place, Path) else UrlStore(place)
    folder = place if isinstance(place, Path) else work or default_work(place)
    config = RunPaths(folder).config
    if must_exist and not (store.read(config.name) if store else config.is_file()):
        raise ConfigError([f"{str(out)!r} is no run folder: it has no {config.name}"])
    paths = RunPaths(writable_folder(folder, "--out" if store is None else "--work"))
    with contextlib.ExitStack() as stack:
        try:
            lock = stack.enter_context(RunLock(paths, store, tell))
            if store is not None:
                write_atomic(paths.output, store.where + "\n")
                restore(paths, store)
            ledger = Ledger(paths, store, lock.check)
        except ValueError as error:
            raise ConfigError([str(error)]) from error
        if store is not None:
            stack.enter_context(Mirror(paths, store, tell, check=lock.check))
        yield RunFolder(paths, ledger)


@contextlib.contextmanager
def explained_in_a_job() -> Iterator[None]:
    """What a Ray job's files are, for somebody whose spec names one that is not there."""
    try:
        yield
    except ConfigError as error:
        if RAY_JOB not in os.environ or not any(GONE.search(line) for line in error.mistakes):
            raise
        told = (
            "this is a Ray job: it sees the files of its --working-dir, under the same relative paths and without those that "
            ".gitignore names, and those of the cluster's nodes; give paths that are there"
        )
        raise ConfigError([*error.mistakes, told]) from error


def _resolve(place: Destination, work: Path | None) -> tuple[Destination, Path | None]:
    """The place that is meant, and the working folder if it is given."""
    if isinstance(place, str):
        if work is not None and (there := _output_of(work)) not in (None, place):
            raise ConfigError([f"--work {str(work)!r} is the working folder of {there}; choose another"])
        return place, work
    if work is not None:
        raise ConfigError([f"--work is for an --out that is a URL; {str(place)!r} is a folder"])
    there = _output_of(place)
    return (there, place) if there else (place, None)


def _output_of(work: Path) -> str | None:
    path = RunPaths(work).output
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None


def store_of(paths: RunPaths) -> Store:
    """Where a run's videos are, by its folder or working folder alone."""
    return open_store(_output_of(paths.root) or paths.root)


def default_work(url: str) -> Path:
    """The working folder of a URL on this machine, in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "dvg" / "runs" / slug(url)


def writable_folder(folder: Path, option: str = "--out") -> Path:
    """``folder``, made and proved writable. Raises ConfigError, also for a relative path inside a Ray job."""
    if RAY_JOB in os.environ and not folder.is_absolute():
        raise ConfigError([f"{option} {str(folder)!r} must be absolute in a Ray job: the job's own folder is thrown away"])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            [f"{option} {str(folder)!r} is not writable: {error.strerror or error}; choose another folder"]
        ) from error
    return folder


def admit(folder: RunFolder, sweep: Sweep, force: bool, tell: Tell) -> None:
    """Raises ConfigError when the folder is another sweep's, or when this one would write over videos of other items.

    ``force`` allows both, and still overwrites nothing: such videos, their sidecars and records move to ``superseded/<time>``
    first, which is told. Records of other items stay as they are.
    """
    name = _name_of(folder.paths)
    others = other_items(folder.ledger, sweep)
    if not force and name not in (None, sweep.name):
        told = f"{folder.store.where!r} is the run folder of the sweep {name!r}, not of {sweep.name!r}"
        raise ConfigError([f"{told}; choose another --out, or --force to add this sweep's videos to it"])
    if not force and others:
        told = (
            f"this run folder holds videos of arm {', '.join(sorted({r.arm for r in others}))} made with other settings, "
            "weights or predicted costs; choose another --out, give the arm another name, or --force to set those videos aside"
        )
        raise ConfigError([told])
    if others:
        set_aside(folder, others, tell)
    refuse_missing_videos(folder.ledger)


def _name_of(paths: RunPaths) -> str | None:
    spec: dict[str, Any] = read_yaml(paths.config) if paths.config.is_file() else {}
    name = spec.get("name")
    return None if name is None else str(name)


def other_items(ledger: Ledger, sweep: Sweep) -> list[Record]:
    """What the folder holds in the place of this sweep's videos, recorded or finished just before a crash, of other items."""
    wanted = {ledger.video_of(item): item.item_key for item in sweep.items}
    held = {record.video: record for record in [*ledger.unrecorded(wanted), *ledger.records()]}
    return [record for video, record in held.items() if wanted.get(video, record.item_key) != record.item_key]


def set_aside(folder: RunFolder, records: Sequence[Record], tell: Tell) -> None:
    """Move videos, sidecars and records to ``superseded/<time>``. A crash in between leaves them to the next ``--force``."""
    ledger, paths = folder.ledger, folder.paths
    base = f"{paths.relative(paths.superseded)}/{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"
    folder.store.put(f"{base}/{paths.records.name}", ledger.lines(records))
    for record in records:
        for name in (record.video, ledger.sidecar_of(record)):
            with contextlib.suppress(FileNotFoundError):
                folder.store.move(name, f"{base}/{name}")
    ledger.forget(records)
    arms = ", ".join(sorted({record.arm for record in records}))
    tell(f"{len(records)} videos of arm {arms}, made with other settings, were moved to {base}")


def refuse_missing_videos(ledger: Ledger) -> None:
    """A record is a promise that its video is there: raises ConfigError, naming the first that is not."""
    if gone := ledger.missing_videos():
        told = (
            f"{len(gone)} of the run's recorded videos are gone, {gone[0]!r} first; put them back, or remove their lines "
            f"from {str(ledger.paths.records)!r} to make them again"
        )
        raise ConfigError([told])
