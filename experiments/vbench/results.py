"""VBench's result files: ``{dimension: [score, [{video_path, video_results}]]}``, or plain ``{dimension: score}``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.vbench.normalise import I2V, T2V
from orchestrator.mistakes import ConfigError, nearest
from orchestrator.paths import RunPaths

ENDING = "_eval_results.json"
ABOUT = "_evaluation.json"
"""Beside a file of scores: what they are of."""
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


@dataclass(frozen=True)
class Coverage:
    """Of how many videos a score is, and how many its dimension asks for."""

    measured: int
    asked: int

    @property
    def is_partial(self) -> bool:
        return self.measured < self.asked

    def __str__(self) -> str:
        return f"{self.measured:,} of {self.asked:,} videos"


def load_coverage(path: Path) -> dict[str, Coverage]:
    """By dimension, of a file of scores that ``dvg evaluate`` wrote; empty for others. Raises ConfigError for a torn file."""
    beside = path.with_name(path.name.removesuffix(ENDING) + ABOUT)
    if not path.name.endswith(ENDING) or not beside.is_file():
        return {}
    try:
        rows = json.loads(beside.read_text(encoding="utf-8"))["dimensions"]
        return {str(name): _coverage(row) for name, row in rows.items() if row["score"] is not None}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        told = f"{beside} cannot be read ({error}), so nobody knows of how many videos the scores are"
        raise ConfigError([f"{told}; `dvg evaluate` writes it anew"]) from error


def _coverage(row: Mapping[str, Any]) -> Coverage:
    """What VBench leaves out by its own rule was measured; what its filter could not judge may be missing."""
    measured = int(row["num_measured"]) + int(row["num_left_out"])
    return Coverage(measured, max(int(row["num_videos"]), measured + len(row["failed"])) + int(row["num_missing"]))


def load_all_coverage(run_root: Path) -> dict[str, dict[str, dict[str, Coverage]]]:
    """:func:`load_coverage` of everything that :func:`load_all` reads."""
    found: dict[str, dict[str, dict[str, Coverage]]] = {}
    for path in sorted(RunPaths(run_root).vbench.glob(f"*/*/*{ENDING}")):
        found.setdefault(path.parent.parent.name, {})[path.parent.name] = load_coverage(path)
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
