"""What is compared, as read: run folders here or behind a URL, and sweeps in MLflow. Nothing is written or locked."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

from experiments.compare import vbench_scores
from experiments.compare.stats import Values
from experiments.compare.vbench_scores import Scores
from experiments.metrics.quality import current, load_quality
from orchestrator.config import read_yaml
from orchestrator.mistakes import ConfigError, without_password
from orchestrator.paths import RunPaths
from orchestrator.run_status import summarise
from orchestrator.store import Destination, Store, UrlStore, parse_place
from orchestrator.types import Record, record_from_row

MLFLOW = "mlflow:"
URI = "MLFLOW_TRACKING_URI"
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """One sweep. ``where`` is for people and unlike any other's; ``name`` is as much of it as tells it apart."""

    where: str
    records: tuple[Record, ...]
    quality: tuple[Row, ...] = ()
    failures: tuple[Row, ...] = ()
    reference: str | None = None
    order: tuple[str, ...] = ()
    """Arms as the spec lists them."""
    packages: Mapping[str, str] = field(default_factory=dict)
    """Versions of what its last start ran with."""
    cores: int | None = None
    num_left: int = 0
    """Items that are neither finished nor given up."""
    scores: Scores = field(default_factory=dict)
    """VBench's, by arm and metric."""
    videos: Mapping[str, Mapping[str, Values]] = field(default_factory=dict)
    """The same of single videos."""
    name: str = ""
    trouble: str = ""
    """Why it holds nothing, in a whole sentence, where others of its experiment can be read."""


def read_runs(places: Sequence[str]) -> list[Run]:
    """The runs of every place, named apart. Raises ConfigError with all that is wrong with them."""
    mistakes: list[str] = []
    runs: list[Run] = []
    for place in places:
        try:
            runs += _read(place)
        except ConfigError as error:
            mistakes += error.mistakes
    where = [run.where for run in runs]
    mistakes += [f"{place!r} is given twice" for place in dict.fromkeys(where) if where.count(place) > 1]
    if mistakes:
        raise ConfigError(mistakes)
    return [replace(run, name=name) for run, name in zip(runs, told_apart(where), strict=True)]


def _read(place: str) -> list[Run]:
    if (there := parse_run_place(place)) is None:
        name, uri = parse_experiment(place)
        from experiments.compare.mlflow_source import read_sweeps  # MLflow takes seconds to import

        return read_sweeps(name, uri)
    with _local(there) as folder:
        return [read_run(folder, there if isinstance(there, str) else str(there.resolve()))]


def parse_run_place(place: str) -> Destination | None:
    """The run folder or URL that is meant; None for an MLflow experiment, which is what a name of no folder is taken for."""
    if place.startswith(MLFLOW):
        return None
    there = parse_place(place)
    is_name = isinstance(there, Path) and not there.is_dir() and there.name == place
    return None if is_name else there


def parse_experiment(place: str) -> tuple[str, str]:
    """Experiment and tracking URI. Raises ConfigError without a URI, and for an sqlite file that is not there."""
    name, _, uri = place.removeprefix(MLFLOW).partition("@")
    uri, told_place = uri or os.environ.get(URI, ""), without_password(place)
    if not name:
        raise ConfigError([f"{told_place!r} names no experiment; the form is {MLFLOW}NAME or {MLFLOW}NAME@URI"])
    if not uri:
        told = f"{told_place!r} is no run folder, and {URI} is not set to look for an MLflow experiment of that name"
        raise ConfigError([f"{told}; {MLFLOW}{name}@URI says where it is"])
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():  # MLflow would make it
        raise ConfigError([f"{without_password(uri)!r} is not there to look for MLflow experiment {name!r} in"])
    return name, uri


def told_apart(places: Sequence[str]) -> list[str]:
    """Of each of some distinct paths or URLs, as many of its last parts as no other one ends with."""
    parts = [PurePosixPath(place.replace("://", "/")).parts for place in places]
    names = []
    for own in parts:
        others = [other for other in parts if other != own]
        length = next(n for n in range(1, len(own) + 1) if n == len(own) or all(o[-n:] != own[-n:] for o in others))
        names.append("/".join(own[-length:]).lstrip("/"))
    return names


@contextlib.contextmanager
def _local(there: Destination) -> Iterator[Path]:
    """A folder with the small files of the run."""
    if isinstance(there, Path):
        yield there
        return
    with tempfile.TemporaryDirectory(prefix="dvg-") as folder:
        _fetch(UrlStore(there), RunPaths(Path(folder)))
        yield Path(folder)


def _fetch(store: Store, paths: RunPaths) -> None:
    files = [paths.relative(path) for path in (paths.config, paths.manifest, paths.records, paths.quality)]
    files += [*store.sizes(paths.relative(paths.failures))]
    files += [name for name in store.sizes(paths.relative(paths.vbench)) if name.endswith("_eval_results.json")]
    for name in files:
        if (data := store.read(name)) is not None:
            path = paths.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


def read_run(folder: Path, where: str) -> Run:
    """A run folder as it is now, also while it is written. Raises ConfigError when it is none or holds what cannot be read."""
    paths = RunPaths(folder)
    if not paths.config.is_file() and not paths.records.is_file():
        raise ConfigError([f"{where!r} is no run: it has neither {paths.config.name} nor {paths.records.name}"])
    spec = read_yaml(paths.config) if paths.config.is_file() else {}
    manifest = _json(paths.manifest)
    records = _records(paths.records, where)
    failures = tuple(_json(path) for path in sorted(paths.failures.glob("*.failure.json")))
    scores, videos = vbench_scores.read(paths, records)
    start = (manifest.get("starts") or [{}])[-1]
    return Run(
        where=where,
        records=records,
        quality=_measured(paths, records, where),
        failures=failures,
        reference=spec.get("reference"),
        order=_arms(spec),
        packages={name: version for name, version in (start.get("packages") or {}).items() if version},
        cores=start.get("cores"),
        num_left=_num_left(manifest, records, [path.name for path in paths.failures.glob("*.failure.json")]),
        scores=scores,
        videos=videos,
    )


def _measured(paths: RunPaths, records: Sequence[Record], where: str) -> tuple[Row, ...]:
    try:
        return tuple(current(load_quality(paths, strict=True), records))
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError([f"{where}: {paths.quality.name} holds a line that is no measurement ({error})"]) from error


def _records(path: Path, where: str) -> tuple[Record, ...]:
    """Whole lines; the one being written is left out."""
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    found: dict[str, Record] = {}
    for number, line in enumerate((line for line in lines if line.endswith(b"\n")), start=1):
        try:
            record = record_from_row(json.loads(line))
        except (ValueError, TypeError, AttributeError) as error:
            raise ConfigError([f"{where}: line {number} of {path.name} is no record ({error})"]) from error
        found[record.item_key] = record
    return tuple(found.values())


def _json(path: Path) -> Any:
    """What a file says; an empty mapping for one that is not there or was not written whole."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _arms(spec: Mapping[str, Any]) -> tuple[str, ...]:
    arms = spec.get("arms") or ()
    return tuple(arms) if isinstance(arms, Mapping) else tuple(str(arm["name"]) for arm in arms)


def _num_left(manifest: dict[str, Any], records: Sequence[Record], failed: Sequence[str]) -> int:
    if "items" not in manifest:
        return 0
    rows = [vars(record) for record in records]
    return summarise("", manifest, rows, failed, None, datetime.now(UTC)).num_left
