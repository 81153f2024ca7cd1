"""What one process of ``experiments.bench.parallel`` does: it joins the others, then goes through the sections."""

from __future__ import annotations

import os
import pathlib
import sys
import time
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from experiments.bench.parallel_cases import OF_A_MODEL
from experiments.bench.ranks import met

if TYPE_CHECKING:
    from experiments.bench.parallel_rig import Rig


@dataclass(frozen=True)
class Plan:
    """What to measure, the same for all ranks."""

    num_ranks: int
    device: str
    is_tiny: bool
    models: tuple[str, ...]
    sections: tuple[str, ...]
    out: pathlib.Path
    folder: pathlib.Path
    ends_at_s: float
    """Of the monotonic clock, which the processes of a machine share."""
    timeout_s: float
    """How long a rank waits for the others."""
    exchanges: tuple[str, ...]
    most_tokens: int
    num_grids: int


def serve(plan: Plan, rank: int, pipe: Connection) -> None:
    """Entry of a process."""
    run(plan, rank, pipe)
    sys.stdout.flush()
    if rank == 0:  # its store and its answers are what the others still read
        time.sleep(1.0)
    os._exit(0)  # recordings hold NCCL's communicators, so these cannot be taken down in order


def run(plan: Plan, rank: int, pipe: Connection) -> None:
    timeout = timedelta(seconds=plan.timeout_s)
    store, device = met(plan.device, rank, pipe, timeout)
    from experiments.bench.parallel_rig import Rig
    from parallel.groups import Groups

    started_s = time.monotonic()
    groups = Groups(store, rank, plan.num_ranks, device, timeout)
    facts: dict[str, Any] = {"num_ranks": plan.num_ranks, "is_tiny": plan.is_tiny, "timeout_s": plan.timeout_s}
    frozen = pathlib.Path("COMMIT")
    if frozen.is_file():
        facts["commit"] = frozen.read_text().strip()
    rig = Rig(groups, plan.out, plan.ends_at_s, plan.is_tiny, plan.folder, facts)
    rig.keep({"section": "start", "groups_s": time.monotonic() - started_s})
    measure(rig, plan)
    rig.settle()


def measure(rig: Rig, plan: Plan) -> None:
    """All sections, those that are most likely to break a process last."""
    from experiments.bench import (
        parallel_decode,
        parallel_forwards,
        parallel_kernels,
        parallel_models,
        parallel_stock,
        parallel_wires,
    )
    from experiments.bench.parallel_cases import narrowed, subjects
    from stages import attention, compiling

    exchanges = parallel_models.Exchanges(rig, plan.exchanges)
    known = {kind: narrowed(found, plan.most_tokens, plan.num_grids) for kind, found in subjects(plan.is_tiny).items()}
    for kind in plan.models:
        if not set(plan.sections).isdisjoint(OF_A_MODEL) and rig.has_time(30.0 if rig.is_cuda else 0.0):
            started_s = time.monotonic()
            found = parallel_models.loaded(rig, kind, known[kind])
            seconds = {"load_s": time.monotonic() - started_s, "compile_s": compiling.compile_seconds()}
            rig.keep({"section": "load", "model": known[kind].name, **seconds, "kernels": attention.measurements()})
            parallel_forwards.model_sections(rig, kind, found, exchanges, plan.sections)
            del found
            rig.tidy()
    if "stock" in plan.sections and "wan" in plan.models:
        parallel_stock.stock(rig, plan.most_tokens)
        rig.tidy()
    if "decode" in plan.sections:
        for kind in plan.models:
            parallel_decode.decode(rig, kind, known[kind])
            rig.tidy()
    if "kernels" in plan.sections:
        parallel_kernels.kernels(rig, plan.models)
    if "wires" in plan.sections:
        parallel_wires.wires(rig)
