"""Which adapter runs which family."""

from __future__ import annotations

from pathlib import Path

from orchestrator.geometry import ModelGeometry
from stages.models.base import Loading, Model


def load_family(geometry: ModelGeometry, folder: Path, loading: Loading) -> Model:
    """The adapter of ``geometry.family`` over the checkpoint in ``folder``. Raises ValueError if they do not fit."""
    if geometry.family == "hunyuan":
        from stages.models.hunyuan import load_hunyuan

        return load_hunyuan(geometry, folder, loading)
    if geometry.family == "hunyuan15":
        from stages.models.hunyuan15 import load_hunyuan15

        return load_hunyuan15(geometry, folder, loading)
    from stages.models.wan import load_wan

    return load_wan(geometry, folder, loading)
