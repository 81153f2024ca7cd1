"""Tiny Wan checkpoints with random weights, each made once and shared by all tests of a process."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from orchestrator.geometry import model
from stages.models.tiny_wan import TEXT_DIM, WORDS, build

__all__ = ["GEOMETRY", "TEXT_DIM", "WORDS", "checkpoint"]

GEOMETRY = model("wan-mini")


@functools.cache
def checkpoint(name: str = "wan-mini") -> Path:
    """The folder of a tiny checkpoint of the Wan model ``name``."""
    return build(name, Path(tempfile.mkdtemp(prefix=f"tiny-{name}-")))
