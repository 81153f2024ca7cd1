"""The environment variables of VBench's processes: threads as told, memory kept, and nothing fetched from anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from experiments.vbench.dimensions import known

if TYPE_CHECKING:
    from experiments.vbench.process import Runtime

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "OPENCV_FFMPEG_THREADS")
"""The last is OpenCV's decoder, which takes every core unless it is told. VBench itself gives decord one thread."""
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(256 << 20)}
"""glibc keeps freed frames for the next ones. Given back to the kernel each time, their page faults cost temporal flickering more
than its arithmetic, and two workers more than one."""
OFFLINE = dict.fromkeys(("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"), "1")
PROXIES = ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy")
NOWHERE = "http://127.0.0.1:9"
"""Nobody listens at the discard port."""
LOOPBACK = dict.fromkeys(("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME"), "lo")


def environment(runtime: Runtime, dimension: str, base: Mapping[str, str]) -> dict[str, str]:
    """Of a worker's process; GPUs are hidden from a worker without one."""
    found = known(dimension)
    kept = {name: value for name, value in base.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    return {
        **KEEP_MEMORY,
        **kept,
        **({"CUDA_VISIBLE_DEVICES": ""} if runtime.device == "cpu" else {}),
        **dict.fromkeys(THREADS, str(runtime.threads)),
        **OFFLINE,
        **runtime.environment,
        **dict(found.environment if found else ()),
    }


def shut_in(runtime: Runtime, dimension: str, base: Mapping[str, str]) -> dict[str, str]:
    """Of VBench's own command: its processes talk over the loopback alone, and what they would fetch is sent nowhere."""
    proxies = {form(name): NOWHERE for name in PROXIES for form in (str.lower, str.upper)}
    kept = {name: value for name, value in base.items() if name.lower() != "no_proxy"}
    return environment(runtime, dimension, kept) | LOOPBACK | proxies
