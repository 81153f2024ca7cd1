"""The tiny Wan checkpoints, and what their prompts may say."""

from __future__ import annotations

from pathlib import Path

from orchestrator.geometry import model
from stages.models.tiny_wan import TEXT_DIM, WORDS
from tests import checkpoints

__all__ = ["GEOMETRY", "TEXT_DIM", "WORDS", "checkpoint"]

GEOMETRY = model("wan-mini")


def checkpoint(name: str = GEOMETRY.name) -> Path:
    """The folder of a tiny checkpoint of the Wan model ``name``."""
    return checkpoints.checkpoint(name)
