"""``dvg calibrate-sparse``: what each head of a model loses by each pattern of sparse-vdit, measured over clips and kept."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from orchestrator.cli_calibrate_cache import Options, measured, read_options, told
from orchestrator.cli_generate import Machine
from orchestrator.mistakes import ConfigError

if TYPE_CHECKING:
    from stages.accelerators.pattern_fits import PatternFit

BALANCES = (0.0, 0.03, 0.1, 0.3, 1.0)
"""For the table."""


def run_calibrate_sparse(options: Options, block: int, machine: Machine, as_json: bool) -> None:
    """Measure, print and save. Raises ConfigError for what was written wrong, RunError when the model cannot be loaded or run."""
    from experiments.calibrate_sparse import measure
    from stages.accelerators.pattern_fits import SHELF

    _check(block)
    asked = read_options("calibrate-sparse", options, machine, SHELF.user_folder)
    console = Console(stderr=as_json)
    fit = measured(asked, machine, console, functools.partial(measure, block=block))
    told(fit, asked.out, console, as_json, _print)


def _check(block: int) -> None:
    from stages.sparse.choosing import whole_tiles

    try:
        whole_tiles(block)
    except ValueError as error:
        raise ConfigError([f"--block: {error}"]) from error


def _print(console: Console, fit: PatternFit) -> None:
    console.print(f"[bold]{fit.model}[/], {fit.num_clips} clips, steps {', '.join(map(str, fit.steps))} of {fit.num_steps}")
    table = Table(header_style="bold")
    for heading in ("balance", "pairs kept", "error", "heads of each pattern"):
        table.add_column(heading)
    for balance in BALANCES:
        heads = fit.chosen(balance)
        cost, error = fit.told(heads)
        names = [name for layer in heads for name in layer]
        counts = ", ".join(f"{names.count(name)} {name}" for name in fit.candidates if name in names)
        table.add_row(f"{balance:g}", f"{cost:.0%}", f"{error:.1%}", counts)
    console.print(table)
