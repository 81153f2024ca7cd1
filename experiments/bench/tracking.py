"""What it costs to bring a run into MLflow: prompts as runs and as steps, and the same again, which must add nothing.

``python -m experiments.bench.tracking [--num 5000] [--layouts steps runs] [--uri URI] [--out FILE.json]``

Records are made up, with quality figures and without videos; the store is an sqlite file of its own unless ``--uri`` says so.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from experiments.bench.common import save
from experiments.tracking import mirror
from orchestrator.ledger import Ledger
from orchestrator.paths import RunPaths
from orchestrator.types import Record

ARMS = {"full": 1.0, "dvg-50": 0.5, "dvg-25": 0.25, "dvg-12": 0.125, "dvg-6": 0.0625}
"""Name to density."""
LIMITS_S = {"steps": 60.0, "runs": 110.0}
"""For 5,000 records into sqlite."""
START_S = 1767323045


def records(num: int) -> list[Record]:
    """Of every arm, prompt after prompt, four seconds apart."""
    arms = list(ARMS)
    return [_record(arms[k % len(arms)], k // len(arms), START_S + 4 * k) for k in range(num)]


def _record(arm: str, number: int, time_s: int) -> Record:
    prompt, density = f"prompt{number:04d}", ARMS[arm]
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(time_s))
    key = hashlib.sha256(f"{arm}/{prompt}".encode()).hexdigest()
    known: dict[str, Any] = {
        "item_key": key[:16],
        "arm": arm,
        "prompt_id": prompt,
        "prompt": f"{prompt}: a large red circle bounces",
        "seed": 0,
        "model": "wan-mini",
        "planner": "dvg",
        "num_steps": 30,
        "guidance": 1.0,
        "num_frames": 41,
        "height": 144,
        "width": 144,
        "fps": 16,
        "budget": density,
        "density": density,
        "density_executed": density,
        "tokens_full": 891,
        "action": "s0.70-f8",
        "s2": 0.7,
        "f2": 8,
        "why": "more detail (0.42) than motion (0.17)",
        "neutral_demand": False,
        "degree": 1,
        "attempts": 1,
        "spatial_demand": 0.42,
        "temporal_demand": 0.17,
        "spatial_weight": 0.71,
        "temporal_weight": 0.29,
        "device": "cpu",
        "stage_grids": "4x8x8|8x14x14|8x18x18|11x18x18",
        "stage_s": "0.3|0.6|1.2|2.1",
        "host": "node-0",
        "num_bytes": 1,
        "text_s": 0.05,
        "sketch_s": 0.3,
        "refine_s": 3.9,
        "denoise_s": 8.4 * density,
        "decode_s": 0.6,
        "encode_s": 0.1,
        "latency_s": 5.5 + number / 1000,
        "device_s": 4.9,
        "video": f"videos/{arm}/{prompt}/0.mp4",
        "sha256": key,
        "finished_at": stamp,
        "predicted_s": 4.0,
        "cost_label": "calibrated",
        "cost_device": "CPU",
        "solver": "unipc",
    }
    return Record(**{f.name: known[f.name] for f in dataclasses.fields(Record) if f.name in known})


def lay_out(root: Path, found: Sequence[Record], layout: str) -> RunPaths:
    """A run folder as a sweep leaves it, but for the videos."""
    paths = RunPaths(root)
    prompts = {r.prompt_id: {"id": r.prompt_id, "prompt": r.prompt, "seed": r.seed} for r in found}
    shape = {name: getattr(found[0], name) for name in ("model", "num_frames", "height", "width", "fps", "num_steps")}
    spec = {
        "name": f"bench-{layout}",
        "reference": "full",
        "arms": [{"name": arm, "planner": "dvg", "budget": density, **shape} for arm, density in ARMS.items()],
        "prompts": list(prompts.values()),
        "tracking": {"per_prompt": layout, "videos": "none", "strips": "none"},
    }
    paths.config.write_text(yaml.safe_dump(spec))
    paths.records.write_bytes(Ledger.lines(found))
    paths.quality.write_text("".join(json.dumps(_quality(record)) + "\n" for record in found))
    return paths


def _quality(record: Record) -> dict[str, Any]:
    names = ("item_key", "arm", "prompt_id", "seed", "sha256")
    figures = {"psnr": 20.0 + 10 * record.density, "ssim": 0.8 + 0.1 * record.density, "flicker": 0.98, "motion": 0.2}
    return {name: getattr(record, name) for name in names} | {"reference_arm": "full", "reference_sha256": "0", **figures}


def measure(layout: str, num: int, uri: str | None) -> dict[str, Any]:
    """Seconds of the first mirror and of the second. Raises RuntimeError where the second adds or changes anything."""
    with tempfile.TemporaryDirectory(prefix="dvg-tracking-") as folder:
        paths = lay_out(Path(folder), records(num), layout)
        _make_database(uri or paths.mlflow_uri)
        first, again = _timed(paths, uri), _timed(paths, uri)
        if again["added"] or again["updated"] or first["added"] != num:
            raise RuntimeError(f"{layout}: {first['added']} of {num} added at first, {again} the second time")
        limit_s = LIMITS_S[layout] * num / 5000
        return {"records": num, "first": first, "again": again, "limit_s": limit_s, "within": first["wall_s"] <= limit_s}


def _make_database(uri: str) -> None:
    """MLflow lays out a new database once, in seconds that no record costs."""
    from mlflow import MlflowClient

    MlflowClient(tracking_uri=uri).search_experiments()


def _timed(paths: RunPaths, uri: str | None) -> dict[str, Any]:
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    changes = mirror(Ledger(paths), uri or paths.mlflow_uri)
    seconds = {"wall_s": time.perf_counter() - wall_s, "cpu_s": time.process_time() - cpu_s}
    return {"added": changes.num_added, "updated": changes.num_updated} | {
        name: round(value, 2) for name, value in seconds.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num", type=int, default=5000)
    parser.add_argument("--layouts", nargs="+", choices=tuple(LIMITS_S), default=list(LIMITS_S))
    parser.add_argument("--uri")
    parser.add_argument("--out", type=Path, default=Path("experiments/results/tracking_cpu_202611.json"))
    options = parser.parse_args()
    figures = {layout: measure(layout, options.num, options.uri) for layout in options.layouts}
    save(options.out, "tracking", {"layouts": figures, "load_average": os.getloadavg()[0], "store": options.uri or "sqlite"})
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
