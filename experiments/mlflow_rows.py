"""What MLflow is told, as plain data: stable metric names (docs/mlflow.md), typed params, tags. Pure; no MLflow import."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any, Literal

import numpy as np

from experiments.summary import ArmStats
from orchestrator.attended import from_text
from orchestrator.types import Record

METRICS: dict[str, str] = {
    "density": "density",
    "density_executed": "density_executed",
    "latency.total_s": "latency_s",
    "latency.text_s": "text_s",
    "latency.sketch_s": "sketch_s",
    "latency.refine_s": "refine_s",
    "latency.denoise_s": "denoise_s",
    "predicted.denoise_s": "predicted_s",
    "latency.decode_s": "decode_s",
    "latency.restore_s": "restore_s",
    "latency.encode_s": "encode_s",
    "device_s": "device_s",
    "demand.spatial": "spatial_demand",
    "demand.temporal": "temporal_demand",
    "tokens_full": "tokens_full",
    "attempts": "attempts",
    "degree": "degree",
    "budget": "budget",
    "num_steps": "num_steps",
    "tflops": "tflops",
    "attention.sparsity": "sparsity",
    "attention.recall": "recall",
    "attention.choose_s": "choose_s",
    "attention.attend_s": "attend_s",
}
"""Metric name to field of ``Record``. Prompt runs carry the value; arm runs the mean under the same name."""

SPREAD = ("density", "latency.", "device_s", "demand.", "quality.")
"""Beginnings of the names that arm runs carry percentiles of."""

QUALITY = "quality."
"""Before the name of every number that a row of ``quality.jsonl`` holds."""
VBENCH = "vbench"
STEP = "prompt/"
"""Before a prompt run's metric names where a prompt is a step of its arm's run."""

COMPARED = ("reference_arm", "reference_sha256")
"""The video that another was compared with."""
IDENTITY = frozenset({"item_key", "arm", "prompt_id", "seed", "sha256", *COMPARED})
"""What of a quality row says whose it is."""

PARAMS = (
    *("prompt", "prompt_id", "seed", "arm", "model", "planner", "budget", "target", "action", "s2", "f2", "num_steps"),
    *("guidance", "num_frames", "height", "width", "fps", "stage_grids", "solver", "accelerators", "reconstructed"),
)
TAGS = (
    *("why", "stage_s", "image", "degree", "stage_degrees", "sizing", "device", "host", "sha256", "neutral_demand"),
    *("cost_label", "cost_device", "accelerators", "reconstructed", "restored_by"),
)

ATTENTION_STEP = "attention.step."
"""Before what attention kept in each solver step, which is the metric's step: in prompt runs alone."""

MAX_PARAM_CHARS, MAX_TAG_CHARS, MAX_PARAMS = 6000, 8000, 100
"""MLflow's limits for one run."""

ALL_VIDEOS_UP_TO = 50
"""Items of a run whose videos are all uploaded under the ``auto`` policy; above, a sample is."""

SAMPLE_ONE_IN = 10

RUNS_UP_TO = 1000
"""Prompts and seeds that get runs of their own under ``per_prompt: auto``; above, they are steps."""

VIDEO_POLICIES = ("auto", "none", "sample", "all")
Layout = Literal["runs", "steps"]


def layout_of(policy: str, num_prompts: int) -> Layout:
    """How ``num_prompts`` prompts and seeds of each arm are kept. Raises ValueError for an unknown policy."""
    if policy not in ("auto", "runs", "steps"):
        raise ValueError(f"tracking.per_prompt is {policy!r}; choices: auto, runs, steps")
    return "steps" if policy == "steps" or (policy == "auto" and num_prompts > RUNS_UP_TO) else "runs"


def prompt_metrics(record: Record, quality: Mapping[str, Any] | None) -> dict[str, float]:
    """Finite numbers only: what was not measured is absent."""
    return _finite({name: getattr(record, field) for name, field in METRICS.items()}) | quality_metrics(quality or {})


def attention_steps(record: Record) -> list[tuple[str, float, int]]:
    """Name, value and solver step of what attention kept; nothing where nobody attended otherwise."""
    return [
        (ATTENTION_STEP + name, value, step.step)
        for step in from_text(record.attended)
        for name, value in _finite({key: value for key, value in vars(step).items() if key != "step"}).items()
    ]


def quality_metrics(row: Mapping[str, Any]) -> dict[str, float]:
    """Every number of a quality row, whichever metrics it holds."""
    numbers = {name: value for name, value in row.items() if name not in IDENTITY and _is_number(value)}
    return _finite({QUALITY + name: value for name, value in numbers.items()})


def vbench_metrics(found: Mapping[str, Mapping[str, Mapping[str, float]]], totals: Any, arm: str) -> dict[str, float]:
    """An arm's scores by suite: ``vbench.<dimension>``, of other suites ``vbench.<suite>.<dimension>``, and their totals.

    ``totals(raw, suite)`` is :func:`experiments.vbench.score.totals`. A total that is not there yet is absent.
    """
    values: dict[str, float | None] = {}
    for suite, arms in found.items():
        if arm in arms:
            prefix = VBENCH if suite == VBENCH else f"{VBENCH}.{suite.removeprefix('vbench-')}"
            total = totals(arms[arm], suite)
            values |= {f"{prefix}.{name}": score for name, score in arms[arm].items()}
            values |= {f"{prefix}.{name}": getattr(total, name, None) for name in ("quality", "semantic", "i2v", "total")}
    return _finite(values)


def prompt_params(record: Record) -> dict[str, str]:
    """What the item and its decision fix, so that logging them again never contradicts what is there."""
    return _params({name: getattr(record, name) for name in PARAMS})


def failure_params(failure: Mapping[str, Any]) -> dict[str, str]:
    """What is known of an item that has no record; the same values that a record of it would give."""
    names = ("prompt", "prompt_id", "seed", "arm")
    return _params({name: failure[name] for name in names if name in failure})


def prompt_tags(record: Record, quality: Mapping[str, Any] | None = None) -> dict[str, str]:
    """With what its quality row says that it was compared with."""
    tags = {name: as_text(getattr(record, name), MAX_TAG_CHARS) for name in TAGS}
    tags |= {name: as_text((quality or {}).get(name), MAX_TAG_CHARS) for name in COMPARED}
    tags = {name: text for name, text in tags.items() if text}
    return tags | {"mlflow.note.content": as_text(f"{record.prompt}\n\n{record.why}", MAX_TAG_CHARS)}


def arm_metrics(records: Sequence[Record], quality: Mapping[str, Mapping[str, Any]], stats: ArmStats) -> dict[str, float]:
    """Means under the prompt runs' names, so that one chart works at both levels, and 50th and 95th percentiles (``SPREAD``).

    ``quality`` by item key.
    """
    columns: dict[str, list[float]] = {}
    for record in records:
        for name, value in prompt_metrics(record, quality.get(record.item_key)).items():
            columns.setdefault(name, []).append(value)
    values: dict[str, float | None] = {}
    for name, column in columns.items():
        p50, p95 = np.percentile(column, (50, 95))
        values[name] = float(np.mean(column))
        if name.startswith(SPREAD):
            values |= {f"{name}.p50": float(p50), f"{name}.p95": float(p95)}
    extra = asdict(stats)
    values |= {n: extra[n] for n in ("num_videos", "num_failed", "speedup", "videos_per_device_hour", "busy_s")}
    return _finite(values)


def arm_params(settings: Mapping[str, Any]) -> dict[str, str]:
    """An arm's settings flattened to dotted names."""
    return dict(list(_params(dict(_flat(settings))).items())[:MAX_PARAMS])


def arm_settings(spec: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Settings by arm name, whether the spec lists its arms or maps names to them."""
    arms = spec.get("arms") or {}
    return dict(arms) if isinstance(arms, Mapping) else {arm["name"]: arm for arm in arms}


def _flat(value: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def _params(values: Mapping[str, Any]) -> dict[str, str]:
    """As typed scalars: numbers and booleans as JSON writes them, lists as JSON, texts as they are; None is no param."""
    texts = {name: value if isinstance(value, str) else json.dumps(value, default=str) for name, value in values.items()}
    return {name: as_text(text, MAX_PARAM_CHARS) for name, text in texts.items() if values[name] not in (None, "")}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _finite(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if value is not None and math.isfinite(value)}


def as_text(value: Any, max_chars: int) -> str:
    text = "" if value is None else str(value)
    return text if len(text) <= max_chars else text[: max_chars - 1] + "…"


def milliseconds(finished_at: str) -> int:
    """Unix time of an ISO 8601 stamp. A run's times are the video's own, so mirroring late or twice changes nothing."""
    return int(datetime.fromisoformat(finished_at).timestamp() * 1000)


def chosen_pairs(policy: str | int, pairs: Iterable[tuple[str, int]], num_arms: int) -> frozenset[tuple[str, int]]:
    """The (prompt id, seed) pairs whose videos, or strips, MLflow gets: the same for every arm, and the same on every call.

    A number is so many pairs, a sample one in ten, at least one. Raises ValueError for an unknown policy.
    """
    if policy not in VIDEO_POLICIES and (isinstance(policy, str) or policy < 0):
        raise ValueError(f"tracking.videos is {policy!r}; choices: {', '.join(VIDEO_POLICIES)}, or a number of prompts")
    ranked = sorted(set(pairs), key=lambda pair: hashlib.sha256(f"{pair[0]}:{pair[1]}".encode()).digest())
    if policy == "auto":
        policy = "all" if len(ranked) * max(num_arms, 1) <= ALL_VIDEOS_UP_TO else "sample"
    counts = {"none": 0, "all": len(ranked), "sample": math.ceil(len(ranked) / SAMPLE_ONE_IN)}
    return frozenset(ranked[: policy if isinstance(policy, int) else counts[policy]])
