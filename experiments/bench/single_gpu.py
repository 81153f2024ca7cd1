"""One GPU: the stock pipeline's forward, ours on every grid of DVG's key actions, and all that is not a forward.

``python -m experiments.bench.single_gpu rows hv --out folder`` measures; ``clip`` runs one complete clip through the engine;
``python -m experiments.bench.single_gpu_report folder`` composes the table of all that the folder holds. Weights are random,
sizes real. Each command repeats a control forward, so that commands on different machines can be told to agree.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import statistics
from collections.abc import Callable
from typing import Any

import torch

from experiments.bench import floors, single_gpu_models
from experiments.bench.common import save
from experiments.bench.floors import event_s
from experiments.bench.single_gpu_models import NUM_PROMPT, SUBJECTS, Subject
from experiments.bench.single_gpu_rows import Clock, Spread, by_flops, feasible, key_grids, spread
from orchestrator.dvg_config import DvgConfig
from orchestrator.types import Action, Grid
from stages import attention, compiling
from stages.denoise import run_stages, start
from stages.models.base import Placed
from stages.planners.base import make_planner
from stages.resize import nested_axes
from stages.sampling import NoiseLevel

LEVEL = NoiseLevel(0.9, 900.0, 880.0)
KEY_ROWS = {
    "hv": ((25, 0.5, 3),),
    "hv15-t2v": ((50, 0.5, 3), (50, 0.7, 1)),
    "hv15-i2v": ((50, 0.5, 1),),
    "hv15-i2v-12": ((12, 0.5, 3),),
    "wan": ((25, 0.5, 3), (40, 0.5, 1)),
}
"""Steps, budget, and how many actions are measured on their own grids: the nearest to the mean, or the extremes too."""
CONTROL = {"hunyuan": (12, 44, 80), "hunyuan15": (12, 15, 26), "wan": (8, 30, 52)}
SMALL = {"hunyuan": (4, 32, 32), "hunyuan15": (4, 16, 16), "wan": (4, 32, 32)}
MEDIUM = {"hunyuan": (9, 60, 60), "hunyuan15": (16, 21, 25), "wan": (16, 44, 48)}
CLIPS = {"hv": (25, 0.5), "hv15-t2v": (25, 0.5), "hv15-i2v": (25, 0.5), "hv15-i2v-12": (12, 0.5), "wan": (25, 0.5)}


def repeated(call: Callable[[], object]) -> list[float]:
    """Seconds of calls after unmeasured ones: the longer, the fewer."""
    first = event_s(call)
    if first < 0.5:
        call()
    return [event_s(call) for _ in range(1 if first > 2 else 3 if first > 0.5 else 9)]


def one_forward(model: Any, subject: Subject, condition: Any, grid: Grid) -> Callable[[], object]:
    """One branch of ours on a grid, as the engine calls it."""
    axes = nested_axes((grid, subject.grid))[0]
    placed: Placed = model.place(condition, axes, "index")
    x = torch.randn(1, subject.geometry.latent_channels, *grid, device="cuda")
    return lambda: model.denoise(x, LEVEL, placed)


def measured(model: Any, subject: Subject, grid: Grid, with_floor: bool) -> dict[str, Any]:
    """One forward of one branch on a grid; with its floor, the products and attentions of it timed alone."""
    condition = single_gpu_models.condition(subject, branches=1)
    torch.cuda.reset_peak_memory_stats()
    seconds = repeated(one_forward(model, subject, condition, grid))
    row: dict[str, Any] = {
        "grid": grid,
        "tokens": subject.geometry.num_tokens(grid),
        "seconds": seconds,
        "median_s": statistics.median(seconds),
    }
    row["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return {**row, **(floor_row(subject, grid, row["median_s"]) if with_floor else {})}


def floor_row(subject: Subject, grid: Grid, median_s: float) -> dict[str, float]:
    geometry = subject.geometry
    kernel = attention.choose("auto", torch.device("cuda"), geometry.heads, geometry.head_dim)
    found = floors.floor(floors.work(geometry, geometry.num_tokens(grid), num_text(subject)), kernel)
    return {
        "floor_s": found.total_s,
        "over_floor": median_s / found.total_s,
        "matmul_tflops": found.matmul_tflops,
        "attention_tflops": found.attention_tflops,
    }


def num_text(subject: Subject) -> int:
    """Condition tokens that take part: Wan attends to all of its padding."""
    if subject.geometry.family == "wan":
        return 512
    return NUM_PROMPT + (729 if subject.geometry.image == "required" and subject.geometry.family == "hunyuan15" else 0)


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


def num_decodes(subject: Subject) -> int:
    """A decode of a quarter of a minute needs no warm-up."""
    return 1 if subject.geometry.family == "hunyuan" else 2


def our_decode(model: Any, z: torch.Tensor, repeats: int) -> dict[str, Any]:
    """Latent to frames on the host, as the engine streams them to the encoder."""

    def decode() -> None:
        for _ in model.decode(z):
            pass

    torch.cuda.reset_peak_memory_stats()
    seconds = [event_s(decode) for _ in range(repeats)]
    return {"seconds": seconds, "best_s": min(seconds), "peak_gib": torch.cuda.max_memory_allocated() / 2**30}


def passages(subject: Subject, num_steps: int, budget: float, action: Action) -> dict[str, Any]:
    """Every transition of an action, and the plan: the demand of a sketch, the list and the match."""

    def planner() -> Any:
        return make_planner("dvg", subject.geometry, subject.shape, num_steps, budget, DvgConfig.for_model(subject.geometry))

    plan = planner()
    sketch = _latent(subject, action.stages[0].grid)
    transitions = {}
    for index, stage in enumerate(action.stages[:-1]):
        x0 = _latent(subject, stage.grid)
        carry = repeated(lambda x0=x0, index=index: plan.carry(x0, action, index, 0.9, 0))  # type: ignore[misc]
        transitions[f"{index + 1}-{index + 2}"] = statistics.median(carry)
    return {
        "transitions_s": transitions,
        "plan_s": statistics.median(repeated(lambda: plan.decide(sketch))),
        "list_s": statistics.median(repeated(planner)),
    }


def _latent(subject: Subject, grid: Grid) -> torch.Tensor:
    return torch.randn(1, subject.geometry.latent_channels, *grid, device="cuda")


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
    figures["decode"] = our_decode(model, _latent(subject, subject.grid), num_decodes(subject))
    figures["control"] = measured(model, subject, CONTROL[subject.geometry.family], with_floor=False)


def measured_and_told(model: Any, subject: Subject, grid: Grid, with_floor: bool) -> dict[str, Any]:
    row = measured(model, subject, grid, with_floor)
    tell(subject.name, row)
    return row


def clip(name: str, figures: dict[str, Any]) -> None:
    """One complete clip through the engine, beside the sum of the medians of its parts, measured after it, into ``figures``."""
    subject = SUBJECTS[name]
    num_experts = 2 if subject.geometry.boundary else 1
    modules = tuple(single_gpu_models.transformer(subject) for _ in range(num_experts))
    model = single_gpu_models.ours(subject, modules, single_gpu_models.vae(subject.geometry.family))
    condition = single_gpu_models.condition(subject)
    steps, budget = CLIPS[name]
    planner = make_planner("dvg", subject.geometry, subject.shape, steps, budget, DvgConfig.for_model(subject.geometry))
    warm_s = event_s(one_forward(model, subject, condition, CONTROL[subject.geometry.family]))
    warm_s += event_s(lambda: planner.decide(_latent(subject, planner.first().grid)))
    boundary, first_s = run_stages(model, planner, start(model, planner, condition, 0), 1)
    decision = boundary.decision
    if decision is None:
        raise RuntimeError("the sketch ended without a plan")
    action = decision.action
    tell("plan", {"action": action.name, "why": decision.why})
    boundary, rest_s = run_stages(model, planner, boundary, len(action.stages))
    stages = {**first_s, **rest_s}
    decode = our_decode(model, boundary.x, repeats=1)
    figures |= {"steps": steps, "budget": budget, "action": action.name, "stages_s": stages}
    figures |= {
        "warm_up_s": warm_s,
        "denoise_s": sum(value for key, value in stages.items() if key.startswith("stage")),
        "decode": decode,
    }
    tell("clip", figures)
    figures["grids"] = [measured(model, subject, grid, with_floor=False) for grid in dict.fromkeys(s.grid for s in action.stages)]
    figures["passages"] = passages(subject, steps, budget, action)
    figures["control"] = measured(model, subject, CONTROL[subject.geometry.family], with_floor=False)
    medians = {tuple(row["grid"]): row["median_s"] for row in figures["grids"]}
    by_parts = Clock(subject.geometry, medians, by_flops(subject.geometry)).forwards_s(action, subject.branches)
    by_parts += sum(figures["passages"]["transitions_s"].values()) + figures["passages"]["plan_s"]
    figures |= {"sum_s": by_parts, "clip_over_sum": figures["denoise_s"] / by_parts}
    tell("clip over sum", {"denoise_s": figures["denoise_s"], "sum_s": by_parts, "ratio": figures["clip_over_sum"]})


def software(subject: Subject) -> dict[str, Any]:
    kernels = {key: rates for key, rates in attention.measurements().items() if f" {subject.geometry.heads} x" in key}
    compiled = {"seconds": compiling.compile_seconds(), "graphs": compiling.num_graphs()}
    frozen = pathlib.Path(os.environ.get("DVG_COMMIT_FILE", "COMMIT"))
    commit = {"commit": frozen.read_text().strip()} if frozen.is_file() else {}
    return {"attention_tflops": kernels, "compiling": compiled, "shape": vars(subject.shape), **commit}


def tell(what: str, row: dict[str, Any]) -> None:
    short = {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items() if key != "seconds"}
    print(what, short, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("rows", "clip"))
    parser.add_argument("subjects", nargs="+", choices=tuple(SUBJECTS))
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--skip-stock", action="store_true")
    args = parser.parse_args()
    for name in args.subjects:
        figures: dict[str, Any] = {"subject": name, "kind": args.kind}
        try:
            with torch.inference_mode():
                rows(name, args.skip_stock, figures) if args.kind == "rows" else clip(name, figures)
        finally:  # what was measured before an error is worth keeping
            figures |= software(SUBJECTS[name])
            save(args.out / f"{args.kind}_{name}.json", "single_gpu", figures)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
