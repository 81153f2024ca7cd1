"""``dvg calibrate``: what a model's steps cost on this machine, measured and kept for planning."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from orchestrator.calibration import Calibration, StepRow, save, user_folder
from orchestrator.cli import print_json
from orchestrator.cli_generate import Machine, find_device
from orchestrator.degrees import Limits, legal_widths, require
from orchestrator.mistakes import ConfigError, RunError
from orchestrator.model_geometry import ModelGeometry
from orchestrator.resolve import model_of, shape_of
from orchestrator.runfolder import writable_folder
from orchestrator.types import Grid, VideoShape
from parallel import backends
from stages.models import embedded

if TYPE_CHECKING:
    from experiments.calibrate import Settings


@dataclass(frozen=True)
class Options:
    """What to measure, as it was written."""

    model: str
    weights: str | None
    shape: Mapping[str, int]
    """Any of frames, height, width; the rest is the model's default."""
    grids: str | None
    repeats: int
    decode: bool
    random_weights: bool
    degrees: str | None
    backend: str
    out: pathlib.Path | None


def run_calibrate(options: Options, machine: Machine, as_json: bool) -> None:
    """Measure, print and save. Raises ConfigError for what was written wrong, RunError when the model cannot be loaded or run."""
    wrong = [*machine.mistakes(), *_option_mistakes(options)]
    model = model_of(options.model, wrong)
    if model is None:
        raise ConfigError(wrong)
    shape = shape_of(options.shape, model)
    if wrong := [*wrong, *model.shape_mistakes(shape)]:
        raise ConfigError(wrong)
    grids = latent_grids(options.grids) if options.grids else None
    degrees = _degrees(options, model, machine)
    weights = None if options.random_weights else _weights(model, options.weights)
    console = Console(stderr=as_json)
    calibration = _measure(model, shape, grids, degrees, weights, options, machine, console)
    try:
        path = save(calibration, options.out)
    except ValueError as error:
        raise ConfigError([str(error)]) from error
    if as_json:
        print_json({"path": str(path), **calibration.model_dump(mode="json")})
    else:
        _print(console, calibration)
        console.print(f"wrote {escape(str(path))}", soft_wrap=True)


def _option_mistakes(options: Options) -> list[str]:
    mistakes = []
    if options.random_weights and options.weights is not None:
        mistakes.append("--weights and --random-weights are two choices of weights: give one")
    if options.out is not None and options.out.is_dir():
        mistakes.append(f"--out {str(options.out)!r} is a folder; give the file to write")
    return mistakes


def latent_grids(text: str) -> tuple[Grid, ...]:
    """From ``21x60x104,10x30x52``. Raises ConfigError for other forms."""
    grids = []
    for part in text.split(","):
        sides = part.strip().lower().split("x")
        if len(sides) != 3 or not all(side.isdecimal() for side in sides):
            raise ConfigError(
                [f"--grids {part.strip()!r} must be latent frames x height x width, for example 21x60x104,10x30x52"]
            )
        grids.append((int(sides[0]), int(sides[1]), int(sides[2])))
    return tuple(grids)


def _weights(model: ModelGeometry, weights: str | None) -> str | None:
    from stages.models.weights import check_weights

    if weights is None and model.name == embedded.NAME:
        return None
    pinned, wrong = check_weights(model, weights)
    if wrong:
        raise ConfigError(wrong)
    return pinned


def _measure(
    model: ModelGeometry,
    shape: VideoShape,
    grids: Sequence[Grid] | None,
    degrees: tuple[int, ...],
    weights: str | None,
    options: Options,
    machine: Machine,
    console: Console,
) -> Calibration:
    from experiments import calibrate

    chosen = tuple(grids) if grids else calibrate.default_grids(model, shape)
    try:
        calibrate.check_grids(model, shape, chosen)
        device = find_device(machine.device)
    except ValueError as error:
        raise ConfigError([str(error)]) from error
    writable_folder(options.out.parent if options.out else user_folder())  # before minutes of measuring
    compiled = device != "cpu" if machine.compile_blocks is None else machine.compile_blocks
    settings = calibrate.Settings(
        shape, chosen, options.repeats, decode=options.decode, attention=machine.attention, compiled=compiled
    )
    try:
        return _run(model, weights, degrees, device, settings, options, console)
    except (ValueError, RuntimeError) as error:
        raise RunError(" ".join(str(error).split())) from error


def _run(
    model: ModelGeometry,
    weights: str | None,
    degrees: tuple[int, ...],
    device: str,
    settings: Settings,
    options: Options,
    console: Console,
) -> Calibration:
    from experiments import calibrate, calibrate_ranks
    from stages.models.base import load

    with console.status("loading the model") as status:

        def tell(row: StepRow) -> None:
            told = f"grid {'x'.join(map(str, row.grid))}: {row.median_s:.4g} s"
            status.update(told if row.degree == 1 else f"{row.degree} ranks, {told}")

        if degrees != (1,):
            on_gpu = device != "cpu"
            job = calibrate_ranks.Job(model.name, weights, options.random_weights, settings, degrees, options.backend, on_gpu)
            return calibrate_ranks.measure_degrees(job, tell)
        if options.random_weights:
            made, condition = calibrate.random_model(model, settings)
            return calibrate.measure(made, settings, tell, condition, "random")
        loaded = load(model.name, weights, device, compile_blocks=settings.compiled, attention=settings.attention)
        return calibrate.measure(loaded, settings, tell)


def _degrees(options: Options, model: ModelGeometry, machine: Machine) -> tuple[int, ...]:
    """As asked, with 1 among them; otherwise every legal one on GPUs, and 1 on a CPU. Raises ConfigError, with the arithmetic."""
    num_gpus = _num_gpus(machine)
    limits = Limits(max_width=num_gpus or 8, backend=options.backend, on_gpu=num_gpus > 0)
    try:
        if options.degrees is None:
            return legal_widths(model, limits) if num_gpus else (1,)
        asked = {1, *_numbers(options.degrees)}
        for degree in asked:
            require(model, limits, asked=degree)
    except ValueError as error:
        raise ConfigError([f"--degrees {options.degrees}: {error}"]) from error
    if missing := backends.missing(options.backend) if asked != {1} else None:
        raise ConfigError([f"--backend {options.backend} cannot run here: {missing}"])
    return tuple(sorted(asked))


def _numbers(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise ValueError("degrees are numbers of ranks, for example 1,2,4,8")
    return tuple(map(int, parts))


def _num_gpus(machine: Machine) -> int:
    """That may be measured: all of them, or the one that was named."""
    import torch

    if machine.device.startswith("cpu") or not torch.cuda.is_available():
        return 0
    return 1 if ":" in machine.device else torch.cuda.device_count()


def _print(console: Console, calibration: Calibration) -> None:
    console.print(f"[bold]{calibration.model}[/] on {escape(calibration.device)}, {calibration.dtype}, {calibration.attention}")
    table = Table(header_style="bold")
    for heading in ("grid", "ranks", "tokens", "measured s", "fitted s", "error", "efficiency"):
        table.add_column(heading, justify="left" if heading == "grid" else "right")
    fits = {(fit.degree, fit.backend): fit for fit in calibration.fits}
    alone = {row.grid: row.median_s for row in calibration.steps if row.degree == 1}
    for row in calibration.steps:
        fitted_s = fits[row.degree, row.backend].seconds(row.tokens)
        share = f"{alone[row.grid] / row.degree / row.median_s:.0%}" if row.grid in alone else ""
        figures = (f"{row.median_s:.4g}", f"{fitted_s:.4g}", f"{fitted_s / row.median_s - 1:+.1%}", share)
        table.add_row("x".join(map(str, row.grid)), str(row.degree), f"{row.tokens:,}", *figures)
    console.print(table)
    for fit in calibration.fits:
        curve = f"{fit.fixed_s:.3g} + {fit.token_s:.3g} tokens + {fit.token2_s:.3g} tokens^2"
        floor = f", at least {fit.floor_s:.3g}" if fit.floor_s else ""
        on = "" if fit.degree == 1 else f" on {fit.degree} ranks ({fit.backend})"
        console.print(f"seconds{on} = {curve}{floor}", highlight=False)
    console.print(f"largest fit error {calibration.fit_error:.1%}{_held_out(calibration)}", highlight=False)
    for decode in calibration.decodes:
        size = f"{decode.num_frames}x{decode.height}x{decode.width}"
        on = "" if decode.degree == 1 else f" on {decode.degree} ranks"
        console.print(f"decode of {size}{on}: {decode.seconds:.3g} s", highlight=False)


def _held_out(calibration: Calibration) -> str:
    if calibration.held_out_error is None:
        return ""
    return f"; a size that was left out is predicted within {calibration.held_out_error:.1%}"
