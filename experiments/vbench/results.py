"""VBench's result files: ``{dimension: [score, [{video_path, video_results}]]}``, or plain ``{dimension: score}``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.vbench.normalise import I2V, T2V
from orchestrator.mistakes import ConfigError, nearest
from orchestrator.paths import RunPaths

ENDING = "_eval_results.json"
KNOWN = tuple(dict.fromkeys((*T2V.dimensions, *I2V.dimensions)))
TABLE_NAMES = {
    "video_text_camera_motion": "camera_motion",
    "video_image_subject_consistency": "i2v_subject",
    "video_image_background_consistency": "i2v_background",
    "i2v_subject_consistency": "i2v_subject",
    "i2v_background_consistency": "i2v_background",
}
"""What VBench's own tables call them."""


def load_all(run_root: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Raw scores of a run by suite, arm and dimension; empty without any. Raises ConfigError naming a file that is wrong."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for path in sorted(RunPaths(run_root).vbench.glob(f"*/*/*{ENDING}")):
        suite, arm = path.parent.parent.name, path.parent.name
        found.setdefault(suite, {})[arm] = load_scores(path)
    return found


def load_scores(path: Path) -> dict[str, float]:
    """Raw score of each dimension of one file. Raises ConfigError with every mistake of it."""
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError([f"{path} cannot be read: {error.strerror or error}"]) from error
    except ValueError as error:
        raise ConfigError([f"{path} is not JSON: {error}"]) from error
    return scores_of(data, str(path))


def scores_of(data: Any, where: str) -> dict[str, float]:
    """The scores in the data of such a file, under VBench's names of the dimensions."""
    if not isinstance(data, Mapping) or not data:
        raise ConfigError([f"{where} must be {{dimension: [score, [...]]}} or {{dimension: score}}, not {_told(data)}"])
    mistakes: list[str] = []
    scores: dict[str, float] = {}
    for name, value in data.items():
        dimension = dimension_of(str(name))
        if dimension is None:
            mistakes.append(f"{where}: unknown dimension {name!r}{nearest(str(name), KNOWN)}; choices: {', '.join(KNOWN)}")
        elif dimension in scores:
            mistakes.append(f"{where}: dimension {dimension!r} is there twice")
        else:
            scores[dimension] = _score(value, f"{where}: {name}", mistakes)
    if mistakes:
        raise ConfigError(mistakes)
    return scores


def dimension_of(name: str) -> str | None:
    """VBench's name of a dimension written with spaces, dashes or underscores, or as in its tables."""
    plain = "_".join(name.lower().replace("-", " ").replace("_", " ").split())
    plain = TABLE_NAMES.get(plain, plain)
    return plain if plain in KNOWN else None


def _score(value: Any, where: str, mistakes: list[str]) -> float:
    """Booleans are no scores; beyond 1 are percentages, which VBench's own files never hold."""
    score = value[0] if isinstance(value, Sequence) and not isinstance(value, str) and value else value
    if isinstance(score, bool) or not isinstance(score, int | float):
        mistakes.append(f"{where} must be a score or [score, [...]] (got {_told(value)})")
    elif not math.isfinite(score) or abs(score) > 1:
        mistakes.append(f"{where} must be a raw score from -1 to 1 (got {score!r}), as VBench's files hold them: no percentages")
    else:
        return float(score)
    return math.nan


def _told(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
