"""Where a model's weights are: a folder in diffusers format, or a repository of the hub (its cache, or a download)."""

from __future__ import annotations

from pathlib import Path

from orchestrator.geometry import ModelGeometry


def find_weights(geometry: ModelGeometry, weights: str | None) -> Path:
    """The folder that ``weights`` names. Raises ValueError, with what to do, if there is none."""
    if weights is None:
        raise ValueError(f"model {geometry.name!r} needs weights: a folder in diffusers format or a repository id")
    folder = Path(weights)
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"no model at {weights!r}: a folder in diffusers format has a model_index.json")
    return folder
