"""How busy a machine is: CPU, memory, disk, network and GPUs, under the names of MLflow's own system metrics."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import psutil

MB = 1e6
GPU_FIELDS = {
    "utilization_percentage": "utilization.gpu",
    "memory_usage_megabytes": "memory.used",
    "memory_usage_percentage": "memory.total",
    "power_usage_watts": "power.draw",
}
"""Metric to what ``nvidia-smi`` calls it; memory is told in MiB."""
GPU_WAIT_S = 10.0


class Machine:
    """Rates are since the sample before, or since this was made. ``folder``: whose disk is meant."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._has_gpus = shutil.which("nvidia-smi") is not None
        self._network = psutil.net_io_counters()
        psutil.cpu_percent()

    def sample(self) -> dict[str, float]:
        memory, disk = psutil.virtual_memory(), psutil.disk_usage(str(self._folder))
        return {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / MB,
            "system_memory_usage_percentage": memory.used / memory.total * 100,
            "disk_usage_percentage": disk.percent,
            "disk_available_megabytes": disk.free / MB,
            **self._network_metrics(),
            **self._gpu_metrics(),
        }

    def _network_metrics(self) -> dict[str, float]:
        """Megabytes since this was made; none where the machine does not tell."""
        now = psutil.net_io_counters()
        if now is None or self._network is None:
            return {}
        return {
            "network_receive_megabytes": (now.bytes_recv - self._network.bytes_recv) / MB,
            "network_transmit_megabytes": (now.bytes_sent - self._network.bytes_sent) / MB,
        }

    def _gpu_metrics(self) -> dict[str, float]:
        if not self._has_gpus:
            return {}
        command = ["nvidia-smi", f"--query-gpu={','.join(GPU_FIELDS.values())}", "--format=csv,noheader,nounits"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=GPU_WAIT_S, check=True)
        except (OSError, subprocess.SubprocessError):
            return {}
        return parse_gpus(done.stdout)


def parse_gpus(told: str) -> dict[str, float]:
    """One line per GPU in the order of ``GPU_FIELDS``; what a GPU does not tell (``[N/A]``) is absent."""
    found: dict[str, float] = {}
    for index, line in enumerate(filter(None, map(str.strip, told.splitlines()))):
        values = dict(zip(GPU_FIELDS, (_number(cell) for cell in line.split(",")), strict=False))
        used, total = values.get("memory_usage_megabytes"), values.get("memory_usage_percentage")
        if used is not None:
            values["memory_usage_megabytes"] = used * 2**20 / MB
        values["memory_usage_percentage"] = used / total * 100 if used is not None and total else None
        found |= {f"gpu_{index}_{name}": value for name, value in values.items() if value is not None}
    return found


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None
