"""Tiny random checkpoints of every catalogue model, in exactly the format of the real ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from orchestrator.geometry import ModelGeometry, model


def build(name: str, folder: Path) -> None:
    """Write the checkpoint; the same name always gives the same weights.

    Raises ValueError for an unknown model, or for a folder that exists and is not empty.
    """
    geometry = model(name)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"folder {str(folder)!r} is not empty: a checkpoint is written to a new or an empty folder")
    import torch

    _quiet()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        _pipeline(geometry).save_pretrained(folder)


def _pipeline(geometry: ModelGeometry) -> Any:
    if geometry.family == "hunyuan":
        from stages.models import tiny_hunyuan

        return tiny_hunyuan.pipeline(geometry)
    if geometry.family == "hunyuan15":
        from stages.models import tiny_hunyuan15

        return tiny_hunyuan15.pipeline(geometry)
    from stages.models import tiny_wan

    return tiny_wan.pipeline(geometry)


def _quiet() -> None:
    """No progress bars and notes of the libraries over files of a few kilobytes."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    for logging in (diffusers_logging, transformers_logging):
        logging.set_verbosity_error()
