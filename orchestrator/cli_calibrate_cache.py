"""``dvg calibrate-cache``: what TeaCache and MagCache must know of a model, measured over whole clips and kept."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from orchestrator.arms import Arm
from orchestrator.cli import print_json
from orchestrator.cli_calibrate import latent_grids
from orchestrator.cli_generate import Machine, find_device
from orchestrator.files import write_atomic
from orchestrator.geometry import model as geometry_of
from orchestrator.mistakes import ConfigError, RunError
from orchestrator.prompts import Prompt, load_prompts
from orchestrator.resolve import resolve_arm
from orchestrator.runfolder import writable_folder
from orchestrator.types import Grid

if TYPE_CHECKING:
    from stages.accelerators.fitting import CacheFit

AnyFit = TypeVar("AnyFit", bound=BaseModel)


@dataclass(frozen=True)
class Options:
    """What to measure, as it was written."""

    settings: Mapping[str, Any]
    """Of an arm: model, weights, size, steps, guidance, solver, shift."""
    prompts: str | None
    limit: int | None
    grids: str | None
    out: pathlib.Path | None


def run_calibrate_cache(options: Options, machine: Machine, as_json: bool) -> None:
    """Measure, print and save. Raises ConfigError for what was written wrong, RunError when the model cannot be loaded or run."""
    from experiments.calibrate_cache import measure
    from stages.accelerators.fitting import SHELF

    asked = read_options("calibrate-cache", options, machine, SHELF.user_folder)
    console = Console(stderr=as_json)
    fit = measured(asked, machine, console, measure)
    told(fit, asked.out, console, as_json, _print)


@dataclass(frozen=True)
class Asked:
    """What to measure, and where it is written."""

    arm: Arm
    grids: tuple[Grid, ...]
    prompts: list[Prompt]
    out: pathlib.Path


def read_options(command: str, options: Options, machine: Machine, folder: pathlib.Path) -> Asked:
    """Raises ConfigError with every mistake. ``folder`` has the file where no other is named."""
    mistakes = machine.mistakes()
    arm = resolve_arm(command, {**options.settings, "planner": "full"}, mistakes)
    prompts = _prompts(options, mistakes)
    if arm is None or mistakes:
        raise ConfigError([line.removeprefix(f"arm {command}: ") for line in mistakes])
    grids = latent_grids(options.grids) if options.grids else (geometry_of(arm.model).latent_grid(arm.shape),)
    return Asked(arm, grids, prompts, _out(options.out or folder / file_name(arm, grids)))


def measured(asked: Asked, machine: Machine, console: Console, measure: Callable[..., AnyFit]) -> AnyFit:
    """``measure(model, arm, grids, prompts, on_clip=...)``. Raises RunError when the model cannot be loaded or run."""
    from stages.models.base import load

    device, arm = find_device(machine.device), asked.arm
    num = len(asked.grids) * len(asked.prompts)
    try:
        with console.status("loading the model") as status:
            model = load(arm.model, arm.weights, device, compile_blocks=False, attention=machine.attention)
            say: Callable[[int], None] = lambda done: status.update(f"clip {done} of {num}")  # noqa: E731
            return measure(model, arm, asked.grids, asked.prompts, on_clip=say)
    except (ValueError, RuntimeError) as error:
        raise RunError(" ".join(str(error).split())) from error


def told(fit: AnyFit, out: pathlib.Path, console: Console, as_json: bool, show: Callable[[Console, AnyFit], None]) -> None:
    """Write the file, and print it."""
    write_atomic(out, fit.model_dump_json(indent=2) + "\n")
    if as_json:
        print_json({"path": str(out), **fit.model_dump(mode="json")})
    else:
        show(console, fit)
        console.print(f"wrote {escape(str(out))}", soft_wrap=True)


def _prompts(options: Options, mistakes: list[str]) -> list[Prompt]:
    from experiments.calibrate_cache import PROMPTS

    given = [Prompt(prompt=text) for text in PROMPTS] if options.prompts is None else options.prompts
    return load_prompts(given, pathlib.Path.cwd(), mistakes)[: options.limit]


def _out(out: pathlib.Path) -> pathlib.Path:
    """The file to write, in a folder that can be written to, before minutes of measuring."""
    if out.is_dir():
        raise ConfigError([f"--out {str(out)!r} is a folder; give the file to write"])
    writable_folder(out.parent)
    return out


def file_name(arm: Arm, grids: tuple[Grid, ...]) -> str:
    """Another for all that a fit is chosen by, so that none is written over another."""
    sampled = (arm.num_steps, arm.solver or "own", arm.shift or "own", arm.guidance, arm.revision.replace("/", "-"))
    sizes = "+".join("x".join(map(str, grid)) for grid in grids)
    return "_".join(str(part) for part in (arm.model, sizes, *sampled) if part) + ".json"


def _print(console: Console, fit: CacheFit) -> None:
    console.print(f"[bold]{fit.model}[/], {fit.num_steps} steps, {fit.num_clips} clips")
    table = Table(header_style="bold")
    for heading in ("signal", "change of the signal", "error of the fit", "coefficients, highest power first"):
        table.add_column(heading)
    for name, row in fit.signals.items():
        low, high = row.span
        table.add_row(name, f"{low:.3g} to {high:.3g}", f"{row.error:.1%}", ", ".join(f"{c:.6g}" for c in row.coefficients))
    console.print(table)
    for branch, ratios in zip(("with the prompt", "without it"), fit.ratios, strict=False):
        console.print(f"magnitude ratios {branch}: {min(ratios):.3f} to {max(ratios):.3f}", highlight=False)
