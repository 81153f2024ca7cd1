"""What an evaluation found of each arm: scores in VBench's own file, and beside it what is missing, failed or cannot run."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from experiments.vbench.evaluate import Evaluation
from experiments.vbench.flickering import Judged
from experiments.vbench.process import Row
from experiments.vbench.reduce import reduce
from experiments.vbench.shards import Task, with_path
from experiments.vbench.view import View
from experiments.vbench.work import FLICKERING, missing
from orchestrator.files import write_atomic
from orchestrator.paths import RunPaths, file_name

SHOWN = 3
EARLIER = "an earlier start measured these very videos"


@dataclass(frozen=True)
class DimensionOutcome:
    """``score`` None: not every video that is there was measured or given up by name, or none could be."""

    score: float | None
    num_measured: int
    num_videos: int
    """Those that are there."""
    num_missing: int = 0
    """Those that the suite asks for and the run has not made."""
    num_left_out: int = 0
    """Those that VBench leaves out of the score by its own rule."""
    failed: Mapping[str, str] = field(default_factory=dict)
    """Why, by the video's name."""
    unavailable: str | None = None
    requested: bool = True
    note: str = ""

    @property
    def whole(self) -> bool:
        return self.score is not None and not self.failed and not self.num_missing

    def told(self) -> str:
        """One cell for people."""
        if self.score is None:
            asked = self.num_videos + self.num_missing
            return "not available" if self.unavailable else f"n/a ({self.num_measured}/{asked} videos)"
        lacks = [f"{len(self.failed)} failed"] if self.failed else []
        lacks += [f"{self.num_missing} missing"] if self.num_missing else []
        return f"{self.score:.4f} ({self.num_measured} videos{''.join(', ' + lack for lack in lacks)})"


@dataclass(frozen=True)
class ArmOutcome:
    suite: str
    digest: str
    arm: str
    about: Mapping[str, str]
    """How it was measured: VBench's version, device, reduction."""
    dimensions: Mapping[str, DimensionOutcome]
    results: Mapping[str, tuple[float, list[dict[str, Any]]]]
    """VBench's own form."""
    work: Sequence[Mapping[str, Any]]
    """VBench's own list of the work."""
    integrity: Mapping[str, Any] = field(default_factory=dict)
    """What is missing, extra, broken or of the wrong length."""

    @property
    def whole(self) -> bool:
        return all(found.whole for found in self.dimensions.values() if found.requested)

    @property
    def is_empty(self) -> bool:
        """Whether none of the arm's videos is made."""
        counts = self.integrity.get("counts", {})
        return bool(counts) and counts["missing"] == self.integrity["expected"]

    def lines(self) -> list[str]:
        """For people: what is not whole, with the first few by name."""
        told = ["no finished video"] if self.is_empty else []
        for name, found in self.dimensions.items():
            if found.unavailable and found.requested:
                told.append(f"{name} is not available: {found.unavailable}")
            if found.failed:
                first = "; ".join(f"{video} ({why})" for video, why in list(found.failed.items())[:SHOWN])
                told.append(f"{name}: {len(found.failed)} videos could not be measured: {first}{_more(len(found.failed))}")
            if found.note:
                told.append(f"{name}: {found.note}")
        return told

    def as_json(self) -> dict[str, Any]:
        told = {name: asdict(found) for name, found in self.dimensions.items()}
        where = {"suite": self.suite, "digest": self.digest, "arm": self.arm}
        return {**where, **self.about, "dimensions": told, "integrity": dict(self.integrity)}


def _more(number: int) -> str:
    return f"; and {number - SHOWN} more" if number > SHOWN else ""


def of_arm(
    view: View,
    evaluation: Evaluation,
    requested: Sequence[str],
    tasks_of: Callable[[str], Sequence[Task]],
    about: Mapping[str, str],
    filtered: Judged | None = None,
) -> ArmOutcome:
    """Of the dimensions asked for, and of those that an earlier command measured.

    ``filtered``: of a suite whose temporal flickering is measured on static videos.
    """
    dimensions, results, seen = {}, {}, {}
    for name in view.suite.dimensions:
        tasks = list(tasks_of(name))
        rows, how = evaluation.found(name, view.arm, tasks, name in requested)
        if name not in requested and not any(task.key in rows for task in tasks):
            continue
        judged = filtered if filtered and name == FLICKERING else Judged([])
        records = [_record(task, rows[task.key]) for task in tasks if task.key in rows]
        measured = [record for record in records if record is not None]
        whole = all(task.key in rows for task in tasks) and bool(measured)
        score = reduce(name, measured, about["reduce"]) if whole else None
        if score is not None:
            results[name] = (score, measured)
            seen[name] = {Path(task.video.path).name for task in tasks if rows[task.key].failed is None}
        dimensions[name] = DimensionOutcome(
            score=score,
            num_measured=len(measured),
            num_videos=len(tasks),
            num_missing=len(missing(view, name)),
            num_left_out=sum(row.failed is None and row.record is None for task in tasks if (row := rows.get(task.key))),
            failed=_failed(tasks, rows) | dict(judged.failed),
            unavailable=evaluation.unavailable.get(name),
            requested=name in requested,
            note="; ".join(filter(None, [judged.note, f"{EARLIER} ({how})" if how else ""])),
        )
    return ArmOutcome(view.suite.name, view.suite.digest, view.arm, about, dimensions, results, work_of(view, seen))


def _failed(tasks: Sequence[Task], rows: Mapping[str, Row]) -> dict[str, str]:
    return {Path(task.video.path).name: why for task in tasks if task.key in rows and (why := rows[task.key].failed)}


def _record(task: Task, row: Row) -> dict[str, Any] | None:
    return None if row.record is None else with_path(row.record, task.video.path)


def work_of(view: View, measured: Mapping[str, Collection[str]] | None = None) -> list[dict[str, Any]]:
    """As VBench's ``build_full_info_json`` writes it, with the videos alone that were measured, and their prompts.

    ``measured``: their names by dimension; None: all that is there.
    """
    rows = []
    for line in view.lines:
        found = [measured[name] for name in line.entry.dimensions if name in measured] if measured is not None else [view.videos]
        links = [str(video.link) for video in line.there if any(video.name in names for names in found)]
        if not links:
            continue
        row = {"prompt_en": line.entry.prompt, "dimension": list(line.entry.dimensions)}
        extra = {"auxiliary_info": dict(line.entry.auxiliary)} if line.entry.auxiliary else {}
        rows.append({**row, **extra, "video_list": links})
    return rows


def write(paths: RunPaths, found: ArmOutcome) -> None:
    """``<arm>_eval_results.json`` and ``<arm>_full_info.json`` as VBench writes them, and ``<arm>_evaluation.json``."""
    folder, name = paths.vbench_arm(found.suite, found.arm), file_name(found.arm)
    target = paths.vbench_results(found.suite, found.arm)
    told = {**found.as_json(), "finished_at": datetime.now(UTC).isoformat(timespec="seconds")}
    write_atomic(folder / f"{name}_evaluation.json", json.dumps(told, indent=2, allow_nan=False) + "\n")
    write_atomic(folder / f"{name}_full_info.json", json.dumps(found.work, indent=4) + "\n")
    if found.results:
        write_atomic(target, json.dumps(found.results, indent=4, allow_nan=False) + "\n")
    else:
        target.unlink(missing_ok=True)
