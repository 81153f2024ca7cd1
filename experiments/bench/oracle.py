"""How good is DVG's choice on wan-mini? Every feasible action of each video is run, and the best one found.

Three settings: the release's noise, noise aligned with the full run's (so that the same video comes out, and PSNR means more),
and aligned noise with the first frame given. ``--training N`` adds clips of training captions, to fit rules on.
``python -m experiments.bench.oracle --device cuda --training 128 --out experiments/results/oracle_wan_mini_202611.json``
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import pathlib
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.bench.ablation import ALIGNED, PARTS
from experiments.bench.common import facts
from experiments.bench.lockstep import Lockstep
from experiments.bench.oracle_report import report, summarise
from experiments.bench.studies_common import (
    GEOMETRY,
    Clip,
    Deadline,
    Judges,
    Row,
    Variant,
    attribute,
    batches,
    clips_of,
    play,
    save_rows,
    score,
    write,
)
from experiments.embedded.scenes import held_out_scenes, training_scenes
from experiments.metrics.likeness import compare_many
from orchestrator.actions import DvgConfig, action_list
from orchestrator.matching import decide
from orchestrator.types import Action, Decision, Demand
from stages.demand import SPATIAL, TEMPORAL, Pixels, brightness
from stages.models import embedded
from stages.planners.dvg import DvgPlanner

SETTINGS = {
    "plain": Variant("plain", "the release's noise"),
    "aligned": Variant("aligned", "noise aligned with the full run's", knobs=ALIGNED),
    "image": Variant(
        "image", "aligned noise, first frame given", knobs={**ALIGNED, "image_condition": "encode"}, with_image=True
    ),
}
RULES = PARTS[:8]
TRAINING_SEED = 4242
KEPT = ("background", "camera", "direction", "shape")


class Forced(DvgPlanner):
    """Takes one action whatever it sees."""

    def __init__(self, planner: DvgPlanner, action: Action) -> None:
        self.task, self.config, self.actions, self.action = planner.task, planner.config, planner.actions, action
        self._first = planner.first()

    def decide(self, x0: Tensor | None, pixels: Pixels | None = None) -> Decision:
        return Decision(self.action, "as told")


@dataclasses.dataclass(frozen=True)
class Made:
    """One clip under one setting: what was measured on its sketch, and the verdicts on each action's video to come."""

    row: Row
    actions: dict[str, tuple[Row, Future[Row]]]

    def judged(self) -> Row:
        found = {name: _verdict(near, future.result()) for name, (near, future) in self.actions.items()}
        return {**self.row, "actions": found}


def _verdict(near: Row, seen: Row) -> Row:
    kept = {key: attribute(seen, key) for key in KEPT}
    return {**near, "score": score(seen), **kept, **{key: seen[key] for key in seen if key.endswith("_psnr")}}


def study(
    model: Lockstep, setting: Variant, clips: Sequence[Clip], judges: Judges, budget: float, num_steps: int, split: str
) -> tuple[list[Made], Tensor]:
    """Every feasible action and the fixed ratio for every clip; also the sketches [B, C, T, H, W]."""
    made, sketches = [], []
    planner = setting.make(budget, num_steps)
    if not isinstance(planner, DvgPlanner):
        raise TypeError("the oracle chooses among DVG's actions")
    full = dataclasses.replace(setting, planner="full").make(budget, num_steps)
    fixed = dataclasses.replace(setting, planner="fixed").make(budget, num_steps)
    for part in batches(clips):
        reference = model.videos(play(model, full, part, setting.with_image).latents)
        found: list[dict[str, tuple[Row, Future[Row]]]] = [{} for _ in part]
        plans = {action.name: Forced(planner, action) for action in planner.actions} | {"fixed": fixed}
        seen: Tensor | None = None
        for name, plan in plans.items():
            played = play(model, plan, part, setting.with_image)
            seen = played.sketches if name != "fixed" else seen
            videos = model.videos(played.latents)
            for i, near in enumerate(compare_many(videos, reference, model.device)):
                found[i][name] = (near, judges.submit(videos[i], part[i].scene, setting.with_image))
        if seen is None:
            raise RuntimeError("no action left a sketch")
        for i, clip in enumerate(part):
            row = {"split": split, "setting": setting.name, "prompt": clip.number, "seed": clip.seed}
            measured = demands(model, seen[i : i + 1])
            row |= {"demands": measured, "chosen": choices(measured, budget, num_steps)}
            made.append(Made(row, found[i]))
        sketches.append(seen.half().cpu())
        print(f"{time.strftime('%X')} {split} {setting.name}: {len(made)} clips", flush=True)
    return made, torch.cat(sketches)


def demands(model: Lockstep, x0: Tensor) -> dict[str, float]:
    """Every measure of one sketch, on its latent and on its decoded brightness."""
    spaces = {"latent": x0.float(), "pixels": brightness(model.pixels(x0))}
    return {
        f"{space} {name}": float(method(seen)) for space, seen in spaces.items() for name, method in (SPATIAL | TEMPORAL).items()
    }


def choices(measured: Mapping[str, float], budget: float, num_steps: int) -> dict[str, str]:
    """What each rule chooses for a sketch, given every measure of it."""
    return {rule.name: _choice(DvgConfig.for_model(GEOMETRY, rule.knobs), measured, budget, num_steps) for rule in RULES}


def _choice(config: DvgConfig, measured: Mapping[str, float], budget: float, num_steps: int) -> str:
    spatial, temporal = (measured[f"{config.demand_space} {name}"] for name in (config.spatial_demand, config.temporal_demand))
    actions = action_list(GEOMETRY, GEOMETRY.default_shape, num_steps, budget, config)
    return decide(actions, Demand(spatial, temporal), config).action.name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--training", type=int, default=0, help="clips of training captions besides")
    parser.add_argument("--steps", type=int, default=GEOMETRY.default_steps)
    parser.add_argument("--budget", type=float, default=0.5)
    parser.add_argument("--settings", nargs="*", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--minutes", type=float, help="stop early, with fewer settings")
    parser.add_argument("--workers", type=int, default=2, help="processes that judge")
    parser.add_argument("--rows", type=pathlib.Path, help="JSON of an earlier run: apply today's rules to it, run nothing")
    parser.add_argument("--weights", type=pathlib.Path, default=embedded.FOLDER)
    parser.add_argument("--sketches", type=pathlib.Path, help="npz to keep the measured clean latents in")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()
    earlier = json.loads(args.rows.read_text()) if args.rows else None
    rows = again(earlier["rows"], args) if earlier else run(args)
    summary = summarise(rows)
    figures = {
        "runs": [{key: earlier.get(key) for key in facts()}] if earlier else [],
        "budget": args.budget,
        "steps": args.steps,
    }
    save_rows(args.out, "oracle", {**figures, "summary": summary}, rows)
    write(args.out.with_suffix(".md"), report(summary))
    print(report(summary))


def again(rows: Sequence[Row], args: argparse.Namespace) -> list[Row]:
    """Rows of an earlier run with what the rules of today choose."""
    return [{**row, "chosen": choices(row["demands"], args.budget, args.steps)} for row in rows]


def run(args: argparse.Namespace) -> list[Row]:
    torch.set_float32_matmul_precision("high")
    model, judges = Lockstep(args.weights, args.device, GEOMETRY.default_guidance), Judges(args.workers)
    splits = {"held-out": clips_of(held_out_scenes()[: args.prompts], range(args.seeds))}
    if args.training:
        splits["training"] = clips_of(tuple(islice(training_scenes(TRAINING_SEED), args.training)), (0,))
    deadline = Deadline(args.minutes)
    made: list[Made] = []
    sketches: dict[str, Any] = {}
    with torch.inference_mode():
        for split, name in itertools.product(splits, args.settings):
            if deadline.reached():
                break
            part, seen = study(model, SETTINGS[name], splits[split], judges, args.budget, args.steps, split)
            made += part
            sketches[f"{split} {name}"] = seen.numpy()
    rows = [one.judged() for one in made]
    judges.close()
    if args.sketches:
        np.savez_compressed(args.sketches, **sketches)
    return rows


if __name__ == "__main__":
    main()
