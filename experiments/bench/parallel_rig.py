"""One rank of ``experiments.bench.parallel``: its groups, its clock, and the rows that rank 0 keeps.

All ranks go through the same code in the same order. Whatever decides between ways to go on is told by rank 0, and a measurement
that fails on one rank is recorded as failed on all.
"""

from __future__ import annotations

import gc
import itertools
import pathlib
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from experiments.bench.common import save
from experiments.bench.parallel_cases import repeats
from parallel.groups import Groups
from parallel.layout import Layout, layout

Row = dict[str, Any]
LONG_S = 30.0
MOST_ERROR = 400
"""Characters of an error that are kept."""


@dataclass(eq=False)
class Rig:
    """This rank among its fellows."""

    groups: Groups
    out: pathlib.Path
    ends_at_s: float
    """Of the monotonic clock: nothing is begun that cannot end before."""
    is_tiny: bool
    folder: pathlib.Path
    """Where rank 0 may write for the others."""
    facts: Row
    rows: list[Row] = field(default_factory=list)

    def __post_init__(self) -> None:
        timeout = timedelta(seconds=self.facts["timeout_s"])
        self.host = dist.new_group(backend="gloo", timeout=timeout) if self.num_ranks > 1 else None
        self.began_s = time.monotonic()

    @property
    def rank(self) -> int:
        return self.groups.rank

    @property
    def num_ranks(self) -> int:
        return self.groups.num_ranks

    @property
    def device(self) -> torch.device:
        return self.groups.device

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    def layout(self, degree: int, num_branches: int = 1) -> Layout | None:
        """This rank's slice of ``degree`` ranks. All slices of a width work at once, as those of a pod do."""
        return layout(self.groups, self.rank // degree * degree, degree, num_branches)

    def gather(self, value: Any) -> list[Any]:
        """Of all ranks, through the host."""
        if self.host is None:
            return [value]
        found: list[Any] = [None] * self.num_ranks
        dist.all_gather_object(found, value, group=self.host)
        return found

    def told(self, value: Any) -> Any:
        """Rank 0's."""
        return self.gather(value)[0]

    def settle(self) -> None:
        """All ranks idle, host and device."""
        if self.is_cuda:
            torch.cuda.synchronize()
        self.gather(None)

    def has_time(self, about_s: float) -> bool:
        return bool(self.told(time.monotonic() + about_s < self.ends_at_s))

    def attempt(self, row: Row, about_s: float, measure: Callable[[], Row]) -> Row:
        """Keeps ``row`` with what ``measure`` found, its error, or that there was no time."""
        if not self.has_time(about_s):
            return self.keep({**row, "skipped": "no time"})
        found: Row = {}
        problem = None
        try:
            found = measure()
        except Exception as error:  # noqa: BLE001 - it is what the row says, and the next row may be fine
            problem = f"{type(error).__name__}: {' '.join(str(error).split())}"[:MOST_ERROR]
        problems = [said for said in self.gather(problem) if said]
        if problems:
            self.tidy()
        return self.keep({**row, **({"error": problems[0]} if problems else found)})

    def keep(self, row: Row) -> Row:
        self.rows.append({**row, "at_s": round(time.monotonic() - self.began_s, 1)})
        if self.rank == 0:
            save(self.out, "parallel", {**self.facts, "rows": self.rows})
            print({key: _short(value) for key, value in self.rows[-1].items() if key != "by_rank_s"}, flush=True)
        return self.rows[-1]

    def tidy(self) -> None:
        """Memory of what is gone, back to the device."""
        gc.collect()
        if self.is_cuda:
            torch.cuda.empty_cache()

    def timed(self, call: Callable[[], object], degree: int) -> Row:
        """Median seconds of ``call``: the slowest rank of each slice of ``degree``, the median slice.

        After a warm-up call, unless calls take so long that it does not matter.
        """
        if self.is_cuda:
            torch.cuda.reset_peak_memory_stats()
        seconds = self.first(call)
        if max(self.gather(seconds[0])) < LONG_S:
            seconds = self.first(call)
            num_warm, num = repeats(max(self.gather(seconds[0])))
            for _ in range(num_warm):
                call()
            if num:
                self.settle()
                seconds = self.series(call, num)
        by_rank = self.gather(statistics.median(seconds))
        peak = torch.cuda.max_memory_allocated() / 2**30 if self.is_cuda else 0.0
        found = {"median_s": of_slices(by_rank, degree), "by_rank_s": by_rank, "repeats": len(seconds)}
        return {**found, "spread": max(seconds) / min(seconds), "peak_gib": max(self.gather(peak))}

    def first(self, call: Callable[[], object]) -> list[float]:
        """Seconds of one call that all ranks begin together."""
        self.settle()
        return self.series(call, 1)

    def series(self, call: Callable[[], object], num: int) -> list[float]:
        """Seconds of each of ``num`` calls in a row, on this rank's device."""
        if not self.is_cuda:
            return [_clocked_s(call) for _ in range(num)]
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(num + 1)]  # type: ignore[no-untyped-call]
        marks[0].record()
        for mark in marks[1:]:
            call()
            mark.record()
        marks[-1].synchronize()
        return [start.elapsed_time(end) / 1e3 for start, end in itertools.pairwise(marks)]


def of_slices(by_rank: list[float], degree: int) -> float:
    """The slowest of each ``degree`` adjacent ranks; of these the median."""
    return statistics.median(max(by_rank[start : start + degree]) for start in range(0, len(by_rank), degree))


def _clocked_s(call: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    call()
    return time.perf_counter() - started_s


def _short(value: Any) -> Any:
    return round(value, 5) if isinstance(value, float) else value
