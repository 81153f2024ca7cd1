"""The ``dvg`` command. Exit codes: 0 done, 1 error, 2 something written wrong, 3 some items were given up, 130 interrupted."""

from __future__ import annotations

import json
import os
import pathlib
import sys
import traceback
from typing import Annotated, Any, NoReturn

import typer

from orchestrator import (
    __version__,
    cli_cache_command,
    cli_compare,
    cli_evaluate,
    cli_methods,
    cli_metrics,
    cli_models_command,
    cli_ops,
    cli_report,
    cli_schema,
    cli_score,
    cli_simulate_command,
)
from orchestrator.mistakes import ConfigError, RunError, without_password

app = typer.Typer(
    name="dvg",
    help="Dynamic video generation: sketch small, measure, choose a grid per prompt, refine at full size.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Model = Annotated[str, typer.Option(help="A model name; `dvg models` lists them.")]
Weights = Annotated[
    str | None, typer.Option(help="A folder in diffusers format, or a repository of the hub; wan-mini ships with the project.")
]
Frames = Annotated[int | None, typer.Option(help="Frames of the video, 4k+1; default, as of height and width: the model's.")]
Height = Annotated[int | None, typer.Option(help="Pixels.")]
Width = Annotated[int | None, typer.Option(help="Pixels.")]
Steps = Annotated[int | None, typer.Option(help="Solver steps; default: the model's.")]
Guidance = Annotated[float | None, typer.Option(help="Guidance scale, 1 is none; default: the model's.")]
Budget = Annotated[
    str | None, typer.Option(help="Share of the full token-steps, in (0, 1], default 0.5; or speedup=3, gpu_seconds=120.")
]
Speedup = Annotated[float | None, typer.Option(help="Budget as a predicted speedup over the full run.")]
GpuSeconds = Annotated[float | None, typer.Option(help="Budget as predicted seconds of denoising on one GPU.")]
DeviceName = Annotated[str | None, typer.Option(help="Predict cost for the GPU of this name; default: this machine's.")]
Calibration = Annotated[str | None, typer.Option(help="A calibration file; default: the one that fits model and device.")]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N; auto: the first GPU there is.")]
Attention = Annotated[str, typer.Option(help="cudnn, flash, flash3, flash4, efficient or math; auto measures.")]
Compile = Annotated[bool | None, typer.Option("--compile/--no-compile", help="Default: on a GPU.")]
Backend = Annotated[str, typer.Option(help="How ranks exchange tokens: native, peer, ulysses or usp; auto: the fastest here.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def _settings(**options: Any) -> dict[str, Any]:
    """The options a person gave, under the names a spec uses."""
    return {key: value for key, value in options.items() if value is not None}


def _budget(budget: str | None, speedup: float | None, gpu_seconds: float | None) -> Any:
    """The budget in whichever form it was given. Raises ConfigError for two of them."""
    options = {"--budget": budget, "--speedup": speedup, "--gpu-seconds": gpu_seconds}
    given = [name for name, value in options.items() if value is not None]
    if len(given) > 1:
        raise ConfigError([f"{' and '.join(given)} are the same budget in other forms: give one"])
    if speedup is not None:
        return {"speedup": speedup}
    return budget if gpu_seconds is None else {"gpu_seconds": gpu_seconds}


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What the video shows.")],
    model: Model = "wan-mini",
    weights: Weights = None,
    lora: Annotated[list[str] | None, typer.Option(help="PATH[:SCALE][:both|high|low], repeatable.")] = None,
    image: Annotated[str | None, typer.Option(help="First frame, for models that take one.")] = None,
    preset: Annotated[str | None, typer.Option(help="A planner, a budget and accelerators by one name of `dvg methods`.")] = None,
    planner: Annotated[
        str | None, typer.Option(help="A name of `dvg methods`, or {name: {setting: value}}; default: dvg.")
    ] = None,
    accelerators: Annotated[list[str] | None, typer.Option(help="Likewise, repeatable.")] = None,
    budget: Budget = None,
    speedup: Speedup = None,
    gpu_seconds: GpuSeconds = None,
    steps: Steps = None,
    solver: Annotated[str | None, typer.Option(help="euler or unipc; default: the checkpoint's.")] = None,
    shift: Annotated[float | None, typer.Option(help="Timestep shift of a full run; default: the checkpoint's.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the initial noise.")] = 0,
    negative: Annotated[str | None, typer.Option(help="Negative prompt (needs guidance above 1).")] = None,
    guidance: Guidance = None,
    guidance_low: Annotated[float | None, typer.Option(help="The same for the low-noise expert, of models with two.")] = None,
    fps: Annotated[int | None, typer.Option(help="Frames per second of the file.")] = None,
    out: Annotated[pathlib.Path, typer.Option(help="The video file to write.")] = pathlib.Path("video.mp4"),
    frames: Frames = None,
    height: Height = None,
    width: Width = None,
    device: Device = "auto",
    attention: Attention = "auto",
    compile_blocks: Compile = None,
    calibration: Calibration = None,
    as_json: AsJson = False,
) -> None:
    """Make one video in this process, with a progress bar per stage."""
    from orchestrator.cli_generate import Machine, run_generate

    settings = _settings(
        model=model, weights=weights, lora=lora, image=image, steps=steps, solver=solver, shift=shift,
        preset=preset, planner=planner, accelerators=accelerators,
        budget=_budget(budget, speedup, gpu_seconds), calibration=calibration,
        guidance=guidance, guidance_low=guidance_low, negative=negative, frames=frames, height=height, width=width, fps=fps,
    )  # fmt: skip
    run_generate(prompt, seed, settings, out, as_json, Machine(device, attention, compile_blocks))


@app.command()
def sweep(
    spec: Annotated[pathlib.Path, typer.Argument(help="The YAML file of the sweep.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, dotted for nested keys.")] = None,
    out: Annotated[
        str | None, typer.Option(help="The run folder, or a URL such as s3://bucket/run; default runs/<name of the spec>.")
    ] = None,
    work: Annotated[
        pathlib.Path | None, typer.Option(help="With a URL: folder for the run's small files; default: in the user's cache.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Use the folder of another config; videos it would write over are set aside.")
    ] = False,
    local: Annotated[bool, typer.Option("--local", help="No Ray: one item after another in this process.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many prompts and seeds.")] = None,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the resolved sweep and stop.")] = False,
) -> None:
    """Make every video of a spec. The same command again resumes: finished items are skipped."""
    from orchestrator.cli_sweep import SweepOptions, run_sweep

    raise typer.Exit(run_sweep(spec, overrides or [], out, SweepOptions(local, limit, print_config, work, force)))


@app.command()
def plan(
    context: typer.Context,
    spec: Annotated[pathlib.Path | None, typer.Argument(help="Plan this sweep; without: one model, by the options.")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, as for dvg sweep.")] = None,
    demands: Annotated[pathlib.Path | None, typer.Option(help="With SPEC: a run, or a JSONL file, of measured demands.")] = None,
    cluster: Annotated[pathlib.Path | None, typer.Option(help="With SPEC: the cluster file it must fit.")] = None,
    address: Annotated[str | None, typer.Option(help="With SPEC: the running Ray cluster it must fit.")] = None,
    model: Model = "wan-mini",
    height: Height = None,
    width: Width = None,
    frames: Frames = None,
    steps: Steps = None,
    budget: Budget = None,
    speedup: Speedup = None,
    gpu_seconds: GpuSeconds = None,
    guidance: Guidance = None,
    device_name: DeviceName = None,
    calibration: Calibration = None,
    spatial_demand: Annotated[float | None, typer.Option(min=0, max=1, help="Measured or assumed detail.")] = None,
    temporal_demand: Annotated[float | None, typer.Option(min=0, max=1, help="Measured or assumed motion.")] = None,
    ranks: Annotated[int | None, typer.Option(min=1, max=8, help="GPUs of a pod: also print each stage's, and why.")] = None,
    sizing: Annotated[
        str | None,
        typer.Option(help="The rule for one clip: efficient, throughput, latency, deadline, narrowest or fastest."),
    ] = None,
    deadline_s: Annotated[float | None, typer.Option(help="Seconds for a clip's stages, with --sizing deadline.")] = None,
    backend: Backend = "auto",
    as_json: AsJson = False,
) -> None:
    """Print what a sweep comes to: time, cost, split; or the actions a budget allows one model. Loads and starts nothing."""
    from orchestrator.cli_plan import PodOptions, refuse_both, run_plan

    refuse_both(context, spec)
    if spec is not None:
        from orchestrator.cli_spec_plan import SpecOptions, run_spec_plan

        return run_spec_plan(spec, overrides or [], SpecOptions(demands, address, cluster), as_json)
    settings = _settings(
        model=model, frames=frames, height=height, width=width, steps=steps, guidance=guidance,
        budget=_budget(budget, speedup, gpu_seconds), device_name=device_name, calibration=calibration,
    )  # fmt: skip
    return run_plan(settings, spatial_demand, temporal_demand, as_json, PodOptions(ranks, backend, sizing, deadline_s))


@app.command()
def calibrate(
    model: Model = "wan-mini",
    weights: Weights = None,
    height: Height = None,
    width: Width = None,
    frames: Frames = None,
    grids: Annotated[
        str | None, typer.Option(help="Latent grids, like 21x60x104,10x30x52; default: nine as DVG's stages have them.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Timed forwards of each grid; the median counts.")] = 5,
    decode: Annotated[bool, typer.Option(help="Also decode a whole video, twice.")] = True,
    random_weights: Annotated[
        bool,
        typer.Option(
            "--random-weights", help="Random weights of the real size: for planning before the weights are at hand. Needs a GPU."
        ),
    ] = False,
    degrees: Annotated[
        str | None, typer.Option(help="Ranks that share a forward, like 1,2,4,8; default: all legal ones on GPUs, 1 on a CPU.")
    ] = None,
    backend: Backend = "auto",
    device: Device = "auto",
    attention: Attention = "auto",
    compile_blocks: Compile = None,
    out: Annotated[pathlib.Path | None, typer.Option(help="The file to write; default: where planning looks for it.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure what a model's steps cost on this machine, so that budgets in speedup or seconds are met."""
    from orchestrator.cli_calibrate import Options, run_calibrate
    from orchestrator.cli_generate import Machine

    shape = _settings(frames=frames, height=height, width=width)
    options = Options(model, weights, shape, grids, repeats, decode, random_weights, degrees, backend, out)
    run_calibrate(options, Machine(device, attention, compile_blocks), as_json)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say what is installed, what it gives, and what each missing piece would give."""
    from orchestrator.cli_plan import run_doctor

    raise typer.Exit(run_doctor(as_json))


@app.command()
def track(
    run: Annotated[str, typer.Argument(help="A run folder, or its URL.")],
    uri: Annotated[str | None, typer.Option(help="Where to; default as in the sweep.")] = None,
) -> None:
    """Mirror a run folder into MLflow; what is there already is left alone."""
    from orchestrator.cli_sweep import run_track

    run_track(run, uri)


cli_cache_command.register(app)
cli_simulate_command.add_to(app)
cli_ops.add_to(app)
cli_compare.register(app)
cli_evaluate.register(app)
cli_methods.register(app)
cli_metrics.register(app)
cli_models_command.register(app)
cli_report.register(app)
cli_schema.register(app)
cli_score.register(app)


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def main() -> None:
    """Run the command line; what a person wrote wrong is told in one line each, without a traceback (DVG_TRACEBACK shows it)."""
    try:
        app(standalone_mode=True)
    except (ConfigError, RunError) as error:
        if os.environ.get("DVG_TRACEBACK"):
            traceback.print_exc()
        _tell(error)


def _tell(error: ConfigError | RunError) -> NoReturn:
    lines = error.mistakes if isinstance(error, ConfigError) else (str(error),)
    for line in lines:
        print(f"error: {without_password(line)}", file=sys.stderr)
    sys.exit(2 if isinstance(error, ConfigError) else 1)


def print_json(value: Any) -> None:
    """JSON on stdout, with nothing around it."""
    typer.echo(json.dumps(value, indent=2, allow_nan=False))
