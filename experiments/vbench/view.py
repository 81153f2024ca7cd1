"""A run's videos under VBench's names: links in ``RUN/vbench/<suite>/<arm>/view``, which holds nothing else.

A prompt's videos are numbered by the order of its seeds in the spec, finished or not: one that comes late has the name that was
left for it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from experiments.vbench.arm_videos import ArmVideos, read_arm
from experiments.vbench.names import stems_of, video_name
from orchestrator.files import write_atomic
from orchestrator.mistakes import ConfigError, RunError
from orchestrator.paths import RunPaths
from orchestrator.suite_files import load_suite
from orchestrator.suites import Entry, Suite
from orchestrator.types import Record

CUSTOM = "custom"
"""The suite of a run's own prompts, whatever they are."""


@dataclass(frozen=True)
class Video:
    """One video that a suite asks for. ``record`` None: it is not made yet."""

    name: str
    index: int
    link: Path
    record: Record | None
    source: Path | None
    """The run's own file."""

    @property
    def sha256(self) -> str | None:
        return None if self.record is None else self.record.sha256


@dataclass(frozen=True)
class Line:
    """One entry of the suite with every video it asks for, by index."""

    entry: Entry
    videos: tuple[Video, ...]

    @property
    def there(self) -> tuple[Video, ...]:
        """Those that are made."""
        return tuple(video for video in self.videos if video.record is not None)


@dataclass(frozen=True)
class View:
    """What one arm of a run has for a suite; ``lines`` in the suite's order."""

    paths: RunPaths
    suite: Suite
    arm: str
    folder: Path
    lines: tuple[Line, ...]
    recorded: frozenset[str]
    """Every video of the arm that has a record, relative to the run."""
    num_extended: int
    """Videos made of a longer form of their prompt."""
    num_unused: int
    """Videos of the arm that the suite does not ask for: other prompts, further seeds."""

    @cached_property
    def videos(self) -> dict[str, Video]:
        """By name, each once."""
        return {video.name: video for line in self.lines for video in line.videos}

    @property
    def missing(self) -> tuple[str, ...]:
        """Names of the videos that are not made."""
        return tuple(name for name, video in self.videos.items() if video.record is None)

    def of(self, dimension: str) -> tuple[Line, ...]:
        """The lines that a dimension is measured on."""
        return tuple(line for line in self.lines if dimension in line.entry.dimensions)

    def since(self, before: View | None) -> View:
        """With the videos alone that ``before`` had not, or not of the same record."""
        old = before.videos if before else {}
        news = (tuple(v for v in line.there if v.name not in old or old[v.name].record != v.record) for line in self.lines)
        return replace(self, lines=tuple(Line(line.entry, new) for line, new in zip(self.lines, news, strict=True)))


def build_view(
    run: RunPaths | Path, suite: str, arm: str, records: Sequence[Record] | None = None, before: View | None = None
) -> View:
    """:func:`plan_view`, with a link for every video that is there; links that no longer hold are removed.

    May be called again while the run goes on; with what it gave ``before``, only what is new since is looked at and linked.
    Raises as :func:`plan_view`, and RunError where the file system has no links.
    """
    view = plan_view(run, suite, arm, records)
    link(view, before)
    if before is None:
        write_atomic(view.paths.vbench_suite(view.suite.name), json.dumps(view.suite.told, indent=2) + "\n")
    return view


def bare(suite: str) -> str:
    """A suite's name without the digest that it may be pinned by: what its folder is called."""
    return suite.partition("@")[0]


def plan_view(
    run: RunPaths | Path, suite: str, arm: str, records: Sequence[Record] | None = None, may_be_empty: bool = False
) -> View:
    """Which video of the run has which name; touches nothing. ``records`` None: those in the folder now.

    ``suite`` is a suite's name, or ``custom`` for all prompts of the run. Raises ConfigError for an unknown suite, and for an arm
    without videos unless it ``may_be_empty``.
    """
    paths = run if isinstance(run, RunPaths) else RunPaths(run)
    made = read_arm(paths, arm, records, may_be_empty)
    found, ids = _own(made) if suite == CUSTOM else _named(suite, made)
    folder = paths.vbench_view(bare(suite), arm)
    own = stems_of({name: asked.prompt for name, asked in made.asked.items()}) if suite == CUSTOM else {}
    stems = list(own.values()) or [entry.prompt for entry in found.entries]
    lines = tuple(
        Line(entry, tuple(_videos(paths, folder, stem, made.of(name, entry.num_videos))))
        for entry, stem, name in zip(found.entries, stems, ids, strict=True)
    )
    used = {video.name: made.asked[str(v.prompt_id)].extended for line in lines for video in line.there if (v := video.record)}
    recorded = frozenset(record.video for record in made.records.values())
    return View(paths, found, arm, folder, lines, recorded, sum(used.values()), len(recorded) - len(used))


def _named(suite: str, made: ArmVideos) -> tuple[Suite, list[str | None]]:
    """The suite, and the run's names for its prompts."""
    try:
        found = load_suite(suite)
    except ValueError as error:
        raise ConfigError([f"{error}; or {CUSTOM}, for the run's own prompts"]) from error
    return found, [made.id_of(entry) for entry in found.entries]


def _own(made: ArmVideos) -> tuple[Suite, list[str | None]]:
    """The run's own prompts as a suite, with as many videos of each as it asks for."""
    entries = tuple(Entry(asked.prompt, asked.dimensions, num_videos=len(asked.seeds)) for asked in made.asked.values())
    return Suite(CUSTOM, entries, CUSTOM), list(made.asked)


def _videos(paths: RunPaths, folder: Path, stem: str, records: Sequence[Record | None]) -> Iterator[Video]:
    for index, record in enumerate(records):
        name = video_name(stem, index)
        yield Video(name, index, folder / name, record, None if record is None else paths.root / record.video)


def link(view: View, before: View | None = None) -> None:
    """Make the folder's links those of the view. Relative ones, so that a run may be moved; files that are no links stay.

    ``before``: a view whose links are there, so that only those of what is new or gone are touched.
    """
    view.folder.mkdir(parents=True, exist_ok=True)
    news = [video for video in view.since(before).videos.values() if video.source and video.source.is_file()]
    wanted = {video.name: os.path.relpath(video.source or "", view.folder) for video in news}
    there = _links(view.folder, _changed(view, before) if before else None)
    for name, target in there.items():
        if wanted.get(name) != target:
            (view.folder / name).unlink()
    for name, target in wanted.items():
        if there.get(name) != target:
            _symlink(target, view.folder / name)


def _changed(view: View, before: View) -> list[str]:
    """Names whose link is another since, or none."""
    return [name for name, old in before.videos.items() if name not in view.videos or view.videos[name].record != old.record]


def _links(folder: Path, names: Iterable[str] | None) -> dict[str, str]:
    """The links of a folder, or of these names in it, and where they lead."""
    paths = folder.iterdir() if names is None else (folder / name for name in names)
    return {path.name: os.readlink(path) for path in paths if path.is_symlink()}


def _symlink(target: str, path: Path) -> None:
    if path.exists():
        return  # a file of somebody's: told by the integrity check, and nobody's to remove
    try:
        path.symlink_to(target)
    except OSError as error:
        told = error.strerror or error
        raise RunError(f"{path} cannot be linked to its video ({told}); VBench's names need a file system with links") from error
