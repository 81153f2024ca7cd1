"""How far a run is, from what its folder or URL holds; nothing is written, so a run may be asked about while it goes on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestrator.manifest import short_key
from orchestrator.mistakes import ConfigError
from orchestrator.ownership import Owner, lock_owner
from orchestrator.paths import RunPaths
from orchestrator.store import open_store, parse_place


@dataclass(frozen=True)
class RunStatus:
    """Of the items that the latest start asked for; others in the folder, of an earlier arm or beyond ``--limit``, do not count.

    ``owner`` None: nobody writes it now. Rates are of the latest start; None before its first video."""

    where: str
    name: str
    num_items: int
    num_finished: int
    num_failed: int
    num_starts: int
    owner: str | None
    owner_alive: bool
    last_finished_at: str | None
    videos_per_hour: float | None
    gpu_s_per_video: float | None
    """Device seconds of every phase, times the ranks it held."""
    left_s: float | None
    """At the pace of this start, while somebody works on it."""

    @property
    def num_left(self) -> int:
        return max(0, self.num_items - self.num_finished - self.num_failed)


def read_status(place: str, now: datetime | None = None) -> RunStatus:
    """Raises ConfigError when there is no run."""
    store = open_store(parse_place(place))
    paths = RunPaths(Path())  # for the names alone
    manifest = _json(store.read(paths.relative(paths.manifest)))
    if not isinstance(manifest, dict) or "items" not in manifest:
        raise ConfigError([f"{place!r} is no run: it has no {paths.manifest.name}"])
    records = _rows(store.read(paths.relative(paths.records)))
    failed = [Path(name).name for name in store.sizes(paths.relative(paths.failures))]
    return summarise(place, manifest, records, failed, lock_owner(paths, store), now or datetime.now(UTC))


def summarise(
    place: str,
    manifest: dict[str, Any],
    records: Sequence[dict[str, Any]],
    failed: Sequence[str],
    owner: Owner | None,
    now: datetime,
) -> RunStatus:
    """``failed`` are the names of the failures' files, which begin with their items' keys."""
    finished = {short_key(str(record["item_key"])): record for record in records}
    given_up = {short_key(name) for name in failed}
    if "item_keys" in manifest:  # a manifest of an earlier version has none
        wanted = frozenset(str(manifest["item_keys"]).split())
        finished = {key: record for key, record in finished.items() if key in wanted}
        given_up &= wanted
    return _told(place, manifest, list(finished.values()), len(given_up - finished.keys()), owner, now)


def _told(
    place: str, manifest: dict[str, Any], records: Sequence[dict[str, Any]], num_failed: int, owner: Owner | None, now: datetime
) -> RunStatus:
    alive = owner is not None and owner.alive
    ended = sorted(str(record["finished_at"]) for record in records)
    starts = manifest.get("starts") or []
    pace_s = _pace_s(ended, starts[-1]["at"], now if alive else None) if starts else None
    left = max(0, manifest["items"] - len(records) - num_failed)
    return RunStatus(
        where=place,
        name=str(manifest.get("name", "")),
        num_items=manifest["items"],
        num_finished=len(records),
        num_failed=num_failed,
        num_starts=len(starts),
        owner=str(owner) if owner else None,
        owner_alive=alive,
        last_finished_at=ended[-1] if ended else None,
        videos_per_hour=3600 / pace_s if pace_s else None,
        gpu_s_per_video=sum(record["device_s"] for record in records) / len(records) if records else None,
        left_s=pace_s * left if pace_s and alive else None,
    )


def _pace_s(ended: Sequence[str], started_at: str, now: datetime | None) -> float | None:
    """Seconds a video since ``started_at``, until ``now``, or until the last video of a run that nobody works on."""
    since = datetime.fromisoformat(started_at)
    here = [at for at in map(datetime.fromisoformat, ended) if at >= since]
    if not here:
        return None
    return max(((now or here[-1]) - since).total_seconds(), 1.0) / len(here)


def _json(data: bytes | None) -> Any:
    try:
        return json.loads(data or b"null")
    except ValueError:
        return None


def _rows(data: bytes | None) -> list[dict[str, Any]]:
    """Whole lines; the one being written is not counted."""
    return [row for line in (data or b"").splitlines() if isinstance(row := _json(line), dict) and "item_key" in row]
