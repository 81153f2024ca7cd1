"""``dvg calibrate-cache``: what TeaCache and MagCache must know of a model, measured over whole clips and kept."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
    mistakes = machine.mistakes()
    arm = resolve_arm("calibrate-cache", {**options.settings, "planner": "full"}, mistakes)
    prompts = _prompts(options, mistakes)
    if arm is None or mistakes:
        raise ConfigError([line.removeprefix("arm calibrate-cache: ") for line in mistakes])
    grids = latent_grids(options.grids) if options.grids else (geometry_of(arm.model).latent_grid(arm.shape),)
    out = _out(options, arm, grids)
    console = Console(stderr=as_json)
    fit = _measure(arm, grids, prompts, machine, console)
    write_atomic(out, fit.model_dump_json(indent=2) + "\n")
    if as_json:
        print_json({"path": str(out), **fit.model_dump(mode="json")})
    else:
        _print(console, fit)
        console.print(f"wrote {escape(str(out))}", soft_wrap=True)


def _prompts(options: Options, mistakes: list[str]) -> list[Prompt]:
    from experiments.calibrate_cache import PROMPTS

    given = [Prompt(prompt=text) for text in PROMPTS] if options.prompts is None else options.prompts
    return load_prompts(given, pathlib.Path.cwd(), mistakes)[: options.limit]


def _out(options: Options, arm: Arm, grids: tuple[Grid, ...]) -> pathlib.Path:
    """The file to write, in a folder that can be written to, before minutes of measuring."""
    from stages.accelerators.fitting import user_folder

    out = options.out or user_folder() / file_name(arm, grids)
    if out.is_dir():
        raise ConfigError([f"--out {str(out)!r} is a folder; give the file to write"])
    writable_folder(out.parent)
    return out


def file_name(arm: Arm, grids: tuple[Grid, ...]) -> str:
    """Another for all that a fit is chosen by, so that none is written over another."""
    sampled = (arm.num_steps, arm.solver or "own", arm.shift or "own", arm.guidance, arm.revision.replace("/", "-"))
    sizes = "+".join("x".join(map(str, grid)) for grid in grids)
    return "_".join(str(part) for part in (arm.model, sizes, *sampled) if part) + ".json"


def _measure(arm: Arm, grids: tuple[Grid, ...], prompts: list[Prompt], machine: Machine, console: Console) -> CacheFit:
    from experiments.calibrate_cache import measure
    from stages.models.base import load

    device = find_device(machine.device)
    try:
        with console.status("loading the model") as status:
            model = load(arm.model, arm.weights, device, compile_blocks=False, attention=machine.attention)
            num = len(grids) * len(prompts)
            return measure(model, arm, grids, prompts, lambda done: status.update(f"clip {done} of {num}"))
    except (ValueError, RuntimeError) as error:
        raise RunError(" ".join(str(error).split())) from error


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
