"""What the commands of ``experiments.bench.single_gpu`` measure: forwards with their floors, passages, decodes."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch

from experiments.bench import floors, single_gpu_models
from experiments.bench.floors import event_s
from experiments.bench.single_gpu_models import DEVICE, NUM_PROMPT, Subject
from orchestrator.dvg_config import DvgConfig
from orchestrator.types import Action, Grid
from stages import attention
from stages.models.base import Placed
from stages.planners.base import Planner, make_planner
from stages.resize import nested_axes
from stages.sampling import NoiseLevel

LONG_S = 2.0
"""A forward as long as this varies little."""
LEVEL = NoiseLevel(0.9, 900.0, 880.0)
CONTROL = {"hunyuan": (12, 44, 80), "hunyuan15": (12, 15, 26), "wan": (8, 30, 52)}
SMALL = {"hunyuan": (4, 32, 32), "hunyuan15": (4, 16, 16), "wan": (4, 32, 32)}
MEDIUM = {"hunyuan": (9, 60, 60), "hunyuan15": (16, 21, 25), "wan": (16, 44, 48)}
LARGE = {"hunyuan": (9, 90, 160), "hunyuan15": (19, 30, 53), "wan": (20, 60, 104)}
"""Just over 30,000 tokens."""


def repeated(call: Callable[[], object]) -> list[float]:
    """Seconds of calls after unmeasured ones: the longer, the fewer. The first may compile, the second record a replay."""
    call()
    first = event_s(call)
    if first > LONG_S:
        return [first]
    call()
    return [event_s(call) for _ in range(3 if first > 0.5 else 9)]


def one_forward(model: Any, subject: Subject, condition: Any, grid: Grid) -> Callable[[], object]:
    """One branch of ours on a grid, as the engine calls it."""
    axes = nested_axes((grid, subject.grid))[0]
    placed: Placed = model.place(condition, axes, "index")
    x = torch.randn(1, subject.geometry.latent_channels, *grid, device=DEVICE)
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
    kernel = attention.choose("auto", torch.device(DEVICE), geometry.heads, geometry.head_dim)
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

    plan = planner_of(subject, num_steps, budget)
    sketch = latent_of(subject, action.stages[0].grid)
    transitions = {}
    for index, stage in enumerate(action.stages[:-1]):
        x0 = latent_of(subject, stage.grid)
        carry = repeated(lambda x0=x0, index=index: plan.carry(x0, action, index, 0.9, 0))  # type: ignore[misc]
        transitions[f"{index + 1}-{index + 2}"] = statistics.median(carry)
    return {
        "transitions_s": transitions,
        "plan_s": statistics.median(repeated(lambda: plan.decide(sketch))),
        "list_s": statistics.median(repeated(lambda: planner_of(subject, num_steps, budget))),
    }


def latent_of(subject: Subject, grid: Grid) -> torch.Tensor:
    return torch.randn(1, subject.geometry.latent_channels, *grid, device=DEVICE)


def planner_of(subject: Subject, num_steps: int, budget: float) -> Planner:
    """An image follows the grid by its cells: encoding it anew needs weights that are not made here."""
    config = DvgConfig.for_model(subject.geometry, {"image_condition": "index"})
    return make_planner("dvg", subject.geometry, subject.shape, num_steps, budget, config)


def measured_and_told(model: Any, subject: Subject, grid: Grid, with_floor: bool) -> dict[str, Any]:
    row = measured(model, subject, grid, with_floor)
    tell(subject.name, row)
    return row


def tell(what: str, row: dict[str, Any]) -> None:
    short = {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items() if key != "seconds"}
    print(what, short, flush=True)
