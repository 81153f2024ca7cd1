"""Methods of sparse attention on models: recall on what a trained one attends to, DVG's speed on a large random one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from experiments.bench.sparse_rows import Case, Layer, Row, made, through_a_clip
from experiments.bench.structured import Recipe, Structured, Tensors
from orchestrator.dvg_config import DvgConfig
from orchestrator.types import Grid, VideoShape
from parallel.seam import Attention
from stages.accelerators.attending import Attending, Here
from stages.denoise import Boundary, clock_s, run_stages, start
from stages.models.base import Condition, Model, Request, load
from stages.planners import Planner, make_planner

NAME = "wan-mini"
PROMPT = "a large red circle moves left while a small blue square stays still on a plain background"
Makers = tuple[Callable[[], Any], ...]


class Recorder:
    """Dense attention that remembers what came by in some layers."""

    def __init__(self, layers: Sequence[int]) -> None:
        self.layers = frozenset(layers)
        self.seen: dict[tuple[int, int], Tensors] = {}
        """By layer and step, with the prompt."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, here: Here, dense: Attention) -> Tensor:
        if here.layer in self.layers and here.now.branch == 0:
            self.seen[here.layer, here.now.step] = q.clone(), k.clone(), v.clone()
        return dense(q, k, v)


@dataclasses.dataclass(frozen=True)
class Recorded:
    """A layer's tensors, as a source of steps."""

    recorder: Recorder
    layer: int

    def at(self, step: int) -> Tensors:
        return self.recorder.seen[self.layer, step]


def recorded(shape: VideoShape, num_steps: int, device: torch.device) -> tuple[Model, Recorder]:
    """A clip of the model that ships, with what three of its layers attended to."""
    model = load(NAME, None, str(device), compile_blocks=False)
    num = model.geometry.num_layers
    recorder = Recorder((num // 4, num // 2, num - 1))
    planner = make_planner("full", model.geometry, shape, num_steps, None, DvgConfig(), accelerators=(lambda: recorder,))
    finished(model, planner, model.encode(Request(PROMPT, shape, 1.0)))
    return model, recorder


def on_recorded(case: Case, model: Model, recorder: Recorder, shape: VideoShape, num_steps: int) -> list[Row]:
    """What a method keeps of each layer's attention. Its seconds say nothing: so few tokens are no matter."""
    make = made(case, model.geometry, shape, num_steps)
    rows = []
    for index in sorted(recorder.layers):
        dtype = recorder.seen[index, 0][0].dtype
        layer = Layer(model.geometry, model.geometry.latent_grid(shape), num_steps, model.device, index, dtype)
        found = through_a_clip(make, layer, Recorded(recorder, index), dense_s=1.0)
        kept = {name: found.get(name) for name in ("sparsity", "recall", "error", "best_recall", "num_sparse")}
        rows.append({"layer": index, **kept})
    return rows


class OnStructured:
    """A method that attends to structured queries and keys in place of a random model's, whose attention has none.

    Made once for every grid, and not counted; values are the model's own.
    """

    def __init__(self, inner: Attending, tables: Tables) -> None:
        self.inner, self.tables = inner, tables

    def attend(self, q: Tensor, k: Tensor, v: Tensor, here: Here, dense: Attention) -> Tensor:
        own_q, own_k, _ = self.tables.of(here.tokens, q)
        return self.inner.attend(own_q, own_k, v, here, dense)


@dataclasses.dataclass
class Tables:
    """Structured tensors by grid."""

    recipe: Recipe
    spent_s: float = 0.0
    """Making them."""
    known: dict[tuple[Grid, int], Tensors] = dataclasses.field(default_factory=dict)

    def of(self, tokens: Grid, like: Tensor) -> Tensors:
        t, h, w = tokens
        num_text = like.shape[2] - t * h * w
        key = (tokens, num_text)
        if key not in self.known:
            _, heads, _, head_dim = like.shape
            began_s = clock_s(like.device)
            self.known[key] = Structured(self.recipe, tokens, heads, head_dim, num_text, like.device, like.dtype).at(0)
            self.spent_s += clock_s(like.device) - began_s
        return self.known[key]


def finished(model: Model, planner: Planner, condition: Condition) -> Boundary:
    """A whole clip."""
    boundary = start(model, planner, condition, 3)
    while boundary.decision is None or boundary.stage < len(boundary.decision.action.stages):
        boundary, _ = run_stages(model, planner, boundary, boundary.stage + 1)
    return boundary


def dvg_planner(model: Model, shape: VideoShape, num_steps: int, makers: Makers = ()) -> Planner:
    return _planner("dvg", 0.5, model, shape, num_steps, makers)


def _planner(name: str, budget: float | None, model: Model, shape: VideoShape, num_steps: int, makers: Makers) -> Planner:
    config = DvgConfig.for_model(model.geometry, {"image_condition": "index"})
    return make_planner(name, model.geometry, shape, num_steps, budget, config, accelerators=makers)


def makers_of(case: Case | None, model: Model, shape: VideoShape, num_steps: int, tables: Tables) -> Makers:
    """Of a method on structured tensors; without one of dense attention, on the model's own."""
    if case is None:
        return ()
    make = made(case, model.geometry, shape, num_steps)
    return (lambda: OnStructured(make(), tables),)


def sketched(model: Model, condition: Condition, shape: VideoShape, num_steps: int) -> tuple[Boundary, float]:
    """DVG's first stage, which chooses the schedule that all arms go on with, and its seconds."""
    planner = dvg_planner(model, shape, num_steps)
    boundary = start(model, planner, condition, 3)
    boundary, seconds = run_stages(model, planner, boundary, 1)
    return boundary, seconds["stage1_s"]


def refined(
    model: Model, sketch: tuple[Boundary, float], makers: Makers, shape: VideoShape, num_steps: int, tables: Tables
) -> Row:
    """The stages after the sketch under one arm: seconds of all, operations, and what attention kept."""
    boundary, sketch_s = sketch
    return _rest(model, dvg_planner(model, shape, num_steps, makers), boundary, {"stage1_s": sketch_s}, tables)


def whole(model: Model, condition: Condition, makers: Makers, shape: VideoShape, num_steps: int, tables: Tables) -> Row:
    """The run without DVG that it is compared with: all steps on the full grid."""
    planner = _planner("full", None, model, shape, num_steps, makers)
    return _rest(model, planner, start(model, planner, condition, 3), {}, tables)


def _rest(model: Model, planner: Planner, boundary: Boundary, spent_s: Mapping[str, float], tables: Tables) -> Row:
    """What comes after ``boundary``, with the seconds of stages before it."""
    made_s, began_s = tables.spent_s, clock_s(model.device)
    if boundary.decision is None:
        raise RuntimeError("nothing has been decided")
    action = boundary.decision.action
    boundary, seconds = run_stages(model, planner, boundary, len(action.stages))
    stages_s = {**spent_s, **seconds}
    compile_s = stages_s.pop("compile_s", 0.0)
    attended = boundary.past.attended
    return {
        "seconds": sum(stages_s.values()) - (tables.spent_s - made_s),
        "stages_s": stages_s,
        "compile_s": compile_s,
        "wall_s": clock_s(model.device) - began_s,
        "tflops": boundary.past.tflops,
        "grids": ["x".join(map(str, stage.grid)) for stage in action.stages],
        "num_steps": [stage.steps for stage in action.stages],
        "is_finite": bool(boundary.x.isfinite().all()),
        "attended": [vars(step) for step in attended],
    }


def warmed(model: Model, makers: Makers, shape: VideoShape, condition: Condition) -> float:
    """Seconds of a short clip: what is compiled is compiled before anything is timed."""
    began_s = clock_s(model.device)
    finished(model, dvg_planner(model, shape, 8, makers), condition)
    return clock_s(model.device) - began_s
