"""What of a run is still to be measured, and measuring it: here, one video after another, or on a cluster (``beside``)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from experiments.metrics.measure import Job, measure
from experiments.metrics.names import METRICS, missing, resolve
from experiments.metrics.quality import UNAVAILABLE, Row, append, current, load_quality, merged, partners, values_of
from orchestrator.files import cut_torn_tail
from orchestrator.ledger import Ledger
from orchestrator.metrics_config import MetricsConfig
from orchestrator.mistakes import RunError
from orchestrator.types import Record


@dataclass(frozen=True)
class Wish:
    """What is to be known of a run's videos. ``against``: the arm that the others are compared with; None: they are not."""

    names: tuple[str, ...]
    against: str | None
    weights: Mapping[str, str | None] = field(default_factory=dict)
    """Of each arm, as in the resolved spec; without an entry the model's own."""
    device: str = "cpu"


def wish_of(spec: Mapping[str, Any], names: Sequence[str] | None = None, against: str | None = None, device: str = "cpu") -> Wish:
    """What a resolved spec asks for, or ``names`` and ``against`` where they are given.

    Raises ValueError for names that are none, and for an arm that the spec does not have.
    """
    config = MetricsConfig.model_validate(spec.get("metrics") or {})
    weights = {arm["name"]: arm.get("weights") for arm in spec.get("arms", ())}
    if against is not None and against not in weights:
        raise ValueError(f"arm {against!r} is not one of the run's; arms: {', '.join(weights)}")
    wanted = resolve(config.names if names is None else names)
    return Wish(wanted, against or config.against or spec.get("reference"), weights, device)


class Measurements:
    """``quality.jsonl`` of a run, of which this process is the only writer: what is known, what is still to be measured."""

    def __init__(self, ledger: Ledger, wish: Wish) -> None:
        self.ledger, self.wish = ledger, wish
        cut_torn_tail(ledger.paths.quality)
        self._rows = {row["item_key"]: row for row in load_quality(ledger.paths, wish.against)}
        self._last = {row["item_key"]: row.get("reference_arm") for row in load_quality(ledger.paths)}

    def rows(self, records: Iterable[Record]) -> list[Row]:
        """Those of these videos as they are now."""
        return current(self._rows.values(), records)

    def todo(self, records: Iterable[Record]) -> list[Job]:
        """A job for each video of which something wished for is not known, those of one prompt after another."""
        records = sorted(records, key=lambda record: (record.prompt_id, record.seed, record.arm))
        known, beside = {row["item_key"]: row for row in self.rows(records)}, partners(records, self.wish.against)
        jobs = (self.job(record, beside.get(record.item_key), known.get(record.item_key)) for record in records)
        return [job for job in jobs if job is not None]

    def job(self, record: Record, reference: Record | None, known: Row | None = None) -> Job | None:
        """What is still to be measured of a video, ``known`` being its row; None if nothing is."""
        names = [name for name in self.wish.names if self._applies(name, record)]
        held = values_of(known or {})
        if held.get("frames_ok") == 0.0:
            held, names = {}, [*names, *missing(["frames_ok"], names)]
        if not (todo := missing(names, held)):
            return None
        place = self.ledger.store.target
        theirs = place(reference.video) if reference else None
        weights = self.wish.weights.get(record.arm)
        return Job(record, reference, todo, place(record.video), theirs, weights, self.wish.device)

    def _applies(self, name: str, record: Record) -> bool:
        return not METRICS[name].of_reference or self.wish.against not in (None, record.arm)

    def add(self, row: Row) -> None:
        """Append what is new in a row."""
        key = row["item_key"]
        held = self._rows.get(key)
        both = row if held is None or held["sha256"] != row["sha256"] else merged(held, row)
        against = both["reference_arm"]
        if both != held or (against is not None and self._last.get(key) != against):
            append(self.ledger.paths, both)
            self._last[key] = against
        self._rows[key] = both

    def confirm(self, records: Iterable[Record]) -> None:
        """Make what was measured against this reference the last word, where another came later."""
        for row in self.rows(records):
            self.add(row)


@dataclass(frozen=True)
class Lost:
    """A video whose measuring failed, by no fault of its file."""

    record: Record
    why: str
    fatal: bool = False
    """It took its process, or node, along."""


def complete(
    measurements: Measurements,
    records: Sequence[Record],
    on_row: Callable[[Row], None] = lambda row: None,
    skip: Collection[str] = (),
) -> list[Lost]:
    """Measure what is missing, here, but for the items of ``skip``. A run killed in the middle loses at most one video's row.

    Raises RunError for a store that cannot be reached, and DiskFull.
    """
    measurements.confirm(records)
    lost = []
    for job in measurements.todo(records):
        if job.record.item_key in skip:
            continue
        try:
            row = measure(job)
        except RunError:
            raise
        except Exception as error:  # noqa: BLE001 - a GPU without room, a disk that goes: whatever it is, it costs one video
            lost.append(Lost(job.record, " ".join(f"{type(error).__name__}: {error}".split())[:300]))
            continue
        measurements.add(row)
        on_row(row)
    return lost


def broken(rows: Iterable[Row]) -> list[tuple[Row, str]]:
    """The rows of videos that are missing, torn or not what their records say, and why."""
    why = "it is not what its record says"
    return [(row, next(iter(row[UNAVAILABLE].values()), why)) for row in rows if row.get("frames_ok") == 0.0]


def reasons(rows: Iterable[Row]) -> list[tuple[list[str], int, str]]:
    """Of the videos that are sound: metrics that could not be had, of how many of them, and why of the first."""
    sound = [row.get(UNAVAILABLE, {}) for row in rows if row.get("frames_ok") != 0.0]
    found: dict[tuple[str, int], list[str]] = {}
    for name in METRICS:
        if told := [unavailable[name] for unavailable in sound if name in unavailable]:
            found.setdefault((told[0], len(told)), []).append(name)
    return [(names, number, why) for (why, number), names in found.items()]


def troubles(rows: Sequence[Row], lost: Sequence[Lost]) -> list[str]:
    """What could not be measured though it was to be, a line each; that a prompt leaves open what it shows is no trouble."""
    lines = [f"{row['arm']}/{row['prompt_id']}/{row['seed']} cannot be measured: {why}" for row, why in broken(rows)]
    lines += [f"{one.record.video} was not measured: {one.why}" for one in lost]
    return lines + [line for names, line in _gaps(rows) if METRICS[names[0]].of_reference]


def remarks(rows: Sequence[Row]) -> list[str]:
    """What cannot be said of videos by their nature, a line each."""
    return [line for names, line in _gaps(rows) if not METRICS[names[0]].of_reference]


def _gaps(rows: Sequence[Row]) -> list[tuple[list[str], str]]:
    return [
        (names, f"{', '.join(names)} not available for {number} video{'s'[: number > 1]}: {why}")
        for names, number, why in reasons(rows)
    ]
