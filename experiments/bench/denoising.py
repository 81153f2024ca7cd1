"""Denoising time of DVG against the full grid, one video after the other in one process on an otherwise idle machine.

Run with ``python -m experiments.bench.denoising --out experiments/results/denoising_cpu_202611.json``.
"""

from __future__ import annotations

import argparse
import pathlib
import statistics
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from experiments.bench.common import ROOT, save
from orchestrator.arms import Arm
from orchestrator.config import load_sweep
from orchestrator.types import Item
from stages.worker import ClipWorker

PARTS = frozenset({"text", "transformer"})


def denoise_s(worker: ClipWorker, item: Item) -> tuple[float, str]:
    """Seconds of every transformer step and transition of one item, and the action chosen."""
    decision, sketch_s, boundary = worker.sketch(item)
    _, refine_s = worker.refine(item, boundary)
    stages = {**sketch_s, **refine_s}
    return sum(seconds for name, seconds in stages.items() if name.startswith("stage")), decision.action.name


def figures(arms: tuple[Arm, ...], items: tuple[Item, ...], repeats: int) -> dict[str, Any]:
    """Medians over prompts of each arm's seconds (the best of the repeats) and of the paired ratio full / dvg.

    One warm-up item per arm is left out.
    """
    worker = ClipWorker({arm.name: arm for arm in arms}, parts=PARTS)
    for arm in arms:
        denoise_s(worker, next(item for item in items if item.arm == arm.name))
    best: dict[str, dict[str, float]] = {arm.name: {} for arm in arms}
    actions: dict[str, str] = {}
    for _ in range(repeats):
        for item in track(items, "denoising"):
            seconds, action = denoise_s(worker, item)
            rows = best[item.arm]
            rows[item.prompt_id] = min(seconds, rows.get(item.prompt_id, seconds))
            actions[item.prompt_id] = action if item.arm != "full" else actions.get(item.prompt_id, "")
    ratios = {prompt: best["full"][prompt] / best["dvg"][prompt] for prompt in best["full"]}
    return {
        "full_s": statistics.median(best["full"].values()),
        "dvg_s": statistics.median(best["dvg"].values()),
        "speedup_median": statistics.median(ratios.values()),
        "speedup_min": min(ratios.values()),
        "speedup_total": sum(best["full"].values()) / sum(best["dvg"].values()),
        "prompts": {p: {"full_s": best["full"][p], "dvg_s": best["dvg"][p], "action": actions[p]} for p in ratios},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spec", type=pathlib.Path, default=ROOT / "experiments/specs/demo.yaml")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    sweep = load_sweep(args.spec)
    if {arm.name for arm in sweep.arms} != {"full", "dvg"}:
        raise SystemExit(f"{args.spec} has the arms {', '.join(arm.name for arm in sweep.arms)}: it must have full and dvg")
    result = figures(sweep.arms, sweep.items, args.repeats)
    table = Table(title="denoising seconds, full grid against DVG")
    for heading in ("prompt", "action", "full s", "dvg s", "speedup"):
        table.add_column(heading, justify="left" if heading in ("prompt", "action") else "right")
    for prompt, row in result["prompts"].items():
        ratio = row["full_s"] / row["dvg_s"]
        table.add_row(prompt, row["action"], f"{row['full_s']:.2f}", f"{row['dvg_s']:.2f}", f"{ratio:.2f}")
    table.add_row("all", "", f"{result['full_s']:.2f}", f"{result['dvg_s']:.2f}", f"{result['speedup_total']:.2f}")
    Console().print(table)
    if args.out:
        save(args.out, "denoising", {"spec": str(args.spec.name), "repeats": args.repeats, **result})


if __name__ == "__main__":
    main()
