"""``dvg compare``: arms of runs, or of sweeps in MLflow, side by side."""

from __future__ import annotations

import pathlib
from typing import Annotated

import typer


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN_OR_EXPERIMENT...", help="Run folders, their URLs, or MLflow experiments: mlflow:NAME[@URI]."),
    ],
    base: Annotated[
        str | None, typer.Option(help="Arm to hold the others against, or RUN/ARM; default: the reference of the first run.")
    ] = None,
    metrics: Annotated[
        str | None, typer.Option(help="Of quality, by name or group: ssim,lpips or vbench; the first is the Pareto front's.")
    ] = None,
    csv: Annotated[pathlib.Path | None, typer.Option(help="Also write one row per arm to this file.")] = None,
    html: Annotated[pathlib.Path | None, typer.Option(help="Also write a page with charts to this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Compare arms: cost, speedup, quality with paired differences and intervals, win rates, VBench, the Pareto front."""
    run_compare(runs, base, metrics, csv, html, as_json)


def register(app: typer.Typer) -> None:
    app.command()(compare)


def run_compare(
    places: list[str],
    base: str | None,
    metrics: str | None,
    csv: pathlib.Path | None,
    html: pathlib.Path | None,
    as_json: bool,
) -> None:
    """Raises ConfigError for a place, an arm or a metric that there is not, RunError for a store that does not answer."""
    from rich.console import Console

    from experiments.compare.comparison import compare as compare_runs
    from experiments.compare.export import as_json as to_json
    from experiments.compare.export import csv_text
    from experiments.compare.page import html_text
    from experiments.compare.sources import read_runs
    from experiments.compare.table import tables
    from orchestrator.cli import print_json

    named = [name for name in (metrics or "").replace(" ", "").split(",") if name]
    found = compare_runs(read_runs(places), base, named)
    for path, text in ((csv, csv_text), (html, html_text)):
        if path is not None:
            _write(path, text(found))
    if as_json:
        print_json(to_json(found))
        return
    console = Console(highlight=False)
    for shown in tables(found, console.width):
        console.print(shown)


def _write(path: pathlib.Path, text: str) -> None:
    """Raises ConfigError where nothing can be written."""
    from orchestrator.files import write_atomic
    from orchestrator.mistakes import ConfigError

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text)
    except OSError as error:
        raise ConfigError([f"{str(path)!r} cannot be written: {error.strerror or error}"]) from error
