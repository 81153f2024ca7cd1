"""``manifest.json``: what a reader needs to repeat a run - versions, commit, hardware, and each start of it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from orchestrator import __version__
from orchestrator.config import Sweep
from orchestrator.files import write_atomic
from orchestrator.paths import RunPaths

PACKAGES = ("torch", "diffusers", "transformers", "ray", "mlflow", "av", "numpy")
KEY_CHARS = 10
"""40 bits: one in ten million that an item elsewhere looks like one of 100,000 listed."""


def update_manifest(paths: RunPaths, sweep: Sweep, command: Sequence[str]) -> None:
    """Write the manifest, keeping the starts that an earlier one lists."""
    start = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "command": ["dvg", "sweep", *command], **software()}
    manifest = {
        "name": sweep.name,
        **({"suite": dict(sweep.suite)} if sweep.suite else {}),
        "items": len(sweep.items),
        "item_keys": " ".join(sorted({short_key(item.item_key) for item in sweep.items})),
        "arms": {arm.name: {"model": arm.model, "weights": arm.weights, "revision": arm.revision} for arm in sweep.arms},
        "starts": [*_starts(paths.manifest), start],
    }
    write_atomic(paths.manifest, json.dumps(manifest, indent=2) + "\n")


def short_key(item_key: str) -> str:
    """The part of an item's key that the manifest lists: 100,000 items take 1.1 MB, and two of them rarely meet."""
    return item_key[:KEY_CHARS]


def _starts(path: pathlib.Path) -> list[Any]:
    try:
        starts = json.loads(path.read_text())["starts"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return starts if isinstance(starts, list) else []


def software() -> dict[str, Any]:
    """Versions and hardware of this process."""
    return {
        "dvg": __version__,
        "commit": commit(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "host": platform.node(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "ray_job": os.environ.get("RAY_SUBMISSION_ID"),
    }


def commit() -> str | None:
    """The commit of this source tree, with ``+`` when it has changes; None outside a repository."""
    root = pathlib.Path(__file__).parents[1]
    head = _git(root, "rev-parse", "HEAD")
    return head and head + ("+" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")


def _git(root: pathlib.Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
