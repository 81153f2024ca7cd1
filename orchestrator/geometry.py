"""The geometry of a model by its name. What a geometry is and which ones there are live in the modules re-exported here."""

from __future__ import annotations

import difflib

from orchestrator.catalogue import MODELS
from orchestrator.model_geometry import (
    DVG_SHIFT_PATTERN,
    NUM_STAGES,
    LevelSpacing,
    ModelGeometry,
    Shifts,
    SolverName,
    shifted_sigma,
    shifts_from,
)

__all__ = [
    "DVG_SHIFT_PATTERN",
    "MODELS",
    "NUM_STAGES",
    "LevelSpacing",
    "ModelGeometry",
    "Shifts",
    "SolverName",
    "model",
    "shifted_sigma",
    "shifts_from",
]


def model(name: str) -> ModelGeometry:
    """Geometry of a model by name. Raises ValueError with the choices and the nearest name."""
    if name in MODELS:
        return MODELS[name]
    nearest = difflib.get_close_matches(name.lower(), MODELS, n=1, cutoff=0.4)
    hint = f", did you mean {nearest[0]!r}?" if nearest else "."
    raise ValueError(f"model {name!r} is not known{hint} Choices: {', '.join(MODELS)}")
