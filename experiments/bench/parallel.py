"""Sequence parallelism on the GPUs of one host: every exchange, degree and section beside diffusers' own, in one run.

``python -m experiments.bench.parallel --out folder/all.json`` measures on all GPUs there are, one process each;
``python -m experiments.bench.parallel_report folder`` composes the tables. ``--device cpu --tiny`` rehearses the same code over
gloo. Rows are saved as they come; nothing is begun that would not end within ``--minutes``.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import sys
import tempfile
import time
from datetime import timedelta
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from typing import Any

from experiments.bench.parallel_cases import NATIVE, OTHERS, PEER, REAL, SECTIONS
from experiments.bench.parallel_rank import Plan, serve
from experiments.bench.parallel_tables import tables
from experiments.bench.ranks import introduce, started

MULTICAST_OFF = {"NCCL_NVLS_ENABLE": "0", "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1", "NVSHMEM_DISABLE_NVLS": "1"}
"""GPUs may be shared with others of the host, which multicast can take out of service."""
EXCHANGES = (PEER, NATIVE, *OTHERS)
PATIENCE_S = 20.0
"""For the others, once one process has ended, or the time is over."""


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="JSON file of the rows")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--models", nargs="+", choices=tuple(REAL), default=tuple(REAL))
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--ranks", type=int, help="processes; default: one per GPU, or 2 on CPUs")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny models on tiny grids")
    parser.add_argument("--timeout", type=float, default=150.0, help="seconds that a rank waits for the others")
    parser.add_argument("--most-tokens", type=int, default=1 << 20, help="of a grid")
    parser.add_argument("--grids", type=int, default=99, help="of a model, at most")
    parser.add_argument("--exchanges", nargs="+", choices=EXCHANGES, default=EXCHANGES)
    return parser.parse_args()


def plan_of(args: argparse.Namespace, folder: pathlib.Path) -> Plan:
    num_ranks = args.ranks or (_num_gpus() if args.device == "cuda" else 2)
    if num_ranks < 2:
        raise SystemExit(f"{num_ranks} GPU is here: sharing a forward needs at least 2 (or --device cpu --tiny)")
    return Plan(
        num_ranks, args.device, args.tiny, tuple(args.models), tuple(args.sections), args.out.resolve(), folder,
        time.monotonic() + 60.0 * args.minutes, args.timeout, tuple(args.exchanges), args.most_tokens, args.grids,
    )  # fmt: skip


def _num_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def start(plan: Plan) -> list[SpawnProcess]:
    """All ranks, who meet at a port that rank 0 opened."""
    processes, pipes = started(serve, plan.num_ranks, plan)
    try:
        introduce(pipes, timedelta(seconds=plan.timeout_s))
    except RuntimeError as error:
        raise SystemExit(str(error)) from None
    return processes


def watch(processes: list[SpawnProcess], ends_at_s: float) -> bool:
    """Until all have ended, by themselves or, once one has failed or the time is over, by this. Whether all went well."""
    running = list(processes)
    until_s = ends_at_s + PATIENCE_S
    while running and (left_s := until_s - time.monotonic()) > 0:
        wait([process.sentinel for process in running], timeout=left_s)
        running = [process for process in running if process.is_alive()]
        if len(running) < len(processes):
            until_s = min(until_s, time.monotonic() + PATIENCE_S)
    for process in running:
        process.kill()
        process.join()
    return all(process.exitcode == 0 for process in processes)


def main() -> None:
    args = options()
    os.environ.update(MULTICAST_OFF)
    with tempfile.TemporaryDirectory() as folder:
        plan = plan_of(args, pathlib.Path(folder))
        is_well = watch(start(plan), plan.ends_at_s)
    found: dict[str, Any] = json.loads(args.out.read_text()) if args.out.is_file() else {"rows": []}
    print(tables(found["rows"]))
    if not is_well:
        sys.exit("a rank failed or was stopped: the rows above are those of before")


if __name__ == "__main__":
    main()
