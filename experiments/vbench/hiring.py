"""The workers of an evaluation: how many, on which device, in this process or on Ray."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.vbench.pool import LocalPool, Make, Pool, RayPool
from experiments.vbench.probe import Environment
from experiments.vbench.process import Runtime, VBenchWorker
from orchestrator.mistakes import ConfigError

if TYPE_CHECKING:
    from experiments.vbench.campaign import Options

WEIGHT_VARIABLES = ("VBENCH_CACHE_DIR", "TORCH_HOME", "HF_HOME", "XDG_CACHE_HOME")
"""Where weights are: told to every worker, whatever its node's own environment says."""
MAX_THREADS = 8
"""Of a worker with a GPU, which only decodes."""
COUNT = "import torch; print(torch.cuda.device_count())"
"""What the interpreter of VBench is asked."""


@contextlib.contextmanager
def crew(options: Options, found: Environment, root: Path, tell: Callable[[str], None]) -> Iterator[tuple[Pool, str]]:
    """(workers, their device), ended with the block. Raises ConfigError for a GPU that is not there, RunError for a cluster."""
    with _local(options, found) if options.local else _on_ray(options, found, root, tell) as (pool, device):
        try:
            yield pool, device
        finally:
            pool.close()


@contextlib.contextmanager
def _local(options: Options, found: Environment) -> Iterator[tuple[Pool, str]]:
    device = "cpu" if options.device == "auto" else options.device
    if device == "cuda":
        refuse_without_gpu(_num_gpus(found), found, "this machine")
    yield LocalPool(_maker(options, found, device, 1), options.workers or 1), device


@contextlib.contextmanager
def _on_ray(options: Options, found: Environment, root: Path, tell: Callable[[str], None]) -> Iterator[tuple[Pool, str]]:
    from orchestrator.cluster import start_or_join

    workers, threads = options.workers, options.threads
    cpus = max(os.cpu_count() or 1, workers * (threads or 1)) if workers and not options.address else None
    cluster = start_or_join(options.address, cpus)
    try:
        device = device_of(options.device, found, cluster.num_gpus, "this machine" if cluster.owned else f"{cluster.address} now")
        number = workers or max(1, int(cluster.num_gpus if device == "cuda" else cluster.num_cpus // (threads or 1)))
        shared = min(MAX_THREADS, max(1, int(cluster.num_cpus) // number)) if device == "cuda" else 1
        make = _maker(options, found, device, shared)
        wanted = {"GPU": 1.0} if device == "cuda" else {"CPU": float(threads or 1)}
        tell(f"{number} workers on {device}, {threads or shared} threads each")
        yield RayPool(make, number, wanted, [found.python, str(root)]), device
    finally:
        cluster.leave()


def device_of(asked: str, found: Environment, num_gpus: float, where: str) -> str:
    """``cpu`` or ``cuda``. Raises ConfigError where ``cuda`` was asked for and there is none."""
    if asked == "auto":
        return "cuda" if num_gpus and not _cpu_only(found) else "cpu"
    if asked == "cuda":
        refuse_without_gpu(num_gpus, found, where)
    return asked


def refuse_without_gpu(num_gpus: float, found: Environment, where: str) -> None:
    """Raises ConfigError: nobody is to wait for a worker that can never be."""
    why = f"torch {found.torch} of {found.python} knows no GPU" if _cpu_only(found) else f"{where} has none"
    if _cpu_only(found) or not num_gpus:
        raise ConfigError([f"--device 'cuda' needs a GPU for every worker, and {why}; choices: auto, cpu"])


def _cpu_only(found: Environment) -> bool:
    return found.torch.endswith("+cpu")


def _num_gpus(found: Environment) -> int:
    done = subprocess.run([found.python, "-P", "-c", COUNT], capture_output=True, text=True, check=False)
    return int(done.stdout.strip() or 0) if done.returncode == 0 else 0


def _maker(options: Options, found: Environment, device: str, threads: int) -> Make:
    told = {name: os.environ[name] for name in WEIGHT_VARIABLES if name in os.environ}
    return partial(VBenchWorker, Runtime(found.python, found.package, device, options.threads or threads, told))
