"""One GPU: the stock pipeline's forward, ours on every grid of DVG's key actions, and all that is not a forward.

``python -m experiments.bench.single_gpu rows hv --out folder`` measures; ``clip`` runs one complete clip through the engine;
``python -m experiments.bench.single_gpu_report folder`` composes the table of all that the folder holds. Weights are random,
sizes real. Each command repeats a control forward, so that commands on different machines can be told to agree.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import signal
import statistics
import sys
from typing import Any

import torch

from experiments.bench import single_gpu_models
from experiments.bench.common import save
from experiments.bench.floors import event_s
from experiments.bench.single_gpu_clip import clip, known_medians
from experiments.bench.single_gpu_measure import (
    CONTROL,
    MEDIUM,
    SMALL,
    latent_of,
    measured,
    measured_and_told,
    num_decodes,
    our_decode,
    passages,
    repeated,
    tell,
)
from experiments.bench.single_gpu_models import SUBJECTS, Subject
from experiments.bench.single_gpu_rows import Clock, Spread, by_flops, feasible, key_grids, spread
from orchestrator.types import Action, Grid
from stages import attention, compiling

KEY_ROWS = {
    "hv": ((25, 0.5, 3),),
    "hv15-t2v": ((50, 0.5, 3), (50, 0.7, 1)),
    "hv15-i2v": ((50, 0.5, 1),),
    "hv15-i2v-12": ((12, 0.5, 3),),
    "wan": ((25, 0.5, 3), (40, 0.5, 1)),
}
"""Steps, budget, and how many actions are measured on their own grids: the nearest to the mean, or the extremes too."""


def stock(subject: Subject, module: Any) -> dict[str, Any]:
    """Stock forward of one branch on the full grid, and on the control grid, where it is warmed up."""
    forward = single_gpu_models.stock_forward(subject, module)
    control = repeated(lambda: forward(CONTROL[subject.geometry.family]))
    torch.cuda.reset_peak_memory_stats()
    seconds = [event_s(lambda: forward(subject.grid)) for _ in range(2)]
    peak = torch.cuda.max_memory_allocated() / 2**30
    return {"seconds": seconds, "median_s": statistics.median(seconds), "control_s": statistics.median(control), "peak_gib": peak}


def stock_decode(subject: Subject) -> dict[str, Any]:
    """Stock VAE with its defaults, whole video."""
    vae = single_gpu_models.vae(subject.geometry.family)
    z = single_gpu_models.noise(1, subject.geometry.latent_channels, *subject.grid)
    torch.cuda.reset_peak_memory_stats()
    seconds = [event_s(lambda: vae.decode(z, return_dict=False)) for _ in range(num_decodes(subject))]
    return {"seconds": seconds, "best_s": min(seconds), "peak_gib": torch.cuda.max_memory_allocated() / 2**30}


def key_spread(subject: Subject, steps: int, budget: float) -> Spread:
    """The key actions of a row, by floating-point operations."""
    guess = Clock(subject.geometry, {}, by_flops(subject.geometry))
    return spread(feasible(subject.geometry, subject.shape, steps, budget), guess, 1)


def floor_grids(subject: Subject, action: Action) -> set[Grid]:
    """Where the floor is measured: about 1,000, 3,000 to 12,000 and 8,000 tokens, the third stage's grid and the full one."""
    family = subject.geometry.family
    return {SMALL[family], CONTROL[family], MEDIUM[family], action.stages[-2].grid, subject.grid}


def grids_of(subject: Subject, name: str) -> tuple[Grid, ...]:
    """What is measured: the full grid, those of the key rows' actions, and a few of sizes asked about."""
    actions = []
    for steps, budget, count in KEY_ROWS[name]:
        found = key_spread(subject, steps, budget)
        actions += [found.nearest, found.slowest, found.fastest][:count]
    family = subject.geometry.family
    return tuple(dict.fromkeys((SMALL[family], CONTROL[family], MEDIUM[family], *key_grids(actions), subject.grid)))


def rows(name: str, skip_stock: bool, figures: dict[str, Any]) -> None:
    """All that a subject's rows are composed of, into ``figures``."""
    subject = SUBJECTS[name]
    if not skip_stock:
        figures["stock_decode"] = stock_decode(subject)
        torch.cuda.empty_cache()
    module = single_gpu_models.transformer(subject)
    if not skip_stock:
        figures["stock"] = stock(subject, module)
        tell("stock", figures["stock"])
    decoder = single_gpu_models.vae(subject.geometry.family)
    model = single_gpu_models.ours(subject, (module,), decoder)
    action = key_spread(subject, *KEY_ROWS[name][0][:2]).nearest
    with_floor = floor_grids(subject, action)
    figures["grids"] = []
    for grid in grids_of(subject, name):
        figures["grids"].append(measured_and_told(model, subject, grid, grid in with_floor))
    steps, budget, _ = KEY_ROWS[name][0]
    figures["passages"] = passages(subject, steps, budget, action)
    tell("passages", figures["passages"])
    figures["decode"] = our_decode(model, latent_of(subject, subject.grid), num_decodes(subject))
    figures["control"] = measured(model, subject, CONTROL[subject.geometry.family], with_floor=False)


def software(subject: Subject) -> dict[str, Any]:
    kernels = {key: rates for key, rates in attention.measurements().items() if f" {subject.geometry.heads} x" in key}
    compiled = {"seconds": compiling.compile_seconds(), "graphs": compiling.num_graphs()}
    frozen = pathlib.Path(os.environ.get("DVG_COMMIT_FILE", "COMMIT"))
    commit = {"commit": frozen.read_text().strip()} if frozen.is_file() else {}
    return {"attention_tflops": kernels, "compiling": compiled, "shape": vars(subject.shape), **commit}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("rows", "clip"))
    parser.add_argument("subjects", nargs="+", choices=tuple(SUBJECTS))
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--skip-stock", action="store_true")
    parser.add_argument("--brief", action="store_true", help="a clip without floors and decode")
    parser.add_argument("--known", type=pathlib.Path, help="folder with the rows of an earlier command")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to stop"))  # so that what was measured is saved
    for name in args.subjects:
        figures: dict[str, Any] = {"subject": name, "kind": args.kind}
        try:
            with torch.inference_mode():
                rows(name, args.skip_stock, figures) if args.kind == "rows" else clip(
                    name, known_medians(args.known, name), figures, args.brief
                )
        finally:  # what was measured before an error is worth keeping
            figures |= software(SUBJECTS[name])
            save(args.out / f"{args.kind}_{name}.json", "single_gpu", figures)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
