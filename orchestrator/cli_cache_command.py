"""The command line of ``dvg calibrate-cache``."""

from __future__ import annotations

import pathlib
from typing import Annotated, Any

import typer


def calibrate_cache(
    model: Annotated[str, typer.Argument(help="A model name; `dvg models` lists them.")] = "wan-mini",
    weights: Annotated[str | None, typer.Option(help="A folder or repository in diffusers format; default: what ships.")] = None,
    prompts: Annotated[
        str | None, typer.Option(help="A text file with one prompt a line, a JSONL file or a suite; default: six simple ones.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many prompts.")] = None,
    grids: Annotated[
        str | None, typer.Option(help="Latent grids of the clips, like 21x60x104,21x30x52; default: the full one.")
    ] = None,
    height: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    frames: Annotated[int | None, typer.Option(help="Frames of the video, 4k+1.")] = None,
    steps: Annotated[int | None, typer.Option(help="Solver steps; default: the model's.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale, 1 is none; default: the model's.")] = None,
    solver: Annotated[str | None, typer.Option(help="euler or unipc; default: the checkpoint's.")] = None,
    shift: Annotated[float | None, typer.Option(help="Timestep shift; default: the checkpoint's.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N; auto: the first GPU there is.")] = "auto",
    attention: Annotated[str, typer.Option(help="cudnn, flash, flash3, flash4, efficient or math; auto measures.")] = "auto",
    out: Annotated[pathlib.Path | None, typer.Option(help="The file; default: where teacache and magcache look.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Fit what the accelerators teacache and magcache must know of a model, by full runs of some prompts."""
    from orchestrator.cli_calibrate_cache import Options, run_calibrate_cache
    from orchestrator.cli_generate import Machine

    asked: dict[str, Any] = {"model": model, "weights": weights, "height": height, "width": width, "frames": frames}
    asked |= {"steps": steps, "guidance": guidance, "solver": solver, "shift": shift}
    settings = {key: value for key, value in asked.items() if value is not None}
    run_calibrate_cache(Options(settings, prompts, limit, grids, out), Machine(device, attention, False), as_json)


def register(app: typer.Typer) -> None:
    app.command("calibrate-cache")(calibrate_cache)
