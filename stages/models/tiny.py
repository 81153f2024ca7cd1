"""Tiny random checkpoints of every catalogue model, in exactly the format of the real ones."""

from __future__ import annotations

from pathlib import Path

from orchestrator.geometry import model


def build(name: str, folder: Path) -> None:
    """Write the checkpoint; the same name always gives the same weights.

    Raises ValueError for an unknown model, or for a folder that exists and is not empty.
    """
    family = model(name).family
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"folder {str(folder)!r} is not empty: a checkpoint is written to a new or an empty folder")
    _quiet()
    if family == "hunyuan":
        from stages.models import tiny_hunyuan

        tiny_hunyuan.build(name, folder)
    elif family == "hunyuan15":
        from stages.models import tiny_hunyuan15

        tiny_hunyuan15.build(name, folder)
    else:
        from stages.models import tiny_wan

        tiny_wan.build(name, folder)


def _quiet() -> None:
    """No progress bars and notes of the libraries over files of a few kilobytes."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    for logging in (diffusers_logging, transformers_logging):
        logging.set_verbosity_error()
