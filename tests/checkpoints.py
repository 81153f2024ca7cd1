"""Tiny checkpoints of any model, built once per process and shared by its tests: copy one before changing it."""

from __future__ import annotations

import functools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stages.models import tiny


@functools.cache
def checkpoint(name: str) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="tiny-")) / name
    tiny.build(name, folder)
    return folder


def copied(name: str, folder: Path) -> Path:
    """A copy of one's own."""
    return Path(shutil.copytree(checkpoint(name), folder / name))


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def first_frame(path: Path, height: int = 60, width: int = 100) -> Path:
    """A picture with an edge and a ramp."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width)
    pixels[height // 3 :, width // 2 :, 1] = 200
    Image.fromarray(pixels).save(path)
    return path
