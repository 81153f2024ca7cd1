"""``dvg doctor``: what is installed, what it gives, and what each missing piece would give."""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from orchestrator.mistakes import without_password
from parallel import backends
from stages.models import embedded

REQUIRED = {
    "torch": "the models",
    "diffusers": "model and scheduler implementations",
    "transformers": "text encoders",
    "ray": "sweeps over processes and nodes",
    "mlflow": "experiment tracking",
    "av": "video files",
    "torchmetrics": "PSNR and SSIM",
}
OPTIONAL = {
    "flash_attn.cute": ("flash-attn-4", "FlashAttention 4: attention 1.17 times as fast as cuDNN's on an H200"),
    "flash_attn_interface": ("flash-attn-3", "FlashAttention 3 on Hopper GPUs, built from source"),
    "xfuser": ("xfuser", "the usp sequence-parallel backend on GPUs (pip install '.[gpu]')"),
    "deepspeed": ("deepspeed", "the ulysses sequence-parallel backend (pip install '.[parallel]')"),
}


@dataclass(frozen=True)
class Finding:
    """``state`` is "ok", "missing" (optional) or "broken" (a sweep will not run)."""

    topic: str
    state: str
    found: str
    gives: str


def examine() -> list[Finding]:
    """Every check, none of which starts anything or leaves this machine."""
    checks: list[Callable[[], list[Finding]]] = [
        _python, _packages, _gpus, _attention, _backends, _video, _embedded, _ray_auth, _mlflow, _machine,
    ]  # fmt: skip
    return [finding for check in checks for finding in check()]


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _python() -> list[Finding]:
    legal = (3, 11) <= sys.version_info[:2] <= (3, 12)
    return [Finding("python", "ok" if legal else "broken", platform.python_version(), "3.11 or 3.12 is needed")]


def _packages() -> list[Finding]:
    rows = []
    for name, gives in REQUIRED.items():
        version = _version(name)
        rows.append(Finding(name, "ok" if version else "broken", version or "not installed", gives))
    for module, (distribution, gives) in OPTIONAL.items():
        rows.append(_optional(module, distribution, gives))
    return rows


def _optional(module: str, distribution: str, gives: str) -> Finding:
    """Optional packages are imported for real, in a process of their own: several install where they cannot run."""
    version = _version(distribution)
    if version is None:
        return Finding(distribution, "missing", "not installed", gives)
    done = subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return Finding(distribution, "ok", version, gives)
    reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return Finding(distribution, "missing", f"{version}, import fails: {reason[:120]}", gives)


def _gpus() -> list[Finding]:
    import torch

    if not torch.cuda.is_available():
        return [Finding("gpu", "missing", "none visible", "real-size models; wan-mini runs without")]
    rows = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory_gb = properties.total_memory / 1e9
        rows.append(Finding(f"gpu {index}", "ok", f"{properties.name}, {memory_gb:.0f} GB", "heavy ranks"))
    return rows


def _attention() -> list[Finding]:
    """The kernels that are installed, and which one a worker here uses."""
    import torch

    from stages import attention

    if not torch.cuda.is_available():
        return [Finding("attention", "ok", "torch's own on a CPU", "cuDNN and flash kernels need a GPU")]
    gives = "the fastest is used; a worker measures it at its first start"
    rows = [Finding("attention", "ok", ", ".join(attention.installed()), gives)]
    for key, rates in attention.measurements().items():
        if key.startswith(torch.cuda.get_device_name()):
            rows.append(Finding("attention", "ok", _rates(rates), f"measured: {key}"))
    return rows


def _backends() -> list[Finding]:
    """How the ranks of a slice may exchange tokens, whether they can here, and what each cannot do anywhere."""
    rows = []
    for name in backends.names():
        if name == backends.AUTO:
            continue
        missing = backends.missing(name)
        rows.append(Finding(f"backend {name}", "missing" if missing else "ok", missing or "can run here", _cannot(name)))
    return rows


def _cannot(name: str) -> str:
    """What a backend refuses, found by asking it."""
    questions = {
        "heads that the ranks do not divide": (6, 64, "cuda"),
        "token counts that the ranks do not divide, models whose prompt joins attention": (8, 63, "cuda"),
        "CPUs": (8, 64, "cpu"),
    }
    refused = [
        what
        for what, (heads, tokens, device) in questions.items()
        if backends.mistakes(name, heads=heads, num_tokens=[tokens], degree=4, device_type=device)
    ]
    return f"cannot do: {'; '.join(refused)}" if refused else "does everything"


def _rates(rates: Mapping[str, Mapping[str, float]]) -> str:
    """``16384 tokens: cudnn (570 TFLOP/s)``, the best kernel of each length."""
    best = {length: max(row.items(), key=lambda pair: pair[1]) for length, row in rates.items() if row}
    return "; ".join(f"{length} tokens: {name} ({rate:.0f} TFLOP/s)" for length, (name, rate) in best.items())


def _video() -> list[Finding]:
    import av.codec

    encoder = "libx264" in av.codec.codecs_available
    ffmpeg = shutil.which("ffmpeg")
    return [
        Finding("h264 encoder", "ok" if encoder else "broken", "libx264 in PyAV" if encoder else "none", "mp4 output"),
        Finding("ffmpeg", "ok" if ffmpeg else "missing", ffmpeg or "not on PATH", "not needed; handy to inspect videos"),
    ]


def _embedded() -> list[Finding]:
    present = (embedded.FOLDER / "model_index.json").is_file()
    size_mb = sum(p.stat().st_size for p in embedded.FOLDER.rglob("*") if p.is_file()) / 1e6
    found = f"{size_mb:.1f} MB" if present else "not found"
    return [Finding("wan-mini", "ok" if present else "broken", found, "the embedded model: videos without a download")]


def _ray_auth() -> list[Finding]:
    mode, address = os.environ.get("RAY_AUTH_MODE"), os.environ.get("RAY_ADDRESS")
    advice = "set RAY_AUTH_MODE to the same value where Ray starts and where jobs are submitted"
    token = pathlib.Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser().is_file()
    risky = mode is None and (token or address is not None)
    found = f"RAY_AUTH_MODE={mode or 'unset'}{', a token file exists' if token else ''}"
    return [
        Finding("ray auth", "missing" if risky else "ok", found, advice),
        Finding("ray address", "ok", address or "unset: a local cluster on 127.0.0.1", "RAY_ADDRESS joins a cluster"),
    ]


def _mlflow() -> list[Finding]:
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if uri is None:
        return [Finding("mlflow uri", "ok", "unset: sqlite in the run folder", "MLFLOW_TRACKING_URI names a server")]
    gives = "where runs are mirrored; a server that is down never stops a sweep"
    if not uri.startswith(("http://", "https://")):
        return [Finding("mlflow uri", "ok", without_password(uri), gives)]
    state, found = _reach(uri)
    return [Finding("mlflow uri", state, found, gives)]


def _reach(uri: str) -> tuple[str, str]:
    """Whether a tracking server answers; credentials in the address are never shown."""
    import requests

    shown = without_password(uri)
    try:
        answer = requests.get(uri.rstrip("/") + "/health", timeout=3)
    except requests.RequestException as error:
        return "missing", f"{shown}: no answer ({type(error).__name__})"
    return ("ok" if answer.ok else "missing"), f"{shown}: {answer.status_code}"


def _machine() -> list[Finding]:
    free_gb = shutil.disk_usage(pathlib.Path.cwd()).free / 1e9
    disk = Finding("disk", "ok" if free_gb > 5 else "missing", f"{free_gb:.0f} GB free here", "videos and checkpoints")
    return [Finding("cpu", "ok", f"{os.cpu_count()} cores", "workers share them without a GPU"), disk]
