"""What every benchmark records beside its figures."""

from __future__ import annotations

import datetime
import json
import os
import pathlib
import platform
import subprocess
from typing import Any

import torch

ROOT = pathlib.Path(__file__).parents[2]


def facts() -> dict[str, Any]:
    """Commit, date, software and hardware of this run."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return {
        "commit": commit.stdout.strip() or None,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores",
        "python": platform.python_version(),
    }


def save(path: pathlib.Path, name: str, figures: dict[str, Any]) -> None:
    """Write the figures with :func:`facts` as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"benchmark": name, **facts(), **figures}, indent=2) + "\n")
