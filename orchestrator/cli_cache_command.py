"""The command lines of ``dvg calibrate-cache`` and ``dvg calibrate-sparse``."""

from __future__ import annotations

import pathlib
from typing import Annotated, Any

import typer

Model = Annotated[str, typer.Argument(help="A model name; `dvg models` lists them.")]
Weights = Annotated[str | None, typer.Option(help="A folder or repository in diffusers format; default: what ships.")]
Prompts = Annotated[
    str | None, typer.Option(help="A text file with one prompt a line, a JSONL file or a suite; default: six simple ones.")
]
Limit = Annotated[int | None, typer.Option(min=1, help="Only the first so many prompts.")]
Grids = Annotated[str | None, typer.Option(help="Latent grids of the clips, like 21x60x104,21x30x52; default: the full one.")]
Pixels = Annotated[int | None, typer.Option(help="Pixels.")]
Frames = Annotated[int | None, typer.Option(help="Frames of the video, 4k+1.")]
Steps = Annotated[int | None, typer.Option(help="Solver steps; default: the model's.")]
Guidance = Annotated[float | None, typer.Option(help="Guidance scale, 1 is none; default: the model's.")]
Solver = Annotated[str | None, typer.Option(help="euler or unipc; default: the checkpoint's.")]
Shift = Annotated[float | None, typer.Option(help="Timestep shift; default: the checkpoint's.")]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N; auto: the first GPU there is.")]
Attention = Annotated[str, typer.Option(help="cudnn, flash, flash3, flash4, efficient or math; auto measures.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def calibrate_cache(
    model: Model = "wan-mini",
    weights: Weights = None,
    prompts: Prompts = None,
    limit: Limit = None,
    grids: Grids = None,
    height: Pixels = None,
    width: Pixels = None,
    frames: Frames = None,
    steps: Steps = None,
    guidance: Guidance = None,
    solver: Solver = None,
    shift: Shift = None,
    device: Device = "auto",
    attention: Attention = "auto",
    out: Annotated[pathlib.Path | None, typer.Option(help="The file; default: where teacache and magcache look.")] = None,
    as_json: Json = False,
) -> None:
    """Fit what the accelerators teacache and magcache must know of a model, by full runs of some prompts."""
    from orchestrator.cli_calibrate_cache import Options, run_calibrate_cache
    from orchestrator.cli_generate import Machine

    size = {"height": height, "width": width, "frames": frames}
    settings = _given(model=model, weights=weights, **size, steps=steps, guidance=guidance, solver=solver, shift=shift)
    run_calibrate_cache(Options(settings, prompts, limit, grids, out), Machine(device, attention, False), as_json)


def calibrate_sparse(
    model: Model = "wan-mini",
    weights: Weights = None,
    prompts: Prompts = None,
    limit: Limit = None,
    grids: Grids = None,
    height: Pixels = None,
    width: Pixels = None,
    frames: Frames = None,
    steps: Steps = None,
    guidance: Guidance = None,
    solver: Solver = None,
    shift: Shift = None,
    block: Annotated[int, typer.Option(help="Tokens of a block of attention: 16, 32, 64, or a multiple of 128.")] = 128,
    device: Device = "auto",
    attention: Attention = "auto",
    out: Annotated[pathlib.Path | None, typer.Option(help="The file; default: where sparse-vdit looks.")] = None,
    as_json: Json = False,
) -> None:
    """Measure what each head of a model loses by each pattern of the accelerator sparse-vdit, by full runs of some prompts."""
    from orchestrator.cli_calibrate_cache import Options
    from orchestrator.cli_calibrate_sparse import run_calibrate_sparse
    from orchestrator.cli_generate import Machine

    size = {"height": height, "width": width, "frames": frames}
    settings = _given(model=model, weights=weights, **size, steps=steps, guidance=guidance, solver=solver, shift=shift)
    run_calibrate_sparse(Options(settings, prompts, limit, grids, out), block, Machine(device, attention, False), as_json)


def _given(**asked: Any) -> dict[str, Any]:
    """An arm's settings: what was asked for."""
    return {key: value for key, value in asked.items() if value is not None}


def register(app: typer.Typer) -> None:
    app.command("calibrate-cache")(calibrate_cache)
    app.command("calibrate-sparse")(calibrate_sparse)
