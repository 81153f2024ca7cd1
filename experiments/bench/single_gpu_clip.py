"""One complete clip through the engine, beside the sum of the medians of its parts."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from experiments.bench import single_gpu_models
from experiments.bench.floors import event_s
from experiments.bench.single_gpu_measure import (
    CONTROL,
    LARGE,
    MEDIUM,
    SMALL,
    latent_of,
    measured,
    measured_and_told,
    one_forward,
    our_decode,
    passages,
    planner_of,
    tell,
)
from experiments.bench.single_gpu_models import SUBJECTS
from experiments.bench.single_gpu_rows import Clock, by_flops
from orchestrator.types import Grid
from stages.denoise import run_stages, start

CLIPS = {"hv": (25, 0.5), "hv15-t2v": (12, 0.5), "hv15-i2v": (12, 0.5), "hv15-i2v-12": (12, 0.5), "wan": (12, 0.5)}


def clip(name: str, known: Mapping[Grid, float], figures: dict[str, Any], brief: bool = False) -> None:
    """One complete clip through the engine, beside the sum of the medians of its parts, into ``figures``.

    ``known``: medians of an earlier command, which its control forward and this one's show to be comparable; the other grids
    are measured after the clip. ``brief`` leaves the floors and the decode out.
    """
    subject = SUBJECTS[name]
    num_experts = 2 if subject.geometry.boundary else 1
    modules = tuple(single_gpu_models.transformer(subject) for _ in range(num_experts))
    model = single_gpu_models.ours(subject, modules, single_gpu_models.vae(subject.geometry.family))
    condition = single_gpu_models.condition(subject)
    steps, budget = CLIPS[name]
    planner = planner_of(subject, steps, budget)
    warm_s = event_s(one_forward(model, subject, condition, CONTROL[subject.geometry.family]))
    warm_s += event_s(lambda: planner.decide(latent_of(subject, planner.first().grid)))
    boundary, first_s = run_stages(model, planner, start(model, planner, condition, 0), 1)
    decision = boundary.decision
    if decision is None:
        raise RuntimeError("the sketch ended without a plan")
    action = decision.action
    tell("plan", {"action": action.name, "why": decision.why})
    boundary, rest_s = run_stages(model, planner, boundary, len(action.stages))
    stages = {**first_s, **rest_s}
    denoise_s = sum(value for key, value in stages.items() if key.startswith("stage"))
    figures |= {"steps": steps, "budget": budget, "action": action.name, "stages_s": stages}
    figures |= {"warm_up_s": warm_s, "denoise_s": denoise_s}
    tell("clip", figures)
    figures["control"] = measured(model, subject, CONTROL[subject.geometry.family], with_floor=True)
    others = dict.fromkeys(stage.grid for stage in action.stages if stage.grid not in known)
    figures["grids"] = [measured_and_told(model, subject, grid, with_floor=False) for grid in others]
    figures["passages"] = passages(subject, steps, budget, action)
    medians = {**known, **{tuple(row["grid"]): row["median_s"] for row in figures["grids"]}}
    by_parts = Clock(subject.geometry, medians, by_flops(subject.geometry)).forwards_s(action, subject.branches)
    by_parts += sum(figures["passages"]["transitions_s"].values()) + figures["passages"]["plan_s"]
    figures |= {"sum_s": by_parts, "clip_over_sum": denoise_s / by_parts}
    tell("clip over sum", {"denoise_s": denoise_s, "sum_s": by_parts, "ratio": figures["clip_over_sum"]})
    if brief:
        return
    family = subject.geometry.family
    figures["floors"] = [
        measured_and_told(model, subject, grid, with_floor=True) for grid in (SMALL[family], MEDIUM[family], LARGE[family])
    ]
    figures["decode"] = our_decode(model, boundary.x, repeats=1)
    tell("decode", figures["decode"])


def known_medians(folder: pathlib.Path | None, name: str) -> dict[Grid, float]:
    """Of ``rows_NAME.json`` in the folder; empty without one."""
    path = None if folder is None else folder / f"rows_{name}.json"
    if path is None or not path.is_file():
        return {}
    return {tuple(row["grid"]): row["median_s"] for row in json.loads(path.read_text())["grids"]}
