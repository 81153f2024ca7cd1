"""Temporal flickering of a suite with VBench's filter of static videos: which videos of an arm it is measured on.

The filter's verdicts are those of this start, or of an earlier one that judged these very videos.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from experiments.vbench import work
from experiments.vbench.dimensions import STATIC_FILTER
from experiments.vbench.evaluate import Evaluation
from experiments.vbench.shards import Task
from experiments.vbench.view import View


@dataclass(frozen=True)
class Judged:
    """The videos of one arm, and what is to be known beside their score."""

    tasks: list[Task]
    note: str = ""
    failed: Mapping[str, str] = field(default_factory=dict)
    """Why candidates could not be judged, by name."""


def judged(view: View, evaluation: Evaluation, measuring: work.Measuring, requested: bool) -> Judged:
    """The first five static videos of each prompt, or the first five as they are where the filter cannot judge them.

    ``requested``: temporal flickering is among the dimensions of this start.
    """
    candidates = work.candidates(view, measuring)
    rows, how = evaluation.found(STATIC_FILTER, view.arm, candidates, requested)
    seen = {task: row for task in candidates if (row := rows.get(task.key))}
    if len(seen) < len(candidates) and (requested or not seen):
        why = evaluation.unavailable.get(STATIC_FILTER, "the filter has not judged them")
        return Judged(work.tasks(view, work.FLICKERING, measuring), f"the first five videos of each prompt, static or not: {why}")
    verdicts = {task.key: row.record is not None and bool(row.record["video_results"]) for task, row in seen.items()}
    tasks = work.static(view, measuring, verdicts)
    failed = {Path(task.video.path).name: f"static filter: {row.failed}" for task, row in seen.items() if row.failed}
    return Judged(tasks, _note(view, tasks, how), failed)


def _note(view: View, tasks: list[Task], how: str) -> str:
    number = len(view.of(work.FLICKERING))
    few = number - work.num_full(view, tasks)
    notes = [f"{few} of {number} prompts have fewer than five static videos"] if few else []
    return "; ".join([*notes, *([f"static by an earlier start's filter ({how})"] if how else [])])
