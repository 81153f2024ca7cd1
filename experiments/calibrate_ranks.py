"""Measures a model on several GPUs (or CPU processes) of this machine at once: one process each, as in a pod."""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch.multiprocessing.spawn import start_processes

from experiments.calibrate import Settings, about, check_grids, decode_row, make_condition, random_model, step_rows
from experiments.calibrate_fit import compose
from orchestrator.calibration import Calibration, DecodeRow, StepRow
from orchestrator.geometry import model as geometry_of
from orchestrator.model_geometry import ModelGeometry
from parallel import backends
from parallel.groups import Group, Groups
from parallel.layout import layout
from parallel.seam import Exchange
from stages.models.base import Condition, Model, load

PATIENCE = timedelta(minutes=30)
"""Ranks that are not among those measured wait this long for their turn."""
ENVIRONMENT = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo", "NCCL_NVLS_ENABLE": "0"}
"""All ranks are on this machine; NVLink multicast stalls where the host does not grant it."""
POLL_S = 0.2


@dataclass(frozen=True)
class Job:
    """What the ranks measure. ``degrees`` ascend from 1."""

    model: str
    weights: str | None
    random_weights: bool
    settings: Settings
    degrees: tuple[int, ...]
    backend: str
    on_gpu: bool

    @property
    def num_ranks(self) -> int:
        return max(self.degrees)

    @property
    def geometry(self) -> ModelGeometry:
        return geometry_of(self.model)


def measure_degrees(job: Job, on_row: Callable[[StepRow], None] = lambda row: None) -> Calibration:
    """``on_row`` hears of each row as it is done.

    Raises ValueError for grids that do not fit, RuntimeError with the first rank's story when one fails.
    """
    check_grids(job.geometry, job.settings.shape, job.settings.grids)
    told: SimpleQueue[Any] = multiprocessing.get_context("spawn").SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        arguments = (job, str(Path(folder) / "store"), told)
        ranks = start_processes(_rank, arguments, job.num_ranks, join=False, start_method="spawn")  # type: ignore[no-untyped-call]
        found = list(_heard(ranks, told, on_row))
    if not found:
        raise RuntimeError("the ranks ended without a result")
    return found[-1]


def _heard(ranks: Any, told: SimpleQueue[Any], on_row: Callable[[StepRow], None]) -> Iterator[Calibration]:
    """Rank 0's result; its rows on the way."""
    done = False
    while not done:
        done = ranks.join(timeout=POLL_S)
        while not told.empty():
            message = told.get()
            if isinstance(message, StepRow):
                on_row(message)
            else:
                yield message


def _rank(rank: int, job: Job, store: str, told: SimpleQueue[Any]) -> None:
    os.environ.update({key: value for key, value in ENVIRONMENT.items() if key not in os.environ})
    device = _device(rank, job)
    met = dist.FileStore(store, job.num_ranks)  # type: ignore[attr-defined]
    groups = Groups(met, rank, job.num_ranks, device, PATIENCE)
    exchange = backends.make(job.backend, groups)
    model, condition = _model(job, device)
    everyone = groups.slice(0, job.num_ranks)
    rows: list[StepRow] = []
    decodes: list[DecodeRow] = []
    for degree in job.degrees:
        if everyone is not None:
            everyone.agree(f"degree {degree}")  # those beyond it wait here, on the host
        if rank < degree:
            _measure(model, condition, job, groups, degree, exchange, rows, decodes, told.put if rank == 0 else _unheard)
    model.attach(None, None)
    if rank == 0:
        described = about(model, condition, job.settings, "random" if job.random_weights else "given")
        told.put(compose(rows, described, decodes))
    if everyone is not None:
        everyone.agree("done")
    del model  # its recordings hold the groups' collectives
    gc.collect()
    groups.close()


def _unheard(row: StepRow) -> None:
    return None


def _device(rank: int, job: Job) -> torch.device:
    if not job.on_gpu:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // job.num_ranks))
        return torch.device("cpu")
    torch.cuda.set_device(rank)
    return torch.device("cuda", rank)


def _model(job: Job, device: torch.device) -> tuple[Model, Condition]:
    if job.random_weights:
        return random_model(job.geometry, job.settings)
    settings = job.settings
    loaded = load(job.model, job.weights, str(device), compile_blocks=settings.compiled, attention=settings.attention)
    return loaded, make_condition(loaded, settings.shape)


def _measure(
    model: Model,
    condition: Condition,
    job: Job,
    groups: Groups,
    degree: int,
    exchange: Exchange,
    rows: list[StepRow],
    decodes: list[DecodeRow],
    tell: Callable[[StepRow], None],
) -> None:
    """What ``degree`` ranks take, appended to ``rows`` and ``decodes``."""
    group = groups.slice(0, degree)
    backend = "native" if group is None else exchange.name
    model.attach(layout(groups, 0, degree, 1), None if group is None else exchange)

    def alike(seconds: float) -> float:
        return seconds if group is None else _most(group, seconds)

    for row in step_rows(model, condition, job.settings, degree, backend, alike):
        tell(row)
        rows.append(row)
    if job.settings.decode:
        decodes.append(decode_row(model, job.settings, degree, alike))


def _most(group: Group, seconds: float) -> float:
    told = torch.tensor([seconds], dtype=torch.float64, device=group.device)
    return float(group.gather_rows(told, (1,) * group.size).max())
