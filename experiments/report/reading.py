"""Runs as they are now, here or behind a URL, also while they are written: nothing is locked or changed."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from experiments.compare.sources import read_run, told_apart
from experiments.report import remarks
from experiments.report.material import Source
from experiments.vbench.results import ENDING
from orchestrator.mistakes import ConfigError
from orchestrator.paths import RunPaths
from orchestrator.runfolder import store_of
from orchestrator.store import Store, UrlStore, parse_place


@contextlib.contextmanager
def opened(places: Sequence[str]) -> Iterator[list[Source]]:
    """The runs of some folders and URLs, for as long as the context lasts. Raises ConfigError with all that is wrong."""
    mistakes: list[str] = []
    sources: list[tuple[str, RunPaths, Store]] = []
    with contextlib.ExitStack() as stack:
        for place in places:
            there = parse_place(place)
            if isinstance(there, Path):
                paths = RunPaths(there)
                where, store = str(paths.root), store_of(paths)
            else:
                store = UrlStore(there)
                where, paths = store.where, RunPaths(stack.enter_context(_fetched(store)))
            if where in [known for known, _, _ in sources]:
                mistakes.append(f"{place!r} is given twice")
            sources.append((where, paths, store))
        names = told_apart([where for where, _, _ in sources]) if len(sources) > 1 and not mistakes else [""] * len(sources)
        yield _read(sources, names, mistakes)


def _read(sources: Sequence[tuple[str, RunPaths, Store]], names: Sequence[str], mistakes: list[str]) -> list[Source]:
    found: list[Source] = []
    for (where, paths, store), name in zip(sources, names, strict=True):
        try:
            run = read_run(paths.root, where)
            found.append(Source(paths, store, run.records, run.quality, run.failures, name))
        except ConfigError as error:
            mistakes += error.mistakes
    if mistakes:
        raise ConfigError(mistakes)
    return found


@contextlib.contextmanager
def _fetched(store: Store) -> Iterator[Path]:
    """The small files of a run behind a URL."""
    with tempfile.TemporaryDirectory(prefix="dvg-report-") as folder:
        paths = RunPaths(Path(folder))
        names = [p.name for p in (paths.config, paths.manifest, paths.records, paths.events, paths.quality)]
        names += store.sizes(paths.failures.name)
        names += [name for name in store.sizes(paths.vbench.name) if name.endswith((ENDING, remarks.ENDING))]
        for name in names:
            if (data := store.read(name)) is not None:
                path = paths.root / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
        yield paths.root
