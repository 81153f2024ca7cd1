"""What MLflow is told, as plain data: stable metric names, params, tags. Pure; no MLflow import."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from functools import cache
from typing import Any

import numpy as np

from experiments.summary import ArmStats
from orchestrator.manifest import software
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
    "latency.encode_s": "encode_s",
    "device_s": "device_s",
    "demand.spatial": "spatial_demand",
    "demand.temporal": "temporal_demand",
    "tokens_full": "tokens_full",
    "attempts": "attempts",
    "degree": "degree",
}
"""Metric name to field of ``Record``. Prompt runs carry the value; arm runs the mean under the same name, ``.p50``, ``.p95``."""

QUALITY_METRICS: dict[str, str] = {"quality.psnr": "psnr", "quality.ssim": "ssim"}
"""Metric name to column of a quality row."""

PARAMS = (
    *("prompt", "prompt_id", "seed", "arm", "model", "planner", "budget", "target", "action", "s2", "f2", "num_steps"),
    *("guidance", "num_frames", "height", "width", "fps", "stage_grids", "solver"),
)
TAGS = (
    *("why", "stage_s", "image", "degree", "stage_degrees", "sizing", "device", "host", "sha256", "neutral_demand"),
    *("cost_label", "cost_device"),
)

MAX_PARAM_CHARS, MAX_TAG_CHARS, MAX_PARAMS = 6000, 8000, 100
"""MLflow's limits for one run."""

ALL_VIDEOS_UP_TO = 50
"""Items of a run whose videos are all uploaded under the ``auto`` policy; above, a sample is."""

SAMPLE_ONE_IN = 10

VIDEO_POLICIES = ("auto", "none", "sample", "all")


def prompt_metrics(record: Record, quality: Mapping[str, Any] | None) -> dict[str, float]:
    """Finite numbers only: what was not measured is absent."""
    values = {name: getattr(record, field) for name, field in METRICS.items()}
    values |= {name: (quality or {}).get(column) for name, column in QUALITY_METRICS.items()}
    return _finite(values)


def prompt_params(record: Record) -> dict[str, str]:
    """What the item and its decision fix, so that logging them again never contradicts what is there."""
    return {name: as_text(getattr(record, name), MAX_PARAM_CHARS) for name in PARAMS}


def failure_params(failure: Mapping[str, Any]) -> dict[str, str]:
    """What is known of an item that has no record; the same values that a record of it would give."""
    names = ("prompt", "prompt_id", "seed", "arm")
    return {name: as_text(failure[name], MAX_PARAM_CHARS) for name in names if name in failure}


def prompt_tags(record: Record) -> dict[str, str]:
    tags = {name: as_text(getattr(record, name), MAX_TAG_CHARS) for name in TAGS}
    return tags | {"mlflow.note.content": as_text(f"{record.prompt}\n\n{record.why}", MAX_TAG_CHARS)}


def arm_metrics(records: Sequence[Record], quality: Sequence[Mapping[str, Any]], stats: ArmStats) -> dict[str, float]:
    """Means under the prompt runs' names, so that one chart works at both levels, and the 50th and 95th percentiles."""
    joined = {row["item_key"]: row for row in quality}
    rows = [prompt_metrics(record, joined.get(record.item_key)) for record in records]
    values: dict[str, float | None] = {}
    for name in (*METRICS, *QUALITY_METRICS):
        column = [row[name] for row in rows if name in row]
        if column:
            p50, p95 = np.percentile(column, (50, 95))
            values |= {name: float(np.mean(column)), f"{name}.p50": float(p50), f"{name}.p95": float(p95)}
    extra = asdict(stats)
    values |= {n: extra[n] for n in ("num_videos", "num_failed", "speedup", "videos_per_device_hour", "busy_s")}
    return _finite(values)


def arm_params(settings: Mapping[str, Any]) -> dict[str, str]:
    """An arm's settings flattened to dotted names."""
    return dict(list(_flat(settings))[:MAX_PARAMS])


def arm_settings(spec: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Settings by arm name, whether the spec lists its arms or maps names to them."""
    arms = spec.get("arms") or {}
    return dict(arms) if isinstance(arms, Mapping) else {arm["name"]: arm for arm in arms}


def _flat(value: Any, prefix: str = "") -> Iterable[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, as_text(value, MAX_PARAM_CHARS)


def _finite(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if value is not None and math.isfinite(value)}


def as_text(value: Any, max_chars: int) -> str:
    text = "" if value is None else str(value)
    return text if len(text) <= max_chars else text[: max_chars - 1] + "…"


def milliseconds(finished_at: str) -> int:
    """Unix time of an ISO 8601 stamp. A run's times are the video's own, so mirroring late or twice changes nothing."""
    return int(datetime.fromisoformat(finished_at).timestamp() * 1000)


def videos_to_upload(policy: str, pairs: Iterable[tuple[str, int]], num_arms: int) -> frozenset[tuple[str, int]]:
    """The (prompt id, seed) pairs whose videos MLflow gets: the same for every arm, and the same on every call.

    A sample is one pair in ten, at least one. Raises ValueError for an unknown policy.
    """
    if policy not in VIDEO_POLICIES:
        raise ValueError(f"tracking.videos is {policy!r}; choices: {', '.join(VIDEO_POLICIES)}")
    ranked = sorted(set(pairs), key=lambda pair: hashlib.sha256(f"{pair[0]}:{pair[1]}".encode()).digest())
    if policy == "auto":
        policy = "all" if len(ranked) * max(num_arms, 1) <= ALL_VIDEOS_UP_TO else "sample"
    counts = {"none": 0, "all": len(ranked), "sample": math.ceil(len(ranked) / SAMPLE_ONE_IN)}
    return frozenset(ranked[: counts[policy]])


@cache
def software_tags() -> dict[str, str]:
    """The source commit, when this is a git checkout, and the versions of the packages that shape a result."""
    tags = {"mlflow.source.name": "dvg", "mlflow.source.type": "LOCAL"}
    made = software()
    tags |= {f"version.{name}": version for name, version in made["packages"].items() if version}
    tags["version.dvg-orchestrator"] = made["dvg"]
    return tags | ({"mlflow.source.git.commit": made["commit"]} if made["commit"] else {})
