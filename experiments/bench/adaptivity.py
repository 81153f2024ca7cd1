"""Does the choice follow the content? Measured demand against what is known of each scene, over the held-out captions.

Only the sketch runs: stage 1, the clean estimate, both demands, the choice. Run with
``python -m experiments.bench.adaptivity --out experiments/results/adaptivity_cpu_202611.json``.
"""

from __future__ import annotations

import argparse
import pathlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.stats import spearmanr

from experiments.bench.common import save
from experiments.embedded.captions import caption
from experiments.embedded.scenes import Scene, detail, held_out_scenes, speed
from orchestrator.actions import DvgConfig
from orchestrator.arms import Arm, make_item
from orchestrator.resolve import resolve_arm
from orchestrator.types import Decision
from stages.worker import ClipWorker

MIN_SHARE = 0.10
RELEASED = DvgConfig().model_dump(include={"demand_space", "spatial_demand", "temporal_demand", "sharpness"})


def make_arm(budget: float, knobs: dict[str, Any]) -> Arm:
    mistakes: list[str] = []
    settings = {"planner": "dvg", "budget": budget, "dvg": knobs}
    arm = resolve_arm("dvg", settings, mistakes)
    if arm is None:
        raise SystemExit("\n".join(mistakes))
    return arm


def decisions(arm: Arm, scenes: Sequence[Scene]) -> list[Decision]:
    """The choice for each scene's caption; seed i for scene i."""
    worker = ClipWorker({arm.name: arm}, parts=frozenset({"text", "transformer"}))
    items = [make_item(arm, f"scene-{i}", caption(scene), seed=i) for i, scene in enumerate(scenes)]
    return [worker.sketch(item)[0] for item in track(items, "sketching")]


def figures(scenes: Sequence[Scene], chosen: Sequence[Decision]) -> dict[str, Any]:
    """Spearman correlations and the share of each action."""
    spatial = [d.demand.spatial for d in chosen if d.demand]
    temporal = [d.demand.temporal for d in chosen if d.demand]
    shares = {name: n / len(chosen) for name, n in Counter(d.action.name for d in chosen).most_common()}
    return {
        "captions": len(scenes),
        "spearman_spatial_detail": float(spearmanr(spatial, [detail(s) for s in scenes]).statistic),
        "spearman_temporal_speed": float(spearmanr(temporal, [speed(s) for s in scenes]).statistic),
        "action_shares": shares,
        "actions_with_a_tenth": sum(share >= MIN_SHARE for share in shares.values()),
        "mean_density": sum(d.action.density for d in chosen) / len(chosen),
    }


def show(result: dict[str, Any]) -> None:
    table = Table(title=f"{result['captions']} held-out captions, budget {result['budget']}")
    table.add_column("what")
    table.add_column("value", justify="right")
    table.add_row("Spearman, spatial demand with background detail", f"{result['spearman_spatial_detail']:.3f}")
    table.add_row("Spearman, temporal demand with speed", f"{result['spearman_temporal_speed']:.3f}")
    for name, share in result["action_shares"].items():
        table.add_row(f"action {name}", f"{share:.1%}")
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--captions", type=int, default=200)
    parser.add_argument("--budget", type=float, default=0.5)
    parser.add_argument("--released", action="store_true", help="the release's measures and sharpness, on the latent")
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    scenes = held_out_scenes()[: args.captions]
    arm = make_arm(args.budget, RELEASED if args.released else {})
    chosen = decisions(arm, scenes)
    measured = arm.dvg.model_dump(include={"demand_space", "spatial_demand", "temporal_demand", "sharpness"})
    result = {"budget": args.budget, **measured}
    result |= figures(scenes, chosen)
    result["rows"] = [
        {"caption": caption(s), "detail": detail(s), "speed": speed(s), "action": d.action.name, **vars(d.demand)}
        for s, d in zip(scenes, chosen, strict=True)
        if d.demand
    ]
    show(result)
    if args.out:
        save(args.out, "adaptivity", result)


if __name__ == "__main__":
    main()
