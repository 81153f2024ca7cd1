"""From what an arm says to what it means: model defaults filled in, every rule checked before any device is touched."""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from orchestrator import actions, geometry
from orchestrator.actions import DvgConfig
from orchestrator.arms import Arm
from orchestrator.mistakes import from_validation
from orchestrator.types import VideoShape
from stages.models import embedded

DEFAULT_BUDGET = 0.5


def resolve_arm(name: str, settings: Mapping[str, Any], mistakes: list[str]) -> Arm | None:
    """The arm, or None with what is wrong appended to ``mistakes``."""
    before = len(mistakes)
    model = _model(name, settings, mistakes)
    config = _dvg(name, settings, model, mistakes)
    if model is None or config is None:
        return None
    shape = _shape(settings, model)
    mistakes.extend(f"arm {name}: {line}" for line in model.shape_mistakes(shape))
    planner = settings.get("planner") or "dvg"
    budget = _budget(settings, planner)
    steps = settings.get("steps") or model.default_steps
    weights = settings.get("weights")
    _check_weights(name, model.name, weights, mistakes)
    if len(mistakes) == before and planner == "dvg":
        _check_budget(name, model, shape, steps, budget, config, mistakes)
    if len(mistakes) > before:
        return None
    guidance = settings.get("guidance")
    return Arm(
        name=name,
        model=model.name,
        weights=weights,
        revision=revision(weights),
        planner=planner,
        budget=budget,
        num_steps=steps,
        guidance=model.default_guidance if guidance is None else guidance,
        negative_prompt=settings.get("negative") or "",
        num_frames=shape.num_frames,
        height=shape.height,
        width=shape.width,
        fps=shape.fps,
        dvg=config,
    )


def _model(name: str, settings: Mapping[str, Any], mistakes: list[str]) -> geometry.ModelGeometry | None:
    try:
        return geometry.model(settings.get("model") or embedded.NAME)
    except ValueError as error:
        mistakes.append(f"arm {name}: {error}")
        return None


def _dvg(name: str, settings: Mapping[str, Any], model: geometry.ModelGeometry | None, mistakes: list[str]) -> DvgConfig | None:
    overrides = settings.get("dvg") or {}
    try:
        return DvgConfig.for_model(model, overrides) if model else DvgConfig.model_validate(overrides)
    except ValidationError as error:
        mistakes.extend(from_validation(error, DvgConfig, f"arm {name}: dvg"))
        return None


def _shape(settings: Mapping[str, Any], model: geometry.ModelGeometry) -> VideoShape:
    default = model.default_shape
    return VideoShape(
        num_frames=settings.get("frames") or default.num_frames,
        height=settings.get("height") or default.height,
        width=settings.get("width") or default.width,
        fps=settings.get("fps") or default.fps,
    )


def _budget(settings: Mapping[str, Any], planner: str) -> float | None:
    if planner == "full":
        return None
    return DEFAULT_BUDGET if settings.get("budget") is None else float(settings["budget"])


def _check_budget(
    name: str,
    model: geometry.ModelGeometry,
    shape: VideoShape,
    steps: int,
    budget: float | None,
    config: DvgConfig,
    mistakes: list[str],
) -> None:
    """A budget no action meets is refused here, not after the sketch."""
    if budget is None or not 0 < budget <= 1:
        mistakes.append(f"arm {name}: budget must be in (0, 1], got {budget}")
        return
    try:
        actions.action_list(model, shape, steps, budget, config)
    except ValueError as error:
        mistakes.append(f"arm {name}: {error}")


def _check_weights(name: str, model: str, weights: str | None, mistakes: list[str]) -> None:
    if model not in geometry.RUNNABLE:
        mistakes.append(
            f"arm {name}: model {model!r} can be planned but not run yet; models that run: {', '.join(geometry.RUNNABLE)}"
        )
    elif weights is None and model != embedded.NAME:
        mistakes.append(f"arm {name}: model {model!r} ships no weights; set weights to a folder in diffusers format")
    elif weights is not None and not (pathlib.Path(weights) / "model_index.json").is_file():
        mistakes.append(f"arm {name}: weights {weights!r} must be a folder in diffusers format (it has no model_index.json)")


def revision(weights: str | None) -> str:
    """Fingerprint of what ``weights`` names: file contents for the embedded model, names and sizes for a local folder."""
    folder = embedded.FOLDER if weights is None else pathlib.Path(weights)
    if not folder.is_dir():
        return ""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.relative_to(folder).as_posix().encode())
        digest.update(path.read_bytes() if weights is None else str(path.stat().st_size).encode())
    return digest.hexdigest()[:12]
