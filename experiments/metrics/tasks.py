"""One video measured as a Ray task, on a node that may be busy, or see other folders than the driver."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.metrics.measure import Job, measure
from orchestrator.paths import RunPaths

CPUS = 1
"""Of a task when nothing else runs."""


def attempt(job: Job, idle: bool) -> Iterator[Any]:
    """As a Ray task: True once it has begun, then what :func:`measure` finds, or the id of a node that does not see the run.

    One thread; ``idle``: at the lowest priority there is. Raises FileNotFoundError for a file that is not where the run is.
    """
    yield True
    if not sees_run(job):
        import ray

        yield ray.get_runtime_context().get_node_id()
        return
    import torch

    torch.set_num_threads(CPUS)
    with contextlib.suppress(OSError, AttributeError):  # elsewhere than on Linux
        os.sched_setscheduler(0, os.SCHED_IDLE if idle else os.SCHED_OTHER, os.sched_param(0))
    yield measure(job)


def sees_run(job: Job) -> bool:
    """Whether this machine sees the run's folder. Raises FileNotFoundError where it does, and not the file: it may yet come."""
    for record, place in ((job.record, job.video), (job.reference, job.reference_video)):
        if record is not None and isinstance(place, Path) and not place.is_file():
            if not RunPaths(place.parents[len(Path(record.video).parts) - 1]).config.is_file():
                return False
            raise FileNotFoundError(f"{record.video} is not there")
    return True
